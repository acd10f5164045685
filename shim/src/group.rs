//! Which containers share a shim. berthd starts a shim by its pod's id; stock containerd starts one by a container's, and the pod is in
//! the annotations of the container's spec.

use crate::{
    bundle,
    cli::{Flags, check_id},
    error::Error,
};

/// Annotations that name the pod: what containerd's CRI writes, and what it is for callers that are no CRI.
const GROUPS: [&str; 2] = [
    "io.kubernetes.cri.sandbox-id",
    "io.containerd.runc.v2.group",
];

/// The id of the shim that serves `flags.id`: its pod's, or its own.
pub fn of(flags: &Flags) -> Result<String, Error> {
    // berthd's bundle of a pod has no spec.
    if !flags.bundle.join("config.json").exists() {
        return Ok(flags.id.clone());
    }
    let spec = bundle::read(&flags.bundle)?;
    let group = GROUPS
        .iter()
        .find_map(|annotation| spec["annotations"][*annotation].as_str());
    match group {
        Some(group) => {
            check_id(group)?;
            Ok(group.to_owned())
        }
        None => Ok(flags.id.clone()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_is_in_the_group_of_its_pod() {
        let dir = tempfile::tempdir().unwrap();
        let flags = Flags {
            id: "c1".into(),
            bundle: dir.path().into(),
            ..Flags::default()
        };
        assert_eq!(of(&flags).unwrap(), "c1", "no spec");
        for (spec, group) in [
            (
                r#"{"annotations": {"io.kubernetes.cri.sandbox-id": "p1"}}"#,
                Some("p1"),
            ),
            (
                r#"{"annotations": {"io.containerd.runc.v2.group": "g1"}}"#,
                Some("g1"),
            ),
            (r#"{"annotations": {"other": "x"}}"#, Some("c1")),
            ("{}", Some("c1")),
            (
                r#"{"annotations": {"io.kubernetes.cri.sandbox-id": "../x"}}"#,
                None,
            ),
            (
                r#"{"annotations": {"io.kubernetes.cri.sandbox-id": ""}}"#,
                None,
            ),
            ("no JSON", None),
        ] {
            std::fs::write(dir.path().join("config.json"), spec).unwrap();
            assert_eq!(of(&flags).ok().as_deref(), group, "{spec}");
        }
    }
}
