//! What a device changes in a container's specification.

use std::{
    fs,
    path::{Path, PathBuf},
};

use berth_proto::cri;
use oci_spec::runtime::{
    Hook as OciHook, HookBuilder, Hooks, LinuxDevice, LinuxDeviceBuilder, LinuxDeviceType,
    MountBuilder, Spec,
};

use super::file::{DeviceNode, Edits, Hook, Mount};
use crate::{
    devices,
    error::{Error, because},
    mounts,
};

/// Of a node for which nobody says it: the runtime specification leaves it to the runtime, and runc's has become the custom.
const FILE_MODE: u32 = 0o666;

/// Applies the edits in order, each with the name of the device that it is of. What can't be done is refused before anything is.
pub(super) fn apply(spec: &mut Spec, edits: &[(&String, &Edits)]) -> Result<(), Error> {
    for (name, edits) in edits {
        refuse_unbuilt(name, edits)?;
    }
    for (_, edits) in edits {
        environment(spec, &edits.env);
        groups(spec, &edits.additional_gids);
        for node in &edits.device_nodes {
            device(spec, node)?;
        }
        for mount in &edits.mounts {
            self::mount(spec, mount)?;
        }
        for hook in &edits.hooks {
            self::hook(spec, hook)?;
        }
    }
    // Nothing hides what it should lie under.
    if let Some(mounts) = spec.mounts_mut() {
        mounts.sort_by_key(|mount| mount.destination().components().count());
    }
    Ok(())
}

/// Without these the device would be there and not work.
fn refuse_unbuilt(name: &str, edits: &Edits) -> Result<(), Error> {
    let what = if edits.intel_rdt.is_some() {
        "intelRdt"
    } else if !edits.net_devices.is_empty() {
        "netDevices"
    } else {
        return Ok(());
    };
    Err(Error::Unimplemented(format!(
        "{what} of the CDI device {name}"
    )))
}

/// The later value counts.
fn environment(spec: &mut Spec, entries: &[String]) {
    let Some(process) = spec.process_mut() else {
        return;
    };
    let mut env = process.env().clone().unwrap_or_default();
    for entry in entries {
        let key = entry.split('=').next().unwrap_or_default();
        let same = |have: &&mut String| have.split('=').next() == Some(key);
        match env.iter_mut().find(same) {
            Some(have) => have.clone_from(entry),
            None => env.push(entry.clone()),
        }
    }
    process.set_env(Some(env));
}

fn groups(spec: &mut Spec, gids: &[u32]) {
    let Some(process) = spec.process_mut() else {
        return;
    };
    let mut user = process.user().clone();
    let mut groups = user.additional_gids().clone().unwrap_or_default();
    for gid in gids {
        // Nobody gets root's group by a device.
        if *gid != 0 && !groups.contains(gid) {
            groups.push(*gid);
        }
    }
    user.set_additional_gids(Some(groups));
    process.set_user(user);
}

fn device(spec: &mut Spec, node: &DeviceNode) -> Result<(), Error> {
    let built = oci_device(spec, node)?;
    let Some(linux) = spec.linux_mut() else {
        return Ok(());
    };
    if built.typ() != LinuxDeviceType::P {
        let access = match node.permissions.as_deref() {
            None | Some("") => "rwm",
            Some(access) => access,
        };
        let rule = devices::allow(built.typ(), built.major(), Some(built.minor()), access)?;
        let mut resources = linux.resources().clone().unwrap_or_default();
        let mut rules = resources.devices().clone().unwrap_or_default();
        rules.push(rule);
        resources.set_devices(Some(rules));
        linux.set_resources(Some(resources));
    }
    let mut nodes = linux.devices().clone().unwrap_or_default();
    nodes.retain(|have| have.path() != built.path());
    nodes.push(built);
    linux.set_devices(Some(nodes));
    Ok(())
}

/// Type and number are those of the node on the host, where the file does not say both.
fn oci_device(spec: &Spec, node: &DeviceNode) -> Result<LinuxDevice, Error> {
    let host_path = node.host_path.as_deref().unwrap_or(&node.path);
    let unusable = |why: String| Error::Device {
        path: host_path.into(),
        why,
    };
    let said = match node.r#type.as_deref() {
        Some("b") => Some(LinuxDeviceType::B),
        Some("c" | "u") => Some(LinuxDeviceType::C),
        Some("p") => Some(LinuxDeviceType::P),
        _ => None,
    };
    let (typ, major, minor) = match (said, node.major, node.minor) {
        (Some(typ), Some(major), minor) => (typ, major, minor.unwrap_or(0)),
        (Some(LinuxDeviceType::P), ..) => (LinuxDeviceType::P, 0, 0),
        (said, major, minor) => {
            let metadata = fs::metadata(host_path)
                .map_err(|err| unusable(because("find it on the host", err)))?;
            let there = devices::node(Path::new(&node.path), &metadata)?
                .ok_or_else(|| unusable("is no device".into()))?;
            if said.is_some_and(|said| said != there.typ()) {
                return Err(unusable(
                    "is a device of another type than its CDI file says".into(),
                ));
            }
            let number = (
                major.unwrap_or(there.major()),
                minor.unwrap_or(there.minor()),
            );
            (there.typ(), number.0, number.1)
        }
    };
    // A container that does not run as root is to be able to use what it is given.
    let user = spec.process().as_ref().map(|process| process.user());
    let (uid, gid) = user.map_or((0, 0), |user| (user.uid(), user.gid()));
    let place: PathBuf = Path::new(&node.path).components().collect();
    Ok(LinuxDeviceBuilder::default()
        .path(place)
        .typ(typ)
        .major(major)
        .minor(minor)
        .file_mode(node.file_mode.unwrap_or(FILE_MODE) & 0o7777)
        .uid(node.uid.unwrap_or(uid))
        .gid(node.gid.unwrap_or(gid))
        .build()?)
}

fn mount(spec: &mut Spec, mount: &Mount) -> Result<(), Error> {
    // As strict as with a caller's: the places are the same.
    let as_asked = cri::Mount {
        host_path: mount.host_path.clone(),
        container_path: mount.container_path.clone(),
        ..Default::default()
    };
    let destination = mounts::destination(&as_asked)?;
    let kind = mount.r#type.as_deref().unwrap_or_default();
    let mut options = mount.options.clone();
    let is_bind = |option: &String| option == "bind" || option == "rbind";
    let binds = matches!(kind, "" | "none" | "bind") || options.iter().any(is_bind);
    let source = match binds {
        true => fs::canonicalize(&mount.host_path).map_err(|err| Error::MountSource {
            host_path: mount.host_path.clone().into(),
            container_path: mount.container_path.clone().into(),
            why: because("the host path that its CDI file names can't be used", err),
        })?,
        false => PathBuf::from(&mount.host_path),
    };
    mounts::check_place(&as_asked, &destination, &source, false)?;
    if binds && !options.iter().any(is_bind) {
        options.insert(0, "rbind".into());
    }
    if binds && !options.iter().any(|option| is_propagation(option)) {
        options.push("rprivate".into());
    }
    let built = MountBuilder::default()
        .typ(if binds { "bind" } else { kind })
        .source(source)
        .destination(&destination)
        .options(options)
        .build()?;
    let mut all = spec.mounts().clone().unwrap_or_default();
    all.retain(|have| *have.destination() != destination);
    all.push(built);
    spec.set_mounts(Some(all));
    Ok(())
}

fn is_propagation(option: &str) -> bool {
    let kind = option.strip_prefix('r').unwrap_or(option);
    matches!(kind, "private" | "slave" | "shared" | "unbindable")
}

fn hook(spec: &mut Spec, hook: &Hook) -> Result<(), Error> {
    let mut built = HookBuilder::default().path(&hook.path);
    if !hook.args.is_empty() {
        built = built.args(hook.args.clone());
    }
    if !hook.env.is_empty() {
        built = built.env(hook.env.clone());
    }
    if let Some(timeout) = hook.timeout.filter(|seconds| *seconds > 0) {
        built = built.timeout(timeout);
    }
    let built = built.build()?;
    let mut hooks = spec.hooks().clone().unwrap_or_default();
    let with = |list: &Option<Vec<OciHook>>| {
        let mut list = list.clone().unwrap_or_default();
        list.push(built.clone());
        Some(list)
    };
    match hook.hook_name.as_str() {
        "prestart" => prestart(&mut hooks, with),
        "createRuntime" => drop(hooks.set_create_runtime(with(hooks.create_runtime()))),
        "createContainer" => drop(hooks.set_create_container(with(hooks.create_container()))),
        "startContainer" => drop(hooks.set_start_container(with(hooks.start_container()))),
        "poststart" => drop(hooks.set_poststart(with(hooks.poststart()))),
        "poststop" => drop(hooks.set_poststop(with(hooks.poststop()))),
        // The file would not have been taken.
        _ => {}
    }
    spec.set_hooks(Some(hooks));
    Ok(())
}

/// Deprecated since runtime specification 1.1, and still what older vendors' files name.
#[allow(deprecated)]
fn prestart(hooks: &mut Hooks, with: impl Fn(&Option<Vec<OciHook>>) -> Option<Vec<OciHook>>) {
    let list = with(hooks.prestart());
    hooks.set_prestart(list);
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{container_spec, error::Kind, tests::fixture};

    fn edited(edits: serde_json::Value) -> Result<Spec, Error> {
        let mut fixture = fixture();
        let linux = fixture.container.linux.get_or_insert_default();
        linux.security_context.get_or_insert_default().run_as_user =
            Some(cri::Int64Value { value: 1000 });
        let mut spec = container_spec(&fixture.inputs()).unwrap().spec;
        let edits: Edits = serde_json::from_value(edits).unwrap();
        apply(&mut spec, &[(&"v/c=d".to_owned(), &edits)])?;
        Ok(spec)
    }

    #[test]
    fn a_node_is_what_it_is_on_the_host_where_its_file_does_not_say_it() {
        let spec = edited(json!({"deviceNodes": [
            {"path": "/dev/void", "hostPath": "/dev/null", "permissions": "r"},
            {"path": "/dev/zero", "fileMode": 0o600, "uid": 7, "gid": 8},
            {"path": "/dev/said", "type": "b", "major": 250, "minor": 3},
            {"path": "/dev/pipe", "type": "p"},
        ]}))
        .unwrap();
        let linux = spec.linux().as_ref().unwrap();
        let nodes: Vec<_> = linux
            .devices()
            .iter()
            .flatten()
            .map(|node| {
                (
                    node.path().to_str().unwrap(),
                    node.typ(),
                    (node.major(), node.minor()),
                    node.file_mode().unwrap(),
                    (node.uid().unwrap(), node.gid().unwrap()),
                )
            })
            .collect();
        let user = spec.process().as_ref().unwrap().user();
        assert_eq!(user.uid(), 1000);
        let own = (1000, user.gid());
        assert_eq!(
            nodes,
            [
                ("/dev/void", LinuxDeviceType::C, (1, 3), 0o666, own),
                ("/dev/zero", LinuxDeviceType::C, (1, 5), 0o600, (7, 8)),
                ("/dev/said", LinuxDeviceType::B, (250, 3), 0o666, own),
                ("/dev/pipe", LinuxDeviceType::P, (0, 0), 0o666, own),
            ]
        );
        let rules: Vec<String> = linux
            .resources()
            .as_ref()
            .unwrap()
            .devices()
            .as_ref()
            .unwrap()[..]
            .iter()
            .rev()
            .take(3)
            .map(ToString::to_string)
            .collect();
        assert_eq!(rules, ["b 250:3 rwm", "c 1:5 rwm", "c 1:3 r"]);
    }

    #[test]
    fn mounts_take_the_place_of_what_was_there_and_stay_in_order() {
        let own = tempfile::tempdir().unwrap();
        let spec = edited(json!({"mounts": [
            {"hostPath": own.path(), "containerPath": "/a/b/c/d/e", "options": ["ro", "nosuid"]},
            {"hostPath": own.path(), "containerPath": "/etc/hosts", "options": ["bind", "rslave"]},
            {"hostPath": "tmpfs", "containerPath": "/scratch", "type": "tmpfs", "options": ["size=1m"]},
        ]}))
        .unwrap();
        let mounts = spec.mounts().as_ref().unwrap();
        let at = |place: &str| {
            let here: Vec<_> = mounts
                .iter()
                .filter(|mount| mount.destination() == Path::new(place))
                .collect();
            assert_eq!(here.len(), 1, "{place}");
            (
                here[0].typ().clone().unwrap(),
                here[0].options().clone().unwrap().join(","),
            )
        };
        assert_eq!(
            at("/a/b/c/d/e"),
            ("bind".into(), "rbind,ro,nosuid,rprivate".into())
        );
        assert_eq!(at("/etc/hosts"), ("bind".into(), "bind,rslave".into()));
        assert_eq!(at("/scratch"), ("tmpfs".into(), "size=1m".into()));
        let depths: Vec<_> = mounts
            .iter()
            .map(|mount| mount.destination().components().count())
            .collect();
        assert!(depths.is_sorted());
    }

    #[test]
    fn hooks_groups_and_environment_are_added() {
        let spec = edited(json!({
            "env": ["PATH=/vendor/bin", "NEW=a=b"],
            "additionalGids": [44, 0, 44],
            "hooks": [
                {"hookName": "createContainer", "path": "/bin/one", "args": ["one", "x"], "timeout": 3},
                {"hookName": "createContainer", "path": "/bin/two"},
                {"hookName": "prestart", "path": "/bin/three", "env": ["A=b"]},
                {"hookName": "poststart", "path": "/bin/four"},
                {"hookName": "poststop", "path": "/bin/five"},
            ],
        }))
        .unwrap();
        let process = spec.process().as_ref().unwrap();
        let env = process.env().as_ref().unwrap();
        assert!(env.contains(&"PATH=/vendor/bin".into()) && env.contains(&"NEW=a=b".into()));
        assert_eq!(env.iter().filter(|e| e.starts_with("PATH=")).count(), 1);
        let groups = process.user().additional_gids().clone().unwrap();
        assert_eq!(groups.iter().filter(|gid| **gid == 44).count(), 1);
        assert!(!groups.contains(&0));
        let hooks = serde_json::to_value(spec.hooks()).unwrap();
        assert_eq!(hooks["createContainer"][0]["args"], json!(["one", "x"]));
        assert_eq!(hooks["createContainer"][1]["path"], "/bin/two");
        assert_eq!(hooks["prestart"][0]["env"], json!(["A=b"]));
        assert_eq!(hooks["poststart"][0]["path"], "/bin/four");
        assert_eq!(hooks["poststop"][0]["path"], "/bin/five");
    }

    #[test]
    fn what_is_not_there_or_not_built_is_refused_by_its_name() {
        for (edits, kind, says) in [
            (
                json!({"deviceNodes": [{"path": "/dev/no-such-device"}]}),
                Kind::Precondition,
                "/dev/no-such-device",
            ),
            (
                json!({"deviceNodes": [{"path": "/dev/x", "hostPath": "/etc/hosts"}]}),
                Kind::Precondition,
                "/etc/hosts",
            ),
            (
                json!({"deviceNodes": [{"path": "/dev/null", "type": "b"}]}),
                Kind::Precondition,
                "another type",
            ),
            (
                json!({"mounts": [{"hostPath": "/no/such", "containerPath": "/v"}]}),
                Kind::Precondition,
                "/no/such",
            ),
            (
                json!({"mounts": [{"hostPath": "/tmp", "containerPath": "/proc/sys"}]}),
                Kind::Invalid,
                "/proc",
            ),
            (
                json!({"intelRdt": {"closID": "x"}}),
                Kind::Unimplemented,
                "intelRdt",
            ),
            (
                json!({"netDevices": [{}]}),
                Kind::Unimplemented,
                "netDevices",
            ),
        ] {
            let error = edited(edits).unwrap_err();
            assert_eq!(error.kind(), kind, "{error}");
            assert!(error.to_string().contains(says), "{error}");
        }
    }
}
