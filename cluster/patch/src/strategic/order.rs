//! In which order a merged list is: `$setElementOrder` says it, else the patch, and what neither names stays near its neighbours.

use std::collections::{HashMap, HashSet};

use serde_json::{Map, Value};

use super::{
    Form, SET_ELEMENT_ORDER, as_element, bad_element_order, bad_type, list,
    list_without_directives, malformed, no_merge_key,
};
use crate::{error::PatchError, print};

/// Where each element stands, by its key.
#[derive(Debug, Default)]
pub(super) struct Order(HashMap<String, usize>);

impl Order {
    fn new(keys: impl Iterator<Item = Result<String, PatchError>>) -> Result<Self, PatchError> {
        let mut order = HashMap::new();
        for (at, key) in keys.enumerate() {
            order.entry(key?).or_insert(at);
        }
        Ok(Self(order))
    }

    pub(super) fn of_scalars(values: &[Value]) -> Self {
        Self::new(values.iter().map(|value| Ok(list::text_of(value)))).unwrap_or_default()
    }

    pub(super) fn of_maps(values: &[Value], merge_key: &str) -> Result<Self, PatchError> {
        Self::new(values.iter().map(|value| list::key_of(value, merge_key)))
    }

    pub(super) fn has(&self, key: &str) -> bool {
        self.0.contains_key(key)
    }

    fn of(&self, key: &str) -> Option<usize> {
        self.0.get(key).copied()
    }
}

/// Keys, and what they are of.
pub(super) type Keyed = Vec<(String, Value)>;

/// `theirs` (of the patch) in the order that is wanted, `ours` (of the live object alone) as they were, put together so that both keep their order.
pub(super) fn normalized(theirs: Keyed, ours: Keyed, wanted: &Order, live: &Order) -> Vec<Value> {
    let theirs = sorted(theirs, wanted);
    let ours = sorted(ours, live);
    let mut all = Vec::with_capacity(theirs.len() + ours.len());
    let mut ours = ours.into_iter().peekable();
    for (key, value) in theirs {
        // Ours come as far as the live object has them before the next of theirs.
        while let Some((our_key, _)) = ours.peek()
            && let (Some(our_place), Some(place)) = (live.of(our_key), live.of(&key))
            && our_place < place
        {
            all.extend(ours.next().map(|(_, value)| value));
        }
        all.push(value);
    }
    all.extend(ours.map(|(_, value)| value));
    all
}

/// Stable. What `order` does not have can only come of an order that is empty: it goes to the front, the last first.
fn sorted(mut elements: Keyed, order: &Order) -> Keyed {
    let (known, unknown): (Keyed, Keyed) = elements.drain(..).partition(|(key, _)| order.has(key));
    let mut sorted: Keyed = unknown.into_iter().rev().collect();
    let mut known = known;
    known.sort_by_key(|(key, _)| order.of(key));
    sorted.extend(known);
    sorted
}

/// Merges the lists for which the patch has a `$setElementOrder`, and takes both out of the patch.
pub(super) fn merge_ordered(
    original: &mut Map<String, Value>,
    patch: &mut Map<String, Value>,
    form: Form<'_>,
) -> Result<(), PatchError> {
    let directives: Vec<String> = patch
        .keys()
        .filter(|key| key.starts_with(SET_ELEMENT_ORDER))
        .cloned()
        .collect();
    for directive in directives {
        let order = match patch.remove(&directive) {
            Some(Value::Array(order)) => order,
            Some(other) => return Err(bad_type("[]interface {}", &other)),
            None => continue,
        };
        let name = directive
            .strip_prefix(SET_ELEMENT_ORDER)
            .and_then(|name| name.strip_prefix('/'))
            .ok_or_else(bad_element_order)?;
        let old = take_list(original, name)?;
        let new = take_list(patch, name)?;
        let list = form.list(name)?;
        check(new.as_deref().unwrap_or_default(), &order, list.merge_key)?;
        if let Some(merged) = merge_one(old, new, &order, list)? {
            original.insert(name.to_owned(), Value::Array(merged));
        }
    }
    Ok(())
}

fn take_list(from: &mut Map<String, Value>, name: &str) -> Result<Option<Vec<Value>>, PatchError> {
    match from.remove(name) {
        None => Ok(None),
        Some(Value::Array(list)) => Ok(Some(list)),
        Some(other) => Err(bad_type("[]interface {}", &other)),
    }
}

fn merge_one(
    old: Option<Vec<Value>>,
    new: Option<Vec<Value>>,
    order: &[Value],
    list: super::ListForm<'_>,
) -> Result<Option<Vec<Value>>, PatchError> {
    if old.is_none() && new.is_none() {
        return Ok(None);
    }
    let kind = list::element_kind(&[
        old.as_deref().unwrap_or_default(),
        new.as_deref().unwrap_or_default(),
    ]);
    let order_of = |values: &[Value]| match list.merge_key {
        Some(key) => Order::of_maps(values, key),
        None => Ok(Order::of_scalars(values)),
    };
    let live = match (list.merge_key, &old, &new) {
        (Some(key), Some(old), Some(new)) => after_deletions(old, new, key)?,
        (_, old, _) => order_of(old.as_deref().unwrap_or_default())?,
    };
    let merged = match (old, new) {
        (Some(old), None) => old,
        (None, Some(new)) => list_without_directives(new),
        (Some(old), Some(new)) if list.merged => list::merge_list(old, new, list)?,
        (_, new) => new.unwrap_or_default(),
    };
    if kind? == list::ElementKind::Map && list.merge_key.is_none() {
        // Nothing says which is which.
        return Ok(Some(merged));
    }
    let wanted = order_of(order)?;
    let mut keyed = Vec::with_capacity(merged.len());
    for value in merged {
        let key = match list.merge_key {
            Some(merge_key) => list::key_of(&value, merge_key)?,
            None => list::text_of(&value),
        };
        keyed.push((key, value));
    }
    let (theirs, ours) = keyed.into_iter().partition(|(key, _)| wanted.has(key));
    Ok(Some(normalized(theirs, ours, &wanted, &live)))
}

/// The order of the live list. As upstream has it, what the patch adds takes the room that what it deletes leaves at the end, and counts as live there:
/// `[e, d]` without `e` and with `a` is `[d, a]`.
fn after_deletions(old: &[Value], new: &[Value], merge_key: &str) -> Result<Order, PatchError> {
    let has = |value: &Value, directive: &str| {
        value
            .get(super::DIRECTIVE)
            .is_some_and(|it| it == directive)
    };
    if new.iter().any(|value| has(value, "replace")) {
        return Order::of_maps(old, merge_key);
    }
    let mut deleted = HashSet::new();
    for value in new.iter().filter(|value| has(value, "delete")) {
        deleted.insert(list::key_of(value, merge_key)?);
    }
    let mut seen = HashSet::new();
    let mut keys = Vec::with_capacity(old.len());
    for value in old {
        let key = list::key_of(value, merge_key)?;
        if !deleted.contains(&key) {
            seen.insert(key.clone());
            keys.push(key);
        }
    }
    for value in new
        .iter()
        .filter(|value| value.get(super::DIRECTIVE).is_none())
    {
        let key = list::key_of(value, merge_key)?;
        if seen.insert(key.clone()) {
            keys.push(key);
        }
    }
    Order::new(keys.into_iter().take(old.len()).map(Ok))
}

/// What the patch has, but what it deletes, is in the order, and in its order.
fn check(patch: &[Value], order: &[Value], merge_key: Option<&str>) -> Result<(), PatchError> {
    if patch.is_empty() || order.is_empty() {
        return Ok(());
    }
    let same = |left: &Value, right: &Value| {
        let Some(merge_key) = merge_key else {
            return Ok(left == right);
        };
        let key = |value| {
            let element = as_element(value)?;
            element
                .get(merge_key)
                .ok_or_else(|| no_merge_key(element, merge_key))
        };
        Ok::<_, PatchError>(key(left)? == key(right)?)
    };
    let mut places = order.iter().peekable();
    'element: for value in patch {
        let directive = value.get(super::DIRECTIVE);
        // As upstream: what replaces the list may not come after all that is ordered.
        let skipped = directive.is_some_and(|it| it == "delete" || places.peek().is_some());
        if skipped {
            continue;
        }
        for place in places.by_ref() {
            if same(value, place)? {
                continue 'element;
            }
        }
        return Err(malformed(format!(
            "The order in patch list:\n{}\n doesn't match {SET_ELEMENT_ORDER} list:\n{}\n",
            print::plain_list(patch),
            print::plain_list(order)
        )));
    }
    Ok(())
}
