//! What names, labels, keys and values may be; each answers with what is wrong in upstream's words, or nothing.

/// Of DNS labels (RFC 1123), and of label values and qualified names.
pub(crate) const LABEL: usize = 63;
/// Of DNS subdomains.
pub(crate) const SUBDOMAIN: usize = 253;

const ALPHANUMERIC_LOWER: fn(u8) -> bool = |b| b.is_ascii_lowercase() || b.is_ascii_digit();

fn label_like(text: &str) -> bool {
    let bytes = text.as_bytes();
    let (Some(first), Some(last)) = (bytes.first(), bytes.last()) else {
        return false;
    };
    ALPHANUMERIC_LOWER(*first)
        && ALPHANUMERIC_LOWER(*last)
        && bytes.iter().all(|b| ALPHANUMERIC_LOWER(*b) || *b == b'-')
}

fn too_long(most: usize) -> String {
    format!("must be no more than {most} bytes")
}

pub(crate) fn dns_label(text: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    if text.len() > LABEL {
        wrong.push(too_long(LABEL));
    }
    if !label_like(text) {
        wrong.push(
            "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an \
             alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')"
                .to_owned(),
        );
    }
    wrong
}

/// Of most names of objects: nodes, too.
pub fn dns_subdomain(text: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    if text.len() > SUBDOMAIN {
        wrong.push(too_long(SUBDOMAIN));
    }
    if !text.split('.').all(label_like) {
        wrong.push(
            "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end \
             with an alphanumeric character (e.g. 'example.com', regex used for validation is \
             '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')"
                .to_owned(),
        );
    }
    wrong
}

/// `*.example.com`.
pub(crate) fn wildcard_subdomain(text: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    if text.len() > SUBDOMAIN {
        wrong.push(too_long(SUBDOMAIN));
    }
    if !text
        .strip_prefix("*.")
        .is_some_and(|rest| rest.split('.').all(label_like))
    {
        wrong.push(
            "a wildcard DNS-1123 subdomain must start with '*.', followed by a valid DNS subdomain, which must consist of lower case \
             alphanumeric characters, '-' or '.' and end with an alphanumeric character (e.g. '*.example.com', regex used for \
             validation is '\\*\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')"
                .to_owned(),
        );
    }
    wrong
}

/// Services' names, which begin with a letter.
pub(crate) fn dns_1035_label(text: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    if text.len() > LABEL {
        wrong.push(too_long(LABEL));
    }
    if !label_like(text) || text.as_bytes().first().is_some_and(u8::is_ascii_digit) {
        wrong.push(
            "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end \
             with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation is \
             '[a-z]([-a-z0-9]*[a-z0-9])?')"
                .to_owned(),
        );
    }
    wrong
}

/// What may be a part of a path: RBAC's names.
pub(crate) fn path_segment(text: &str) -> Vec<String> {
    if text == "." || text == ".." {
        return vec![format!("may not be '{text}'")];
    }
    ["/", "%"]
        .iter()
        .filter(|part| text.contains(**part))
        .map(|part| format!("may not contain '{part}'"))
        .collect()
}

fn name_part(text: &str) -> bool {
    let bytes = text.as_bytes();
    let (Some(first), Some(last)) = (bytes.first(), bytes.last()) else {
        return false;
    };
    first.is_ascii_alphanumeric()
        && last.is_ascii_alphanumeric()
        && bytes
            .iter()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
}

/// Keys of labels and annotations: `app`, `example.com/app`.
pub(crate) fn qualified_name(text: &str) -> Vec<String> {
    const FORM: &str = "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character \
                        (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is \
                        '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";
    let mut parts = text.split('/');
    let (first, second, third) = (parts.next().unwrap_or_default(), parts.next(), parts.next());
    let mut wrong = Vec::new();
    let name = match (second, third) {
        (None, _) => first,
        (Some(name), None) => {
            if first.is_empty() {
                wrong.push("prefix part must be non-empty".to_owned());
            } else {
                wrong.extend(
                    dns_subdomain(first)
                        .into_iter()
                        .map(|what| format!("prefix part {what}")),
                );
            }
            name
        }
        (Some(_), Some(_)) => {
            return vec![format!(
                "a qualified name {FORM} with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')"
            )];
        }
    };
    if name.is_empty() {
        wrong.push("name part must be non-empty".to_owned());
    } else if name.len() > LABEL {
        wrong.push(format!("name part {}", too_long(LABEL)));
    }
    if !name_part(name) {
        wrong.push(format!("name part {FORM}"));
    }
    wrong
}

pub(crate) fn label_value(text: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    if text.len() > LABEL {
        wrong.push(too_long(LABEL));
    }
    if !text.is_empty() && !name_part(text) {
        wrong.push(
            "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with \
             an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is \
             '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')"
                .to_owned(),
        );
    }
    wrong
}

/// Keys of ConfigMaps and Secrets, which become names of files.
pub(crate) fn config_key(text: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    if text.len() > SUBDOMAIN {
        wrong.push(too_long(SUBDOMAIN));
    }
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    if text.is_empty() || !text.bytes().all(allowed) {
        wrong.push(
            "a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  or \
             'key-name', regex used for validation is '[-._a-zA-Z0-9]+')"
                .to_owned(),
        );
    } else if text == "." {
        wrong.push("must not be '.'".to_owned());
    } else if text == ".." {
        wrong.push("must not be '..'".to_owned());
    } else if text.starts_with("..") {
        wrong.push("must not start with '..'".to_owned());
    }
    wrong
}

/// Names of environment variables: since 1.34 nearly every printable character.
pub(crate) fn variable_name(text: &str) -> Vec<String> {
    let allowed = |b: u8| (b' '..=b'~').contains(&b) && b != b'=';
    if !text.is_empty() && text.bytes().all(allowed) {
        return Vec::new();
    }
    vec![
        "a valid environment variable name must consist only of printable ASCII characters other than '=' (regex used for validation is \
         '^[ -<>-~]+$')"
            .to_owned(),
    ]
}

/// Names of ports (IANA service names).
pub(crate) fn port_name(text: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    if text.len() > 15 {
        wrong.push(too_long(15));
    }
    if !text.bytes().all(|b| ALPHANUMERIC_LOWER(b) || b == b'-') {
        wrong.push(
            "must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)".to_owned(),
        );
    }
    if !text.bytes().any(|b| b.is_ascii_lowercase()) {
        wrong.push("must contain at least one letter (a-z)".to_owned());
    }
    if text.contains("--") {
        wrong.push("must not contain consecutive hyphens".to_owned());
    }
    if text.starts_with('-') || text.ends_with('-') {
        wrong.push("must not begin or end with a hyphen".to_owned());
    }
    wrong
}

#[cfg(test)]
mod tests {
    use super::*;

    type Rule = fn(&str) -> Vec<String>;

    #[test]
    fn names_are_what_their_rules_say() {
        let long = |count: usize| "a".repeat(count);
        for (rule, good, bad) in [
            (
                dns_label as Rule,
                vec!["a".to_owned(), "a-b".into(), "1a".into(), long(63)],
                vec![
                    String::new(),
                    "A".into(),
                    "-a".into(),
                    "a-".into(),
                    "a.b".into(),
                    "ä".into(),
                    long(64),
                ],
            ),
            (
                dns_subdomain,
                vec!["a.b.c".into(), "1.2".into(), long(253)],
                vec![
                    String::new(),
                    "a..b".into(),
                    ".a".into(),
                    "a_b".into(),
                    long(254),
                ],
            ),
            (
                dns_1035_label,
                vec!["a1".into(), "web-1".into()],
                vec![String::new(), "1a".into(), "a.b".into()],
            ),
            (
                wildcard_subdomain,
                vec!["*.example.com".into()],
                vec![
                    "*".into(),
                    "a.*.com".into(),
                    "example.com".into(),
                    String::new(),
                ],
            ),
            (
                path_segment,
                vec!["system:node".into(), "a b".into(), "ä".into()],
                vec![".".into(), "..".into(), "a/b".into(), "a%2f".into()],
            ),
            (
                qualified_name,
                vec!["app".into(), "example.com/App_1".into(), "a/b".into()],
                vec![
                    String::new(),
                    "/a".into(),
                    "a/".into(),
                    "a/b/c".into(),
                    "A.com/x".into(),
                    "-a".into(),
                    long(64),
                ],
            ),
            (
                label_value,
                vec![String::new(), "v1.2_3-4".into(), long(63)],
                vec!["-".into(), "a b".into(), "a/".into(), long(64)],
            ),
            (
                config_key,
                vec![
                    "a.b".into(),
                    ".dockerconfigjson".into(),
                    "_".into(),
                    "...a".replace("...", "-.."),
                ],
                vec![
                    String::new(),
                    ".".into(),
                    "..".into(),
                    "..a".into(),
                    "a/b".into(),
                    long(254),
                ],
            ),
            (
                variable_name,
                vec!["A".into(), "a.b-c d".into(), "1".into()],
                vec![String::new(), "a=b".into(), "a\n".into(), "ä".into()],
            ),
            (
                port_name,
                vec!["http".into(), "p-80".into()],
                vec![
                    "80".into(),
                    "HTTP".into(),
                    "a--b".into(),
                    "-a".into(),
                    "abcdefghijklmnop".into(),
                    String::new(),
                ],
            ),
        ] {
            for text in good {
                assert_eq!(rule(&text), Vec::<String>::new(), "{text}");
            }
            for text in bad {
                assert!(!rule(&text).is_empty(), "{text}");
            }
        }
    }
}
