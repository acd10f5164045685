//! Kubernetes' named formats: `!format.dns1123Label().validate(self.name).hasValue()`.

use base64::{Engine, prelude::BASE64_STANDARD};
use jiff::{Timestamp, civil::Date};

use super::{Function, Made, global, method, wrong};
use crate::{Error, Shape, Val};

const FORMAT: Shape = Shape::Other("kubernetes.NamedFormat");

#[derive(Debug)]
pub struct Format {
    pub(crate) name: &'static str,
    /// What is wrong with a text.
    check: fn(&str) -> Option<String>,
}

pub(super) static FUNCTIONS: &[Function] = &[
    global("format.named", 1, Shape::Optional, |_, all, _| {
        match &all[0] {
            Val::Text(name) => {
                Ok(named(name).map_or(Val::none(), |format| Val::some(Val::Format(format))))
            }
            _ => wrong(),
        }
    }),
    global("format.dns1123Label", 0, FORMAT, |_, _, _| {
        of("dns1123Label")
    }),
    global("format.dns1123Subdomain", 0, FORMAT, |_, _, _| {
        of("dns1123Subdomain")
    }),
    global("format.dns1035Label", 0, FORMAT, |_, _, _| {
        of("dns1035Label")
    }),
    global("format.qualifiedName", 0, FORMAT, |_, _, _| {
        of("qualifiedName")
    }),
    global("format.dns1123LabelPrefix", 0, FORMAT, |_, _, _| {
        of("dns1123LabelPrefix")
    }),
    global("format.dns1123SubdomainPrefix", 0, FORMAT, |_, _, _| {
        of("dns1123SubdomainPrefix")
    }),
    global("format.dns1035LabelPrefix", 0, FORMAT, |_, _, _| {
        of("dns1035LabelPrefix")
    }),
    global("format.labelValue", 0, FORMAT, |_, _, _| of("labelValue")),
    global("format.uri", 0, FORMAT, |_, _, _| of("uri")),
    global("format.uuid", 0, FORMAT, |_, _, _| of("uuid")),
    global("format.byte", 0, FORMAT, |_, _, _| of("byte")),
    global("format.date", 0, FORMAT, |_, _, _| of("date")),
    global("format.datetime", 0, FORMAT, |_, _, _| of("datetime")),
    method("validate", 2, 2, Shape::Optional, |machine, all, _| {
        let (Val::Format(format), Val::Text(text)) = (&all[0], &all[1]) else {
            return wrong();
        };
        machine.steps.of_text(text.len())?;
        Ok(match (format.check)(text) {
            None => Val::none(),
            Some(why) => Val::some(Val::list(vec![Val::text(why)])),
        })
    }),
];

static FORMATS: [Format; 13] = [
    Format {
        name: "dns1123Label",
        check: |text| {
            label(
                text,
                false,
                "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')",
            )
        },
    },
    Format {
        name: "dns1123Subdomain",
        check: subdomain,
    },
    Format {
        name: "dns1035Label",
        check: |text| {
            label(
                text,
                true,
                "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation is '[a-z]([-a-z0-9]*[a-z0-9])?')",
            )
        },
    },
    Format {
        name: "qualifiedName",
        check: qualified,
    },
    Format {
        name: "dns1123LabelPrefix",
        check: |text| prefix("dns1123Label", text),
    },
    Format {
        name: "dns1123SubdomainPrefix",
        check: |text| prefix("dns1123Subdomain", text),
    },
    Format {
        name: "dns1035LabelPrefix",
        check: |text| prefix("dns1035Label", text),
    },
    Format {
        name: "labelValue",
        check: label_value,
    },
    Format {
        name: "uri",
        check: |text| url::Url::parse(text).err().map(|error| error.to_string()),
    },
    Format {
        name: "uuid",
        check: |text| (!is_uuid(text)).then(|| "does not match the UUID format".to_owned()),
    },
    Format {
        name: "byte",
        check: |text| {
            BASE64_STANDARD
                .decode(text)
                .err()
                .map(|_| "invalid base64".to_owned())
        },
    },
    Format {
        name: "date",
        check: |text| {
            text.parse::<Date>()
                .err()
                .map(|_| "invalid date".to_owned())
        },
    },
    Format {
        name: "datetime",
        check: |text| {
            text.parse::<Timestamp>()
                .err()
                .map(|_| "invalid datetime".to_owned())
        },
    },
];

fn named(name: &str) -> Option<&'static Format> {
    FORMATS.iter().find(|format| format.name == name)
}

fn of<'a>(name: &str) -> Made<'a> {
    named(name)
        .map(Val::Format)
        .ok_or_else(|| Error::run(format!("there is no format {name}")))
}

fn too_long(text: &str, most: usize) -> Option<String> {
    (text.len() > most).then(|| format!("must be no more than {most} characters"))
}

fn is_label(text: &str, letter_first: bool) -> bool {
    let ends = |c: Option<char>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
    text.chars()
        .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
        && ends(text.chars().next())
        && ends(text.chars().next_back())
        && !(letter_first && text.starts_with(|c: char| c.is_ascii_digit()))
}

fn label(text: &str, letter_first: bool, why: &str) -> Option<String> {
    too_long(text, 63).or_else(|| (!is_label(text, letter_first)).then(|| why.to_owned()))
}

fn subdomain(text: &str) -> Option<String> {
    too_long(text, 253).or_else(|| {
        (!text.split('.').all(|part| is_label(part, false))).then(|| {
            "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')".to_owned()
        })
    })
}

/// A dash may be its end: something follows.
fn prefix(of: &str, text: &str) -> Option<String> {
    let whole = match text.strip_suffix('-') {
        Some(before) => format!("{before}a"),
        None => text.to_owned(),
    };
    named(of).and_then(|format| (format.check)(&whole))
}

fn is_name(text: &str) -> bool {
    let ends = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    text.chars()
        .all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
        && ends(text.chars().next())
        && ends(text.chars().next_back())
}

fn qualified(text: &str) -> Option<String> {
    let (before, name) = match text.split_once('/') {
        Some((before, name)) => (Some(before), name),
        None => (None, text),
    };
    if let Some(before) = before
        && let Some(why) = subdomain(before)
    {
        return Some(format!("prefix part {why}"));
    }
    if let Some(why) = too_long(name, 63) {
        return Some(format!("name part {why}"));
    }
    (!is_name(name)).then(|| {
        "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')".to_owned()
    })
}

fn label_value(text: &str) -> Option<String> {
    too_long(text, 63).or_else(|| {
        (!text.is_empty() && !is_name(text)).then(|| {
            "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')".to_owned()
        })
    })
}

fn is_uuid(text: &str) -> bool {
    let plain: String = text.chars().filter(|c| *c != '-').collect();
    plain.len() == 32
        && plain.chars().all(|c| c.is_ascii_hexdigit())
        && matches!(text.len(), 32..=36)
}
