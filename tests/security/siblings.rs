//! SEC-ENG-19: a neighbour in the same pid namespace that watches for processes of ours, which still have what a container must not
//! get: capabilities, descriptors, the node's memory (CVE-2016-9962).

use anyhow::{Context, Result, ensure};
use berth_proto::cri::{ContainerConfig, IdMapping, NamespaceMode, UserNamespace};
use berth_tests::{
    Node, c_program, container, debian,
    request::{ContainerRequest, PodRequest, unconfined},
    tarball::Entry,
};

const EXECS: usize = 200;
const CONTAINERS: usize = 8;

/// Looks at every process that there is, again and again, by all that leads into it. A process of ours is known by its
/// executable, whose link has no path; that link needs the same leave as memory, descriptors, root and namespaces do, and
/// descriptors by pidfd more. Prints what it could open of ours; at its end (SIGTERM) how many processes it was kept out of.
const WATCH: &str = r#"
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>
static volatile sig_atomic_t ended;
static void end(int signal) { (void)signal; ended = 1; }
static char denied[1 << 22];
int main(void) {
    const char *names[] = {"mem", "maps", "environ", "root", "cwd", "fd/0", "fd/3", "ns/mnt", "ns/net", "auxv"};
    signal(SIGTERM, end);
    puts("watching");
    fflush(stdout);
    while (!ended) {
        DIR *proc = opendir("/proc");
        struct dirent *entry;
        while ((entry = readdir(proc))) {
            int pid = atoi(entry->d_name);
            char path[64], exe[256];
            if (pid <= 0 || pid == getpid()) continue;
            snprintf(path, sizeof path, "/proc/%d/exe", pid);
            ssize_t length = readlink(path, exe, sizeof exe - 1);
            if (length < 0) {
                if (errno == EACCES || errno == EPERM) denied[pid] = 1;
                if (pid != 1) continue;
                length = 0;
            }
            exe[length] = 0;
            if (pid != 1 && !strncmp(exe, "/bin/", 5)) continue;
            if (length) printf("OPENED %d exe: %s\n", pid, exe);
            for (unsigned at = 0; at < sizeof names / sizeof *names; at++) {
                snprintf(path, sizeof path, "/proc/%d/%s", pid, names[at]);
                int file = open(path, at == 0 ? O_RDWR : O_RDONLY);
                char byte;
                /* Some are refused when they are read. */
                if (file >= 0 && (at != 2 || read(file, &byte, 1) > 0)) printf("OPENED %s\n", path);
                if (file >= 0) close(file);
            }
            int pidfd = syscall(SYS_pidfd_open, pid, 0);
            for (int number = 0; pidfd >= 0 && number < 8; number++)
                if (syscall(SYS_pidfd_getfd, pidfd, number, 0) >= 0) printf("OPENED %d by pidfd: %d\n", pid, number);
            if (pidfd >= 0) close(pidfd);
        }
        closedir(proc);
    }
    int count = 0;
    for (unsigned at = 2; at < sizeof denied; at++) count += denied[at];
    printf("denied %d %d\n", denied[1], count);
    return 0;
}
"#;

fn watch(dir: &std::path::Path) -> Result<Vec<u8>> {
    let out = dir.join("watch");
    c_program::compile(WATCH, &out, c_program::STATIC)?;
    Ok(std::fs::read(out)?)
}

// In the node's user namespace this holds for whoever lacks CAP_SYS_PTRACE, which no container has that does not ask for it: with it the
// kernel lets a container into every process that it sees, dumpable or not (__ptrace_may_access). That it can't write our binary even so
// stands in runtime_binary.rs. In a user namespace of the pod's own the capability is none over our processes: their memory is the
// node's until execve.
#[test]
fn a_neighbour_is_kept_out_of_our_processes_until_they_are_the_containers_sec_eng_19() -> Result<()>
{
    kept_out(None)
}

#[test]
fn a_neighbour_that_may_trace_is_kept_out_in_a_user_namespace_sec_eng_19() -> Result<()> {
    let mapping = IdMapping {
        host_id: 400_000,
        container_id: 0,
        length: 65_536,
    };
    kept_out(Some(UserNamespace {
        mode: NamespaceMode::Pod.into(),
        uids: vec![mapping],
        gids: vec![mapping],
    }))
}

/// With CAP_SYS_PTRACE for all where the pod has a user namespace.
fn kept_out(userns: Option<UserNamespace>) -> Result<()> {
    Node::test(async |node| {
        debian::busybox_image()?
            .plus(&[Entry::file("bin/watch-ours", 0o755, watch(&node.dir)?)])?
            .push(&node.registry, "own/watch", &["1"])?;
        let config = node.pod("shared").namespaces(|namespaces| {
            namespaces.pid = NamespaceMode::Pod.into();
            namespaces.userns_options = userns.clone();
        });
        let pod = node.run(config).await?;
        let shared = |name: &str, command: &[&str]| -> ContainerConfig {
            container(name, "localhost:5000/own/watch:1", command).security(|security| {
                security.namespace_options.get_or_insert_default().pid = NamespaceMode::Pod.into();
                if userns.is_some() {
                    security
                        .capabilities
                        .get_or_insert_default()
                        .add_capabilities
                        .push("SYS_PTRACE".into());
                }
                // Nothing but the kernel's own rules is to stand in its way.
                security.seccomp = Some(unconfined());
            })
        };
        let watcher = shared("watcher", &["/bin/watch-ours"]);
        let watching = node.start_container(&pod, watcher.clone()).await?;
        let victim = node
            .start_container(&pod, shared("victim", &["sleep", "1000"]))
            .await?;
        let mut running = tokio::task::JoinSet::new();
        for _ in 0..4 {
            let (cri, victim) = (node.cri.clone(), victim.clone());
            running.spawn(async move {
                for _ in 0..EXECS / 4 {
                    cri.exec(&victim, &["true"]).await?;
                }
                anyhow::Ok(())
            });
        }
        while let Some(done) = running.join_next().await {
            done??;
        }
        for number in 0..CONTAINERS {
            let config = shared(&format!("c{number}"), &["true"]);
            ensure!(node.outcome(&pod, config).await?.0 == 0);
        }
        node.cri.stop(&watching, 10).await?;
        ensure!(node.cri.wait_exit(&watching).await?.exit_code == 0);
        let seen = node.log_text(&pod, &watcher, "stdout")?;
        ensure!(!seen.contains("OPENED"), "{seen}");
        // The pause, and others than the pause.
        let denied: Vec<u32> = seen
            .lines()
            .find_map(|line| line.strip_prefix("denied "))
            .context("the watcher has not told")?
            .split(' ')
            .map(|number| number.parse().unwrap_or(0))
            .collect();
        ensure!(
            denied[0] == 1 && denied[1] > 0,
            "the watcher has met no process of ours: {seen}"
        );
        Ok(())
    })
}
