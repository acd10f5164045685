//! From type to type.

use super::{Function, Made, count, global, method, time, wrong};
use crate::{Error, Shape, Val, eval::Machine};

pub(super) static FUNCTIONS: &[Function] = &[
    global("size", 1, Shape::Int, |_, all, _| size(&all[0])),
    method("size", 1, 1, Shape::Int, |_, all, _| size(&all[0])),
    global("int", 1, Shape::Int, |_, all, _| int(&all[0])),
    global("uint", 1, Shape::Uint, |_, all, _| uint(&all[0])),
    global("double", 1, Shape::Double, |_, all, _| double(&all[0])),
    global("string", 1, Shape::Text, |machine, all, _| {
        string(machine, &all[0])
    }),
    global("bytes", 1, Shape::Bytes, |machine, all, _| match &all[0] {
        Val::Text(text) => {
            machine.steps.of_text(text.len())?;
            Ok(Val::Bytes(text.as_bytes().into()))
        }
        bytes @ Val::Bytes(_) => Ok(bytes.clone()),
        _ => wrong(),
    }),
    global("bool", 1, Shape::Bool, |_, all, _| match &all[0] {
        Val::Text(text) => match &**text {
            "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(Val::Bool(true)),
            "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(Val::Bool(false)),
            text => Err(Error::run(format!(
                "type conversion error from {text:?} to 'bool'"
            ))),
        },
        bool @ Val::Bool(_) => Ok(bool.clone()),
        _ => wrong(),
    }),
    global("type", 1, Shape::Type, |_, all, _| {
        Ok(Val::Type(all[0].type_name()))
    }),
    global("dyn", 1, Shape::Any, |_, all, _| Ok(all[0].clone())),
];

fn size<'a>(value: &Val<'a>) -> Made<'a> {
    let size = match value {
        Val::Text(text) => text.chars().count(),
        Val::Bytes(bytes) => bytes.len(),
        value => value.len().ok_or_else(Error::no_overload)?,
    };
    Ok(Val::Int(count(size)))
}

fn out_of_range(what: &str) -> Error {
    Error::run(format!("{what} out of range: return error for overflow"))
}

#[allow(clippy::cast_possible_truncation)]
fn int<'a>(value: &Val<'a>) -> Made<'a> {
    match value {
        Val::Int(int) => Ok(Val::Int(*int)),
        Val::Uint(uint) => i64::try_from(*uint)
            .map(Val::Int)
            .map_err(|_| out_of_range("int")),
        Val::Double(double) if double.abs() < 9_223_372_036_854_775_808.0 => {
            Ok(Val::Int(*double as i64))
        }
        Val::Double(_) => Err(out_of_range("int")),
        Val::Text(text) => text
            .parse()
            .map(Val::Int)
            .map_err(|_| Error::run(format!("type conversion error from {:?} to 'int'", &**text))),
        Val::Timestamp(at) => Ok(Val::Int(at.as_second())),
        Val::Duration(of) => i64::try_from(of.as_nanos())
            .map(Val::Int)
            .map_err(|_| out_of_range("int")),
        _ => wrong(),
    }
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
fn uint<'a>(value: &Val<'a>) -> Made<'a> {
    match value {
        Val::Uint(uint) => Ok(Val::Uint(*uint)),
        Val::Int(int) => u64::try_from(*int)
            .map(Val::Uint)
            .map_err(|_| out_of_range("uint")),
        Val::Double(double) if (0.0..18_446_744_073_709_551_616.0).contains(double) => {
            Ok(Val::Uint(*double as u64))
        }
        Val::Double(_) => Err(out_of_range("uint")),
        Val::Text(text) => text.parse().map(Val::Uint).map_err(|_| {
            Error::run(format!(
                "type conversion error from {:?} to 'uint'",
                &**text
            ))
        }),
        _ => wrong(),
    }
}

#[allow(clippy::cast_precision_loss)]
fn double<'a>(value: &Val<'a>) -> Made<'a> {
    match value {
        Val::Double(double) => Ok(Val::Double(*double)),
        Val::Int(int) => Ok(Val::Double(*int as f64)),
        Val::Uint(uint) => Ok(Val::Double(*uint as f64)),
        Val::Text(text) => text.parse().map(Val::Double).map_err(|_| {
            Error::run(format!(
                "type conversion error from {:?} to 'double'",
                &**text
            ))
        }),
        _ => wrong(),
    }
}

pub(super) fn string<'a>(machine: &mut Machine<'a, '_>, value: &Val<'a>) -> Made<'a> {
    let text = match value {
        text @ Val::Text(_) => return Ok(text.clone()),
        Val::Bool(bool) => bool.to_string(),
        Val::Int(int) => int.to_string(),
        Val::Uint(uint) => uint.to_string(),
        Val::Double(double) => double.to_string(),
        Val::Bytes(bytes) => {
            machine.steps.of_text(bytes.len())?;
            String::from_utf8(bytes.to_vec())
                .map_err(|_| Error::run("invalid UTF-8 in bytes, cannot convert to string"))?
        }
        Val::Timestamp(at) => at.to_string(),
        Val::Duration(of) => time::in_seconds(*of),
        Val::Ip(address) => address.to_string(),
        Val::Cidr(address, prefix) => format!("{address}/{prefix}"),
        Val::Url(url) => url.0.clone(),
        Val::Type(name) => (*name).to_owned(),
        _ => return wrong(),
    };
    Ok(Val::text(text))
}
