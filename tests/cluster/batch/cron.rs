//! CronJobs.

use anyhow::{Context, Result, ensure};
use berth_tests::cluster::Server;
use serde_json::{Value, json};

use super::{
    active, condition, controllers, create, ends, eventually, items, job, name, say, server, told,
};

fn cron(name: &str, spec: Value) -> Value {
    let mut cron = json!({
        "apiVersion": "batch/v1", "kind": "CronJob", "metadata": {"name": name},
        "spec": {"schedule": "* * * * *", "suspend": true, "jobTemplate": job("", json!({"backoffLimit": 0}))},
    });
    if let Some(template) = cron["spec"]["jobTemplate"].as_object_mut() {
        template.retain(|key, _| key == "spec");
    }
    for (key, value) in spec.as_object().into_iter().flatten() {
        cron["spec"][key] = value.clone();
    }
    cron
}

fn jobs_of(server: &Server, cron: &Value) -> Result<Vec<Value>> {
    let mut jobs = items(server, &["get", "jobs"])?;
    jobs.retain(|job| job["metadata"]["ownerReferences"][0]["uid"] == cron["metadata"]["uid"]);
    Ok(jobs)
}

/// CJ-01, CJ-03: a job by hand is under way when the next one is due.
#[test]
fn a_cron_job_starts_jobs_as_its_policy_says() -> Result<()> {
    let server = server()?;
    let _controllers = controllers(&server)?;
    for policy in ["Allow", "Forbid", "Replace"] {
        let name_of_cron = policy.to_lowercase();
        create(
            &server,
            &cron(&name_of_cron, json!({"concurrencyPolicy": policy})),
        )?;
        let manual = format!("{name_of_cron}-by-hand");
        let from = format!("--from=cronjob/{name_of_cron}");
        server.kubectl(&["create", "job", &manual, &from])?;
        let by_hand = server.json(&["get", "job", &manual])?;
        // as if it had been started by the schedule, ten hours ago
        let active = json!([{
            "apiVersion": "batch/v1", "kind": "Job", "namespace": "default", "name": manual, "uid": by_hand["metadata"]["uid"],
        }]);
        let hours_ago = "2026-01-01T00:00:00Z";
        say(
            &server,
            "cronjob",
            &name_of_cron,
            json!({"active": active, "lastScheduleTime": hours_ago}),
        )?;
        server.kubectl(&[
            "patch",
            "cronjob",
            &name_of_cron,
            "--type=merge",
            "-p",
            r#"{"spec": {"suspend": false}}"#,
        ])?;
        let of = server.json(&["get", "cronjob", &name_of_cron])?;
        let is_by_hand = |job: &Value| name(job) == manual;
        if policy == "Forbid" {
            told(
                &server,
                "cronjob",
                &name_of_cron,
                &["JobAlreadyActive", "TooManyMissedTimes"],
            )?;
            let jobs = jobs_of(&server, &of)?;
            ensure!(jobs.len() == 1 && is_by_hand(&jobs[0]), "{jobs:?}");
            continue;
        }
        let jobs = eventually(&server, &format!("{policy}: one is started"), || {
            let jobs = jobs_of(&server, &of)?;
            let is_there = jobs.iter().any(is_by_hand);
            let started = jobs.iter().any(|job| !is_by_hand(job));
            Ok((started && is_there == (policy == "Allow")).then_some(jobs))
        })?;
        let started = jobs.iter().find(|job| !is_by_hand(job)).context("one")?;
        let scheduled =
            started["metadata"]["annotations"]["batch.kubernetes.io/cronjob-scheduled-timestamp"]
                .as_str();
        let minute = name(started)
            .strip_prefix(&format!("{name_of_cron}-"))
            .context("its name")?;
        let minute: i64 = minute.parse()?;
        ensure!(
            scheduled.is_some_and(|at| at.contains(":00")) && minute > 29_000_000,
            "{started}"
        );
        ensure!(
            started["metadata"]["ownerReferences"][0]["controller"] == true,
            "{started}"
        );
        eventually(&server, "it is written down", || {
            let cron = server.json(&["get", "cronjob", &name_of_cron])?;
            let last = cron["status"]["lastScheduleTime"]
                .as_str()
                .unwrap_or_default();
            let active = cron["status"]["active"].as_array().map_or(0, Vec::len);
            // the next minute may have come meanwhile
            Ok((last > hours_ago && active > usize::from(policy == "Allow")).then_some(()))
        })?;
        told(
            &server,
            "cronjob",
            &name_of_cron,
            &["SuccessfulCreate", "Created job"],
        )?;
    }
    Ok(())
}

/// CJ-02, CJ-04.
#[test]
fn a_cron_job_keeps_some_of_its_jobs_and_starts_none_too_late() -> Result<()> {
    let server = server()?;
    let _controllers = controllers(&server)?;
    create(
        &server,
        &cron(
            "c",
            json!({"successfulJobsHistoryLimit": 1, "failedJobsHistoryLimit": 0}),
        ),
    )?;
    let of = server.json(&["get", "cronjob", "c"])?;
    for (at, phase) in [(0, "Succeeded"), (1, "Succeeded"), (2, "Failed")] {
        let name = format!("c-{at}");
        server.kubectl(&["create", "job", &name, "--from=cronjob/c"])?;
        let pod = active(&server, &name, 1)?.remove(0);
        ends(&server, &pod, phase)?;
        if phase == "Succeeded" {
            eventually(&server, "it is complete, and perhaps forgotten", || {
                let jobs = jobs_of(&server, &of)?;
                let job = jobs
                    .iter()
                    .find(|job| job["metadata"]["name"] == name.as_str());
                Ok(job
                    .is_none_or(|job| condition(job, "Complete").is_some())
                    .then_some(()))
            })?;
        }
    }
    eventually(
        &server,
        "one that succeeded is kept, and none that failed",
        || {
            let jobs = jobs_of(&server, &of)?;
            Ok((jobs.len() == 1 && condition(&jobs[0], "Complete").is_some()).then_some(()))
        },
    )?;
    told(
        &server,
        "cronjob",
        "c",
        &["SuccessfulDelete", "UnexpectedJob"],
    )?;

    // each first of January; the one of this year is long over
    create(
        &server,
        &cron(
            "late",
            json!({"schedule": "@yearly", "startingDeadlineSeconds": 10, "timeZone": "Asia/Tokyo"}),
        ),
    )?;
    create(
        &server,
        &cron(
            "soon",
            json!({"schedule": "@yearly", "timeZone": "Asia/Tokyo"}),
        ),
    )?;
    for name in ["late", "soon"] {
        say(
            &server,
            "cronjob",
            name,
            json!({"lastScheduleTime": "2020-01-01T00:00:00Z"}),
        )?;
        server.kubectl(&[
            "patch",
            "cronjob",
            name,
            "--type=merge",
            "-p",
            r#"{"spec": {"suspend": false}}"#,
        ])?;
    }
    let soon = server.json(&["get", "cronjob", "soon"])?;
    let jobs = eventually(&server, "what was missed is started", || {
        let jobs = jobs_of(&server, &soon)?;
        Ok((!jobs.is_empty()).then_some(jobs))
    })?;
    let at = &jobs[0]["metadata"]["annotations"]["batch.kubernetes.io/cronjob-scheduled-timestamp"];
    ensure!(
        at.as_str()
            .is_some_and(|at| at.ends_with("-01-01T00:00:00+09:00")),
        "{at}"
    );
    ensure!(jobs_of(&server, &server.json(&["get", "cronjob", "late"])?)?.is_empty());
    Ok(())
}
