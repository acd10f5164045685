//! A pod as it should be.

use std::{collections::BTreeMap, sync::OnceLock, time::Duration};

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, ResourceRequirements};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::problem::Problem;

/// What the API server's defaults say, for pods that came another way.
const DEFAULT_GRACE: Duration = Duration::from_secs(30);

/// The source of a pod that somebody runs by hand, without a server.
pub const RUN: &str = "run";

/// A pod that has a name, a namespace and a uid, and whose containers are one list.
#[derive(Debug, Clone)]
pub struct Desired {
    pub name: String,
    pub namespace: String,
    pub uid: String,
    /// Where it came from: `file`, `run`, [`crate::API`].
    pub source: &'static str,
    pub pod: Pod,
    pub spec: PodSpec,
    /// Init containers first, in their order, then the others, then ephemeral ones.
    pub containers: Vec<ContainerSpec>,
    /// The handler of its RuntimeClass, once that was looked up.
    pub(crate) handler: OnceLock<String>,
}

/// A container, what it is to the pod, and where it stands in the manifest.
#[derive(Debug, Clone)]
pub struct ContainerSpec {
    pub role: Role,
    pub container: Container,
    /// `spec.containers[0]`.
    pub path: String,
    /// Of an ephemeral container: whose processes it wants to see.
    pub target: Option<String>,
    /// Of name and image, as upstream: what makes it another container.
    pub hash: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Runs to its end before the next one begins.
    Init,
    /// An init container with `restartPolicy: Always`: the next one begins when it has started, and it goes on.
    Sidecar,
    Main,
    /// Added to a running pod, for a look; never started again.
    Ephemeral,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RestartPolicy {
    Always,
    OnFailure,
    Never,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PullPolicy {
    Always,
    IfNotPresent,
    Never,
}

/// What of a desired pod is kept on disk, so that it can be ended, or begun again after a reboot, by a kubelet that knows nothing else of it.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Kept {
    pub source: String,
    pub pod: Pod,
}

impl Desired {
    /// # Errors
    /// Without a uid, a name or a spec, which validation has asked for.
    pub fn new(pod: Pod, source: &'static str) -> Result<Self, Problem> {
        let text = |value: &Option<String>, path: &str| {
            value
                .clone()
                .filter(|value| !value.is_empty())
                .ok_or_else(|| Problem::new(path, "must be set"))
        };
        let spec = pod
            .spec
            .clone()
            .ok_or_else(|| Problem::new("spec", "must be set"))?;
        let uid = text(&pod.metadata.uid, "metadata.uid")?;
        if !is_path_component(&uid) {
            let what = format!(
                "{uid:?} is not a uid (letters, digits, '-', '_', '.'; at most {MAX_COMPONENT})"
            );
            return Err(Problem::new("metadata.uid", what));
        }
        Ok(Self {
            name: text(&pod.metadata.name, "metadata.name")?,
            namespace: text(&pod.metadata.namespace, "metadata.namespace")?,
            uid,
            source,
            containers: containers(&spec)?,
            handler: OnceLock::new(),
            spec,
            pod,
        })
    }

    /// `namespace/name`.
    pub fn full_name(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }

    pub fn restart_policy(&self) -> RestartPolicy {
        match self.spec.restart_policy.as_deref() {
            Some("Never") => RestartPolicy::Never,
            Some("OnFailure") => RestartPolicy::OnFailure,
            _ => RestartPolicy::Always,
        }
    }

    pub fn grace(&self) -> Duration {
        match self.spec.termination_grace_period_seconds {
            Some(seconds) => Duration::from_secs(seconds.max(0).unsigned_abs()),
            None => DEFAULT_GRACE,
        }
    }

    /// Whether it gets a new sandbox when its own has died. Not where nothing in it is ever started again; nor where somebody runs it by hand:
    /// who stops or removes its sandbox means the pod.
    pub(crate) fn outlives_its_sandbox(&self) -> bool {
        self.restart_policy() != RestartPolicy::Never && self.source != RUN
    }

    pub fn host_network(&self) -> bool {
        self.spec.host_network == Some(true)
    }

    /// Requests and limits of the pod as a whole, where it has any.
    pub(crate) fn resources(&self) -> Option<&ResourceRequirements> {
        let has_any = |it: &&ResourceRequirements| {
            let lists = [&it.requests, &it.limits];
            lists.into_iter().flatten().any(|list| !list.is_empty())
        };
        self.spec.resources.as_ref().filter(has_any)
    }

    /// Handler of the runtime: that of the RuntimeClass, which without a server can only be its name.
    pub fn runtime_handler(&self) -> String {
        match self.handler.get() {
            Some(handler) => handler.clone(),
            None => self.spec.runtime_class_name.clone().unwrap_or_default(),
        }
    }

    /// In how many seconds it is to be gone, where it was deleted from the API.
    pub fn deletion(&self) -> Option<Duration> {
        self.pod.metadata.deletion_timestamp.as_ref()?;
        let seconds = self.pod.metadata.deletion_grace_period_seconds;
        Some(match seconds {
            Some(seconds) => Duration::from_secs(seconds.max(0).unsigned_abs()),
            None => self.grace(),
        })
    }

    /// Whether a worker has something to do about it that `before` was known to: what others tell of the pod is not, but for what a readiness gate
    /// waits for.
    pub(crate) fn differs(&self, before: &Self) -> bool {
        let meta = |it: &Self| {
            let metadata = &it.pod.metadata;
            (metadata.labels.clone(), metadata.annotations.clone())
        };
        let gates = |it: &Self| {
            let status = it.pod.status.clone().unwrap_or_default();
            let mut all = status.conditions.unwrap_or_default();
            let wanted = it.spec.readiness_gates.clone().unwrap_or_default();
            all.retain(|one| wanted.iter().any(|gate| gate.condition_type == one.type_));
            all
        };
        self.pod.spec != before.pod.spec
            || meta(self) != meta(before)
            || gates(self) != gates(before)
    }

    pub fn container(&self, name: &str) -> Option<&ContainerSpec> {
        self.containers
            .iter()
            .find(|one| one.container.name == name)
    }

    pub fn of_role(&self, role: Role) -> impl Iterator<Item = &ContainerSpec> {
        self.containers.iter().filter(move |one| one.role == role)
    }

    pub(crate) fn annotations(&self) -> BTreeMap<String, String> {
        self.pod.metadata.annotations.clone().unwrap_or_default()
    }
}

impl ContainerSpec {
    pub fn name(&self) -> &str {
        &self.container.name
    }

    pub fn image(&self) -> &str {
        self.container.image.as_deref().unwrap_or_default()
    }

    pub fn pull_policy(&self) -> PullPolicy {
        match self.container.image_pull_policy.as_deref() {
            Some("Always") => PullPolicy::Always,
            Some("Never") => PullPolicy::Never,
            // the defaults have looked at the tag
            _ => PullPolicy::IfNotPresent,
        }
    }

    /// Whether one that has ended with `exit_code` is started again.
    pub fn restarts(&self, policy: RestartPolicy, exit_code: i32) -> bool {
        match (self.role, policy) {
            (Role::Ephemeral, _) => false,
            (Role::Sidecar, _) => true,
            // one that has succeeded is done, whatever the policy
            (Role::Init, RestartPolicy::Never) => false,
            (Role::Init, _) => exit_code != 0,
            (Role::Main, RestartPolicy::Always) => true,
            (Role::Main, RestartPolicy::OnFailure) => exit_code != 0,
            (Role::Main, RestartPolicy::Never) => false,
        }
    }
}

fn containers(spec: &PodSpec) -> Result<Vec<ContainerSpec>, Problem> {
    let mut all = Vec::new();
    for (index, container) in spec.init_containers.iter().flatten().enumerate() {
        let role = match container.restart_policy.as_deref() {
            Some("Always") => Role::Sidecar,
            _ => Role::Init,
        };
        all.push(one(
            container.clone(),
            role,
            format!("spec.initContainers[{index}]"),
            None,
        ));
    }
    for (index, container) in spec.containers.iter().enumerate() {
        all.push(one(
            container.clone(),
            Role::Main,
            format!("spec.containers[{index}]"),
            None,
        ));
    }
    for (index, ephemeral) in spec.ephemeral_containers.iter().flatten().enumerate() {
        let path = format!("spec.ephemeralContainers[{index}]");
        // It has the fields of a container, and one more, which a container's decoder skips.
        let container = serde_json::to_value(ephemeral)
            .and_then(serde_json::from_value)
            .map_err(|error| Problem::new(&path, error.to_string()))?;
        let target = ephemeral.target_container_name.clone();
        all.push(one(
            container,
            Role::Ephemeral,
            path,
            target.filter(|name| !name.is_empty()),
        ));
    }
    Ok(all)
}

fn one(container: Container, role: Role, path: String, target: Option<String>) -> ContainerSpec {
    let image = container.image.as_deref().unwrap_or_default();
    let hash = digest(&[container.name.as_bytes(), image.as_bytes()]);
    ContainerSpec {
        hash: hash[..16].to_owned(),
        role,
        container,
        path,
        target,
    }
}

/// SHA-256 of parts, as 64 hexadecimal digits; where one part ends and the next begins counts.
pub(crate) fn digest(parts: &[&[u8]]) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    hex::encode(hash.finalize())
}

/// The longest name in Kubernetes is a DNS name's; the kernel takes 255 bytes.
const MAX_COMPONENT: usize = 253;

/// Safe as the name of one directory.
pub fn is_path_component(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= MAX_COMPONENT
        && name != "."
        && name != ".."
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A pod of these lines of YAML under `spec:`, with what the API's defaults fill in.
    pub fn pod(spec: &str) -> Desired {
        named("web", spec)
    }

    pub fn named(name: &str, spec: &str) -> Desired {
        let text = format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: default, uid: uid-1, labels: {{app: x}}}}\nspec:\n{spec}\n"
        );
        let pod = crate::manifest::read_pod(&text, crate::manifest::Origin::Server)
            .expect("a good manifest");
        Desired::new(pod, "file").expect("a good pod")
    }

    #[test]
    fn containers_are_one_list_in_the_order_of_their_start() {
        let pod = pod(
            "  initContainers:\n  - {name: i, image: x}\n  - {name: s, image: x, restartPolicy: Always}\n  containers:\n  - {name: m, image: x:1}",
        );
        let all: Vec<_> = pod
            .containers
            .iter()
            .map(|one| (one.name(), one.role, one.path.as_str()))
            .collect();
        assert_eq!(
            all,
            [
                ("i", Role::Init, "spec.initContainers[0]"),
                ("s", Role::Sidecar, "spec.initContainers[1]"),
                ("m", Role::Main, "spec.containers[0]"),
            ]
        );
        assert_eq!(
            pod.container("i").unwrap().pull_policy(),
            PullPolicy::Always
        );
        assert_eq!(
            pod.container("m").unwrap().pull_policy(),
            PullPolicy::IfNotPresent
        );
        assert_eq!(pod.grace(), Duration::from_secs(30));
    }

    #[test]
    fn who_is_started_again_hangs_on_role_policy_and_exit_code() {
        use RestartPolicy::*;
        use Role::*;
        let mut spec = pod("  containers: [{name: m, image: x}]").containers[0].clone();
        for (role, policy, after_0, after_1) in [
            (Main, Always, true, true),
            (Main, OnFailure, false, true),
            (Main, Never, false, false),
            (Init, Always, false, true),
            (Init, OnFailure, false, true),
            (Init, Never, false, false),
            (Sidecar, Never, true, true),
            (Ephemeral, Always, false, false),
        ] {
            spec.role = role;
            assert_eq!(
                (spec.restarts(policy, 0), spec.restarts(policy, 1)),
                (after_0, after_1),
                "{role:?} {policy:?}"
            );
        }
    }
}
