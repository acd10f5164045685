//! Semantic versions: `semver('1.2.3').isLessThan(semver('2.0.0'))`; compared with the functions of quantities.

use std::{cmp::Ordering, rc::Rc};

use super::{Function, global, method, wrong};
use crate::{Error, Shape, Val};

const SEMVER: Shape = Shape::Other("kubernetes.Semver");

#[derive(Debug, PartialEq, Eq)]
pub struct Semver {
    numbers: [i64; 3],
    /// `rc.1`, in parts.
    before: Vec<String>,
}

pub(super) static FUNCTIONS: &[Function] = &[
    global("semver", 1, SEMVER, |_, all, _| match &all[0] {
        Val::Text(text) => parse(text)
            .map(|version| Val::Semver(Rc::new(version)))
            .ok_or_else(|| Error::run(format!("invalid semantic version {:?}", &**text))),
        _ => wrong(),
    }),
    global("isSemver", 1, Shape::Bool, |_, all, _| match &all[0] {
        Val::Text(text) => Ok(Val::Bool(parse(text).is_some())),
        _ => wrong(),
    }),
    method("major", 1, 1, Shape::Int, |_, all, _| match &all[0] {
        Val::Semver(version) => Ok(Val::Int(version.numbers[0])),
        _ => wrong(),
    }),
    method("minor", 1, 1, Shape::Int, |_, all, _| match &all[0] {
        Val::Semver(version) => Ok(Val::Int(version.numbers[1])),
        _ => wrong(),
    }),
    method("patch", 1, 1, Shape::Int, |_, all, _| match &all[0] {
        Val::Semver(version) => Ok(Val::Int(version.numbers[2])),
        _ => wrong(),
    }),
];

fn parse(text: &str) -> Option<Semver> {
    let word = |text: &str| {
        !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
    };
    let number = |text: &str| {
        let plain =
            text.chars().all(|c| c.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
        plain.then(|| text.parse::<i64>().ok()).flatten()
    };
    let text = match text.split_once('+') {
        Some((text, build)) if build.split('.').all(word) => text,
        Some(_) => return None,
        None => text,
    };
    let (numbers, before) = match text.split_once('-') {
        Some((numbers, before)) => (numbers, before.split('.').map(str::to_owned).collect()),
        None => (text, Vec::new()),
    };
    let good = before.iter().all(|part: &String| {
        let numeric = part.chars().all(|c| c.is_ascii_digit());
        word(part) && (!numeric || number(part).is_some())
    });
    let mut parts = numbers.split('.');
    let mut next = || parts.next().and_then(number);
    let numbers = [next()?, next()?, next()?];
    (good && parts.next().is_none()).then_some(Semver { numbers, before })
}

pub(super) fn compare(a: &Semver, b: &Semver) -> Ordering {
    let by_part = |a: &String, b: &String| match (a.parse::<u64>(), b.parse::<u64>()) {
        (Ok(a), Ok(b)) => a.cmp(&b),
        // numbers come before words
        (Ok(_), Err(_)) => Ordering::Less,
        (Err(_), Ok(_)) => Ordering::Greater,
        (Err(_), Err(_)) => a.cmp(b),
    };
    a.numbers
        .cmp(&b.numbers)
        .then_with(|| match (a.before.is_empty(), b.before.is_empty()) {
            (true, true) => Ordering::Equal,
            (true, false) => Ordering::Greater,
            (false, true) => Ordering::Less,
            (false, false) => a
                .before
                .iter()
                .zip(&b.before)
                .map(|(a, b)| by_part(a, b))
                .find(|order| order.is_ne())
                .unwrap_or(a.before.len().cmp(&b.before.len())),
        })
}
