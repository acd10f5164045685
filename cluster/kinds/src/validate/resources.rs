//! Amounts of things.

use serde_json::Value;

use crate::{
    field::{Errors, Path},
    name::qualified_name,
    quantity::Quantity,
    quota::{SUMMED, is_counted},
    read::map,
};

const NOT_A_QUANTITY: &str =
    "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'";

/// A quantity that isn't negative.
pub(super) fn quantity(value: &Value, path: &Path, errors: &mut Errors) -> Option<Quantity> {
    let Some(quantity) = Quantity::of(value) else {
        errors.invalid(path, value, NOT_A_QUANTITY);
        return None;
    };
    if quantity.nano < 0 {
        errors.invalid(path, value, "must be greater than or equal to 0");
    }
    Some(quantity)
}

fn is_native(name: &str) -> bool {
    !name.contains('/') || name.contains("kubernetes.io/")
}

fn is_standard(name: &str) -> bool {
    ["cpu", "memory", "ephemeral-storage"].contains(&name) || name.starts_with("hugepages-")
}

/// A resource of a vendor's, which containers can ask for: `example.com/gpu`.
pub(super) fn is_extended(name: &str) -> bool {
    !is_native(name)
        && !name.starts_with("requests.")
        && qualified_name(&format!("requests.{name}")).is_empty()
}

fn needs_no_domain(name: &str) -> bool {
    name == "storage" || is_counted(name) || SUMMED.contains(&name)
}

/// Of a well formed name.
pub(super) fn standard_resource(name: &str, path: &Path, errors: &mut Errors) {
    let is_pages = ["hugepages-", "requests.hugepages-"]
        .iter()
        .any(|prefix| name.starts_with(prefix));
    if !name.contains('/') && !is_pages && !needs_no_domain(name) {
        errors.invalid_text(
            path,
            name,
            "must be a standard resource type or fully qualified",
        );
    }
}

/// What can be promised more often than it is there.
pub(super) fn overcommits(name: &str) -> bool {
    is_native(name) && !name.starts_with("hugepages-")
}

pub(super) fn container_resource(name: &str, path: &Path, errors: &mut Errors) {
    let wrong = qualified_name(name);
    let is_well_formed = wrong.is_empty();
    errors.text_is(path, name, wrong);
    if is_well_formed {
        standard_resource(name, path, errors);
    }
    if !name.contains('/') {
        if !is_standard(name) {
            errors.invalid_text(path, name, "must be a standard resource for containers");
        }
    } else if !is_native(name) && !is_extended(name) {
        errors.invalid_text(path, name, "doesn't follow extended resource name standard");
    }
}

/// ResourceRequirements of a container.
pub(super) fn requirements(resources: &Value, path: &Path, errors: &mut Errors) {
    let (limits_path, requests_path) = (path.field("limits"), path.field("requests"));
    let limits = map(resources, "/limits");
    for (list, path) in [
        (limits, &limits_path),
        (map(resources, "/requests"), &requests_path),
    ] {
        for (name, value) in list.into_iter().flatten() {
            let path = path.key(name);
            container_resource(name, &path, errors);
            let amount = quantity(value, &path, errors);
            if !is_native(name) && amount.is_some_and(|amount| amount.nano % 1_000_000_000 != 0) {
                errors.invalid(&path, value, "must be an integer");
            }
        }
    }
    for (name, value) in map(resources, "/requests").into_iter().flatten() {
        let limit = limits
            .and_then(|limits| limits.get(name))
            .and_then(Quantity::of);
        let Some(request) = Quantity::of(value) else {
            continue;
        };
        match limit {
            Some(limit) if !overcommits(name) && request.nano != limit.nano => errors.invalid(
                &requests_path,
                value,
                &format!("must be equal to {name} limit of {}", limit.canonical()),
            ),
            Some(limit) if request.nano > limit.nano => errors.invalid(
                &requests_path,
                value,
                &format!(
                    "must be less than or equal to {name} limit of {}",
                    limit.canonical()
                ),
            ),
            None if !overcommits(name) => {
                errors.required(
                    &limits_path,
                    "Limit must be set for non overcommitable resources",
                );
            }
            _ => {}
        }
    }
}

/// A ResourceList of any kind of thing.
pub(super) fn list(value: Option<&Value>, path: &Path, errors: &mut Errors) {
    for (name, value) in value.and_then(Value::as_object).into_iter().flatten() {
        let path = path.key(name);
        errors.text_is(&path, name, qualified_name(name));
        quantity(value, &path, errors);
    }
}

/// A number, or `50%`.
pub(super) fn int_or_percent(value: Option<&Value>, path: &Path, errors: &mut Errors) {
    match value {
        None | Some(Value::Null) => {}
        Some(Value::String(text)) => {
            if percent(text).is_none() {
                errors.invalid_text(
                    path,
                    text,
                    "a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%',  or '93%', regex used for \
                     validation is '[0-9]+%')",
                );
            }
        }
        Some(value) => errors.not_negative(path, Some(value)),
    }
}

pub(super) fn percent(text: &str) -> Option<u32> {
    let digits = text.strip_suffix('%')?;
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    digits.parse().ok()
}

/// Of a whole that cannot be more than itself.
pub(super) fn at_most_all(value: Option<&Value>, path: &Path, errors: &mut Errors) {
    if let Some(Value::String(text)) = value
        && percent(text).is_some_and(|percent| percent > 100)
    {
        errors.invalid_text(path, text, "must not be greater than 100%");
    }
}

/// 0, or 0%.
pub(super) fn is_zero(value: Option<&Value>) -> bool {
    match value {
        Some(Value::String(text)) => percent(text) == Some(0),
        Some(value) => value.as_i64() == Some(0),
        None => true,
    }
}
