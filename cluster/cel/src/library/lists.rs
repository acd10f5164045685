//! Kubernetes' functions of lists, and CEL's extension for sets.

use std::cmp::Ordering;

use super::{Function, Made, count, global, method, wrong};
use crate::{
    Error, Shape, Val,
    eval::Machine,
    expr::Operator,
    operate::{self, binary},
};

pub(super) static FUNCTIONS: &[Function] = &[
    method("isSorted", 1, 1, Shape::Bool, |machine, all, _| {
        let items: Vec<_> = all[0].items().ok_or_else(Error::no_overload)?.collect();
        for pair in items.windows(2) {
            machine.steps.take(1)?;
            let order = operate::order(&mut machine.steps, &pair[0], &pair[1])?;
            if order == Some(Ordering::Greater) {
                return Ok(Val::Bool(false));
            }
        }
        Ok(Val::Bool(true))
    }),
    method("sum", 1, 1, Shape::Any, |machine, all, _| {
        let mut sum = None;
        for item in all[0].items().ok_or_else(Error::no_overload)? {
            machine.steps.take(1)?;
            if !matches!(
                item,
                Val::Int(_) | Val::Uint(_) | Val::Double(_) | Val::Duration(_)
            ) {
                return wrong();
            }
            sum = Some(match sum {
                None => item,
                Some(sum) => binary(&mut machine.steps, Operator::Add, &sum, &item)?,
            });
        }
        Ok(sum.unwrap_or(Val::Int(0)))
    }),
    method("min", 1, 1, Shape::Any, |machine, all, _| {
        most(machine, &all[0], Ordering::Less, "min")
    }),
    method("max", 1, 1, Shape::Any, |machine, all, _| {
        most(machine, &all[0], Ordering::Greater, "max")
    }),
    global("sets.contains", 2, Shape::Bool, |machine, all, _| {
        within(machine, &all[1], &all[0]).map(Val::Bool)
    }),
    global("sets.equivalent", 2, Shape::Bool, |machine, all, _| {
        let both = within(machine, &all[1], &all[0])? && within(machine, &all[0], &all[1])?;
        Ok(Val::Bool(both))
    }),
    global("sets.intersects", 2, Shape::Bool, |machine, all, _| {
        for item in all[0].items().ok_or_else(Error::no_overload)? {
            if has(machine, &all[1], &item)? {
                return Ok(Val::Bool(true));
            }
        }
        Ok(Val::Bool(false))
    }),
];

fn most<'a>(
    machine: &mut Machine<'a, '_>,
    list: &Val<'a>,
    wanted: Ordering,
    name: &str,
) -> Made<'a> {
    let mut best: Option<Val<'a>> = None;
    for item in list.items().ok_or_else(Error::no_overload)? {
        machine.steps.take(1)?;
        let better = match &best {
            None => true,
            Some(best) => operate::order(&mut machine.steps, &item, best)? == Some(wanted),
        };
        if better {
            best = Some(item);
        }
    }
    best.ok_or_else(|| Error::run(format!("{name} called on empty list")))
}

/// Where in a list it is; -1: nowhere.
pub(super) fn place<'a>(
    machine: &mut Machine<'a, '_>,
    list: &Val<'a>,
    wanted: &Val<'a>,
    last: bool,
) -> Made<'a> {
    let mut found = -1;
    for (at, item) in list.items().ok_or_else(Error::no_overload)?.enumerate() {
        if operate::equal(&mut machine.steps, &item, wanted)? {
            found = count(at);
            if !last {
                break;
            }
        }
    }
    Ok(Val::Int(found))
}

fn has<'a>(machine: &mut Machine<'a, '_>, list: &Val<'a>, wanted: &Val<'a>) -> Result<bool, Error> {
    match place(machine, list, wanted, false)? {
        Val::Int(at) => Ok(at >= 0),
        _ => Ok(false),
    }
}

/// Whether all of `few` are among `many`.
fn within<'a>(machine: &mut Machine<'a, '_>, few: &Val<'a>, many: &Val<'a>) -> Result<bool, Error> {
    for item in few.items().ok_or_else(Error::no_overload)? {
        if !has(machine, many, &item)? {
            return Ok(false);
        }
    }
    Ok(true)
}
