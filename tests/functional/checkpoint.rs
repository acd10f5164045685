//! CheckpointContainer. What CRIU itself does is tested with CRIU, where there is one that knows this kernel; what is around it, also
//! with programs that fail, hang and write too much in its place.

use std::{
    collections::BTreeMap,
    fs,
    io::Read,
    os::unix::fs::{MetadataExt, PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use berth_proto::cri::{self, ContainerConfig, ContainerState};
use berth_tests::{
    BUSYBOX, Node, Pod, Setup, container, cri::refused, cri::spec as cri_spec, failpoint::Action,
    failpoint::spec, process, sh,
};
use tonic::Code;

/// Counts to stdout, and into a file of its root.
const COUNT: &str = "i=0; while :; do i=$((i+1)); echo $i; echo $i >/count; sleep 0.05; done";

pub async fn checkpoint(
    node: &Node,
    id: &str,
    location: &Path,
    timeout: i64,
) -> Result<(), tonic::Status> {
    let request = cri::CheckpointContainerRequest {
        container_id: id.to_owned(),
        location: location.display().to_string(),
        timeout,
    };
    let mut client = node.cri.runtime();
    client.checkpoint_container(request).await.map(drop)
}

/// Whether this machine's CRIU works; else why not, aloud.
pub fn criu_works(test: &str) -> bool {
    let why = match Command::new("criu").arg("check").output() {
        Ok(output) if output.status.success() => return true,
        Ok(output) => String::from_utf8_lossy(&output.stderr)
            .lines()
            .next()
            .unwrap_or_default()
            .to_owned(),
        Err(error) => format!("criu: {error}"),
    };
    eprintln!("SKIPPED {test}: `criu check` fails here: {why}");
    false
}

/// A node whose CRIU is this program.
fn with_criu(program: &str) -> Setup {
    Setup {
        config: format!("[checkpoint]\ncriu = \"{program}\""),
        ..Default::default()
    }
}

/// A node whose CRIU is this script. It gets CRIU's arguments; `$images` and `$work` are the directories among them.
fn with_script(name: &str, script: &str) -> Result<(Setup, tempdir::Dir)> {
    let dir = tempdir::Dir::make(name)?;
    let path = dir.0.join("criu");
    let text = format!(
        "#!/bin/sh\nfor a in \"$@\"; do case $before in --images-dir) images=$a;; --work-dir) work=$a;; esac; before=$a; done\n{script}\n"
    );
    fs::write(&path, text)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    Ok((with_criu(&path.display().to_string()), dir))
}

mod tempdir {
    use std::{fs, io, path::PathBuf};

    /// A directory of this process, taken away on drop.
    #[derive(Debug)]
    pub struct Dir(pub PathBuf);

    impl Dir {
        pub fn make(name: &str) -> io::Result<Self> {
            let path = PathBuf::from(format!("/tmp/berth-criu-{name}-{}", std::process::id()));
            fs::create_dir(&path)?;
            Ok(Self(path))
        }
    }

    impl Drop for Dir {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }
}

/// The last number that the container wrote.
fn counted(node: &Node, pod: &Pod, config: &ContainerConfig) -> Result<u64> {
    let text = node.log_text(pod, config, "stdout")?;
    let last = text.lines().last().context("nothing counted yet")?;
    Ok(last.parse()?)
}

async fn counts_on(node: &Node, pod: &Pod, config: &ContainerConfig) -> Result<()> {
    let before = counted(node, pod, config).unwrap_or_default();
    let deadline = Instant::now() + Duration::from_secs(10);
    while counted(node, pod, config).unwrap_or_default() < before + 3 {
        ensure!(
            Instant::now() < deadline,
            "the container stands still at {before}"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

/// Neither an archive nor parts of one.
fn nothing_left(node: &Node, location: &Path) -> Result<()> {
    ensure!(
        location.symlink_metadata().is_err(),
        "{} is there",
        location.display()
    );
    let scratch = node.daemon.root.join("checkpoints");
    let left: Vec<_> = fs::read_dir(&scratch)
        .into_iter()
        .flatten()
        .flatten()
        .collect();
    ensure!(left.is_empty(), "{left:?} is left");
    Ok(())
}

/// The files of an archive, by name.
pub fn unpacked(archive: &Path) -> Result<BTreeMap<String, Vec<u8>>> {
    let dir = tempdir::Dir::make(&format!("tar-{:08x}", rand::random::<u32>()))?;
    let status = Command::new("tar")
        .arg("-xf")
        .arg(archive)
        .arg("-C")
        .arg(&dir.0)
        .status()?;
    ensure!(status.success(), "tar can't read {}", archive.display());
    let mut files = BTreeMap::new();
    let mut open: Vec<PathBuf> = vec![dir.0.clone()];
    while let Some(at) = open.pop() {
        for entry in fs::read_dir(&at)? {
            let path = entry?.path();
            if path.is_dir() {
                open.push(path);
            } else {
                let name = path.strip_prefix(&dir.0)?.display().to_string();
                files.insert(name, fs::read(&path)?);
            }
        }
    }
    Ok(files)
}

/// `tar -tv`, a line an entry.
fn listed(archive: &[u8]) -> Result<String> {
    let dir = tempdir::Dir::make(&format!("list-{:08x}", rand::random::<u32>()))?;
    let path = dir.0.join("a.tar");
    fs::write(&path, archive)?;
    let output = Command::new("tar").arg("-tvf").arg(&path).output()?;
    ensure!(output.status.success(), "{output:?}");
    Ok(String::from_utf8(output.stdout)?)
}

#[test]
fn a_container_is_written_down_and_goes_on() -> Result<()> {
    if !criu_works("a_container_is_written_down_and_goes_on") {
        return Ok(());
    }
    Node::test(async |node| {
        let pod = node.run(node.pod("checkpoint")).await?;
        let config = container("c", BUSYBOX, &sh(COUNT));
        let id = node.start_container(&pod, config.clone()).await?;
        counts_on(node, &pod, &config).await?;
        let before = process::init_of(&id).context("no process")?.pid;
        let location = node.dir.join("checkpoint.tar");
        checkpoint(node, &id, &location, 0).await?;
        counts_on(node, &pod, &config).await?;
        ensure!(process::init_of(&id).context("no process")?.pid == before);

        ensure!(fs::metadata(&location)?.mode() & 0o7777 == 0o600);
        let files = unpacked(&location)?;
        for name in [
            "config.dump",
            "spec.dump",
            "status",
            "dump.log",
            "rootfs-diff.tar",
            "checkpoint/inventory.img",
            "checkpoint/pstree.img",
            "checkpoint/descriptors.json",
        ] {
            ensure!(files.contains_key(name), "no {name} in {:?}", files.keys());
        }
        // Memory and files are of one moment.
        let diff = listed(&files["rootfs-diff.tar"])?;
        ensure!(diff.contains(" count"), "{diff}");
        // Once more, and with the container's own exec beside it.
        let again = node.dir.join("again.tar");
        checkpoint(node, &id, &again, 60).await?;
        counts_on(node, &pod, &config).await?;
        fs::remove_file(&location)?;
        nothing_left(node, &location)
    })
}

#[test]
fn containers_of_many_kinds_are_written_down() -> Result<()> {
    if !criu_works("containers_of_many_kinds_are_written_down") {
        return Ok(());
    }
    Node::test(async |node| {
        use berth_tests::request::{ContainerRequest, PodRequest, bind};
        let volume = node.volume("v")?;
        let kinds: [(&str, fn(cri::PodSandboxConfig) -> cri::PodSandboxConfig); 3] = [
            ("own", |pod| pod),
            ("host", |pod| pod.on_the_host_network()),
            ("shared", |pod| {
                pod.namespaces(|n| n.pid = cri::NamespaceMode::Pod.into())
            }),
        ];
        for (name, change) in kinds {
            let pod = node.run(change(node.pod(name))).await?;
            let namespaces = pod
                .config
                .linux
                .as_ref()
                .and_then(|linux| linux.security_context.as_ref())
                .and_then(|security| security.namespace_options.clone());
            let config = container(name, BUSYBOX, &sh(COUNT))
                .mount(bind(&volume, "/volume"))
                .security(|security| {
                    security.namespace_options = namespaces;
                    security.no_new_privs = true;
                });
            let id = node.start_container(&pod, config.clone()).await?;
            counts_on(node, &pod, &config).await?;
            let location = node.dir.join(format!("{name}.tar"));
            checkpoint(node, &id, &location, 0)
                .await
                .with_context(|| name.to_owned())?;
            counts_on(node, &pod, &config).await?;
        }
        Ok(())
    })
}

#[test]
fn without_criu_the_answer_says_what_to_install() -> Result<()> {
    Node::test_with(with_criu("/nonexistent/criu"), async |node| {
        let pod = node.run(node.pod("none")).await?;
        let config = container("c", BUSYBOX, &sh(COUNT));
        let id = node.start_container(&pod, config.clone()).await?;
        let location = node.dir.join("a.tar");
        refused(
            checkpoint(node, &id, &location, 0).await,
            Code::FailedPrecondition,
            &["CRIU binary not found", "install", "checkpoint.criu"],
        )?;
        counts_on(node, &pod, &config).await?;
        nothing_left(node, &location)
    })
}

#[test]
fn what_makes_no_sense_is_refused_before_anything_is_done() -> Result<()> {
    Node::test_with(with_criu("/bin/true"), async |node| {
        let pod = node.run(node.pod("refused")).await?;
        let config = container("c", BUSYBOX, &sh(COUNT));
        let id = node.start_container(&pod, config.clone()).await?;
        let good = node.dir.join("good.tar");
        let there = node.dir.join("there.tar");
        fs::write(&there, "theirs")?;
        let link = node.dir.join("link.tar");
        symlink("/nowhere/at/all", &link)?;
        let long = node.dir.join("x".repeat(300));
        let table: [(&str, &Path, i64, Code, &str); 9] = [
            (&id, Path::new(""), 0, Code::InvalidArgument, "absolute"),
            (
                &id,
                Path::new("a.tar"),
                0,
                Code::InvalidArgument,
                "absolute",
            ),
            (
                &id,
                Path::new("/tmp/../a.tar"),
                0,
                Code::InvalidArgument,
                "..",
            ),
            (
                &id,
                Path::new("/nonexistent/a.tar"),
                0,
                Code::InvalidArgument,
                "directory",
            ),
            (&id, &long, 0, Code::InvalidArgument, "long"),
            (&id, &there, 0, Code::AlreadyExists, "there.tar"),
            (&id, &link, 0, Code::AlreadyExists, "link.tar"),
            (&id, &good, -1, Code::InvalidArgument, "timeout"),
            ("nobody", &good, 0, Code::NotFound, "nobody"),
        ];
        for (id, location, timeout, code, word) in table {
            refused(checkpoint(node, id, location, timeout).await, code, &[word])
                .with_context(|| location.display().to_string())?;
        }
        ensure!(fs::read_to_string(&there)? == "theirs");

        let made = node
            .create(&pod, &container("made", BUSYBOX, &["sleep", "1000"]))
            .await?;
        let ended = node
            .start_container(&pod, container("ended", BUSYBOX, &sh("exit 0")))
            .await?;
        ensure!(node.cri.wait_exit(&ended).await?.state() == ContainerState::ContainerExited);
        for id in [&made, &ended] {
            refused(
                checkpoint(node, id, &good, 0).await,
                Code::FailedPrecondition,
                &["not running"],
            )?;
        }
        let tty = container("tty", BUSYBOX, &["sleep", "1000"]);
        let tty = ContainerConfig { tty: true, ..tty };
        let tty = node.start_container(&pod, tty).await?;
        refused(
            checkpoint(node, &tty, &good, 0).await,
            Code::Unimplemented,
            &["terminal"],
        )?;
        counts_on(node, &pod, &config).await?;
        nothing_left(node, &good)
    })
}

#[test]
fn what_a_container_changed_of_its_image_is_in_the_archive() -> Result<()> {
    Node::test_with(with_criu("/bin/true"), async |node| {
        let pod = node.run(node.pod("diff")).await?;
        let script = "echo new >/new; ln /new /also; ln -s /new /link; mkfifo /fifo; mkdir -p /d/e; echo deep >/d/e/f
            rm /etc/passwd; rmdir /root; mkdir /root; echo x >/root/only; chmod 1751 /d; chown 12:34 /new; sleep 1000";
        let config = container("c", BUSYBOX, &sh(script));
        let id = node.start_container(&pod, config).await?;
        let upper = node
            .daemon
            .root
            .join("image/snapshots")
            .join(&id)
            .join("upper");
        let deadline = Instant::now() + Duration::from_secs(10);
        while fs::metadata(upper.join("new")).map_or(0, |meta| meta.uid()) != 12 {
            ensure!(Instant::now() < deadline, "the container did nothing");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let location = node.dir.join("diff.tar");
        checkpoint(node, &id, &location, 0).await?;
        let files = unpacked(&location)?;
        let config: serde_json::Value = serde_json::from_slice(&files["config.dump"])?;
        ensure!(
            config["id"] == id.as_str() && config["name"] == "c",
            "{config}"
        );
        ensure!(
            config["rootfsImageRef"]
                .as_str()
                .is_some_and(|id| id.starts_with("sha256:"))
        );
        let spec: serde_json::Value = serde_json::from_slice(&files["spec.dump"])?;
        ensure!(spec["process"]["args"][0] == "sh", "{spec}");
        let diff = listed(&files["rootfs-diff.tar"])?;
        let line = |end: &str| {
            diff.lines()
                .find(|line| line.ends_with(end))
                .with_context(|| format!("no {end} in\n{diff}"))
        };
        // Two names of one file: the first by name has the bytes.
        ensure!(line(" also")?.starts_with("-rw"), "{diff}");
        ensure!(line(" also")?.contains("12/34"), "{diff}");
        ensure!(line(" new link to also")?.starts_with('h'), "{diff}");
        ensure!(line(" link -> /new")?.starts_with('l'), "{diff}");
        ensure!(line(" fifo")?.starts_with('p'), "{diff}");
        ensure!(line(" d")?.starts_with("drwxr-x--t"), "{diff}");
        line(" d/e/f")?;
        line(" etc/.wh.passwd")?;
        line(" root/only")?;
        line(" root/.wh..wh..opq")?;
        Ok(())
    })
}

#[test]
fn a_criu_that_fails_is_quoted_and_the_container_goes_on() -> Result<()> {
    let script = "echo '(00.01) Error (criu/x.c:1): no such luck' >$work/dump.log; echo '(00.02) Error (criu/cr-dump.c:9): Dumping FAILED.' >>$work/dump.log; exit 1";
    let (setup, _dir) = with_script("fails", script)?;
    Node::test_with(setup, async |node| {
        let pod = node.run(node.pod("fails")).await?;
        let config = container("c", BUSYBOX, &sh(COUNT));
        let id = node.start_container(&pod, config.clone()).await?;
        let location = node.dir.join("a.tar");
        refused(
            checkpoint(node, &id, &location, 0).await,
            Code::Internal,
            &["no such luck", "criu check"],
        )?;
        counts_on(node, &pod, &config).await?;
        nothing_left(node, &location)
    })
}

#[test]
fn a_checkpoint_that_takes_too_long_is_given_up_and_the_container_goes_on() -> Result<()> {
    let (setup, dir) = with_script("hangs", "echo $$ >${0%/criu}/pid; sleep 1000")?;
    Node::test_with(setup, async |node| {
        let pod = node.run(node.pod("hangs")).await?;
        let config = container("c", BUSYBOX, &sh(COUNT));
        let id = node.start_container(&pod, config.clone()).await?;
        counts_on(node, &pod, &config).await?;
        let location = node.dir.join("a.tar");
        let began = Instant::now();
        let (first, second) = tokio::join!(checkpoint(node, &id, &location, 2), async {
            tokio::time::sleep(Duration::from_millis(500)).await;
            checkpoint(node, &id, &location, 2).await
        });
        refused(second, Code::FailedPrecondition, &["already"])?;
        refused(first, Code::DeadlineExceeded, &["2 s"])?;
        ensure!(
            began.elapsed() < Duration::from_secs(15),
            "{:?}",
            began.elapsed()
        );
        let pid: i32 = fs::read_to_string(dir.0.join("pid"))?.trim().parse()?;
        ensure!(process::Process::read(pid).is_none(), "CRIU runs on");
        counts_on(node, &pod, &config).await?;
        nothing_left(node, &location)
    })
}

#[test]
fn a_full_disk_costs_the_checkpoint_and_nothing_else() -> Result<()> {
    let script = "dd if=/dev/zero of=$images/pages-1.img bs=64k count=10000; exit 1";
    let (setup, _dir) = with_script("full", script)?;
    let setup = Setup {
        root_bytes: Some(24 << 20),
        ..setup
    };
    Node::test_with(setup, async |node| {
        let pod = node.run(node.pod("full")).await?;
        let config = container("c", BUSYBOX, &sh(COUNT));
        let id = node.start_container(&pod, config.clone()).await?;
        let location = node.dir.join("a.tar");
        let answer = checkpoint(node, &id, &location, 0).await;
        let code = answer.as_ref().err().map(tonic::Status::code);
        ensure!(code == Some(Code::ResourceExhausted), "{answer:?}");
        nothing_left(node, &location)?;
        counts_on(node, &pod, &config).await
    })
}

#[test]
fn a_daemon_that_dies_in_the_middle_leaves_no_archive_and_no_container_that_stands_still()
-> Result<()> {
    let (setup, dir) = with_script(
        "dies",
        "touch ${0%/criu}/began; sleep 3; echo x >$images/x.img",
    )?;
    Node::test_with(setup, async |node| {
        let pod = node.run(node.pod("dies")).await?;
        let config = container("c", BUSYBOX, &sh(COUNT));
        let id = node.start_container(&pod, config.clone()).await?;
        let location = node.dir.join("a.tar");
        // Once while CRIU works, and once while the container is held after it.
        for during in ["dump", "hold"] {
            let _ = fs::remove_file(dir.0.join("began"));
            if during == "hold" {
                let _ = node.daemon.terminate();
                node.daemon.failpoints = spec([("checkpoint.dumped", Action::Kill)]);
                node.daemon.spawn()?;
                node.cri = node.daemon.ready().await?.remembering(&node.cri);
                node.daemon.failpoints = String::new();
            }
            counts_on(node, &pod, &config).await?;
            let asked = checkpoint(node, &id, &location, 60);
            let killed = async {
                while !dir.0.join("began").exists() {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            };
            if during == "dump" {
                tokio::select! {
                    answer = asked => ensure!(answer.is_err(), "it is done"),
                    () = killed => {}
                }
            } else {
                ensure!(asked.await.is_err(), "the daemon lives");
            }
            node.restart().await?;
            counts_on(node, &pod, &config)
                .await
                .with_context(|| during)?;
            nothing_left(node, &location)?;
        }
        Ok(())
    })
}

#[test]
fn a_container_that_is_held_can_be_killed() -> Result<()> {
    let setup = Setup {
        failpoints: spec([("checkpoint.dumped", Action::Delay(4000))]),
        ..with_criu("/bin/true")
    };
    Node::test_with(setup, async |node| {
        let pod = node.run(node.pod("held")).await?;
        let config = container("c", BUSYBOX, &sh(COUNT));
        let id = node.start_container(&pod, config.clone()).await?;
        let location = node.dir.join("a.tar");
        let (_, stopped) = tokio::join!(checkpoint(node, &id, &location, 60), async {
            tokio::time::sleep(Duration::from_millis(1000)).await;
            let began = Instant::now();
            node.cri.stop(&id, 0).await?;
            anyhow::Ok(began.elapsed())
        });
        let took = stopped?;
        ensure!(took < Duration::from_millis(2500), "{took:?}");
        Ok(())
    })
}

#[test]
fn berth_checkpoint_writes_an_archive() -> Result<()> {
    Node::test_with(with_criu("/bin/true"), async |node| {
        let pod = node.run(node.pod("cli")).await?;
        let config = container("c", BUSYBOX, &sh(COUNT));
        node.start_container(&pod, config).await?;
        let location = node.dir.join("cli.tar");
        let to = location.display().to_string();
        let said = node.berth(&["checkpoint", "cli", "-c", "c", "--export", &to])?;
        ensure!(said.trim() == to, "{said:?}");
        let mut begins = [0; 11];
        fs::File::open(&location)?.read_exact(&mut begins)?;
        ensure!(&begins == b"config.dump", "{begins:?}");
        let refused = node.berth(&["checkpoint", "cli", "--export", &to]);
        let why = refused.err().context("it is overwritten")?.to_string();
        ensure!(why.contains("something is there already"), "{why}");
        let help = node.berth(&["checkpoint", "--help"])?;
        ensure!(
            help.contains("--export <FILE>") && help.contains("CRIU"),
            "{help}"
        );
        Ok(())
    })
}

/// A container that is made of an archive.
fn from_archive(name: &str, archive: &Path) -> ContainerConfig {
    use berth_tests::request::ContainerRequest;
    container(name, BUSYBOX, &sh(COUNT))
        .with(|config| config.image = Some(cri_spec(&archive.display().to_string())))
}

async fn create_from(
    node: &Node,
    pod: &Pod,
    config: &ContainerConfig,
) -> Result<String, tonic::Status> {
    if let Some(dir) = node.log_path(pod, config).parent() {
        fs::create_dir_all(dir)?;
    }
    node.cri.create(&pod.id, config, &pod.config).await
}

#[test]
fn a_restored_container_counts_on_where_it_was() -> Result<()> {
    if !criu_works("a_restored_container_counts_on_where_it_was") {
        return Ok(());
    }
    Node::test(async |node| {
        let pod = node.run(node.pod("restore")).await?;
        let config = container("c", BUSYBOX, &sh(COUNT));
        let id = node.start_container(&pod, config.clone()).await?;
        while counted(node, &pod, &config).unwrap_or_default() < 10 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let location = node.dir.join("a.tar");
        checkpoint(node, &id, &location, 0).await?;
        node.cri.stop(&id, 0).await?;
        node.cri.remove(&id).await?;
        let last = counted(node, &pod, &config)?;

        // In the same pod and in another one.
        let other = node.run(node.pod("other")).await?;
        for (name, pod) in [("again", &pod), ("elsewhere", &other)] {
            let config = from_archive(name, &location);
            let id = create_from(node, pod, &config).await?;
            ensure!(node.cri.status(&id).await?.state() == ContainerState::ContainerCreated);
            tokio::time::sleep(Duration::from_millis(300)).await;
            ensure!(
                node.log_text(pod, &config, "stdout")?.is_empty(),
                "it runs before it was started"
            );
            node.cri.start(&id).await?;
            counts_on(node, pod, &config).await?;
            let text = node.log_text(pod, &config, "stdout")?;
            let first: u64 = text.lines().next().context("no line")?.parse()?;
            ensure!(
                (10..=last + 1).contains(&first),
                "{first}, not after {last}"
            );
            let (code, _, _) = {
                let done = node
                    .cri
                    .exec_within(&id, &["sh", "-c", "test $(cat /count) -ge 10"], 10)
                    .await?;
                (done.exit_code, done.stdout, done.stderr)
            };
            ensure!(code == 0, "its files are not there");
            node.cri.stop(&id, 0).await?;
            ensure!(node.cri.status(&id).await?.state() == ContainerState::ContainerExited);
            ensure!(node.cri.status(&id).await?.exit_code == 137);
        }
        fs::remove_file(&location)?;
        nothing_left(node, &location)
    })
}

#[test]
fn an_archive_that_is_none_makes_no_container() -> Result<()> {
    Node::test_with(with_criu("/bin/true"), async |node| {
        let pod = node.run(node.pod("none")).await?;
        let config = container("c", BUSYBOX, &sh(COUNT));
        let id = node.start_container(&pod, config).await?;
        let good = node.dir.join("good.tar");
        checkpoint(node, &id, &good, 0).await?;
        let garbage = node.dir.join("garbage.tar");
        fs::write(&garbage, vec![b'x'; 4096])?;
        let link = node.dir.join("link.tar");
        symlink(&good, &link)?;
        for (path, code, word) in [
            (
                node.dir.join("missing.tar"),
                Code::InvalidArgument,
                "No such file",
            ),
            (node.dir.clone(), Code::InvalidArgument, "regular"),
            (link, Code::InvalidArgument, "symbolic"),
            (garbage, Code::InvalidArgument, "checkpoint"),
            (PathBuf::from("/dev/zero"), Code::InvalidArgument, "regular"),
        ] {
            let made = create_from(node, &pod, &from_archive("x", &path)).await;
            refused(made, code, &[word]).with_context(|| path.display().to_string())?;
        }
        // No process was in it: CRIU's place was taken by a program that does nothing.
        let made = create_from(node, &pod, &from_archive("x", &good)).await;
        ensure!(made.is_err(), "{made:?}");
        ensure!(node.cri.containers(None).await?.len() == 1);
        // Its image is gone.
        node.cri.stop(&id, 0).await?;
        node.cri.remove(&id).await?;
        node.cri.remove_image(BUSYBOX).await?;
        let made = create_from(node, &pod, &from_archive("x", &good)).await;
        refused(
            made,
            Code::FailedPrecondition,
            &["pull it first", "sha256:"],
        )?;
        fs::remove_file(&good)?;
        nothing_left(node, &good)
    })
}
