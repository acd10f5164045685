//! An expression that has been looked at and can be run.

use crate::{
    Budget, Error, Shape, Val, check,
    eval::{self},
    expr::{Expr, Kind},
    parse::parse,
};

/// What an expression has to come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wants {
    Bool,
    Text,
    /// Text or null.
    MaybeText,
    Anything,
}

#[derive(Debug)]
pub struct Program {
    expr: Expr,
    shape: Shape,
}

impl Program {
    /// `variables` are those that it may name, and what is known of them.
    ///
    /// # Errors
    /// [`Error::Compile`]: what is wrong with it, and where.
    pub fn compile(source: &str, variables: &[(&str, Shape)], wants: Wants) -> Result<Self, Error> {
        let expr = parse(source)?;
        let shape = check::check(source, variables, &expr)?;
        let (good, says) = match wants {
            Wants::Bool => (Shape::Bool.may_be(&shape) && shape != Shape::Null, "bool"),
            Wants::Text => (Shape::Text.may_be(&shape) && shape != Shape::Null, "string"),
            Wants::MaybeText => (Shape::Text.may_be(&shape), "string or null"),
            Wants::Anything => (true, ""),
        };
        match good {
            true => Ok(Self { expr, shape }),
            false => Err(Error::Compile(format!("must evaluate to {says}"))),
        }
    }

    /// What is known of what it comes to.
    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// Whether it names this variable.
    pub fn mentions(&self, variable: &str) -> bool {
        mentions(&self.expr, variable)
    }

    /// With these values of the variables.
    ///
    /// # Errors
    /// [`Error::Run`], and [`Error::TooCostly`] where the budget does not do.
    pub fn run<'a>(
        &'a self,
        variables: &[(&str, Val<'a>)],
        budget: &mut Budget,
    ) -> Result<Val<'a>, Error> {
        eval::run(&self.expr, variables, budget)
    }
}

fn mentions(expr: &Expr, name: &str) -> bool {
    let any = |all: &[Expr]| all.iter().any(|expr| mentions(expr, name));
    match &expr.kind {
        Kind::Ident(known) => **known == *name,
        Kind::Select { of, .. } | Kind::Has { of, .. } | Kind::Not(of) | Kind::Negate(of) => {
            mentions(of, name)
        }
        Kind::Index { of, index, .. } => mentions(of, name) || mentions(index, name),
        Kind::List(all) | Kind::And(all) | Kind::Or(all) => any(all),
        Kind::Call { arguments, .. } => any(arguments),
        Kind::Binary { sides, .. } => any(sides.as_slice()),
        Kind::Conditional(parts) => any(parts.as_slice()),
        Kind::Map(entries) => entries
            .iter()
            .any(|(key, value)| mentions(key, name) || mentions(value, name)),
        Kind::OfOptional { of, body, .. } => mentions(of, name) || mentions(body, name),
        Kind::Comprehension(this) => {
            mentions(&this.over, name)
                || mentions(&this.body, name)
                || this
                    .filter
                    .as_ref()
                    .is_some_and(|filter| mentions(filter, name))
        }
        Kind::Null
        | Kind::Bool(_)
        | Kind::Int(_)
        | Kind::Uint(_)
        | Kind::Double(_)
        | Kind::Text(_)
        | Kind::Bytes(_) => false,
    }
}

#[cfg(test)]
mod tests;
