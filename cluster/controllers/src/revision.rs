//! ControllerRevisions: the templates that a DaemonSet or StatefulSet has had, as patches that go back to them (`kubectl rollout undo`).

use std::{collections::HashSet, sync::Arc};

use k8s_openapi::{
    api::{apps::v1::ControllerRevision, core::v1::PodTemplateSpec},
    apimachinery::pkg::{apis::meta::v1::ObjectMeta, runtime::RawExtension},
};
use serde_json::{Value, json};

use crate::{
    Context, Error, Key,
    claim::{self, Keeper, Orphans},
    owner, template,
};

/// Of pods: which revision they are of.
pub(crate) const LABEL: &str = "controller-revision-hash";
/// Of the keeper's name in a revision's, in bytes: upstream's.
const NAME_BYTES: usize = 223;

/// What was, and what is wanted.
pub(crate) struct History {
    pub newest: Arc<ControllerRevision>,
    /// The others, by their number.
    pub old: Vec<Arc<ControllerRevision>>,
}

pub(crate) enum Found {
    History(History),
    /// The name that the hash gives is another's: so many collisions there were now.
    Collided(i32),
}

impl History {
    pub(crate) fn named<'a>(&'a self, wanted: &str) -> Option<&'a Arc<ControllerRevision>> {
        let all = std::iter::once(&self.newest).chain(&self.old);
        all.into_iter().find(|revision| name(revision) == wanted)
    }
}

pub(crate) fn name(revision: &ControllerRevision) -> &str {
    revision.metadata.name.as_deref().unwrap_or_default()
}

/// As upstream writes it: applied to the keeper, it replaces the template.
fn data(template: &PodTemplateSpec) -> Value {
    let mut template = serde_json::to_value(template).unwrap_or_default();
    template["$patch"] = "replace".into();
    json!({"spec": {"template": template}})
}

/// The template that a revision goes back to.
pub(crate) fn template_of(revision: &ControllerRevision) -> Option<PodTemplateSpec> {
    let mut template = revision.data.as_ref()?.0.pointer("/spec/template")?.clone();
    template.as_object_mut()?.remove("$patch");
    serde_json::from_value(template).ok()
}

/// Finds the revision of `template`, or makes it; it has the highest number of all. `hash_label`: what a revision has its hash in.
pub(crate) async fn history<O: Keeper>(
    context: &Context,
    orphans: &Orphans<ControllerRevision>,
    keeper: &O,
    template: &PodTemplateSpec,
    collisions: Option<i32>,
    hash_label: &str,
) -> Result<Found, Error> {
    let Some(selector) = keeper.selector() else {
        return Err(Error::Other("its selector can't be read".into()));
    };
    let selected = |one: &ControllerRevision| claim::selects(&selector, &one.metadata);
    let candidates = orphans.and_those_of(keeper);
    let mut all = claim::settle(context, keeper, candidates, selected).await?;
    all.sort_by(|a, b| (a.revision, name(a)).cmp(&(b.revision, name(b))));
    let wanted = template::normal(template);
    let is_wanted = |one: &Arc<ControllerRevision>| {
        template_of(one).is_some_and(|template| template::normal(&template) == wanted)
    };
    let known = all.iter().rposition(is_wanted).map(|at| all.remove(at));
    let next = all.last().map_or(1, |last| last.revision.saturating_add(1));
    let newest = match known {
        Some(known) if known.revision >= next => known,
        // it is gone back to
        Some(known) => {
            let mut known = ControllerRevision::clone(&known);
            known.revision = next;
            context.update(&known).await?
        }
        None => {
            let described = describe(keeper, template, collisions, hash_label, next);
            match context.create(&described).await {
                Ok(made) => made,
                Err(error) if error.is_already_exists() => {
                    let key = Key::of(&described);
                    let fresh = Arc::new(context.read::<ControllerRevision>(&key).await?);
                    let owner = owner::controller_of(&fresh.metadata).map(|owner| &owner.uid);
                    if owner == keeper.meta().uid.as_ref() && is_wanted(&fresh) {
                        // the cache was behind
                        return Err(error);
                    }
                    return Ok(Found::Collided(collisions.unwrap_or(0).saturating_add(1)));
                }
                Err(error) => return Err(error),
            }
        }
    };
    Ok(Found::History(History { newest, old: all }))
}

fn describe<O: Keeper>(
    keeper: &O,
    template: &PodTemplateSpec,
    collisions: Option<i32>,
    hash_label: &str,
    revision: i64,
) -> ControllerRevision {
    let hash = template::hash(template, collisions);
    let meta = keeper.meta();
    let name = meta.name.as_deref().unwrap_or_default();
    let metadata = template.metadata.as_ref();
    let mut labels = metadata
        .and_then(|metadata| metadata.labels.clone())
        .unwrap_or_default();
    labels.insert(hash_label.to_owned(), hash.clone());
    ControllerRevision {
        metadata: ObjectMeta {
            name: Some(format!("{}-{hash}", &name[..name.len().min(NAME_BYTES)])),
            namespace: meta.namespace.clone(),
            labels: Some(labels),
            annotations: meta.annotations.clone(),
            owner_references: Some(vec![owner::reference(keeper)]),
            ..ObjectMeta::default()
        },
        data: Some(RawExtension(data(template))),
        revision,
    }
}

/// Deletes the oldest of those that nobody uses, but for `limit` of them. `mark`: what a pod has of its revision.
pub(crate) async fn clean_up(
    context: &Context,
    history: &History,
    limit: Option<i32>,
    used: &HashSet<String>,
    mark: impl Fn(&ControllerRevision) -> &str,
) -> Result<(), Error> {
    let limit = usize::try_from(limit.unwrap_or(10)).unwrap_or(0);
    let mut unused = history.old.iter().filter(|one| !used.contains(mark(one)));
    let more = unused.clone().count().saturating_sub(limit);
    for one in unused.by_ref().take(more) {
        context.delete(&**one, None).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::apps::v1::DaemonSet;

    use super::*;

    #[test]
    fn a_revision_goes_back_to_its_template() {
        let set: DaemonSet = serde_json::from_value(json!({
            "metadata": {"name": "agent", "namespace": "n", "uid": "u", "annotations": {"kubernetes.io/change-cause": "why"}},
            "spec": {"selector": {"matchLabels": {"app": "agent"}}, "template": {
                "metadata": {"labels": {"app": "agent"}}, "spec": {"containers": [{"name": "c", "image": "i:1"}]},
            }},
        }))
        .unwrap();
        let template = &set.spec.as_ref().unwrap().template;
        let revision = describe(&set, template, None, LABEL, 4);
        let hash = template::hash(template, None);
        assert_eq!(name(&revision), format!("agent-{hash}"));
        let value = serde_json::to_value(&revision).unwrap();
        assert_eq!(value["data"]["spec"]["template"]["$patch"], "replace");
        assert_eq!(
            value["metadata"]["labels"],
            json!({"app": "agent", LABEL: hash})
        );
        assert_eq!(
            value["metadata"]["annotations"]["kubernetes.io/change-cause"],
            "why"
        );
        let back: ControllerRevision = serde_json::from_value(value).unwrap();
        assert!(template::is_same(&template_of(&back).unwrap(), template));
        assert_ne!(
            name(&describe(&set, template, Some(1), LABEL, 4)),
            name(&revision)
        );
        assert_eq!(template_of(&ControllerRevision::default()), None);
    }
}
