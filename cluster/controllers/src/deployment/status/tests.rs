use serde_json::{Value, json};

use super::*;

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + seconds).unwrap()
}

fn set(name: &str, replicas: i32, status: Value) -> Arc<ReplicaSet> {
    Arc::new(
        serde_json::from_value(json!({
            "metadata": {"name": name}, "spec": {"replicas": replicas, "selector": {}}, "status": status,
        }))
        .unwrap(),
    )
}

fn deployment(replicas: i32, deadline: Option<i32>) -> Deployment {
    serde_json::from_value(json!({
        "metadata": {"name": "web", "generation": 2},
        "spec": {
            "replicas": replicas, "selector": {}, "template": {}, "progressDeadlineSeconds": deadline,
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 1}},
        },
    }))
    .unwrap()
}

/// One look: what is told then stands in the Deployment.
fn look(deployment: &mut Deployment, sets: &[Arc<ReplicaSet>], now: Timestamp) -> (String, String) {
    let spec = deployment.spec.clone().unwrap();
    let bounds = Bounds::of(&spec);
    let new = sets.last().map(|set| &**set);
    let sets = Sets { all: sets, new };
    let mut status = counted(deployment, &bounds, sets, now);
    progress(deployment, &spec, &bounds, sets, &mut status, now);
    deployment.status = Some(status.clone());
    let said = condition(&status, PROGRESSING);
    let said = said.map(|said| (said.status.clone(), said.reason.clone().unwrap_or_default()));
    said.unwrap_or_default()
}

fn is(status: &str, reason: &str) -> (String, String) {
    (status.to_owned(), reason.to_owned())
}

#[test]
fn numbers_are_those_of_its_replica_sets() {
    let sets = [
        set(
            "a",
            2,
            json!({"replicas": 3, "readyReplicas": 2, "availableReplicas": 2, "terminatingReplicas": 1, "observedGeneration": 1}),
        ),
        set(
            "b",
            2,
            json!({"replicas": 2, "readyReplicas": 1, "terminatingReplicas": 0, "observedGeneration": 1}),
        ),
        set("c", 0, json!({"replicas": 0})),
    ];
    let mut one = deployment(3, None);
    let spec = one.spec.clone().unwrap();
    let told = counted(
        &one,
        &Bounds::of(&spec),
        Sets {
            all: &sets,
            new: Some(&sets[1]),
        },
        at(0),
    );
    let mut value = serde_json::to_value(&told).unwrap();
    let conditions = value.as_object_mut().unwrap().remove("conditions").unwrap();
    assert_eq!(conditions[0]["reason"], "MinimumReplicasAvailable");
    assert_eq!(
        value,
        json!({
            "observedGeneration": 2, "replicas": 5, "updatedReplicas": 2, "readyReplicas": 3, "availableReplicas": 2,
            "unavailableReplicas": 2, "terminatingReplicas": 1,
        })
    );
    one.spec.as_mut().unwrap().replicas = Some(4);
    let spec = one.spec.clone().unwrap();
    let told = counted(
        &one,
        &Bounds::of(&spec),
        Sets {
            all: &sets,
            new: None,
        },
        at(0),
    );
    assert_eq!(reason(&told, AVAILABLE), Some("MinimumReplicasUnavailable"));
    assert_eq!(told.updated_replicas, None);
}

/// DP-12: what makes no progress is told so, and that is all.
#[test]
fn a_roll_without_progress_is_late_after_its_deadline() {
    let mut one = deployment(2, Some(60));
    let old = set(
        "old",
        2,
        json!({"replicas": 2, "readyReplicas": 2, "availableReplicas": 2}),
    );
    assert_eq!(
        look(&mut one, std::slice::from_ref(&old), at(0)),
        is("True", "NewReplicaSetAvailable")
    );
    // nothing is expected of what is done
    assert_eq!(
        look(&mut one, std::slice::from_ref(&old), at(9999)),
        is("True", "NewReplicaSetAvailable")
    );
    let fewer = set(
        "old",
        1,
        json!({"replicas": 1, "readyReplicas": 1, "availableReplicas": 1}),
    );
    let begun = [fewer, set("new", 2, json!({"replicas": 2}))];
    let made = Said {
        type_: PROGRESSING,
        status: "True",
        reason: "NewReplicaSetCreated",
        message: "Created new replica set \"new\"".into(),
    };
    say(one.status.as_mut().unwrap(), made, at(10_000));
    assert_eq!(
        look(&mut one, &begun, at(10_000)),
        is("True", "NewReplicaSetCreated")
    );
    let spec = one.spec.clone().unwrap();
    let bounds = Bounds::of(&spec);
    let again = |one: &Deployment, now| {
        looked_at_again(one, &spec, &bounds, one.status.as_ref().unwrap(), now)
    };
    assert_eq!(again(&one, at(10_020)), Some(Duration::from_secs(41)));
    assert_eq!(
        look(&mut one, &begun, at(10_060)),
        is("True", "NewReplicaSetCreated")
    );
    assert_eq!(
        look(&mut one, &begun, at(10_061)),
        is("False", "ProgressDeadlineExceeded")
    );
    assert_eq!(again(&one, at(10_062)), None);
    let message = condition(one.status.as_ref().unwrap(), PROGRESSING).unwrap();
    assert_eq!(
        message.message.as_deref(),
        Some("ReplicaSet \"new\" has timed out progressing.")
    );
    // one more that is ready is progress again
    let better = [
        begun[0].clone(),
        set(
            "new",
            2,
            json!({"replicas": 2, "readyReplicas": 1, "availableReplicas": 1}),
        ),
    ];
    assert_eq!(
        look(&mut one, &better, at(20_000)),
        is("True", "ReplicaSetUpdated")
    );
    assert_eq!(again(&one, at(20_000)), Some(Duration::from_secs(61)));
}

#[test]
fn without_a_deadline_nothing_is_said_of_progress() {
    for deadline in [None, Some(i32::MAX)] {
        let mut one = deployment(2, deadline);
        assert_eq!(
            look(&mut one, &[set("a", 2, json!({"replicas": 2}))], at(0)),
            is("", "")
        );
        let mut status = DeploymentStatus::default();
        let mut spec = one.spec.unwrap();
        spec.paused = Some(true);
        pause(&mut status, &spec, at(0));
        assert_eq!(status, DeploymentStatus::default());
    }
}

#[test]
fn while_it_is_paused_no_progress_is_expected() {
    let mut spec = deployment(2, Some(60)).spec.unwrap();
    let mut status = DeploymentStatus::default();
    pause(&mut status, &spec, at(0));
    assert_eq!(reason(&status, PROGRESSING), None);
    spec.paused = Some(true);
    pause(&mut status, &spec, at(0));
    assert_eq!(reason(&status, PROGRESSING), Some(PAUSED));
    let paused = status.clone();
    pause(&mut status, &spec, at(9999));
    assert_eq!(status, paused);
    spec.paused = None;
    pause(&mut status, &spec, at(10_000));
    assert_eq!(reason(&status, PROGRESSING), Some("DeploymentResumed"));
    assert!(!is_late(&status, Duration::from_secs(60), at(10_060)));
    assert!(is_late(&status, Duration::from_secs(60), at(10_061)));
}

#[test]
fn what_its_replica_sets_fail_at_is_told() {
    let failed = json!({"replicas": 0, "conditions": [
        {"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": "exceeded quota"},
    ]});
    let mut one = deployment(2, Some(60));
    look(&mut one, &[set("a", 2, failed)], at(0));
    let status = one.status.clone().unwrap();
    assert_eq!(reason(&status, REPLICA_FAILURE), Some("FailedCreate"));
    look(&mut one, &[set("a", 2, json!({"replicas": 2}))], at(1));
    assert_eq!(
        condition(one.status.as_ref().unwrap(), REPLICA_FAILURE),
        None
    );
}
