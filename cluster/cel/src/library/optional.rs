//! Values that may be there: `a.?b.orValue('x')`.

use super::{Function, global, method, wrong};
use crate::{Error, Shape, Val};

pub(super) static FUNCTIONS: &[Function] = &[
    global("optional.of", 1, Shape::Optional, |_, all, _| {
        Ok(Val::some(all[0].clone()))
    }),
    global("optional.none", 0, Shape::Optional, |_, _, _| {
        Ok(Val::none())
    }),
    global(
        "optional.ofNonZeroValue",
        1,
        Shape::Optional,
        |_, all, _| {
            let zero = match &all[0] {
                Val::Null | Val::Bool(false) | Val::Int(0) | Val::Uint(0) => true,
                Val::Double(double) => *double == 0.0,
                Val::Text(text) => text.is_empty(),
                Val::Bytes(bytes) => bytes.is_empty(),
                value => value.len() == Some(0),
            };
            Ok(match zero {
                true => Val::none(),
                false => Val::some(all[0].clone()),
            })
        },
    ),
    method("hasValue", 1, 1, Shape::Bool, |_, all, _| match &all[0] {
        Val::Optional(held) => Ok(Val::Bool(held.is_some())),
        _ => wrong(),
    }),
    method("value", 1, 1, Shape::Any, |_, all, _| match &all[0] {
        Val::Optional(Some(held)) => Ok((**held).clone()),
        Val::Optional(None) => Err(Error::run("optional.none() dereference")),
        _ => wrong(),
    }),
    method("orValue", 2, 2, Shape::Any, |_, all, _| match &all[0] {
        Val::Optional(Some(held)) => Ok((**held).clone()),
        Val::Optional(None) => Ok(all[1].clone()),
        _ => wrong(),
    }),
    method("or", 2, 2, Shape::Optional, |_, all, _| match &all[0] {
        some @ Val::Optional(Some(_)) => Ok(some.clone()),
        Val::Optional(None) => Ok(all[1].clone()),
        _ => wrong(),
    }),
];
