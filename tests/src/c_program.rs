//! Programs in C that run in containers: what a shell can't ask of the kernel. `hack/deps` installs the compiler.

use std::{
    io::Write,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};

/// For an image without libraries.
pub const STATIC: &[&str] = &["-static"];

/// Compiles `source` to the file `out`.
pub fn compile(source: &str, out: &Path, flags: &[&str]) -> Result<()> {
    let mut cc = Command::new("cc")
        .args(["-x", "c", "-O1"])
        .args(flags)
        .arg("-o")
        .arg(out)
        .arg("-")
        .stdin(Stdio::piped())
        .spawn()
        .context("run cc")?;
    cc.stdin
        .take()
        .context("cc has no stdin")?
        .write_all(source.as_bytes())?;
    let status = cc.wait()?;
    ensure!(status.success(), "cc: {status}");
    Ok(())
}
