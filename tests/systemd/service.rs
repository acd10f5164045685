//! `berthd` as a service of systemd's: started, restarted, killed and hung, with a pod that hears nothing of it. What is installed here is installed
//! into the machine itself, so only one that was booted for tests will do.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use berth_proto::cri::{ContainerConfig, PodSandboxConfig, PodSandboxMetadata};
use berth_tests::{
    Cri, container,
    daemon::bin_dir,
    process,
    request::PodRequest,
    systemd::{self, property, systemctl},
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

const UNIT: &str = "berthd.service";
const SOCKET: &str = "/run/berth/berth.sock";
const IMAGE: &str = "localhost/berth-demo:1";
/// How long systemd and a daemon that starts may take, in an emulated machine.
const SETTLE: Duration = Duration::from_secs(90);
/// Of the test's watchdog: the daemon asks itself every five seconds.
const WATCHDOG_S: u64 = 10;

/// `hack/vm` says so to what it runs.
pub fn is_somebodys_machine() -> bool {
    let is = std::env::var_os("BERTH_VM").is_none();
    if is {
        eprintln!("skipped: this is no machine of hack/vm's, and nothing is installed into it");
    }
    is || systemd::is_missing()
}

pub fn hack(script: &str, arguments: &[&str]) -> Result<String> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../hack")
        .join(script);
    let output = Command::new(&script).args(arguments).output()?;
    ensure!(
        output.status.success(),
        "{} {arguments:?}: {}",
        script.display(),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

/// What a machine that boots no further than the tests has not.
pub fn drop_in() -> Result<()> {
    let dir = PathBuf::from(format!("/run/systemd/system/{UNIT}.d"));
    fs::create_dir_all(&dir)?;
    let text = format!("[Unit]\nDefaultDependencies=no\n[Service]\nWatchdogSec={WATCHDOG_S}\n");
    fs::write(dir.join("test.conf"), text)?;
    systemctl(&["daemon-reload"])?;
    Ok(())
}

pub fn bin() -> Result<String> {
    Ok(bin_dir()?.display().to_string())
}

/// A pod with one container, on the machine's network.
pub struct Sleeper {
    pub pod: String,
    pub container: String,
    init: process::Process,
}

impl Sleeper {
    pub async fn start(program: &str) -> Result<Self> {
        let archive = format!("/tmp/berth-demo-{}.tar", std::process::id());
        hack("demo-image", &[&archive])?;
        let imported = Command::new(program)
            .args(["image", "import", &archive])
            .output()?;
        fs::remove_file(&archive)?;
        ensure!(imported.status.success(), "{imported:?}");
        let cri = Cri::connect(Path::new(SOCKET)).await?;
        let pod_config = PodSandboxConfig {
            metadata: Some(PodSandboxMetadata {
                name: "sleeper".into(),
                uid: "1".into(),
                namespace: "default".into(),
                attempt: 0,
            }),
            ..Default::default()
        }
        .on_the_host_network();
        let config: ContainerConfig = container("sleep", IMAGE, &["sleep", "100000"]);
        let pod = cri.run_pod(&pod_config).await?;
        let container = cri.create(&pod, &config, &pod_config).await?;
        cri.start(&container).await?;
        let init = process::init_of(&container).context("the container has no process")?;
        Ok(Self {
            pod,
            container,
            init,
        })
    }

    /// The same process runs, and the daemon that answers now reaches it.
    pub async fn is_undisturbed(&self) -> Result<()> {
        ensure!(
            process::init_of(&self.container).as_ref() == Some(&self.init),
            "the container has another process"
        );
        let cri = ready().await?;
        let said = cri.exec(&self.container, &["echo", "on"]).await?;
        ensure!(said == "on", "{said}");
        Ok(())
    }
}

/// A client of the daemon that answers, as soon as one does.
pub async fn ready() -> Result<Cri> {
    let deadline = std::time::Instant::now() + SETTLE;
    loop {
        if let Ok(cri) = Cri::connect(Path::new(SOCKET)).await
            && cri.version().await.is_ok()
        {
            return Ok(cri);
        }
        ensure!(
            std::time::Instant::now() < deadline,
            "berthd does not answer"
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

pub fn main_pid() -> Result<i32> {
    Ok(property(UNIT, "MainPID")?.parse()?)
}

/// Waits for another daemon than `old`.
fn replaced(old: i32) -> Result<i32> {
    let mut new = old;
    let is = process::eventually(SETTLE, || {
        new = main_pid().unwrap_or(old);
        new != 0 && new != old && property(UNIT, "ActiveState").is_ok_and(|state| state == "active")
    });
    ensure!(is, "no other daemon than {old} came within {SETTLE:?}");
    Ok(new)
}

pub fn block_on<T>(future: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?
        .block_on(future)
}

#[test]
fn a_restart_a_kill_and_a_hang_of_the_service_disturb_no_pod() -> Result<()> {
    if is_somebodys_machine() {
        return Ok(());
    }
    hack("install", &["--bin", &bin()?])?;
    drop_in()?;
    let outcome = block_on(async {
        systemctl(&["start", UNIT])?;
        let sleeper = Sleeper::start("/usr/local/bin/berth").await?;
        let at = fs::read_to_string(format!("/proc/{}/cgroup", sleeper.init.pid))?;
        ensure!(at.starts_with("0::/berth.slice/berth-"), "{at}");

        let mut daemon = main_pid()?;
        systemctl(&["restart", UNIT])?;
        daemon = replaced(daemon)?;
        sleeper.is_undisturbed().await.context("after a restart")?;

        process::kill_9(daemon);
        daemon = replaced(daemon)?;
        sleeper.is_undisturbed().await.context("after a kill")?;

        // One that works is left alone for longer than the watchdog waits; one that hangs is not.
        tokio::time::sleep(Duration::from_secs(2 * WATCHDOG_S)).await;
        ensure!(
            main_pid()? == daemon,
            "the watchdog has bitten one that works"
        );
        kill(Pid::from_raw(daemon), Signal::SIGSTOP)?;
        replaced(daemon)?;
        let result = systemctl(&["show", "--property=NRestarts", "--value", UNIT])?;
        ensure!(result.trim() == "2", "restarts: {result}");
        sleeper.is_undisturbed().await.context("after a hang")?;

        let refused = hack("install", &["--uninstall"]).unwrap_err().to_string();
        ensure!(refused.contains("there are pods"), "{refused}");
        let cri = ready().await?;
        cri.stop_pod(&sleeper.pod).await?;
        cri.remove_pod(&sleeper.pod).await?;
        systemd::gone(&format!("*{}*", sleeper.container))?;
        systemd::gone(&format!("*{}*", sleeper.pod))
    });
    let _ = systemctl(&["stop", UNIT]);
    outcome?;
    hack("install", &["--uninstall"])?;
    for left in [
        "/usr/local/bin/berthd",
        "/usr/local/lib/systemd/system/berthd.service",
        "/usr/local/share/berth",
        "/etc/berth",
    ] {
        ensure!(!Path::new(left).exists(), "{left} is left");
    }
    ensure!(process::shims().is_empty(), "{:?}", process::shims());
    Ok(())
}
