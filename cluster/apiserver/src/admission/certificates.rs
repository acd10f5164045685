//! Certificates that are asked for: who asks is written down by the server, and who approves needs a right for the signer.

use berth_auth::{Attributes, Decision};
use serde_json::{Value, json};

use super::Act;
use crate::{
    api::{Actor, Api},
    failure::Failure,
    object,
};

const GROUP: &str = "certificates.k8s.io";
const SUBJECT: [&str; 4] = ["username", "uid", "groups", "extra"];

/// CertificateSubjectRestriction and what upstream's strategy fills in: whatever the body says, it is the user's own.
pub fn requester(actor: &Actor, act: &Act<'_>, new: &mut Value, old: Option<&Value>) {
    if !act.resource.is(GROUP, "certificatesigningrequests") {
        return;
    }
    let kept = match old {
        Some(old) => old.get("spec").cloned().unwrap_or_default(),
        None => json!({
            "username": actor.user.username,
            "uid": actor.user.uid,
            "groups": actor.user.groups,
            "extra": actor.user.extra,
        }),
    };
    let spec = object::part(new, "spec");
    for name in SUBJECT {
        let empty = match kept.get(name) {
            None | Some(Value::Null) => true,
            Some(Value::String(text)) => text.is_empty(),
            Some(Value::Object(fields)) => fields.is_empty(),
            Some(_) => false,
        };
        match kept.get(name) {
            Some(value) if !empty => {
                spec.insert(name.into(), value.clone());
            }
            _ => {
                spec.remove(name);
            }
        }
    }
}

/// CertificateApproval and CertificateSigning.
///
/// # Errors
/// 403 where the user may not `approve`, or `sign`, for the signer.
pub fn may(
    api: &Api,
    actor: &Actor,
    act: &Act<'_>,
    old: Option<&Value>,
    new: Option<&Value>,
) -> Result<(), Failure> {
    let (Some(old), Some(new)) = (old, new) else {
        return Ok(());
    };
    if !act.resource.is(GROUP, "certificatesigningrequests") {
        return Ok(());
    }
    let verb = match act.subresource {
        "approval" => "approve",
        "status" if old.pointer("/status/certificate") != new.pointer("/status/certificate") => {
            "sign"
        }
        _ => return Ok(()),
    };
    let signer = object::text(old, "/spec/signerName");
    let domain = signer.split('/').next().unwrap_or_default();
    let allowed = [signer.to_owned(), format!("{domain}/*")]
        .into_iter()
        .any(|name| {
            let asked = Attributes {
                verb: verb.into(),
                group: GROUP.into(),
                version: "*".into(),
                resource: "signers".into(),
                name,
                ..Attributes::default()
            };
            matches!(
                api.authorizer.authorize(&actor.user, &asked),
                Decision::Allow { .. }
            )
        });
    if allowed {
        return Ok(());
    }
    Err(Failure::forbidden(
        act.resource,
        &act.name,
        format!("user not permitted to {verb} requests with signerName {signer:?}"),
    ))
}
