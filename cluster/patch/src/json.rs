//! JSON patch (RFC 6902) and merge patch (RFC 7386), by the crate `json-patch`: what is here bounds them, and has upstream's ways where those are not the crate's.

use json_patch::{AddOperation, PatchOperation, jsonptr::Pointer};
use serde_json::Value;

use crate::{Limits, error::PatchError};

/// Upstream's maxJSONPatchOperations.
const MAX_OPERATIONS: usize = 10_000;

/// What all `copy` operations of a patch may add together: upstream's JSONPatchMaxCopyBytes.
const MAX_COPIED_BYTES: usize = 3 * 1024 * 1024;

/// What all operations may do beside: elements of lists that move up or down, values that are looked through to see how deep they are.
/// Inserting at the front of a long list ten thousand times would take minutes.
const MAX_WORK: usize = 20_000_000;

/// While operations are done a document may nest that many times deeper than at their end, or nobody knows: then it is measured.
const SLACK: usize = 8;

pub(crate) fn json_patch(live: &Value, body: &[u8], limits: Limits) -> Result<Value, PatchError> {
    let operations: Vec<Value> = serde_json::from_slice(body).map_err(PatchError::Decode)?;
    if operations.len() > MAX_OPERATIONS {
        return Err(PatchError::TooLarge(format!(
            "The allowed maximum operations in a JSON patch is {MAX_OPERATIONS}, got {}",
            operations.len()
        )));
    }
    let mut patched = Patched {
        deepest: 0,
        document: live.clone(),
        copied_bytes: 0,
        work: 0,
        limits,
    };
    patched.measure()?;
    for operation in operations {
        let operation = serde_json::from_value(operation)
            .map_err(|error| PatchError::NotApplicable(error.to_string()))?;
        patched.apply(operation)?;
    }
    patched.measure()?;
    Ok(patched.document)
}

struct Patched {
    document: Value,
    /// No value lies deeper; it may be less.
    deepest: usize,
    copied_bytes: usize,
    work: usize,
    limits: Limits,
}

/// Of the value that an operation brings.
#[derive(Clone, Copy)]
enum Depth<'a> {
    Known(usize),
    /// As deep as what lies there.
    At(&'a Pointer),
}

impl Patched {
    fn apply(&mut self, operation: PatchOperation) -> Result<(), PatchError> {
        let operation = self.as_upstream(operation);
        match &operation {
            PatchOperation::Add(add) => {
                self.count_shift(&add.path);
                let depth = self.depth(&add.value);
                self.count_depth(&add.path, Depth::Known(depth))?;
            }
            PatchOperation::Replace(replace) => {
                let depth = self.depth(&replace.value);
                self.count_depth(&replace.path, Depth::Known(depth))?;
            }
            PatchOperation::Remove(remove) => self.count_shift(&remove.path),
            PatchOperation::Move(moved) => {
                self.count_shift(&moved.from);
                self.count_shift(&moved.path);
                self.count_depth(&moved.path, Depth::At(&moved.from))?;
            }
            PatchOperation::Copy(copy) => {
                self.count_copy(&copy.from)?;
                self.count_shift(&copy.path);
                self.count_depth(&copy.path, Depth::At(&copy.from))?;
            }
            PatchOperation::Test(_) => {}
        }
        if self.work > MAX_WORK {
            return Err(PatchError::TooLarge(
                "the operations of the JSON patch move too many elements of lists, or too large values, too often".to_owned(),
            ));
        }
        json_patch::patch_unsafe(&mut self.document, std::slice::from_ref(&operation))
            .map_err(|error| PatchError::NotApplicable(not_applicable(&operation, &error)))
    }

    /// Upstream's `replace` sets a field that is not there.
    fn as_upstream(&self, operation: PatchOperation) -> PatchOperation {
        match operation {
            PatchOperation::Replace(replace) if self.is_in_object(&replace.path) => {
                PatchOperation::Add(AddOperation {
                    path: replace.path,
                    value: replace.value,
                })
            }
            operation => operation,
        }
    }

    fn parent(&self, path: &Pointer) -> Option<&Value> {
        self.document.pointer(path.parent()?.as_str())
    }

    fn is_in_object(&self, path: &Pointer) -> bool {
        self.parent(path).is_some_and(Value::is_object)
    }

    fn count_shift(&mut self, path: &Pointer) {
        let Some(Value::Array(list)) = self.parent(path) else {
            return;
        };
        let at = path
            .last()
            .and_then(|last| last.decoded().parse::<usize>().ok());
        self.work += list.len().saturating_sub(at.unwrap_or(list.len()));
    }

    fn count_copy(&mut self, from: &Pointer) -> Result<(), PatchError> {
        let Some(value) = self.document.pointer(from.as_str()) else {
            return Ok(());
        };
        let mut left = Counter {
            left: MAX_COPIED_BYTES - self.copied_bytes,
        };
        if serde_json::to_writer(&mut left, value).is_err() {
            return Err(PatchError::NotApplicable(format!(
                "Unable to complete the copy, the accumulated size increase of copy is more than the limit {MAX_COPIED_BYTES}"
            )));
        }
        self.copied_bytes = MAX_COPIED_BYTES - left.left;
        Ok(())
    }

    /// A value comes to `path`. The document is measured only where it might have become too deep, which it then mostly has not.
    fn count_depth(&mut self, path: &Pointer, of_value: Depth<'_>) -> Result<(), PatchError> {
        let deepest = |patched: &Self| {
            let below = match of_value {
                Depth::Known(depth) => depth,
                Depth::At(from) => patched.deepest.saturating_sub(from.count()),
            };
            patched.deepest.max(path.count() + below)
        };
        let mut may_be = deepest(self);
        if may_be > self.limits.depth * SLACK {
            self.measure()?;
            may_be = deepest(self);
        }
        if may_be > self.limits.depth * SLACK {
            return Err(self.limits.too_deep());
        }
        self.deepest = may_be;
        Ok(())
    }

    fn measure(&mut self) -> Result<(), PatchError> {
        self.deepest = depth(&self.document, &mut self.work);
        if self.deepest > self.limits.depth {
            return Err(self.limits.too_deep());
        }
        Ok(())
    }

    fn depth(&mut self, value: &Value) -> usize {
        depth(value, &mut self.work)
    }
}

/// Writes nothing, and no more than that.
struct Counter {
    left: usize,
}

impl std::io::Write for Counter {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.left = self
            .left
            .checked_sub(bytes.len())
            .ok_or(std::io::ErrorKind::FileTooLarge)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// 1 for a scalar. Counts the values that it looks at.
fn depth(value: &Value, looked_at: &mut usize) -> usize {
    *looked_at += 1;
    let below = match value {
        Value::Array(elements) => elements.iter().map(|value| depth(value, looked_at)).max(),
        Value::Object(fields) => fields.values().map(|value| depth(value, looked_at)).max(),
        _ => None,
    };
    1 + below.unwrap_or_default()
}

fn not_applicable(operation: &PatchOperation, error: &json_patch::PatchError) -> String {
    use json_patch::PatchErrorKind as Kind;
    let (verb, path) = match operation {
        PatchOperation::Add(add) => ("add", &add.path),
        PatchOperation::Remove(remove) => ("remove", &remove.path),
        PatchOperation::Replace(replace) => ("replace", &replace.path),
        PatchOperation::Move(from) => ("move", &from.path),
        PatchOperation::Copy(copy) => ("copy", &copy.path),
        PatchOperation::Test(test) => ("test", &test.path),
    };
    match error.kind {
        Kind::TestFailed => format!("testing value {path} failed"),
        Kind::InvalidPointer => {
            format!("{verb} operation does not apply: doc is missing path: \"{path}\"")
        }
        Kind::InvalidFromPointer => {
            format!("{verb} operation does not apply: doc is missing from path: \"{path}\"")
        }
        ref other => format!("{verb} operation does not apply: {path}: {other}"),
    }
}

pub(crate) fn merge_patch(live: &Value, body: &[u8]) -> Result<Value, PatchError> {
    let patch: Value = serde_json::from_slice(body).map_err(PatchError::Decode)?;
    if !patch.is_object() {
        return Err(PatchError::Malformed("Invalid JSON Patch".to_owned()));
    }
    let mut patched = live.clone();
    json_patch::merge(&mut patched, &patch);
    Ok(patched)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{PatchType, patch};

    fn patched(live: &Value, body: &Value) -> Result<Value, PatchError> {
        patch(PatchType::Json, None, live, body.to_string().as_bytes())
    }

    #[test]
    fn operations_are_done_in_their_order() {
        let live = json!({"spec": {"replicas": 1, "list": ["a", "b"]}});
        let cases = [
            (json!([]), live.clone()),
            (
                json!([{"op": "add", "path": "/spec/list/1", "value": "c"}, {"op": "add", "path": "/spec/list/-", "value": "d"}]),
                json!({"spec": {"replicas": 1, "list": ["a", "c", "b", "d"]}}),
            ),
            (
                json!([{"op": "replace", "path": "/spec/replicas", "value": 2}, {"op": "remove", "path": "/spec/list"}]),
                json!({"spec": {"replicas": 2}}),
            ),
            (
                json!([{"op": "test", "path": "/spec/replicas", "value": 1}, {"op": "move", "from": "/spec/list", "path": "/list"}]),
                json!({"spec": {"replicas": 1}, "list": ["a", "b"]}),
            ),
            (
                json!([{"op": "copy", "from": "/spec/replicas", "path": "/a~1b"}]),
                json!({"spec": {"replicas": 1, "list": ["a", "b"]}, "a/b": 1}),
            ),
            // Upstream's replace does not ask whether there is anything to replace.
            (
                json!([{"op": "replace", "path": "/metadata", "value": {}}]),
                json!({"spec": {"replicas": 1, "list": ["a", "b"]}, "metadata": {}}),
            ),
        ];
        for (body, expected) in cases {
            assert_eq!(patched(&live, &body).unwrap(), expected, "{body}");
        }
    }

    #[test]
    fn what_is_no_patch_of_the_document_is_an_error_of_the_client() {
        let live = json!({"spec": {"list": []}});
        for (body, code) in [
            (json!({}), 400),
            (json!("x"), 400),
            (json!([{"op": "jump", "path": "/spec"}]), 422),
            (json!([{"op": "add", "value": 1}]), 422),
            (json!([{"op": "add", "path": "spec", "value": 1}]), 422),
            (json!([{"op": "remove", "path": "/none"}]), 422),
            (json!([{"op": "remove", "path": "/spec/list/0"}]), 422),
            (json!([{"op": "remove", "path": "/spec/list/-"}]), 422),
            (
                json!([{"op": "move", "from": "/spec/list/-", "path": "/x"}]),
                422,
            ),
            (json!([{"op": "remove", "path": ""}]), 422),
            (json!([{"op": "add", "path": "/none/a", "value": 1}]), 422),
            (json!([{"op": "copy", "from": "/none", "path": "/a"}]), 422),
            (json!([{"op": "test", "path": "/spec", "value": 1}]), 422),
            (
                json!([{"op": "move", "from": "/spec", "path": "/spec/a"}]),
                422,
            ),
        ] {
            assert_eq!(
                patched(&live, &body).unwrap_err().status().0,
                code,
                "{body}"
            );
        }
        let merge = |body: &[u8]| {
            patch(PatchType::Merge, None, &live, body)
                .unwrap_err()
                .status()
                .0
        };
        for body in [&b"[]"[..], b"1", b"", b"{"] {
            assert_eq!(merge(body), 400);
        }
    }

    /// SEC-API-04, CVE-2019-11253 and CVE-2019-1002100.
    #[test]
    fn a_patch_that_costs_too_much_is_refused() {
        let began = std::time::Instant::now();
        let live = json!({"a": ["x".repeat(1024)], "deep": {}, "list": vec![0; 100_000]});
        let times = |operation: Value| Value::Array(vec![operation; MAX_OPERATIONS]);
        let code = |body: &Value| patched(&live, body).unwrap_err().status().0;

        let mut many = times(json!({"op": "test", "path": "/deep", "value": {}}));
        assert!(patched(&live, &many).is_ok());
        many.as_array_mut().unwrap().push(json!({}));
        assert_eq!(code(&many), 413);

        // Twice as large each time.
        assert_eq!(
            code(&times(json!({"op": "copy", "from": "/a", "path": "/a/-"}))),
            422
        );
        // Once deeper each time.
        assert_eq!(
            code(&times(
                json!({"op": "copy", "from": "/deep", "path": "/deep/a"})
            )),
            413
        );
        let mut moves = Vec::new();
        for _ in 0..MAX_OPERATIONS / 3 {
            moves.push(json!({"op": "add", "path": "/b", "value": {}}));
            moves.push(json!({"op": "move", "from": "/deep", "path": "/b/a"}));
            moves.push(json!({"op": "move", "from": "/b", "path": "/deep"}));
        }
        assert_eq!(code(&moves.into()), 413);
        // All of a long list moved each time.
        assert_eq!(
            code(&times(json!({"op": "add", "path": "/list/0", "value": 0}))),
            413
        );
        assert!(
            began.elapsed() < std::time::Duration::from_secs(60),
            "{:?}",
            began.elapsed()
        );
    }

    #[test]
    fn a_value_that_is_moved_about_stays_as_deep_as_it_is() {
        let live = json!({"a": {"b": 1}, "x": {}});
        let mut moves = Vec::new();
        for _ in 0..MAX_OPERATIONS / 2 {
            moves.push(json!({"op": "move", "from": "/a", "path": "/x/c"}));
            moves.push(json!({"op": "move", "from": "/x/c", "path": "/a"}));
        }
        assert_eq!(patched(&live, &moves.into()).unwrap(), live);
    }

    #[test]
    fn what_nests_too_deep_is_no_patch() {
        let deep = |open: &str, close: &str| open.repeat(100_000) + &close.repeat(100_000);
        let live = json!({"a": {}});
        for kind in [PatchType::Json, PatchType::Merge] {
            for body in [
                deep("[", "]"),
                deep("{\"a\":", "}"),
                deep("[{\"op\":", "}]"),
            ] {
                let error = patch(kind, None, &live, body.as_bytes()).unwrap_err();
                assert_eq!(error.status().0, 400);
            }
        }
        // A path alone makes nothing, however long it is.
        let path = "/a".repeat(100_000);
        let body = json!([{"op": "add", "path": path, "value": 1}]);
        assert_eq!(patched(&live, &body).unwrap_err().status().0, 413);
    }

    #[test]
    fn a_merge_patch_takes_away_what_is_null() {
        let live = json!({"a": {"b": 1, "c": [1, 2]}, "d": 1});
        let body = json!({"a": {"b": null, "c": [3], "e": {"f": null, "g": 1}}});
        let merged = patch(PatchType::Merge, None, &live, body.to_string().as_bytes()).unwrap();
        assert_eq!(merged, json!({"a": {"c": [3], "e": {"g": 1}}, "d": 1}));
    }
}
