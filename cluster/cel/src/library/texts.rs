//! Strings: CEL's own functions, its extension for strings (version 2), and Kubernetes' `find` and `findAll`. Places are counted in characters.

use regex::Regex;

use super::{Function, Made, convert, count, global, lists, method, wrong};
use crate::{Error, Shape, Val, eval::Machine, value::Text};

pub(super) static FUNCTIONS: &[Function] = &[
    method("contains", 2, 2, Shape::Bool, |machine, all, _| {
        test(machine, all, |text, part| text.contains(part))
    }),
    method("startsWith", 2, 2, Shape::Bool, |machine, all, _| {
        test(machine, all, |text, part| text.starts_with(part))
    }),
    method("endsWith", 2, 2, Shape::Bool, |machine, all, _| {
        test(machine, all, |text, part| text.ends_with(part))
    }),
    method("matches", 2, 2, Shape::Bool, matches),
    global("matches", 2, Shape::Bool, matches),
    method("find", 2, 2, Shape::Text, |machine, all, pattern| {
        found(machine, all, pattern, Some(1))
            .map(|mut found| found.pop().unwrap_or_else(|| Val::text("")))
    }),
    method("findAll", 2, 3, Shape::Any, |machine, all, pattern| {
        let most = match all.get(2) {
            None => None,
            // negative: all of them
            Some(Val::Int(most)) => usize::try_from(*most).ok(),
            Some(_) => return wrong(),
        };
        found(machine, all, pattern, most).map(Val::list)
    }),
    method("charAt", 2, 2, Shape::Text, |machine, all, _| {
        let (Val::Text(text), Val::Int(at)) = (&all[0], &all[1]) else {
            return wrong();
        };
        machine.steps.of_text(text.len())?;
        let size = text.chars().count();
        match usize::try_from(*at) {
            Ok(at) if at <= size => {
                let c: String = text.chars().skip(at).take(1).collect();
                Ok(Val::text(c))
            }
            _ => Err(out_of_range(*at)),
        }
    }),
    method("indexOf", 2, 3, Shape::Int, |machine, all, _| {
        place(machine, all, false)
    }),
    method("lastIndexOf", 2, 3, Shape::Int, |machine, all, _| {
        place(machine, all, true)
    }),
    method("join", 1, 2, Shape::Text, |machine, all, _| {
        let between = match all.get(1) {
            None => "",
            Some(Val::Text(between)) => between,
            Some(_) => return wrong(),
        };
        let mut joined = String::new();
        for (at, item) in all[0].items().ok_or_else(Error::no_overload)?.enumerate() {
            let Val::Text(text) = item else {
                return wrong();
            };
            machine.steps.of_text(text.len() + between.len())?;
            if at > 0 {
                joined.push_str(between);
            }
            joined.push_str(&text);
        }
        Ok(Val::text(joined))
    }),
    method("lowerAscii", 1, 1, Shape::Text, |machine, all, _| {
        made(machine, all, |text| text.to_ascii_lowercase())
    }),
    method("upperAscii", 1, 1, Shape::Text, |machine, all, _| {
        made(machine, all, |text| text.to_ascii_uppercase())
    }),
    method("trim", 1, 1, Shape::Text, |machine, all, _| {
        made(machine, all, |text| text.trim().to_owned())
    }),
    method("replace", 3, 4, Shape::Text, replace),
    method("split", 2, 3, Shape::Any, |machine, all, _| {
        let (Val::Text(text), Val::Text(by)) = (&all[0], &all[1]) else {
            return wrong();
        };
        let most = match all.get(2) {
            None => None,
            Some(Val::Int(most)) => usize::try_from(*most).ok(),
            Some(_) => return wrong(),
        };
        machine.steps.take(text.len() + 1)?;
        let own = |part: &str| Val::text(part);
        let parts: Vec<Val<'_>> = match (most, by.is_empty()) {
            (Some(0), _) => Vec::new(),
            (None, false) => text.split(&**by).map(own).collect(),
            (Some(most), false) => text.splitn(most, &**by).map(own).collect(),
            (most, true) => {
                let size = text.chars().count();
                let alone = most.map_or(size, |most| size.min(most - 1));
                let mut parts: Vec<_> = text
                    .chars()
                    .take(alone)
                    .map(|c| Val::text(c.to_string()))
                    .collect();
                if alone < size {
                    parts.push(Val::text(text.chars().skip(alone).collect::<String>()));
                }
                parts
            }
        };
        Ok(Val::list(parts))
    }),
    method("substring", 2, 3, Shape::Text, |machine, all, _| {
        let (Val::Text(text), Val::Int(from)) = (&all[0], &all[1]) else {
            return wrong();
        };
        machine.steps.of_text(text.len())?;
        let size = count(text.chars().count());
        let to = match all.get(2) {
            None => size,
            Some(Val::Int(to)) => *to,
            Some(_) => return wrong(),
        };
        if !(0..=size).contains(from) {
            return Err(out_of_range(*from));
        }
        if !(0..=size).contains(&to) {
            return Err(out_of_range(to));
        }
        if from > &to {
            return Err(Error::run(format!(
                "invalid substring range. start: {from}, end: {to}"
            )));
        }
        let (from, to) = (
            usize::try_from(*from).unwrap_or(0),
            usize::try_from(to).unwrap_or(0),
        );
        let part: String = text.chars().skip(from).take(to - from).collect();
        Ok(Val::text(part))
    }),
    global("strings.quote", 1, Shape::Text, |machine, all, _| {
        made(machine, all, |text| format!("{text:?}"))
    }),
    method("format", 2, 2, Shape::Text, formatted),
];

fn out_of_range(at: i64) -> Error {
    Error::run(format!("index out of range: {at}"))
}

fn made<'a>(machine: &mut Machine<'a, '_>, all: &[Val<'a>], make: fn(&str) -> String) -> Made<'a> {
    let Val::Text(text) = &all[0] else {
        return wrong();
    };
    machine.steps.of_text(text.len())?;
    Ok(Val::text(make(text)))
}

fn test<'a>(
    machine: &mut Machine<'a, '_>,
    all: &[Val<'a>],
    test: fn(&str, &str) -> bool,
) -> Made<'a> {
    let (Val::Text(text), Val::Text(part)) = (&all[0], &all[1]) else {
        return wrong();
    };
    machine.steps.of_text(text.len() + part.len())?;
    Ok(Val::Bool(test(text, part)))
}

fn with_pattern<'a, T>(
    machine: &mut Machine<'a, '_>,
    all: &[Val<'a>],
    known: Option<&Regex>,
    run: impl FnOnce(&Regex, &str) -> T,
) -> Result<T, Error> {
    let (Val::Text(text), Val::Text(pattern)) = (&all[0], &all[1]) else {
        return Err(Error::no_overload());
    };
    // What is looked for takes as long as both are.
    machine
        .steps
        .take((text.len() / 10 + 1).saturating_mul(pattern.len() / 4 + 1))?;
    match known {
        Some(regex) => Ok(run(regex, text)),
        None => {
            let regex = machine.pattern(pattern)?;
            Ok(run(&regex, text))
        }
    }
}

fn matches<'a>(machine: &mut Machine<'a, '_>, all: &[Val<'a>], known: Option<&Regex>) -> Made<'a> {
    with_pattern(machine, all, known, |regex, text| {
        Val::Bool(regex.is_match(text))
    })
}

fn found<'a>(
    machine: &mut Machine<'a, '_>,
    all: &[Val<'a>],
    known: Option<&Regex>,
    most: Option<usize>,
) -> Result<Vec<Val<'a>>, Error> {
    if let Val::Text(text) = &all[0] {
        machine.steps.take(text.len())?;
    }
    with_pattern(machine, all, known, |regex, text| {
        regex
            .find_iter(text)
            .take(most.unwrap_or(usize::MAX))
            .map(|found| Val::text(found.as_str()))
            .collect()
    })
}

fn place<'a>(machine: &mut Machine<'a, '_>, all: &[Val<'a>], last: bool) -> Made<'a> {
    if all[0].is_list() && all.len() == 2 {
        return lists::place(machine, &all[0], &all[1], last);
    }
    let (Val::Text(text), Val::Text(part)) = (&all[0], &all[1]) else {
        return wrong();
    };
    machine.steps.of_text(text.len() + part.len())?;
    let size = text.chars().count();
    let bound = match all.get(2) {
        None => None,
        Some(Val::Int(at)) => match usize::try_from(*at) {
            Ok(at) if at <= size => Some(at),
            _ => return Err(out_of_range(*at)),
        },
        Some(_) => return wrong(),
    };
    let byte = |at: usize| {
        text.char_indices()
            .nth(at)
            .map_or(text.len(), |(byte, _)| byte)
    };
    let found = match (last, bound) {
        (false, from) => {
            let from = byte(from.unwrap_or(0));
            text[from..].find(&**part).map(|at| from + at)
        }
        (true, None) => text.rfind(&**part),
        // It may begin there at the latest.
        (true, Some(at)) => {
            let end = (byte(at) + part.len()).min(text.len());
            let end = (end..=text.len())
                .find(|end| text.is_char_boundary(*end))
                .unwrap_or(text.len());
            text[..end]
                .rfind(&**part)
                .filter(|found| *found <= byte(at))
        }
    };
    let found = found.map_or(-1, |byte| count(text[..byte].chars().count()));
    Ok(Val::Int(found))
}

fn replace<'a>(machine: &mut Machine<'a, '_>, all: &[Val<'a>], _: Option<&Regex>) -> Made<'a> {
    let (Val::Text(text), Val::Text(old), Val::Text(new)) = (&all[0], &all[1], &all[2]) else {
        return wrong();
    };
    let most = match all.get(3) {
        None => usize::MAX,
        Some(Val::Int(most)) => usize::try_from(*most).unwrap_or(usize::MAX),
        Some(_) => return wrong(),
    };
    let times = (text.len() / old.len().max(1) + 1).min(most);
    machine
        .steps
        .of_text(text.len().saturating_add(times.saturating_mul(new.len())))?;
    Ok(Val::text(text.replacen(&**old, new, most)))
}

/// `'%s has %d'.format([a, b])`
fn formatted<'a>(machine: &mut Machine<'a, '_>, all: &[Val<'a>], _: Option<&Regex>) -> Made<'a> {
    let Val::Text(pattern) = &all[0] else {
        return wrong();
    };
    let mut values = all[1].items().ok_or_else(Error::no_overload)?;
    let mut out = String::new();
    let mut rest: &str = pattern;
    while let Some((before, after)) = rest.split_once('%') {
        out.push_str(before);
        if let Some(after) = after.strip_prefix('%') {
            out.push('%');
            rest = after;
            continue;
        }
        let (precision, after) = precision(after)?;
        let Some(verb) = after.chars().next() else {
            return Err(Error::run("unexpected end of format string"));
        };
        let value = values
            .next()
            .ok_or_else(|| Error::run("format string has more verbs than there are arguments"))?;
        let text = verbatim(machine, verb, precision, &value)?;
        machine.steps.of_text(text.len())?;
        out.push_str(&text);
        rest = &after[verb.len_utf8()..];
    }
    out.push_str(rest);
    machine.steps.of_text(out.len())?;
    Ok(Val::text(out))
}

/// Digits after the point that are asked for; more than this nobody reads.
const PRECISION: usize = 100;

fn precision(text: &str) -> Result<(Option<usize>, &str), Error> {
    let Some(digits) = text.strip_prefix('.') else {
        return Ok((None, text));
    };
    let end = digits
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(digits.len());
    match digits[..end].parse() {
        Ok(precision) if precision <= PRECISION => Ok((Some(precision), &digits[end..])),
        _ => Err(Error::run("error while parsing the precision of a format")),
    }
}

fn verbatim<'a>(
    machine: &mut Machine<'a, '_>,
    verb: char,
    precision: Option<usize>,
    value: &Val<'a>,
) -> Result<String, Error> {
    let digits = precision.unwrap_or(6);
    let wrong = || {
        Error::run(format!(
            "error during formatting: %{verb} of a {}",
            value.type_name()
        ))
    };
    Ok(match (verb, value) {
        ('s', value) => shown(machine, value, 0)?,
        ('d', Val::Int(int)) => int.to_string(),
        ('d', Val::Uint(uint)) => uint.to_string(),
        ('f', Val::Double(double)) => format!("{double:.digits$}"),
        #[allow(clippy::cast_precision_loss)]
        ('f', Val::Int(int)) => format!("{:.digits$}", *int as f64),
        ('e', Val::Double(double)) => format!("{double:.digits$e}"),
        ('b', Val::Int(int)) => format!("{}{:b}", minus(*int), int.unsigned_abs()),
        ('b', Val::Uint(uint)) => format!("{uint:b}"),
        ('b', Val::Bool(bool)) => u8::from(*bool).to_string(),
        ('o', Val::Int(int)) => format!("{}{:o}", minus(*int), int.unsigned_abs()),
        ('o', Val::Uint(uint)) => format!("{uint:o}"),
        ('x', Val::Int(int)) => format!("{}{:x}", minus(*int), int.unsigned_abs()),
        ('x', Val::Uint(uint)) => format!("{uint:x}"),
        ('X', Val::Int(int)) => format!("{}{:X}", minus(*int), int.unsigned_abs()),
        ('X', Val::Uint(uint)) => format!("{uint:X}"),
        ('x' | 'X', Val::Text(_) | Val::Bytes(_)) => {
            let bytes = match value {
                Val::Text(text) => text.as_bytes(),
                Val::Bytes(bytes) => bytes,
                _ => &[],
            };
            machine.steps.of_text(2 * bytes.len())?;
            let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            match verb {
                'X' => hex.to_uppercase(),
                _ => hex,
            }
        }
        ('d' | 'f' | 'e' | 'b' | 'o' | 'x' | 'X', _) => return Err(wrong()),
        (verb, _) => {
            return Err(Error::run(format!(
                "unrecognized formatting clause {verb:?}"
            )));
        }
    })
}

fn minus(int: i64) -> &'static str {
    if int < 0 { "-" } else { "" }
}

/// How deep lists and maps are shown.
const SHOWN_DEEP: usize = 32;

fn shown<'a>(
    machine: &mut Machine<'a, '_>,
    value: &Val<'a>,
    depth: usize,
) -> Result<String, Error> {
    machine.steps.take(1)?;
    if depth > SHOWN_DEEP {
        return Err(Error::run("error during formatting: it nests too deep"));
    }
    Ok(match value {
        Val::Null => "null".into(),
        list if list.is_list() => {
            let mut parts = Vec::new();
            for (_, item) in list.entries().unwrap_or_default() {
                parts.push(shown(machine, &item, depth + 1)?);
            }
            machine.steps.of_text(parts.iter().map(String::len).sum())?;
            format!("[{}]", parts.join(", "))
        }
        map if map.len().is_some() => {
            let mut parts = Vec::new();
            for (key, value) in map.entries().unwrap_or_default() {
                let key = shown(machine, &key, depth + 1)?;
                parts.push(format!("{key}: {}", shown(machine, &value, depth + 1)?));
            }
            machine.steps.of_text(parts.iter().map(String::len).sum())?;
            parts.sort_unstable();
            format!("{{{}}}", parts.join(", "))
        }
        value => match convert::string(machine, value)? {
            Val::Text(Text::Made(text)) => text.to_string(),
            Val::Text(Text::Borrowed(text)) => text.to_owned(),
            _ => return Err(Error::no_overload()),
        },
    })
}
