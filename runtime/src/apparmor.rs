//! AppArmor's default profile: our own, brought to the kernel when the first container needs it.
//!
//! It stays there when the daemon ends: containers are under it. A machine's administrator may unload it at any time (`aa-remove-unknown`
//! does with every profile that has no file in /etc/apparmor.d), so each container that is to be under it looks first.

use std::{path::Path, process::Stdio, time::Duration};

use berth_proto::cri;
use berth_spec::APPARMOR_DEFAULT;
use tokio::{io::AsyncWriteExt, process::Command, sync::Mutex, time::timeout};

use crate::node::Node;

const PROFILE: &str = include_str!("apparmor/berth-default");

/// Where distributions have the compiler of profiles. Not asked of PATH: what is found there runs as root.
const PARSERS: [&str; 3] = [
    "/usr/sbin/apparmor_parser",
    "/sbin/apparmor_parser",
    "/usr/bin/apparmor_parser",
];

/// The rules that the profile is written for. Parsers since 3.0 have it and want it named: newer kernels mediate what these rules do not
/// speak of (user namespaces, io_uring), and would refuse all of it. Older parsers don't know the word.
const ABI: &str = "/etc/apparmor.d/abi/3.0";

/// It takes 0.1 s on an idle machine; a kernel that doesn't answer must not hold up a container's creation for ever.
const LOAD_LIMIT: Duration = Duration::from_secs(20);

/// What is told of the parser's complaints.
const COMPLAINT_LIMIT: usize = 512;

/// Whether this daemon has brought its profile to the kernel. One that an older one left there may be older.
#[derive(Debug, Default)]
pub struct DefaultProfile(Mutex<bool>);

impl Node {
    /// Sees to it that the kernel has the default profile, where the container is to be under it; why it has it not.
    pub async fn load_apparmor_default(
        &self,
        container: &cri::ContainerConfig,
    ) -> Result<(), String> {
        if !berth_spec::wants_apparmor_default(container, &self.host) {
            return Ok(());
        }
        let mut brought = self.apparmor.0.lock().await;
        let is_loaded = berth_spec::apparmor_is_loaded(APPARMOR_DEFAULT)
            .map_err(|error| format!("the loaded profiles can't be read (is securityfs mounted at /sys/kernel/security?): {error}"))?;
        if *brought && is_loaded {
            return Ok(());
        }
        match load().await {
            Ok(()) => {
                tracing::info!(profile = APPARMOR_DEFAULT, "loaded into the kernel");
                *brought = true;
                Ok(())
            }
            // An older one is better than none.
            Err(why) if is_loaded => {
                tracing::warn!(
                    profile = APPARMOR_DEFAULT,
                    "the one that is loaded stays: {why}"
                );
                *brought = true;
                Ok(())
            }
            Err(why) => Err(why),
        }
    }
}

async fn load() -> Result<(), String> {
    let parser = PARSERS
        .iter()
        .find(|parser| Path::new(parser).exists())
        .ok_or("there is no apparmor_parser to load it with: install the package apparmor")?;
    let mut text = String::new();
    if Path::new(ABI).exists() {
        text.push_str("abi <abi/3.0>,\n");
    }
    text.push_str(PROFILE);
    let failed = |what: &str, error: std::io::Error| format!("{what} {parser}: {error}");
    let mut child = Command::new(parser)
        .args(["--replace", "--skip-cache"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| failed("start", error))?;
    let stdin = child.stdin.take();
    let ended = timeout(LOAD_LIMIT, async {
        if let Some(mut stdin) = stdin {
            // One that ends without reading says why by its exit.
            let _ = stdin.write_all(text.as_bytes()).await;
        }
        child.wait_with_output().await
    });
    let output = match ended.await {
        Ok(output) => output.map_err(|error| failed("wait for", error))?,
        Err(_) => return Err(format!("{parser} did not end within {LOAD_LIMIT:?}")),
    };
    if output.status.success() {
        return Ok(());
    }
    let said: String = String::from_utf8_lossy(&output.stderr)
        .trim()
        .chars()
        .take(COMPLAINT_LIMIT)
        .collect();
    Err(format!("{parser} failed ({}): {said}", output.status))
}
