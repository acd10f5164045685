//! Log files: format, order, rotation by ReopenContainerLog.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use berth_proto::cri::ContainerConfig;
use tonic::Code;

use super::{
    Case, cases,
    scene::{Scene, refused, unknown_id},
};
use crate::{node::parse_log, request::ContainerRequest, sh};

pub const CASES: &[Case] = cases![
    StartContainer: [the_log_has_a_line_for_each_with_time_stream_and_tag],
    StartContainer: [lines_of_one_stream_keep_their_order],
    StartContainer: [a_long_line_comes_in_parts_and_a_last_one_without_an_end_is_there],
    StartContainer: [what_a_terminal_prints_is_stdout],
    StartContainer: [a_container_without_a_log_path_has_none],
    ReopenContainerLog: [a_rotated_log_goes_on_in_a_new_file_and_nothing_is_lost],
    ReopenContainerLog: [it_needs_a_container_that_runs],
];

async fn the_log_has_a_line_for_each_with_time_stream_and_tag(s: &Scene) -> Result<()> {
    let pod = s.a_pod().await?;
    let config = s.container(
        "a",
        &sh("echo out; sleep 0.2; echo err >&2; sleep 0.2; echo"),
    );
    let id = s.start(&pod, &config).await?;
    s.cri.wait_exit(&id).await?;
    let log = String::from_utf8(s.whole_log(&pod, &config).await?)?;
    let lines: Vec<&str> = log.lines().collect();
    ensure!(lines.len() == 3, "{log}");
    for (line, rest) in lines
        .iter()
        .zip(["stdout F out", "stderr F err", "stdout F "])
    {
        let (time, told) = line.split_once(' ').context("a line without a space")?;
        ensure!(told == rest, "{line:?}");
        // RFC 3339 with nanoseconds and a zone.
        let digits = time.split('.').nth(1).unwrap_or_default();
        let fraction = digits.chars().take_while(char::is_ascii_digit).count();
        ensure!(
            time.len() >= 20 && time.as_bytes()[10] == b'T' && (1..=9).contains(&fraction),
            "{line:?}"
        );
        ensure!(
            time.ends_with('Z') || time[19..].contains(['+', '-']),
            "{line:?}"
        );
    }
    // In one zone such times sort as text.
    ensure!(lines.is_sorted_by_key(|line| line.get(..19)), "{log}");
    Ok(())
}

async fn lines_of_one_stream_keep_their_order(s: &Scene) -> Result<()> {
    let pod = s.a_pod().await?;
    let config = s.container("a", &["seq", "20000"]);
    let id = s.start(&pod, &config).await?;
    s.cri.wait_exit(&id).await?;
    let text = String::from_utf8(parse_log(&s.whole_log(&pod, &config).await?, "stdout")?)?;
    let expected: String = (1..=20_000).map(|number| format!("{number}\n")).collect();
    ensure!(
        text == expected,
        "{} bytes of {}",
        text.len(),
        expected.len()
    );
    Ok(())
}

async fn a_long_line_comes_in_parts_and_a_last_one_without_an_end_is_there(
    s: &Scene,
) -> Result<()> {
    let pod = s.a_pod().await?;
    let script = "head -c 100000 /dev/zero | tr '\\0' x; echo; printf end";
    let config = s.container("a", &sh(script));
    let id = s.start(&pod, &config).await?;
    s.cri.wait_exit(&id).await?;
    let log = s.whole_log(&pod, &config).await?;
    ensure!(
        log.ends_with(b"end\n"),
        "the last line has no end of its own"
    );
    let text = String::from_utf8_lossy(&log);
    let parts = text
        .lines()
        .filter(|line| line.contains(" stdout P "))
        .count();
    ensure!(parts >= 5, "100,000 characters came in {parts} parts");
    let whole = parse_log(&log, "stdout")?;
    let xs = whole.iter().take_while(|byte| **byte == b'x').count();
    ensure!(xs == 100_000 && whole[xs..].starts_with(b"\nend"), "{xs}");
    Ok(())
}

async fn what_a_terminal_prints_is_stdout(s: &Scene) -> Result<()> {
    let pod = s.a_pod().await?;
    let config = s
        .container("a", &sh("echo out; echo err >&2"))
        .with(|config: &mut ContainerConfig| config.tty = true);
    let id = s.start(&pod, &config).await?;
    s.cri.wait_exit(&id).await?;
    let log = s.whole_log(&pod, &config).await?;
    let text = String::from_utf8_lossy(&parse_log(&log, "stdout")?).replace('\r', "");
    ensure!(text.starts_with("out\nerr\n"), "{text:?}");
    ensure!(parse_log(&log, "stderr")?.is_empty());
    Ok(())
}

async fn a_container_without_a_log_path_has_none(s: &Scene) -> Result<()> {
    let pod = s.a_pod().await?;
    let config = s.container("a", &sh("seq 100000; exit 3"));
    let config = config.with(|config: &mut ContainerConfig| config.log_path.clear());
    let id = s.start(&pod, &config).await?;
    let status = s.cri.wait_exit(&id).await?;
    ensure!(status.exit_code == 3, "{status:?}");
    let left = std::fs::read_dir(&pod.config.log_directory)?.count();
    ensure!(left == 0, "{left} files in the log directory");
    Ok(())
}

async fn a_rotated_log_goes_on_in_a_new_file_and_nothing_is_lost(s: &Scene) -> Result<()> {
    let pod = s.a_pod().await?;
    let script = "i=0; while [ $i -lt 400 ]; do echo line-$i; i=$((i+1)); sleep 0.01; done";
    let config = s.container("a", &sh(script));
    let id = s.start(&pod, &config).await?;
    let path = s.log_path(&pod, &config);
    let mut old = vec![];
    let limit = Instant::now() + Duration::from_secs(60);
    for number in 0..4 {
        tokio::time::sleep(Duration::from_millis(400)).await;
        let rotated = path.with_extension(format!("log.{number}"));
        std::fs::rename(&path, &rotated)?;
        s.cri.reopen_log(&id).await?;
        ensure!(path.exists(), "there is no new file when the call returns");
        old.push(rotated);
        ensure!(Instant::now() < limit);
    }
    s.cri.wait_exit(&id).await?;
    old.push(path);
    let mut all = vec![];
    for file in &old {
        all.extend(parse_log(&std::fs::read(file)?, "stdout")?);
    }
    let expected: String = (0..400).map(|number| format!("line-{number}\n")).collect();
    ensure!(
        String::from_utf8_lossy(&all) == expected,
        "lines are lost, double or out of order"
    );
    Ok(())
}

async fn it_needs_a_container_that_runs(s: &Scene) -> Result<()> {
    let (_, id) = s.a_sleeper().await?;
    s.cri.stop(&id, 0).await?;
    refused(s.cri.reopen_log(&id).await, &[])?;
    refused(s.cri.reopen_log(&unknown_id()).await, &[Code::NotFound])
}
