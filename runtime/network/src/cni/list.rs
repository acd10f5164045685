//! A list of plugins run in its order (ADD, CHECK, GC, STATUS) or against it (DEL), each told what the specification has for it.

use std::{
    collections::HashMap,
    ffi::OsString,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use serde_json::{Map, Value, json};
use tokio::sync::Semaphore;

use super::{
    conf::{Conf, has_capability, plugin_type},
    error::{CniError, Failure, Phase},
    process::{self, Call, Failed},
    record::{Joined, Record},
    result,
    version::Version,
};
use crate::Bandwidth;

/// Plugins that run at the same time for pods that somebody waits for. Most of their time they wait for the kernel's one lock (RTNL).
const MAX_RUNNING: usize = 16;
/// VERSION and STATUS answer from what they know, and who asks waits in the middle of something else.
const QUICK_LIMIT: Duration = Duration::from_secs(5);
/// Runs plugins.
#[derive(Debug)]
pub struct Runner {
    bin_dirs: Vec<PathBuf>,
    /// Of one execution.
    limit: Duration,
    running: Semaphore,
    /// What each binary said to VERSION, until its file changes.
    spoken: Mutex<HashMap<PathBuf, Spoken>>,
}

type Spoken = (Option<(u64, u64, i64, i64)>, Vec<Version>);

/// A configuration that can be run here: every plugin is there and speaks the version.
#[derive(Debug, Clone)]
pub struct Plan {
    pub version: Version,
    pub binaries: Vec<PathBuf>,
}

impl Runner {
    pub fn new(bin_dirs: Vec<PathBuf>, limit: Duration) -> Self {
        Self {
            bin_dirs,
            limit,
            running: Semaphore::new(MAX_RUNNING),
            spoken: Mutex::default(),
        }
    }

    pub fn limit(&self) -> Duration {
        self.limit
    }

    fn binary(&self, conf: &Conf, plugin: &Map<String, Value>) -> Result<PathBuf, CniError> {
        let name = plugin_type(plugin);
        process::find(&self.bin_dirs, name).map_err(|failure| CniError::Missing {
            network: conf.name.clone(),
            plugin: name.to_owned(),
            failure,
        })
    }

    /// Finds the plugins and the newest version that they and the configuration have in common. Nothing of the network is touched.
    pub async fn plan(&self, conf: &Conf) -> Result<Plan, CniError> {
        let mut binaries = Vec::with_capacity(conf.plugins.len());
        let mut left = conf.versions.clone();
        if conf.plugins.len() > 1 {
            left.retain(|version| version.has_lists());
        }
        for plugin in &conf.plugins {
            let binary = self.binary(conf, plugin)?;
            let has = self.versions(conf, plugin, &binary).await?;
            left.retain(|version| has.contains(version));
            if left.is_empty() {
                return Err(CniError::Version {
                    network: conf.name.clone(),
                    plugin: plugin_type(plugin).to_owned(),
                    asked: conf.versions.clone(),
                    has,
                });
            }
            binaries.push(binary);
        }
        Ok(Plan {
            version: left[0],
            binaries,
        })
    }

    async fn versions(
        &self,
        conf: &Conf,
        plugin: &Map<String, Value>,
        binary: &Path,
    ) -> Result<Vec<Version>, CniError> {
        let stamp = process::stamp(binary);
        let known = {
            let spoken = self.spoken.lock().unwrap_or_else(PoisonError::into_inner);
            spoken.get(binary).cloned()
        };
        if let Some((at, versions)) = known
            && at == stamp
        {
            return Ok(versions);
        }
        // Plugins of the first specifications want every variable, whatever the command.
        let dummy = || OsString::from("dummy");
        let variables = vec![
            ("CNI_CONTAINERID", dummy()),
            ("CNI_NETNS", dummy()),
            ("CNI_IFNAME", dummy()),
        ];
        let asked = json!({"cniVersion": Version::NEWEST});
        let stdin = asked.to_string().into_bytes();
        let limit = self.limit.min(QUICK_LIMIT);
        let said = self
            .run(
                conf,
                plugin,
                binary,
                Phase::Version,
                variables,
                stdin,
                limit,
            )
            .await;
        let versions = match said {
            Ok(stdout) => spoken_versions(&stdout).map_err(|why| CniError::Plugin {
                network: conf.name.clone(),
                plugin: plugin_type(plugin).to_owned(),
                phase: Phase::Version,
                failure: Box::new(Failure::Rubbish(why)),
                stderr: String::new(),
            })?,
            // VERSION came with 0.2.0: who does not know it speaks 0.1.0.
            Err(CniError::Plugin { failure, .. })
                if matches!(*failure, Failure::Refused { .. } | Failure::Died { .. }) =>
            {
                vec![Version::V0_1_0]
            }
            Err(e) => return Err(e),
        };
        self.spoken
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(binary.to_owned(), (stamp, versions.clone()));
        Ok(versions)
    }

    /// ADD with each plugin in order; the result of the last.
    pub async fn add(
        &self,
        record: &Record,
        joined: &Joined,
        plan: &Plan,
    ) -> Result<Value, CniError> {
        let conf = &joined.conf;
        let mut previous: Option<Value> = None;
        for (plugin, binary) in conf.plugins.iter().zip(&plan.binaries) {
            let stdin = execution(record, joined, plugin, previous.as_ref());
            let variables = variables(record, joined, Some(&record.netns))?;
            let limit = self.limit;
            let stdout = self
                .run(conf, plugin, binary, Phase::Add, variables, stdin, limit)
                .await?;
            let refuse = |why| CniError::Result {
                network: conf.name.clone(),
                plugin: plugin_type(plugin).to_owned(),
                why,
            };
            let value = result::read(&stdout, joined.version).map_err(refuse)?;
            // Asked here, so that what is refused is the plugin's that said it.
            result::outcome(&value, joined.version, &joined.interface).map_err(refuse)?;
            previous = Some(value);
        }
        // A configuration has at least one plugin.
        Ok(previous.unwrap_or(Value::Null))
    }

    /// DEL with each plugin, last first. It stops at the first that fails: what comes before it in the list may be needed by the next try.
    pub async fn del(
        &self,
        record: &Record,
        joined: &Joined,
        netns: Option<&Path>,
        limit: Duration,
    ) -> Result<(), CniError> {
        let conf = &joined.conf;
        let result = joined
            .result
            .as_ref()
            .filter(|_| joined.version.has_check());
        for plugin in conf.plugins.iter().rev() {
            let binary = self.binary(conf, plugin)?;
            let stdin = execution(record, joined, plugin, result);
            let variables = variables(record, joined, netns)?;
            self.run(conf, plugin, &binary, Phase::Del, variables, stdin, limit)
                .await?;
        }
        Ok(())
    }

    /// Whether the pod is still attached as ADD left it. Nothing to ask where the version has no CHECK or the configuration wants none.
    pub async fn check(&self, record: &Record, joined: &Joined) -> Result<(), CniError> {
        let conf = &joined.conf;
        let Some(result) = &joined.result else {
            return Ok(());
        };
        if !joined.version.has_check() || conf.disable_check {
            return Ok(());
        }
        for plugin in &conf.plugins {
            let binary = self.binary(conf, plugin)?;
            let stdin = execution(record, joined, plugin, Some(result));
            let variables = variables(record, joined, Some(&record.netns))?;
            let limit = self.limit;
            self.run(conf, plugin, &binary, Phase::Check, variables, stdin, limit)
                .await?;
        }
        Ok(())
    }

    /// Whether the network takes pods now, as far as its plugins can tell.
    pub async fn status(&self, conf: &Conf) -> Result<(), CniError> {
        let plan = self.plan(conf).await?;
        if !plan.version.has_status_and_gc() {
            return Ok(());
        }
        let limit = self.limit.min(QUICK_LIMIT);
        for (plugin, binary) in conf.plugins.iter().zip(&plan.binaries) {
            let stdin = encoded(base(conf, plugin, plan.version));
            self.run(conf, plugin, binary, Phase::Status, vec![], stdin, limit)
                .await?;
        }
        Ok(())
    }

    /// Lets the plugins clean up what belongs to none of `valid` (container id, interface). Every plugin is asked, whatever the others
    /// say; the first error is returned.
    pub async fn gc(&self, conf: &Conf, valid: &[(String, String)]) -> Result<(), CniError> {
        let plan = self.plan(conf).await?;
        if !plan.version.has_status_and_gc() || conf.disable_gc {
            return Ok(());
        }
        let valid: Vec<_> = valid
            .iter()
            .map(|(id, interface)| json!({"containerID": id, "ifname": interface}))
            .collect();
        let mut first = Ok(());
        for (plugin, binary) in conf.plugins.iter().zip(&plan.binaries) {
            let mut told = base(conf, plugin, plan.version);
            told.insert("cni.dev/valid-attachments".into(), json!(valid));
            let (stdin, limit) = (encoded(told), self.limit);
            let done = self
                .run(conf, plugin, binary, Phase::Gc, vec![], stdin, limit)
                .await;
            first = first.and(done.map(drop));
        }
        first
    }

    #[allow(
        clippy::too_many_arguments,
        reason = "the words of one line of the specification"
    )]
    async fn run(
        &self,
        conf: &Conf,
        plugin: &Map<String, Value>,
        binary: &Path,
        phase: Phase,
        variables: Vec<(&'static str, OsString)>,
        stdin: Vec<u8>,
        limit: Duration,
    ) -> Result<Vec<u8>, CniError> {
        let call = Call {
            binary,
            phase,
            variables,
            bin_dirs: &self.bin_dirs,
            stdin,
            limit,
        };
        let _turn = self.running.acquire().await;
        let since = std::time::Instant::now();
        let ended = process::run(&call).await;
        tracing::debug!(
            network = conf.name,
            plugin = plugin_type(plugin),
            %phase,
            ms = since.elapsed().as_millis() as u64,
            good = ended.is_ok(),
            "CNI plugin"
        );
        ended.map_err(|Failed { failure, stderr }| CniError::Plugin {
            network: conf.name.clone(),
            plugin: plugin_type(plugin).to_owned(),
            phase,
            failure: Box::new(failure),
            stderr,
        })
    }
}

fn spoken_versions(stdout: &[u8]) -> Result<Vec<Version>, String> {
    let value: Value = serde_json::from_slice(stdout).map_err(|e| e.to_string())?;
    let all = value
        .get("supportedVersions")
        .and_then(Value::as_array)
        .ok_or("it has no list supportedVersions")?;
    Ok(all
        .iter()
        .filter_map(|version| Version::parse(version.as_str()?))
        .collect())
}

/// `CNI_*` of an operation on one pod.
fn variables(
    record: &Record,
    joined: &Joined,
    netns: Option<&Path>,
) -> Result<Vec<(&'static str, OsString)>, CniError> {
    Ok(vec![
        ("CNI_CONTAINERID", record.request.pod_id.clone().into()),
        // Empty where it is gone: DEL then frees what is not in it.
        ("CNI_NETNS", netns.map(Into::into).unwrap_or_default()),
        ("CNI_IFNAME", joined.interface.clone().into()),
        ("CNI_ARGS", arguments(record)?.into()),
    ])
}

/// `CNI_ARGS`: what plugins for Kubernetes know the pod by. Plugins that do not know a key ignore it.
pub fn arguments(record: &Record) -> Result<String, CniError> {
    let request = &record.request;
    let mut all = "IgnoreUnknown=1".to_owned();
    for (key, what, value) in [
        ("K8S_POD_NAMESPACE", "the namespace", &request.pod_namespace),
        ("K8S_POD_NAME", "the name", &request.pod_name),
        ("K8S_POD_INFRA_CONTAINER_ID", "the id", &request.pod_id),
        ("K8S_POD_UID", "the uid", &request.pod_uid),
    ] {
        if value.contains([';', '=']) || value.chars().any(char::is_control) {
            return Err(CniError::Argument {
                pod_id: request.pod_id.clone(),
                what,
                value: value.clone(),
            });
        }
        all.push_str(&format!(";{key}={value}"));
    }
    Ok(all)
}

/// The plugin's own configuration with the network's name and version; without the keys that are the runtime's to give.
fn base(conf: &Conf, plugin: &Map<String, Value>, version: Version) -> Map<String, Value> {
    let mut told = plugin.clone();
    for key in [
        "capabilities",
        "runtimeConfig",
        "prevResult",
        "cniVersions",
        "disableCheck",
        "disableGC",
        "loadOnlyInlinedPlugins",
    ] {
        told.remove(key);
    }
    told.insert("name".into(), json!(conf.name));
    told.insert("cniVersion".into(), json!(version));
    told
}

fn execution(
    record: &Record,
    joined: &Joined,
    plugin: &Map<String, Value>,
    previous: Option<&Value>,
) -> Vec<u8> {
    let mut told = base(&joined.conf, plugin, joined.version);
    let runtime = runtime_config(record, plugin);
    if !runtime.is_empty() {
        told.insert("runtimeConfig".into(), Value::Object(runtime));
    }
    if let Some(previous) = previous.filter(|_| joined.version.has_lists()) {
        told.insert("prevResult".into(), previous.clone());
    }
    encoded(told)
}

fn encoded(told: Map<String, Value>) -> Vec<u8> {
    Value::Object(told).to_string().into_bytes()
}

/// What the pod asks for, as far as the plugin declares that it understands it.
fn runtime_config(record: &Record, plugin: &Map<String, Value>) -> Map<String, Value> {
    let request = &record.request;
    let mut all = Map::new();
    let mut give = |capability: &str, value: Option<Value>| {
        if let Some(value) = value.filter(|_| has_capability(plugin, capability)) {
            all.insert(capability.into(), value);
        }
    };
    let ports: Vec<_> = request
        .port_mappings
        .iter()
        .map(|mapping| {
            let mut one = json!({
                "hostPort": mapping.host_port,
                "containerPort": mapping.container_port,
                "protocol": mapping.protocol,
            });
            if let Some(ip) = mapping.host_ip {
                one["hostIP"] = json!(ip);
            }
            one
        })
        .collect();
    give("portMappings", (!ports.is_empty()).then(|| json!(ports)));
    give(
        "bandwidth",
        request.bandwidth.map(|bandwidth| {
            let mut limits = Map::new();
            for (key, rate) in [
                ("ingress", bandwidth.ingress_bits),
                ("egress", bandwidth.egress_bits),
            ] {
                if let Some(rate) = rate {
                    let burst = Bandwidth::burst_bits(rate);
                    limits.insert(format!("{key}Rate"), json!(rate));
                    limits.insert(format!("{key}Burst"), json!(burst));
                }
            }
            Value::Object(limits)
        }),
    );
    let ranges: Vec<_> = record
        .ranges
        .iter()
        .map(|range| json!([{"subnet": range.to_string()}]))
        .collect();
    give("ipRanges", (!ranges.is_empty()).then(|| json!(ranges)));
    let dns = &request.dns;
    give(
        "dns",
        (!dns.is_empty()).then(
            || json!({"servers": dns.servers, "searches": dns.searches, "options": dns.options}),
        ),
    );
    let aliases = &request.aliases;
    give("aliases", (!aliases.is_empty()).then(|| json!(aliases)));
    give(
        "cgroupPath",
        request.cgroup_path.as_ref().map(|path| json!(path)),
    );
    // No convention of CNI's own, but what plugins that know Kubernetes are told by other runtimes, too.
    let annotations = &request.annotations;
    give(
        "io.kubernetes.cri.pod-annotations",
        (!annotations.is_empty()).then(|| json!(annotations)),
    );
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{AttachRequest, Dns, PortMapping, Protocol};

    fn record() -> Record {
        Record {
            request: AttachRequest {
                pod_id: "a".repeat(64),
                pod_name: "web-0".into(),
                pod_namespace: "default".into(),
                pod_uid: "1-2".into(),
                port_mappings: vec![PortMapping {
                    protocol: Protocol::Sctp,
                    container_port: 80,
                    host_port: 8080,
                    host_ip: Some("::1".parse().unwrap()),
                }],
                bandwidth: Some(Bandwidth {
                    ingress_bits: Some(10_000_000),
                    egress_bits: None,
                }),
                dns: Dns {
                    servers: vec!["10.0.0.10".into()],
                    ..Dns::default()
                },
                aliases: vec!["web-0".into()],
                cgroup_path: Some("/kubepods/pod1-2".into()),
                annotations: [("example.org/color".to_owned(), "blue".to_owned())].into(),
            },
            netns: "/run/netns/a".into(),
            ranges: vec!["10.7.0.0/24".parse().unwrap()],
            networks: vec![],
            owed: None,
        }
    }

    fn joined(plugin: Value) -> Joined {
        let conf = json!({"cniVersion": "1.0.0", "name": "net", "plugins": [plugin]});
        let conf = Conf::parse(Path::new("/x"), conf.to_string().as_bytes()).unwrap();
        Joined {
            version: conf.versions[0],
            conf,
            interface: "eth0".into(),
            result: None,
        }
    }

    fn told(plugin: Value, previous: Option<Value>) -> Value {
        let joined = joined(plugin);
        let plugin = &joined.conf.plugins[0];
        let text = execution(&record(), &joined, plugin, previous.as_ref());
        serde_json::from_slice(&text).unwrap()
    }

    #[test]
    fn a_plugin_is_told_the_capabilities_that_it_declares_and_no_other() {
        let none = told(
            json!({"type": "p", "mtu": 9, "runtimeConfig": {"old": 1}}),
            None,
        );
        assert_eq!(
            none,
            json!({"type": "p", "mtu": 9, "name": "net", "cniVersion": "1.0.0"})
        );
        let all = told(
            json!({"type": "p", "capabilities": {"portMappings": true, "bandwidth": true, "ipRanges": true, "dns": true, "aliases": true,
                "cgroupPath": true, "io.kubernetes.cri.pod-annotations": true}}),
            Some(json!({"cniVersion": "1.0.0"})),
        );
        assert_eq!(
            all,
            json!({
                "type": "p", "name": "net", "cniVersion": "1.0.0", "prevResult": {"cniVersion": "1.0.0"},
                "runtimeConfig": {
                    "portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "sctp", "hostIP": "::1"}],
                    "bandwidth": {"ingressRate": 10_000_000, "ingressBurst": 1_000_000},
                    "ipRanges": [[{"subnet": "10.7.0.0/24"}]],
                    "dns": {"servers": ["10.0.0.10"], "searches": [], "options": []},
                    "aliases": ["web-0"],
                    "cgroupPath": "/kubepods/pod1-2",
                    "io.kubernetes.cri.pod-annotations": {"example.org/color": "blue"},
                }
            })
        );
        let one = told(
            json!({"type": "p", "capabilities": {"portMappings": true, "dns": false}}),
            None,
        );
        let keys: Vec<_> = one["runtimeConfig"].as_object().unwrap().keys().collect();
        assert_eq!(keys, ["portMappings"]);
    }

    #[test]
    fn arguments_name_the_pod_and_can_not_be_smuggled_in() {
        let mut record = record();
        assert_eq!(
            arguments(&record).unwrap(),
            format!(
                "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web-0;K8S_POD_INFRA_CONTAINER_ID={};K8S_POD_UID=1-2",
                "a".repeat(64)
            )
        );
        for name in ["a;K8S_POD_NAMESPACE=kube-system", "a=b", "a\nb"] {
            record.request.pod_name = name.into();
            let error = arguments(&record).unwrap_err().to_string();
            assert!(error.contains("the name"), "{error}");
        }
    }

    #[test]
    fn versions_that_are_not_known_here_are_passed_over() {
        let said = br#"{"cniVersion":"1.2.0","supportedVersions":["0.4.0","1.1.0","1.2.0"]}"#;
        assert_eq!(
            spoken_versions(said).unwrap(),
            [Version::V0_4_0, Version::V1_1_0]
        );
        for rubbish in ["", "{}", "{\"supportedVersions\":1}"] {
            assert!(spoken_versions(rubbish.as_bytes()).is_err());
        }
    }
}
