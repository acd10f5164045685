//! The Debian package: installed, upgraded with a pod that runs, removed and purged.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use berth_tests::{
    process,
    systemd::{self, property, systemctl},
};

use crate::service::{Sleeper, bin, block_on, drop_in, hack, is_somebodys_machine, main_pid};

const UNIT: &str = "berthd.service";
const CONFIG: &str = "/etc/berth/config.toml";

fn dpkg(arguments: &[&str]) -> Result<()> {
    let output = Command::new("dpkg")
        // The machine does not outlive the test.
        .arg("--force-unsafe-io")
        .args(arguments)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .output()?;
    ensure!(
        output.status.success(),
        "dpkg {arguments:?}: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

/// The package in this version: one of `BERTH_TEST_PACKAGES`, where those are that the machine's host has built (a package takes minutes in an
/// emulated machine), or else built here.
fn build(version: &str) -> Result<String> {
    if let Some(dir) = std::env::var_os("BERTH_TEST_PACKAGES") {
        let mut built = fs::read_dir(&dir)?.flatten().map(|entry| entry.path());
        let is = |path: &PathBuf| path.to_string_lossy().contains(&format!("_{version}_"));
        let found = built
            .find(is)
            .with_context(|| format!("no package {version} in {}", dir.display()))?;
        return Ok(found.display().to_string());
    }
    hack(
        "deb",
        &[
            "--bin",
            &bin()?,
            "--version",
            version,
            "--compression",
            "none",
            "--out",
            "/tmp/berth-debs",
        ],
    )
}

#[test]
fn a_package_starts_its_service_and_an_upgrade_disturbs_no_pod() -> Result<()> {
    if is_somebodys_machine() {
        return Ok(());
    }
    let (first, second) = (build("0.1.0-1")?, build("0.1.0-2")?);
    drop_in()?;
    dpkg(&["--install", &first])?;
    block_on(async {
        ensure!(property(UNIT, "ActiveState")? == "active");
        ensure!(property(UNIT, "UnitFileState")? == "enabled");
        for file in [
            "/usr/share/man/man8/berthd.8.gz",
            "/usr/share/man/man1/berth-run.1.gz",
            "/usr/share/bash-completion/completions/berth",
            "/usr/share/zsh/vendor-completions/_berthd",
        ] {
            ensure!(Path::new(file).exists(), "{file}");
        }
        let sleeper = Sleeper::start("/usr/bin/berth").await?;
        // A change of the operator's stays.
        let mut config = fs::read_to_string(CONFIG)?;
        config.insert_str(0, "# mine\n");
        fs::write(CONFIG, &config)?;
        let daemon = main_pid()?;
        dpkg(&["--install", &second])?;
        ensure!(main_pid()? != daemon, "the daemon was not replaced");
        ensure!(fs::read_to_string(CONFIG)? == config);
        sleeper
            .is_undisturbed()
            .await
            .context("after the upgrade")?;

        dpkg(&["--remove", "berth"])?;
        ensure!(
            process::init_of(&sleeper.container).is_none(),
            "its pod lives"
        );
        systemd::gone(&format!("*{}*", sleeper.container))?;
        systemd::gone(&format!("*{}*", sleeper.pod))?;
        ensure!(Path::new(CONFIG).exists() && Path::new("/var/lib/berth").exists());

        dpkg(&["--purge", "berth"])
    })?;
    for left in [
        "/usr/bin/berthd",
        "/etc/berth",
        "/var/lib/berth",
        "/run/berth",
        "/etc/systemd/system/multi-user.target.wants/berthd.service",
    ] {
        ensure!(!Path::new(left).exists(), "{left} is left");
    }
    ensure!(process::shims().is_empty(), "{:?}", process::shims());
    systemctl(&["daemon-reload"])?;
    systemd::gone("berth.slice")?;
    // Not the machine's own berth-vm.service, which runs this test.
    systemd::gone("berth-*.slice")?;
    systemd::gone("berth-*.scope")?;
    // Not there where the packages came from elsewhere.
    let _ = fs::remove_dir_all("/tmp/berth-debs");
    Ok(())
}
