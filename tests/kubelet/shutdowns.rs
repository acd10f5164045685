//! The machine shuts down, as logind tells it.

use std::{fs, time::Duration};

use anyhow::{Result, ensure};
use berth_tests::{Node, machine::patient};

use crate::{
    logind::Logind,
    member::{Member, NODE, condition},
    scene::container,
};

#[test]
fn pods_end_in_order_when_the_machine_shuts_down_and_it_waits_for_them() -> Result<()> {
    Node::test(async |node| {
        let (bus, order) = (node.dir.join("bus"), node.volume("order")?);
        let logind = Logind::serve(&bus)?;
        let address = format!("unix:path={}", bus.display());
        let member = Member::start_as(
            node,
            &[
                "--shutdown-grace-period",
                "40s",
                "--shutdown-grace-period-critical-pods",
                "20s",
            ],
            &[("DBUS_SYSTEM_BUS_ADDRESS", address)],
        )
        .await?;
        let mut held = logind.held()?;
        let pod = |says: &str, more: &str| {
            format!(
                "{more}  volumes: [{{name: o, hostPath: {{path: {}}}}}]\n  containers:\n  - name: a\n    image: busybox\n    volumeMounts: [{{name: o, mountPath: /order}}]\n    \
                 command: [sh, -c, \"trap 'sleep 0.3; echo {says} >> /order/file; exit 0' TERM; while :; do sleep 0.1; done\"]",
                order.display()
            )
        };
        member.apply(
            "critical",
            &pod("critical", "  priorityClassName: system-node-critical\n"),
        )?;
        member.apply("plain", &pod("plain", ""))?;
        for name in ["critical", "plain"] {
            member.wait_ready(name).await?;
        }
        ensure!(
            !held.is_let_go(Duration::from_millis(100))?,
            "it is let go before"
        );

        held.shut_down()?;
        ensure!(
            held.is_let_go(patient(Duration::from_secs(30)))?,
            "it is never let go"
        );
        let said = fs::read_to_string(order.join("file"))?;
        ensure!(said == "plain\ncritical\n", "{said}");
        for name in ["critical", "plain"] {
            let it = member.server.json(&["get", "pod", name])?;
            let status = &it["status"];
            ensure!(
                status["phase"] == "Failed"
                    && status["reason"] == "Terminated"
                    && container(status, "a")["state"]["terminated"]["exitCode"] == 0,
                "{it:#}"
            );
        }
        let it = member
            .wait("node", NODE, "not ready", |it| {
                condition(it, "Ready") == "False"
            })
            .await?;
        ensure!(it.to_string().contains("node is shutting down"), "{it:#}");
        member.apply("late", "  containers: [{name: a, image: busybox}]")?;
        let late = member
            .wait("pod", "late", "refused", |it| {
                it["status"]["phase"] == "Failed"
            })
            .await?;
        ensure!(late["status"]["reason"] == "NodeShutdown", "{late:#}");
        // they are over: their objects go at once, and what there was of them here soon
        member.server.kubectl(&["delete", "pods", "--all"])?;
        let pods = member.kubelet.pods_dir();
        member
            .until("nothing of them is left", || {
                Ok(fs::read_dir(&pods)?.next().is_none())
            })
            .await?;
        member.end()
    })
}
