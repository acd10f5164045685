//! What can be known of an expression before it is run: names that aren't there, fields that aren't, operands that don't go together.

use std::sync::Arc;

use crate::{
    Error, Shape,
    expr::{Comprehension, Expr, Kind, Operator, What},
    library,
};

pub(crate) struct Check<'c> {
    pub source: &'c str,
    pub variables: &'c [(&'c str, Shape)],
    locals: Vec<(&'c str, Shape)>,
}

/// The shape of what it gives.
pub(crate) fn check<'c>(
    source: &'c str,
    variables: &'c [(&'c str, Shape)],
    expr: &'c Expr,
) -> Result<Shape, Error> {
    Check {
        source,
        variables,
        locals: Vec::new(),
    }
    .shape(expr)
}

impl<'c> Check<'c> {
    fn wrong<T>(&self, at: usize, why: &str) -> Result<T, Error> {
        Err(Error::compile(self.source, at, why))
    }

    fn no_overload<T>(&self, at: usize, function: &str, of: &[&Shape]) -> Result<T, Error> {
        let of: Vec<_> = of.iter().map(ToString::to_string).collect();
        self.wrong(
            at,
            &format!(
                "found no matching overload for '{function}' applied to '({})'",
                of.join(", ")
            ),
        )
    }

    fn shape(&mut self, expr: &'c Expr) -> Result<Shape, Error> {
        Ok(match &expr.kind {
            Kind::Null => Shape::Null,
            Kind::Bool(_) => Shape::Bool,
            Kind::Int(_) => Shape::Int,
            Kind::Uint(_) => Shape::Uint,
            Kind::Double(_) => Shape::Double,
            Kind::Text(_) => Shape::Text,
            Kind::Bytes(_) => Shape::Bytes,
            Kind::Ident(name) => return self.variable(expr.at, name),
            Kind::Select {
                of,
                field,
                optional,
            } => {
                let of = self.shape(of)?;
                let found = self.field(expr.at, &of, field)?;
                match *optional || of == Shape::Optional {
                    true => Shape::Optional,
                    false => found,
                }
            }
            Kind::Has { of, field } => {
                let of = self.shape(of)?;
                self.field(expr.at, &of, field)?;
                Shape::Bool
            }
            Kind::Index {
                of,
                index,
                optional,
            } => {
                let (of, index) = (self.shape(of)?, self.shape(index)?);
                let found = match &of {
                    Shape::List(item) if Shape::Int.may_be(&index) => (**item).clone(),
                    Shape::Map(value) if Shape::Text.may_be(&index) => (**value).clone(),
                    Shape::Any | Shape::Null | Shape::Optional | Shape::Object(_) => Shape::Any,
                    _ => return self.no_overload(expr.at, "_[_]", &[&of, &index]),
                };
                match *optional || of == Shape::Optional {
                    true => Shape::Optional,
                    false => found,
                }
            }
            Kind::List(items) => {
                let mut common = None;
                for item in items {
                    let shape = self.shape(item)?;
                    common = Some(match common {
                        None => shape,
                        Some(common) if common == shape => shape,
                        Some(_) => Shape::Any,
                    });
                }
                Shape::List(Arc::new(common.unwrap_or_default()))
            }
            Kind::Map(entries) => {
                for (key, value) in entries {
                    self.shape(key)?;
                    self.shape(value)?;
                }
                Shape::Map(Arc::new(Shape::Any))
            }
            Kind::Not(of) => self.must_be(of, &Shape::Bool, "!_")?,
            Kind::Negate(of) => {
                let shape = self.shape(of)?;
                match shape {
                    Shape::Int | Shape::Double | Shape::Any | Shape::Null => shape,
                    shape => return self.no_overload(expr.at, "-_", &[&shape]),
                }
            }
            Kind::And(all) => self.all_bool(all, "_&&_")?,
            Kind::Or(all) => self.all_bool(all, "_||_")?,
            Kind::Binary { operator, sides } => {
                let [left, right] = sides.as_ref();
                let (left, right) = (self.shape(left)?, self.shape(right)?);
                return self.binary(expr.at, *operator, &left, &right);
            }
            Kind::Conditional(parts) => {
                let [condition, then, otherwise] = parts.as_ref();
                self.must_be(condition, &Shape::Bool, "_?_:_")?;
                let (then, otherwise) = (self.shape(then)?, self.shape(otherwise)?);
                if !then.may_be(&otherwise) {
                    return self.no_overload(expr.at, "_?_:_", &[&Shape::Bool, &then, &otherwise]);
                }
                match then == otherwise {
                    true => then,
                    false => Shape::Any,
                }
            }
            Kind::Call {
                function,
                arguments,
                ..
            } => {
                for argument in arguments {
                    self.shape(argument)?;
                }
                function.gives.clone()
            }
            Kind::Comprehension(comprehension) => {
                return self.comprehension(expr.at, comprehension);
            }
            Kind::OfOptional {
                of, variable, body, ..
            } => {
                let of = self.shape(of)?;
                if !Shape::Optional.may_be(&of) {
                    return self.no_overload(expr.at, "optMap", &[&of]);
                }
                self.locals.push((variable, Shape::Any));
                let made = self.shape(body);
                self.locals.pop();
                made?;
                Shape::Optional
            }
        })
    }

    fn variable(&self, at: usize, name: &str) -> Result<Shape, Error> {
        let known = self
            .locals
            .iter()
            .rev()
            .chain(self.variables)
            .find(|(known, _)| *known == name);
        match known {
            Some((_, shape)) => Ok(shape.clone()),
            None if library::type_named(name).is_some() => Ok(Shape::Type),
            None => self.wrong(
                at,
                &format!("undeclared reference to '{name}' (in container '')"),
            ),
        }
    }

    fn field(&self, at: usize, of: &Shape, name: &str) -> Result<Shape, Error> {
        match of {
            Shape::Any | Shape::Null | Shape::Optional => Ok(Shape::Any),
            Shape::Map(value) => Ok((**value).clone()),
            Shape::Object(fields) => match fields.get(name) {
                Some((_, shape)) => Ok(shape.clone()),
                None => self.wrong(at, &format!("undefined field '{name}'")),
            },
            other => self.wrong(
                at,
                &format!("type '{other}' does not support field selection"),
            ),
        }
    }

    fn must_be(&mut self, expr: &'c Expr, wanted: &Shape, function: &str) -> Result<Shape, Error> {
        let shape = self.shape(expr)?;
        match wanted.may_be(&shape) {
            true => Ok(wanted.clone()),
            false => self.no_overload(expr.at, function, &[&shape]),
        }
    }

    fn all_bool(&mut self, all: &'c [Expr], function: &str) -> Result<Shape, Error> {
        for one in all {
            self.must_be(one, &Shape::Bool, function)?;
        }
        Ok(Shape::Bool)
    }

    fn binary(
        &self,
        at: usize,
        operator: Operator,
        left: &Shape,
        right: &Shape,
    ) -> Result<Shape, Error> {
        let unknown = |shape: &Shape| matches!(shape, Shape::Any | Shape::Null);
        let either = unknown(left) || unknown(right);
        let good = match operator {
            // Numbers of two types are not compared unless nothing is known of one.
            Operator::Equal | Operator::NotEqual => {
                left.may_be(right) && (!left.is_number() || !right.is_number() || left == right)
            }
            Operator::In => match right {
                Shape::List(item) => left.may_be(item),
                Shape::Map(_) | Shape::Object(_) => Shape::Text.may_be(left) || unknown(left),
                right => unknown(right),
            },
            Operator::Less | Operator::LessEqual | Operator::Greater | Operator::GreaterEqual => {
                either
                    || (left.is_number() && right.is_number())
                    || (left == right
                        && matches!(
                            left,
                            Shape::Text
                                | Shape::Bytes
                                | Shape::Bool
                                | Shape::Timestamp
                                | Shape::Duration
                        ))
            }
            Operator::Add => {
                either
                    || matches!((left, right), (Shape::List(_), Shape::List(_)))
                    || matches!(
                        (left, right),
                        (Shape::Timestamp, Shape::Duration) | (Shape::Duration, Shape::Timestamp)
                    )
                    || (left == right
                        && (left.is_number()
                            || matches!(left, Shape::Text | Shape::Bytes | Shape::Duration)))
            }
            Operator::Subtract => {
                either
                    || matches!((left, right), (Shape::Timestamp, Shape::Duration))
                    || (left == right
                        && (left.is_number() || matches!(left, Shape::Timestamp | Shape::Duration)))
            }
            Operator::Multiply | Operator::Divide => either || (left == right && left.is_number()),
            Operator::Modulo => {
                either || (left == right && left.is_number() && *left != Shape::Double)
            }
        };
        if !good {
            return self.no_overload(at, operator.function(), &[left, right]);
        }
        Ok(match operator {
            Operator::Add | Operator::Multiply | Operator::Divide | Operator::Modulo
                if left == right =>
            {
                left.clone()
            }
            Operator::Subtract if left == right && left.is_number() => left.clone(),
            Operator::Add
            | Operator::Subtract
            | Operator::Multiply
            | Operator::Divide
            | Operator::Modulo => Shape::Any,
            _ => Shape::Bool,
        })
    }

    fn comprehension(&mut self, at: usize, this: &'c Comprehension) -> Result<Shape, Error> {
        let over = self.shape(&this.over)?;
        let (key, value) = match &over {
            Shape::List(item) => (Shape::Int, (**item).clone()),
            Shape::Map(value) => (Shape::Text, (**value).clone()),
            Shape::Object(_) => (Shape::Text, Shape::Any),
            Shape::Any | Shape::Null => (Shape::Any, Shape::Any),
            other => {
                return self.wrong(
                    at,
                    &format!("expression of type '{other}' cannot be range of a comprehension (must be list, map, or dynamic)"),
                );
            }
        };
        let depth = self.locals.len();
        let item = match &this.second {
            Some(second) => {
                self.locals.push((&this.variable, key));
                self.locals.push((second, value.clone()));
                value
            }
            None => {
                let item = match over {
                    Shape::Map(_) | Shape::Object(_) => key,
                    _ => value,
                };
                self.locals.push((&this.variable, item.clone()));
                item
            }
        };
        let filter = match &this.filter {
            Some(filter) => self.must_be(filter, &Shape::Bool, "_?_:_").map(drop),
            None => Ok(()),
        };
        let made = self.shape(&this.body);
        self.locals.truncate(depth);
        filter?;
        let made = made?;
        let wants_bool = matches!(
            this.what,
            What::All | What::Exists | What::ExistsOne | What::Filter
        );
        if wants_bool && !Shape::Bool.may_be(&made) {
            return self.wrong(
                this.body.at,
                &format!("expected type 'bool' but found '{made}'"),
            );
        }
        Ok(match this.what {
            What::All | What::Exists | What::ExistsOne => Shape::Bool,
            What::Filter => Shape::List(Arc::new(item)),
            What::Map | What::TransformList => Shape::List(Arc::new(made)),
            What::TransformMap => Shape::Map(Arc::new(made)),
        })
    }
}
