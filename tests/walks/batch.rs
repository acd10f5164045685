//! Jobs and CronJobs.

use anyhow::{Result, ensure};
use berth_tests::nodes::Nodes;
use serde_json::{Value, json};

use crate::{
    condition, items,
    workload::{busybox, job, sleeper},
};

#[test]
fn a_job_of_eight_runs_two_at_a_time_jb_01_jb_05() -> Result<()> {
    Nodes::test(2, |nodes| {
        nodes.apply(&job(
            "eight",
            8,
            busybox(&["sh", "-c", "sleep 0.5; echo done"]),
        ))?;
        let mut most = 0;
        let mut wrong = None;
        nodes.eventually("it is complete", || {
            let pods =
                nodes
                    .kubectl
                    .json(&["get", "pods", "-l", "batch.kubernetes.io/job-name=eight"])?;
            let active = items(&pods).filter(|pod| {
                matches!(pod["status"]["phase"].as_str(), Some("Pending" | "Running"))
            });
            most = most.max(active.count());
            let job = nodes.kubectl.json(&["get", "job", "eight"])?;
            if job["status"]["succeeded"].as_u64() > Some(8) {
                wrong = Some(job["status"].clone());
            }
            let complete = condition(&job, "Complete").is_some_and(|it| it["status"] == "True");
            Ok(complete.then_some(()))
        })?;
        ensure!(
            (1..=2).contains(&most) && wrong.is_none(),
            "{most} at once, {wrong:?}"
        );
        let job = nodes.kubectl.json(&["get", "job", "eight"])?;
        ensure!(job["status"]["succeeded"] == 8, "{}", job["status"]);
        let pods =
            nodes
                .kubectl
                .json(&["get", "pods", "-l", "batch.kubernetes.io/job-name=eight"])?;
        let good = items(&pods).filter(|pod| pod["status"]["phase"] == "Succeeded");
        ensure!(good.count() == 8 && items(&pods).count() == 8, "{pods:#}");
        let said = nodes.kubectl.kubectl(&["logs", "job/eight"])?;
        ensure!(said.contains("done"), "{said}");
        nodes.kubectl.kubectl(&["delete", "job", "eight"])?;
        nodes.until(&["pods"], "its pods go with it", |pods| {
            items(pods).next().is_none()
        })?;
        Ok(())
    })
}

/// Each minute a Job that does not end.
fn every_minute(name: &str, policy: &str) -> Value {
    let mut pod = sleeper();
    pod["restartPolicy"] = "Never".into();
    let template = json!({"metadata": {"labels": {"of": name}}, "spec": pod});
    json!({
        "apiVersion": "batch/v1",
        "kind": "CronJob",
        "metadata": {"name": name},
        "spec": {
            "schedule": "* * * * *",
            "concurrencyPolicy": policy,
            "jobTemplate": {"spec": {"template": template}},
        },
    })
}

#[test]
fn a_minute_that_finds_the_last_one_s_job_at_work_joins_waits_or_replaces_it_cj_03() -> Result<()> {
    Nodes::test(1, |nodes| {
        let names = ["allow", "forbid", "replace"];
        for (name, policy) in names.into_iter().zip(["Allow", "Forbid", "Replace"]) {
            nodes.apply(&every_minute(name, policy))?;
        }
        // The uids of the pods that run, of one of them.
        let running = |pods: &Value, name: &str| -> Vec<String> {
            items(pods)
                .filter(|pod| {
                    pod["metadata"]["labels"]["of"] == name
                        && pod["metadata"]["deletionTimestamp"].is_null()
                        && pod["status"]["phase"] == "Running"
                })
                .map(|pod| pod["metadata"]["uid"].to_string())
                .collect()
        };
        let first = nodes.until(&["pods"], "a minute has begun", |pods| {
            names.iter().all(|name| !running(pods, name).is_empty())
        })?;
        let before = |name: &str| running(&first, name);
        let now = nodes.until(&["pods"], "the next one has, too", |pods| {
            running(pods, "allow").len() > before("allow").len()
                && running(pods, "replace").len() == 1
                && running(pods, "replace") != before("replace")
        })?;
        ensure!(running(&now, "allow").contains(&before("allow")[0]));
        ensure!(running(&now, "forbid") == before("forbid"), "{now:#}");
        let told = ["events", "--field-selector", "reason=JobAlreadyActive"];
        nodes.until(&told, "it is told that one waits", |events| {
            items(events).any(|event| event["involvedObject"]["name"] == "forbid")
        })?;
        let of = |cron_job: &Value| cron_job["status"]["active"].as_array().map(Vec::len);
        nodes.until(&["cronjob/forbid"], "one is active", |it| of(it) == Some(1))?;
        nodes.until(&["cronjob/replace"], "one is active", |it| {
            of(it) == Some(1)
        })?;
        nodes
            .kubectl
            .kubectl(&["delete", "cronjob", "allow", "forbid", "replace"])?;
        nodes.until(&["jobs,pods"], "all goes with them", |all| {
            items(all).next().is_none()
        })?;
        Ok(())
    })
}
