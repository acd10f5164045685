//! Slices by name and by path (systemd.slice(5)): `a-b.slice` lies in `a.slice`, so its cgroup is `/a.slice/a-b.slice`.

/// As systemd's own bound of a unit's name (`UNIT_NAME_MAX`).
const MAX_BYTES: usize = 255;
const SLICE: &str = ".slice";

/// Where a slice's cgroup is, from the root of the hierarchy. None: it is no slice's name, or it is the root slice.
pub fn slice_path(slice: &str) -> Option<String> {
    if slice.len() > MAX_BYTES || !slice.bytes().all(is_allowed) {
        return None;
    }
    let mut path = String::new();
    let mut nested = String::new();
    for part in slice.strip_suffix(SLICE)?.split('-') {
        if part.is_empty() {
            return None;
        }
        if !nested.is_empty() {
            nested.push('-');
        }
        nested.push_str(part);
        path = format!("{path}/{nested}{SLICE}");
    }
    Some(path)
}

/// What a unit's name is made of, but for `\` and `@`: an escape and an instance are no caller's to give.
fn is_allowed(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b':' | b'_' | b'.' | b'-')
}

/// Where the slice is that a caller names: by its name (`a-b.slice`), or by its whole path (`/a.slice/a-b.slice`) as a kubelet does. The error says
/// what is wrong with it.
pub fn slice_of_caller(parent: &str) -> Result<String, &'static str> {
    let name = parent.rsplit('/').next().unwrap_or(parent);
    if !name.ends_with(SLICE) {
        return Err("is not a slice of systemd, as kubepods-burstable.slice is");
    }
    let path = slice_path(name).ok_or("is not a slice's name")?;
    if parent.contains('/') && parent != path {
        return Err("is not where systemd has that slice: a-b.slice is /a.slice/a-b.slice");
    }
    Ok(path)
}

/// Where the slice `name` is that lies in the slice of this path.
pub fn slice_below(path: &str, name: &str) -> String {
    let above = path.rsplit('/').next().unwrap_or_default();
    let above = above.strip_suffix(SLICE).unwrap_or(above);
    format!("{path}/{above}-{name}{SLICE}")
}

/// A unit of a cgroup, by its last component: a slice's or a scope's name.
pub fn unit_of(path: &str) -> Option<&str> {
    let name = path.rsplit('/').next()?;
    (name.ends_with(SLICE) || name.ends_with(".scope")).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slice_lies_in_the_slices_of_its_name() {
        for (slice, path) in [
            ("a.slice", Some("/a.slice")),
            (
                "kubepods-burstable-pod1_2.slice",
                Some("/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1_2.slice"),
            ),
            ("-.slice", None),
            (".slice", None),
            ("a--b.slice", None),
            ("-a.slice", None),
            ("a-.slice", None),
            ("a.scope", None),
            ("a/b.slice", None),
            ("a@b.slice", None),
            ("a\\x2d.slice", None),
            ("a b.slice", None),
            ("a\n.slice", None),
        ] {
            assert_eq!(slice_path(slice).as_deref(), path, "{slice}");
        }
        assert_eq!(slice_path(&format!("{}.slice", "a".repeat(250))), None);
    }

    #[test]
    fn a_caller_names_a_slice_by_name_or_by_its_own_path_sec_eng_11() {
        let path = "/kubepods.slice/kubepods-pod1.slice";
        for named in ["kubepods-pod1.slice", path] {
            assert_eq!(slice_of_caller(named).as_deref(), Ok(path), "{named}");
        }
        for (wrong, says) in [
            ("/kubepods/pod1", "not a slice of systemd"),
            ("kubepods.slice/x.scope", "not a slice of systemd"),
            ("/", "not a slice of systemd"),
            ("-.slice", "not a slice's name"),
            ("/-.slice", "not a slice's name"),
            ("/kubepods-pod1.slice", "not where systemd has"),
            ("/system.slice/kubepods-pod1.slice", "not where systemd has"),
            ("/a.slice/../kubepods.slice", "not where systemd has"),
            (
                "kubepods.slice/kubepods-pod1.slice",
                "not where systemd has",
            ),
            (
                "/kubepods.slice//kubepods-pod1.slice",
                "not where systemd has",
            ),
        ] {
            let refused = slice_of_caller(wrong).unwrap_err();
            assert!(refused.contains(says), "{wrong}: {refused}");
        }
    }

    #[test]
    fn a_slice_in_a_slice_is_where_its_name_says() {
        let below = slice_below("/a.slice/a-b.slice", "c");
        assert_eq!(below, "/a.slice/a-b.slice/a-b-c.slice");
        assert_eq!(slice_path("a-b-c.slice"), Some(below));
    }

    #[test]
    fn units_are_told_from_other_cgroups() {
        assert_eq!(unit_of("/a.slice/a-b.slice"), Some("a-b.slice"));
        assert_eq!(unit_of("/a.slice/berth-1.scope"), Some("berth-1.scope"));
        assert_eq!(unit_of("/berth-pods/1"), None);
    }
}
