//! SEC-ENG-02: a runtime's binary overwritten through /proc/self/exe (CVE-2019-5736).

use std::{
    collections::BTreeMap,
    fs,
    os::{
        fd::{AsFd, AsRawFd},
        unix::fs::{MetadataExt, PermissionsExt},
    },
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use berth_proto::cri::NamespaceMode;
use berth_tests::{
    BUSYBOX, Node, c_program, container, daemon::bin_dir, debian, image::digest, process,
    request::ContainerRequest, request::PodRequest, sh, tarball::Entry,
};
use rustix::{
    fs::{CWD, Mode, OFlags, StatVfsMountFlags},
    io::Errno,
    mount::{MountFlags, OpenTreeFlags, mount_remount, open_tree},
};

const BINARIES: [&str; 3] = ["berthd", "containerd-shim-berth-v2", "berth"];

/// Content, mode and owner of each of our binaries.
fn binaries() -> Result<BTreeMap<PathBuf, String>> {
    let dir = bin_dir()?;
    BINARIES
        .iter()
        .map(|name| {
            let path = dir.join(name);
            let meta = path.metadata()?;
            let line = format!(
                "{} {:o} {}:{}",
                digest(&fs::read(&path)?),
                meta.mode(),
                meta.uid(),
                meta.gid()
            );
            Ok((path, line))
        })
        .collect()
}

/// Fails unless /proc/PID/exe is closed to every write, even for root of the host.
fn is_sealed(pid: i32) -> Result<()> {
    let path = format!("/proc/{pid}/exe");
    let exe = rustix::fs::open(&path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    ensure!(
        rustix::fs::fstatvfs(&exe)?
            .f_flag
            .contains(StatVfsMountFlags::RDONLY),
        "{path} is on a writable mount"
    );
    // With O_TRUNC the mount is asked before the executable is found to be in use, which it is not for ever.
    let write = rustix::fs::open(&path, OFlags::WRONLY | OFlags::TRUNC, Mode::empty());
    ensure!(
        write.as_ref().err() == Some(&Errno::ROFS),
        "{path} opened for writing: {write:?}"
    );
    let reopened = rustix::fs::open(
        format!("/proc/self/fd/{}", exe.as_fd().as_raw_fd()),
        OFlags::WRONLY | OFlags::TRUNC,
        Mode::empty(),
    );
    ensure!(
        reopened.as_ref().err() == Some(&Errno::ROFS),
        "{path} reopened for writing: {reopened:?}"
    );
    let mode = rustix::fs::chmod(&path, Mode::from_raw_mode(0o4777));
    ensure!(mode == Err(Errno::ROFS), "chmod of {path}: {mode:?}");
    // The mount is gone from every namespace: nothing is left that could be made writable.
    let copy = open_tree(
        CWD,
        &path,
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC,
    );
    ensure!(copy.is_err(), "{path} can be mounted anew");
    let remount = mount_remount(&path, MountFlags::BIND, c"");
    ensure!(remount.is_err(), "{path} can be remounted");
    Ok(())
}

/// Fails unless this is the shim's binary, by whatever path.
fn is_the_shim(pid: i32) -> Result<()> {
    let (exe, shim) = (
        fs::metadata(format!("/proc/{pid}/exe"))?,
        fs::metadata(bin_dir()?.join("containerd-shim-berth-v2"))?,
    );
    ensure!(
        (exe.dev(), exe.ino()) == (shim.dev(), shim.ino()),
        "pid {pid} does not run the shim"
    );
    Ok(())
}

#[test]
fn what_the_shim_runs_from_can_not_be_written_through_any_of_its_processes_sec_eng_02() -> Result<()>
{
    Node::test(async |node| {
        let before = binaries()?;
        let pod = node.run(node.pod("sealed")).await?;
        // Created, not started: its init is a fork of the shim still.
        let created = node
            .create(&pod, &container("created", BUSYBOX, &["sleep", "1000"]))
            .await?;
        let shims = process::shims();
        ensure!(shims.len() == 1, "{shims:?}");
        let mut ours = process::descendants(&shims.iter().map(|shim| shim.pid).collect());
        ensure!(
            ours.len() >= 3,
            "a launcher, a pause and an init were expected: {ours:?}"
        );
        ensure!(
            process::init_of(&created)
                .is_some_and(|init| ours.iter().any(|process| process.pid == init.pid)),
            "the created container's init is none of the shim's"
        );
        ours.extend(shims);
        for process in ours {
            is_the_shim(process.pid)
                .and_then(|()| is_sealed(process.pid))
                .with_context(|| format!("{process:?}"))?;
        }
        node.cri.start(&created).await?;
        ensure!(binaries()? == before, "a binary has changed");
        Ok(())
    })
}

/// A program that stands where the shim's binary looks for its loader: the kernel runs it for an entrypoint of /proc/self/exe. It
/// opens the shim's binary, keeps that as descriptor 3, and becomes the shell script of the image.
const LOADER: &str = r#"
static long call(long n, long a, long b, long c) {
    long r;
    __asm__ volatile("syscall" : "=a"(r) : "a"(n), "D"(a), "S"(b), "d"(c) : "rcx", "r11", "memory");
    return r;
}
void _start(void) {
    const char *args[] = {"sh", "/attack", 0};
    const char *env[] = {"PATH=/bin", 0};
    call(2, (long)"/proc/self/exe", 0, 0);
    call(59, (long)"/bin/sh", (long)args, (long)env);
    call(60, 99, 0, 0);
}
"#;

/// By now the process runs a shell, and nothing but the descriptor leads to the shim's binary.
const ATTACK: &str = "echo attacking
test -r /proc/self/fd/3 || echo no descriptor
for try in 1 2 3 4 5; do
  true > /proc/self/fd/3 && echo WRITTEN
  echo x >> /proc/self/fd/3 && echo WRITTEN
  chmod 4777 /proc/self/fd/3 && echo CHANGED
  chown 1000 /proc/self/fd/3 && echo CHANGED
done 2>&1
echo done
";

fn loader() -> Result<Vec<u8>> {
    let dir = std::env::temp_dir().join(format!("bt-loader-{}", std::process::id()));
    fs::create_dir_all(&dir)?;
    let out = dir.join("loader");
    let flags = [
        "-nostdlib",
        "-ffreestanding",
        "-fPIE",
        "-static-pie",
        "-fno-stack-protector",
    ];
    let compiled = c_program::compile(LOADER, &out, &flags);
    let bytes = fs::read(&out);
    fs::remove_dir_all(&dir)?;
    compiled?;
    Ok(bytes?)
}

#[test]
fn an_entrypoint_that_is_the_runtimes_own_binary_can_not_write_it_sec_eng_02() -> Result<()> {
    if !cfg!(target_arch = "x86_64") {
        eprintln!("SKIP: the loader of this test is written for x86_64");
        return Ok(());
    }
    Node::test(async |node| {
        let before = binaries()?;
        debian::busybox_image()?
            .plus(&[
                Entry::dir("lib64", 0o755),
                Entry::file("lib64/ld-linux-x86-64.so.2", 0o755, loader()?),
                Entry::file("attack", 0o755, ATTACK),
                Entry::symlink("link", "/proc/self/exe"),
                Entry::symlink("bin/found", "../proc/self/exe"),
                Entry::file("script", 0o755, "#!/proc/self/exe\n"),
                Entry::file("script-by-link", 0o755, "#!/link -a\n"),
            ])?
            .push(&node.registry, "own/loader", &["1"])?;
        let image = "localhost:5000/own/loader:1";
        let pod = node.run(node.pod("exe")).await?;
        let attacked = |how: &str, out: &str| {
            ensure!(
                out.starts_with("attacking\n") && out.ends_with("done\n"),
                "{how}: the attack did not run, so this proves nothing: {out}"
            );
            ensure!(
                !out.contains("no descriptor")
                    && !out.contains("WRITTEN")
                    && !out.contains("CHANGED"),
                "{how}: {out}"
            );
            // Not only because it is in use at the moment.
            ensure!(
                out.matches("Read-only file system").count() >= 15,
                "{how}: {out}"
            );
            Ok(())
        };
        let commands = [
            "/proc/self/exe",
            "/link",
            "found",
            "/script",
            "/script-by-link",
        ];
        for (number, command) in commands.into_iter().enumerate() {
            let config = container(&format!("c{number}"), image, &[command]);
            let (_, out) = node.outcome(&pod, config).await?;
            attacked(command, &out)?;
        }
        let id = node
            .start_container(&pod, container("exec", image, &["sleep", "1000"]))
            .await?;
        for command in commands {
            let answer = node.cri.exec_raw(&id, &[command]).await?;
            attacked(
                &format!("exec of {command}"),
                &String::from_utf8_lossy(&answer.stdout),
            )?;
        }
        ensure!(binaries()? == before, "a binary has changed");
        Ok(())
    })
}

#[test]
fn a_neighbour_that_watches_for_our_processes_never_opens_their_binary_sec_eng_02() -> Result<()> {
    const EXECS: usize = 200;
    Node::test(async |node| {
        let before = binaries()?;
        let config = node
            .pod("watched")
            .namespaces(|namespaces| namespaces.pid = NamespaceMode::Pod.into());
        let pod = node.run(config).await?;
        let shared = |name: &str, script: &str| {
            container(name, BUSYBOX, &sh(script)).security(|security| {
                security.namespace_options.get_or_insert_default().pid = NamespaceMode::Pod.into();
            })
        };
        // With this capability it may look at processes of ours, which are not dumpable.
        let watcher = shared(
            "watcher",
            "exec 2>/errors; while :; do for p in /proc/[0-9]*; do
                true > $p/exe && echo OPENED $p; chmod 4777 $p/exe; done; done",
        )
        .security(|security| {
            security
                .capabilities
                .get_or_insert_default()
                .add_capabilities = vec!["SYS_PTRACE".into()];
        });
        let watcher_id = node.start_container(&pod, watcher.clone()).await?;
        let victim = node
            .start_container(&pod, shared("victim", "sleep 1000"))
            .await?;
        let mut running = tokio::task::JoinSet::new();
        for worker in 0..4 {
            let (cri, victim) = (node.cri.clone(), victim.clone());
            running.spawn(async move {
                for _ in 0..EXECS / 4 {
                    cri.exec(&victim, &["true"]).await?;
                }
                anyhow::Ok(worker)
            });
        }
        while let Some(done) = running.join_next().await {
            done??;
        }
        // Containers too, for their inits.
        for number in 0..8 {
            let config = shared(&format!("c{number}"), "true");
            ensure!(node.outcome(&pod, config).await?.0 == 0);
        }
        let seen = node
            .cri
            .exec(
                &watcher_id,
                &["grep", "-c", "Read-only file system", "/errors"],
            )
            .await?;
        ensure!(
            seen.parse::<u32>()? > 0,
            "the watcher has seen none of our processes, not even the pause"
        );
        let opened = node.log_text(&pod, &watcher, "stdout")?;
        ensure!(opened.is_empty(), "{opened}");
        ensure!(binaries()? == before, "a binary has changed");
        Ok(())
    })
}

/// What it rests on is a mount. Where executable memory files are forbidden it is the same.
#[test]
fn no_memory_file_is_needed_for_it_sec_eng_02() -> Result<()> {
    let host = "/proc/sys/vm/memfd_noexec";
    let Ok(before) = fs::read_to_string(host) else {
        eprintln!("SKIP: this kernel has no vm.memfd_noexec (Linux 6.3)");
        return Ok(());
    };
    let dir = Path::new("/tmp").join(format!("bt-memfd-{}", std::process::id()));
    // A bundle is its pod's by its name.
    let bundle = dir.join("memfd");
    fs::create_dir_all(&bundle)?;
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o700))?;
    // The sysctl is the pid namespace's own, and all in the namespace ends with its first process.
    let script = "echo 2 > /proc/sys/vm/memfd_noexec || exit 70
        test \"$(cat /proc/sys/vm/memfd_noexec)\" = 2 || exit 71
        \"$SHIM\" -namespace k8s.io -id memfd -address '' -publish-binary '' start || exit 72
        seen=0
        for p in /proc/[0-9]*; do
          grep -q 'id.memfd' $p/cmdline 2>/dev/null || continue
          seen=$((seen + 1))
          true > $p/exe && echo WRITTEN
        done
        echo seen $seen";
    let output = Command::new("unshare")
        .args([
            "--pid",
            "--fork",
            "--kill-child",
            "--mount-proc",
            "/bin/busybox",
            "sh",
            "-c",
            script,
        ])
        .current_dir(&bundle)
        .env("SHIM", bin_dir()?.join("containerd-shim-berth-v2"))
        .env("BERTH_SHIM_SOCKET_DIR", dir.join("s"))
        .output();
    fs::remove_dir_all(&dir)?;
    let output = output.context("run unshare")?;
    let (out, errors) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    ensure!(output.status.success(), "{}: {out}{errors}", output.status);
    ensure!(
        out.contains("unix://") && !out.contains("WRITTEN") && !out.contains("seen 0"),
        "{out}{errors}"
    );
    ensure!(errors.contains("Read-only file system"), "{out}{errors}");
    ensure!(
        fs::read_to_string(host)? == before,
        "the host's {host} has changed"
    );
    Ok(())
}
