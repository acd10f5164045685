use serde_json::Value;

use super::{
    AGE, NAME, column, human_duration,
    pod::{names, or_none},
    since, wide,
};
use crate::{
    autoscaler,
    kind::{Cell, Column},
    quantity::shown,
    read::{condition, items, map, number, some, text},
    selector::{labels_shown, selector_shown},
    time::seconds,
};

/// The containers of spec.template, which most of these show.
const CONTAINERS: Column = wide(
    "Containers",
    "string",
    Cell::Of(|o, _| names(o, "/spec/template/spec/containers", "/name")),
);
const IMAGES: Column = wide(
    "Images",
    "string",
    Cell::Of(|o, _| names(o, "/spec/template/spec/containers", "/image")),
);
const SELECTOR: Column = wide(
    "Selector",
    "string",
    Cell::Of(|o, _| selector_shown(o.pointer("/spec/selector")).into()),
);

/// A number; 0 where there is none. Of some, upstream's column says that it is a string.
macro_rules! count {
    ($name:literal, $pointer:literal) => {
        count!($name, $pointer, "integer")
    };
    ($name:literal, $pointer:literal, $format:literal) => {
        column($name, $format, Cell::Of(|o, _| number(o, $pointer).into()))
    };
}
pub(super) use count;

pub(crate) const REPLICATION_CONTROLLER: &[Column] = &[
    NAME,
    count!("Desired", "/spec/replicas"),
    count!("Current", "/status/replicas"),
    count!("Ready", "/status/readyReplicas"),
    AGE,
    CONTAINERS,
    IMAGES,
    wide(
        "Selector",
        "string",
        Cell::Of(|o, _| labels_shown(map(o, "/spec/selector")).into()),
    ),
];

pub(crate) const REPLICA_SET: &[Column] = &[
    NAME,
    count!("Desired", "/spec/replicas"),
    count!("Current", "/status/replicas"),
    count!("Ready", "/status/readyReplicas"),
    AGE,
    CONTAINERS,
    IMAGES,
    SELECTOR,
];

pub(crate) const DEPLOYMENT: &[Column] = &[
    NAME,
    column("Ready", "string", Cell::Of(ready_of_desired)),
    count!("Up-to-date", "/status/updatedReplicas", "string"),
    count!("Available", "/status/availableReplicas", "string"),
    AGE,
    CONTAINERS,
    IMAGES,
    SELECTOR,
];

pub(crate) const STATEFUL_SET: &[Column] = &[
    NAME,
    column("Ready", "string", Cell::Of(ready_of_desired)),
    AGE,
    CONTAINERS,
    IMAGES,
];

pub(crate) const DAEMON_SET: &[Column] = &[
    NAME,
    count!("Desired", "/status/desiredNumberScheduled"),
    count!("Current", "/status/currentNumberScheduled"),
    count!("Ready", "/status/numberReady"),
    count!("Up-to-date", "/status/updatedNumberScheduled"),
    count!("Available", "/status/numberAvailable"),
    column(
        "Node Selector",
        "string",
        Cell::Of(|o, _| labels_shown(map(o, "/spec/template/spec/nodeSelector")).into()),
    ),
    AGE,
    CONTAINERS,
    IMAGES,
    SELECTOR,
];

fn ready_of_desired(object: &Value, _: i64) -> Value {
    let (ready, desired) = (
        number(object, "/status/readyReplicas"),
        number(object, "/spec/replicas"),
    );
    format!("{ready}/{desired}").into()
}

pub(crate) const CONTROLLER_REVISION: &[Column] = &[
    NAME,
    column("Controller", "string", Cell::Of(controller)),
    count!("Revision", "/revision", "string"),
    AGE,
];

fn controller(object: &Value, _: i64) -> Value {
    let owners = items(object, "/metadata/ownerReferences");
    let Some(owner) = owners
        .iter()
        .find(|owner| owner.get("controller") == Some(&Value::Bool(true)))
    else {
        return "<none>".into();
    };
    let kind = text(owner, "/kind").to_lowercase();
    let name = text(owner, "/name");
    match text(owner, "/apiVersion").split_once('/') {
        Some((group, _)) => format!("{kind}.{}/{name}", group.to_lowercase()).into(),
        None => format!("{kind}/{name}").into(),
    }
}

pub(crate) const JOB: &[Column] = &[
    NAME,
    column("Status", "string", Cell::Of(job_status)),
    column("Completions", "string", Cell::Of(completions)),
    column("Duration", "string", Cell::Of(job_duration)),
    AGE,
    CONTAINERS,
    IMAGES,
    SELECTOR,
];

fn job_status(job: &Value, _: i64) -> Value {
    let conditions = items(job, "/status/conditions");
    for (name, shown) in [("Complete", "Complete"), ("Failed", "Failed")] {
        if condition(conditions, name) {
            return shown.into();
        }
    }
    if some(job, "/metadata/deletionTimestamp").is_some() {
        return "Terminating".into();
    }
    for name in ["Suspended", "FailureTarget", "SuccessCriteriaMet"] {
        if condition(conditions, name) {
            return name.into();
        }
    }
    "Running".into()
}

fn completions(job: &Value, _: i64) -> Value {
    let succeeded = number(job, "/status/succeeded");
    match (
        some(job, "/spec/completions").and_then(Value::as_i64),
        number(job, "/spec/parallelism"),
    ) {
        (Some(completions), _) => format!("{succeeded}/{completions}"),
        (None, parallelism @ 2..) => format!("{succeeded}/1 of {parallelism}"),
        (None, _) => format!("{succeeded}/1"),
    }
    .into()
}

fn job_duration(job: &Value, now: i64) -> Value {
    let Some(start) = seconds(text(job, "/status/startTime")) else {
        return "".into();
    };
    let end = seconds(text(job, "/status/completionTime")).unwrap_or(now);
    human_duration(end.saturating_sub(start)).into()
}

pub(crate) const CRON_JOB: &[Column] = &[
    NAME,
    column(
        "Schedule",
        "string",
        Cell::Of(|o, _| text(o, "/spec/schedule").into()),
    ),
    column(
        "Timezone",
        "string",
        Cell::Of(|o, _| or_none(text(o, "/spec/timeZone"))),
    ),
    column("Suspend", "boolean", Cell::Of(suspend)),
    column(
        "Active",
        "integer",
        Cell::Of(|o, _| items(o, "/status/active").len().into()),
    ),
    column("Last Schedule", "string", Cell::Of(last_schedule)),
    AGE,
    wide(
        "Containers",
        "string",
        Cell::Of(|o, _| {
            names(
                o,
                "/spec/jobTemplate/spec/template/spec/containers",
                "/name",
            )
        }),
    ),
    wide(
        "Images",
        "string",
        Cell::Of(|o, _| {
            names(
                o,
                "/spec/jobTemplate/spec/template/spec/containers",
                "/image",
            )
        }),
    ),
    wide(
        "Selector",
        "string",
        Cell::Of(|o, _| selector_shown(some(o, "/spec/jobTemplate/spec/selector")).into()),
    ),
];

fn suspend(cron_job: &Value, _: i64) -> Value {
    match cron_job.pointer("/spec/suspend") {
        Some(Value::Bool(true)) => "True",
        Some(Value::Bool(false)) => "False",
        _ => "<unset>",
    }
    .into()
}

fn last_schedule(cron_job: &Value, now: i64) -> Value {
    match some(cron_job, "/status/lastScheduleTime") {
        Some(time) => since(Some(time), now).into(),
        None => "<none>".into(),
    }
}

/// Of autoscaling/v1 Scale, the subresource.
pub const SCALE: &[Column] = &[
    NAME,
    count!("Desired", "/spec/replicas"),
    count!("Available", "/status/replicas"),
    AGE,
];

pub(crate) const HORIZONTAL_POD_AUTOSCALER: &[Column] = &[
    NAME,
    column(
        "Reference",
        "string",
        Cell::Of(|o, _| {
            format!(
                "{}/{}",
                text(o, "/spec/scaleTargetRef/kind"),
                text(o, "/spec/scaleTargetRef/name")
            )
            .into()
        }),
    ),
    column("Targets", "string", Cell::Of(targets)),
    column("MinPods", "string", Cell::Of(min_pods)),
    count!("MaxPods", "/spec/maxReplicas", "string"),
    count!("Replicas", "/status/currentReplicas", "string"),
    AGE,
];

fn min_pods(hpa: &Value, _: i64) -> Value {
    match some(hpa, "/spec/minReplicas") {
        Some(min) => min.to_string(),
        None => "<unset>".to_owned(),
    }
    .into()
}

/// More than these are counted only.
const TARGETS_SHOWN: usize = 2;

fn targets(hpa: &Value, _: i64) -> Value {
    if text(hpa, "/apiVersion") == "autoscaling/v1" {
        return targets(&autoscaler::as_v2(hpa), 0);
    }
    let specs = items(hpa, "/spec/metrics");
    if specs.is_empty() {
        return "<none>".into();
    }
    let statuses = items(hpa, "/status/currentMetrics");
    let shown: Vec<_> = specs
        .iter()
        .take(TARGETS_SHOWN)
        .enumerate()
        .map(|(at, spec)| target(spec, statuses.get(at).unwrap_or(&Value::Null)))
        .collect();
    let shown = shown.join(", ");
    match specs.len() - specs.len().min(TARGETS_SHOWN) {
        0 => shown,
        more => format!("{shown} + {more} more..."),
    }
    .into()
}

fn target(spec: &Value, status: &Value) -> String {
    const UNKNOWN: &str = "<unknown>";
    let (field, label) = match text(spec, "/type") {
        "Resource" => ("resource", "resource"),
        "ContainerResource" => ("containerResource", "resource"),
        "Pods" => ("pods", "pods"),
        "Object" => ("object", "object"),
        "External" => ("external", "object"),
        _ => return "<unknown type>".to_owned(),
    };
    let null = &Value::Null;
    let (spec, status) = (
        spec.get(field).unwrap_or(null),
        status.get(field).unwrap_or(null),
    );
    let quantity = |value: &Value, pointer: &str| some(value, pointer).map(|q| shown(Some(q)));
    let average = quantity(spec, "/target/averageValue");
    let current = quantity(status, "/current/averageValue").unwrap_or(UNKNOWN.to_owned());
    match (label, average) {
        ("resource", None) => {
            let percent = |value: &Value, pointer: &str, none: &str| match some(value, pointer) {
                Some(percent) => format!("{percent}%"),
                None => none.to_owned(),
            };
            let name = match text(spec, "/name") {
                "" => String::new(),
                name => format!("{name}: "),
            };
            format!(
                "{name}{}/{}",
                percent(status, "/current/averageUtilization", UNKNOWN),
                percent(spec, "/target/averageUtilization", "<auto>")
            )
        }
        ("resource", Some(average)) => {
            let name = match text(spec, "/name") {
                "" => String::new(),
                name => format!("{name}: "),
            };
            format!("{name}{current}/{average}")
        }
        ("pods", average) => format!("{current}/{}", average.unwrap_or("0".to_owned())),
        (_, Some(average)) => format!("{current}/{average} (avg)"),
        (_, None) => format!(
            "{}/{}",
            quantity(status, "/current/value").unwrap_or(UNKNOWN.to_owned()),
            quantity(spec, "/target/value").unwrap_or("0".to_owned())
        ),
    }
}
