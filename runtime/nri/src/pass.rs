//! What the pod driver asks: one thing that happens to one pod or container, told to every plugin in the order of the indices.

use std::sync::Arc;

use protobuf::MessageField;
use tokio::sync::OwnedRwLockReadGuard;

use crate::{
    Error, Validator,
    adjustment::{Adjustments, Updates},
    api::{self, Event},
    owners::{Owner, Owners},
    plugin::{Answer, Plugin},
    resources,
};

/// The right to change a pod or container, and the plugins that are to hear of it. Held until the change can be seen in
/// [`Runtime::snapshot`](crate::Runtime::snapshot); meanwhile nobody joins.
#[derive(Debug, Default)]
pub struct Pass {
    pub(crate) plugins: Arc<[Arc<Plugin>]>,
    pub(crate) validator: Option<Arc<Validator>>,
    pub(crate) _gate: Option<OwnedRwLockReadGuard<()>>,
}

/// What came of CreateContainer.
#[derive(Debug, Default)]
pub struct Created {
    pub adjust: api::ContainerAdjustment,
    /// Other limits for other containers.
    pub updates: Vec<api::ContainerUpdate>,
    /// Who asked for what.
    pub owners: Owners,
}

fn owner(plugin: &Plugin) -> Owner {
    Owner {
        number: plugin.number,
        name: plugin.name().to_owned(),
    }
}

impl Pass {
    /// Nobody would hear of anything.
    pub fn is_idle(&self) -> bool {
        self.plugins.is_empty()
    }

    /// Neither a plugin nor the validator has a say in what a container becomes.
    pub fn changes_nothing(&self) -> bool {
        self.plugins.is_empty() && self.validator.is_none()
    }

    /// Tells all. The first who refuses ends it.
    pub async fn tell(
        &self,
        event: Event,
        pod: &api::PodSandbox,
        container: Option<&api::Container>,
    ) -> Result<(), Error> {
        for plugin in self.plugins.iter().filter(|p| p.wants(event)) {
            if let Answer::Refused(error) = told(plugin, event, pod, container).await {
                return Err(error);
            }
        }
        Ok(())
    }

    /// [`Self::tell`] of what is done already, or has to be: who refuses is heard of in the log.
    pub async fn inform(
        &self,
        event: Event,
        pod: &api::PodSandbox,
        container: Option<&api::Container>,
    ) {
        for plugin in self.plugins.iter().filter(|p| p.wants(event)) {
            if let Answer::Refused(error) = told(plugin, event, pod, container).await {
                tracing::warn!("{error}; it goes on");
            }
        }
    }

    /// A pod whose limits are about to change.
    pub async fn update_pod_sandbox(
        &self,
        request: &api::UpdatePodSandboxRequest,
    ) -> Result<(), Error> {
        for plugin in self.plugins.iter() {
            if !plugin.wants(Event::UPDATE_POD_SANDBOX) {
                continue;
            }
            let answer = plugin
                .ask("UpdatePodSandbox", plugin.request_timeout(), |context| {
                    plugin.client().update_pod_sandbox(context, request)
                })
                .await;
            if let Answer::Refused(error) = answer {
                return Err(error);
            }
        }
        Ok(())
    }

    /// A container that is about to be made: what is to be changed in it, and in others.
    pub async fn create_container(
        &self,
        pod: &api::PodSandbox,
        container: api::Container,
    ) -> Result<Created, Error> {
        let pristine = container.clone();
        let mut all = Adjustments::new(container);
        let mut asked = vec![];
        for plugin in self.plugins.iter() {
            if !plugin.wants(Event::CREATE_CONTAINER) {
                asked.push(plugin.instance());
                continue;
            }
            let request = api::CreateContainerRequest {
                pod: MessageField::some(pod.clone()),
                container: MessageField::some(all.container.clone()),
                ..Default::default()
            };
            let answer = plugin
                .ask("CreateContainer", plugin.request_timeout(), |context| {
                    plugin.client().create_container(context, &request)
                })
                .await;
            match answer {
                Answer::Said(answer) => all.take(answer, &owner(plugin))?,
                Answer::Refused(error) => return Err(error),
                Answer::Gone => continue,
            }
            asked.push(plugin.instance());
        }
        self.validate(pod, &pristine, &all, asked).await?;
        Ok(Created {
            adjust: all.adjust,
            updates: all.updates.list,
            owners: all.owners,
        })
    }

    async fn validate(
        &self,
        pod: &api::PodSandbox,
        pristine: &api::Container,
        all: &Adjustments,
        asked: Vec<api::PluginInstance>,
    ) -> Result<(), Error> {
        if let Some(validator) = &self.validator {
            validator.check(pod, pristine, &all.owners, &asked)?;
        }
        let event = Event::VALIDATE_CONTAINER_ADJUSTMENT;
        let validators: Vec<_> = self.plugins.iter().filter(|p| p.wants(event)).collect();
        if validators.is_empty() {
            return Ok(());
        }
        let request = api::ValidateContainerAdjustmentRequest {
            pod: MessageField::some(pod.clone()),
            container: MessageField::some(pristine.clone()),
            adjust: MessageField::some(all.adjust.clone()),
            update: all.updates.list.clone(),
            owners: MessageField::some(all.owners.message()),
            plugins: asked,
            ..Default::default()
        };
        let answers = validators.iter().map(|plugin| async {
            let answer = plugin
                .ask(
                    "ValidateContainerAdjustment",
                    plugin.request_timeout(),
                    |context| {
                        plugin
                            .client()
                            .validate_container_adjustment(context, &request)
                    },
                )
                .await;
            let rejected = |why: &str| {
                Err(Error::Rejected {
                    validator: plugin.name().to_owned(),
                    why: why.to_owned(),
                })
            };
            match answer {
                Answer::Said(answer) if answer.reject => match answer.reason.as_str() {
                    "" => rejected("it gives no reason"),
                    why => rejected(&why.chars().take(1024).collect::<String>()),
                },
                Answer::Said(_) => Ok(()),
                Answer::Refused(error) => Err(error),
                // Who was to judge and is gone has not agreed.
                Answer::Gone => rejected("it is gone, and has not agreed"),
            }
        });
        futures_util::future::try_join_all(answers).await.map(drop)
    }

    /// A container whose limits are about to change: to what, and those of which others.
    pub async fn update_container(
        &self,
        pod: &api::PodSandbox,
        container: &api::Container,
        asked: api::LinuxResources,
    ) -> Result<(api::LinuxResources, Vec<api::ContainerUpdate>), Error> {
        let mut wanted = asked;
        let mut updates = Updates::default();
        let mut owners = Owners::default();
        for plugin in self.plugins.iter() {
            if !plugin.wants(Event::UPDATE_CONTAINER) {
                continue;
            }
            let request = api::UpdateContainerRequest {
                pod: MessageField::some(pod.clone()),
                container: MessageField::some(container.clone()),
                linux_resources: MessageField::some(wanted.clone()),
                ..Default::default()
            };
            let answer = plugin
                .ask("UpdateContainer", plugin.request_timeout(), |context| {
                    plugin.client().update_container(context, &request)
                })
                .await;
            let answer = match answer {
                Answer::Said(answer) => answer,
                Answer::Refused(error) => return Err(error),
                Answer::Gone => continue,
            };
            for evict in &answer.evict {
                tracing::warn!(plugin = %plugin.name(), container_id = %evict.container_id.escape_debug(), "NRI plugin asks for an eviction: Berth ends no container for a plugin");
            }
            updates.take(answer.update, &owner(plugin), &mut owners)?;
            if let Some(own) = updates
                .list
                .iter()
                .find(|update| update.container_id == container.id)
                && let Some(own) = own.linux.resources.as_ref()
            {
                resources::overlay(&mut wanted, own);
            }
        }
        updates
            .list
            .retain(|update| update.container_id != container.id);
        Ok((wanted, updates.list))
    }

    /// A container that has stopped: the limits that others are to have now. Who refuses is heard of in the log.
    pub async fn stop_container(
        &self,
        pod: &api::PodSandbox,
        container: &api::Container,
    ) -> Vec<api::ContainerUpdate> {
        let mut updates = Updates::default();
        let mut owners = Owners::default();
        for plugin in self.plugins.iter() {
            if !plugin.wants(Event::STOP_CONTAINER) {
                continue;
            }
            let request = api::StopContainerRequest {
                pod: MessageField::some(pod.clone()),
                container: MessageField::some(container.clone()),
                ..Default::default()
            };
            let answer = plugin
                .ask("StopContainer", plugin.request_timeout(), |context| {
                    plugin.client().stop_container(context, &request)
                })
                .await;
            let taken = match answer {
                Answer::Said(answer) => updates.take(answer.update, &owner(plugin), &mut owners),
                Answer::Refused(error) => Err(error),
                Answer::Gone => Ok(()),
            };
            if let Err(error) = taken {
                tracing::warn!("{error}; the container has stopped all the same");
            }
        }
        updates.list
    }
}

/// One event with no answer, to one plugin.
async fn told(
    plugin: &Plugin,
    event: Event,
    pod: &api::PodSandbox,
    container: Option<&api::Container>,
) -> Answer<()> {
    let (pod, container) = (
        MessageField::some(pod.clone()),
        MessageField::from_option(container.cloned()),
    );
    let state = api::StateChangeEvent {
        event: event.into(),
        pod: pod.clone(),
        container: container.clone(),
        ..Default::default()
    };
    let client = plugin.client();
    macro_rules! of_pod {
        ($request:ident, $name:literal, $call:ident) => {{
            let request = api::$request {
                pod,
                ..Default::default()
            };
            let call = |context| client.$call(context, &request);
            plugin.tell($name, state, call).await
        }};
    }
    macro_rules! of_container {
        ($request:ident, $name:literal, $call:ident) => {{
            let request = api::$request {
                pod,
                container,
                ..Default::default()
            };
            let call = |context| client.$call(context, &request);
            plugin.tell($name, state, call).await
        }};
    }
    match event {
        Event::RUN_POD_SANDBOX => {
            of_pod!(RunPodSandboxRequest, "RunPodSandbox", run_pod_sandbox)
        }
        Event::POST_UPDATE_POD_SANDBOX => of_pod!(
            PostUpdatePodSandboxRequest,
            "PostUpdatePodSandbox",
            post_update_pod_sandbox
        ),
        Event::STOP_POD_SANDBOX => {
            of_pod!(StopPodSandboxRequest, "StopPodSandbox", stop_pod_sandbox)
        }
        Event::REMOVE_POD_SANDBOX => of_pod!(
            RemovePodSandboxRequest,
            "RemovePodSandbox",
            remove_pod_sandbox
        ),
        Event::POST_CREATE_CONTAINER => of_container!(
            PostCreateContainerRequest,
            "PostCreateContainer",
            post_create_container
        ),
        Event::START_CONTAINER => {
            of_container!(StartContainerRequest, "StartContainer", start_container)
        }
        Event::POST_START_CONTAINER => of_container!(
            PostStartContainerRequest,
            "PostStartContainer",
            post_start_container
        ),
        Event::POST_UPDATE_CONTAINER => of_container!(
            PostUpdateContainerRequest,
            "PostUpdateContainer",
            post_update_container
        ),
        Event::REMOVE_CONTAINER => {
            of_container!(RemoveContainerRequest, "RemoveContainer", remove_container)
        }
        // They have answers, and calls of their own.
        Event::UNKNOWN
        | Event::LAST
        | Event::CREATE_CONTAINER
        | Event::UPDATE_CONTAINER
        | Event::STOP_CONTAINER
        | Event::UPDATE_POD_SANDBOX
        | Event::VALIDATE_CONTAINER_ADJUSTMENT => Answer::Gone,
    }
}
