//! SEC-ENG-18: keys of one container in the hands of another, by way of a session keyring that they share.

use std::process::Command;

use anyhow::{Result, ensure};
use berth_proto::cri::{ContainerConfig, Int64Value};
use berth_tests::{
    Node, c_program, container, debian,
    request::{ContainerRequest, unconfined},
    tarball::Entry,
};

/// `key add NAME`, `key find NAME`, `key fill`, `key ring`: on the session keyring, with nothing between it and the kernel.
const KEY: &str = r#"
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>
#define SESSION (-3L)
int main(int count, char **args) {
    const char *call = count > 1 ? args[1] : "", *name = count > 2 ? args[2] : "";
    if (!strcmp(call, "add") && syscall(SYS_add_key, "user", name, "secret", 6L, SESSION) > 0)
        return 0;
    if (!strcmp(call, "find")) {
        if (syscall(SYS_keyctl, 10L, SESSION, "user", name, 0L) > 0) return 0;
        if (syscall(SYS_request_key, "user", name, (char *)0, 0L) > 0) return 0;
        return errno == ENOKEY ? 3 : 1;
    }
    if (!strcmp(call, "fill")) {
        char number[32];
        for (long at = 0; at < 100000; at++) {
            snprintf(number, sizeof number, "fill-%ld", at);
            if (syscall(SYS_add_key, "user", number, "secret", 6L, SESSION) < 0) {
                printf("%ld\n", at);
                return errno == EDQUOT ? 0 : 1;
            }
        }
        return 2;
    }
    if (!strcmp(call, "ring")) {
        char text[256] = "";
        syscall(SYS_keyctl, 6L, SESSION, text, (long)sizeof text);
        puts(text);
        return 0;
    }
    perror(call);
    return 1;
}
"#;
/// What `key find` ends with where there is no such key.
const NO_KEY: i32 = 3;

/// The program, for the images of this test and for the host.
fn key(dir: &std::path::Path) -> Result<std::path::PathBuf> {
    let out = dir.join("key");
    c_program::compile(KEY, &out, c_program::STATIC)?;
    Ok(out)
}

fn free(name: &str, uid: i64) -> ContainerConfig {
    container(
        name,
        "localhost:5000/own/key:1",
        &["sh", "-c", "key add of-init; exec sleep 1000"],
    )
    .security(|security| {
        security.seccomp = Some(unconfined());
        security.run_as_user = Some(Int64Value { value: uid });
    })
}

#[test]
fn a_key_of_one_container_is_not_found_by_another_or_by_the_node_sec_eng_18() -> Result<()> {
    Node::test(async |node| {
        let program = key(&node.dir)?;
        debian::busybox_image()?
            .plus(&[Entry::file("bin/key", 0o755, std::fs::read(&program)?)])?
            .push(&node.registry, "own/key", &["1"])?;
        let code = async |id: &str, args: &[&str]| -> Result<i32> {
            Ok(node.cri.exec_raw(id, args).await?.exit_code)
        };
        let (one, other) = (
            node.run(node.pod("one")).await?,
            node.run(node.pod("other")).await?,
        );
        for uid in [0, 1000] {
            let a = node
                .start_container(&one, free(&format!("a{uid}"), uid))
                .await?;
            let sibling = node
                .start_container(&one, free(&format!("b{uid}"), uid))
                .await?;
            let stranger = node
                .start_container(&other, free(&format!("c{uid}"), uid))
                .await?;
            let name = format!("of-a-{uid}");
            ensure!(code(&a, &["key", "add", &name]).await? == 0);
            // Init and execs of one container are one session.
            ensure!(code(&a, &["key", "find", &name]).await? == 0);
            ensure!(
                code(&a, &["key", "find", "of-init"]).await? == 0,
                "an exec does not find a key of its init"
            );
            for (who, id) in [("its sibling", &sibling), ("another pod", &stranger)] {
                ensure!(
                    code(id, &["key", "find", &name]).await? == NO_KEY,
                    "{who} finds a key of a container of uid {uid}"
                );
            }
            let on_the_node = Command::new(&program).args(["find", &name]).status()?;
            ensure!(
                on_the_node.code() == Some(NO_KEY),
                "the node finds a key of a container: {on_the_node}"
            );
            let ring = node.cri.exec(&a, &["key", "ring"]).await?;
            ensure!(
                ring.ends_with(&a),
                "the session keyring is not the container's: {ring}"
            );
        }
        // A user has 200 keys. Who takes them all stops no container of the same user from being made.
        let greedy = node.start_container(&one, free("greedy", 1000)).await?;
        let taken = node.cri.exec(&greedy, &["key", "fill"]).await?;
        ensure!(
            taken.parse::<u32>()? > 0,
            "the quota was used up before: {taken}"
        );
        let next = node.start_container(&other, free("next", 1000)).await?;
        ensure!(
            node.cri
                .exec(&next, &["key", "ring"])
                .await?
                .ends_with(&next)
        );
        ensure!(code(&next, &["key", "find", "fill-0"]).await? == NO_KEY);
        let root = node.start_container(&other, free("root", 0)).await?;
        ensure!(code(&root, &["key", "add", "mine"]).await? == 0);
        Ok(())
    })
}
