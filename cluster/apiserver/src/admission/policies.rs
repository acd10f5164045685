//! ValidatingAdmissionPolicies: rules in CEL that refuse, warn or are written into the audit log, wherever a binding says that they count.
//!
//! ```text
//!   a binding ── its policy ── do both match? ── its parameters ── match conditions ── variables ── validations ── the binding's actions
//! ```
//!
//! Each policy has a budget of steps for each of its parameters, so an expression can't hold a thread; between two policies others get their turn.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use berth_auth::{Attributes, Decision};
use berth_cel::{Budget, Error, Val};
use berth_kinds::policy::{Mistake, Named, Policy, Validation};
use serde_json::{Value, json};

use super::{
    Act,
    webhooks::{GROUP, Review, matching, request},
};
use crate::{
    api::{Actor, Api},
    cache::Entry,
    catalog::{Resource, split_api_version},
    failure::Failure,
    object,
    selector::LabelSelector,
};

const POLICIES: &str = "validatingadmissionpolicies";
const BINDINGS: &str = "validatingadmissionpolicybindings";
/// Characters of an annotation of the audit log; upstream's bound.
const ANNOTATION: usize = 10_240;
/// Characters of a message that an expression makes; upstream's bound.
const MESSAGE: usize = 5_120;

/// Those that have been compiled, by their names.
#[derive(Debug, Default)]
pub struct Policies(Mutex<HashMap<String, Arc<Compiled>>>);

#[derive(Debug)]
struct Compiled {
    revision: u64,
    value: Value,
    policy: Policy,
    /// Of one that was written before there were functions that it names, or by an older server.
    mistakes: Vec<Mistake>,
}

impl Compiled {
    fn name(&self) -> &str {
        object::name(&self.value)
    }

    fn must_be_asked(&self) -> bool {
        self.value["spec"]["failurePolicy"] != "Ignore"
    }
}

impl Policies {
    /// As it is now; there are never more than policies.
    fn get(&self, api: &Api, name: &str) -> Option<Arc<Compiled>> {
        let shard = api.cache.shard(POLICIES);
        let entry: Arc<Entry> = shard.get(name)?;
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(compiled) = known.get(name)
            && compiled.revision == entry.revision
        {
            return Some(compiled.clone());
        }
        known.retain(|name, _| shard.get(name).is_some());
        let value = entry.value();
        let (policy, mistakes) = Policy::compile(&value);
        let compiled = Arc::new(Compiled {
            revision: entry.revision,
            value,
            policy,
            mistakes,
        });
        known.insert(name.to_owned(), compiled.clone());
        Some(compiled)
    }
}

/// What expressions may name.
#[derive(Debug)]
pub(super) struct Facts {
    object: Value,
    old: Value,
    request: Value,
    namespace: Value,
}

impl Facts {
    /// With the objects in `resource`'s version.
    pub(super) fn of(
        api: &Api,
        review: &Review<'_>,
        resource: &Resource,
        new: Option<&Value>,
    ) -> Self {
        let told =
            |value: Option<&Value>| value.map_or(Value::Null, |value| review.told(resource, value));
        let mut request = request("", resource, review, None)["request"].take();
        if let Some(request) = request.as_object_mut() {
            for gone in ["uid", "object", "oldObject"] {
                request.remove(gone);
            }
        }
        let act = review.act;
        let namespace = match act.resource.is("", "namespaces") {
            true => None,
            false => api.cache.shard("namespaces").get(act.namespace),
        };
        Self {
            object: told(new),
            old: told(review.old),
            request,
            namespace: namespace.map(|entry| entry.value()).unwrap_or_default(),
        }
    }

    fn variables(&self) -> Vec<(&'static str, Val<'_>)> {
        vec![
            ("object", Val::json(&self.object)),
            ("oldObject", Val::json(&self.old)),
            ("request", Val::json(&self.request)),
            ("namespaceObject", Val::json(&self.namespace)),
        ]
    }

    /// Whether all conditions hold. One that does not decides, whatever becomes of the others.
    ///
    /// # Errors
    /// The first that came to nothing, with its name.
    pub(super) fn meet(&self, conditions: &[Named]) -> Result<bool, String> {
        meet(conditions, &self.variables())
    }
}

fn meet<'a>(conditions: &'a [Named], variables: &[(&str, Val<'a>)]) -> Result<bool, String> {
    let mut budget = Budget::of_conditions();
    let mut failed = None;
    for condition in conditions {
        match condition.program.run(variables, &mut budget) {
            Ok(Val::Bool(true)) => {}
            Ok(Val::Bool(false)) => return Ok(false),
            made => {
                let why = made.err().unwrap_or(Error::Run("no such overload".into()));
                let name = &condition.name;
                failed.get_or_insert(format!(
                    "expression of match condition {name:?} resulted in error: {why}"
                ));
            }
        }
    }
    failed.map_or(Ok(true), Err)
}

/// A validation that did not hold.
#[derive(Debug)]
struct Refusal {
    message: String,
    reason: String,
    /// Which validation; none: the policy could not be asked.
    at: Option<usize>,
}

impl Refusal {
    fn unasked(message: String) -> Self {
        Self {
            message,
            reason: String::new(),
            at: None,
        }
    }
}

/// Asks all policies that are bound to what happens.
///
/// # Errors
/// What the first that denies says, with its reason.
pub(super) async fn validate(
    api: &Api,
    review: &Review<'_>,
    new: Option<&Value>,
) -> Result<(), Failure> {
    let bindings = api.cache.shard(BINDINGS);
    if bindings.is_empty("") {
        return Ok(());
    }
    let (bindings, _) = bindings.list("", "");
    for binding in bindings {
        let binding = binding.value();
        let policy = object::text(&binding, "/spec/policyName");
        let Some(policy) = api.policies.get(api, policy) else {
            continue;
        };
        let Some(resource) = matched(api, &policy.value, &binding, review, new) else {
            continue;
        };
        let facts = Facts::of(api, review, &resource, new);
        let params = params(api, &policy.value, &binding, review.act);
        let params = match params {
            Ok(params) => params,
            Err(why) => {
                if policy.must_be_asked() {
                    let why = format!("failed to configure binding: {why}");
                    enforce(review, &policy, &binding, vec![Refusal::unasked(why)])?;
                }
                continue;
            }
        };
        for param in &params {
            let refusals = judge(review.actor, &policy, &facts, param);
            enforce(review, &policy, &binding, refusals)?;
            tokio::task::yield_now().await;
        }
    }
    Ok(())
}

/// In which version the policy wants what happens; `None`: it is not asked.
fn matched(
    api: &Api,
    policy: &Value,
    binding: &Value,
    review: &Review<'_>,
    new: Option<&Value>,
) -> Option<Arc<Resource>> {
    let constraints = &policy["spec"]["matchConstraints"];
    let resource = matching::matches(api, constraints, review, new)?;
    match binding.pointer("/spec/matchResources") {
        Some(narrower) if !narrower.is_null() => {
            matching::matches(api, narrower, review, new).map(|_| resource)
        }
        _ => Some(resource),
    }
}

/// The objects that a binding gives its policy as parameters, one after the other; null: none.
fn params(api: &Api, policy: &Value, binding: &Value, act: &Act<'_>) -> Result<Vec<Value>, String> {
    let kind = &policy["spec"]["paramKind"];
    let refers = &binding["spec"]["paramRef"];
    if kind.is_null() || refers.is_null() {
        return Ok(vec![Value::Null]);
    }
    let resource = param_resource(api, kind)?;
    let mut namespace = object::text(refers, "/namespace");
    if !resource.namespaced && !namespace.is_empty() {
        return Err(
            "paramRef.namespace must not be provided for a cluster-scoped `paramKind`".into(),
        );
    }
    if resource.namespaced && namespace.is_empty() {
        namespace = act.namespace;
        if namespace.is_empty() {
            return Err("cannot use namespaced paramRef in policy binding that matches cluster-scoped resources".into());
        }
    }
    let prefix = match resource.namespaced {
        true => format!("{namespace}/"),
        false => String::new(),
    };
    let shard = api.cache.shard(&resource.storage);
    let found: Vec<Arc<Entry>> = match object::text(refers, "/name") {
        "" => {
            let selector = LabelSelector::of_object(refers.get("selector"))
                .ok_or("its selector selects nothing that there could be")?;
            let (all, _) = shard.list(&prefix, "");
            all.into_iter()
                .filter(|entry| selector.matches(|key| entry.label(key)))
                .collect()
        }
        name => shard.get(&format!("{prefix}{name}")).into_iter().collect(),
    };
    if found.is_empty() && refers["parameterNotFoundAction"] == "Deny" {
        return Err(
            "no params found for policy binding with `Deny` parameterNotFoundAction".into(),
        );
    }
    let value = |entry: Arc<Entry>| {
        let mut value = entry.value();
        resource.as_served(&mut value);
        value
    };
    Ok(found.into_iter().map(value).collect())
}

fn param_resource(api: &Api, kind: &Value) -> Result<Arc<Resource>, String> {
    let (group, version) = split_api_version(object::text(kind, "/apiVersion"));
    let name = object::text(kind, "/kind");
    api.served
        .now()
        .by_kind(group, version, name)
        .filter(|resource| !resource.storage.is_empty())
        .cloned()
        .ok_or_else(|| {
            format!(
                "failed to find resource referenced by paramKind: '{group}/{version}, Kind={name}'"
            )
        })
}

fn judge(actor: &Actor, compiled: &Compiled, facts: &Facts, params: &Value) -> Vec<Refusal> {
    let policy = &compiled.policy;
    let mut variables = facts.variables();
    variables.push(("params", Val::json(params)));
    match meet(&policy.conditions, &variables) {
        Ok(true) => {}
        Ok(false) => return Vec::new(),
        Err(_) if !compiled.must_be_asked() => return Vec::new(),
        Err(why) => return vec![Refusal::unasked(why)],
    }
    if let Some(mistake) = compiled.mistakes.first() {
        return match compiled.must_be_asked() {
            true => vec![Refusal::unasked(format!(
                "{}: {}",
                mistake.field, mistake.error
            ))],
            false => Vec::new(),
        };
    }
    let mut budget = Budget::of_object();
    let mut worked_out: Vec<(String, Result<Val<'_>, Error>)> = Vec::new();
    for variable in &policy.variables {
        variables.push(("variables", Val::named(worked_out.iter().cloned())));
        let value = variable.program.run(&variables, &mut budget);
        variables.pop();
        let value = value.map_err(|error| {
            let name = &variable.name;
            Error::Run(format!(
                "composited variable {name:?} fails to evaluate: {error}"
            ))
        });
        worked_out.push((variable.name.clone(), value));
    }
    variables.push(("variables", Val::named(worked_out)));
    for annotation in &policy.annotations {
        if let Ok(Val::Text(text)) = annotation.program.run(&variables, &mut budget) {
            let key = format!("{}/{}", compiled.name(), annotation.name);
            actor.annotate(key, text.trim().chars().take(ANNOTATION).collect());
        }
    }
    let mut refusals = Vec::new();
    for (at, validation) in policy.validations.iter().enumerate() {
        let message = match validation.program.run(&variables, &mut budget) {
            Ok(Val::Bool(true)) => continue,
            Ok(Val::Bool(false)) => message(validation, &variables, &mut budget),
            _ if !compiled.must_be_asked() => continue,
            made => {
                let why = made.err().unwrap_or(Error::Run("no such overload".into()));
                let expression = &validation.expression;
                format!("expression '{expression}' resulted in error: {why}")
            }
        };
        refusals.push(Refusal {
            message,
            reason: validation.reason.clone(),
            at: Some(at),
        });
    }
    refusals
}

fn message<'a>(
    validation: &'a Validation,
    variables: &[(&str, Val<'a>)],
    budget: &mut Budget,
) -> String {
    let made = validation
        .message_expression
        .as_ref()
        .map(|expression| expression.run(variables, budget));
    if let Some(Ok(Val::Text(text))) = made {
        let text = text.trim();
        if !text.is_empty() && !text.contains('\n') && text.len() <= MESSAGE {
            return text.to_owned();
        }
    }
    match validation.message.trim() {
        "" => format!("failed expression: {}", validation.expression),
        message => message.to_owned(),
    }
}

/// Does with refusals what the binding says.
fn enforce(
    review: &Review<'_>,
    policy: &Compiled,
    binding: &Value,
    refusals: Vec<Refusal>,
) -> Result<(), Failure> {
    let actions: Vec<&str> = binding["spec"]["validationActions"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    let (name, bound) = (policy.name(), object::name(binding));
    let mut failures = Vec::new();
    for refusal in &refusals {
        if actions.contains(&"Warn") {
            review.actor.warn(format!(
                "Validation failed for ValidatingAdmissionPolicy '{name}' with binding '{bound}': {}",
                refusal.message
            ));
        }
        if actions.contains(&"Audit") {
            failures.push(json!({
                "message": refusal.message,
                "policy": name,
                "binding": bound,
                "expressionIndex": refusal.at.map_or(String::new(), |at| at.to_string()),
                "validationActions": actions,
            }));
        }
    }
    if !failures.is_empty() {
        review.actor.annotate(
            "validation.policy.admission.k8s.io/validation_failure".into(),
            Value::Array(failures)
                .to_string()
                .chars()
                .take(ANNOTATION)
                .collect(),
        );
    }
    match refusals.first() {
        Some(first) if actions.contains(&"Deny") => {
            let message = format!(
                "ValidatingAdmissionPolicy '{name}' with binding '{bound}' denied request: {}",
                first.message
            );
            let act = review.act;
            Err(Failure::of_policy(
                act.resource,
                &act.name,
                &first.reason,
                message,
            ))
        }
        _ => Ok(()),
    }
}

/// Who makes a policy read its parameters must be allowed to read them: it can tell what is in them.
///
/// # Errors
/// 403.
pub fn may(
    api: &Api,
    actor: &Actor,
    act: &Act<'_>,
    old: Option<&Value>,
    new: Option<&Value>,
) -> Result<(), Failure> {
    let Some(new) = new.filter(|_| act.resource.group == GROUP && act.subresource.is_empty())
    else {
        return Ok(());
    };
    if old.is_some_and(|old| old.get("spec") == new.get("spec")) {
        return Ok(());
    }
    let (kind, refers) = match act.resource.plural.as_str() {
        POLICIES => (new["spec"]["paramKind"].clone(), &Value::Null),
        BINDINGS => {
            let policy = object::text(new, "/spec/policyName");
            let kind = api
                .cache
                .shard(POLICIES)
                .get(policy)
                .map(|policy| policy.value()["spec"]["paramKind"].take());
            (kind.unwrap_or_default(), &new["spec"]["paramRef"])
        }
        _ => return Ok(()),
    };
    if kind.is_null() || (act.resource.plural == BINDINGS && refers.is_null()) {
        return Ok(());
    }
    // What isn't there can't be read; whoever makes it later has been asked then.
    let Ok(resource) = param_resource(api, &kind) else {
        return Ok(());
    };
    let or_any = |text: &str| match text {
        "" => "*".to_owned(),
        text => text.to_owned(),
    };
    let asked = Attributes {
        verb: "get".into(),
        group: resource.group.clone(),
        version: resource.version.clone(),
        resource: resource.plural.clone(),
        namespace: or_any(object::text(refers, "/namespace")),
        name: or_any(object::text(refers, "/name")),
        ..Attributes::default()
    };
    match api.authorizer.authorize(&actor.user, &asked) {
        Decision::Allow { .. } => Ok(()),
        _ => Err(Failure::forbidden(
            act.resource,
            &act.name,
            format!(
                "user {} does not have \"get\" permission on all objects of the referenced paramKind (kind={}, apiVersion={})",
                actor.user.username,
                object::text(&kind, "/kind"),
                object::text(&kind, "/apiVersion"),
            ),
        )),
    }
}
