//! The options of a runtime in containerd's configuration, as they come with Create: taken, or refused by name. What would be passed over
//! in silence is what a person is puzzled by.

use std::path::Path;

use berth_proto::shim::runc_options::Options;
use protobuf::{Message, MessageField, well_known_types::any::Any};

use crate::error::Error;

/// As containerd's `[…runtimes.NAME.options]` become it for runc's shims and, beside those, for every other.
const RUNC: &str = "containerd.runc.v1.Options";
const ANY_SHIM: &str = "runtimeoptions.v1.Options";

/// What this shim does at the word of its options.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Taken {
    /// Cgroups are units of systemd: `linux.cgroupsPath` is `slice:prefix:name`.
    pub systemd_cgroup: bool,
}

/// Refuses what this shim does not do.
pub fn taken(options: &MessageField<Any>) -> Result<Taken, Error> {
    let Some(any) = options.as_ref() else {
        return Ok(Taken::default());
    };
    match any.type_url.rsplit('/').next().unwrap_or_default() {
        // An Any of nothing.
        "" if any.value.is_empty() => Ok(Taken::default()),
        RUNC => of_runc(&any.value),
        ANY_SHIM => of_any_shim(&any.value),
        other => Err(Error::invalid(
            "runtime options",
            format!(
                "{other:?} is not taken: this shim has no settings but SystemdCgroup of {RUNC}, and those of it that are left at their defaults"
            ),
        )),
    }
}

/// What another shim is given, of `name=value` words (runc's, by the names that containerd's configuration has for them). None: nothing
/// that it would have to understand. `dir` is where its runtime's state goes that has no other place: with the pod's bundle, so that it
/// goes with the pod.
pub fn encode(shim: &Path, words: &[String], dir: &Path) -> Result<Option<Any>, Error> {
    let is_runc = shim
        .file_name()
        .and_then(|name| name.to_str())
        .is_some_and(|name| name.starts_with("containerd-shim-runc-"));
    if !is_runc && words.is_empty() {
        return Ok(None);
    }
    let mut options = Options::new();
    options.root = dir.join("state").display().to_string();
    for word in words {
        let (name, value) = word
            .split_once('=')
            .ok_or_else(|| Error::invalid(format!("runtime option {word:?}"), "it has no value"))?;
        let flag = || match value {
            "true" => Ok(true),
            "false" => Ok(false),
            _ => Err(Error::invalid(
                format!("runtime option {name}"),
                "it is true or false",
            )),
        };
        match name {
            "BinaryName" => options.binary_name = value.to_owned(),
            "Root" => options.root = value.to_owned(),
            "NoPivotRoot" => options.no_pivot_root = flag()?,
            "NoNewKeyring" => options.no_new_keyring = flag()?,
            "SystemdCgroup" => options.systemd_cgroup = flag()?,
            _ => {
                return Err(Error::invalid(
                    format!("runtime option {name:?}"),
                    "known are BinaryName, Root, NoPivotRoot, NoNewKeyring, SystemdCgroup",
                ));
            }
        }
    }
    let value = options
        .write_to_bytes()
        .map_err(|error| Error::invalid("runtime options", error))?;
    Ok(Some(Any {
        type_url: RUNC.into(),
        value,
        ..Default::default()
    }))
}

/// `config_body`, field 3 of runtimeoptions.v1.Options.
const CONFIG_BODY: u32 = 3;

/// containerd since 1.7 passes the options of a runtime that it does not know as they stand in its configuration: as TOML, in `config_body`.
/// `type_url` and `config_path` name a file of settings for the shim, which has none.
fn of_any_shim(bytes: &[u8]) -> Result<Taken, Error> {
    let invalid = |error| Error::invalid("runtime options", error);
    let other = |what: &str| {
        Error::invalid(
            "runtime options",
            format!(
                "{what} of {ANY_SHIM} is not taken: this shim has one setting, SystemdCgroup = true or false"
            ),
        )
    };
    let mut taken = Taken::default();
    let mut input = protobuf::CodedInputStream::from_bytes(bytes);
    while let Some(tag) = input.read_raw_tag_or_eof().map_err(invalid)? {
        // A field's number, and the type of what has a length.
        if tag != CONFIG_BODY << 3 | 2 {
            return Err(other("another field than config_body"));
        }
        let body = input.read_bytes().map_err(invalid)?;
        let body = String::from_utf8(body).map_err(|_| other("a config_body that is no text"))?;
        for line in body.lines().map(str::trim).filter(|line| !line.is_empty()) {
            match line
                .split_once('=')
                .map(|(key, value)| (key.trim(), value.trim()))
            {
                Some(("SystemdCgroup", "true")) => taken.systemd_cgroup = true,
                Some(("SystemdCgroup", "false")) => taken.systemd_cgroup = false,
                _ => return Err(other(&format!("{line:?}"))),
            }
        }
    }
    Ok(taken)
}

fn of_runc(bytes: &[u8]) -> Result<Taken, Error> {
    let options = Options::parse_from_bytes(bytes)
        .map_err(|error| Error::invalid("runtime options", error))?;
    // Taken: IoUid and IoGid, the owner of the streams, who is the process's user here; TaskApiAddress and its version, where a sandbox's task
    // service is, which is this very shim.
    let set = [
        ("NoPivotRoot", options.no_pivot_root),
        ("NoNewKeyring", options.no_new_keyring),
        ("ShimCgroup", !options.shim_cgroup.is_empty()),
        ("BinaryName", !options.binary_name.is_empty()),
        ("Root", !options.root.is_empty()),
        ("CriuImagePath", !options.criu_image_path.is_empty()),
        ("CriuWorkPath", !options.criu_work_path.is_empty()),
    ];
    match set.into_iter().find(|(_, set)| *set) {
        None => Ok(Taken {
            systemd_cgroup: options.systemd_cgroup,
        }),
        Some((name, _)) => Err(Error::invalid(
            format!("runtime option {name}"),
            "this shim makes containers itself and does not support it; remove it from the runtime's options",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn any(name: &str, value: Vec<u8>) -> MessageField<Any> {
        MessageField::some(Any {
            type_url: format!("types.googleapis.com/{name}"),
            value,
            ..Default::default()
        })
    }

    #[test]
    fn options_for_another_shim_are_those_that_its_runtime_knows() {
        let of = |shim: &str, words: &[&str]| {
            let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
            encode(Path::new(shim), &words, Path::new("/pod/front"))
        };
        assert_eq!(of("/usr/bin/containerd-shim-kata-v2", &[]).unwrap(), None);
        let any = of("/usr/bin/containerd-shim-runc-v2", &["BinaryName=crun"])
            .unwrap()
            .unwrap();
        let options = Options::parse_from_bytes(&any.value).unwrap();
        assert_eq!(any.type_url, RUNC);
        assert_eq!(
            (options.binary_name.as_str(), options.root.as_str()),
            ("crun", "/pod/front/state")
        );
        for (word, named) in [
            ("Nonsense=1", "Nonsense"),
            ("BinaryName", "BinaryName"),
            ("NoPivotRoot=perhaps", "NoPivotRoot"),
        ] {
            let error = of("/x", &[word]).unwrap_err().to_string();
            assert!(error.contains(named), "{error}");
        }
    }

    #[test]
    fn options_that_ask_for_nothing_are_taken_and_others_refused_by_name() {
        let runc = |options: Options| any(RUNC, options.write_to_bytes().unwrap());
        for taken in [
            MessageField::none(),
            MessageField::some(Any::new()),
            runc(Options::new()),
            runc(Options {
                io_uid: 65536,
                io_gid: 65536,
                task_api_address: "ttrpc+unix:///run/s/1".into(),
                ..Options::new()
            }),
            any(ANY_SHIM, Vec::new()),
        ] {
            assert_eq!(super::taken(&taken).unwrap(), Taken::default());
        }
        let by_systemd = runc(Options {
            systemd_cgroup: true,
            ..Options::new()
        });
        assert!(super::taken(&by_systemd).unwrap().systemd_cgroup);
        let body = |text: &str| {
            let length = u8::try_from(text.len()).unwrap();
            any(ANY_SHIM, [&[0x1a, length][..], text.as_bytes()].concat())
        };
        for (text, systemd_cgroup) in [
            ("SystemdCgroup = true\n", true),
            ("  SystemdCgroup=true", true),
            ("SystemdCgroup = false", false),
            ("", false),
        ] {
            let taken = super::taken(&body(text)).unwrap();
            assert_eq!(taken.systemd_cgroup, systemd_cgroup, "{text}");
        }
        for text in ["BinaryName = \"crun\"", "SystemdCgroup = 1", "[table]", "x"] {
            let refused = super::taken(&body(text)).unwrap_err().to_string();
            assert!(refused.contains("SystemdCgroup"), "{text}: {refused}");
        }
        for (refused, word) in [
            (
                runc(Options {
                    binary_name: "crun".into(),
                    ..Options::new()
                }),
                "BinaryName",
            ),
            (any(ANY_SHIM, vec![0x12, 1, b'x']), ANY_SHIM),
            (any("some.other.Options", vec![1]), "some.other.Options"),
            (any(RUNC, vec![0xff]), "runtime options"),
        ] {
            let error = taken(&refused).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
    }
}
