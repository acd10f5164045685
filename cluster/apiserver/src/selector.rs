//! Label and field selectors of lists, watches and collections.

use std::fmt;

use serde_json::Value;

/// Longer ones are refused: what a client sends is evaluated for every object.
const LONGEST: usize = 64 << 10;

#[derive(Debug, Clone, PartialEq, Eq)]
enum Needs {
    In(Vec<String>),
    NotIn(Vec<String>),
    Exists,
    DoesNotExist,
    Greater(i64),
    Less(i64),
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Requirement {
    key: String,
    needs: Needs,
}

/// All requirements hold; none: everything is selected.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LabelSelector(Vec<Requirement>);

/// `message` is upstream's `labels.Parse` or `fields.ParseSelector`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SelectorError(pub String);

impl fmt::Display for SelectorError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl LabelSelector {
    pub fn is_everything(&self) -> bool {
        self.0.is_empty()
    }

    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        if text.len() > LONGEST {
            return Err(SelectorError("the label selector is too long".into()));
        }
        let mut words = Words::new(text);
        let mut requirements = Vec::new();
        if words.peek().is_none() {
            return Ok(Self::default());
        }
        loop {
            requirements.push(requirement(&mut words)?);
            match words.next() {
                None => break,
                Some(word) if word == "," => {
                    if words.peek().is_none() {
                        return Err(found("", "identifier after ','"));
                    }
                }
                Some(word) => return Err(found(&word, "',' or 'end of string'")),
            }
        }
        Ok(Self(requirements))
    }

    /// Of a LabelSelector object (`matchLabels`, `matchExpressions`). An absent one selects nothing, an empty one everything.
    pub fn of_object(selector: Option<&Value>) -> Option<Self> {
        let selector = selector?.as_object()?;
        let mut requirements = Vec::new();
        if let Some(labels) = selector.get("matchLabels").and_then(Value::as_object) {
            for (key, value) in labels {
                requirements.push(Requirement {
                    key: key.clone(),
                    needs: Needs::In(vec![value.as_str()?.to_owned()]),
                });
            }
        }
        for expression in selector
            .get("matchExpressions")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
        {
            let values = || {
                expression["values"]
                    .as_array()
                    .into_iter()
                    .flatten()
                    .filter_map(|value| value.as_str().map(str::to_owned))
                    .collect()
            };
            requirements.push(Requirement {
                key: expression["key"].as_str()?.to_owned(),
                needs: match expression["operator"].as_str()? {
                    "In" => Needs::In(values()),
                    "NotIn" => Needs::NotIn(values()),
                    "Exists" => Needs::Exists,
                    "DoesNotExist" => Needs::DoesNotExist,
                    _ => return None,
                },
            });
        }
        Some(Self(requirements))
    }

    pub fn matches<'a>(&self, label: impl Fn(&str) -> Option<&'a str>) -> bool {
        self.0.iter().all(|requirement| {
            let value = label(&requirement.key);
            match &requirement.needs {
                Needs::In(values) => value.is_some_and(|value| values.iter().any(|v| v == value)),
                Needs::NotIn(values) => value.is_none_or(|value| values.iter().all(|v| v != value)),
                Needs::Exists => value.is_some(),
                Needs::DoesNotExist => value.is_none(),
                Needs::Greater(than) => {
                    value.and_then(|value| value.parse::<i64>().ok()) > Some(*than)
                }
                Needs::Less(than) => value
                    .and_then(|value| value.parse::<i64>().ok())
                    .is_some_and(|value| value < *than),
            }
        })
    }
}

fn found(found: &str, expected: &str) -> SelectorError {
    SelectorError(format!(
        "unable to parse requirement: found '{found}', expected: {expected}"
    ))
}

fn requirement(words: &mut Words<'_>) -> Result<Requirement, SelectorError> {
    let mut word = words.next().unwrap_or_default();
    let negated = word == "!";
    if negated {
        word = words.next().unwrap_or_default();
    }
    if word.is_empty() || is_operator(&word) {
        return Err(found(&word, "!, identifier, or 'end of string'"));
    }
    let key = word;
    check_key(&key)?;
    if negated {
        return Ok(Requirement {
            key,
            needs: Needs::DoesNotExist,
        });
    }
    let operator = match words.peek() {
        None => "".to_owned(),
        Some(word) => word,
    };
    if operator.is_empty() || operator == "," {
        return Ok(Requirement {
            key,
            needs: Needs::Exists,
        });
    }
    words.next();
    let needs = match operator.as_str() {
        "=" | "==" => Needs::In(vec![value(words)?]),
        "!=" => Needs::NotIn(vec![value(words)?]),
        ">" => Needs::Greater(number(words)?),
        "<" => Needs::Less(number(words)?),
        "in" => Needs::In(values(words)?),
        "notin" => Needs::NotIn(values(words)?),
        other => return Err(found(other, "in, notin, =, ==, !=, gt, lt")),
    };
    Ok(Requirement { key, needs })
}

fn value(words: &mut Words<'_>) -> Result<String, SelectorError> {
    match words.peek() {
        None => Ok(String::new()),
        Some(word) if word == "," => Ok(String::new()),
        Some(word) if is_operator(&word) => Err(found(&word, "identifier")),
        Some(word) => {
            words.next();
            check_value(&word)?;
            Ok(word)
        }
    }
}

fn number(words: &mut Words<'_>) -> Result<i64, SelectorError> {
    let word = value(words)?;
    word.parse().map_err(|_| {
        SelectorError(format!(
            "values[0]: Invalid value: {word:?}: for 'Gt', 'Lt' operators, the value must be an integer"
        ))
    })
}

fn values(words: &mut Words<'_>) -> Result<Vec<String>, SelectorError> {
    let open = words.next().unwrap_or_default();
    if open != "(" {
        return Err(found(&open, "'('"));
    }
    let mut values = Vec::new();
    let mut wants = true;
    loop {
        match words.next() {
            None => return Err(found("", "',', ')' or identifier")),
            Some(word) if word == ")" => {
                if wants {
                    values.push(String::new());
                }
                return Ok(values);
            }
            Some(word) if word == "," => {
                if wants {
                    values.push(String::new());
                }
                wants = true;
            }
            Some(word) if is_operator(&word) || !wants => {
                return Err(found(&word, "',', or identifier"));
            }
            Some(word) => {
                check_value(&word)?;
                values.push(word);
                wants = false;
            }
        }
    }
}

fn is_operator(word: &str) -> bool {
    matches!(word, "!" | "=" | "==" | "!=" | ">" | "<" | "(" | ")" | ",")
}

fn is_name(part: &str) -> bool {
    let bytes = part.as_bytes();
    let edge = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    part.len() <= 63
        && edge(bytes.first())
        && edge(bytes.last())
        && bytes
            .iter()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(byte))
}

fn check_key(key: &str) -> Result<(), SelectorError> {
    let name = key.split_once('/').map_or(key, |(_, name)| name);
    if is_name(name) && key.len() <= 253 + 64 {
        return Ok(());
    }
    Err(SelectorError(format!(
        "unable to parse requirement: <nil>: Invalid value: {key:?}: name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')"
    )))
}

fn check_value(value: &str) -> Result<(), SelectorError> {
    if value.is_empty() || is_name(value) {
        return Ok(());
    }
    Err(SelectorError(format!(
        "unable to parse requirement: values[0][{value}]: Invalid value: {value:?}: a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')"
    )))
}

struct Words<'a> {
    rest: &'a str,
}

impl<'a> Words<'a> {
    fn new(text: &'a str) -> Self {
        Self {
            rest: text.trim_start(),
        }
    }

    fn split(&self) -> Option<(&'a str, &'a str)> {
        let rest = self.rest;
        let first = rest.chars().next()?;
        let special = |c: char| "=!(),><".contains(c) || c.is_whitespace();
        let end = match first {
            '=' | '!' if rest[1..].starts_with('=') => 2,
            c if special(c) => 1,
            _ => rest.find(special).unwrap_or(rest.len()),
        };
        Some(rest.split_at(end))
    }

    fn peek(&self) -> Option<String> {
        self.split().map(|(word, _)| word.to_owned())
    }

    fn next(&mut self) -> Option<String> {
        let (word, rest) = self.split()?;
        self.rest = rest.trim_start();
        Some(word.to_owned())
    }
}

/// Comparisons of fields with values: (path, equal, value).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FieldSelector(Vec<(String, bool, String)>);

impl FieldSelector {
    pub fn is_everything(&self) -> bool {
        self.0.is_empty()
    }

    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        if text.len() > LONGEST {
            return Err(SelectorError("the field selector is too long".into()));
        }
        let mut terms = Vec::new();
        for term in split_terms(text) {
            if term.is_empty() {
                continue;
            }
            let invalid = || {
                SelectorError(format!(
                    "invalid selector: '{term}'; can't understand '{term}'"
                ))
            };
            let at = term.find(['=', '!']).ok_or_else(invalid)?;
            let (path, rest) = term.split_at(at);
            let (equal, value) = if let Some(value) = rest.strip_prefix("!=") {
                (false, value)
            } else if let Some(value) = rest.strip_prefix("==") {
                (true, value)
            } else if let Some(value) = rest.strip_prefix('=') {
                (true, value)
            } else {
                return Err(invalid());
            };
            terms.push((path.to_owned(), equal, unescape(value).ok_or_else(invalid)?));
        }
        Ok(Self(terms))
    }

    pub fn paths(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|(path, ..)| path.as_str())
    }

    /// The value that `path` must have.
    pub fn required(&self, path: &str) -> Option<&str> {
        self.0
            .iter()
            .find(|(at, equal, _)| *equal && at == path)
            .map(|(.., value)| value.as_str())
    }

    /// `value` of a field that is not there is empty.
    pub fn matches<'a>(&self, value: impl Fn(&str) -> &'a str) -> bool {
        self.0
            .iter()
            .all(|(path, equal, wanted)| (value(path) == wanted) == *equal)
    }
}

/// At commas that no backslash escapes.
fn split_terms(text: &str) -> Vec<&str> {
    let mut terms = Vec::new();
    let (mut start, mut escaped) = (0, false);
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b',' => {
                terms.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    terms.push(&text[start..]);
    terms
}

fn unescape(value: &str) -> Option<String> {
    let mut plain = String::with_capacity(value.len());
    let mut chars = value.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => plain.push(chars.next().filter(|c| "\\,=".contains(*c))?),
            '=' | ',' => return None,
            c => plain.push(c),
        }
    }
    Some(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn label_selectors_select_as_upstream() {
        let labels = [("app", "web"), ("tier", "front"), ("n", "5"), ("e", "")];
        let label = |key: &str| {
            labels
                .iter()
                .find(|(name, _)| *name == key)
                .map(|(_, value)| *value)
        };
        for (selector, selects) in [
            ("", true),
            ("app=web", true),
            ("app==web,tier=front", true),
            ("app = web , tier in (front, back)", true),
            ("app!=web", false),
            ("missing!=web", true),
            ("app", true),
            ("!app", false),
            ("!missing", true),
            ("missing", false),
            ("tier in (back)", false),
            ("tier notin (back)", true),
            ("missing notin (back)", true),
            ("n>4", true),
            ("n>5", false),
            ("n<6", true),
            ("app>1", false),
            ("missing<1", false),
            ("e=", true),
            ("e", true),
            ("app=", false),
            ("e in (,x)", true),
        ] {
            let parsed = LabelSelector::parse(selector).expect(selector);
            assert_eq!(parsed.matches(label), selects, "{selector}");
        }
    }

    #[test]
    fn a_label_selector_that_is_none_is_refused() {
        for selector in [
            "=",
            "a=b=c",
            "a in",
            "a in (b",
            "a in b",
            "a,",
            ",",
            "a b",
            "!",
            "!a=b",
            "a>b",
            "a=-",
            "-=a",
            "a in (b c)",
            "((",
            "x in (a)) ",
            "\u{e4}=b",
        ] {
            assert!(LabelSelector::parse(selector).is_err(), "{selector}");
        }
        assert!(LabelSelector::parse(&"a".repeat(LONGEST + 1)).is_err());
    }

    #[test]
    fn field_selectors_select_as_upstream() {
        let field = |path: &str| match path {
            "metadata.name" => "x",
            "status.phase" => "Running",
            _ => "",
        };
        for (selector, selects) in [
            ("", true),
            ("metadata.name=x", true),
            ("metadata.name==x,status.phase!=Failed", true),
            ("metadata.name!=x", false),
            ("spec.nodeName=", true),
            ("metadata.name=x\\,y", false),
        ] {
            let parsed = FieldSelector::parse(selector).expect(selector);
            assert_eq!(parsed.matches(field), selects, "{selector}");
        }
        for selector in ["x", "a=b=c", "a!b", "a=\\x"] {
            assert!(FieldSelector::parse(selector).is_err(), "{selector}");
        }
    }
}
