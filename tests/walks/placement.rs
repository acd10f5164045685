//! Where pods go.

use anyhow::{Result, ensure};
use berth_tests::nodes::Nodes;
use serde_json::json;

use crate::{
    by_node, items, ready,
    workload::{deployment, sleeper},
};

/// PO-12, PO-13, PO-14, too: from kubectl over store, scheduler and kubelet to what runs.
#[test]
fn a_tainted_node_takes_no_pods_until_it_is_untainted_tt_02_tt_04_tt_05_tt_06() -> Result<()> {
    Nodes::test(3, |nodes| {
        let (master, one, two) = (nodes.node(1), nodes.node(2), nodes.node(3));
        let kubectl = |line: &str| {
            let words: Vec<&str> = line.split(' ').collect();
            nodes.kubectl.kubectl(&words)
        };
        let web = ["pods", "-l", "app=web"];
        let gone = || nodes.until(&web, "they are gone", |pods| items(pods).next().is_none());
        kubectl(&format!(
            "taint node {master} node-role.kubernetes.io/control-plane:NoSchedule"
        ))?;
        let described = kubectl(&format!("describe node {master}"))?;
        let taints = described.lines().find(|line| line.starts_with("Taints:"));
        ensure!(
            taints
                .is_some_and(|it| it.ends_with("node-role.kubernetes.io/control-plane:NoSchedule")),
            "{described}"
        );

        kubectl("create deployment web --image=nginx")?;
        nodes.until(&web, "one runs", |pods| ready(pods) == 1)?;
        let plain = kubectl("get pods")?;
        ensure!(
            plain
                .lines()
                .any(|line| line.starts_with("web-") && line.contains(" 1/1 ")),
            "{plain}"
        );
        let wide = kubectl("get pods -o wide")?;
        ensure!(
            wide.contains(" 10.244.") && wide.contains(&nodes.node(1)[..nodes.node(1).len() - 1]),
            "{wide}"
        );
        kubectl("scale deployment web --replicas=5")?;
        let pods = nodes.until(&web, "five run", |pods| ready(pods) == 5)?;
        let spread = by_node(&pods);
        ensure!(
            !spread.contains_key(&master) && spread.len() == 2,
            "{spread:?}"
        );
        kubectl("delete deployment web")?;
        gone()?;

        kubectl(&format!("taint node {one} env_role=yes:NoSchedule"))?;
        kubectl("create deployment web --image=nginx")?;
        kubectl("scale deployment web --replicas=5")?;
        let pods = nodes.until(&web, "five run", |pods| ready(pods) == 5)?;
        ensure!(
            by_node(&pods) == [(two.clone(), 5)].into(),
            "{:?}",
            by_node(&pods)
        );
        kubectl(&format!("taint node {one} env_role:NoSchedule-"))?;
        kubectl("scale deployment web --replicas=9")?;
        let pods = nodes.until(&web, "nine run", |pods| ready(pods) == 9)?;
        ensure!(by_node(&pods).contains_key(&one), "{:?}", by_node(&pods));
        Ok(())
    })
}

#[test]
fn a_pod_that_matters_more_takes_the_room_of_one_that_matters_less_bo_08_bo_18() -> Result<()> {
    Nodes::test(1, |nodes| {
        nodes.apply("{apiVersion: scheduling.k8s.io/v1, kind: PriorityClass, metadata: {name: prod}, value: 1000}")?;
        // more than half of what the node has: two don't fit
        let node = nodes.kubectl.json(&["get", "node", &nodes.node(1)])?;
        let cpu = node["status"]["allocatable"]["cpu"]
            .as_str()
            .unwrap_or_default();
        let milli = cpu.strip_suffix('m').and_then(|it| it.parse::<u64>().ok());
        let milli = milli
            .or_else(|| Some(cpu.parse::<u64>().ok()? * 1000))
            .unwrap_or_default();
        let request = format!("{}m", milli * 6 / 10);
        let mut pod = sleeper();
        pod["containers"][0]["resources"] = json!({"requests": {"cpu": request}});
        nodes.apply(&deployment("batch", 1, &pod))?;
        nodes.until(&["pods", "-l", "app=batch"], "it runs", |pods| {
            by_node(pods).len() == 1
        })?;
        pod["priorityClassName"] = "prod".into();
        nodes.apply(&deployment("shop", 1, &pod))?;
        nodes.until(&["pods", "-l", "app=shop"], "it runs", |pods| {
            by_node(pods).len() == 1
        })?;
        // who had to go is pending again, and told why
        nodes.until(&["pods", "-l", "app=batch"], "it waits again", |pods| {
            let mut all = items(pods).filter(|pod| pod["metadata"]["deletionTimestamp"].is_null());
            let one = all.next();
            all.next().is_none()
                && one.is_some_and(|pod| {
                    let scheduled = crate::condition(pod, "PodScheduled");
                    pod["status"]["phase"] == "Pending"
                        && scheduled.is_some_and(|it| {
                            it["message"]
                                .as_str()
                                .is_some_and(|it| it.contains("Insufficient cpu"))
                        })
                })
        })?;
        nodes.eventually("the event", || {
            let events = nodes.kubectl.json(&["get", "events"])?;
            Ok(items(&events)
                .any(|it| it["reason"] == "Preempted")
                .then_some(()))
        })?;
        nodes.kubectl.kubectl(&["delete", "deployment", "shop"])?;
        nodes.until(&["pods", "-l", "app=batch"], "it runs again", |pods| {
            by_node(pods).len() == 1
        })?;
        Ok(())
    })
}
