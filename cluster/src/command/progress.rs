//! A pull's layers as they come: a block that is drawn over on a terminal, a line a change of stage elsewhere.

use std::{
    collections::HashMap,
    io::{IsTerminal, Write},
    sync::atomic::{AtomicU64, Ordering},
};

use berth_proto::admin::LayerProgress;

use crate::output;

/// Layers drawn at once; the finished ones give way to those that still move.
const LINES: usize = 20;

/// Blocks of the bar.
const BAR: usize = 24;

/// Lines that others of this process have written below a block.
static BESIDE: AtomicU64 = AtomicU64::new(0);

/// Something else was written to the terminal: a block is not drawn over it, but anew below it.
pub fn wrote_beside() {
    BESIDE.fetch_add(1, Ordering::Relaxed);
}

#[derive(Debug)]
pub struct Progress {
    image: String,
    terminal: bool,
    /// Lines of the block on the screen.
    drawn: usize,
    beside: &'static AtomicU64,
    /// The same when it was drawn.
    seen_beside: u64,
    /// Last stage and stall that were told of a layer.
    told: HashMap<String, (String, String)>,
}

impl Progress {
    pub fn on_stderr(image: &str) -> Self {
        let terminal = std::io::stderr().is_terminal();
        Progress {
            image: image.to_owned(),
            terminal,
            drawn: 0,
            beside: &BESIDE,
            seen_beside: 0,
            told: HashMap::new(),
        }
    }

    /// Failures to write are of no consequence: the pull goes on.
    pub fn show(&mut self, layers: &[LayerProgress]) {
        let text = if self.terminal {
            self.redraw(layers, columns())
        } else {
            self.tell(layers)
        };
        let _ = std::io::stderr().lock().write_all(text.as_bytes());
    }

    /// Up to the block's first line, each line anew, what is left of the old block cleared.
    fn redraw(&mut self, layers: &[LayerProgress], columns: usize) -> String {
        let mut text = String::new();
        let beside = self.beside.load(Ordering::Relaxed);
        if self.drawn > 0 && beside == self.seen_beside {
            text.push_str(&format!("\x1b[{}A\r", self.drawn));
        }
        let settled = |layer: &&LayerProgress| matches!(layer.stage.as_str(), "done" | "present");
        let finished = layers.iter().filter(settled).count();
        let hide = layers.len().saturating_sub(LINES).min(finished);
        let mut hidden = 0;
        let mut lines = vec![format!(
            "{}: {finished} of {} layers",
            self.image,
            layers.len()
        )];
        for layer in layers {
            if settled(&layer) && hidden < hide {
                hidden += 1;
            } else if lines.len() <= LINES {
                lines.push(line(layer));
            }
        }
        for line in &lines {
            let fitting: String = line.chars().take(columns.saturating_sub(1)).collect();
            text.push_str(&format!("\x1b[K{fitting}\n"));
        }
        text.push_str("\x1b[J");
        self.drawn = lines.len();
        self.seen_beside = beside;
        text
    }

    fn tell(&mut self, layers: &[LayerProgress]) -> String {
        let mut text = String::new();
        for layer in layers {
            let now = (layer.stage.clone(), layer.stall.clone());
            if self.told.get(&layer.digest) != Some(&now) {
                let stall = if layer.stall.is_empty() {
                    String::new()
                } else {
                    format!(" ({})", layer.stall)
                };
                text.push_str(&format!(
                    "{}: {} {}{stall}\n",
                    self.image,
                    output::short(&layer.digest),
                    layer.stage
                ));
                self.told.insert(layer.digest.clone(), now);
            }
        }
        text
    }
}

fn line(layer: &LayerProgress) -> String {
    let start = format!("  {:13} {:11}", output::short(&layer.digest), layer.stage);
    let amount = match (layer.stage.as_str(), layer.total_bytes) {
        ("done" | "present", total) => output::bytes(total),
        (_, 0) => output::bytes(layer.done_bytes),
        (_, total) => {
            let full =
                ((layer.done_bytes.min(total) as u128 * BAR as u128) / total as u128) as usize;
            let bar: String = (0..BAR)
                .map(|block| if block < full { '#' } else { '.' })
                .collect();
            format!(
                "{bar} {} / {}",
                output::bytes(layer.done_bytes),
                output::bytes(total)
            )
        }
    };
    let stall = if layer.stall.is_empty() {
        String::new()
    } else {
        format!("  {}", layer.stall)
    };
    format!("{start} {amount}{stall}")
}

/// Of the terminal; some say 0 for "not known".
fn columns() -> usize {
    match rustix::termios::tcgetwinsize(std::io::stderr()) {
        Ok(size) if size.ws_col > 0 => size.ws_col.into(),
        _ => 80,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    static NOBODY: AtomicU64 = AtomicU64::new(0);

    fn layer(digest: &str, stage: &str, done_bytes: u64, total_bytes: u64) -> LayerProgress {
        let digest = format!("sha256:{digest}");
        LayerProgress {
            digest,
            stage: stage.into(),
            done_bytes,
            total_bytes,
            stall: String::new(),
        }
    }

    fn progress(terminal: bool) -> Progress {
        Progress {
            image: "nginx".into(),
            terminal,
            drawn: 0,
            beside: &NOBODY,
            seen_beside: 0,
            told: HashMap::new(),
        }
    }

    #[test]
    fn a_pipe_gets_a_line_a_change_of_stage_and_none_for_bytes() {
        let mut progress = progress(false);
        assert_eq!(
            progress.tell(&[layer("aa", "downloading", 0, 9)]),
            "nginx: aa downloading\n"
        );
        assert_eq!(progress.tell(&[layer("aa", "downloading", 5, 9)]), "");
        let stalled = LayerProgress {
            stall: "no byte for 10s".into(),
            ..layer("aa", "downloading", 5, 9)
        };
        assert_eq!(
            progress.tell(&[stalled]),
            "nginx: aa downloading (no byte for 10s)\n"
        );
        assert_eq!(
            progress.tell(&[layer("aa", "done", 9, 9)]),
            "nginx: aa done\n"
        );
    }

    #[test]
    fn a_terminal_block_is_drawn_over_and_cut_at_the_margin() {
        let mut progress = progress(true);
        let layers = [
            layer("aa", "downloading", 512, 1024),
            layer("bb", "present", 0, 2048),
        ];
        let first = progress.redraw(&layers, 80);
        assert_eq!(
            first,
            "\x1b[Knginx: 1 of 2 layers\n\x1b[K  aa            downloading ############............ 512B / 1.0KiB\n\
             \x1b[K  bb            present     2.0KiB\n\x1b[J"
        );
        let second = progress.redraw(&layers, 20);
        assert!(second.starts_with("\x1b[3A\r"), "{second:?}");
        assert!(second.contains("\x1b[K  aa            dow\n"), "{second:?}");
    }

    #[test]
    fn a_block_is_not_drawn_over_what_others_wrote_below_it() {
        static SOMEBODY: AtomicU64 = AtomicU64::new(0);
        let mut progress = Progress {
            beside: &SOMEBODY,
            ..progress(true)
        };
        let layers = [layer("aa", "downloading", 512, 1024)];
        progress.redraw(&layers, 80);
        SOMEBODY.fetch_add(1, Ordering::Relaxed);
        let below = progress.redraw(&layers, 80);
        assert!(below.starts_with("\x1b[K"), "{below:?}");
        let over = progress.redraw(&layers, 80);
        assert!(over.starts_with("\x1b[2A"), "{over:?}");
    }

    #[test]
    fn many_layers_fit_the_screen_and_the_unfinished_ones_stay() {
        let mut layers: Vec<_> = (0..60)
            .map(|n| layer(&format!("d{n}"), "done", 1, 1))
            .collect();
        layers.push(layer("last", "unpacking", 1, 1));
        let mut progress = progress(true);
        let text = progress.redraw(&layers, 80);
        assert_eq!(progress.drawn, LINES + 1);
        assert!(text.contains("last"), "{text}");
    }
}
