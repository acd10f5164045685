use k8s_openapi::{
    api::core::v1::ResourceRequirements, apimachinery::pkg::api::resource::Quantity,
};

use super::*;
use crate::pod::tests::pod;

const SECOND: i64 = 1_000_000_000;
const NOW: i64 = 1_000_000 * SECOND;

const ONE: &str = "  containers: [{name: a, image: x}]";
const INITS: &str = "  initContainers: [{name: i, image: x}, {name: s, image: x, restartPolicy: Always}, {name: j, image: x}]\n  \
                     containers: [{name: a, image: x}, {name: b, image: x}]";

/// A pod as it is, in few words: `s0` a ready sandbox (attempt 0), `-s0` a dead one, `a:run`, `a:0` (exited with 0), `a:new` (created), `a:?`;
/// of two with the same name the later is the next attempt. Containers are of the last sandbox before them.
fn observed(words: &str) -> Observed {
    let mut observed = Observed::default();
    for (at, word) in words.split_whitespace().enumerate() {
        match word.split_once(':') {
            None => {
                let ready = !word.starts_with('-');
                let name = word.trim_start_matches('-');
                observed.sandboxes.push(Sandbox {
                    id: name.into(),
                    attempt: name[1..].parse().unwrap(),
                    ready,
                    created: at as i64,
                    ips: Vec::new(),
                    ids: None,
                });
            }
            Some((name, state)) => {
                let attempt = observed
                    .containers
                    .iter()
                    .filter(|it| it.name == name)
                    .count();
                observed.containers.push(Seen {
                    id: format!("{name}{attempt}"),
                    name: name.into(),
                    sandbox: observed.sandboxes.last().unwrap().id.clone(),
                    attempt: attempt as u32,
                    state: match state {
                        "run" => State::Running,
                        "new" => State::Created,
                        "?" => State::Unknown,
                        _ => State::Exited,
                    },
                    exit_code: state.parse().unwrap_or(0),
                    finished: NOW - SECOND,
                    created: at as i64,
                    ..Seen::default()
                });
            }
        }
    }
    observed.sort();
    observed
}

fn words(plan: &Plan) -> String {
    let mut words: Vec<String> = plan
        .steps
        .iter()
        .map(|step| match step {
            Step::End => "end".into(),
            Step::MakeSandbox { attempt } => format!("sandbox{attempt}"),
            Step::Kill { id, .. } => format!("kill:{id}"),
            Step::Restart { id, .. } => format!("restart:{id}"),
            Step::Resize { ids } => format!("resize:{}", ids.join(",")),
            Step::Start { name, attempt } => format!("start:{name}{attempt}"),
        })
        .collect();
    if plan.over.is_some() {
        words.push("over".into());
    }
    words.join(" ")
}

fn planned(spec: &str, is: &str) -> Plan {
    let (backoffs, health) = (Backoffs::default(), Health::default());
    let around = Around {
        now: NOW,
        backoffs: &backoffs,
        health: &health,
        failures: &BTreeMap::new(),
        began: Some(NOW - 100 * SECOND),
        over: None,
        had_containers: false,
    };
    plan(&pod(spec), &observed(is), &around)
}

#[test]
fn what_comes_next_for_a_pod() {
    let never = format!("{ONE}\n  restartPolicy: Never");
    let on_failure =
        "  containers: [{name: a, image: x}, {name: b, image: x}]\n  restartPolicy: OnFailure";
    let inits_never = format!("{INITS}\n  restartPolicy: Never");
    let ephemeral = format!("{ONE}\n  ephemeralContainers: [{{name: e, image: x}}]");
    for (spec, is, then) in [
        (ONE, "", "sandbox0"),
        (ONE, "s0", "start:a0"),
        (ONE, "s0 a:run", ""),
        (ONE, "s0 a:new", "start:a0"),
        (ONE, "s0 a:?", "kill:a0"),
        (ONE, "s0 a:0", "start:a1"),
        (ONE, "s0 a:1 a:run", ""),
        (ONE, "s0 a:1 a:1", "start:a2"),
        // the sandbox died, and what was in it
        (ONE, "-s0 a:137", "end sandbox1"),
        (ONE, "-s0 a:137 s1", "start:a1"),
        // two that are up: somebody else's doing
        (ONE, "s0 a:run s1", "end sandbox2"),
        (&never, "s0 a:0", "end over"),
        (&never, "-s0 a:0", "over"),
        (&never, "s0 a:1", "end over"),
        (&never, "-s0 a:run", "end over"),
        (&never, "-s0", "end sandbox1"),
        (on_failure, "s0 a:0 b:run", ""),
        (on_failure, "s0 a:0 b:2", "start:b1"),
        (on_failure, "s0 a:0 b:0", "end over"),
        // what has succeeded is not run again in the next sandbox
        (on_failure, "-s0 a:0 b:137 s1", "start:b1"),
        // init containers, one after the other
        (INITS, "s0", "start:i0"),
        (INITS, "s0 i:run", ""),
        (INITS, "s0 i:1", "start:i1"),
        (INITS, "s0 i:0", "start:s0"),
        (INITS, "s0 i:0 s:run", "start:j0"),
        (INITS, "s0 i:0 s:run j:0", "start:a0 start:b0"),
        // a sidecar that ends is started again and holds nothing up once it was there, but what comes next to start
        (INITS, "s0 i:0 s:1", "start:s1"),
        (INITS, "s0 i:0 s:run j:0 a:run", "start:b0"),
        (INITS, "s0 i:0 s:1 j:0 a:run b:run", "start:s1"),
        // done is done, also where their traces are gone
        (INITS, "s0 s:run a:run b:run", ""),
        (INITS, "s0 s:run a:1 b:run", "start:a1"),
        // a new sandbox begins from the first
        (INITS, "-s0 i:0 s:137 j:0 a:137 b:137 s1", "start:i1"),
        (
            INITS,
            "-s0 i:0 s:137 j:0 a:137 b:137 s1 i:0 s:run j:0",
            "start:a1 start:b1",
        ),
        (&inits_never, "s0 i:3", "end over"),
        (&inits_never, "s0 i:0 s:run j:0 a:0 b:1", "end over"),
        (&inits_never, "s0 i:0 s:run j:0 a:0 b:run", ""),
        (&inits_never, "s0 i:0 s:1 j:0 a:0 b:run", "start:s1"),
        (&ephemeral, "s0 a:run", "start:e0"),
        (&ephemeral, "s0 a:run e:1", ""),
    ] {
        assert_eq!(words(&planned(spec, is)), then, "{spec}\n{is}");
    }
}

#[test]
fn one_that_has_not_what_it_was_given_is_changed_or_started_again() {
    let spec = "  containers:\n  - {name: a, image: x, resources: {limits: {cpu: 1, memory: 20Mi}}, resizePolicy: [{resourceName: memory, restartPolicy: RestartContainer}]}\n  \
                - {name: b, image: x, resources: {limits: {cpu: 1}}}\n  restartPolicy: OnFailure";
    let pod = pod(spec);
    let (backoffs, health) = (Backoffs::default(), Health::default());
    let steps = |is: &str, a: &str, b: &str, restarting: bool, failures| {
        let mut observed = observed(is);
        for seen in &mut observed.containers {
            let text = if seen.name == "a" { a } else { b };
            let mut resources = ResourceRequirements::default();
            let limits = text.split(',').filter_map(|part| part.split_once('='));
            let limits = limits.map(|(name, amount)| (name.into(), Quantity(amount.into())));
            resources.limits = Some(limits.collect());
            // who says nothing else asks for what its limits are
            resources.requests.clone_from(&resources.limits);
            seen.resources = Some(resources);
            seen.restarting = restarting && seen.name == "a";
        }
        let around = Around {
            now: NOW,
            backoffs: &backoffs,
            health: &health,
            failures: &failures,
            began: Some(NOW - 100 * SECOND),
            over: None,
            had_containers: true,
        };
        let plan = plan(&pod, &observed, &around);
        (words(&plan), plan.wait_until)
    };
    let none = BTreeMap::new;
    let (same, run) = (("cpu=1000m,memory=20Mi", "cpu=1"), "s0 a:run b:run");
    assert_eq!(steps(run, same.0, same.1, false, none()).0, "");
    let both = steps(run, "cpu=2,memory=20Mi", "cpu=2", false, none());
    assert_eq!(both.0, "resize:a0,b0");
    let one = steps(run, "cpu=1,memory=10Mi", "cpu=2", false, none());
    assert_eq!(one.0, "restart:a0 resize:b0");
    // what could not be done is tried again at its time
    let failed = BTreeMap::from([(
        RESIZE.to_owned(),
        Failure {
            reason: "Error",
            message: String::new(),
            retry_at: NOW + SECOND,
        },
    )]);
    let waits = steps(run, same.0, "cpu=2", false, failed);
    assert_eq!((waits.0.as_str(), waits.1), ("", Some(NOW + SECOND)));
    // its end was not its own doing: it begins again, and the pod is not over
    let ended = "s0 a:0 b:run";
    assert_eq!(steps(ended, same.0, same.1, false, none()).0, "");
    assert_eq!(steps(ended, same.0, same.1, true, none()).0, "start:a1");
    assert_eq!(
        steps("s0 a:0 b:0", same.0, same.1, true, none()).0,
        "start:a1"
    );
}

#[test]
fn one_that_fails_again_waits_for_its_time_and_others_do_not() {
    let pod = pod("  containers: [{name: a, image: x}, {name: b, image: x}]");
    let observed = observed("s0 a:1 a:1 b:1");
    let (mut backoffs, health) = (Backoffs::default(), Health::default());
    backoffs.tried("a", NOW - 2 * SECOND, NOW - 2 * SECOND);
    let at = |now| {
        plan(
            &pod,
            &observed,
            &Around {
                now,
                backoffs: &backoffs,
                health: &health,
                failures: &BTreeMap::new(),
                began: None,
                over: None,
                had_containers: false,
            },
        )
    };
    let first = at(NOW);
    assert_eq!(words(&first), "start:b1");
    assert_eq!(
        first.wait_until,
        Some(NOW + 9 * SECOND),
        "10 s after its end a second ago"
    );
    let (reason, message) = &first.waiting["a"];
    assert_eq!(reason, "CrashLoopBackOff");
    assert_eq!(
        message,
        "back-off 10s restarting failed container=a pod=web_default(uid-1)"
    );
    assert_eq!(words(&at(NOW + 9 * SECOND)), "start:a2 start:b1");
}

#[test]
fn what_can_not_be_started_waits_with_its_reason() {
    let (backoffs, health) = (Backoffs::default(), Health::default());
    let failure = |reason| Failure {
        reason,
        message: "why".into(),
        retry_at: NOW + 5 * SECOND,
    };
    for (name, reason, is, shown) in [
        ("a", "ErrImagePull", "s0", "ImagePullBackOff"),
        (
            "a",
            "CreateContainerConfigError",
            "s0",
            "CreateContainerConfigError",
        ),
        (SANDBOX, "FailedCreatePodSandBox", "", "ContainerCreating"),
    ] {
        let failures = BTreeMap::from([(name.to_owned(), failure(reason))]);
        let at = |now| {
            let around = Around {
                now,
                backoffs: &backoffs,
                health: &health,
                failures: &failures,
                began: None,
                over: None,
                had_containers: false,
            };
            plan(&pod(ONE), &observed(is), &around)
        };
        let waits = at(NOW);
        assert_eq!(
            (words(&waits), waits.wait_until),
            (String::new(), Some(NOW + 5 * SECOND))
        );
        assert_eq!(waits.waiting["a"], (shown.to_owned(), "why".to_owned()));
        assert!(!at(NOW + 5 * SECOND).steps.is_empty());
    }
}

#[test]
fn a_pod_ends_at_its_deadline_and_is_looked_at_again_then() {
    let spec = |seconds| format!("{ONE}\n  activeDeadlineSeconds: {seconds}");
    let before = planned(&spec(160), "s0 a:run");
    assert_eq!(
        (words(&before), before.wait_until),
        (String::new(), Some(NOW + 60 * SECOND))
    );
    let after = planned(&spec(100), "s0 a:run");
    assert_eq!(
        (words(&after), after.over),
        ("end over".into(), Some(Over::Deadline))
    );
    assert_eq!(words(&planned(&spec(100), "-s0 a:137")), "over");
}

#[test]
fn what_is_unhealthy_is_killed_and_another_definition_replaces_it() {
    let backoffs = Backoffs::default();
    let mut health = Health::default();
    health.condemn("a0", "failed liveness probe, will be restarted", Some(3));
    let around = Around {
        now: NOW,
        backoffs: &backoffs,
        health: &health,
        failures: &BTreeMap::new(),
        began: None,
        over: None,
        had_containers: false,
    };
    let plan_of = |is: &Observed| plan(&pod(ONE), is, &around);
    assert_eq!(
        plan_of(&observed("s0 a:run")).steps,
        [Step::Kill {
            id: "a0".into(),
            name: "a".into(),
            why: "failed liveness probe, will be restarted".into(),
            grace_seconds: Some(3),
        }]
    );
    // the next one is not the condemned one
    assert_eq!(words(&plan_of(&observed("s0 a:1 a:run"))), "");
    let mut other = observed("s0 a:1 a:run");
    other.containers[0].hash = "of another image".into();
    assert_eq!(words(&plan_of(&other)), "kill:a1");
}

#[test]
fn what_is_over_stays_so_whatever_the_clock_and_the_runtime_say() {
    let (backoffs, health) = (Backoffs::default(), Health::default());
    let of = |spec: &str, is: &str, over| {
        let around = Around {
            now: NOW,
            backoffs: &backoffs,
            health: &health,
            failures: &BTreeMap::new(),
            began: Some(NOW - 100 * SECOND),
            over,
            had_containers: false,
        };
        let plan = plan(&pod(spec), &observed(is), &around);
        (words(&plan), plan.over)
    };
    // one that has succeeded does not fail by a deadline that comes later
    let late = format!("{ONE}\n  restartPolicy: Never\n  activeDeadlineSeconds: 10");
    assert_eq!(
        of(&late, "-s0 a:0", None),
        ("over".into(), Some(Over::Ended))
    );
    // one that was ended by its deadline does not succeed by how it took it
    assert_eq!(
        of(&late, "-s0 a:0", Some(Over::Deadline)),
        ("over".into(), Some(Over::Deadline))
    );
    // a reboot begins nothing that was over
    assert_eq!(
        of(ONE, "", Some(Over::Deadline)),
        ("over".into(), Some(Over::Deadline))
    );
}

#[test]
fn a_pod_that_is_run_by_hand_ends_with_its_sandbox_and_another_gets_a_new_one() {
    let (backoffs, health) = (Backoffs::default(), Health::default());
    let of = |source: &'static str, is: &str, had_containers| {
        let mut pod = pod(ONE);
        pod.source = source;
        let around = Around {
            now: NOW,
            backoffs: &backoffs,
            health: &health,
            failures: &BTreeMap::new(),
            began: None,
            over: None,
            had_containers,
        };
        words(&plan(&pod, &observed(is), &around))
    };
    for (source, is, had_containers, then) in [
        // stopped by somebody else
        (RUN, "-s0 a:137", true, "over"),
        ("file", "-s0 a:137", true, "end sandbox1"),
        // removed by somebody else
        (RUN, "", true, "over"),
        ("file", "", true, "sandbox0"),
        // not there yet
        (RUN, "", false, "sandbox0"),
        (RUN, "s0 a:1", true, "start:a1"),
    ] {
        assert_eq!(of(source, is, had_containers), then, "{source} {is}");
    }
}
