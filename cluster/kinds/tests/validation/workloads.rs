use serde_json::{Value, json};

use super::{create, updated, with};

fn deployment() -> Value {
    json!({"metadata": {"name": "d"}, "spec": {
        "selector": {"matchLabels": {"a": "b"}},
        "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}},
    }})
}

#[test]
fn workloads_select_the_pods_that_they_make() {
    for (place, value, expected) in [
        (
            "/spec/replicas",
            json!(-1),
            vec!["spec.replicas: Invalid value: -1: must be greater than or equal to 0"],
        ),
        (
            "/spec/selector",
            json!(null),
            vec!["spec.selector: Required value"],
        ),
        (
            "/spec/selector",
            json!({}),
            vec!["spec.selector: Invalid value: {}: empty selector is invalid for deployment"],
        ),
        (
            "/spec/template/metadata/labels",
            json!({"a": "c"}),
            vec![
                "spec.template.metadata.labels: Invalid value: {\"a\":\"c\"}: `selector` does not match template `labels`",
            ],
        ),
        (
            "/spec/template/spec/restartPolicy",
            json!("Never"),
            vec![
                "spec.template.spec.restartPolicy: Unsupported value: \"Never\": supported values: \"Always\"",
            ],
        ),
        (
            "/spec/strategy",
            json!({"type": "Recreate", "rollingUpdate": {"maxSurge": 1}}),
            vec![
                "spec.strategy.rollingUpdate: Forbidden: may not be specified when strategy `type` is 'Recreate'",
            ],
        ),
        (
            "/spec/strategy",
            json!({"rollingUpdate": {"maxSurge": 0, "maxUnavailable": "0%"}}),
            vec![
                "spec.strategy.rollingUpdate.maxUnavailable: Invalid value: \"0%\": may not be 0 when `maxSurge` is 0",
            ],
        ),
        (
            "/spec/progressDeadlineSeconds",
            json!(0),
            vec![
                "spec.progressDeadlineSeconds: Invalid value: 0: must be greater than minReadySeconds",
            ],
        ),
        (
            "/spec/template/spec/containers",
            json!([]),
            vec!["spec.template.spec.containers: Required value"],
        ),
    ] {
        assert_eq!(
            create(
                "apps",
                "v1",
                "Deployment",
                with(&deployment(), &[(place, value)])
            ),
            expected,
            "{place}"
        );
    }
    for kind in ["Deployment", "ReplicaSet", "DaemonSet"] {
        let changes = [
            ("/spec/selector", json!({"matchLabels": {"a": "c"}})),
            ("/spec/template/metadata/labels", json!({"a": "c"})),
        ];
        assert_eq!(
            updated("apps", kind, deployment(), &changes),
            ["spec.selector: Invalid value: {\"matchLabels\":{\"a\":\"c\"}}: field is immutable"],
            "{kind}"
        );
    }
    assert_eq!(
        updated(
            "apps",
            "StatefulSet",
            deployment(),
            &[("/spec/replicas", json!(7))]
        ),
        Vec::<String>::new()
    );
    assert_eq!(
        updated(
            "apps",
            "StatefulSet",
            deployment(),
            &[("/spec/serviceName", json!("other"))]
        ),
        [
            "spec: Forbidden: updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', 'updateStrategy', \
             'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden"
        ]
    );
}

#[test]
fn claims_of_a_stateful_set_are_volumes_of_its_pods() {
    let mount = |name: &str| json!([{"name": name, "mountPath": "/d"}]);
    let mut set = deployment();
    set["spec"]["volumeClaimTemplates"] = json!([{"metadata": {"name": "data"}, "spec": {
        "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}},
    }}]);
    let mounts = "/spec/template/spec/containers/0/volumeMounts";
    let volumes = "/spec/template/spec/volumes";
    for (changes, expected) in [
        (vec![(mounts, mount("data"))], vec![]),
        (
            vec![(mounts, mount("other"))],
            vec!["spec.template.spec.containers[0].volumeMounts[0].name: Not found: \"other\""],
        ),
        (
            vec![
                (mounts, mount("other")),
                (volumes, json!([{"name": "other", "emptyDir": {}}])),
            ],
            vec![],
        ),
        // the claim takes the place of a volume of its name, whatever that was
        (
            vec![
                (mounts, mount("data")),
                (volumes, json!([{"name": "data", "secret": {}}])),
            ],
            vec![],
        ),
        // … and the controller gives these
        (
            vec![
                ("/spec/template/spec/hostname", json!("Not_a_name")),
                ("/spec/template/spec/subdomain", json!("Not_a_name")),
            ],
            vec![],
        ),
    ] {
        let set = with(&set, &changes);
        assert_eq!(
            create("apps", "v1", "StatefulSet", set),
            expected,
            "{changes:?}"
        );
    }
}

#[test]
fn jobs_end_and_their_schedules_are_ones() {
    let job = json!({"metadata": {"name": "j"}, "spec": {"template": {"spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "i"}]}}}});
    for (changes, expected) in [
        (vec![], vec![]),
        (
            vec![("/spec/template/spec/restartPolicy", json!(null))],
            vec![
                "spec.template.spec.restartPolicy: Required value: valid values: \"OnFailure\", \"Never\"",
            ],
        ),
        (
            vec![("/spec/completions", json!(-1))],
            vec!["spec.completions: Invalid value: -1: must be greater than or equal to 0"],
        ),
        (
            vec![
                ("/spec/completionMode", json!("Indexed")),
                ("/spec/parallelism", json!(1)),
            ],
            vec!["spec.completions: Required value: when completion mode is Indexed"],
        ),
    ] {
        assert_eq!(
            create("batch", "v1", "Job", with(&job, &changes)),
            expected,
            "{changes:?}"
        );
    }
    assert_eq!(
        updated(
            "batch",
            "Job",
            job.clone(),
            &[("/spec/parallelism", json!(5))]
        ),
        Vec::<String>::new()
    );
    assert_eq!(
        updated(
            "batch",
            "Job",
            job.clone(),
            &[("/spec/completions", json!(5))]
        ),
        ["spec.completions: Invalid value: 5: field is immutable"]
    );
    let image = [("/spec/template/spec/containers/0/image", json!("j"))];
    assert!(
        updated("batch", "Job", job.clone(), &image)[0]
            .starts_with("spec.template: Invalid value: {")
    );
    let suspended = with(&job, &[("/spec/suspend", json!(true))]);
    let place = [("/spec/template/spec/nodeSelector", json!({"a": "b"}))];
    assert_eq!(
        updated("batch", "Job", suspended, &place),
        Vec::<String>::new()
    );

    let cron = json!({"metadata": {"name": "c"}, "spec": {"schedule": "* * * * *", "jobTemplate": {"spec": job["spec"]}}});
    for (place, value, expected) in [
        ("/spec/schedule", json!("@hourly"), vec![]),
        (
            "/spec/schedule",
            json!(null),
            vec!["spec.schedule: Required value"],
        ),
        (
            "/spec/schedule",
            json!("* * * *"),
            vec![
                "spec.schedule: Invalid value: \"* * * *\": expected exactly 5 fields, found 4: [* * * *]",
            ],
        ),
        (
            "/spec/concurrencyPolicy",
            json!("Queue"),
            vec![
                "spec.concurrencyPolicy: Unsupported value: \"Queue\": supported values: \"Allow\", \"Forbid\", \"Replace\"",
            ],
        ),
        (
            "/spec/timeZone",
            json!("../etc/passwd"),
            vec![
                "spec.timeZone: Invalid value: \"../etc/passwd\": unknown time zone ../etc/passwd",
            ],
        ),
    ] {
        assert_eq!(
            create("batch", "v1", "CronJob", with(&cron, &[(place, value)])),
            expected,
            "{place}"
        );
    }
}
