//! Several managers write to one object.

use berth_schema::{GroupVersionKind, Schema};
use serde_json::json;

use super::{
    owners::{ANCIENT, MAX_UPDATE_MANAGERS},
    *,
};
use crate::{FieldSet, OneVersion, keep_times};

const NOW: &str = "2026-01-01T00:00:00Z";
const LATER: &str = "2026-01-01T00:01:00Z";

/// A Deployment that several write to.
struct World {
    kind: GroupVersionKind,
    reset: FieldSet,
    live: Option<Value>,
    now: &'static str,
    subresource: &'static str,
}

impl World {
    fn new() -> Self {
        Self {
            kind: GroupVersionKind::new("apps/v1", "Deployment"),
            reset: FieldSet::default(),
            live: None,
            now: NOW,
            subresource: "",
        }
    }

    fn write<'a>(&'a self, manager: &'a str) -> Write<'a> {
        let schema = Schema::built_in();
        Write {
            schema: Some((schema, schema.kind(&self.kind).unwrap())),
            kind: &self.kind,
            versions: &OneVersion,
            subresource: self.subresource,
            reset: &self.reset,
            manager,
            now: self.now,
        }
    }

    fn object(&self, object: &Value) -> Value {
        let mut full = json!({"apiVersion": "apps/v1", "kind": "Deployment"});
        for (name, value) in object.as_object().unwrap() {
            full[name] = value.clone();
        }
        full
    }

    fn apply(&mut self, manager: &str, force: Force, object: Value) -> Result<(), PatchError> {
        let object = self.object(&object);
        let applied = apply(&self.write(manager), self.live.as_ref(), &object, force)?;
        self.live = Some(applied);
        Ok(())
    }

    fn update(&mut self, manager: &str, change: impl FnOnce(&mut Value)) {
        let mut object = self.live.clone().unwrap_or_else(|| self.object(&json!({})));
        change(&mut object);
        track_update(
            &self.write(manager),
            self.live.clone().as_mut(),
            &mut object,
        );
        self.live = Some(object);
    }

    fn live(&self) -> &Value {
        self.live.as_ref().unwrap()
    }

    fn owned(&self, manager: &str) -> Value {
        let entries = managed::entries(self.live()).cloned().unwrap_or(json!([]));
        let entries = entries.as_array().unwrap();
        let entry = entries.iter().find(|entry| entry["manager"] == manager);
        entry.map_or(Value::Null, |entry| entry["fieldsV1"].clone())
    }
}

fn containers(images: &[(&str, &str)]) -> Value {
    let containers: Vec<Value> = images
        .iter()
        .map(|(name, image)| json!({"name": name, "image": image}))
        .collect();
    json!({"spec": {"template": {"spec": {"containers": containers}}}})
}

#[test]
fn what_is_applied_is_owned_and_what_is_no_longer_applied_goes() {
    let mut world = World::new();
    let labels = |labels: Value| json!({"metadata": {"name": "x", "labels": labels}, "spec": {"replicas": 1}});
    world
        .apply("a", Force::No, labels(json!({"one": "1", "two": "2"})))
        .unwrap();
    assert_eq!(
        world.owned("a"),
        json!({"f:metadata": {"f:labels": {"f:one": {}, "f:two": {}}}, "f:spec": {"f:replicas": {}}})
    );
    let entry = &world.live()["metadata"]["managedFields"][0];
    assert_eq!(entry["operation"], "Apply");
    assert_eq!(entry["apiVersion"], "apps/v1");
    assert_eq!(entry["time"], NOW);
    assert_eq!(entry["fieldsType"], "FieldsV1");

    world
        .apply("a", Force::No, labels(json!({"two": "2"})))
        .unwrap();
    assert_eq!(world.live()["metadata"]["labels"], json!({"two": "2"}));
    assert_eq!(
        world.owned("a")["f:metadata"],
        json!({"f:labels": {"f:two": {}}})
    );
}

#[test]
fn applying_the_same_again_changes_nothing_times_included() {
    let mut world = World::new();
    let object = containers(&[("a", "a:1"), ("b", "b:1")]);
    world.apply("kubectl", Force::No, object.clone()).unwrap();
    let before = world.live().clone();
    world.now = LATER;
    world.apply("kubectl", Force::No, object).unwrap();
    assert_eq!(*world.live(), before);
}

/// Of a kind without a schema; structured-merge-diff leaves null until the same is applied a second time.
#[test]
fn an_empty_map_that_is_applied_stays_though_all_that_was_in_it_goes() {
    let world = World::new();
    let write = Write {
        schema: None,
        ..world.write("a")
    };
    let full = world.object(&json!({"spec": {"x": {"gone": 1}, "l": {"k": {}}}}));
    let empty = world.object(&json!({"spec": {"x": {}, "l": {}}}));
    let live = apply(&write, None, &full, Force::No).unwrap();
    let once = apply(&write, Some(&live), &empty, Force::No).unwrap();
    assert_eq!(once["spec"], json!({"x": {}, "l": {}}));
    let twice = apply(&write, Some(&once), &empty, Force::No).unwrap();
    assert_eq!(twice, once);
}

#[test]
fn what_has_no_metadata_to_keep_its_owners_in_is_not_applied() {
    let world = World::new();
    let write = Write {
        schema: None,
        ..world.write("a")
    };
    let object = world.object(&json!({"metadata": [{"name": "a"}], "x": null}));
    let error = apply(&write, None, &object, Force::Yes).unwrap_err();
    assert!(
        error.to_string().contains("metadata must be an object"),
        "{error}"
    );
    assert_eq!(error.status().0, 400);
}

#[test]
fn a_field_of_two_appliers_stays_until_neither_applies_it() {
    let mut world = World::new();
    world
        .apply("a", Force::No, containers(&[("a", "a:1"), ("b", "b:1")]))
        .unwrap();
    world
        .apply("b", Force::No, containers(&[("b", "b:1")]))
        .unwrap();
    world
        .apply("a", Force::No, containers(&[("a", "a:1")]))
        .unwrap();
    assert_eq!(
        world.live()["spec"]["template"]["spec"]["containers"],
        json!([{"name": "a", "image": "a:1"}, {"name": "b", "image": "b:1"}])
    );
    // And an empty configuration gives all of it up.
    world.apply("b", Force::No, json!({})).unwrap();
    assert_eq!(
        world.live()["spec"]["template"]["spec"]["containers"],
        json!([{"name": "a", "image": "a:1"}])
    );
    assert_eq!(world.owned("b"), Value::Null);
}

#[test]
fn a_conflict_names_who_owns_what_and_force_takes_it() {
    let mut world = World::new();
    world
        .apply("a", Force::No, containers(&[("web", "web:1")]))
        .unwrap();
    world.update("b", |object| object["spec"]["replicas"] = json!(3));
    let mut object = containers(&[("web", "web:2")]);
    let error = world.apply("c", Force::No, object.clone()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "Apply failed with 1 conflict: conflict with \"a\": .spec.template.spec.containers[name=\"web\"].image"
    );
    assert_eq!(error.status(), (409, "Conflict"));

    object["spec"]["replicas"] = json!(4);
    let error = world.apply("c", Force::No, object.clone()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "Apply failed with 2 conflicts: conflicts with \"a\":\n\
         - .spec.template.spec.containers[name=\"web\"].image\n\
         conflicts with \"b\" using apps/v1:\n- .spec.replicas"
    );
    let PatchError::Conflicts(conflicts) = error else {
        panic!("no conflicts");
    };
    assert_eq!(conflicts.0[1].field(), ".spec.replicas");
    assert_eq!(
        conflicts.0[1].message(),
        "conflict with \"b\" using apps/v1"
    );

    world.apply("c", Force::Yes, object).unwrap();
    assert_eq!(world.live()["spec"]["replicas"], 4);
    assert_eq!(world.owned("b"), Value::Null);
    assert_eq!(
        world.owned("a"),
        json!({"f:spec": {"f:template": {"f:spec": {"f:containers": {
            "k:{\"name\":\"web\"}": {".": {}, "f:name": {}},
        }}}}})
    );
}

#[test]
fn an_update_owns_what_it_changes_and_no_more() {
    let mut world = World::new();
    world.update("creator", |object| {
        object["metadata"] = json!({"name": "x", "uid": "1", "labels": {"a": "b"}});
        object["spec"] = json!({"replicas": 1, "paused": true});
    });
    world.now = LATER;
    world.update("other", |object| {
        object["spec"]["replicas"] = json!(2);
        object["metadata"]["resourceVersion"] = json!("7");
    });
    assert_eq!(
        world.owned("creator"),
        json!({"f:metadata": {"f:labels": {".": {}, "f:a": {}}}, "f:spec": {".": {}, "f:paused": {}}})
    );
    assert_eq!(world.owned("other"), json!({"f:spec": {"f:replicas": {}}}));
    // Nothing changed: nobody's time moves.
    let before = world.live().clone();
    world.now = "2026-01-01T00:02:00Z";
    world.update("third", |_| {});
    assert_eq!(*world.live(), before);
    // Its own entry grows.
    world.update("other", |object| object["spec"]["paused"] = json!(false));
    // `spec` itself: a set has "." only where it has more, too.
    assert_eq!(world.owned("creator")["f:spec"], json!({}));
    assert_eq!(
        world.owned("other"),
        json!({"f:spec": {"f:paused": {}, "f:replicas": {}}})
    );
}

#[test]
fn a_subresource_has_entries_of_its_own_and_what_an_endpoint_resets_is_nobodys() {
    let mut world = World::new();
    world.reset = FieldSet::of_fields(&[&["status"]]);
    world.update("m", |object| {
        object["spec"] = json!({"replicas": 1});
        object["status"] = json!({"replicas": 9});
    });
    assert_eq!(
        world.owned("m"),
        json!({"f:spec": {".": {}, "f:replicas": {}}})
    );
    world.subresource = "status";
    world.reset = FieldSet::of_fields(&[&["spec"]]);
    world.update("m", |object| object["status"]["replicas"] = json!(1));
    let entries = world.live()["metadata"]["managedFields"]
        .as_array()
        .unwrap();
    assert_eq!(entries.len(), 2);
    assert_eq!(entries[1]["subresource"], "status");
    assert_eq!(
        entries[1]["fieldsV1"],
        json!({"f:status": {"f:replicas": {}}})
    );
    // And what it says of managedFields does not count.
    world.update("m", |object| {
        object["metadata"]["managedFields"] = json!([{}])
    });
    assert_eq!(
        world.live()["metadata"]["managedFields"]
            .as_array()
            .unwrap()
            .len(),
        2
    );
}

#[test]
fn a_client_that_forgets_managed_fields_loses_none_and_one_that_resets_them_does() {
    for (sent, kept) in [
        (Value::Null, true),
        (json!([{"manager": "x"}]), true),
        (json!("x"), true),
        (json!([]), false),
        (json!([{}]), false),
    ] {
        let mut world = World::new();
        world.update("a", |object| object["spec"] = json!({"replicas": 1}));
        let before = world.owned("a");
        world.update("b", |object| {
            object["metadata"]["managedFields"] = sent.clone()
        });
        let after = if kept { before } else { Value::Null };
        assert_eq!(world.owned("a"), after, "{sent}");
    }
    // Who resets them starts anew with the next apply.
    let mut world = World::new();
    world.update("a", |object| object["spec"] = json!({"replicas": 1}));
    world.update("a", |object| {
        object["metadata"]["managedFields"] = json!([{}])
    });
    world.update("a", |object| object["spec"]["paused"] = json!(true));
    assert_eq!(managed::entries(world.live()), None);
    world
        .apply("b", Force::No, json!({"spec": {"replicas": 1}}))
        .unwrap();
    assert_eq!(
        world.owned("before-first-apply"),
        json!({"f:spec": {".": {}, "f:paused": {}, "f:replicas": {}}})
    );
}

#[test]
fn only_ten_update_managers_are_kept_apart() {
    let mut world = World::new();
    let times: Vec<String> = (10..26)
        .map(|at| format!("2026-01-01T00:00:{at}Z"))
        .collect();
    for (at, time) in times.iter().enumerate() {
        world.now = String::leak(time.clone());
        world.update(&format!("m{at:02}"), |object| {
            object["metadata"]["labels"][format!("l{at:02}")] = json!("x");
        });
    }
    let entries = world.live()["metadata"]["managedFields"]
        .as_array()
        .unwrap();
    assert_eq!(entries.len(), MAX_UPDATE_MANAGERS);
    assert_eq!(entries[0]["manager"], ANCIENT);
    assert_eq!(entries[0]["time"], "2026-01-01T00:00:16Z");
    let ancient = world.owned(ANCIENT)["f:metadata"]["f:labels"].clone();
    assert_eq!(ancient.as_object().unwrap().len(), 8, "{ancient}");
}

#[test]
fn kubectl_takes_over_from_client_side_apply() {
    let applied = |replicas: u64| json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "x"}, "spec": {"replicas": replicas}});
    let of_client = |replicas: u64| {
        let mut world = World::new();
        world.update("kubectl-client-side-apply", |object| {
            *object = applied(1);
            object["metadata"]["annotations"][last_applied_annotation()] =
                applied(1).to_string().into();
        });
        if replicas != 1 {
            world.update("someone", |object| {
                object["spec"]["replicas"] = json!(replicas)
            });
        }
        world
    };
    let mut world = of_client(1);
    let other = applied(2);
    assert!(
        world
            .apply("someone-else", Force::No, other.clone())
            .is_err()
    );
    world.apply("kubectl", Force::No, other.clone()).unwrap();
    assert_eq!(world.live()["spec"]["replicas"], 2);
    let annotation = &world.live()["metadata"]["annotations"][last_applied_annotation()];
    let annotation: Value = serde_json::from_str(annotation.as_str().unwrap()).unwrap();
    assert_eq!(annotation, other);

    // What somebody has changed since is his.
    let error = of_client(5).apply("kubectl", Force::No, other).unwrap_err();
    assert!(
        error.to_string().contains("\"someone\" using apps/v1"),
        "{error}"
    );
}

fn last_applied_annotation() -> &'static str {
    "kubectl.kubernetes.io/last-applied-configuration"
}

#[test]
fn what_can_not_be_applied_says_why() {
    let mut world = World::new();
    let cases = [
        (
            json!({"spec": {"replicass": 1}}),
            ".spec.replicass: field not declared in schema",
        ),
        (
            json!({"spec": {"replicas": "1"}}),
            ".spec.replicas: expected numeric (int or float), got string",
        ),
        (
            json!({"metadata": {"name": 1}}),
            ".metadata.name: expected string, got &value.valueUnstructured{Value:1}",
        ),
        (
            json!({"spec": {"paused": "x"}}),
            ".spec.paused: expected boolean, got &{x}",
        ),
        (json!({"spec": []}), ".spec: expected map, got &{[]}"),
        (
            containers(&[("a", "x"), ("a", "y")]),
            "duplicate entries for key [name=\"a\"]",
        ),
        (
            json!({"metadata": {"finalizers": ["a", "a"]}}),
            "duplicate entries for key [=\"a\"]",
        ),
        (
            json!({"kind": "Pod"}),
            "invalid object type: apps/v1, Kind=Pod",
        ),
        (
            json!({"apiVersion": "v1"}),
            "invalid object type: /v1, Kind=Deployment",
        ),
        (
            json!({"metadata": {"managedFields": []}}),
            "metadata.managedFields must be nil",
        ),
    ];
    for (object, expected) in cases {
        let error = world.apply("a", Force::Yes, object.clone()).unwrap_err();
        assert!(error.to_string().contains(expected), "{object}: {error}");
        assert_eq!(error.status().0, 400, "{object}");
        assert!(world.live.is_none());
    }
}

#[test]
fn times_alone_are_no_change() {
    let mut world = World::new();
    world.update("a", |object| object["spec"] = json!({"replicas": 1}));
    let live = world.live().clone();
    let mut new = live.clone();
    new["metadata"]["managedFields"][0]["time"] = LATER.into();
    let changed = {
        let mut changed = new.clone();
        changed["spec"]["replicas"] = json!(2);
        changed
    };
    keep_times(&live, &mut new);
    assert_eq!(new, live);
    let mut kept = changed.clone();
    keep_times(&live, &mut kept);
    assert_eq!(kept, changed);
}

#[test]
fn a_manager_is_named_by_the_request_or_by_its_user_agent() {
    assert_eq!(manager_name("m", "kubectl/v1"), "m");
    assert_eq!(manager_name("", "kubectl/v1.36 (linux)"), "kubectl");
    assert_eq!(manager_name("", ""), "");
    assert_eq!(manager_name("", "a\u{7}b"), "ab");
    assert_eq!(manager_name("", &"é".repeat(100)).len(), MAX_MANAGER_BYTES);
    let mut world = World::new();
    world.update("", |object| object["spec"] = json!({"replicas": 1}));
    assert_ne!(world.owned("unknown"), Value::Null);
}
