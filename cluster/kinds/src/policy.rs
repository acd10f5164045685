//! What is written in CEL in policies of admission and in webhooks: compiled, so that whoever writes it is told what is wrong, and whoever is asked can run it.

use std::{collections::BTreeMap, sync::Arc};

use berth_cel::{Error, Fields, Program, Shape, Wants};
use serde_json::Value;

use crate::read::{items, some, text};

/// An expression with its name.
#[derive(Debug)]
pub struct Named {
    pub name: String,
    pub program: Program,
}

#[derive(Debug)]
pub struct Validation {
    pub expression: String,
    pub program: Program,
    /// Empty: none.
    pub message: String,
    pub message_expression: Option<Program>,
    /// metav1.StatusReason; empty: Invalid.
    pub reason: String,
}

/// spec of a ValidatingAdmissionPolicy.
#[derive(Debug, Default)]
pub struct Policy {
    pub conditions: Vec<Named>,
    pub variables: Vec<Named>,
    pub validations: Vec<Validation>,
    pub annotations: Vec<Named>,
}

/// An expression that is none.
#[derive(Debug)]
pub struct Mistake {
    /// `spec.validations[0].expression`.
    pub field: String,
    pub expression: String,
    pub error: Error,
}

struct Compiler {
    known: Vec<(&'static str, Shape)>,
    mistakes: Vec<Mistake>,
}

impl Compiler {
    fn compile(&mut self, field: String, expression: &str, wants: Wants) -> Option<Program> {
        // What is empty is told of as what is missing.
        if expression.trim().is_empty() {
            return None;
        }
        match Program::compile(expression, &self.known, wants) {
            Ok(program) => Some(program),
            Err(error) => {
                self.mistakes.push(Mistake {
                    field,
                    expression: expression.to_owned(),
                    error,
                });
                None
            }
        }
    }

    fn conditions(&mut self, object: &Value, pointer: &str, field: &str) -> Vec<Named> {
        let mut all = Vec::new();
        for (at, condition) in items(object, pointer).iter().enumerate() {
            let field = format!("{field}[{at}].expression");
            let program = self.compile(field, text(condition, "/expression"), Wants::Bool);
            all.extend(program.map(|program| Named {
                name: text(condition, "/name").to_owned(),
                program,
            }));
        }
        all
    }
}

/// matchConditions of a webhook that is at `field` in its configuration.
pub fn conditions(webhook: &Value, field: &str) -> (Vec<Named>, Vec<Mistake>) {
    let mut compiler = Compiler {
        known: variables(),
        mistakes: Vec::new(),
    };
    let field = format!("{field}.matchConditions");
    let conditions = compiler.conditions(webhook, "/matchConditions", &field);
    (conditions, compiler.mistakes)
}

impl Policy {
    /// What is wrong is left out and told of.
    pub fn compile(policy: &Value) -> (Self, Vec<Mistake>) {
        let mut compiler = Compiler {
            known: variables(),
            mistakes: Vec::new(),
        };
        if some(policy, "/spec/paramKind").is_some() {
            compiler.known.push(("params", Shape::Any));
        }
        let mut compiled = Self {
            conditions: compiler.conditions(
                policy,
                "/spec/matchConditions",
                "spec.matchConditions",
            ),
            ..Self::default()
        };
        // Each variable may name those before it.
        let mut named = BTreeMap::new();
        let of = |named: &BTreeMap<Box<str>, Shape>| Shape::Object(Arc::new(Fields(named.clone())));
        compiler.known.push(("variables", of(&named)));
        for (at, variable) in items(policy, "/spec/variables").iter().enumerate() {
            let field = format!("spec.variables[{at}].expression");
            let source = text(variable, "/expression");
            let program = compiler.compile(field, source, Wants::Anything);
            let name = text(variable, "/name");
            let shape = program
                .as_ref()
                .map_or(Shape::Any, |program| program.shape().clone());
            named.insert(name.into(), shape);
            if let Some(last) = compiler.known.last_mut() {
                last.1 = of(&named);
            }
            compiled.variables.extend(program.map(|program| Named {
                name: name.to_owned(),
                program,
            }));
        }
        for (at, validation) in items(policy, "/spec/validations").iter().enumerate() {
            let field = |name: &str| format!("spec.validations[{at}].{name}");
            let expression = text(validation, "/expression");
            let program = compiler.compile(field("expression"), expression, Wants::Bool);
            let message_expression = compiler.compile(
                field("messageExpression"),
                text(validation, "/messageExpression"),
                Wants::Text,
            );
            compiled
                .validations
                .extend(program.map(|program| Validation {
                    expression: expression.trim().to_owned(),
                    program,
                    message: text(validation, "/message").to_owned(),
                    message_expression,
                    reason: text(validation, "/reason").to_owned(),
                }));
        }
        for (at, annotation) in items(policy, "/spec/auditAnnotations").iter().enumerate() {
            let field = format!("spec.auditAnnotations[{at}].valueExpression");
            let source = text(annotation, "/valueExpression");
            let program = compiler.compile(field, source, Wants::MaybeText);
            compiled.annotations.extend(program.map(|program| Named {
                name: text(annotation, "/key").to_owned(),
                program,
            }));
        }
        (compiled, compiler.mistakes)
    }
}

/// What every expression may name, but for `params` and `variables`.
fn variables() -> Vec<(&'static str, Shape)> {
    vec![
        ("object", Shape::Any),
        ("oldObject", Shape::Any),
        ("namespaceObject", Shape::Any),
        ("request", request()),
    ]
}

fn object(fields: &[(&str, Shape)]) -> Shape {
    let fields = fields
        .iter()
        .map(|(name, shape)| ((*name).into(), shape.clone()));
    Shape::Object(Arc::new(Fields(fields.collect())))
}

/// admission.k8s.io/v1 AdmissionRequest, without its objects.
fn request() -> Shape {
    let kind = object(&[
        ("group", Shape::Text),
        ("version", Shape::Text),
        ("kind", Shape::Text),
    ]);
    let resource = object(&[
        ("group", Shape::Text),
        ("version", Shape::Text),
        ("resource", Shape::Text),
    ]);
    let texts = Shape::List(Arc::new(Shape::Text));
    let user = object(&[
        ("username", Shape::Text),
        ("uid", Shape::Text),
        ("groups", texts.clone()),
        ("extra", Shape::Map(Arc::new(texts))),
    ]);
    object(&[
        ("uid", Shape::Text),
        ("kind", kind.clone()),
        ("resource", resource.clone()),
        ("subResource", Shape::Text),
        ("requestKind", kind),
        ("requestResource", resource),
        ("requestSubResource", Shape::Text),
        ("name", Shape::Text),
        ("namespace", Shape::Text),
        ("operation", Shape::Text),
        ("userInfo", user),
        ("dryRun", Shape::Bool),
        ("options", Shape::Any),
    ])
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn variables_are_known_to_those_after_them() {
        let policy = |first: &str, second: &str, rule: &str| {
            json!({"spec": {
                "variables": [{"name": "a", "expression": first}, {"name": "b", "expression": second}],
                "validations": [{"expression": rule, "messageExpression": "'no ' + string(variables.a)"}],
                "matchConditions": [{"name": "c", "expression": "request.operation == 'CREATE'"}],
                "auditAnnotations": [{"key": "k", "valueExpression": "variables.b ? 'yes' : null"}],
            }})
        };
        let (compiled, mistakes) =
            Policy::compile(&policy("1 + 1", "variables.a == 2", "variables.b"));
        assert!(mistakes.is_empty(), "{mistakes:?}");
        assert_eq!(compiled.variables.len(), 2);
        assert_eq!(compiled.validations.len(), 1);
        for (policy, field, why) in [
            (
                policy("variables.b", "true", "true"),
                "spec.variables[0].expression",
                "undefined field 'b'",
            ),
            (
                policy("1", "true", "variables.z"),
                "spec.validations[0].expression",
                "undefined field 'z'",
            ),
            (
                policy("1", "true", "variables.a"),
                "spec.validations[0].expression",
                "must evaluate to bool",
            ),
            (
                policy("1", "true", "params.x"),
                "spec.validations[0].expression",
                "undeclared reference to 'params'",
            ),
            (
                policy("1", "true", "request.verb == 'x'"),
                "spec.validations[0].expression",
                "undefined field 'verb'",
            ),
        ] {
            let (_, mistakes) = Policy::compile(&policy);
            assert!(
                mistakes[0].field == field && mistakes[0].error.to_string().contains(why),
                "{mistakes:?}"
            );
        }
    }
}
