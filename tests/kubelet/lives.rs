//! From a manifest's coming to its going.

use std::fs;

use anyhow::{Result, ensure};
use berth_tests::Node;

use crate::scene::{Kubelet, condition, container, pod};

/// KL-01, too: what lies in the directory runs, without anybody else.
#[test]
fn a_static_pod_comes_in_order_and_goes_in_order_whatever_lies_beside_it_kl_02_rc_01() -> Result<()>
{
    Node::test(async |node| {
        let order = node.volume("order")?;
        let kubelet = Kubelet::start(node)?;
        // What is wrong with these stops nobody else.
        kubelet.put("broken.yaml", "kind: [Pod")?;
        kubelet.put(
            "typo.yaml",
            &pod(
                "typo",
                "  hostNetwrk: true\n  containers: [{name: a, image: busybox}]",
            ),
        )?;
        kubelet.put("map.yaml", &pod("map", "  volumes: [{name: v, configMap: {name: c}}]\n  containers: [{name: a, image: busybox}]"))?;
        let says = |word: &str| format!("echo {word} >> /order/file");
        let until_term = |word: &str| {
            format!(
                "trap '{}; exit 0' TERM; {}; touch /tmp/up; while :; do sleep 0.05; done",
                says(&format!("{word}-ends")),
                says(word)
            )
        };
        let sidecar = |name: &str| {
            format!(
                "  - {{name: {name}, image: busybox, restartPolicy: Always, command: [sh, -c, \"{}\"], volumeMounts: [{{name: o, mountPath: /order}}], \
                 startupProbe: {{exec: {{command: [test, -e, /tmp/up]}}, periodSeconds: 1, failureThreshold: 30}}}}\n",
                until_term(name)
            )
        };
        let text = pod(
            "web",
            &format!(
                "  terminationGracePeriodSeconds: 10\n  hostAliases: [{{ip: 192.0.2.7, hostnames: [seven]}}]\n  volumes: [{{name: o, hostPath: {{path: {}, type: Directory}}}}, {{name: e, emptyDir: {{}}}}]\n  initContainers:\n\
                 \x20 - {{name: one, image: busybox, command: [sh, -c, \"{}; echo made > /e/file\"], volumeMounts: [{{name: o, mountPath: /order}}, {{name: e, mountPath: /e}}]}}\n{}\
                 \x20 - {{name: two, image: busybox, command: [sh, -c, \"{}\"], volumeMounts: [{{name: o, mountPath: /order}}]}}\n{}\
                 \x20 containers:\n  - name: main\n    image: busybox\n    command: [sh, -c, \"cat /e/file; grep seven /etc/hosts; hostname; echo $NAME $IP $(CPU); {}\"]\n    \
                 env: [{{name: NAME, valueFrom: {{fieldRef: {{fieldPath: metadata.name}}}}}}, {{name: IP, valueFrom: {{fieldRef: {{fieldPath: status.podIP}}}}}}, {{name: CPU, valueFrom: {{resourceFieldRef: {{resource: requests.cpu, divisor: 1m}}}}}}]\n    \
                 resources: {{requests: {{cpu: 50m}}}}\n    lifecycle: {{postStart: {{exec: {{command: [sh, -c, \"{}\"]}}}}, preStop: {{exec: {{command: [sh, -c, \"{}\"]}}}}}}\n    \
                 volumeMounts: [{{name: o, mountPath: /order}}, {{name: e, mountPath: /e}}]\n",
                order.display(),
                says("one"),
                sidecar("side-a"),
                says("two"),
                sidecar("side-b"),
                until_term("main"),
                "until [ -e /tmp/up ]; do sleep 0.05; done; echo post >> /order/file",
                says("pre"),
            ),
        );
        kubelet.put("web.yaml", &text)?;
        let status = kubelet.wait_ready("web").await?;
        ensure!(
            status["phase"] == "Running"
                && status["qosClass"] == "Burstable"
                && condition(&status, "Initialized") == "True",
            "{status:#}"
        );
        let main = container(&status, "main");
        ensure!(
            main["ready"] == true && main["restartCount"] == 0 && main["imageID"].is_string(),
            "{main:#}"
        );
        ensure!(
            container(&status, "one")["state"]["terminated"]["reason"] == "Completed",
            "{status:#}"
        );
        ensure!(
            container(&status, "side-a")["started"] == true,
            "{status:#}"
        );
        // What the container was told, by its log where upstream's tools look for it.
        let ip = status["podIP"].as_str().unwrap_or_default();
        let uid = kubelet
            .pod_dir("web")
            .and_then(|dir| Some(dir.file_name()?.to_str()?.to_owned()))
            .unwrap_or_default();
        let log = fs::read_to_string(
            node.dir
                .join(format!("logs/default_web-n1_{uid}/main/0.log")),
        )?;
        for words in [
            "made",
            "192.0.2.7\tseven",
            "web-n1",
            &format!("web-n1 {ip} 50"),
        ] {
            ensure!(log.contains(words), "no {words:?} in {log}");
        }
        ensure!(!ip.is_empty());
        // Its cgroup is where its class says.
        let parent = node.own_cgroup_parent(&format!("kubepods/burstable/pod{uid}"));
        ensure!(
            ["memory", "pids", ""]
                .iter()
                .any(|it| fs::exists(format!("/sys/fs/cgroup/{it}{parent}")).unwrap_or(false)),
            "no cgroup {parent}"
        );
        for (file, words) in [
            ("broken.yaml", "line 1"),
            ("typo.yaml", "spec.hostNetwrk: no such field in a Pod of v1"),
            (
                "map.yaml",
                "spec.volumes[0].configMap: a static pod can't refer to objects of the API",
            ),
        ] {
            let log = kubelet.log();
            ensure!(
                log.lines()
                    .any(|line| line.contains(file) && line.contains(words)),
                "{file}: {words}\n{log}"
            );
        }

        kubelet.take("web.yaml")?;
        kubelet.wait_gone(node, "web").await?;
        let seen = fs::read_to_string(order.join("file"))?;
        let seen: Vec<&str> = seen.lines().collect();
        ensure!(
            seen == [
                "one",
                "side-a",
                "two",
                "side-b",
                "main",
                "post",
                "pre",
                "main-ends",
                "side-b-ends",
                "side-a-ends"
            ],
            "{seen:?}"
        );
        ensure!(
            fs::read_dir(node.dir.join("logs"))?.next().is_none(),
            "logs are left"
        );
        Ok(())
    })
}
