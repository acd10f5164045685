//! How `berth up` and `berth join` begin, and what they say where they can't.

use std::{
    fs,
    io::{BufRead, BufReader, Read},
    path::Path,
    process::{Child, Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use berth_tests::{
    cgroup,
    cluster::{Kubectl, Server},
    daemon::bin_dir,
    machine,
};
use nix::mount::{MsFlags, mount};
use rustix::process::{Pid, Signal, kill_process};

fn berth(arguments: &[&str]) -> Result<Command> {
    let mut command = Command::new(bin_dir()?.join("berth"));
    command.args(arguments).stdin(Stdio::null());
    Ok(command)
}

/// What it says on standard error, which is to fail.
fn refused(command: &mut Command) -> Result<String> {
    let output = command.output()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(!output.status.success(), "it was not refused: {said}");
    Ok(said)
}

/// Ends a program whatever the test does.
struct Running(Child);

impl Running {
    fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill_process(Pid::from_child(&self.0), signal)?)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn tmpfs(at: &Path, options: Option<&str>) -> Result<()> {
    fs::create_dir_all(at)?;
    mount(Some("tmpfs"), at, Some("tmpfs"), MsFlags::empty(), options)
        .with_context(|| format!("mount a tmpfs on {}", at.display()))
}

#[test]
fn a_disk_without_room_is_no_damaged_store() -> Result<()> {
    machine::isolate()?;
    let dir = tempfile::tempdir()?;
    let small = dir.path().join("small");
    tmpfs(&small, Some("size=64k"))?;
    let data = small.join("data").display().to_string();
    let up = ["up", "--server", "--listen", "127.0.0.1:0", "--data", &data];
    let said = refused(&mut berth(&up)?)?;
    ensure!(said.contains("No space left"), "{said}");
    // what a damaged one is told to do would lose all objects
    ensure!(
        !said.contains("damaged") && !said.contains("remove"),
        "{said}"
    );
    Ok(nix::mount::umount(&small)?)
}

#[test]
fn a_start_that_waits_for_its_etcd_ends_when_it_is_told_to() -> Result<()> {
    machine::isolate()?;
    let dir = tempfile::tempdir()?;
    let data = dir.path().display().to_string();
    #[rustfmt::skip]
    let up = ["up", "--server", "--listen", "127.0.0.1:0", "--data", &data, "--store", "etcd=http://127.0.0.1:1"];
    let mut up = Running(berth(&up)?.stderr(Stdio::piped()).spawn()?);
    let mut said = BufReader::new(up.0.stderr.take().context("no stderr")?);
    let mut line = String::new();
    said.read_line(&mut line)?;
    ensure!(line.contains("etcd"), "{line}");
    up.signal(Signal::TERM)?;
    let mut rest = String::new();
    said.read_to_string(&mut rest)?;
    let status = up.0.wait()?;
    ensure!(status.success(), "it ended with {status}: {rest}");
    Ok(())
}

#[test]
fn a_berthd_that_is_not_there_is_told_at_once() -> Result<()> {
    machine::isolate()?;
    let dir = tempfile::tempdir()?;
    let alone = dir.path().join("berth");
    let program = bin_dir()?.join("berth");
    if fs::hard_link(&program, &alone).is_err() {
        fs::copy(&program, &alone)?;
    }
    let data = dir.path().join("data").display().to_string();
    let socket = format!("unix://{}/run/berth.sock", dir.path().display());
    #[rustfmt::skip]
    let up = ["--endpoint", &socket, "up", "--listen", "127.0.0.1:0", "--data", &data, "--node-name", "n1"];
    let said = refused(Command::new(alone).args(up).env("PATH", "/nowhere"))?;
    ensure!(
        said.contains("cannot start berthd") && said.contains("beside this program"),
        "{said}"
    );
    Ok(())
}

#[test]
fn a_name_that_no_node_can_have_is_refused_before_anything_is_made() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let data = dir.path().join("data").display().to_string();
    for name in ["Node_1", "../../elsewhere", ""] {
        let up = ["up", "--listen", "127.0.0.1:0", "--data", &data];
        let said = refused(berth(&up)?.args(["--node-name", name]))?;
        ensure!(said.contains("--node-name gives it another"), "{said}");
        ensure!(!dir.path().join("data/nodes").exists(), "{name}");
        ensure!(!dir.path().join("data/store").exists(), "{name}");
    }
    Ok(())
}

#[test]
fn a_token_that_the_cluster_does_not_take_is_told_and_nothing_is_made() -> Result<()> {
    let server = Server::start("memory")?;
    let dir = tempfile::tempdir()?;
    let data = dir.path().join("data").display().to_string();
    let socket = format!("unix://{}/run/berth.sock", dir.path().display());
    let url = format!("https://{}", server.address);
    let ca = server.data().join("pki/ca.crt").display().to_string();
    let join = |token: &str| {
        #[rustfmt::skip]
        let join = ["--endpoint", &socket, "join", &url, "--token", token, "--ca-file", &ca, "--data", &data, "--node-name", "n1"];
        refused(&mut berth(&join)?)
    };
    let said = join("abcdef.0123456789abcdef")?;
    ensure!(
        said.contains("does not take the token") && said.contains("berth token create"),
        "{said}"
    );
    let said = join("abcdef")?;
    ensure!(said.contains("as `berth token create` prints it"), "{said}");
    ensure!(!dir.path().join("data/nodes").exists());
    Ok(())
}

/// The machine's address is on lo: no link of another kind is needed to have one.
#[test]
fn other_machines_are_told_an_address_that_they_reach_and_the_certificate_is_for_it() -> Result<()>
{
    machine::isolate()?;
    for line in [
        "address add 192.0.2.7/24 dev lo",
        "route add default dev lo src 192.0.2.7",
    ] {
        let status = Command::new("ip").args(line.split(' ')).status()?;
        ensure!(status.success(), "ip {line}: {status}");
    }
    let line = |server: &Server| -> Result<(String, String)> {
        // by --data, as `berth up` has it
        fs::copy(server.kubeconfig(), server.data().join("admin.kubeconfig"))?;
        let data = server.data().display().to_string();
        let output = berth(&["token", "create", "--data", &data])?.output()?;
        ensure!(output.status.success(), "{output:?}");
        let said = String::from_utf8(output.stderr)?;
        Ok((String::from_utf8(output.stdout)?, said))
    };
    let alone = Server::start("memory")?;
    let (join, said) = line(&alone)?;
    let own = format!("https://{}", alone.address);
    ensure!(join.contains(&own), "{join}");
    ensure!(said.contains("--listen 0.0.0.0:"), "{said}");

    let open = Server::start_listening("memory", "0.0.0.0:0")?;
    let (join, said) = line(&open)?;
    let port = open.address.rsplit(':').next().context("no port")?;
    let url = format!("https://192.0.2.7:{port}");
    ensure!(
        join.contains(&format!("berth join {url} --token ")),
        "{join}"
    );
    ensure!(said.is_empty(), "{said}");
    // as itself, not as what kubectl is told not to verify
    let kubectl: Kubectl = open.client();
    kubectl.kubectl(&["--server", &url, "get", "namespaces"])?;
    Ok(())
}

#[test]
fn a_cluster_of_nodes_that_is_interrupted_while_it_begins_ends_well_and_goes_away_whole()
-> Result<()> {
    machine::isolate()?;
    for path in ["/run/netns", "/run/berth-nodes"] {
        tmpfs(Path::new(path), None)?;
    }
    let dir = tempfile::tempdir()?;
    let data = dir.path().join("data").display().to_string();
    let name = format!("i{}", std::process::id());
    let up = ["up", "--nodes", "2", "--node-name", &name, "--data", &data];
    let outcome = (|| {
        for _ in 0..3 {
            let mut up = berth(&up)?;
            let mut up = Running(up.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?);
            let mut line = String::new();
            BufReader::new(up.0.stdout.take().context("no stdout")?).read_line(&mut line)?;
            ensure!(line.starts_with("https://"), "{line}");
            // the nodes begin now, and nobody reads what is said of them
            up.signal(Signal::INT)?;
            let mut said = String::new();
            let mut stderr = up.0.stderr.take().context("no stderr")?;
            stderr.read_to_string(&mut said)?;
            let status = up.0.wait()?;
            ensure!(status.success(), "it ended with {status}: {said}");
            ensure!(!said.contains("does not answer"), "{said}");
        }
        Ok(())
    })();
    let down = berth(&["down", "--data", &data])?.output()?;
    for number in 1..=2 {
        let _ = cgroup::remove(&format!("/berth-{name}-{number}"));
    }
    outcome?;
    ensure!(down.status.success(), "{down:?}");
    let links = Command::new("ip").args(["-o", "link"]).output()?;
    let links = String::from_utf8(links.stdout)?;
    ensure!(links.lines().count() == 1, "links are left: {links}");
    for path in ["/run/netns", "/run/berth-nodes"] {
        let left = fs::read_dir(path)?.count();
        ensure!(left == 0, "{left} are left in {path}");
    }
    Ok(())
}
