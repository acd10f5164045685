//! A Deployment is scaled by what its containers really use.

use anyhow::{Result, ensure};
use berth_tests::nodes::Nodes;
use serde_json::json;

use crate::{
    condition, items,
    workload::{busybox, deployment},
};

#[test]
fn a_deployment_is_scaled_by_what_its_containers_use() -> Result<()> {
    Nodes::test(2, |nodes| {
        let mut busy = busybox(&["sh", "-c", "while :; do :; done"]);
        busy["terminationGracePeriodSeconds"] = 0.into();
        busy["containers"][0]["resources"] =
            json!({"requests": {"cpu": "20m"}, "limits": {"cpu": "200m"}});
        nodes.apply(&deployment("busy", 1, &busy))?;
        let scale = [
            "autoscale",
            "deployment",
            "busy",
            "--min=1",
            "--max=3",
            "--cpu=50%",
        ];
        nodes.kubectl.kubectl(&scale)?;
        // it takes what it gets: more than half of the twentieth of a processor that it asks for, however busy the machine is
        nodes.until(&["deployment/busy"], "it is scaled up", |deployment| {
            deployment["status"]["readyReplicas"] == 3
        })?;
        let scaler = nodes.until(&["hpa/busy"], "its scaler says why", |scaler| {
            condition(scaler, "ScalingActive").is_some_and(|it| it["reason"] == "ValidMetricFound")
        })?;
        let current = &scaler["status"]["currentMetrics"][0]["resource"]["current"];
        ensure!(
            current["averageUtilization"].as_u64() > Some(50),
            "{}",
            scaler["status"]
        );

        // kubectl top, of nodes, of pods and of their containers
        let top = |arguments: &[&str], holds: &dyn Fn(&str) -> bool| {
            nodes.eventually("it is measured", || {
                let said = nodes.ask(&[&["top"], arguments].concat())?;
                Ok((said.ok && holds(&said.stdout)).then_some(()))
            })
        };
        top(&["node", "--no-headers"], &|said| {
            [1, 2].iter().all(|number| {
                let name = nodes.node(*number);
                let line = said.lines().find(|line| line.starts_with(&name));
                line.is_some_and(|line| line.contains('%') && !line.contains("<unknown>"))
            })
        })?;
        let of_pods = ["pod", "-l", "app=busy", "--containers", "--no-headers"];
        top(&of_pods, &|said| {
            let is_measured = |line: &str| {
                let words: Vec<&str> = line.split_whitespace().collect();
                let used = |at: usize, unit: &str| {
                    let word = words.get(at).and_then(|word| word.strip_suffix(unit));
                    word.and_then(|word| word.parse::<u64>().ok())
                };
                words.get(1) == Some(&"c") && used(2, "m") > Some(0) && used(3, "Mi").is_some()
            };
            said.lines().count() == 3 && said.lines().all(is_measured)
        })?;
        let one = nodes.kubectl.json(&["get", "pods", "-l", "app=busy"])?;
        let name = items(&one)
            .next()
            .and_then(|pod| pod["metadata"]["name"].as_str())
            .unwrap_or_default();
        let path = format!("/apis/metrics.k8s.io/v1beta1/namespaces/default/pods/{name}");
        let object = nodes.eventually("it is measured", || {
            let said = nodes.ask(&["get", "--raw", &path])?;
            Ok(said.ok.then_some(said.stdout))
        })?;
        let object: serde_json::Value = serde_json::from_str(&object)?;
        ensure!(
            object["kind"] == "PodMetrics" && object["metadata"]["labels"]["app"] == "busy",
            "{object}"
        );
        nodes
            .kubectl
            .kubectl(&["delete", "hpa,deployment", "busy"])?;
        nodes.until(&["pods"], "its pods go with it", |pods| {
            items(pods).next().is_none()
        })?;
        Ok(())
    })
}
