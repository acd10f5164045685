//! HorizontalPodAutoscalers: as many replicas as their metrics ask for, within what their behavior allows, set by the target's `scale`.
//!
//! ```text
//! scale ─▶ usage (metrics.k8s.io) ─▶ replicas: what each metric asks for ─▶ behavior: how much of it just now ─▶ scale
//! ```
//!
//! Metrics of resources are all there are: of pods, objects and others outside a condition says that nobody is asked for them.

mod behavior;
mod replicas;
mod selector;
mod usage;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use berth_recorder::Level;
use jiff::Timestamp;
use k8s_openapi::{
    api::{
        autoscaling::{
            v1::Scale,
            v2::{
                ContainerResourceMetricStatus, HorizontalPodAutoscaler,
                HorizontalPodAutoscalerCondition, HorizontalPodAutoscalerStatus, MetricSpec,
                MetricStatus, MetricTarget, MetricValueStatus, ResourceMetricStatus,
            },
        },
        core::v1::Pod,
    },
    apimachinery::pkg::{api::resource::Quantity, apis::meta::v1::Time},
};
use kube::{
    Resource,
    api::{ListParams, PostParams},
    core::{ApiResource, DynamicObject, GroupVersionKind, Selector, SelectorExt, request::Request},
};
use serde::de::DeserializeOwned;
use tokio::time::timeout;

use self::{
    behavior::{Behavior, Bounds, History, Settled},
    replicas::{Metric, Proposal, Target, Tolerances, propose},
    usage::{PodMetricsList, milli, written},
};
use crate::{
    Cache, Context, Error, Key, Queue,
    controller::{Controller, Next},
};

/// As upstream.
const EVERY: Duration = Duration::from_secs(15);
/// One request.
const CALL: Duration = Duration::from_secs(30);
/// Its events' source, as upstream's.
const COMPONENT: &str = "horizontal-pod-autoscaler";

/// What is known of one only here.
#[derive(Default)]
struct Memory {
    uid: String,
    history: History,
    /// Which pods its target has, as it was last seen.
    selector: Option<Selector>,
}

pub(crate) struct Autoscalers {
    context: Arc<Context>,
    autoscalers: Cache<HorizontalPodAutoscaler>,
    pods: Cache<Pod>,
    memories: Mutex<HashMap<Key, Memory>>,
}

/// Why it can't be told how many there should be: a reason and a message of condition ScalingActive.
struct Unable {
    reason: &'static str,
    message: String,
}

/// A metric's answer.
struct Answer {
    replicas: i32,
    /// What the metric is called.
    name: String,
    status: MetricStatus,
}

/// A status while it is worked out.
struct Report {
    status: HorizontalPodAutoscalerStatus,
    now: Timestamp,
}

impl Report {
    fn say(&mut self, type_: &str, is: bool, reason: &str, message: &str) {
        let conditions = self.status.conditions.get_or_insert_default();
        let status = if is { "True" } else { "False" };
        let new = HorizontalPodAutoscalerCondition {
            type_: type_.to_owned(),
            status: status.to_owned(),
            reason: Some(reason.to_owned()),
            message: Some(message.to_owned()),
            last_transition_time: Some(Time(self.now)),
        };
        match conditions.iter_mut().find(|one| one.type_ == type_) {
            Some(old) => {
                let since = old
                    .last_transition_time
                    .take()
                    .filter(|_| old.status == status);
                *old = new;
                old.last_transition_time = since.or(old.last_transition_time.take());
            }
            None => conditions.push(new),
        }
    }

    fn count(&mut self, current: i32, metrics: Vec<MetricStatus>) {
        self.status.current_replicas = Some(current);
        self.status.current_metrics = Some(metrics).filter(|metrics| !metrics.is_empty());
    }
}

impl Controller for Autoscalers {
    const NAME: &'static str = "horizontal-pod-autoscaler-controller";
    const ACCOUNT: &'static str = "horizontal-pod-autoscaler";

    fn new(context: Arc<Context>, queue: Queue) -> Self {
        let autoscalers = context.cache::<HorizontalPodAutoscaler>();
        autoscalers.on_change(move |old, new| {
            // its status is this controller's own: that is no news
            let is_news = match (old, new) {
                (Some(old), Some(new)) => {
                    old.spec != new.spec || old.metadata.uid != new.metadata.uid
                }
                _ => true,
            };
            if let Some(autoscaler) = new.or(old).filter(|_| is_news) {
                queue.add(Key::of(&**autoscaler));
            }
        });
        Self {
            pods: context.cache(),
            context,
            autoscalers,
            memories: Mutex::default(),
        }
    }

    async fn reconcile(&self, key: &Key) -> Result<Next, Error> {
        let Some(autoscaler) = self.autoscalers.get(key) else {
            self.memories().remove(key);
            return Ok(Next::Settled);
        };
        if autoscaler.metadata.deletion_timestamp.is_none() {
            let uid = autoscaler.metadata.uid.clone().unwrap_or_default();
            let memory = |memories: &mut HashMap<Key, Memory>| {
                let memory = memories.entry(key.clone()).or_default();
                if memory.uid != uid {
                    *memory = Memory {
                        uid,
                        ..Memory::default()
                    };
                }
            };
            memory(&mut self.memories());
            let mut report = Report {
                status: autoscaler.status.clone().unwrap_or_default(),
                now: self.context.now(),
            };
            // what failed stands in the status and in an event, and is tried again
            self.scale(key, &autoscaler, &mut report).await;
            if Some(&report.status) != autoscaler.status.as_ref() {
                let mut new = (*autoscaler).clone();
                new.status = Some(report.status);
                self.context.update_status(&new).await?;
            }
        }
        Ok(Next::After(EVERY))
    }
}

impl Autoscalers {
    fn memories(&self) -> MutexGuard<'_, HashMap<Key, Memory>> {
        self.memories.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, of: &HorizontalPodAutoscaler, level: Level, reason: &str, message: String) {
        self.context.event(of, COMPONENT, level, reason, message);
    }

    async fn scale(&self, key: &Key, of: &HorizontalPodAutoscaler, report: &mut Report) {
        let target = &of.spec.scale_target_ref;
        let (kind, scale) = match self.target(of).await {
            Ok(found) => found,
            Err(why) => {
                let message = format!(
                    "the HPA controller was unable to get the target's current scale: {why}"
                );
                report.say("AbleToScale", false, "FailedGetScale", &message);
                self.tell(of, Level::Warning, "FailedGetScale", why);
                return;
            }
        };
        let message = "the HPA controller was able to get the target's current scale";
        report.say("AbleToScale", true, "SucceededGetScale", message);
        let current = scale
            .spec
            .as_ref()
            .and_then(|spec| spec.replicas)
            .unwrap_or(0);
        let (min, max) = (of.spec.min_replicas.unwrap_or(1), of.spec.max_replicas);
        let now = Timestamp::now();
        if let Some(memory) = self.memories().get_mut(key) {
            memory.history.begin(current, now);
        }
        let mut metrics = Vec::new();
        let (wanted, why) = if current == 0 {
            let message = "scaling is disabled since the replica count of the target is zero";
            report.say("ScalingActive", false, "ScalingDisabled", message);
            (0, String::new())
        } else if current > max {
            (
                max,
                "Current number of replicas above Spec.MaxReplicas".into(),
            )
        } else if current < min {
            (
                min,
                "Current number of replicas below Spec.MinReplicas".into(),
            )
        } else {
            let (asked, statuses) = self.ask(key, of, &scale, current, report).await;
            metrics = statuses;
            let Some((wish, name)) = asked else {
                report.count(current, metrics);
                return;
            };
            let behavior = of.spec.behavior.as_ref().map(Behavior::of);
            let bounds = Bounds { min, max, current };
            let settled = match self.memories().get_mut(key) {
                Some(memory) => memory.history.settle(behavior.as_ref(), bounds, wish, now),
                None => return,
            };
            limits(report, &settled);
            let why = if wish > current {
                format!("{name} above target")
            } else {
                "All metrics below target".into()
            };
            (settled.replicas, why)
        };
        let mut replicas = current;
        if wanted != current {
            if let Err(error) = self.set(key, &kind, scale, wanted).await {
                let message =
                    format!("the HPA controller was unable to update the target scale: {error}");
                report.say("AbleToScale", false, "FailedUpdateScale", &message);
                report.count(current, metrics);
                let message = format!("New size: {wanted}; reason: {why}; error: {error}");
                self.tell(of, Level::Warning, "FailedRescale", message);
                return;
            }
            let message =
                format!("the HPA controller was able to update the target scale to {wanted}");
            report.say("AbleToScale", true, "SucceededRescale", &message);
            self.tell(
                of,
                Level::Normal,
                "SuccessfulRescale",
                format!("New size: {wanted}; reason: {why}"),
            );
            if let Some(memory) = self.memories().get_mut(key) {
                memory.history.scaled(current, wanted, now);
            }
            tracing::info!(autoscaler = %key, kind = target.kind, name = target.name, current, wanted, "scaled");
            report.status.last_scale_time = Some(Time(report.now));
            replicas = wanted;
        }
        report.count(current, metrics);
        report.status.desired_replicas = replicas;
    }

    /// What all metrics together ask for, and which asks for most; with what each is.
    async fn ask(
        &self,
        key: &Key,
        of: &HorizontalPodAutoscaler,
        scale: &Scale,
        current: i32,
        report: &mut Report,
    ) -> (Option<(i32, String)>, Vec<MetricStatus>) {
        let pods = match self.targets_pods(key, scale) {
            Ok(pods) => pods,
            Err((event, unable)) => {
                report.say("ScalingActive", false, unable.reason, &unable.message);
                self.tell(of, Level::Warning, event, unable.message.clone());
                self.tell(
                    of,
                    Level::Warning,
                    "FailedComputeMetricsReplicas",
                    unable.message,
                );
                return (None, Vec::new());
            }
        };
        let all = of.spec.metrics.as_deref().unwrap_or_default();
        let (mut most, mut statuses, mut unable): (Option<(i32, String)>, Vec<_>, Vec<Unable>) =
            Default::default();
        for spec in all {
            match self.ask_one(of, spec, scale, &pods, current).await {
                Ok(answer) => {
                    if most
                        .as_ref()
                        .is_none_or(|(most, _)| answer.replicas > *most)
                    {
                        most = Some((answer.replicas, answer.name));
                    }
                    statuses.push(answer.status);
                }
                Err(why) => {
                    self.tell(of, Level::Warning, why.reason, why.message.clone());
                    unable.push(why);
                    // clients find a metric's status by its place
                    statuses.push(MetricStatus::default());
                }
            }
        }
        let failed = unable.len();
        let most = match (most, unable.into_iter().next()) {
            (Some(most), None) => most,
            // what is known asks for more already: what is not known would not ask for less
            (Some(most), Some(_)) if most.0 >= current => most,
            (_, None) => return (None, statuses),
            (_, Some(first)) => {
                let message = format!(
                    "the HPA was unable to compute the replica count: {}",
                    first.message
                );
                report.say("ScalingActive", false, first.reason, &message);
                let message = format!(
                    "invalid metrics ({failed} invalid out of {}), first error is: {}",
                    all.len(),
                    first.message
                );
                self.tell(of, Level::Warning, "FailedComputeMetricsReplicas", message);
                return (None, statuses);
            }
        };
        let message = format!(
            "the HPA was able to successfully calculate a replica count from {}",
            most.1
        );
        report.say("ScalingActive", true, "ValidMetricFound", &message);
        (Some(most), statuses)
    }

    /// Those that the target's selector takes, and the selectors of no other autoscaler.
    fn targets_pods(
        &self,
        key: &Key,
        scale: &Scale,
    ) -> Result<Vec<Arc<Pod>>, (&'static str, Unable)> {
        let unable = |event, reason, message: String| (event, Unable { reason, message });
        let text = scale
            .status
            .as_ref()
            .and_then(|status| status.selector.as_deref());
        let text = text.unwrap_or_default();
        if text.is_empty() {
            let message = "the HPA target's scale is missing a selector".into();
            return Err(unable("SelectorRequired", "InvalidSelector", message));
        }
        let selector = selector::parse(text).map_err(|error| {
            let message = format!(
                "couldn't convert selector into a corresponding internal selector object: {error}"
            );
            unable("InvalidSelector", "InvalidSelector", message)
        })?;
        let empty = Default::default();
        let takes = |selector: &Selector, pod: &Pod| {
            selector.matches(pod.metadata.labels.as_ref().unwrap_or(&empty))
        };
        let mut pods = self.pods.in_namespace(&key.namespace);
        pods.retain(|pod| takes(&selector, pod));
        let mut memories = self.memories();
        if let Some(memory) = memories.get_mut(key) {
            memory.selector = Some(selector);
        }
        let mut others: Vec<String> = memories
            .iter()
            .filter(|(other, _)| other.namespace == key.namespace)
            .filter(|(_, memory)| {
                memory
                    .selector
                    .as_ref()
                    .is_some_and(|selector| pods.iter().any(|pod| takes(selector, pod)))
            })
            .map(|(other, _)| other.to_string())
            .collect();
        drop(memories);
        others.sort();
        if others.len() > 1 {
            let message = format!(
                "pods by selector {text} are controlled by multiple HPAs: [{}]",
                others.join(" ")
            );
            return Err(unable("AmbiguousSelector", "AmbiguousSelector", message));
        }
        Ok(pods)
    }

    async fn ask_one(
        &self,
        of: &HorizontalPodAutoscaler,
        spec: &MetricSpec,
        scale: &Scale,
        pods: &[Arc<Pod>],
        current: i32,
    ) -> Result<Answer, Unable> {
        let unable = |reason, message: String| Unable { reason, message };
        let nobody = |kind: &str, api: &str| {
            format!(
                "unable to get {kind}: the {api} metrics API is not asked by this controller: metrics of types Resource and ContainerResource are"
            )
        };
        let (resource, container, target, reason) = match (
            spec.type_.as_str(),
            &spec.resource,
            &spec.container_resource,
        ) {
            ("Resource", Some(one), _) => (&one.name, None, &one.target, "FailedGetResourceMetric"),
            ("ContainerResource", _, Some(one)) => (
                &one.name,
                Some(one.container.as_str()),
                &one.target,
                "FailedGetContainerResourceMetric",
            ),
            ("Pods", ..) => {
                return Err(unable(
                    "FailedGetPodsMetric",
                    nobody("pods metric", "custom"),
                ));
            }
            ("Object", ..) => {
                return Err(unable(
                    "FailedGetObjectMetric",
                    nobody("object metric", "custom"),
                ));
            }
            ("External", ..) => {
                return Err(unable(
                    "FailedGetExternalMetric",
                    nobody("external metric", "external"),
                ));
            }
            (other, ..) => {
                return Err(unable(
                    "InvalidMetricSourceType",
                    format!("unknown metric source type {other:?}"),
                ));
            }
        };
        let wanted = wanted(target).ok_or_else(|| {
            let message = "invalid resource metric source: neither an average utilization target nor an average value (usage) target was set";
            unable(reason, message.into())
        })?;
        let what = match wanted {
            Target::Utilization(_) => "utilization",
            Target::Average(_) => "usage",
        };
        let failed =
            |why: String| unable(reason, format!("failed to get {resource} {what}: {why}"));
        let selector = scale
            .status
            .as_ref()
            .and_then(|status| status.selector.as_deref());
        let namespace = of.metadata.namespace.as_deref().unwrap_or_default();
        let usages = self
            .usages(namespace, selector.unwrap_or_default())
            .await
            .map_err(|why| {
                failed(format!(
                    "unable to get metrics for resource {resource}: {why}"
                ))
            })?;
        let metric = Metric {
            resource,
            container,
            target: wanted,
            tolerances: tolerances(of),
        };
        let proposal = propose(
            metric,
            pods,
            usages.of(resource, container),
            current,
            Timestamp::now(),
        )
        .map_err(failed)?;
        let name = match (wanted, container) {
            (Target::Average(_), _) => format!("{resource} resource"),
            (_, None) => format!("{resource} resource utilization (percentage of request)"),
            (_, Some(_)) => {
                format!("{resource} container resource utilization (percentage of request)")
            }
        };
        Ok(Answer {
            replicas: proposal.replicas,
            name,
            status: status(resource, container, &proposal),
        })
    }

    async fn usages(&self, namespace: &str, selector: &str) -> Result<PodMetricsList, String> {
        let from = Request::new(format!(
            "/apis/metrics.k8s.io/v1beta1/namespaces/{namespace}/pods"
        ));
        let request = from.list(&ListParams::default().labels(selector));
        let list: PodMetricsList = self
            .send(request)
            .await
            .map_err(|why| format!("unable to fetch metrics from resource metrics API: {why}"))?;
        if list.is_empty() {
            return Err("no metrics returned from resource metrics API".into());
        }
        Ok(list)
    }

    async fn send<T: DeserializeOwned>(
        &self,
        request: Result<http::Request<Vec<u8>>, kube::core::request::Error>,
    ) -> Result<T, String> {
        let request = request.map_err(|error| error.to_string())?;
        match timeout(CALL, self.context.client().request(request)).await {
            Ok(answer) => answer.map_err(|error| error.to_string()),
            Err(_) => Err(format!("no answer within {} s", CALL.as_secs())),
        }
    }

    /// What it scales, and how many there are of it.
    async fn target(&self, of: &HorizontalPodAutoscaler) -> Result<(Request, Scale), String> {
        let target = &of.spec.scale_target_ref;
        let version = target.api_version.as_deref().unwrap_or("v1");
        let (group, version) = version.split_once('/').unwrap_or(("", version));
        let kind = GroupVersionKind::gvk(group, version, &target.kind);
        let found = timeout(
            CALL,
            kube::discovery::pinned_kind(self.context.client(), &kind),
        )
        .await;
        let found: Result<(ApiResource, _), String> = match found {
            Ok(found) => found.map_err(|error| error.to_string()),
            Err(_) => Err(format!("no answer within {} s", CALL.as_secs())),
        };
        let (resource, _) = found.map_err(|why| {
            format!(
                "no matches for kind {:?} in group {group:?}: {why}",
                target.kind
            )
        })?;
        let path = DynamicObject::url_path(&resource, of.metadata.namespace.as_deref());
        let request = Request::new(path).get_subresource("scale", &target.name);
        let scale = self.send(request).await?;
        Ok((
            Request::new(DynamicObject::url_path(
                &resource,
                of.metadata.namespace.as_deref(),
            )),
            scale,
        ))
    }

    /// As it was read: if somebody has changed it since, the next look decides anew.
    async fn set(
        &self,
        key: &Key,
        of: &Request,
        mut scale: Scale,
        replicas: i32,
    ) -> Result<(), String> {
        scale.spec.get_or_insert_default().replicas = Some(replicas);
        let name = scale.metadata.name.clone().unwrap_or_default();
        let body = serde_json::to_vec(&scale).map_err(|error| format!("{key}: {error}"))?;
        let request = of.replace_subresource("scale", &name, &PostParams::default(), body);
        self.send::<Scale>(request).await.map(drop)
    }
}

fn limits(report: &mut Report, settled: &Settled) {
    let (reason, message) = settled.able;
    report.say("AbleToScale", true, reason, message);
    let (is_limited, (reason, message)) = settled.limited;
    report.say("ScalingLimited", is_limited, reason, message);
}

fn wanted(target: &MetricTarget) -> Option<Target> {
    match (&target.average_value, target.average_utilization) {
        (Some(value), _) => milli(&value.0).map(Target::Average),
        (None, Some(percent)) => Some(Target::Utilization(percent)),
        (None, None) => None,
    }
}

fn tolerances(of: &HorizontalPodAutoscaler) -> Tolerances {
    let behavior = of.spec.behavior.as_ref();
    let of = |quantity: Option<&Quantity>, default: f64| {
        let nano = quantity.and_then(|quantity| berth_kinds::Quantity::parse(&quantity.0));
        nano.map_or(default, |quantity| quantity.nano as f64 / 1e9)
    };
    let default = Tolerances::default();
    let up = behavior.and_then(|behavior| behavior.scale_up.as_ref()?.tolerance.as_ref());
    let down = behavior.and_then(|behavior| behavior.scale_down.as_ref()?.tolerance.as_ref());
    Tolerances {
        up: of(up, default.up),
        down: of(down, default.down),
    }
}

fn status(resource: &str, container: Option<&str>, proposal: &Proposal) -> MetricStatus {
    let current = MetricValueStatus {
        average_utilization: proposal.utilization,
        average_value: Some(Quantity(written(resource, proposal.average))),
        value: None,
    };
    let name = resource.to_owned();
    match container {
        None => MetricStatus {
            type_: "Resource".into(),
            resource: Some(ResourceMetricStatus { current, name }),
            ..MetricStatus::default()
        },
        Some(container) => MetricStatus {
            type_: "ContainerResource".into(),
            container_resource: Some(ContainerResourceMetricStatus {
                container: container.to_owned(),
                current,
                name,
            }),
            ..MetricStatus::default()
        },
    }
}
