//! The JSONPath that columns of a definition use: fields, indices, `[*]` and `[?(@.a=="b")]`.

use serde_json::Value;

#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    Field(String),
    Index(i64),
    Every,
    /// Elements whose field (by its names) is this text.
    Where(Vec<String>, String),
}

/// One that can't be read finds nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JsonPath(Option<Vec<Step>>);

/// Of one path; each step goes through what was found before.
const MOST_STEPS: usize = 32;

impl JsonPath {
    pub fn parse(text: &str) -> Self {
        Self(steps(text))
    }

    pub fn find<'a>(&self, value: &'a Value) -> Vec<&'a Value> {
        let Some(steps) = &self.0 else {
            return Vec::new();
        };
        let mut found = vec![value];
        for step in steps {
            found = found
                .into_iter()
                .flat_map(|value| below(value, step))
                .collect();
        }
        found
    }
}

fn below<'a>(value: &'a Value, step: &Step) -> Vec<&'a Value> {
    match (step, value) {
        (Step::Field(name), Value::Object(fields)) => fields.get(name).into_iter().collect(),
        (Step::Index(at), Value::Array(items)) => {
            let at = if *at < 0 {
                items.len().checked_sub(at.unsigned_abs() as usize)
            } else {
                usize::try_from(*at).ok()
            };
            at.and_then(|at| items.get(at)).into_iter().collect()
        }
        (Step::Every, Value::Array(items)) => items.iter().collect(),
        (Step::Every, Value::Object(fields)) => fields.values().collect(),
        (Step::Where(names, text), Value::Array(items)) => items
            .iter()
            .filter(|item| {
                let mut at = Some(*item);
                for name in names {
                    at = at.and_then(|value| value.get(name));
                }
                at.is_some_and(|value| match value {
                    Value::String(is) => is == text,
                    value => format!("{value}") == *text,
                })
            })
            .collect(),
        _ => Vec::new(),
    }
}

fn steps(text: &str) -> Option<Vec<Step>> {
    let text = text.trim();
    let text = text
        .strip_prefix('{')
        .and_then(|inner| inner.strip_suffix('}'))
        .unwrap_or(text);
    let mut rest = text.strip_prefix('$').unwrap_or(text);
    let mut steps = Vec::new();
    while !rest.is_empty() {
        if steps.len() >= MOST_STEPS {
            return None;
        }
        if let Some(inner) = rest.strip_prefix('[') {
            let end = closing(inner)?;
            steps.push(bracket(&inner[..end])?);
            rest = &inner[end + 1..];
            continue;
        }
        let inner = rest.strip_prefix('.').unwrap_or(rest);
        let (name, after) = field(inner);
        if name.is_empty() {
            return None;
        }
        steps.push(if name == "*" {
            Step::Every
        } else {
            Step::Field(name)
        });
        rest = after;
    }
    Some(steps)
}

/// A name up to a dot or a bracket that no backslash escapes.
fn field(text: &str) -> (String, &str) {
    let mut name = String::new();
    let mut escaped = false;
    for (at, c) in text.char_indices() {
        match c {
            _ if escaped => {
                name.push(c);
                escaped = false;
            }
            '\\' => escaped = true,
            '.' | '[' => return (name, &text[at..]),
            c => name.push(c),
        }
    }
    (name, "")
}

/// Where the bracket ends; quotes hide what is in them.
fn closing(text: &str) -> Option<usize> {
    let mut quote = None;
    for (at, c) in text.char_indices() {
        match (quote, c) {
            (None, ']') => return Some(at),
            (None, '\'' | '"') => quote = Some(c),
            (Some(open), c) if c == open => quote = None,
            _ => {}
        }
    }
    None
}

fn bracket(inner: &str) -> Option<Step> {
    let inner = inner.trim();
    if inner == "*" {
        return Some(Step::Every);
    }
    if let Some(name) = quoted(inner) {
        return Some(Step::Field(name.into()));
    }
    if let Some(filter) = inner
        .strip_prefix("?(")
        .and_then(|filter| filter.strip_suffix(')'))
    {
        let (left, right) = filter.split_once("==")?;
        let mut names = Vec::new();
        let mut rest = left.trim().strip_prefix('@')?;
        while let Some(inner) = rest.strip_prefix('.') {
            let (name, after) = field(inner);
            names.push(name);
            rest = after;
        }
        let right = right.trim();
        return Some(Step::Where(names, quoted(right).unwrap_or(right).into()));
    }
    inner.parse().ok().map(Step::Index)
}

fn quoted(text: &str) -> Option<&str> {
    ['\'', '"']
        .iter()
        .find_map(|quote| text.strip_prefix(*quote)?.strip_suffix(*quote))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_column_finds_what_its_path_says() {
        let object = json!({
            "metadata": {"labels": {"a.b/c": "x"}},
            "spec": {"n": 3, "list": [{"k": 1}, {"k": 2}]},
            "status": {"conditions": [
                {"type": "Ready", "status": "True"},
                {"type": "Other", "status": "False"},
            ]},
        });
        for (path, found) in [
            (".spec.n", vec![json!(3)]),
            ("$.spec.n", vec![json!(3)]),
            ("{.spec.n}", vec![json!(3)]),
            (".spec.list[1].k", vec![json!(2)]),
            (".spec.list[-1].k", vec![json!(2)]),
            (".spec.list[*].k", vec![json!(1), json!(2)]),
            (
                ".status.conditions[?(@.type==\"Ready\")].status",
                vec![json!("True")],
            ),
            (
                ".status.conditions[?(@.type=='Other')].status",
                vec![json!("False")],
            ),
            (".metadata.labels.a\\.b/c", vec![json!("x")]),
            (".metadata.labels['a.b/c']", vec![json!("x")]),
            (".missing.field", vec![]),
            (".spec[", vec![]),
            ("..", vec![]),
            (".spec.list[99999999999999999999]", vec![]),
        ] {
            let is: Vec<Value> = JsonPath::parse(path)
                .find(&object)
                .into_iter()
                .cloned()
                .collect();
            assert_eq!(is, found, "{path}");
        }
    }
}
