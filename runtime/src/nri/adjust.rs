//! What plugins want of a container, put into its spec. What can't be had is refused by the name of who wants it; nothing is left out.

mod devices;
mod process;

use std::path::{Component, Path, PathBuf};

use berth_nri::{
    adjustment::removal,
    api::{self, Field},
    owners::Owners,
};
use berth_proto::{cri, shim::v1::pod as v1};
use oci_spec::runtime::{
    Hook, Hooks, LinuxDeviceCgroup, LinuxDeviceType, LinuxNamespace, LinuxNamespaceType,
    PosixRlimit, Spec,
};
use serde_json::{Value, json};
use tonic::Code;

use super::limits;
use crate::{
    error::Error,
    pod::{Pod, update},
};

/// Annotations by which shims group containers, and others that are berthd's own word.
const OUR_ANNOTATIONS: &str = "io.kubernetes.cri.";
/// Mounts, variables and devices of one container.
const MAX_ENTRIES: usize = 10_000;
/// Where resctrl (Intel RDT, AMD QoS) is mounted.
const RESCTRL: &str = "/sys/fs/resctrl";

/// What comes of it beside the spec.
#[derive(Debug)]
pub struct Adjusted {
    /// As ContainerStatus will report them.
    pub resources: cri::LinuxContainerResources,
    /// Namespaces that are not as the configuration has them.
    pub namespaces: Vec<(LinuxNamespaceType, v1::NamespaceMode)>,
    pub cgroup: PathBuf,
    /// What this machine can't keep.
    pub notes: Vec<String>,
}

/// What adjustments are put into.
#[derive(Debug)]
pub struct Target<'a> {
    pub pod: &'a Pod,
    pub config: &'a cri::ContainerConfig,
    pub cgroup: PathBuf,
    pub spec: &'a mut Spec,
    pub owners: &'a Owners,
    pub container_id: &'a str,
}

impl Target<'_> {
    /// Who wants something of the field.
    fn names(&self, field: Field) -> String {
        let by = self.owners.of(self.container_id, field);
        let mut names: Vec<String> = by.into_iter().map(|(_, name)| name).collect();
        names.dedup();
        names.join(", ")
    }

    fn error(&self, code: Code, field: Field, what: &str, why: &str) -> Error {
        Error::Adjustment {
            plugins: self.names(field),
            what: what.chars().take(200).collect(),
            why: why.to_owned(),
            code,
        }
    }

    fn unbuilt(&self, field: Field, what: &str, why: &str) -> Error {
        self.error(Code::Unimplemented, field, what, why)
    }

    fn wrong(&self, field: Field, what: &str, why: &str) -> Error {
        self.error(Code::InvalidArgument, field, what, why)
    }

    /// Puts all of it into the spec, or fails.
    pub fn apply(&mut self, adjust: &api::ContainerAdjustment) -> Result<Adjusted, Error> {
        let empty = api::LinuxContainerAdjustment::default();
        let linux = adjust.linux.as_ref().unwrap_or(&empty);
        self.refuse(adjust, linux)?;
        self.annotations(adjust)?;
        self.env(&adjust.env)?;
        self.args(&adjust.args)?;
        self.hooks(adjust)?;
        self.cdi(&adjust.CDI_devices)?;
        self.mounts(&adjust.mounts)?;
        self.rlimits(&adjust.rlimits)?;
        self.devices(&linux.devices)?;
        self.net_devices(&linux.net_devices)?;
        self.sysctls(linux)?;
        self.seccomp(linux)?;
        self.process(linux)?;
        self.memory_policy(linux)?;
        let mut notes = vec![];
        self.oom_score(linux, &mut notes)?;
        let resources = self.resources(linux, &mut notes)?;
        Ok(Adjusted {
            resources,
            namespaces: self.namespaces(&linux.namespaces)?,
            cgroup: self.cgroup(&linux.cgroups_path)?,
            notes,
        })
    }

    fn refuse(
        &self,
        adjust: &api::ContainerAdjustment,
        linux: &api::LinuxContainerAdjustment,
    ) -> Result<(), Error> {
        if let Some(rdt) = linux.rdt.as_ref()
            && (rdt.clos_id.is_some() || rdt.schemata.is_some() || rdt.enable_monitoring.is_some())
        {
            return Err(match Path::new(RESCTRL).join("schemata").exists() {
                true => self.unbuilt(Field::RdtClosID, "RDT", "it is not built"),
                false => self.error(
                    Code::FailedPrecondition,
                    Field::RdtClosID,
                    "RDT",
                    "this node has no resctrl file system mounted at /sys/fs/resctrl",
                ),
            });
        }
        let entries = [
            adjust.annotations.len(),
            adjust.mounts.len(),
            adjust.env.len(),
            adjust.args.len(),
            linux.devices.len(),
            linux.net_devices.len(),
            linux.sysctl.len(),
        ];
        match entries.into_iter().find(|count| *count > MAX_ENTRIES) {
            Some(count) => Err(self.wrong(
                Field::None,
                &format!("{count} entries"),
                "that is too many for one container",
            )),
            None => Ok(()),
        }
    }

    fn annotations(&mut self, adjust: &api::ContainerAdjustment) -> Result<(), Error> {
        for key in adjust.annotations.keys() {
            let name = removal(key).unwrap_or(key);
            if name.is_empty() || name.contains('\0') || name.starts_with(OUR_ANNOTATIONS) {
                let what = format!("annotation {name:?}");
                return Err(self.wrong(Field::Annotations, &what, "it is not the plugins'"));
            }
        }
        let annotations = self.spec.annotations_mut().get_or_insert_default();
        for (key, value) in &adjust.annotations {
            match removal(key) {
                Some(key) => drop(annotations.remove(key)),
                None => drop(annotations.insert(key.clone(), value.clone())),
            }
        }
        Ok(())
    }

    fn env(&mut self, adjust: &[api::KeyValue]) -> Result<(), Error> {
        for entry in adjust {
            let key = removal(&entry.key).unwrap_or(&entry.key);
            if key.is_empty() || key.contains(['=', '\0']) || entry.value.contains('\0') {
                return Err(self.wrong(
                    Field::Env,
                    &format!("variable {key:?}"),
                    "it is no variable of an environment",
                ));
            }
        }
        let Some(process) = self.spec.process_mut() else {
            return Ok(());
        };
        let mut env = process.env().clone().unwrap_or_default();
        let is = |have: &str, key: &str| have.split('=').next() == Some(key);
        for entry in adjust {
            if let Some(key) = removal(&entry.key) {
                env.retain(|have| !is(have, key));
                continue;
            }
            let new = format!("{}={}", entry.key, entry.value);
            match env.iter_mut().find(|have| is(have, &entry.key)) {
                Some(have) => *have = new,
                None => env.push(new),
            }
        }
        process.set_env(Some(env));
        Ok(())
    }

    fn args(&mut self, adjust: &[String]) -> Result<(), Error> {
        if adjust.is_empty() {
            return Ok(());
        }
        if adjust[0].is_empty() || adjust.iter().any(|arg| arg.contains('\0')) {
            return Err(self.wrong(Field::Args, "args", "they are no command"));
        }
        if let Some(process) = self.spec.process_mut() {
            process.set_args(Some(adjust.to_vec()));
        }
        Ok(())
    }

    fn hooks(&mut self, adjust: &api::ContainerAdjustment) -> Result<(), Error> {
        let Some(asked) = adjust.hooks.as_ref() else {
            return Ok(());
        };
        let mut hooks = self.spec.hooks().clone().unwrap_or_default();
        type Kind = fn(&mut Hooks) -> &mut Option<Vec<Hook>>;
        let kinds: [(&[api::Hook], Kind); 6] = [
            #[allow(deprecated)]
            (&asked.prestart, Hooks::prestart_mut),
            (&asked.create_runtime, Hooks::create_runtime_mut),
            (&asked.create_container, Hooks::create_container_mut),
            (&asked.start_container, Hooks::start_container_mut),
            (&asked.poststart, Hooks::poststart_mut),
            (&asked.poststop, Hooks::poststop_mut),
        ];
        let mut any = false;
        for (asked, kind) in kinds {
            for hook in asked {
                if !Path::new(&hook.path).is_absolute() {
                    let what = format!("hook {:?}", hook.path);
                    return Err(self.wrong(Field::OciHooks, &what, "its path is not absolute"));
                }
                any = true;
                let mut made = Hook::default();
                made.set_path(PathBuf::from(&hook.path));
                made.set_args((!hook.args.is_empty()).then(|| hook.args.clone()));
                made.set_env((!hook.env.is_empty()).then(|| hook.env.clone()));
                made.set_timeout(hook.timeout.as_ref().map(|t| t.value).filter(|t| *t > 0));
                kind(&mut hooks).get_or_insert_default().push(made);
            }
        }
        if any {
            self.spec.set_hooks(Some(hooks));
        }
        Ok(())
    }

    fn rlimits(&mut self, adjust: &[api::POSIXRlimit]) -> Result<(), Error> {
        if adjust.is_empty() {
            return Ok(());
        }
        let Some(process) = self.spec.process() else {
            return Ok(());
        };
        let mut rlimits = process.rlimits().clone().unwrap_or_default();
        for limit in adjust {
            let what = || format!("rlimit {:?}", limit.type_);
            let value = json!({ "type": limit.type_, "hard": limit.hard, "soft": limit.soft });
            let made: PosixRlimit = serde_json::from_value(value)
                .map_err(|_| self.wrong(Field::Rlimits, &what(), "there is none of that name"))?;
            if limit.soft > limit.hard {
                return Err(self.wrong(Field::Rlimits, &what(), "soft is above hard"));
            }
            rlimits.retain(|have| have.typ() != made.typ());
            rlimits.push(made);
        }
        if let Some(process) = self.spec.process_mut() {
            process.set_rlimits(Some(rlimits));
        }
        Ok(())
    }

    fn sysctls(&mut self, adjust: &api::LinuxContainerAdjustment) -> Result<(), Error> {
        if adjust.sysctl.is_empty() {
            return Ok(());
        }
        // What a pod may set of its own namespaces, its containers may.
        let mut pod = self.pod.config.clone();
        let linux = pod.linux.get_or_insert_default();
        linux.sysctls = adjust
            .sysctl
            .iter()
            .filter(|(key, _)| removal(key).is_none())
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect();
        let checked = berth_spec::sandbox_sysctls(&pod)
            .map_err(|e| self.wrong(Field::Sysctl, "sysctl", &e.to_string()))?;
        let Some(linux) = self.spec.linux_mut() else {
            return Ok(());
        };
        let sysctls = linux.sysctl_mut().get_or_insert_default();
        for key in adjust.sysctl.keys().filter_map(|key| removal(key)) {
            sysctls.remove(key);
        }
        sysctls.extend(checked);
        Ok(())
    }

    fn resources(
        &mut self,
        adjust: &api::LinuxContainerAdjustment,
        notes: &mut Vec<String>,
    ) -> Result<cri::LinuxContainerResources, Error> {
        let before = update::asked(self.config);
        let Some(asked) = adjust.resources.as_ref() else {
            return Ok(before);
        };
        let host = &self.pod.node.host;
        let limits::Wanted {
            limits: mut change,
            beyond,
        } = limits::wanted(asked, host.cgroup_v2, &self.pod.node.config.blockio)
            .map_err(|(field, why, code)| self.error(code, field, &format!("{field:?}"), &why))?;
        limits::follow_with_swap(&before, &mut change);
        let merged = update::merged(before, &change);
        let by = berth_nri::resources::fields(asked);
        let by = by.into_iter().map(|(field, _)| self.names(field));
        let by: std::collections::BTreeSet<String> = by.collect();
        let by: Vec<String> = by.into_iter().collect();
        let wrong = |source| Error::Spec {
            what: format!(
                "container {}, as NRI plugins want it ({})",
                self.container_id,
                by.join(", ")
            ),
            source,
        };
        let mut config = self.config.clone();
        config.linux.get_or_insert_default().resources = Some(merged.clone());
        berth_spec::check_cpuset(&config, &self.cgroup, host).map_err(wrong)?;
        let (mut limits, more) = berth_spec::container_limits(&merged, host).map_err(wrong)?;
        notes.extend(more);
        limits::overlay(&mut limits, &beyond);
        let mut extra = vec![];
        for asked in &asked.devices {
            let what = format!("device rule {:?}", asked.access);
            let typ = match asked.type_.as_str() {
                "" | "a" => None,
                "c" => Some(LinuxDeviceType::C),
                "b" => Some(LinuxDeviceType::B),
                _ => return Err(self.wrong(Field::Devices, &what, "its type is none of a, b, c")),
            };
            let number = |n: Option<&api::OptionalInt64>| n.map(|n| n.value).filter(|n| *n >= 0);
            extra.push(rule(
                asked.allow,
                typ,
                number(asked.major.as_ref()),
                number(asked.minor.as_ref()),
                &asked.access,
            ));
        }
        if let Some(linux) = self.spec.linux_mut() {
            rules(linux).extend(extra);
            let devices = linux.resources().as_ref().and_then(|r| r.devices().clone());
            limits.set_devices(devices);
            linux.set_resources(Some(limits));
        }
        Ok(merged)
    }

    /// The shim gives a container its pod's namespaces, or new ones, or the node's: that can be chosen. Another process's can't.
    fn namespaces(
        &mut self,
        adjust: &[api::LinuxNamespace],
    ) -> Result<Vec<(LinuxNamespaceType, v1::NamespaceMode)>, Error> {
        let mut modes = vec![];
        for namespace in adjust {
            let name = removal(&namespace.type_).unwrap_or(&namespace.type_);
            let removed = removal(&namespace.type_).is_some();
            let what = format!("namespace {name:?}");
            let typ: LinuxNamespaceType = serde_json::from_value(Value::from(name))
                .map_err(|_| self.wrong(Field::Namespace, &what, "there is none of that name"))?;
            match typ {
                LinuxNamespaceType::Cgroup => {
                    let Some(linux) = self.spec.linux_mut() else {
                        continue;
                    };
                    let list = linux.namespaces_mut().get_or_insert_default();
                    list.retain(|have| have.typ() != typ);
                    if !removed {
                        let mut made = LinuxNamespace::default();
                        made.set_typ(typ).set_path(
                            Some(PathBuf::from(&namespace.path))
                                .filter(|p| !p.as_os_str().is_empty()),
                        );
                        list.push(made);
                    }
                }
                LinuxNamespaceType::Network
                | LinuxNamespaceType::Ipc
                | LinuxNamespaceType::Uts
                | LinuxNamespaceType::Pid => {
                    if !removed && !namespace.path.is_empty() {
                        return Err(self.unbuilt(
                            Field::Namespace,
                            &what,
                            "one that another process has is not built",
                        ));
                    }
                    let mode = match removed {
                        true => v1::NamespaceMode::NODE,
                        false => v1::NamespaceMode::CONTAINER,
                    };
                    modes.push((typ, mode));
                }
                _ => {
                    return Err(self.unbuilt(Field::Namespace, &what, "that kind is not built"));
                }
            }
        }
        Ok(modes)
    }

    /// Only below the pod's: its limits are the kubelet's.
    fn cgroup(&mut self, path: &str) -> Result<PathBuf, Error> {
        if path.is_empty() {
            return Ok(self.cgroup.clone());
        }
        let parent = &self.pod.cgroup_parent;
        let cgroup: PathBuf = Path::new(path).components().collect();
        let what = format!("cgroup {path:?}");
        if self.pod.is_by_systemd() {
            let linux = self.spec.linux().as_ref();
            let given = linux.and_then(|linux| linux.cgroups_path().as_deref());
            if given == Some(Path::new(path)) {
                return Ok(self.cgroup.clone());
            }
            let why = "the cgroup driver is systemd, and a container's scope has its id";
            return Err(self.wrong(Field::CgroupsPath, &what, why));
        }
        if !plain(path) || cgroup.parent() != Some(parent.as_path()) {
            let why = format!("it must lie right below the pod's, {}", parent.display());
            return Err(self.wrong(Field::CgroupsPath, &what, &why));
        }
        let name = cgroup.file_name().unwrap_or_default().to_string_lossy();
        // What is there is somebody else's.
        if self.pod.node.cgroups.exists(&cgroup) {
            let what = format!("cgroup {name:?}");
            return Err(self.wrong(Field::CgroupsPath, &what, "it is there already"));
        }
        if let Some(linux) = self.spec.linux_mut() {
            linux.set_cgroups_path(Some(cgroup.clone()));
        }
        Ok(cgroup)
    }
}

fn rules(linux: &mut oci_spec::runtime::Linux) -> &mut Vec<LinuxDeviceCgroup> {
    let resources = linux.resources_mut().get_or_insert_default();
    resources.devices_mut().get_or_insert_default()
}

fn rule(
    allow: bool,
    typ: Option<LinuxDeviceType>,
    major: Option<i64>,
    minor: Option<i64>,
    access: &str,
) -> LinuxDeviceCgroup {
    let mut rule = LinuxDeviceCgroup::default();
    rule.set_allow(allow)
        .set_typ(typ)
        .set_major(major)
        .set_minor(minor)
        .set_access(Some(access.to_owned()));
    rule
}

/// Absolute, and without `..`.
fn plain(path: &str) -> bool {
    let parts = Path::new(path).components();
    path.starts_with('/')
        && !path.contains('\0')
        && parts
            .into_iter()
            .all(|part| matches!(part, Component::RootDir | Component::Normal(_)))
}
