use serde_json::Value;

use super::{
    meta::{changed, labels, namespaced, selector},
    pod::template,
};
use crate::{
    cron,
    field::{Errors, Path, same},
    kind::Invalid,
    name::dns_subdomain,
    read::{flag, items, map, some, text},
    selector::selects,
};

const SPEC: Path = Path::root("spec");

/// Jobs are named after their CronJob with 11 characters more.
const CRON_JOB_NAME: usize = 52;

/// Of an indexed job: its status lists what is done.
const INDEXED_PARALLELISM: i64 = 100_000;

pub(crate) fn job(object: &Value) -> Vec<Invalid> {
    let mut errors = namespaced(object, dns_subdomain);
    let null = &Value::Null;
    let spec = object.get("spec").unwrap_or(null);
    job_spec(spec, &SPEC, &mut errors);
    let path = SPEC.field("selector");
    match some(spec, "/selector") {
        None => errors.required(&path, ""),
        Some(value) => {
            selector(value, &path, &mut errors);
            let labels = map(spec, "/template/metadata/labels");
            if errors.is_empty() && !selects(value, labels) {
                errors.invalid(
                    &SPEC.field("template").field("metadata").field("labels"),
                    spec.pointer("/template/metadata/labels").unwrap_or(null),
                    "`selector` does not match template `labels`",
                );
            }
        }
    }
    errors.into_vec()
}

fn job_spec(spec: &Value, path: &Path, errors: &mut Errors) {
    for name in [
        "parallelism",
        "completions",
        "activeDeadlineSeconds",
        "backoffLimit",
        "ttlSecondsAfterFinished",
        "backoffLimitPerIndex",
        "maxFailedIndexes",
    ] {
        errors.not_negative(&path.field(name), spec.get(name));
    }
    let mode = text(spec, "/completionMode");
    errors.maybe_one_of(
        &path.field("completionMode"),
        mode,
        &["Indexed", "NonIndexed"],
    );
    if mode == "Indexed" {
        if some(spec, "/completions").is_none() {
            errors.required(
                &path.field("completions"),
                "when completion mode is Indexed",
            );
        }
        if let Some(parallelism) = some(spec, "/parallelism")
            && parallelism
                .as_i64()
                .is_some_and(|count| count > INDEXED_PARALLELISM)
        {
            errors.invalid(
                &path.field("parallelism"),
                parallelism,
                &format!("must be less than or equal to {INDEXED_PARALLELISM} when completion mode is Indexed"),
            );
        }
    } else if let Some(limit) = some(spec, "/backoffLimitPerIndex") {
        errors.invalid(
            &path.field("backoffLimitPerIndex"),
            limit,
            "requires indexed completion mode",
        );
    }
    errors.maybe_one_of(
        &path.field("podReplacementPolicy"),
        text(spec, "/podReplacementPolicy"),
        &["Failed", "TerminatingOrFailed"],
    );
    template(
        spec.get("template").unwrap_or(&Value::Null),
        &path.field("template"),
        errors,
    );
    let policy = text(spec, "/template/spec/restartPolicy");
    let at = path.field("template");
    let at = at.field("spec");
    let at = at.field("restartPolicy");
    match policy {
        // Upstream asks for one of the two, as it fills in the third by itself.
        "" | "Always" => errors.required(&at, "valid values: \"OnFailure\", \"Never\""),
        "OnFailure" | "Never" => {}
        other => errors.not_supported(&at, other, &["Never", "OnFailure"]),
    }
    failure_policy(spec, policy, path, errors);
}

/// So many rules a policy may have.
const RULES: usize = 20;

fn failure_policy(spec: &Value, restart: &str, path: &Path, errors: &mut Errors) {
    if some(spec, "/podFailurePolicy").is_none() {
        return;
    }
    let path = path.field("podFailurePolicy");
    if restart == "OnFailure" {
        errors.invalid_text(
            &path,
            restart,
            "only \"Never\" is supported when podFailurePolicy is specified",
        );
    }
    let rules = items(spec, "/podFailurePolicy/rules");
    let list = path.field("rules");
    if rules.len() > RULES {
        errors.too_many(&list, rules.len(), RULES);
    }
    for (at, rule) in rules.iter().enumerate() {
        let path = list.index(at);
        errors.one_of(
            &path.field("action"),
            text(rule, "/action"),
            &["Count", "FailIndex", "FailJob", "Ignore"],
        );
        let codes = some(rule, "/onExitCodes");
        let conditions = items(rule, "/onPodConditions");
        match (codes, conditions.is_empty()) {
            (Some(_), false) => errors.invalid_text(
                &path,
                "",
                "specifying both OnExitCodes and OnPodConditions is not supported",
            ),
            (None, true) => errors.invalid_text(
                &path,
                "",
                "specifying one of OnExitCodes and OnPodConditions is required",
            ),
            _ => {}
        }
        if let Some(codes) = codes {
            let path = path.field("onExitCodes");
            errors.one_of(
                &path.field("operator"),
                text(codes, "/operator"),
                &["In", "NotIn"],
            );
            if items(codes, "/values").is_empty() {
                errors.invalid(
                    &path.field("values"),
                    &Value::Array(Vec::new()),
                    "at least one value is required",
                );
            }
        }
    }
}

/// The job's template may change while it is suspended and has not begun.
pub(crate) fn job_update(new: &Value, old: &Value) -> Vec<Invalid> {
    let mut errors = changed(new, old);
    let at =
        |object: &Value, name: &str| object.get("spec").and_then(|spec| spec.get(name)).cloned();
    let indexed = text(new, "/spec/completionMode") == "Indexed";
    // An indexed job may grow and shrink, if both numbers are one.
    let elastic = indexed && at(new, "completions") == at(new, "parallelism");
    for name in [
        "completions",
        "selector",
        "completionMode",
        "podFailurePolicy",
        "backoffLimitPerIndex",
        "managedBy",
        "successPolicy",
        "manualSelector",
    ] {
        if name == "completions" && elastic {
            continue;
        }
        errors.immutable(
            &SPEC.field(name),
            at(new, name).as_ref(),
            at(old, name).as_ref(),
        );
    }
    let not_begun = flag(old, "/spec/suspend") && some(old, "/status/startTime").is_none();
    let (now, mut before) = (at(new, "template"), at(old, "template"));
    if not_begun && let (Some(now), Some(before)) = (&now, &mut before) {
        for pointer in [
            ("/spec", "nodeSelector"),
            ("/spec", "tolerations"),
            ("/spec", "affinity"),
            ("/spec", "schedulingGates"),
            ("/metadata", "labels"),
            ("/metadata", "annotations"),
        ] {
            let value = now
                .pointer(pointer.0)
                .and_then(|object| object.get(pointer.1))
                .cloned();
            if let Some(object) = before.pointer_mut(pointer.0).and_then(Value::as_object_mut) {
                match value {
                    Some(value) => object.insert(pointer.1.to_owned(), value),
                    None => object.remove(pointer.1),
                };
            }
        }
    }
    errors.immutable(&SPEC.field("template"), now.as_ref(), before.as_ref());
    errors.into_vec()
}

pub(crate) fn cron_job(object: &Value) -> Vec<Invalid> {
    let mut errors = namespaced(object, dns_subdomain);
    let null = &Value::Null;
    if text(object, "/metadata/name").len() > CRON_JOB_NAME {
        errors.invalid_text(
            &Path::root("metadata").field("name"),
            text(object, "/metadata/name"),
            &format!("must be no more than {CRON_JOB_NAME} characters"),
        );
    }
    match text(object, "/spec/schedule") {
        "" => errors.required(&SPEC.field("schedule"), ""),
        schedule => {
            if let Some(wrong) = cron::wrong(schedule) {
                errors.invalid_text(&SPEC.field("schedule"), schedule, &wrong);
            }
        }
    }
    errors.not_negative(
        &SPEC.field("startingDeadlineSeconds"),
        object.pointer("/spec/startingDeadlineSeconds"),
    );
    for name in ["successfulJobsHistoryLimit", "failedJobsHistoryLimit"] {
        errors.not_negative(
            &SPEC.field(name),
            object.get("spec").and_then(|spec| spec.get(name)),
        );
    }
    errors.one_of(
        &SPEC.field("concurrencyPolicy"),
        text(object, "/spec/concurrencyPolicy"),
        &["Allow", "Forbid", "Replace"],
    );
    time_zone(object, &mut errors);
    let job = object.pointer("/spec/jobTemplate").unwrap_or(null);
    let path = SPEC.field("jobTemplate");
    labels(
        map(job, "/metadata/labels"),
        &path.field("metadata").field("labels"),
        &mut errors,
    );
    let spec = job.get("spec").unwrap_or(null);
    job_spec(spec, &path.field("spec"), &mut errors);
    if flag(spec, "/manualSelector") {
        errors.not_supported(
            &path.field("spec").field("manualSelector"),
            "true",
            &["nil", "false"],
        );
    }
    if let Some(selector) = some(spec, "/selector")
        && !same(selector, &Value::Null)
    {
        errors.invalid(
            &path.field("spec").field("selector"),
            selector,
            "`selector` will be auto-generated",
        );
    }
    errors.into_vec()
}

fn time_zone(object: &Value, errors: &mut Errors) {
    let Some(zone) = some(object, "/spec/timeZone").and_then(Value::as_str) else {
        return;
    };
    let path = &SPEC.field("timeZone");
    // Which names are zones is for whoever keeps the data of them; these can't be any.
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'/' | b'_' | b'-' | b'+');
    if zone.is_empty() {
        errors.invalid_text(path, zone, "timeZone must be nil or non-empty string");
    } else if zone.eq_ignore_ascii_case("local") {
        errors.invalid_text(
            path,
            zone,
            "timeZone must be an explicit time zone as defined in https://www.iana.org/time-zones",
        );
    } else if zone.starts_with('/') || !zone.bytes().all(allowed) {
        errors.invalid_text(path, zone, &format!("unknown time zone {zone}"));
    }
}
