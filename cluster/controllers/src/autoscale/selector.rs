//! A selector of labels as a scale's status has it: `app=web,tier in (a,b),!old`.

use std::collections::BTreeSet;

use kube::core::{Expression, Selector};

/// # Errors
/// It is none.
pub(super) fn parse(text: &str) -> Result<Selector, String> {
    let mut rest = text;
    let mut all = Vec::new();
    while !rest.trim().is_empty() {
        // a comma within brackets is between values
        let end = match (rest.find(','), rest.find('(')) {
            (Some(comma), Some(open)) if open < comma => {
                let close = rest
                    .find(')')
                    .ok_or_else(|| format!("{rest:?} has no closing bracket"))?;
                rest[close..]
                    .find(',')
                    .map_or(rest.len(), |comma| close + comma)
            }
            (comma, _) => comma.unwrap_or(rest.len()),
        };
        all.push(requirement(rest[..end].trim())?);
        rest = rest.get(end + 1..).unwrap_or_default();
    }
    Ok(all.into_iter().collect())
}

fn requirement(text: &str) -> Result<Expression, String> {
    let wrong = || format!("{text:?} is no requirement of labels");
    let part = |part: &str| {
        let part = part.trim();
        let allowed = |c: char| c.is_ascii_alphanumeric() || "-_./".contains(c);
        part.chars()
            .all(allowed)
            .then(|| part.to_owned())
            .ok_or_else(wrong)
    };
    let key = |text: &str| {
        part(text).and_then(|key| {
            if key.is_empty() {
                Err(wrong())
            } else {
                Ok(key)
            }
        })
    };
    let set = |text: &str| -> Result<BTreeSet<String>, String> {
        let inner = text
            .trim()
            .strip_prefix('(')
            .and_then(|text| text.strip_suffix(')'));
        inner.ok_or_else(wrong)?.split(',').map(part).collect()
    };
    if let Some(absent) = text.strip_prefix('!') {
        return Ok(Expression::DoesNotExist(key(absent)?));
    }
    if let Some((name, value)) = text.split_once("!=") {
        return Ok(Expression::NotEqual(key(name)?, part(value)?));
    }
    if let Some((name, value)) = text.split_once('=') {
        return Ok(Expression::Equal(
            key(name)?,
            part(value.trim_start_matches('='))?,
        ));
    }
    match text.split_once(char::is_whitespace) {
        None => Ok(Expression::Exists(key(text)?)),
        Some((name, rest)) => {
            let rest = rest.trim();
            if let Some(values) = rest.strip_prefix("notin") {
                Ok(Expression::NotIn(key(name)?, set(values)?))
            } else if let Some(values) = rest.strip_prefix("in") {
                Ok(Expression::In(key(name)?, set(values)?))
            } else {
                Err(wrong())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use kube::core::SelectorExt;

    use super::parse;

    #[test]
    fn each_kind_of_requirement_is_read() {
        let labels = [("app", "web"), ("tier", "b"), ("example.com/x", "")];
        let labels = labels
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .into();
        for (text, takes) in [
            ("app=web", true),
            ("app==web,tier!=a", true),
            ("app=web,tier in (a,b),!old", true),
            ("tier notin (a, c),app", true),
            ("example.com/x=", true),
            ("tier in (a,c),app=web", false),
            ("!app", false),
            ("old", false),
            ("app!=web", false),
        ] {
            let selector = parse(text).expect(text);
            assert_eq!(selector.matches(&labels), takes, "{text}");
        }
        for wrong in ["=a", "a in b", "a in (b", "a b", "!", "a=b c", ",a"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
