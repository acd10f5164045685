//! What packages install beside the program: completion scripts and manual pages.

use std::{path::PathBuf, process::ExitCode};

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use crate::{Cli, error::Error, output};

/// Print a shell's completion script
///
/// For bash: `berth completion bash > /etc/bash_completion.d/berth`.
#[derive(Debug, Args)]
pub struct Completion {
    shell: Shell,
}

impl Completion {
    pub fn run(self) -> Result<ExitCode, Error> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut Cli::command(), "berth", &mut script);
        output::text_out(&String::from_utf8_lossy(&script))?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Print the manual page berth(1), or write it and one page a subcommand into a directory
#[derive(Debug, Args)]
pub struct Man {
    /// Directory for the pages; made if it is not there
    #[arg(long)]
    dir: Option<PathBuf>,
}

impl Man {
    pub fn run(self) -> Result<ExitCode, Error> {
        let command = Cli::command();
        match self.dir {
            Some(dir) => std::fs::create_dir_all(&dir)
                .and_then(|()| clap_mangen::generate_to(command, &dir))
                .map_err(|source| Error::File {
                    what: "write manual pages into",
                    path: dir,
                    source,
                })?,
            None => {
                let mut page = Vec::new();
                clap_mangen::Man::new(command)
                    .render(&mut page)
                    .map_err(Error::Print)?;
                output::text_out(&String::from_utf8_lossy(&page))?;
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_subcommand_gets_a_manual_page() {
        let dir = tempfile::tempdir().unwrap();
        Man {
            dir: Some(dir.path().join("man1")),
        }
        .run()
        .unwrap();
        for page in [
            "berth.1",
            "berth-run.1",
            "berth-image-pull.1",
            "berth-pod-stop.1",
            "berth-audit.1",
            "berth-shim.1",
            "berth-shim-run.1",
        ] {
            let text = std::fs::read_to_string(dir.path().join("man1").join(page)).unwrap();
            assert!(text.contains(".SH SYNOPSIS"), "{page}");
        }
    }
}
