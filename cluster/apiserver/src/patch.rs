//! PATCH: JSON, merge and strategic merge patches, and server-side apply.

use berth_patch::{Conflicts, Force, OneVersion, PatchError, PatchType, Write};
use berth_schema::{Body, Schema};
use http::Response;
use serde_json::Value;

use crate::{
    api::{Api, Call},
    body::{self, Validation},
    catalog::Resource,
    clock,
    failure::Failure,
    fields, object,
    respond::Body as ResponseBody,
    write::{self, Part},
};

impl From<PatchError> for Failure {
    fn from(error: PatchError) -> Self {
        let (code, _) = error.status();
        match &error {
            PatchError::Conflicts(Conflicts(conflicts)) => Self::apply_conflict(
                error.to_string(),
                conflicts
                    .iter()
                    .map(|conflict| (conflict.message(), conflict.field()))
                    .collect(),
            ),
            _ => match code {
                413 => Self::too_large_patch(error.to_string()),
                415 => Self::unsupported_media_type(Patch::ACCEPTED),
                422 => Self::unprocessable(error.to_string()),
                _ => Self::bad_request(error.to_string()),
            },
        }
    }
}

/// What a PATCH has sent.
#[derive(Debug)]
pub struct Patch {
    kind: PatchType,
    /// Of an apply.
    applied: Value,
    force: bool,
    validation: Validation,
}

impl Patch {
    pub const ACCEPTED: &str =
        "application/json-patch+json, application/merge-patch+json, application/apply-patch+yaml";

    pub fn of(call: &Call) -> Result<Self, Failure> {
        let kind = PatchType::of_content_type(call.content_type())
            .ok_or_else(|| Failure::unsupported_media_type(Patch::ACCEPTED))?;
        let query = &call.asked.query;
        let validation = Validation::of(call)?;
        let mut applied = Value::Null;
        if kind == PatchType::Apply {
            if query.get("fieldManager").is_empty() {
                return Err(Failure::unprocessable(
                    "PatchOptions.meta.k8s.io \"\" is invalid: fieldManager: Required value: is required for apply patch",
                ));
            }
            let body = Body::from_yaml(&call.body)
                .map_err(|error| Failure::bad_request(format!("error decoding YAML: {error}")))?;
            validation.judge(call, body.duplicates, "")?;
            applied = body.value;
        } else if query.has("force") {
            return Err(Failure::unprocessable(
                "PatchOptions.meta.k8s.io \"\" is invalid: force: Forbidden: may not be specified for non-apply patch",
            ));
        }
        Ok(Self {
            kind,
            applied,
            force: query.flag("force"),
            validation,
        })
    }

    pub fn is_apply(&self) -> bool {
        self.kind == PatchType::Apply
    }

    /// `live` as it shall be.
    pub fn patched(
        &self,
        call: &Call,
        resource: &Resource,
        part: Part,
        live: &Value,
    ) -> Result<Value, Failure> {
        if self.is_apply() {
            return self.apply(call, resource, part, Some(live));
        }
        let kind = body::kind_of(resource);
        let built_in = Schema::built_in();
        let schema = built_in.kind(&kind).map(|id| (built_in, id));
        let mut new = berth_patch::patch(self.kind, schema, live, &call.body)?;
        self.conform(call, resource, &mut new)?;
        Ok(new)
    }

    fn conform(&self, call: &Call, resource: &Resource, new: &mut Value) -> Result<(), Failure> {
        let kind = body::kind_of(resource);
        let strict = body::conform(call, &kind, new)?;
        self.validation.judge(call, strict, "")
    }

    fn apply(
        &self,
        call: &Call,
        resource: &Resource,
        part: Part,
        live: Option<&Value>,
    ) -> Result<Value, Failure> {
        let kind = body::kind_of(resource);
        let mut applied = self.applied.clone();
        let strict = body::conform(call, &kind, &mut applied)?;
        self.validation.judge(call, strict, "")?;
        let reset = fields::reset(resource, part);
        let now = clock::time(clock::now());
        let write = Write {
            schema: fields::schema(resource, &kind),
            kind: &kind,
            versions: &OneVersion,
            subresource: part.subresource(),
            reset,
            manager: &call.actor.manager,
            now: &now,
        };
        let force = if self.force { Force::Yes } else { Force::No };
        Ok(berth_patch::apply(&write, live, &applied, force)?)
    }
}

/// A patch of an object, or of a part of it that has its form.
pub async fn handle(api: &Api, call: &Call, part: Part) -> Result<Response<ResponseBody>, Failure> {
    let patch = Patch::of(call)?;
    let (resource, asked) = (&call.resource, &call.asked);
    let key = resource.key(&asked.namespace, &asked.name);
    // Whether it is there is asked where that makes a difference: the change itself reads it anyway.
    let makes = patch.is_apply() && part == Part::Main && api.storage.read(&key).await?.is_none();
    if makes {
        let mut new = patch.apply(call, resource, part, None)?;
        let own = object::name(&new);
        if !own.is_empty() && own != asked.name {
            return Err(Failure::bad_request(format!(
                "the name of the object ({own}) does not match the name on the URL ({})",
                asked.name
            )));
        }
        object::set(&mut new, "name", asked.name.as_str());
        match write::create(api, &call.actor, resource, &asked.namespace, new).await {
            // made by another meanwhile: it is patched
            Err(failure) if failure.reason == "AlreadyExists" => {}
            created => return Ok(call.wants.object(201, resource, &created?)),
        }
    }
    let modified = write::modify(
        api,
        &call.actor,
        resource,
        &asked.namespace,
        &asked.name,
        part,
        |live| patch.patched(call, resource, part, live),
    )
    .await?;
    Ok(call.wants.object(200, resource, &modified))
}
