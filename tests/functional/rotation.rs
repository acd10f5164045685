//! REL-15: logs that are rotated while somebody follows them, and the daemon is killed in between.

use std::{
    fs,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use berth_proto::cri::AttachRequest;
use berth_tests::{
    BUSYBOX, Node, container,
    node::parse_log,
    remote::{Remote, STDOUT},
    sh,
};

const LINES: usize = 4000;

#[test]
fn rotation_goes_on_over_a_kill_of_the_daemon_and_a_follower_misses_nothing_rel_15() -> Result<()> {
    Node::test(async |node| {
        let pod = node.run(node.pod("rotated")).await?;
        // A pause now and then, so that there is something to rotate for some seconds.
        let script = format!(
            "while ! test -e /go; do sleep 0.05; done; i=0; while [ $i -lt {LINES} ]; do echo line $i; i=$((i+1)); [ $((i % 40)) = 0 ] && sleep 0.04; done; echo end"
        );
        let config = container("a", BUSYBOX, &sh(&script));
        let id = node.start_container(&pod, config.clone()).await?;
        let path = node.log_path(&pod, &config);
        let request = AttachRequest {
            container_id: id.clone(),
            stdout: true,
            ..Default::default()
        };
        let url = node.cri.runtime().attach(request).await?.into_inner().url;
        let mut follower = Remote::open(&url).await?;
        tokio::time::sleep(Duration::from_millis(300)).await;
        node.cri.exec(&id, &["touch", "/go"]).await?;
        // What it hears until the daemon, which serves it, is killed: a beginning without a gap.
        let follower = tokio::spawn(async move {
            let mut heard = vec![];
            while let Ok(Some((channel, bytes))) = follower.next().await {
                if channel == STDOUT {
                    heard.extend(bytes);
                }
            }
            heard
        });
        let mut parts = vec![];
        let limit = Instant::now() + Duration::from_secs(40);
        let mut rotation = 0;
        while node.cri.status(&id).await?.finished_at == 0 {
            ensure!(Instant::now() < limit, "it writes on");
            tokio::time::sleep(Duration::from_millis(200)).await;
            let away = path.with_extension(format!("log.{rotation}"));
            fs::rename(&path, &away)?;
            parts.push(away);
            rotation += 1;
            if rotation == 4 {
                // Between the rename and the reopening.
                node.restart().await?;
            }
            match node.cri.reopen_log(&id).await {
                Ok(()) => {}
                Err(status) => {
                    let begin = Instant::now();
                    ensure!(node.cri.status(&id).await?.finished_at > 0, "{status:?}");
                    ensure!(begin.elapsed() < Duration::from_secs(1));
                    break;
                }
            }
        }
        ensure!(rotation > 5, "only {rotation} rotations");
        parts.push(path);
        let mut all = vec![];
        for part in parts.iter().filter(|part| part.exists()) {
            let bytes = parse_log(&fs::read(part)?, "stdout");
            all.extend(bytes.with_context(|| part.display().to_string())?);
        }
        let expected: String = (0..LINES)
            .map(|line| format!("line {line}\n"))
            .chain(["end\n".to_owned()])
            .collect();
        ensure!(
            String::from_utf8(all)? == expected,
            "the parts are not the whole"
        );
        let heard = follower.await?;
        ensure!(
            heard.len() > 500 && expected.as_bytes().starts_with(&heard),
            "the follower heard {} bytes, not from the beginning or with a gap",
            heard.len()
        );
        Ok(())
    })
}
