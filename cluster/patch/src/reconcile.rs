//! Field sets that were written when a type was merged field by field, and is one field now.

use crate::{
    fields::{FieldSet, PathElement},
    typed::{Relation, Shape, TypeRef},
};

/// `None`: nothing has changed.
pub(crate) fn reconcile(fields: &FieldSet, ty: TypeRef<'_>) -> Option<FieldSet> {
    let mut walk = Walk {
        path: Vec::new(),
        atomic: FieldSet::default(),
    };
    walk.node(Some(fields), ty, false);
    if walk.atomic.is_empty() {
        return None;
    }
    Some(fields.without(&walk.atomic).union(&walk.atomic))
}

struct Walk {
    path: Vec<PathElement>,
    /// What is one field now.
    atomic: FieldSet,
}

impl Walk {
    /// `owned_whole`: the set has the node itself, and nothing below it.
    fn node(&mut self, fields: Option<&FieldSet>, ty: TypeRef<'_>, owned_whole: bool) {
        match ty.resolve().shape() {
            None | Some(Shape::Scalar(_)) => {}
            Some(Shape::List(list)) => {
                if !owned_whole && matches!(list.relation, Relation::Atomic) {
                    self.atomic.insert(&self.path);
                    return;
                }
                self.below(fields, |_| Some(list.element));
            }
            Some(Shape::Map(map)) => {
                if map.is_deduced() {
                    return;
                }
                if !owned_whole && map.atomic {
                    if fields.is_some() {
                        self.atomic.insert(&self.path);
                    }
                    return;
                }
                self.below(fields, |element| match element {
                    PathElement::Field(name) => Some(map.child(name)),
                    _ => None,
                });
            }
        }
    }

    fn below<'t>(
        &mut self,
        fields: Option<&FieldSet>,
        child: impl Fn(&PathElement) -> Option<TypeRef<'t>>,
    ) {
        for (element, member, below) in fields.into_iter().flat_map(FieldSet::nodes) {
            let Some(ty) = child(element) else {
                continue;
            };
            let below = (!below.is_empty()).then_some(below);
            self.path.push(element.clone());
            self.node(below, ty, member && below.is_none());
            self.path.pop();
        }
    }
}
