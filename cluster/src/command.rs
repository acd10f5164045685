//! One file a command.

pub mod audit;
pub mod checkpoint;
pub mod exec;
pub mod image;
pub mod kubelet;
pub mod logs;
pub mod pod;
pub mod progress;
pub mod run;
pub mod shell;
pub mod shim;
pub mod up;
pub mod version;

/// To stderr, as BERTH_LOG says (info by default).
fn log() {
    log_from("info");
}

/// To stderr, as BERTH_LOG says, or else from `level` on.
fn log_from(level: &str) {
    let filter = tracing_subscriber::EnvFilter::try_from_env("BERTH_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(format!("{level},kube_client=off")));
    // a second one in a process is not wanted, and not an error
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .try_init();
}
