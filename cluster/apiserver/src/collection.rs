//! deletecollection: all that a selector selects.

use http::Response;

use crate::{
    api::{Api, Call},
    delete::{self, DeleteOptions},
    failure::Failure,
    read::{self, Selection},
    respond::{Body, ListMeta},
};

pub async fn delete(
    api: &Api,
    call: &Call,
    options: &DeleteOptions,
) -> Result<Response<Body>, Failure> {
    let (resource, asked) = (&call.resource, &call.asked);
    let selection = Selection::of(resource, &asked.namespace, &asked.query)?;
    let page = read::page(api, resource, &selection, &asked.query).await?;
    let mut items = Vec::with_capacity(page.items.len());
    for item in page.items {
        let value: serde_json::Value = serde_json::from_slice(&item).unwrap_or_default();
        let (namespace, name) = (
            crate::object::namespace(&value),
            crate::object::name(&value),
        );
        match delete::delete(api, &call.actor, resource, namespace, name, options).await {
            Ok(deleted) => {
                let object = deleted.into_object();
                items.push(serde_json::to_vec(&object).unwrap_or_default().into());
            }
            // gone meanwhile: that is what was wanted
            Err(failure) if failure.code == 404 => {}
            Err(failure) => return Err(failure),
        }
    }
    let meta = ListMeta {
        resource_version: api.cache.revision(),
        ..page.meta
    };
    Ok(call.wants.list(resource, &meta, items))
}
