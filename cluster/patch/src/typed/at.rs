use serde_json::Value;

use super::ListAtom;
use crate::fields::PathElement;

/// Where a walk is. It is written out only where something is wrong.
#[derive(Debug, Clone, Copy)]
pub(super) enum At<'a> {
    Root,
    Field(&'a At<'a>, &'a str),
    Element(&'a At<'a>, &'a PathElement),
    /// The element of a list, which can be named.
    Unnamed(&'a At<'a>, ListAtom<'a>, &'a Value),
}

impl At<'_> {
    pub(super) fn path(&self) -> Vec<PathElement> {
        let (mut path, last) = match self {
            Self::Root => return Vec::new(),
            Self::Field(parent, name) => (parent.path(), PathElement::field(name)),
            Self::Element(parent, element) => (parent.path(), (*element).clone()),
            Self::Unnamed(parent, list, element) => {
                let name = list.name(element).unwrap_or(PathElement::Index(0));
                (parent.path(), name)
            }
        };
        path.push(last);
        path
    }
}
