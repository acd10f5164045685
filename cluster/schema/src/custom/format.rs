//! `format` of strings: those whose meaning is plain. Others are not checked.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use base64::{Engine, engine::general_purpose::STANDARD};

use crate::time;

/// Whether the text is of the format; formats that aren't known are always.
pub(super) fn is_of(format: &str, text: &str) -> bool {
    match format {
        "date-time" | "datetime" => time::is_rfc3339(text),
        "date" => text.len() == 10 && time::is_rfc3339(&format!("{text}T00:00:00Z")),
        "byte" => STANDARD.decode(text).is_ok(),
        "ipv4" => text.parse::<Ipv4Addr>().is_ok(),
        "ipv6" => text.parse::<Ipv6Addr>().is_ok(),
        "ip" => text.parse::<IpAddr>().is_ok(),
        "cidr" => is_cidr(text),
        "uuid" => is_uuid(text),
        "mac" => is_mac(text),
        "hostname" => is_hostname(text),
        _ => true,
    }
}

fn is_cidr(text: &str) -> bool {
    let Some((address, length)) = text.split_once('/') else {
        return false;
    };
    let most = match address.parse() {
        Ok(IpAddr::V4(_)) => 32,
        Ok(IpAddr::V6(_)) => 128,
        Err(_) => return false,
    };
    length.bytes().all(|byte| byte.is_ascii_digit())
        && length.parse::<u8>().is_ok_and(|n| n <= most)
}

/// With dashes or without.
fn is_uuid(text: &str) -> bool {
    let dashes = [8, 13, 18, 23];
    match text.len() {
        32 => text.bytes().all(|byte| byte.is_ascii_hexdigit()),
        36 => text
            .bytes()
            .enumerate()
            .all(|(at, byte)| match dashes.contains(&at) {
                true => byte == b'-',
                false => byte.is_ascii_hexdigit(),
            }),
        _ => false,
    }
}

fn is_mac(text: &str) -> bool {
    let separator = if text.contains('-') { '-' } else { ':' };
    let parts: Vec<_> = text.split(separator).collect();
    matches!(parts.len(), 6 | 8 | 20)
        && parts
            .iter()
            .all(|part| part.len() == 2 && part.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

/// RFC 1123.
fn is_hostname(text: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    text.len() <= 253 && text.split('.').all(label)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_of_their_formats() {
        for (format, good, bad) in [
            ("date-time", "2026-11-22T15:04:05Z", "2026-11-22"),
            ("date", "2026-11-22", "2026-11-31"),
            ("byte", "aGk=", "a"),
            ("ipv4", "10.0.0.1", "10.0.0.256"),
            ("ipv6", "::1", "10.0.0.1"),
            ("cidr", "10.0.0.0/8", "10.0.0.0/33"),
            ("cidr", "fe80::/64", "10.0.0.0/+8"),
            (
                "uuid",
                "00000000-0000-4000-8000-000000000000",
                "00000000-0000-4000-8000_000000000000",
            ),
            ("mac", "02:00:00:00:00:01", "02:00:00:00:00"),
            ("hostname", "a.example.com", "-a.example.com"),
        ] {
            assert!(is_of(format, good), "{format} {good}");
            assert!(!is_of(format, bad), "{format} {bad}");
        }
        assert!(is_of("anything", "else"));
    }
}
