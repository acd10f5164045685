//! The functions that there are: CEL's own, its extensions for strings, sets and optionals, and Kubernetes' libraries.

mod convert;
mod format;
mod lists;
mod network;
mod optional;
mod quantity;
mod semver;
mod texts;
mod time;

use regex::{Regex, RegexBuilder};

use crate::{Error, Shape, Val, eval::Machine};

pub(crate) use format::Format;
pub(crate) use semver::Semver;
pub(crate) use time::parse_duration;

/// Of a compiled pattern, in bytes: those that people write take some KiB.
const PATTERN_BYTES: usize = 1 << 18;
/// Of a pattern.
const PATTERN_LENGTH: usize = 1000;

type Made<'a> = Result<Val<'a>, Error>;
/// With the pattern, where that was a literal.
type Run = for<'a> fn(&mut Machine<'a, '_>, &[Val<'a>], Option<&Regex>) -> Made<'a>;

#[derive(Debug)]
pub(crate) struct Function {
    /// `size`, `ip.isCanonical`.
    pub name: &'static str,
    /// It is called on its first argument: `x.size()`.
    pub method: bool,
    /// At least and at most, the one that it is called on among them.
    pub arguments: (usize, usize),
    pub gives: Shape,
    pub run: Run,
}

const fn global(name: &'static str, arguments: usize, gives: Shape, run: Run) -> Function {
    Function {
        name,
        method: false,
        arguments: (arguments, arguments),
        gives,
        run,
    }
}

const fn method(name: &'static str, least: usize, most: usize, gives: Shape, run: Run) -> Function {
    Function {
        name,
        method: true,
        arguments: (least, most),
        gives,
        run,
    }
}

pub(crate) fn find(name: &str, method: bool) -> Option<&'static Function> {
    [
        convert::FUNCTIONS,
        texts::FUNCTIONS,
        lists::FUNCTIONS,
        time::FUNCTIONS,
        quantity::FUNCTIONS,
        network::FUNCTIONS,
        format::FUNCTIONS,
        semver::FUNCTIONS,
        optional::FUNCTIONS,
    ]
    .into_iter()
    .flatten()
    .find(|function| function.method == method && function.name == name)
}

/// Types that can be named, to be compared with `type(x)`.
pub(crate) fn type_named(name: &str) -> Option<&'static str> {
    [
        "bool",
        "bytes",
        "double",
        "int",
        "list",
        "map",
        "null_type",
        "optional_type",
        "string",
        "type",
        "uint",
    ]
    .into_iter()
    .find(|known| *known == name)
}

/// Patterns need no backtracking, and their size is bounded.
pub(crate) fn pattern(text: &str) -> Result<Regex, String> {
    if text.len() > PATTERN_LENGTH {
        return Err(format!(
            "invalid matches argument: a pattern has {PATTERN_LENGTH} characters at most"
        ));
    }
    RegexBuilder::new(text)
        .size_limit(PATTERN_BYTES)
        .dfa_size_limit(PATTERN_BYTES)
        .build()
        .map_err(|error| format!("invalid matches argument: {error}"))
}

fn wrong<'a>() -> Made<'a> {
    Err(Error::no_overload())
}

/// A number of items as an int.
fn count(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
