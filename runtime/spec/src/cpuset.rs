//! The CPUs and memory nodes to which a container is pinned, against those that its place in the cgroup tree has.

use std::{
    fmt, fs,
    ops::RangeInclusive,
    path::{Path, PathBuf},
};

use berth_proto::cri;

use crate::{
    error::{Error, quoted},
    host::{CGROUP_ROOT, Host},
};

/// Bytes of a list: 8,192 CPUs, every other one.
const LIST_LIMIT: usize = 32 << 10;

/// Numbers as the kernel lists them: `0-3,7`.
#[derive(Debug, Clone, PartialEq, Eq)]
struct List(Vec<RangeInclusive<u64>>);

impl List {
    /// `None`: not such a list. An empty one is.
    fn parse(text: &str) -> Option<Self> {
        // What is too long for a number is larger than any CPU's.
        let number = |digits: &str| {
            let plain = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
            plain.then(|| digits.parse().unwrap_or(u64::MAX))
        };
        if text.len() > LIST_LIMIT {
            return None;
        }
        if text.is_empty() {
            return Some(Self(Vec::new()));
        }
        let ranges = text.split(',').map(|part| {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (first, last) = (number(first)?, number(last)?);
            (first <= last).then_some(first..=last)
        });
        ranges.collect::<Option<Vec<_>>>().map(Self)
    }

    /// The first number that `other` does not have.
    fn first_not_in(&self, other: &Self) -> Option<u64> {
        self.0.iter().find_map(|range| {
            let mut next = *range.start();
            // Each step passes one range of the other's.
            while next <= *range.end() {
                let Some(with) = other.0.iter().find(|with| with.contains(&next)) else {
                    return Some(next);
                };
                next = with.end().checked_add(1)?;
            }
            None
        })
    }
}

impl fmt::Display for List {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, range) in self.0.iter().enumerate() {
            let comma = if at == 0 { "" } else { "," };
            match range.start() == range.end() {
                true => write!(f, "{comma}{}", range.start())?,
                false => write!(f, "{comma}{}-{}", range.start(), range.end())?,
            }
        }
        Ok(())
    }
}

/// The part of the check that looks at no machine.
pub(crate) fn check_form(resources: &cri::LinuxContainerResources) -> Result<(), Error> {
    for (field, list) in [
        ("resources.cpuset_cpus", &resources.cpuset_cpus),
        ("resources.cpuset_mems", &resources.cpuset_mems),
    ] {
        if List::parse(list).is_none() {
            return Err(Error::invalid(
                field,
                format!("{} is not a list like 0-3,7", quoted(list)),
            ));
        }
    }
    Ok(())
}

/// Refuses CPUs and memory nodes that a container at `cgroup_path` can't have: the kernel would, only later and without saying
/// which (v1), or would run it elsewhere (v2). Reads the cpuset of the nearest cgroup above that is there, when a container names any.
///
/// Errors: a number that is not in that cpuset ([`crate::Kind::Invalid`]), a machine without the controller
/// ([`crate::Kind::Precondition`]).
pub fn check_cpuset(
    container: &cri::ContainerConfig,
    cgroup_path: &Path,
    host: &Host,
) -> Result<(), Error> {
    let resources = container
        .linux
        .as_ref()
        .and_then(|linux| linux.resources.as_ref());
    let Some(resources) = resources else {
        return Ok(());
    };
    check_form(resources)?;
    let (cpus, mems) = match host.cgroup_v2 {
        true => ("cpuset.cpus.effective", "cpuset.mems.effective"),
        false => ("cpuset.effective_cpus", "cpuset.effective_mems"),
    };
    for (resource, asked, file, noun) in [
        ("cpuset_cpus", &resources.cpuset_cpus, cpus, "CPU"),
        ("cpuset_mems", &resources.cpuset_mems, mems, "memory node"),
    ] {
        let Some(asked) = List::parse(asked).filter(|list| !list.0.is_empty()) else {
            continue;
        };
        let Some((cgroup, have)) = of_nearest(host, cgroup_path, file) else {
            return Err(Error::Resource {
                resource: resource.into(),
                why: "this machine has no cpuset controller".into(),
            });
        };
        if let Some(missing) = asked.first_not_in(&have) {
            return Err(Error::invalid(
                format!("resources.{resource}"),
                format!(
                    "there is no {noun} {missing} for this container: cgroup {} has {have}",
                    cgroup.display()
                ),
            ));
        }
    }
    Ok(())
}

/// The list in `file` of the nearest cgroup above `cgroup_path` that is there and has any (a v1 cpuset can be empty).
fn of_nearest(host: &Host, cgroup_path: &Path, file: &str) -> Option<(PathBuf, List)> {
    let hierarchy = match host.cgroup_v2 {
        true => Path::new(CGROUP_ROOT),
        false => host.cgroup_v1_mounts.iter().find(|mount| {
            let name = mount.file_name().and_then(|name| name.to_str());
            name.is_some_and(|name| name.split(',').any(|controller| controller == "cpuset"))
        })?,
    };
    cgroup_path.ancestors().skip(1).find_map(|above| {
        let below_root = above.strip_prefix("/").unwrap_or(above);
        let text = fs::read_to_string(hierarchy.join(below_root).join(file)).ok()?;
        let list = List::parse(text.trim())?;
        (!list.0.is_empty()).then(|| (Path::new("/").join(below_root), list))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{error::Kind, tests::host};

    #[test]
    fn lists_are_read_as_the_kernel_writes_them() {
        for (text, list) in [
            ("", Some(vec![])),
            ("0", Some(vec![0..=0])),
            ("0-3,7", Some(vec![0..=3, 7..=7])),
            ("99999999999999999999999", Some(vec![u64::MAX..=u64::MAX])),
            (",", None),
            ("0,", None),
            ("-", None),
            ("1-", None),
            ("3-1", None),
            ("0-1\n", None),
            ("+1", None),
            ("../0", None),
            ("0-1-2", None),
        ] {
            assert_eq!(List::parse(text), list.map(List), "{text:?}");
        }
        assert_eq!(List::parse(&"0,".repeat(LIST_LIMIT)), None);
        assert_eq!(List::parse("0-3,7").unwrap().to_string(), "0-3,7");
    }

    #[test]
    fn the_first_number_that_is_missing_is_found() {
        for (asked, have, missing) in [
            ("0-3", "0-3", None),
            ("0-3", "0-1,2-3", None),
            ("1,3", "0-3", None),
            ("0-3", "0-1,3", Some(2)),
            ("0,7", "0-3", Some(7)),
            ("4", "0-3", Some(4)),
            ("0-18446744073709551615", "0-18446744073709551615", None),
            ("0", "", Some(0)),
        ] {
            let list = |text| List::parse(text).unwrap();
            assert_eq!(
                list(asked).first_not_in(&list(have)),
                missing,
                "{asked} of {have}"
            );
        }
    }

    #[test]
    fn a_container_gets_only_what_the_cgroup_above_it_has() {
        let machine = tempfile::tempdir().unwrap();
        let root = machine.path().join("cpuset");
        let cgroup = |path: &str, cpus: &str| {
            let dir = root.join(path);
            fs::create_dir_all(&dir).unwrap();
            fs::write(dir.join("cpuset.effective_cpus"), format!("{cpus}\n")).unwrap();
            fs::write(dir.join("cpuset.effective_mems"), "0\n").unwrap();
        };
        cgroup("", "0-3");
        cgroup("narrow", "2");
        cgroup("empty", "");
        let mut host = host();
        let check = |host: &Host, at: &str, cpus: &str, mems: &str| {
            let mut container = cri::ContainerConfig::default();
            let linux = container.linux.get_or_insert_default();
            let resources = linux.resources.get_or_insert_default();
            (resources.cpuset_cpus, resources.cpuset_mems) = (cpus.into(), mems.into());
            check_cpuset(&container, Path::new(at), host).map_err(|e| (e.kind(), e.to_string()))
        };
        assert!(check(&host, "/pod/ctr", "", "").is_ok());
        let none = check(&host, "/pod/ctr", "0", "").unwrap_err();
        assert_eq!(none.0, Kind::Precondition, "{}", none.1);

        host.cgroup_v1_mounts.push(root.clone());
        for (at, cpus, mems, words) in [
            ("/pod/ctr", "0-3", "0", None),
            ("/empty/ctr", "0-3", "", None),
            ("/narrow/pod/ctr", "2", "0", None),
            // Not its own: the engine has yet to make it.
            ("/narrow", "0", "", None),
            ("/pod/ctr", "999999", "", Some(["CPU 999999", "0-3"])),
            ("/pod/ctr", "2-4", "", Some(["CPU 4", "0-3"])),
            (
                "/narrow/ctr",
                "0",
                "",
                Some(["CPU 0", "cgroup /narrow has 2"]),
            ),
            ("/pod/ctr", "", "1", Some(["memory node 1", "has 0"])),
            ("/pod/ctr", "3-1", "", Some(["cpuset_cpus", "list"])),
        ] {
            match (check(&host, at, cpus, mems), words) {
                (Ok(()), None) => {}
                (Err((kind, text)), Some(words)) => {
                    assert_eq!(kind, Kind::Invalid, "{text}");
                    assert!(words.iter().all(|word| text.contains(word)), "{text}");
                }
                (answer, _) => panic!("{at} {cpus} {mems}: {answer:?}"),
            }
        }
    }
}
