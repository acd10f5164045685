//! `vendor/class=device`, as the specification has it.

use crate::error::quoted;

/// A qualified name, taken apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Qualified<'a> {
    /// `vendor/class`
    pub kind: &'a str,
    pub device: &'a str,
}

/// Bytes of a qualified name; Kubernetes' longest of the parts has 253.
const NAME_LIMIT: usize = 512;

pub(super) fn parse(name: &str) -> Result<Qualified<'_>, String> {
    let wrong = || {
        format!(
            "{} is not a CDI device like vendor.com/class=name",
            quoted(name)
        )
    };
    if name.len() > NAME_LIMIT {
        return Err(wrong());
    }
    let (kind, device) = name.split_once('=').ok_or_else(wrong)?;
    check_kind(kind).map_err(|_| wrong())?;
    check_device(device).map_err(|_| wrong())?;
    Ok(Qualified { kind, device })
}

pub(super) fn check_kind(kind: &str) -> Result<(), String> {
    let fine = kind.split_once('/').is_some_and(|(vendor, class)| {
        [vendor, class].into_iter().all(|part| {
            part.starts_with(|first: char| first.is_ascii_alphabetic()) && is_word(part, "_-.")
        })
    });
    match fine {
        true => Ok(()),
        false => Err(format!("kind {} is not vendor/class", quoted(kind))),
    }
}

pub(super) fn check_device(name: &str) -> Result<(), String> {
    match is_word(name, "_-.:") {
        true => Ok(()),
        false => Err(format!("{} is not the name of a device", quoted(name))),
    }
}

/// Letters, digits and `more`; a letter or digit at both ends.
fn is_word(text: &str, more: &str) -> bool {
    let end = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    end(text.chars().next())
        && end(text.chars().last())
        && text
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || more.contains(c))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_has_a_vendor_a_class_and_a_device() {
        for (name, kind, device) in [
            ("nvidia.com/gpu=0", "nvidia.com/gpu", "0"),
            ("v/c=d", "v/c", "d"),
            ("v-1.x_y/c.d-e=GPU-1:0.a_b", "v-1.x_y/c.d-e", "GPU-1:0.a_b"),
        ] {
            assert_eq!(parse(name), Ok(Qualified { kind, device }), "{name}");
        }
        for name in [
            "",
            "gpu0",
            "v/c",
            "v/c=",
            "=d",
            "/c=d",
            "v/=d",
            "v=d",
            "1v/c=d",
            "v/1c=d",
            "v-/c=d",
            "v/c=-d",
            "v/c=d-",
            "v/c=d=e",
            "v/c/d=e",
            "v/c=../d",
            "v/c=d\n",
            "v c/c=d",
            "vendör/c=d",
            &format!("v/c={}", "d".repeat(600)),
        ] {
            assert!(parse(name).is_err(), "{name:?}");
        }
    }
}
