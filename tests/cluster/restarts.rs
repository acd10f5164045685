//! The server ends, by its will and against it, and comes back with all that it had acknowledged.

use std::time::Duration;

use anyhow::{Result, ensure};
use berth_tests::cluster::Server;

#[test]
fn what_was_acknowledged_is_there_after_a_kill_9() -> Result<()> {
    let mut server = Server::start("fjall")?;
    for round in 0..3 {
        for n in 0..4 {
            let name = format!("m{round}-{n}");
            server.kubectl(&["create", "configmap", &name, "--from-literal=a=1"])?;
        }
        server.kill_9()?;
        server.start_again()?;
        let names = server.kubectl(&["get", "configmaps", "-o", "name"])?;
        for n in 0..4 {
            ensure!(
                names.contains(&format!("configmap/m{round}-{n}\n")),
                "{names}"
            );
        }
    }
    let service = server.json(&["get", "service", "kubernetes"])?;
    ensure!(service["spec"]["clusterIP"] == "10.96.0.1", "{service}");
    Ok(())
}

#[test]
fn it_ends_within_its_drain_though_clients_watch() -> Result<()> {
    let mut server = Server::start("memory")?;
    let mut watch = server
        .command(&["get", "configmaps", "-w"])?
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()?;
    std::thread::sleep(Duration::from_millis(500));
    let took = server.stop();
    let _ = watch.kill();
    let _ = watch.wait();
    let took = took?;
    ensure!(took < Duration::from_secs(5), "{took:?}");
    Ok(())
}

/// SC-05
#[test]
fn secrets_are_sealed_on_the_disk() -> Result<()> {
    let mut server = Server::start("fjall")?;
    server.kubectl(&[
        "create",
        "secret",
        "generic",
        "s",
        "--from-literal=password=Y4nys7f11-unmistakable",
    ])?;
    server.kubectl(&[
        "create",
        "configmap",
        "m",
        "--from-literal=plain=seen-on-the-disk",
    ])?;
    server.stop()?;
    let base64 = b"WTRueXM3ZjExLXVubWlzdGFrYWJsZQ".as_slice();
    let (mut sealed, mut plain) = (true, false);
    let mut directories = vec![server.data()];
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(directory)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                directories.push(entry.path());
                continue;
            }
            let bytes = std::fs::read(entry.path())?;
            let has = |text: &[u8]| bytes.windows(text.len()).any(|window| window == text);
            sealed &= !has(base64) && !has(b"Y4nys7f11-unmistakable");
            plain |= has(b"seen-on-the-disk");
        }
    }
    ensure!(plain, "the test looks in the wrong place");
    ensure!(sealed, "a Secret can be read on the disk");
    server.start_again()?;
    let secret = server.json(&["get", "secret", "s"])?;
    ensure!(
        secret["data"]["password"] == "WTRueXM3ZjExLXVubWlzdGFrYWJsZQ==",
        "{secret}"
    );
    Ok(())
}
