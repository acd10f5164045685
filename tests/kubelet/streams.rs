//! Logs, exec, attach, port-forward and figures, by a real kubectl through the API server.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    process::Stdio,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use berth_tests::Node;
use serde_json::Value;

use crate::{
    member::{Member, NODE},
    scene::container,
};

#[test]
fn logs_exec_attach_and_port_forward_go_through_the_kubelet() -> Result<()> {
    Node::test(async |node| {
        let member = Member::start(node).await?;
        let server = &member.server;
        member.apply(
            "web",
            "  containers:\n  - {name: a, image: busybox, stdin: true, command: [sh, -c, 'i=0; while [ $i -lt 5 ]; do echo line $i; i=$((i+1)); done; while read word; do echo heard $word; done; sleep 1000']}\n  \
             - {name: http, image: busybox, command: [sh, -c, 'echo served > /tmp/index.html; httpd -f -p 8080 -h /tmp']}\n  \
             - {name: dies, image: busybox, command: [sh, -c, 'echo last words; sleep 1; exit 1']}",
        )?;
        member
            .wait("pod", "web", "up and one of it restarted", |it| {
                let status = &it["status"];
                container(status, "a")["ready"] == true
                    && container(status, "http")["ready"] == true
                    && container(status, "dies")["lastState"]["terminated"].is_object()
            })
            .await?;
        let logs = |more: &[&str]| {
            let all = ["logs", "web"].into_iter().chain(more.iter().copied());
            server.kubectl(&all.collect::<Vec<_>>())
        };
        ensure!(logs(&["-c", "a", "--tail=2"])? == "line 3\nline 4\n");
        ensure!(logs(&["-c", "a", "--limit-bytes=8"])? == "line 0\nl");
        let stamped = logs(&["-c", "a", "--timestamps", "--tail=1"])?;
        ensure!(
            stamped.starts_with("20") && stamped.ends_with(" line 4\n"),
            "{stamped}"
        );
        ensure!(logs(&["-c", "a", "--since=1h"])?.starts_with("line 0\n"));
        ensure!(logs(&["-c", "dies", "--previous"])? == "last words\n");

        // exec: streams, input, and how it ended
        let said = server.ask(
            &[
                "exec",
                "-i",
                "web",
                "-c",
                "a",
                "--",
                "sh",
                "-c",
                "cat; echo err >&2; exit 7",
            ],
            "input",
        )?;
        ensure!(
            !said.ok
                && said.stdout == "input"
                && said.stderr.contains("err")
                && said.stderr.contains("exit code 7"),
            "{said:?}"
        );

        // a log that is followed while somebody speaks to the container
        let mut follows = server
            .command(&["logs", "-f", "web", "-c", "a", "--tail=1"])?
            .stdout(Stdio::piped())
            .spawn()?;
        let mut lines = BufReader::new(follows.stdout.take().context("no stdout")?).lines();
        ensure!(lines.next().context("no line")?? == "line 4");
        let mut attach = server
            .command(&["attach", "-i", "web", "-c", "a"])?
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()?;
        let mut speaks = attach.stdin.take().context("no stdin")?;
        speaks.write_all(b"you\n")?;
        ensure!(lines.next().context("no line")?? == "heard you");
        for child in [&mut follows, &mut attach] {
            child.kill()?;
            child.wait()?;
        }

        let mut forwards = server
            .command(&["port-forward", "pod/web", ":8080"])?
            .stdout(Stdio::piped())
            .spawn()?;
        let mut line = String::new();
        // it goes on to speak of each connection, and must be heard
        let mut says = BufReader::new(forwards.stdout.take().context("no stdout")?);
        says.read_line(&mut line)?;
        let port = line
            .split(" -> ")
            .next()
            .and_then(|it| it.rsplit(':').next())
            .context(line.clone())?;
        let mut got = String::new();
        let mut stream = TcpStream::connect(("127.0.0.1", port.parse()?))?;
        stream.set_read_timeout(Some(Duration::from_secs(20)))?;
        stream.write_all(b"GET /index.html HTTP/1.0\r\n\r\n")?;
        let read = stream.read_to_string(&mut got);
        forwards.kill()?;
        forwards.wait()?;
        read?;
        ensure!(got.ends_with("served\n"), "{got}");

        let summary = server.kubectl(&[
            "get",
            "--raw",
            &format!("/api/v1/nodes/{NODE}/proxy/stats/summary"),
        ])?;
        let summary: Value = serde_json::from_str(&summary)?;
        ensure!(
            summary["node"]["memory"]["workingSetBytes"].as_u64() > Some(0)
                && summary["pods"][0]["podRef"]["name"] == "web"
                && summary["node"]["cpu"]["usageNanoCores"].is_u64()
                && summary["pods"][0]["startTime"].is_string()
                && summary["pods"][0]["containers"][0]["startTime"].is_string()
                && summary["pods"][0]["containers"][0]["memory"]["workingSetBytes"].is_u64(),
            "{summary:#}"
        );
        let metrics = server.kubectl(&[
            "get",
            "--raw",
            &format!("/api/v1/nodes/{NODE}/proxy/metrics/resource"),
        ])?;
        let of_container = "{container=\"http\",namespace=\"default\",pod=\"web\"}";
        let of_pod = "{namespace=\"default\",pod=\"web\"}";
        for (name, labels) in [
            ("node_cpu_usage_seconds_total", ""),
            ("node_memory_working_set_bytes", ""),
            ("pod_cpu_usage_seconds_total", of_pod),
            ("pod_memory_working_set_bytes", of_pod),
            ("container_cpu_usage_seconds_total", of_container),
            ("container_memory_working_set_bytes", of_container),
            ("container_start_time_seconds", of_container),
        ] {
            let begins = format!("{name}{labels} ");
            let line = metrics.lines().find_map(|line| line.strip_prefix(&begins));
            let numbers: Vec<f64> = line
                .into_iter()
                .flat_map(|line| line.split(' ').filter_map(|it| it.parse().ok()))
                .collect();
            // the value, and when it was so
            ensure!(
                numbers.len() == 2 && numbers[0] >= 0.0 && numbers[1] > 1e12,
                "{begins}: {metrics}"
            );
        }
        server.kubectl(&["delete", "pod", "web"])?;
        member.end()
    })
}
