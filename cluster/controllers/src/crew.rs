//! Pods that a keeper makes and deletes, and the events that tell of it.

use std::sync::Arc;

use berth_recorder::Level;
use k8s_openapi::api::core::v1::Pod;

use crate::{Context, Error, Kind};

/// What the server said, without what was asked of it.
pub(crate) fn told(error: &Error) -> String {
    match error.status() {
        Some((_, message)) => message.to_owned(),
        None => error.to_string(),
    }
}

/// Whether nothing can be made any more because the namespace goes: there is nothing to be told or tried again.
pub(crate) fn is_end_of_namespace(error: &Error) -> bool {
    error.status().is_some_and(|(reason, message)| {
        reason == "Forbidden" && message.ends_with("because it is being terminated")
    })
}

/// Makes a pod. In a namespace that goes, none: that is no error.
pub(crate) async fn hire<O: Kind>(
    context: &Context,
    keeper: &O,
    component: &str,
    pod: &Pod,
) -> Result<(), Error> {
    match context.create(pod).await {
        Ok(made) => {
            let name = made.metadata.name.as_deref().unwrap_or_default();
            let message = format!("Created pod: {name}");
            context.event(
                keeper,
                component,
                Level::Normal,
                "SuccessfulCreate",
                message,
            );
            Ok(())
        }
        Err(error) if is_end_of_namespace(&error) => Ok(()),
        Err(error) => {
            let message = format!("Error creating: {}", told(&error));
            context.event(keeper, component, Level::Warning, "FailedCreate", message);
            Err(error)
        }
    }
}

/// Deletes a pod. That another has its name by now is as good.
pub(crate) async fn dismiss<O: Kind>(
    context: &Context,
    keeper: &O,
    component: &str,
    pod: Arc<Pod>,
) -> Result<(), Error> {
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    match context.delete(&*pod, None).await {
        Ok(()) => {
            let message = format!("Deleted pod: {name}");
            context.event(
                keeper,
                component,
                Level::Normal,
                "SuccessfulDelete",
                message,
            );
            Ok(())
        }
        Err(error) if error.is_conflict() => Ok(()),
        Err(error) => {
            let message = format!("Error deleting: {}", told(&error));
            context.event(keeper, component, Level::Warning, "FailedDelete", message);
            Err(error)
        }
    }
}
