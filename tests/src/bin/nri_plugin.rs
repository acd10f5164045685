//! An NRI plugin that berthd starts: its socket is standard input (a script beside it sees to that). It writes what it hears into the file
//! that its configuration names, and gives each container a variable.

use std::{os::fd::AsFd, sync::Arc, time::Duration};

use anyhow::{Context, Result};
use berth_tests::nri::{Plugin, Script, lock};
use tokio::net::UnixStream;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let name = std::env::var("NRI_PLUGIN_NAME")?;
    let index = std::env::var("NRI_PLUGIN_IDX")?;
    let socket = std::io::stdin().as_fd().try_clone_to_owned()?;
    let trunk = std::os::unix::net::UnixStream::from(socket);
    trunk.set_nonblocking(true)?;
    let script = Arc::new(Script::default());
    let value = format!("{index}-{name}");
    script.adjusts(move |adjust| {
        adjust.env.push(berth_nri::api::KeyValue {
            key: "INSTALLED".into(),
            value: value.clone(),
            ..Default::default()
        });
    });
    let plugin = Plugin::over(UnixStream::from_std(trunk)?, script.clone()).await?;
    plugin.register(&index, &name).await?;
    while !plugin.is_let_go() {
        if let Some(configured) = lock(&script.configured).clone() {
            let path = configured.config.trim().to_owned();
            let synced = script.synced().join(" ");
            let text = format!("{}\nsynced {synced}\n", script.heard().join("\n"));
            std::fs::write(&path, text).with_context(|| format!("write {path}"))?;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}
