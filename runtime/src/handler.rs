//! A runtime handler of the configuration: which shim makes the containers of the pods that ask for it, and what that can do.
//!
//! Every pod's shim is Berth's own. Another one is put behind it: then ours speaks to berthd as ever, and to that one by containerd's
//! task service (`containerd-shim-berth-v2 -front PROGRAM`).

use std::{
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::LazyLock,
};

use berth_proto::cri;
use serde::{Deserialize, Serialize};

use crate::error::Error;

/// Berth's own shim, as a program and as containerd names it.
pub const OWN: &str = "containerd-shim-berth-v2";
const OWN_TYPE: &str = "io.containerd.berth.v2";
/// What containerd's names of runtimes begin with.
const TYPE_PREFIX: &str = "io.containerd.";

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Handler {
    /// The shim's binary, or its name in containerd's form. Empty: Berth's own, beside berthd, then on PATH.
    pub shim: PathBuf,
    /// For the runtime behind another shim.
    #[serde(skip_serializing_if = "Options::is_empty")]
    pub options: Options,
}

/// Those of runc's shims, by the names that containerd's configuration has for them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "PascalCase")]
pub struct Options {
    /// `runc`, `crun`, or a path
    #[serde(skip_serializing_if = "Option::is_none")]
    pub binary_name: Option<String>,
    /// Where the runtime keeps its state; none: in the pod's bundle.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub root: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub no_pivot_root: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub no_new_keyring: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub systemd_cgroup: Option<bool>,
}

/// Of a handler that has been taken out of the configuration while its pods run: what it was, their bundles say.
pub static UNKNOWN: LazyLock<Handler> = LazyLock::new(Handler::default);

impl Options {
    fn is_empty(&self) -> bool {
        *self == Options::default()
    }

    /// `name=value`, as our shim takes them.
    fn words(&self) -> Vec<String> {
        let flag = |name: &str, value: Option<bool>| value.map(|value| format!("{name}={value}"));
        [
            self.binary_name
                .as_ref()
                .map(|name| format!("BinaryName={name}")),
            self.root
                .as_ref()
                .map(|root| format!("Root={}", root.display())),
            flag("NoPivotRoot", self.no_pivot_root),
            flag("NoNewKeyring", self.no_new_keyring),
        ]
        .into_iter()
        .flatten()
        .collect()
    }
}

impl Handler {
    /// What can be told from the configuration alone.
    pub fn check(&self, name: &str) -> Result<(), String> {
        let key = |option: &str| format!("key `runtime.handlers.{name}.options.{option}`");
        if self.options.is_empty() {
            return Ok(());
        }
        if self.program().is_none() {
            return Err(format!(
                "key `runtime.handlers.{name}.options`: options are for other shims; Berth's own makes containers itself"
            ));
        }
        if self.options.systemd_cgroup.is_some() {
            return Err(format!(
                "{}: leave it out: it follows `cgroup.driver`",
                key("SystemdCgroup")
            ));
        }
        if self
            .options
            .root
            .as_ref()
            .is_some_and(|root| !root.is_absolute())
        {
            return Err(format!("{}: it must be an absolute path", key("Root")));
        }
        if self
            .options
            .binary_name
            .as_ref()
            .is_some_and(|name| name.is_empty() || name.contains(char::is_control))
        {
            return Err(format!(
                "{}: it is neither a path nor the name of a program",
                key("BinaryName")
            ));
        }
        Ok(())
    }

    /// Another shim's program, a path or a name to be found on PATH; none: Berth's own shim makes the containers.
    pub fn program(&self) -> Option<PathBuf> {
        let own = self.shim.as_os_str().is_empty()
            || self.shim.as_os_str() == OWN_TYPE
            || self.shim.file_name().is_some_and(|name| name == OWN);
        if own {
            return None;
        }
        // io.containerd.runc.v2 is containerd-shim-runc-v2.
        let of_type = self
            .shim
            .to_str()
            .and_then(|shim| shim.strip_prefix(TYPE_PREFIX))
            .and_then(|rest| rest.rsplit_once('.'))
            .map(|(name, version)| format!("containerd-shim-{name}-{version}").into());
        Some(of_type.unwrap_or_else(|| self.shim.clone()))
    }

    /// What our shim is told of another one: flags for its command line.
    pub fn front(&self, systemd_cgroup: bool) -> Result<Vec<String>, String> {
        let Some(program) = self.program() else {
            return Ok(Vec::new());
        };
        let found = find(&program)?;
        let mut flags = vec!["-front".to_owned(), found.display().to_string()];
        let by_systemd = systemd_cgroup.then(|| "SystemdCgroup=true".to_owned());
        for word in self.options.words().into_iter().chain(by_systemd) {
            flags.extend(["-front-option".to_owned(), word]);
        }
        Ok(flags)
    }

    /// Features that are made by Berth's own engine, and are nowhere in containerd's contract with a shim, are not promised of another, but
    /// for what the runtime behind it tells ([`crate::handler_features`]).
    pub fn is_own(&self) -> bool {
        self.program().is_none()
    }

    /// Refuses a pod that needs what the handler's shim can't do.
    pub fn check_pod(&self, name: &str, config: &cri::PodSandboxConfig) -> Result<(), Error> {
        if self.is_own() || berth_spec::user_namespace(config).is_none() {
            return Ok(());
        }
        Err(Error::FailedPrecondition(format!(
            "a user namespace of the pod is not possible: the shim of runtime handler {name} is not Berth's own"
        )))
    }
}

/// The program's path: as it is, or in a directory of PATH.
fn find(program: &Path) -> Result<PathBuf, String> {
    let runs = |path: &Path| {
        std::fs::metadata(path)
            .is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
    };
    if program.is_absolute() {
        return match std::fs::metadata(program) {
            Ok(_) if runs(program) => Ok(program.to_owned()),
            Ok(_) => Err("it is no file that can be executed".into()),
            Err(error) => Err(error.to_string()),
        };
    }
    std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default())
        .map(|directory| directory.join(program))
        .find(|path| path.is_absolute() && runs(path))
        .ok_or_else(|| "it is not on PATH".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn handler(text: &str) -> Result<Handler, String> {
        let handler: Handler = toml::from_str(text).map_err(|error| error.to_string())?;
        handler.check("x")?;
        Ok(handler)
    }

    #[test]
    fn a_shim_is_named_by_path_by_name_or_as_containerd_names_it() {
        for (shim, program) in [
            ("", None),
            ("io.containerd.berth.v2", None),
            ("/opt/berth/containerd-shim-berth-v2", None),
            ("io.containerd.runc.v2", Some("containerd-shim-runc-v2")),
            (
                "io.containerd.kata-qemu.v2",
                Some("containerd-shim-kata-qemu-v2"),
            ),
            ("containerd-shim-runc-v2", Some("containerd-shim-runc-v2")),
            ("/opt/shim", Some("/opt/shim")),
        ] {
            let found = handler(&format!("shim = {shim:?}")).unwrap().program();
            assert_eq!(found, program.map(PathBuf::from), "{shim}");
        }
    }

    #[test]
    fn options_become_words_for_the_shim_and_what_is_not_known_is_refused_by_name() {
        let crun =
            handler("shim = \"/bin/sh\"\noptions = { BinaryName = \"crun\", NoPivotRoot = true }")
                .unwrap();
        assert_eq!(
            crun.front(false).unwrap(),
            [
                "-front",
                "/bin/sh",
                "-front-option",
                "BinaryName=crun",
                "-front-option",
                "NoPivotRoot=true"
            ]
        );
        let by_systemd = crun.front(true).unwrap();
        assert_eq!(by_systemd.last().unwrap(), "SystemdCgroup=true");
        let shim = "shim = \"io.containerd.runc.v2\"";
        for (text, says) in [
            (format!("{shim}\noptions = {{ Nonsense = 1 }}"), "Nonsense"),
            (
                format!("{shim}\noptions = {{ BinaryName = 1 }}"),
                "BinaryName",
            ),
            (
                format!("{shim}\noptions = {{ SystemdCgroup = true }}"),
                "options.SystemdCgroup",
            ),
            (
                format!("{shim}\noptions = {{ Root = \"x\" }}"),
                "options.Root",
            ),
            (
                format!("{shim}\noptions = {{ BinaryName = \"\" }}"),
                "options.BinaryName",
            ),
            (
                "options = { BinaryName = \"crun\" }".into(),
                "Berth's own makes containers itself",
            ),
        ] {
            let error = handler(&text).unwrap_err();
            assert!(error.contains(says), "{text}: {error}");
        }
    }

    #[test]
    fn a_shim_that_can_not_be_executed_is_told_from_one_that_is_not_there() {
        for (shim, says) in [
            ("/no/such/shim", "No such file"),
            ("/etc/passwd", "executed"),
            ("/etc", "executed"),
            ("io.containerd.nonesuch.v2", "PATH"),
        ] {
            let error = handler(&format!("shim = {shim:?}"))
                .unwrap()
                .front(false)
                .unwrap_err();
            assert!(error.contains(says), "{shim}: {error}");
        }
    }
}
