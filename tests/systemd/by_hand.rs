//! The shim as containerd drives it: with the runtime option SystemdCgroup, by `berth shim`.

use std::{
    fs,
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use berth_tests::{
    daemon::bin_dir,
    process,
    systemd::{self, property},
};

const SOON: Duration = Duration::from_secs(60);

#[test]
fn the_option_systemd_cgroup_makes_a_scope_and_wants_systemds_form() -> Result<()> {
    if systemd::is_missing() {
        return Ok(());
    }
    let tag = format!("berthtest-hand{}", std::process::id());
    let dir = std::env::temp_dir().join(&tag);
    let root = dir.join("root/bin");
    fs::create_dir_all(&root)?;
    fs::copy("/bin/busybox", root.join("busybox")).context("package busybox-static")?;
    fs::hard_link(root.join("busybox"), root.join("sleep"))?;
    let shim = |words: &[&str]| -> Result<Command> {
        let mut command = Command::new(bin_dir()?.join("berth"));
        let mut path = bin_dir()?.into_os_string();
        path.push(":/usr/sbin:/usr/bin:/sbin:/bin");
        command
            .env("PATH", path)
            .args(["shim", "--state"])
            .arg(dir.join("run"))
            .args(words);
        Ok(command)
    };
    let spec = |cgroups_path: &str| -> Result<()> {
        let spec = shim(&[
            "spec",
            "--force",
            "--cgroups-path",
            cgroups_path,
            "--bundle",
        ])?
        .arg(dir.join("bundle"))
        .arg(dir.join("root"))
        .args(["--", "sleep", "1000"])
        .output()?;
        ensure!(spec.status.success(), "{spec:?}");
        Ok(())
    };
    let run = || {
        let mut run = shim(&["run", "--option", "SystemdCgroup=true", "--bundle"])?;
        run.arg(dir.join("bundle")).arg("hand");
        Ok::<_, anyhow::Error>(run)
    };

    spec(&format!("{tag}.slice:hand:{tag}"))?;
    let mut running = run()?.stdin(Stdio::null()).spawn()?;
    let scope = format!("hand-{tag}.scope");
    let has_come = process::eventually(SOON, || {
        property(&scope, "ActiveState").is_ok_and(|state| state == "active")
            && !process::in_cgroup(&scope).is_empty()
    });
    let at = property(&scope, "ControlGroup");
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(running.id() as i32),
        nix::sys::signal::Signal::SIGTERM,
    )?;
    // sleep is pid 1 of its namespace and hears no SIGTERM; the third signal is SIGKILL.
    for _ in 0..2 {
        std::thread::sleep(Duration::from_millis(500));
        let _ = nix::sys::signal::kill(
            nix::unistd::Pid::from_raw(running.id() as i32),
            nix::sys::signal::Signal::SIGTERM,
        );
    }
    running.wait()?;
    ensure!(has_come, "there is no {scope}");
    let expected = format!("/berthtest.slice/{tag}.slice/{scope}");
    ensure!(at? == expected, "it is not at {expected}");
    systemd::gone(&scope)?;
    systemd::forget(&format!("/{tag}.slice"));
    systemd::forget("/berthtest.slice");

    spec("/berthtest/hand")?;
    let refused = run()?.output()?;
    let said = String::from_utf8_lossy(&refused.stderr);
    ensure!(
        !refused.status.success() && said.contains("slice:prefix:name"),
        "{said}"
    );
    ensure!(!fs::exists("/sys/fs/cgroup/berthtest")?);
    fs::remove_dir_all(&dir)?;
    Ok(())
}
