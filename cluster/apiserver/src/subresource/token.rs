//! authentication.k8s.io/v1 TokenRequest: a token of a ServiceAccount.

use berth_auth::token::TokenAsk;
use berth_schema::GroupVersionKind;
use http::Response;
use serde_json::{Value, json};

use crate::{
    admission::{Act, webhooks},
    api::{Api, Call},
    body,
    catalog::REGISTRY,
    clock,
    failure::Failure,
    object,
    respond::Body,
};

/// Seconds: upstream's bounds, an hour where nothing is said.
const SHORTEST: i64 = 600;
const LONGEST: i64 = 1 << 32;
const USUAL: i64 = 3600;

pub async fn create(api: &Api, call: &Call) -> Result<Response<Body>, Failure> {
    let asked = &call.asked;
    let kind = GroupVersionKind::new("authentication.k8s.io/v1", "TokenRequest");
    let mut request = body::object(call, &kind, false)?;
    let key = call.resource.key(&asked.namespace, &asked.name);
    let account = api
        .storage
        .read(&key)
        .await?
        .ok_or_else(|| Failure::not_found(&call.resource, &asked.name))?
        .value;
    let act = Act::create(&call.resource, &asked.namespace, &asked.name, "token");
    webhooks::mutate(api, &call.actor, &act, None, &mut request).await?;
    webhooks::validate(api, &call.actor, &act, None, Some(&request)).await?;
    let seconds = object::number(&request, "/spec/expirationSeconds").unwrap_or(USUAL);
    if !(SHORTEST..=LONGEST).contains(&seconds) {
        let message = if seconds < SHORTEST {
            format!("Invalid value: {seconds}: may not specify a duration less than 10 minutes")
        } else {
            format!("Invalid value: {seconds}: may not specify a duration larger than 2^32 seconds")
        };
        return Err(Failure::invalid_of(
            &kind.group,
            &kind.kind,
            &asked.name,
            vec![berth_kinds::Invalid {
                field: "spec.expirationSeconds".into(),
                reason: berth_kinds::Reason::Invalid,
                message,
            }],
        ));
    }
    let audiences: Vec<String> = request
        .pointer("/spec/audiences")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(|audience| audience.as_str().map(str::to_owned))
        .collect();
    let mut ask = TokenAsk {
        namespace: asked.namespace.clone(),
        service_account: asked.name.clone(),
        service_account_uid: object::uid(&account).into(),
        audiences,
        expiration: seconds.unsigned_abs(),
        ..TokenAsk::default()
    };
    let bound = bind(api, call, &request, &mut ask).await?;
    berth_auth::restriction::check(
        &call.actor.user,
        &crate::router::attributes(&call.asked, "create"),
        bound.as_ref(),
        Some(&request),
    )
    .map_err(|why| Failure::forbidden(&call.resource, &asked.name, why))?;
    let now = clock::now().unsigned_abs();
    let issued = api.tokens.issue(&ask, now).map_err(Failure::internal)?;
    object::set(&mut request, "name", asked.name.as_str());
    object::set(&mut request, "namespace", asked.namespace.as_str());
    object::set(&mut request, "creationTimestamp", clock::time(clock::now()));
    object::part(&mut request, "spec").insert("expirationSeconds".into(), seconds.into());
    request["status"] = json!({
        "token": issued.token,
        "expirationTimestamp": clock::time(i64::try_from(issued.expires).unwrap_or(i64::MAX)),
    });
    Ok(call.wants.value(201, &request))
}

/// The object that the token is to live and die with.
async fn bind(
    api: &Api,
    call: &Call,
    request: &Value,
    ask: &mut TokenAsk,
) -> Result<Option<Value>, Failure> {
    let Some(reference) = request
        .pointer("/spec/boundObjectRef")
        .filter(|reference| reference.is_object())
    else {
        return Ok(None);
    };
    let text = |name: &str| {
        reference
            .get(name)
            .and_then(Value::as_str)
            .unwrap_or_default()
    };
    let (kind, name, uid) = (text("kind"), text("name"), text("uid"));
    let namespace = &call.asked.namespace;
    let (plural, key) = match kind {
        "Pod" => ("pods", format!("{REGISTRY}pods/{namespace}/{name}")),
        "Secret" => ("secrets", format!("{REGISTRY}secrets/{namespace}/{name}")),
        "Node" => ("nodes", format!("{REGISTRY}minions/{name}")),
        other => {
            return Err(Failure::bad_request(format!(
                "cannot bind token for serviceaccount to {other}: only to a Pod, a Secret or a Node"
            )));
        }
    };
    let object = api
        .storage
        .read(&key)
        .await?
        .ok_or_else(|| Failure::not_found_of("", plural, name))?
        .value;
    let is = object::uid(&object).to_owned();
    if !uid.is_empty() && uid != is {
        return Err(Failure::conflict(
            &call.resource,
            &call.asked.name,
            format!(
                "the UID in the bound object reference ({uid}) does not match the UID in record. The object might have been deleted and then recreated"
            ),
        ));
    }
    match kind {
        "Pod" => {
            if object::text(&object, "/spec/serviceAccountName") != call.asked.name {
                return Err(Failure::bad_request(format!(
                    "cannot bind token for serviceaccount {:?} to pod running with different serviceaccount name.",
                    call.asked.name
                )));
            }
            let node = object::text(&object, "/spec/nodeName");
            if !node.is_empty()
                && let Some(entry) = api.cache.shard("minions").get(node)
            {
                ask.node = Some((node.into(), entry.uid.to_string()));
            }
            ask.pod = Some((name.into(), is));
        }
        "Secret" => ask.secret = Some((name.into(), is)),
        _ => ask.node = Some((name.into(), is)),
    }
    Ok(Some(object))
}
