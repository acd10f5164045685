//! Random histories of a cluster: pods end, are deleted, are seen late; the controller is killed between any two writes.

mod world;

use std::collections::HashMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use proptest::prelude::*;
use serde_json::{from_value, json};

use super::{
    finished,
    indexes::Indexes,
    plan::Step,
    pods::{TRACKED, index, is_tracked},
    report::{COMPLETE, FAILED},
};
use crate::pod::{is_active, phase};
use world::{Op, World};

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => prop::option::weighted(0.7, 0_usize..12).prop_map(Op::Reconcile),
        3 => (any::<usize>(), prop::sample::select(vec!["Succeeded", "Failed", "Running"])).prop_map(|(at, phase)| Op::End(at, phase)),
        1 => any::<usize>().prop_map(Op::Delete),
        2 => any::<usize>().prop_map(Op::See),
        1 => Just(Op::SeeAll),
        1 => (1_i64..2000).prop_map(Op::Later),
    ]
}

fn history() -> impl Strategy<Value = Vec<Op>> {
    prop::collection::vec(op(), 0..60)
}

fn history_with_pauses() -> impl Strategy<Value = Vec<Op>> {
    let op = prop_oneof![8 => op(), 1 => any::<bool>().prop_map(Op::Suspend)];
    prop::collection::vec(op, 0..60)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// JB-01, JB-05.
    #[test]
    fn exactly_as_many_successes_as_asked_for_are_counted(
        ops in history(), completions in 0_i32..6, parallelism in 1_i32..4,
    ) {
        let mut world = World::new(json!({"completions": completions, "parallelism": parallelism, "backoffLimit": 1000}));
        ops.iter().for_each(|op| world.act(op));
        world.run_out();
        prop_assert!(world.has(COMPLETE));
        prop_assert_eq!(world.succeeded(), completions);
        world.check_counted();
        let completed = world.told.iter().filter(|told| told.reason == "Completed").count();
        prop_assert!(completed == 1 && world.told.iter().all(|told| told.reason != "TooManySucceededPods"));
    }

    #[test]
    fn a_job_that_pauses_loses_no_success_that_it_has_seen(
        ops in history_with_pauses(), completions in 1_i32..6, parallelism in 1_i32..4, only_failed: bool,
    ) {
        let policy = if only_failed { "Failed" } else { "TerminatingOrFailed" };
        let mut world = World::new(json!({
            "completions": completions, "parallelism": parallelism, "backoffLimit": 1000, "podReplacementPolicy": policy,
        }));
        for op in &ops {
            let before = world.succeeded();
            world.act(op);
            prop_assert!(world.succeeded() >= before);
        }
        world.run_out();
        prop_assert!(world.has(COMPLETE));
        prop_assert_eq!(world.succeeded(), completions);
        if !only_failed {
            world.check_counted();
        }
    }

    #[test]
    fn a_job_fails_when_its_limit_is_passed_and_counts_all(ops in history(), limit in 0_i32..3) {
        let mut world = World::new(json!({"completions": 4, "parallelism": 2, "backoffLimit": limit}));
        ops.iter().for_each(|op| world.act(op));
        world.run_out();
        world.check_counted();
        if world.failed() > limit {
            prop_assert!(world.has(FAILED) && world.has("FailureTarget"));
            prop_assert_eq!(world.reason(), "BackoffLimitExceeded");
        } else {
            prop_assert!(world.has(COMPLETE) && world.has("SuccessCriteriaMet"));
            prop_assert_eq!(world.succeeded(), 4);
        }
    }

    #[test]
    fn each_index_succeeds_once(ops in history(), completions in 1_i32..6, parallelism in 1_i32..4) {
        let mut world = World::new(json!({
            "completions": completions, "parallelism": parallelism, "completionMode": "Indexed", "backoffLimit": 1000,
        }));
        ops.iter().for_each(|op| world.act(op));
        world.run_out();
        prop_assert!(world.has(COMPLETE));
        let all: Indexes = (0..completions.unsigned_abs()).collect();
        prop_assert_eq!(world.status().completed_indexes, Some(all.to_string()));
        prop_assert_eq!(world.succeeded(), completions);
        prop_assert!(world.pods.values().all(|pod| !is_tracked(pod)));
    }

    #[test]
    fn no_index_is_tried_more_often_than_its_limit(ops in history(), limit in 0_i32..3, most in prop::option::of(0_i32..3)) {
        let mut spec = json!({
            "completions": 4, "parallelism": 2, "completionMode": "Indexed", "backoffLimitPerIndex": limit, "backoffLimit": i32::MAX,
        });
        if let Some(most) = most {
            spec["maxFailedIndexes"] = most.into();
        }
        let mut world = World::new(spec);
        ops.iter().for_each(|op| world.act(op));
        world.run_out();
        let mut tries: HashMap<Option<u32>, i32> = HashMap::new();
        for (_, index) in &world.made {
            *tries.entry(*index).or_default() += 1;
        }
        prop_assert!(tries.values().all(|tries| *tries <= limit + 1), "{:?}", tries);
        let failed = Indexes::parse(&world.status().failed_indexes.unwrap_or_default(), 4);
        let succeeded = Indexes::parse(&world.status().completed_indexes.unwrap_or_default(), 4);
        prop_assert_eq!(failed.common(&succeeded), 0);
        if failed.is_empty() {
            prop_assert!(world.has(COMPLETE) && succeeded.count() == 4);
        } else if most.is_some_and(|most| failed.count() > most.unsigned_abs() as usize) {
            prop_assert_eq!(world.reason(), "MaxFailedIndexesExceeded");
        } else {
            prop_assert_eq!(world.reason(), "FailedIndexes");
            prop_assert_eq!(failed.count() + succeeded.count(), 4);
        }
        prop_assert!(world.pods.values().all(|pod| !is_tracked(pod)));
    }
}

fn active(world: &World) -> Vec<String> {
    let active = world.pods.iter().filter(|(_, pod)| is_active(pod));
    active.map(|(uid, _)| uid.clone()).collect()
}

fn settle(world: &mut World) {
    world.seconds += 1;
    world.see_all();
    assert!(world.reconcile(None));
    world.rests();
}

#[test]
fn eight_completions_two_at_a_time() {
    let mut world = World::new(json!({"completions": 8, "parallelism": 2, "backoffLimit": 6}));
    settle(&mut world);
    for done in 0..8 {
        assert_eq!(world.succeeded(), done);
        assert_eq!(i32::try_from(active(&world).len()), Ok(2.min(8 - done)));
        let first = active(&world).remove(0);
        world.end(&first, "Succeeded");
        settle(&mut world);
    }
    assert!(world.has(COMPLETE));
    assert_eq!((world.succeeded(), world.made.len()), (8, 8));
    assert!(world.status().completion_time.is_some());
}

#[test]
fn any_success_is_enough_without_a_number_of_completions() {
    let mut world = World::new(json!({"parallelism": 3, "backoffLimit": 6}));
    settle(&mut world);
    let pods = active(&world);
    assert_eq!(pods.len(), 3);
    world.end(&pods[0], "Succeeded");
    settle(&mut world);
    // nobody begins any more, and whoever runs is waited for
    assert_eq!(active(&world).len(), 2);
    world.end(&pods[1], "Failed");
    world.end(&pods[2], "Succeeded");
    settle(&mut world);
    assert!(world.has(COMPLETE));
    assert_eq!(
        (world.succeeded(), world.failed(), world.made.len()),
        (2, 1, 3)
    );
}

#[test]
fn a_failed_pod_is_replaced_after_a_while() {
    let mut world = World::new(json!({"completions": 1, "parallelism": 1, "backoffLimit": 6}));
    settle(&mut world);
    let mut waits = Vec::new();
    for _ in 0..3 {
        let pod = active(&world).remove(0);
        world.end(&pod, "Failed");
        // made when it ended, as far as can be known: no container has told
        world
            .pods
            .get_mut(&pod)
            .expect("a pod")
            .metadata
            .creation_timestamp = Some(Time(world.now()));
        world.see_all();
        assert!(world.reconcile(None));
        let Step::Rest(Some(wait)) = world.next() else {
            panic!("it waits");
        };
        assert!(active(&world).is_empty());
        waits.push(wait.as_secs());
        world.seconds += i64::try_from(wait.as_secs()).expect("a number") + 1;
        world.see_all();
        assert!(world.reconcile(None));
        assert_eq!(active(&world).len(), 1);
    }
    assert_eq!(waits, [10, 20, 40]);
}

#[test]
fn a_suspended_job_has_no_pods_and_its_time_does_not_pass() {
    let mut world = World::new(
        json!({"completions": 2, "parallelism": 2, "backoffLimit": 6, "suspend": true, "activeDeadlineSeconds": 100}),
    );
    settle(&mut world);
    assert!(world.has("Suspended") && world.made.is_empty() && world.status().start_time.is_none());
    world.seconds += 1000;
    world.act(&Op::Suspend(false));
    settle(&mut world);
    assert!(!world.has("Suspended") && active(&world).len() == 2);
    assert!(world.status().start_time.is_some());
    world.act(&Op::Suspend(true));
    settle(&mut world);
    assert!(
        world.has("Suspended") && active(&world).is_empty() && world.status().start_time.is_none()
    );
    assert_eq!(world.failed(), 0);
    let reasons: Vec<&str> = world.told.iter().map(|told| told.reason.as_str()).collect();
    assert_eq!(reasons, ["Suspended", "Resumed", "Suspended"]);
}

#[test]
fn a_job_has_its_time() {
    let mut world = World::new(
        json!({"completions": 2, "parallelism": 2, "backoffLimit": 6, "activeDeadlineSeconds": 100}),
    );
    settle(&mut world);
    let Step::Rest(Some(left)) = world.next() else {
        panic!("it wakes for its deadline");
    };
    assert_eq!(left.as_secs(), 100);
    world.seconds += 100;
    settle(&mut world);
    assert!(
        world.has("FailureTarget") && !world.has(FAILED),
        "pods are still on their way"
    );
    assert_eq!((world.status().terminating, world.failed()), (Some(2), 2));
    for uid in world.pods.keys().cloned().collect::<Vec<_>>() {
        world.end(&uid, "Failed");
    }
    settle(&mut world);
    assert_eq!(world.reason(), "DeadlineExceeded");
    assert_eq!(world.failed(), 2);
}

fn exits(world: &mut World, uid: &str, code: i32) {
    world.end(uid, "Failed");
    let pod = world.pods.get_mut(uid).expect("a pod");
    pod.status.as_mut().expect("a status").container_statuses = Some(vec![
        from_value(json!({"name": "main", "ready": false, "restartCount": 0, "image": "", "imageID": "", "state": {"terminated": {"exitCode": code}}}))
            .expect("a container"),
    ]);
}

#[test]
fn a_policy_says_which_failures_count() {
    let mut world = World::new(json!({
        "completions": 1, "parallelism": 1, "backoffLimit": 0,
        "podFailurePolicy": {"rules": [
            {"action": "Ignore", "onExitCodes": {"operator": "In", "values": [3]}},
            {"action": "FailJob", "onExitCodes": {"operator": "In", "values": [42]}},
        ]},
    }));
    settle(&mut world);
    for _ in 0..2 {
        let pod = active(&world).remove(0);
        exits(&mut world, &pod, 3);
        world.see_all();
        assert!(world.reconcile(None));
        assert_eq!((world.failed(), is_tracked(&world.pods[&pod])), (0, false));
        world.seconds += 1000;
        settle(&mut world);
    }
    let pod = active(&world).remove(0);
    exits(&mut world, &pod, 42);
    settle(&mut world);
    assert_eq!(world.reason(), "PodFailurePolicy");
    let condition = finished(&world.job).expect("a condition");
    let message = condition.message.as_deref().expect("a message");
    assert!(
        message.ends_with("failed with exit code 42 matching FailJob rule at index 1"),
        "{message}"
    );
    assert_eq!(world.failed(), 1);
}

#[test]
fn some_indexes_are_enough_if_the_job_says_so() {
    let mut world = World::new(json!({
        "completions": 5, "parallelism": 5, "completionMode": "Indexed", "backoffLimit": 6,
        "successPolicy": {"rules": [{"succeededIndexes": "0,3"}]},
    }));
    settle(&mut world);
    assert_eq!(active(&world).len(), 5);
    for (uid, at) in world.made.clone() {
        if matches!(at, Some(0 | 3)) {
            world.end(&uid, "Succeeded");
        }
    }
    settle(&mut world);
    assert!(
        world.has("SuccessCriteriaMet") && !world.has(COMPLETE),
        "the others are ended first"
    );
    for uid in world.pods.keys().cloned().collect::<Vec<_>>() {
        if phase(&world.pods[&uid]) != "Succeeded" {
            world.end(&uid, "Failed");
        }
    }
    settle(&mut world);
    assert_eq!(world.reason(), "SuccessPolicy");
    assert_eq!(world.status().completed_indexes.as_deref(), Some("0,3"));
    assert_eq!((world.succeeded(), world.failed()), (2, 0));
}

#[test]
fn a_pod_on_its_way_is_waited_for_if_the_job_says_so() {
    let mut world = World::new(
        json!({"completions": 1, "parallelism": 1, "backoffLimit": 6, "podReplacementPolicy": "Failed"}),
    );
    settle(&mut world);
    let pod = active(&world).remove(0);
    world.delete(&pod);
    settle(&mut world);
    assert!(active(&world).is_empty() && world.made.len() == 1);
    assert_eq!((world.status().terminating, world.failed()), (Some(1), 0));
    world.end(&pod, "Failed");
    world.seconds += 1000;
    settle(&mut world);
    assert_eq!((world.failed(), active(&world).len()), (1, 1));
}

#[test]
fn a_shrunken_job_ends_what_is_too_much_and_pods_of_no_index() {
    let mut world = World::new(
        json!({"completions": 4, "parallelism": 4, "completionMode": "Indexed", "backoffLimit": 6}),
    );
    settle(&mut world);
    let spec = world.job.spec.as_mut().expect("a spec");
    (spec.completions, spec.parallelism) = (Some(2), Some(2));
    settle(&mut world);
    let left: Vec<Option<u32>> = active(&world)
        .iter()
        .map(|uid| index(&world.pods[uid]))
        .collect();
    assert_eq!(left, [Some(0), Some(1)]);
    assert_eq!(world.failed(), 0);
}

#[test]
fn a_job_that_is_deleted_lets_its_pods_go() {
    let mut world = World::new(json!({"completions": 2, "parallelism": 2, "backoffLimit": 6}));
    settle(&mut world);
    let pods = active(&world);
    world.end(&pods[0], "Succeeded");
    world.job.metadata.deletion_timestamp = Some(Time(world.now()));
    settle(&mut world);
    assert!(world.pods.values().all(|pod| !is_tracked(pod)) && world.made.len() == 2);
    assert_eq!((world.succeeded(), world.failed()), (1, 0));
}

#[test]
fn a_status_has_room_for_five_hundred() {
    let mut world =
        World::new(json!({"completions": 1200, "parallelism": 1200, "backoffLimit": 6}));
    settle(&mut world);
    assert_eq!(active(&world).len(), 1200);
    for uid in active(&world) {
        world.end(&uid, "Succeeded");
    }
    world.see_all();
    let Step::Status(status, _) = world.next() else {
        panic!("they are written down");
    };
    let uncounted = status.uncounted_terminated_pods.expect("uids");
    assert_eq!(uncounted.succeeded.map(|list| list.len()), Some(500));
    settle(&mut world);
    assert!(world.has(COMPLETE));
    assert_eq!(world.succeeded(), 1200);
    world.check_counted();
}

#[test]
fn restarts_within_pods_are_limited_too() {
    let mut world = World::new(json!({"completions": 1, "parallelism": 1, "backoffLimit": 2}));
    let template = world
        .job
        .spec
        .as_mut()
        .expect("a spec")
        .template
        .spec
        .as_mut();
    template.expect("a pod spec").restart_policy = Some("OnFailure".into());
    settle(&mut world);
    let pod = active(&world).remove(0);
    world.end(&pod, "Running");
    let status = world
        .pods
        .get_mut(&pod)
        .expect("a pod")
        .status
        .as_mut()
        .expect("a status");
    status.container_statuses = Some(vec![
        from_value(
            json!({"name": "main", "ready": false, "restartCount": 2, "image": "", "imageID": ""}),
        )
        .expect("a container"),
    ]);
    world.see_all();
    assert!(matches!(world.next(), Step::Stop(_)));
    assert!(world.reconcile(None));
    assert!(world.has("FailureTarget"));
    assert_eq!(TRACKED, "batch.kubernetes.io/job-tracking");
}
