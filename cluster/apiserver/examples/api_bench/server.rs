//! The server's process, and what it weighs by the kernel's count.

use std::{
    fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use super::Result;

pub struct Server {
    child: Child,
    berth: PathBuf,
    directory: PathBuf,
    parts: Vec<String>,
    pub address: String,
}

/// What the kernel counts processor time in.
const TICKS_A_SECOND: u64 = 100;

impl Server {
    pub fn start(berth: &Path, directory: &Path) -> Result<Self> {
        Self::start_parts(berth, directory, &["--api-only"])
    }

    /// `parts`: further flags of `berth up --server`; without any it has controllers and a scheduler.
    pub fn start_parts(berth: &Path, directory: &Path, parts: &[&str]) -> Result<Self> {
        fs::create_dir_all(directory)?;
        let mut child = Command::new(berth)
            .args(["up", "--server", "--listen", "127.0.0.1:0"])
            .args(parts)
            .arg("--data")
            .arg(directory.join("data"))
            .arg("--kubeconfig")
            .arg(directory.join("kubeconfig"))
            .stdout(Stdio::piped())
            .stderr(fs::File::create(directory.join("log"))?)
            .spawn()?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().ok_or("no stdout")?).read_line(&mut line)?;
        let address = line
            .trim()
            .strip_prefix("https://")
            .ok_or_else(|| format!("the server did not start: {}/log", directory.display()))?;
        Ok(Self {
            child,
            berth: berth.to_owned(),
            directory: directory.to_owned(),
            parts: parts.iter().map(|&part| part.to_owned()).collect(),
            address: address.to_owned(),
        })
    }

    /// As a power cut would end it: what it had acknowledged is there.
    pub fn restart(self) -> Result<Self> {
        let parts = self.parts.clone();
        let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
        self.restart_parts(&parts)
    }

    pub fn restart_parts(self, parts: &[&str]) -> Result<Self> {
        let (berth, directory) = (self.berth.clone(), self.directory.clone());
        drop(self);
        Self::start_parts(&berth, &directory, parts)
    }

    pub fn kubeconfig(&self) -> PathBuf {
        self.directory.join("kubeconfig")
    }

    fn proc(&self, file: &str) -> Result<String> {
        Ok(fs::read_to_string(format!(
            "/proc/{}/{file}",
            self.child.id()
        ))?)
    }

    /// `name: NUMBER` of a file in /proc.
    fn count(&self, file: &str, name: &str) -> Result<u64> {
        let text = self.proc(file)?;
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        let number = line.and_then(|line| line.split_whitespace().next());
        Ok(number
            .ok_or_else(|| format!("no {name} in {file}"))?
            .parse()?)
    }

    pub fn pss_mib(&self) -> Result<f64> {
        Ok((self.count("smaps_rollup", "Pss:")? as f64 / 102.4).round() / 10.0)
    }

    pub fn peak_mib(&self) -> Result<u64> {
        Ok(self.count("status", "VmHWM:")? / 1024)
    }

    /// Bytes that it has had written to the disk.
    pub fn written(&self) -> Result<u64> {
        self.count("io", "write_bytes:")
    }

    pub fn cpu(&self) -> Result<Duration> {
        let stat = self.proc("stat")?;
        // after the name, which may have spaces: the fields from the third on
        let fields = stat.rsplit(") ").next().unwrap_or_default();
        let ticks: u64 = fields
            .split(' ')
            .skip(11)
            .take(2)
            .filter_map(|field| field.parse::<u64>().ok())
            .sum();
        Ok(Duration::from_millis(ticks * 1000 / TICKS_A_SECOND))
    }

    pub fn disk_mib(&self) -> Result<u64> {
        let mut bytes = 0;
        let mut directories = vec![self.directory.join("data")];
        while let Some(directory) = directories.pop() {
            for entry in fs::read_dir(directory)? {
                let entry = entry?;
                match entry.file_type()? {
                    kind if kind.is_dir() => directories.push(entry.path()),
                    _ => bytes += entry.metadata().map_or(0, |file| file.len()),
                }
            }
        }
        Ok(bytes >> 20)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
