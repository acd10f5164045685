//! Exec, Attach and PortForward: the URLs, and what is behind them.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use berth_proto::cri::{AttachRequest, ContainerConfig, ExecRequest, PortForwardRequest};
use tonic::Code;

use super::{
    Case, cases,
    scene::{Scene, refused, unknown_id},
};
use crate::{
    remote::{Remote, STDOUT},
    request::ContainerRequest,
    sh,
};

pub const CASES: &[Case] = cases![
    Exec: [each_call_gets_a_url_of_its_own],
    Exec: [what_makes_no_sense_is_refused],
    Exec: [it_needs_a_container_that_runs],
    Exec: [streams_and_exit_code_come_over_a_websocket],
    Exec: [stdin_ends_where_the_client_ends_it],
    Exec: [a_terminal_is_one],
    Exec: [a_url_is_good_for_one_session],
    Attach: [what_the_container_prints_is_seen_and_stdin_is_its_own],
    Attach: [the_end_of_a_client_is_not_that_of_the_container],
    Attach: [what_makes_no_sense_is_refused_to_attach_to],
    Attach: [it_needs_a_container_that_runs_to_attach_to],
    PortForward: [each_call_gets_a_url_of_its_own_to_forward_by],
    PortForward: [it_needs_a_pod_that_is_ready],
];

type Url = Result<String, tonic::Status>;

async fn exec(s: &Scene, request: ExecRequest) -> Url {
    Ok(s.cri.runtime().exec(request).await?.into_inner().url)
}

async fn attach(s: &Scene, request: AttachRequest) -> Url {
    Ok(s.cri.runtime().attach(request).await?.into_inner().url)
}

async fn port_forward(s: &Scene, id: &str, port: &[i32]) -> Url {
    let request = PortForwardRequest {
        pod_sandbox_id: id.into(),
        port: port.to_vec(),
    };
    Ok(s.cri
        .runtime()
        .port_forward(request)
        .await?
        .into_inner()
        .url)
}

fn of(id: &str, cmd: &[&str]) -> ExecRequest {
    ExecRequest {
        container_id: id.into(),
        cmd: cmd.iter().map(ToString::to_string).collect(),
        stdout: true,
        stderr: true,
        ..Default::default()
    }
}

/// A kubelet dials these as they are.
fn is_a_url(url: &str) -> Result<()> {
    let rest = url
        .strip_prefix("http://")
        .or_else(|| url.strip_prefix("https://"));
    let rest = rest.with_context(|| format!("{url:?} is no URL"))?;
    let (authority, path) = rest.split_once('/').context("a URL without a path")?;
    ensure!(authority.contains(':') && path.len() > 8, "{url:?}");
    Ok(())
}

async fn each_call_gets_a_url_of_its_own(s: &Scene) -> Result<()> {
    let (_, id) = s.a_sleeper().await?;
    let mut urls = vec![];
    for _ in 0..3 {
        urls.push(exec(s, of(&id, &["true"])).await?);
    }
    for url in &urls {
        is_a_url(url)?;
        ensure!(!url.contains("true"), "the URL tells the command: {url}");
    }
    ensure!(urls[0] != urls[1] && urls[1] != urls[2] && urls[0] != urls[2]);
    Ok(())
}

async fn what_makes_no_sense_is_refused(s: &Scene) -> Result<()> {
    let (_, id) = s.a_sleeper().await?;
    let plain = of(&id, &["true"]);
    let invalid = [Code::InvalidArgument];
    let terminal_and_stderr = ExecRequest {
        tty: true,
        ..plain.clone()
    };
    refused(exec(s, terminal_and_stderr).await, &invalid).context("tty and stderr")?;
    let nothing = ExecRequest {
        stdout: false,
        stderr: false,
        ..plain
    };
    refused(exec(s, nothing).await, &invalid).context("no stream")
}

async fn it_needs_a_container_that_runs(s: &Scene) -> Result<()> {
    let (pod, id) = s.a_sleeper().await?;
    let created = s.create(&pod, &s.container("created", &["true"])).await?;
    refused(exec(s, of(&created, &["true"])).await, &[])?;
    s.cri.stop(&id, 0).await?;
    refused(exec(s, of(&id, &["true"])).await, &[])?;
    refused(
        exec(s, of(&unknown_id(), &["true"])).await,
        &[Code::NotFound],
    )
}

async fn streams_and_exit_code_come_over_a_websocket(s: &Scene) -> Result<()> {
    let (_, id) = s.a_sleeper().await?;
    let url = exec(s, of(&id, &sh("echo out; echo err >&2; exit 7"))).await?;
    let outcome = Remote::open_old_or_new(&url).await?.outcome().await?;
    ensure!(
        outcome.stdout == b"out\n" && outcome.stderr == b"err\n",
        "{outcome:?}"
    );
    ensure!(
        outcome.status.contains("NonZeroExitCode") && outcome.status.contains('7'),
        "{outcome:?}"
    );
    let url = exec(s, of(&id, &["true"])).await?;
    let outcome = Remote::open_old_or_new(&url).await?.outcome().await?;
    ensure!(outcome.status.contains("Success"), "{outcome:?}");
    Ok(())
}

async fn stdin_ends_where_the_client_ends_it(s: &Scene) -> Result<()> {
    let (_, id) = s.a_sleeper().await?;
    let request = ExecRequest {
        stdin: true,
        ..of(&id, &sh("wc -c; echo end"))
    };
    let mut remote = Remote::open(&exec(s, request).await?).await?;
    remote.write(&[b'x'; 100_000]).await?;
    remote.write(&[b'y'; 234]).await?;
    remote.close_stdin().await?;
    let outcome = remote.outcome().await?;
    ensure!(outcome.stdout == b"100234\nend\n", "{outcome:?}");
    Ok(())
}

async fn a_terminal_is_one(s: &Scene) -> Result<()> {
    let (_, id) = s.a_sleeper().await?;
    let request = ExecRequest {
        tty: true,
        stdin: true,
        stderr: false,
        ..of(
            &id,
            &sh("tty >/dev/null && echo yes; test -t 2 && echo too"),
        )
    };
    let outcome = Remote::open_old_or_new(&exec(s, request).await?)
        .await?
        .outcome()
        .await?;
    // A terminal turns each end of a line into two characters.
    ensure!(outcome.stdout == b"yes\r\ntoo\r\n", "{outcome:?}");
    Ok(())
}

async fn a_url_is_good_for_one_session(s: &Scene) -> Result<()> {
    let (_, id) = s.a_sleeper().await?;
    let url = exec(s, of(&id, &["true"])).await?;
    Remote::open_old_or_new(&url).await?.outcome().await?;
    ensure!(
        Remote::open_old_or_new(&url).await.is_err(),
        "it is good for two"
    );
    Ok(())
}

fn to(id: &str, stdin: bool) -> AttachRequest {
    AttachRequest {
        container_id: id.into(),
        stdin,
        stdout: true,
        stderr: true,
        tty: false,
    }
}

/// A container that says back what it reads.
async fn an_echo(s: &Scene) -> Result<String> {
    let pod = s.a_pod().await?;
    let script = "while read line; do echo \"got $line\"; done; exit 9";
    let config = s.container("echo", &sh(script));
    let config = config.with(|config: &mut ContainerConfig| config.stdin = true);
    s.start(&pod, &config).await
}

async fn what_the_container_prints_is_seen_and_stdin_is_its_own(s: &Scene) -> Result<()> {
    let id = an_echo(s).await?;
    let url = attach(s, to(&id, true)).await?;
    is_a_url(&url)?;
    let mut one = Remote::open_old_or_new(&url).await?;
    let mut other = Remote::open_old_or_new(&attach(s, to(&id, false)).await?).await?;
    // A session takes a moment until its streams are joined to the container's.
    tokio::time::sleep(Duration::from_millis(500)).await;
    one.write(b"ship\n").await?;
    one.expect(STDOUT, "got ship\n").await?;
    other.expect(STDOUT, "got ship\n").await
}

async fn the_end_of_a_client_is_not_that_of_the_container(s: &Scene) -> Result<()> {
    let id = an_echo(s).await?;
    for word in ["one", "two"] {
        let mut remote = Remote::open_old_or_new(&attach(s, to(&id, true)).await?).await?;
        tokio::time::sleep(Duration::from_millis(500)).await;
        remote.write(format!("{word}\n").as_bytes()).await?;
        remote.expect(STDOUT, &format!("got {word}\n")).await?;
        drop(remote);
    }
    let status = s.cri.status(&id).await?;
    ensure!(status.finished_at == 0, "{status:?}");
    Ok(())
}

async fn what_makes_no_sense_is_refused_to_attach_to(s: &Scene) -> Result<()> {
    let id = an_echo(s).await?;
    let invalid = [Code::InvalidArgument];
    let nothing = AttachRequest {
        stdout: false,
        stderr: false,
        ..to(&id, false)
    };
    refused(attach(s, nothing).await, &invalid).context("no stream")?;
    let terminal_and_stderr = AttachRequest {
        tty: true,
        ..to(&id, false)
    };
    refused(attach(s, terminal_and_stderr).await, &invalid).context("tty and stderr")
}

async fn it_needs_a_container_that_runs_to_attach_to(s: &Scene) -> Result<()> {
    let (pod, id) = s.a_sleeper().await?;
    let created = s.create(&pod, &s.container("created", &["true"])).await?;
    refused(attach(s, to(&created, false)).await, &[])?;
    s.cri.stop(&id, 0).await?;
    refused(attach(s, to(&id, false)).await, &[])?;
    refused(attach(s, to(&unknown_id(), false)).await, &[Code::NotFound])
}

async fn each_call_gets_a_url_of_its_own_to_forward_by(s: &Scene) -> Result<()> {
    let pod = s.a_pod().await?;
    let mut urls = vec![];
    for ports in [&[80][..], &[80, 443], &[]] {
        let url = port_forward(s, &pod.id, ports).await?;
        is_a_url(&url)?;
        urls.push(url);
    }
    ensure!(urls[0] != urls[1] && urls[1] != urls[2]);
    Ok(())
}

async fn it_needs_a_pod_that_is_ready(s: &Scene) -> Result<()> {
    let pod = s.a_pod().await?;
    s.cri.stop_pod(&pod.id).await?;
    refused(port_forward(s, &pod.id, &[80]).await, &[])?;
    refused(
        port_forward(s, &unknown_id(), &[80]).await,
        &[Code::NotFound],
    )
}
