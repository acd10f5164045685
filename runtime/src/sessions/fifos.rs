//! The fifos between a session and the shim.

use std::{path::PathBuf, sync::Arc};

use berth_state::Object;
use berth_stream::Writer;
use nix::{sys::stat::Mode, unistd::mkfifo};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::unix::pipe,
};

use crate::{error::Error, pod::Pod};

/// What is carried at once: a keystroke needs little, and what fills it gets what a fifo holds.
const FIRST_BYTES: usize = 4 << 10;
const MOST_BYTES: usize = 64 << 10;

/// Three fifos in a container's bundle; gone with this.
#[derive(Debug)]
pub struct Fifos {
    pod: Arc<Pod>,
    container_id: String,
    paths: [PathBuf; 3],
    /// stdin, stdout, stderr
    wanted: [bool; 3],
}

/// The daemon's ends.
#[derive(Debug)]
pub struct Ends {
    pub stdin: Option<pipe::Sender>,
    pub stdout: Option<pipe::Receiver>,
    pub stderr: Option<pipe::Receiver>,
}

impl Fifos {
    /// Makes them, named after `session`.
    pub fn make(
        pod: Arc<Pod>,
        container_id: String,
        session: &str,
        wanted: [bool; 3],
    ) -> Result<Self, Error> {
        let dir = pod.container_dir(&container_id);
        let paths = ["in", "out", "err"].map(|end| dir.join(format!("{session}-{end}")));
        let fifos = Self {
            pod,
            container_id,
            paths,
            wanted,
        };
        for path in &fifos.paths {
            let ledger = &fifos.pod.node.ledger;
            ledger
                .intend(&fifos.container_id, &Object::Fifo(path.clone()))
                .map_err(Error::io("write ledger for", path))?;
            mkfifo(path, Mode::S_IRUSR | Mode::S_IWUSR)
                .map_err(|e| Error::io("make fifo", path)(e.into()))?;
        }
        Ok(fifos)
    }

    /// As the shim is to know them; empty: not wanted.
    pub fn names(&self) -> [String; 3] {
        std::array::from_fn(|at| match self.wanted[at] {
            true => self.paths[at].display().to_string(),
            false => String::new(),
        })
    }

    /// Opened before the shim opens its own: reading ends of a fifo need no writer, and stdin's is opened both ways for want of a reader.
    pub fn ends(&self) -> Result<Ends, Error> {
        let [stdin, stdout, stderr] = &self.paths;
        let reader = |path: &PathBuf, wanted: bool| match wanted {
            true => pipe::OpenOptions::new()
                .open_receiver(path)
                .map(Some)
                .map_err(Error::io("open fifo", path)),
            false => Ok(None),
        };
        Ok(Ends {
            stdin: match self.wanted[0] {
                true => Some(
                    pipe::OpenOptions::new()
                        .read_write(true)
                        .open_sender(stdin)
                        .map_err(Error::io("open fifo", stdin))?,
                ),
                false => None,
            },
            stdout: reader(stdout, self.wanted[1])?,
            stderr: reader(stderr, self.wanted[2])?,
        })
    }
}

impl Drop for Fifos {
    fn drop(&mut self) {
        let ledger = &self.pod.node.ledger;
        for path in &self.paths {
            let gone = match std::fs::remove_file(path) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e),
                _ => ledger.strike(&self.container_id, &Object::Fifo(path.clone())),
            };
            if let Err(e) = gone {
                tracing::warn!(fifo = %path.display(), "a session's fifo stays until its container goes: {e}");
            }
        }
    }
}

/// Copies to the end of `from`.
pub async fn carry(
    from: &mut (impl AsyncRead + Unpin),
    to: &mut (impl AsyncWrite + Unpin),
) -> std::io::Result<()> {
    let mut buffer = Vec::with_capacity(FIRST_BYTES);
    while from.read_buf(&mut buffer).await? > 0 {
        to.write_all(&buffer).await?;
        let full = buffer.len() == buffer.capacity();
        buffer.clear();
        if full && buffer.capacity() < MOST_BYTES {
            buffer.reserve_exact(MOST_BYTES);
        }
    }
    Ok(())
}

/// Carries an output to its end.
pub async fn pour(from: Option<pipe::Receiver>, to: Option<Writer>) {
    if let (Some(mut from), Some(mut to)) = (from, to) {
        let _ = carry(&mut from, &mut to).await;
        let _ = to.shutdown().await;
    }
}
