//! Jobs, CronJobs, autoscalers and what cleans up after them, by real kubectl at our API server. The node is hollow: where a kubelet would say how a pod is, this does.

use std::{
    collections::BTreeSet,
    io::{BufRead, BufReader, Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use berth_tests::cluster::{Component, Server};
use serde_json::{Value, json};

const WITHIN: Duration = Duration::from_secs(60);
const CONTROLLERS: &str = "job-controller,cronjob-controller,ttl-after-finished-controller,horizontal-pod-autoscaler-controller,pod-garbage-collector-controller";
const LOOPBACK: &str = "127.0.0.1";
const TRACKED: &str = "batch.kubernetes.io/job-tracking";

fn controllers(server: &Server) -> Result<Component> {
    controllers_at(server, &server.kubeconfig())
}

fn controllers_at(server: &Server, kubeconfig: &Path) -> Result<Component> {
    let arguments = ["--leader-elect=false", "--controllers", CONTROLLERS];
    Component::start_at(server, kubeconfig, "controllers", &arguments)
}

fn server() -> Result<Server> {
    Server::start("memory")
}

fn eventually<T>(
    server: &Server,
    what: &str,
    mut try_it: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let until = Instant::now() + WITHIN;
    loop {
        if let Some(found) = try_it()? {
            return Ok(found);
        }
        if Instant::now() > until {
            let log =
                std::fs::read_to_string(server.dir().join("controllers.log")).unwrap_or_default();
            bail!(
                "not within {} s: {what}\ncontrollers: {log}",
                WITHIN.as_secs()
            );
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn create(server: &Server, object: &Value) -> Result<()> {
    server
        .kubectl_with(&["create", "-f", "-"], &object.to_string())
        .map(drop)
}

fn job(name: &str, spec: Value) -> Value {
    let mut job = json!({
        "apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name},
        "spec": {"template": {"spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "example/c:1"}]}}},
    });
    for (key, value) in spec.as_object().into_iter().flatten() {
        job["spec"][key] = value.clone();
    }
    job
}

fn items(server: &Server, arguments: &[&str]) -> Result<Vec<Value>> {
    let list = server.json(arguments)?;
    Ok(list["items"].as_array().cloned().unwrap_or_default())
}

fn pods(server: &Server, job: &str) -> Result<Vec<Value>> {
    let selector = format!("batch.kubernetes.io/job-name={job}");
    items(server, &["get", "pods", "-l", &selector])
}

fn is_active(pod: &Value) -> bool {
    let phase = pod["status"]["phase"].as_str().unwrap_or_default();
    !matches!(phase, "Succeeded" | "Failed") && pod["metadata"]["deletionTimestamp"].is_null()
}

fn is_tracked(pod: &Value) -> bool {
    pod["metadata"]["finalizers"]
        .as_array()
        .is_some_and(|all| all.contains(&json!(TRACKED)))
}

fn name(object: &Value) -> &str {
    object["metadata"]["name"].as_str().unwrap_or_default()
}

/// What a kubelet says of it.
fn say(server: &Server, kind: &str, name: &str, status: Value) -> Result<()> {
    let patch = json!({"status": status}).to_string();
    server
        .kubectl(&[
            "patch",
            kind,
            name,
            "--subresource=status",
            "--type=merge",
            "-p",
            &patch,
        ])
        .map(drop)
}

fn ends(server: &Server, pod: &Value, phase: &str) -> Result<()> {
    say(server, "pod", name(pod), json!({"phase": phase}))
}

/// Waits until so many are active.
fn active(server: &Server, job: &str, count: usize) -> Result<Vec<Value>> {
    eventually(server, &format!("{count} pods of {job} are active"), || {
        let mut pods = pods(server, job)?;
        pods.retain(is_active);
        Ok((pods.len() == count).then_some(pods))
    })
}

fn condition<'a>(object: &'a Value, type_: &str) -> Option<&'a Value> {
    let mut conditions = object["status"]["conditions"].as_array()?.iter();
    conditions.find(|one| one["type"] == type_)
}

fn finished(server: &Server, job: &str, type_: &str) -> Result<Value> {
    eventually(server, &format!("{job} is {type_}"), || {
        let job = server.json(&["get", "job", job])?;
        let is = condition(&job, type_).is_some_and(|one| one["status"] == "True");
        Ok(is.then_some(job))
    })
}

/// That `kubectl describe` shows all of them.
fn told(server: &Server, kind: &str, name: &str, words: &[&str]) -> Result<()> {
    eventually(server, &format!("{kind} {name} is told {words:?}"), || {
        let text = server.kubectl(&["describe", kind, name])?;
        Ok(words.iter().all(|word| text.contains(word)).then_some(()))
    })
}

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

fn deployment(name: &str, replicas: u32) -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name},
        "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": name}}, "template": {
            "metadata": {"labels": {"app": name}}, "spec": {"containers": [{"name": "c", "image": "example/c:1"}]},
        }},
    })
}

fn replicas(server: &Server, deployment: &str) -> Result<Value> {
    Ok(server.json(&["get", "deployment", deployment])?["spec"]["replicas"].clone())
}

/// The API server, but for metrics of pods, which are `list`.
struct Metered {
    kubeconfig: PathBuf,
    proxy: Child,
}

impl Drop for Metered {
    fn drop(&mut self) {
        let _ = self.proxy.kill();
        let _ = self.proxy.wait();
    }
}

impl Metered {
    fn start(server: &Server, list: &Value) -> Result<Self> {
        let mut proxy = server
            .command(&["proxy", "--port=0", "--disable-filter"])?
            .stdout(Stdio::piped())
            .spawn()?;
        let mut said = String::new();
        let stdout = proxy.stdout.take().context("no stdout")?;
        BufReader::new(stdout).read_line(&mut said)?;
        let kubeconfig = server.dir().join("metered");
        let metered = Self { kubeconfig, proxy };
        let port = said.trim().rsplit(':').next().context("a port")?.parse()?;
        let listener = TcpListener::bind((LOOPBACK, 0))?;
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "c",
            "clusters": [{"name": "c", "cluster": {"server": format!("http://{}", listener.local_addr()?)}}],
            "users": [{"name": "u", "user": {}}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        });
        std::fs::write(&metered.kubeconfig, config.to_string())?;
        let list = list.to_string();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let list = list.clone();
                std::thread::spawn(move || pass(stream, port, &list));
            }
        });
        Ok(metered)
    }
}

/// One request.
fn pass(mut client: TcpStream, port: u16, list: &str) -> Result<()> {
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") {
        client.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    let head = String::from_utf8(head)?;
    let (line, rest) = head.split_once("\r\n").context("a line")?;
    if line.starts_with("GET /apis/metrics.k8s.io/v1beta1/namespaces/default/pods?") {
        write!(
            client,
            "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{list}",
            list.len()
        )?;
    } else {
        let mut server = TcpStream::connect((LOOPBACK, port))?;
        write!(server, "{line}\r\nConnection: close\r\n{rest}")?;
        let (mut from, mut to) = (client.try_clone()?, server.try_clone()?);
        std::thread::spawn(move || std::io::copy(&mut from, &mut to));
        std::io::copy(&mut server, &mut client)?;
    }
    client.shutdown(Shutdown::Both)?;
    Ok(())
}

#[test]
fn an_autoscaler_scales_by_what_pods_use() -> Result<()> {
    let server = server()?;
    create(&server, &deployment("web", 2))?;
    let mut metrics = Vec::new();
    for at in 0..2 {
        let pod = format!("web-{at}");
        create(
            &server,
            &json!({
                "apiVersion": "v1", "kind": "Pod", "metadata": {"name": pod, "labels": {"app": "web"}},
                "spec": {"containers": [{"name": "c", "image": "example/c:1", "resources": {"requests": {"cpu": "100m"}}}]},
            }),
        )?;
        let long_ago = "2026-01-01T00:00:00Z";
        say(
            &server,
            "pod",
            &pod,
            json!({"phase": "Running", "startTime": long_ago, "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": long_ago}]}),
        )?;
        metrics.push(json!({
            "metadata": {"name": pod, "namespace": "default", "labels": {"app": "web"}},
            "timestamp": "2026-11-01T00:00:00Z", "window": "15s", "containers": [{"name": "c", "usage": {"cpu": "200m", "memory": "1Mi"}}],
        }));
    }
    let list = json!({"apiVersion": "metrics.k8s.io/v1beta1", "kind": "PodMetricsList", "metadata": {}, "items": metrics});
    let metered = Metered::start(&server, &list)?;
    let _controllers = controllers_at(&server, &metered.kubeconfig)?;
    server.kubectl(&[
        "autoscale",
        "deployment",
        "web",
        "--min=1",
        "--max=10",
        "--cpu=50%",
    ])?;
    // two hundred percent of what is asked for is four times the target; it doubles at most
    eventually(&server, "it is scaled", || {
        Ok((replicas(&server, "web")? == 4).then_some(()))
    })?;
    let scaled = eventually(&server, "it is written down", || {
        let hpa = server.json(&["get", "hpa", "web"])?;
        Ok((hpa["status"]["desiredReplicas"] == 4).then_some(hpa))
    })?;
    let current = &scaled["status"]["currentMetrics"][0]["resource"]["current"];
    ensure!(
        current["averageUtilization"] == 200 && current["averageValue"] == "200m",
        "{current}"
    );
    let is = |type_: &str, status: &str, reason: &str| {
        condition(&scaled, type_)
            .is_some_and(|one| one["status"] == status && one["reason"] == reason)
    };
    ensure!(
        is("AbleToScale", "True", "SucceededRescale"),
        "{}",
        scaled["status"]
    );
    ensure!(
        is("ScalingActive", "True", "ValidMetricFound"),
        "{}",
        scaled["status"]
    );
    ensure!(
        is("ScalingLimited", "True", "ScaleUpLimit"),
        "{}",
        scaled["status"]
    );
    let words = [
        "SuccessfulRescale",
        "New size: 4; reason: cpu resource utilization (percentage of request) above target",
    ];
    told(&server, "hpa", "web", &words)
}

#[test]
fn an_autoscaler_says_what_it_can_not_do() -> Result<()> {
    let server = server()?;
    let _controllers = controllers(&server)?;
    create(&server, &deployment("many", 5))?;
    server.kubectl(&[
        "autoscale",
        "deployment",
        "many",
        "--min=1",
        "--max=3",
        "--cpu=50%",
    ])?;
    eventually(&server, "there are no more than allowed", || {
        Ok((replicas(&server, "many")? == 3).then_some(()))
    })?;
    told(
        &server,
        "hpa",
        "many",
        &["New size: 3; reason: Current number of replicas above Spec.MaxReplicas"],
    )?;

    let reason = |name: &str, type_: &str, reason: &str| {
        eventually(&server, &format!("{name}: {type_} is {reason}"), || {
            let hpa = server.json(&["get", "hpa", name])?;
            Ok(condition(&hpa, type_)
                .is_some_and(|one| one["reason"] == reason && one["status"] == "False")
                .then_some(()))
        })
    };
    create(&server, &deployment("blind", 1))?;
    server.kubectl(&["autoscale", "deployment", "blind", "--max=3", "--cpu=50%"])?;
    reason("blind", "ScalingActive", "FailedGetResourceMetric")?;
    create(&server, &deployment("zero", 0))?;
    server.kubectl(&["autoscale", "deployment", "zero", "--max=3", "--cpu=50%"])?;
    reason("zero", "ScalingActive", "ScalingDisabled")?;
    let hpa = |name: &str, metric: Value| {
        json!({
            "apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "metadata": {"name": name},
            "spec": {"maxReplicas": 3, "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": name}, "metrics": [metric]},
        })
    };
    create(&server, &deployment("custom", 1))?;
    let metric = json!({"type": "Pods", "pods": {"metric": {"name": "requests"}, "target": {"type": "AverageValue", "averageValue": "10"}}});
    create(&server, &hpa("custom", metric.clone()))?;
    reason("custom", "ScalingActive", "FailedGetPodsMetric")?;
    create(&server, &hpa("nothing", metric))?;
    reason("nothing", "AbleToScale", "FailedGetScale")
}

#[test]
fn a_pod_that_had_no_node_when_it_was_deleted_is_ended() -> Result<()> {
    let server = server()?;
    let _controllers = controllers(&server)?;
    create(
        &server,
        &json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "kept", "finalizers": ["example.com/keeps"]},
            "spec": {"containers": [{"name": "c", "image": "example/c:1"}]},
        }),
    )?;
    server.kubectl(&["delete", "pod", "kept", "--wait=false"])?;
    eventually(&server, "it has failed", || {
        Ok((server.json(&["get", "pod", "kept"])?["status"]["phase"] == "Failed").then_some(()))
    })?;
    server.kubectl(&[
        "patch",
        "pod",
        "kept",
        "--type=merge",
        "-p",
        r#"{"metadata": {"finalizers": null}}"#,
    ])?;
    eventually(&server, "it is gone", || {
        Ok(items(&server, &["get", "pods"])?.is_empty().then_some(()))
    })
}
