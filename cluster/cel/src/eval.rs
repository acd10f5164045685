//! A tree is walked, step by step, as long as there are steps left.

use std::rc::Rc;

use regex::Regex;

use crate::{
    Error, Val,
    expr::{Comprehension, Expr, Kind, What},
    library,
    operate::{self, binary},
    value::Text,
};

/// Of one expression; upstream's PerCallLimit.
const OF_ONE: u64 = 1_000_000;
/// Patterns that are no literals, kept while an expression runs.
const PATTERNS: usize = 16;

/// What all expressions together may take for one request or one object, in steps: about one for each node that is walked, each value that is looked at, and
/// each ten characters that are read or made. A step takes some tens of nanoseconds.
#[derive(Debug)]
pub struct Budget(u64);

impl Budget {
    /// Of the rules of a custom resource, and of a policy: upstream's RuntimeCELCostBudget.
    pub fn of_object() -> Self {
        Self(10_000_000)
    }

    /// Of match conditions: upstream's RuntimeCELCostBudgetMatchConditions.
    pub fn of_conditions() -> Self {
        Self(2_500_000)
    }
}

/// What is left for one expression.
#[derive(Debug)]
pub(crate) struct Steps(u64);

impl Steps {
    pub(crate) fn take(&mut self, steps: usize) -> Result<(), Error> {
        let steps = u64::try_from(steps).unwrap_or(u64::MAX);
        match self.0.checked_sub(steps) {
            Some(left) => {
                self.0 = left;
                Ok(())
            }
            None => {
                self.0 = 0;
                Err(Error::TooCostly)
            }
        }
    }

    /// For as much text, in bytes.
    pub(crate) fn of_text(&mut self, bytes: usize) -> Result<(), Error> {
        self.take(bytes / 10 + 1)
    }
}

#[derive(Debug)]
pub(crate) struct Machine<'a, 'm> {
    roots: &'m [(&'m str, Val<'a>)],
    locals: Vec<(&'a str, Val<'a>)>,
    pub(crate) steps: Steps,
    patterns: Vec<(Rc<str>, Regex)>,
}

/// Runs `expr` with these variables.
pub(crate) fn run<'a>(
    expr: &'a Expr,
    roots: &[(&str, Val<'a>)],
    budget: &mut Budget,
) -> Result<Val<'a>, Error> {
    let given = budget.0.min(OF_ONE);
    let mut machine = Machine {
        roots,
        locals: Vec::new(),
        steps: Steps(given),
        patterns: Vec::new(),
    };
    let made = machine.eval(expr);
    budget.0 -= given - machine.steps.0;
    made
}

impl<'a> Machine<'a, '_> {
    fn eval(&mut self, expr: &'a Expr) -> Result<Val<'a>, Error> {
        self.steps.take(1)?;
        match &expr.kind {
            Kind::Null => Ok(Val::Null),
            Kind::Bool(bool) => Ok(Val::Bool(*bool)),
            Kind::Int(int) => Ok(Val::Int(*int)),
            Kind::Uint(uint) => Ok(Val::Uint(*uint)),
            Kind::Double(double) => Ok(Val::Double(*double)),
            Kind::Text(text) => Ok(Val::Text(Text::Borrowed(text))),
            Kind::Bytes(bytes) => Ok(Val::Bytes(bytes.as_ref().into())),
            Kind::Ident(name) => self.variable(name),
            Kind::Select {
                of,
                field,
                optional,
            } => self.select(of, field, *optional),
            Kind::Has { of, field } => self.has(of, field),
            Kind::Index {
                of,
                index,
                optional,
            } => self.index(of, index, *optional),
            Kind::List(items) => {
                let mut made = Vec::with_capacity(items.len());
                for item in items {
                    made.push(self.eval(item)?);
                }
                Ok(Val::list(made))
            }
            Kind::Map(entries) => {
                let mut made = Vec::with_capacity(entries.len());
                for (key, value) in entries {
                    made.push((self.eval(key)?, self.eval(value)?));
                }
                operate::map(&mut self.steps, made)
            }
            Kind::Not(of) => self.bool(of).map(|bool| Val::Bool(!bool)),
            Kind::Negate(of) => operate::negate(&self.eval(of)?),
            Kind::And(all) => self.until(all, false),
            Kind::Or(all) => self.until(all, true),
            Kind::Binary { operator, sides } => {
                let [left, right] = sides.as_ref();
                let (left, right) = (self.eval(left)?, self.eval(right)?);
                binary(&mut self.steps, *operator, &left, &right)
            }
            Kind::Conditional(parts) => {
                let [condition, then, otherwise] = parts.as_ref();
                match self.bool(condition)? {
                    true => self.eval(then),
                    false => self.eval(otherwise),
                }
            }
            Kind::Call {
                function,
                arguments,
                pattern,
            } => {
                let mut values = Vec::with_capacity(arguments.len());
                for argument in arguments {
                    values.push(self.eval(argument)?);
                }
                (function.run)(self, &values, pattern.as_ref())
            }
            Kind::Comprehension(comprehension) => self.comprehend(comprehension),
            Kind::OfOptional {
                of,
                variable,
                body,
                flat,
            } => {
                let Val::Optional(held) = self.eval(of)? else {
                    return Err(Error::no_overload());
                };
                let Some(held) = held else {
                    return Ok(Val::none());
                };
                self.locals.push((variable, (*held).clone()));
                let made = self.eval(body);
                self.locals.pop();
                match (made?, flat) {
                    (made @ Val::Optional(_), true) => Ok(made),
                    (_, true) => Err(Error::no_overload()),
                    (made, false) => Ok(Val::some(made)),
                }
            }
        }
    }

    fn variable(&self, name: &str) -> Result<Val<'a>, Error> {
        let local = self.locals.iter().rev().find(|(known, _)| *known == name);
        if let Some((_, value)) = local {
            return Ok(value.clone());
        }
        match self.roots.iter().find(|(known, _)| *known == name) {
            Some((_, value)) => Ok(value.clone()),
            None => match library::type_named(name) {
                Some(name) => Ok(Val::Type(name)),
                None => Err(Error::run(format!("no such attribute: {name}"))),
            },
        }
    }

    fn bool(&mut self, expr: &'a Expr) -> Result<bool, Error> {
        match self.eval(expr)? {
            Val::Bool(bool) => Ok(bool),
            _ => Err(Error::no_overload()),
        }
    }

    /// `&&` and `||`: one that decides, decides, whatever becomes of the others.
    fn until(&mut self, all: &'a [Expr], decides: bool) -> Result<Val<'a>, Error> {
        let mut failed = None;
        for one in all {
            match self.bool(one) {
                Ok(bool) if bool == decides => return Ok(Val::Bool(decides)),
                Ok(_) => {}
                Err(Error::TooCostly) => return Err(Error::TooCostly),
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        failed.map_or(Ok(Val::Bool(!decides)), Err)
    }

    fn select(&mut self, of: &'a Expr, field: &str, optional: bool) -> Result<Val<'a>, Error> {
        let of = self.eval(of)?;
        if let Val::Map(entries) = &of {
            self.steps.take(entries.len())?;
        }
        // Of an optional, the field is an optional, too.
        let (of, optional) = match of {
            Val::Optional(None) => return Ok(Val::none()),
            Val::Optional(Some(held)) => ((*held).clone(), true),
            of => (of, optional),
        };
        match (of.field(field)?, optional) {
            (Some(value), false) => Ok(value),
            (Some(value), true) => Ok(Val::some(value)),
            (None, true) => Ok(Val::none()),
            (None, false) => Err(Error::run(format!("no such key: {field}"))),
        }
    }

    fn has(&mut self, of: &'a Expr, field: &str) -> Result<Val<'a>, Error> {
        let of = match self.eval(of)? {
            Val::Optional(None) => return Ok(Val::Bool(false)),
            Val::Optional(Some(held)) => (*held).clone(),
            of => of,
        };
        if let Val::Map(entries) = &of {
            self.steps.take(entries.len())?;
        }
        of.field(field).map(|value| Val::Bool(value.is_some()))
    }

    fn index(&mut self, of: &'a Expr, index: &'a Expr, optional: bool) -> Result<Val<'a>, Error> {
        let (of, index) = (self.eval(of)?, self.eval(index)?);
        let (of, optional) = match of {
            Val::Optional(None) => return Ok(Val::none()),
            Val::Optional(Some(held)) => ((*held).clone(), true),
            of => (of, optional),
        };
        match (operate::index(&mut self.steps, &of, &index)?, optional) {
            (Some(value), false) => Ok(value),
            (Some(value), true) => Ok(Val::some(value)),
            (None, true) => Ok(Val::none()),
            (None, false) => Err(match index {
                Val::Text(key) => Error::run(format!("no such key: {}", &*key)),
                Val::Int(at) if of.is_list() => Error::run(format!("index out of bounds: {at}")),
                _ if of.is_list() => Error::run("index out of bounds"),
                _ => Error::run("no such key"),
            }),
        }
    }

    fn comprehend(&mut self, this: &'a Comprehension) -> Result<Val<'a>, Error> {
        let over = self.eval(&this.over)?;
        self.steps.take(over.len().unwrap_or(0))?;
        let by_key = this.second.is_none() && !over.is_list();
        let entries = over.entries().ok_or_else(Error::no_overload)?;
        let mut failed = None;
        let mut count = 0_usize;
        let (mut items, mut pairs) = (Vec::new(), Vec::new());
        for (key, value) in entries {
            let depth = self.locals.len();
            match &this.second {
                Some(second) => {
                    self.locals.push((&this.variable, key.clone()));
                    self.locals.push((second, value.clone()));
                }
                None if by_key => self.locals.push((&this.variable, key.clone())),
                None => self.locals.push((&this.variable, value.clone())),
            }
            let made = self.one(this);
            self.locals.truncate(depth);
            match (this.what, made) {
                (_, Err(Error::TooCostly)) => return Err(Error::TooCostly),
                // what decides, decides, whatever becomes of the others
                (What::All | What::Exists, Err(error)) => failed = failed.or(Some(error)),
                (_, Err(error)) => return Err(error),
                // its filter leaves it out
                (_, Ok(None)) => {}
                (What::Map | What::TransformList, Ok(Some(made))) => items.push(made),
                (What::TransformMap, Ok(Some(made))) => pairs.push((key, made)),
                (what, Ok(Some(Val::Bool(bool)))) => match what {
                    What::All if !bool => return Ok(Val::Bool(false)),
                    What::Exists if bool => return Ok(Val::Bool(true)),
                    What::ExistsOne if bool => count += 1,
                    What::Filter if bool => items.push(if by_key { key } else { value }),
                    _ => {}
                },
                _ => return Err(Error::no_overload()),
            }
        }
        if let Some(error) = failed {
            return Err(error);
        }
        Ok(match this.what {
            What::All => Val::Bool(true),
            What::Exists => Val::Bool(false),
            What::ExistsOne => Val::Bool(count == 1),
            What::Map | What::Filter | What::TransformList => Val::list(items),
            What::TransformMap => Val::Map(Rc::new(pairs)),
        })
    }

    fn one(&mut self, this: &'a Comprehension) -> Result<Option<Val<'a>>, Error> {
        if let Some(filter) = &this.filter
            && !self.bool(filter)?
        {
            return Ok(None);
        }
        self.eval(&this.body).map(Some)
    }

    /// A pattern that an expression has made.
    pub(crate) fn pattern(&mut self, text: &str) -> Result<Regex, Error> {
        if let Some((_, regex)) = self.patterns.iter().find(|(known, _)| **known == *text) {
            return Ok(regex.clone());
        }
        // to make one takes up to some milliseconds
        self.steps.take(20_000 + 200 * text.len())?;
        let regex = library::pattern(text).map_err(Error::run)?;
        if self.patterns.len() == PATTERNS {
            self.patterns.remove(0);
        }
        self.patterns.push((text.into(), regex.clone()));
        Ok(regex)
    }
}
