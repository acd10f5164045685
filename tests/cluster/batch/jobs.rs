//! Jobs.

use std::{collections::BTreeSet, time::Duration};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::{
    active, condition, controllers, create, ends, eventually, finished, is_active, is_tracked,
    items, job, name, pods, say, server, told,
};

/// JB-01, JB-05, JB-06.
#[test]
fn eight_completions_two_at_a_time() -> Result<()> {
    let server = server()?;
    let _controllers = controllers(&server)?;
    create(
        &server,
        &job("j", json!({"completions": 8, "parallelism": 2})),
    )?;
    let mut seen = BTreeSet::new();
    let done = eventually(&server, "eight have succeeded", || {
        let all = pods(&server, "j")?;
        let active: Vec<&Value> = all.iter().filter(|pod| is_active(pod)).collect();
        ensure!(active.len() <= 2, "more than two at once: {active:?}");
        seen.extend(all.iter().map(|pod| name(pod).to_owned()));
        if let Some(pod) = active.first() {
            ends(&server, pod, "Succeeded")?;
        }
        let job = server.json(&["get", "job", "j"])?;
        Ok(condition(&job, "Complete").is_some().then_some(job))
    })?;
    let status = &done["status"];
    ensure!(
        status["succeeded"] == 8 && seen.len() == 8,
        "{status} {seen:?}"
    );
    ensure!(
        status["failed"].is_null() && status["active"].is_null() && status["ready"] == 0,
        "{status}"
    );
    ensure!(
        status["completionTime"].is_string() && status["startTime"].is_string(),
        "{status}"
    );
    server.kubectl(&["wait", "--for=condition=complete", "job/j", "--timeout=5s"])?;
    let all = pods(&server, "j")?;
    ensure!(
        all.len() == 8
            && all
                .iter()
                .all(|pod| pod["status"]["phase"] == "Succeeded" && !is_tracked(pod))
    );
    let uid = &done["metadata"]["uid"];
    for pod in &all {
        ensure!(
            pod["metadata"]["labels"]["batch.kubernetes.io/controller-uid"] == *uid,
            "{pod}"
        );
        ensure!(
            pod["metadata"]["ownerReferences"][0]["uid"] == *uid,
            "{pod}"
        );
    }
    ensure!(done["spec"]["selector"]["matchLabels"]["batch.kubernetes.io/controller-uid"] == *uid);
    told(
        &server,
        "job",
        "j",
        &[
            "SuccessfulCreate",
            "Created pod: j-",
            "Completed",
            "Job completed",
            "job-controller",
        ],
    )
}

/// JB-03: where nothing is said of it, the next one begins when the one before has ended.
#[test]
fn one_after_another_where_nothing_is_said_of_how_many() -> Result<()> {
    let server = server()?;
    let _controllers = controllers(&server)?;
    create(&server, &job("j", json!({"completions": 3})))?;
    for done in 0..3 {
        let running = active(&server, "j", 1)?;
        // that it has no other by now is told as well
        eventually(&server, "it is counted", || {
            let status = server.json(&["get", "job", "j"])?["status"].clone();
            let succeeded = status["succeeded"].as_u64().unwrap_or(0);
            Ok((status["active"] == 1 && succeeded == done).then_some(()))
        })?;
        let all = pods(&server, "j")?;
        ensure!(all.iter().filter(|pod| is_active(pod)).count() == 1);
        ends(&server, &running[0], "Succeeded")?;
    }
    let done = finished(&server, "j", "Complete")?;
    ensure!(done["spec"]["parallelism"] == 1 && done["status"]["succeeded"] == 3);
    ensure!(pods(&server, "j")?.len() == 3);
    Ok(())
}

/// CP-11, CP-12: whoever comes after one that was killed goes on.
#[test]
fn a_controller_that_is_killed_counts_no_pod_twice_and_loses_none() -> Result<()> {
    let server = server()?;
    create(
        &server,
        &job(
            "j",
            json!({"completions": 8, "parallelism": 2, "backoffLimit": 100}),
        ),
    )?;
    let (mut seen, mut ended) = (BTreeSet::new(), 0_u64);
    let mut complete = None;
    while complete.is_none() {
        ensure!(ended < 40, "it is never done");
        let mut running = controllers(&server)?;
        // it dies in the midst of what comes of the last end: after a different time each round
        let one = eventually(&server, "the job goes on", || {
            let job = server.json(&["get", "job", "j"])?;
            if condition(&job, "Complete").is_some() {
                complete = Some(job);
                return Ok(Some(None));
            }
            let all = pods(&server, "j")?;
            ensure!(all.iter().filter(|pod| is_active(pod)).count() <= 2);
            Ok(all.into_iter().find(is_active).map(Some))
        })?;
        if let Some(pod) = one {
            ends(&server, &pod, "Succeeded")?;
            seen.insert(name(&pod).to_owned());
            ended += 1;
            std::thread::sleep(Duration::from_millis(ended * 3));
        }
        running.kill_9()?;
    }
    let job = complete.context("it is complete")?;
    ensure!(
        job["status"]["succeeded"] == 8 && seen.len() == 8,
        "{} {seen:?}",
        job["status"]
    );
    ensure!(job["status"]["failed"].is_null(), "{}", job["status"]);
    let all = pods(&server, "j")?;
    ensure!(all.len() == 8, "{} pods were made", all.len());
    ensure!(
        all.iter()
            .all(|pod| pod["status"]["phase"] == "Succeeded" && !is_tracked(pod))
    );
    Ok(())
}

/// JB-02.
#[test]
fn a_job_fails_as_its_spec_says() -> Result<()> {
    let server = server()?;
    let _controllers = controllers(&server)?;
    create(&server, &job("once", json!({"backoffLimit": 0})))?;
    let pod = active(&server, "once", 1)?.remove(0);
    ends(&server, &pod, "Failed")?;
    let failed = finished(&server, "once", "Failed")?;
    let why = condition(&failed, "Failed").context("it is failed")?;
    ensure!(
        why["reason"] == "BackoffLimitExceeded"
            && why["message"] == "Job has reached the specified backoff limit",
        "{why}"
    );
    ensure!(
        failed["status"]["failed"] == 1 && condition(&failed, "FailureTarget").is_some(),
        "{}",
        failed["status"]
    );
    told(&server, "job", "once", &["BackoffLimitExceeded"])?;

    let policy = json!({"rules": [{"action": "FailJob", "onExitCodes": {"operator": "In", "values": [42]}}]});
    create(
        &server,
        &job(
            "policy",
            json!({"parallelism": 2, "completions": 2, "podFailurePolicy": policy}),
        ),
    )?;
    let pods = active(&server, "policy", 2)?;
    let exited = json!({"phase": "Failed", "containerStatuses": [{
        "name": "c", "image": "", "imageID": "", "ready": false, "restartCount": 0, "state": {"terminated": {"exitCode": 42}},
    }]});
    say(&server, "pod", name(&pods[0]), exited)?;
    let failed = finished(&server, "policy", "FailureTarget")?;
    let why = condition(&failed, "FailureTarget").context("it will fail")?;
    ensure!(why["reason"] == "PodFailurePolicy", "{why}");
    // the other one was on no node: it is gone at once, or as soon as it is counted
    let failed = finished(&server, "policy", "Failed")?;
    ensure!(
        failed["status"]["failed"] == 2 && failed["status"]["active"].is_null(),
        "{}",
        failed["status"]
    );

    create(&server, &job("late", json!({"activeDeadlineSeconds": 1})))?;
    let failed = finished(&server, "late", "Failed")?;
    ensure!(condition(&failed, "Failed").is_some_and(|why| why["reason"] == "DeadlineExceeded"));
    Ok(())
}

#[test]
fn an_indexed_job_pauses_and_goes_on() -> Result<()> {
    let server = server()?;
    let _controllers = controllers(&server)?;
    let spec = json!({"completions": 3, "parallelism": 3, "completionMode": "Indexed", "suspend": true, "backoffLimitPerIndex": 1});
    create(&server, &job("i", spec))?;
    finished(&server, "i", "Suspended")?;
    ensure!(pods(&server, "i")?.is_empty());
    let suspend = |is: bool| {
        let patch = json!({"spec": {"suspend": is}}).to_string();
        server.kubectl(&["patch", "job", "i", "--type=merge", "-p", &patch])
    };
    suspend(false)?;
    let mut pods = active(&server, "i", 3)?;
    pods.sort_by_key(|pod| {
        pod["metadata"]["annotations"]["batch.kubernetes.io/job-completion-index"]
            .as_str()
            .map(str::to_owned)
    });
    for (at, pod) in pods.iter().enumerate() {
        let index = at.to_string();
        let meta = &pod["metadata"];
        ensure!(
            meta["labels"]["batch.kubernetes.io/job-completion-index"] == index.as_str(),
            "{pod}"
        );
        ensure!(
            meta["annotations"]["batch.kubernetes.io/job-index-failure-count"] == "0",
            "{pod}"
        );
        ensure!(name(pod).starts_with(&format!("i-{at}-")), "{pod}");
        ensure!(pod["spec"]["hostname"] == format!("i-{at}"), "{pod}");
        ensure!(
            pod["spec"]["containers"][0]["env"][0]["name"] == "JOB_COMPLETION_INDEX",
            "{pod}"
        );
    }
    ends(&server, &pods[1], "Succeeded")?;
    eventually(&server, "index 1 is done", || {
        let job = server.json(&["get", "job", "i"])?;
        Ok((job["status"]["completedIndexes"] == "1").then_some(()))
    })?;
    suspend(true)?;
    active(&server, "i", 0)?;
    eventually(&server, "it is suspended", || {
        let job = server.json(&["get", "job", "i"])?;
        Ok(
            (condition(&job, "Suspended").is_some_and(|one| one["status"] == "True")
                && job["status"]["active"].is_null())
            .then_some(()),
        )
    })?;
    suspend(false)?;
    for pod in active(&server, "i", 2)? {
        ends(&server, &pod, "Succeeded")?;
    }
    let done = finished(&server, "i", "Complete")?;
    ensure!(
        done["status"]["completedIndexes"] == "0-2" && done["status"]["succeeded"] == 3,
        "{}",
        done["status"]
    );
    ensure!(done["status"]["failed"].is_null(), "{}", done["status"]);
    told(
        &server,
        "job",
        "i",
        &[
            "Suspended",
            "Resumed",
            "Completed",
            "Completed Indexes:  0-2",
        ],
    )
}

#[test]
fn pods_outlive_their_job_or_go_with_it() -> Result<()> {
    let server = server()?;
    let _controllers = controllers(&server)?;
    create(&server, &job("left", json!({})))?;
    let pod = active(&server, "left", 1)?.remove(0);
    server.kubectl(&["delete", "job", "left", "--cascade=orphan"])?;
    eventually(&server, "its pod is nobody's", || {
        let pod = server.json(&["get", "pod", name(&pod)])?;
        Ok(
            (pod["metadata"]["ownerReferences"].is_null() && !is_tracked(&pod) && is_active(&pod))
                .then_some(()),
        )
    })?;

    create(&server, &job("gone", json!({})))?;
    active(&server, "gone", 1)?;
    server.kubectl(&["delete", "job", "gone"])?;
    eventually(&server, "its pod has gone with it", || {
        Ok(pods(&server, "gone")?.is_empty().then_some(()))
    })?;

    // ttlSecondsAfterFinished
    create(
        &server,
        &job("short", json!({"ttlSecondsAfterFinished": 0})),
    )?;
    let pod = active(&server, "short", 1)?.remove(0);
    ends(&server, &pod, "Succeeded")?;
    eventually(&server, "it has gone by itself", || {
        let jobs = items(&server, &["get", "jobs"])?;
        Ok(
            (!jobs.iter().any(|job| name(job) == "short") && pods(&server, "short")?.is_empty())
                .then_some(()),
        )
    })?;

    // somebody else's
    create(
        &server,
        &job("foreign", json!({"managedBy": "example.com/other"})),
    )?;
    create(&server, &job("own", json!({})))?;
    active(&server, "own", 1)?;
    ensure!(pods(&server, "foreign")?.is_empty());
    Ok(())
}
