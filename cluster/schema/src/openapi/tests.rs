use std::collections::HashSet;

use serde_json::{Value, json};

use super::*;
use crate::GroupVersionKind;

const ALL: &[&str] = &[
    "create",
    "delete",
    "deletecollection",
    "get",
    "list",
    "patch",
    "update",
    "watch",
];
const SOME: &[&str] = &["get", "patch", "update"];

fn deployments() -> [Resource<'static>; 1] {
    [Resource {
        kind: "Deployment",
        plural: "deployments",
        namespaced: true,
        verbs: ALL,
        subresources: &[
            Subresource {
                name: "scale",
                verbs: SOME,
                kind: Some(("autoscaling", "v1", "Scale")),
            },
            Subresource {
                name: "status",
                verbs: SOME,
                kind: None,
            },
        ],
        custom: None,
    }]
}

fn apps<'a>(resources: &'a [Resource<'a>]) -> GroupVersion<'a> {
    GroupVersion {
        group: "apps",
        version: "v1",
        resources,
    }
}

/// Every $ref of a document.
fn references<'a>(value: &'a Value, found: &mut HashSet<&'a str>) {
    match value {
        Value::Object(object) => {
            found.extend(object.get("$ref").and_then(Value::as_str));
            object.values().for_each(|value| references(value, found));
        }
        Value::Array(list) => list.iter().for_each(|value| references(value, found)),
        _ => {}
    }
}

fn assert_whole(document: &Value) {
    let mut found = HashSet::new();
    references(document, &mut found);
    assert!(found.len() > 5, "{found:?}");
    for reference in found {
        let pointer = reference.strip_prefix('#').expect("of the same document");
        assert!(document.pointer(pointer).is_some(), "{reference}");
    }
}

#[test]
fn a_document_has_what_kubectl_looks_for() {
    let resources = deployments();
    let document = apps(&resources).document();
    assert_whole(&document);
    let item = "/apis/apps/v1/namespaces/{namespace}/deployments/{name}";
    let patch = &document["paths"][item]["patch"];
    assert_eq!(patch["x-kubernetes-action"], "patch");
    assert_eq!(
        patch["x-kubernetes-group-version-kind"],
        json!({"group": "apps", "version": "v1", "kind": "Deployment"})
    );
    let content = &patch["requestBody"]["content"];
    assert!(
        content
            .get("application/strategic-merge-patch+json")
            .is_some()
    );
    let parameters = patch["parameters"].as_array().expect("parameters");
    for name in ["fieldValidation", "dryRun"] {
        assert!(parameters.iter().any(|one| one["name"] == name), "{name}");
    }
    let scale = &document["paths"][format!("{item}/scale")]["get"];
    assert_eq!(scale["x-kubernetes-group-version-kind"]["kind"], "Scale");
    assert!(document["paths"].get("/apis/apps/v1/deployments").is_some());
    let schemas = &document["components"]["schemas"];
    let pod_spec = &schemas["io.k8s.api.core.v1.PodSpec"];
    assert_eq!(
        pod_spec["properties"]["containers"],
        json!({
            "type": "array", "items": {"$ref": "#/components/schemas/io.k8s.api.core.v1.Container"},
            "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"],
            "x-kubernetes-patch-merge-key": "name", "x-kubernetes-patch-strategy": "merge",
        })
    );
    assert_eq!(pod_spec["required"], json!(["containers"]));
    let spec = &schemas["io.k8s.api.apps.v1.DeploymentSpec"]["properties"];
    assert_eq!(
        spec["strategy"],
        json!({
            "allOf": [{"$ref": "#/components/schemas/io.k8s.api.apps.v1.DeploymentStrategy"}],
            "x-kubernetes-patch-strategy": "retainKeys",
        })
    );
    assert_eq!(
        spec["replicas"],
        json!({"type": "integer", "format": "int32"})
    );
    let kinds = &schemas["io.k8s.api.apps.v1.Deployment"]["x-kubernetes-group-version-kind"];
    assert_eq!(
        *kinds,
        json!([{"group": "apps", "version": "v1", "kind": "Deployment"}])
    );
}

#[test]
fn operation_ids_are_different_ones() {
    let resources = deployments();
    let document = apps(&resources).document();
    let paths = document["paths"].as_object().expect("paths");
    let mut ids = HashSet::new();
    for item in paths
        .values()
        .flat_map(|item| item.as_object().expect("an item").values())
    {
        if let Some(id) = item.get("operationId") {
            assert!(ids.insert(id), "{id}");
        }
    }
    assert!(ids.len() >= 14, "{ids:?}");
}

#[test]
fn a_custom_resource_is_in_it_with_its_own_schema_and_no_strategic_merge() {
    let custom = CustomSchema::parse(
        GroupVersionKind::new("example.com/v1", "Widget"),
        json!({"type": "object", "properties": {"spec": {"type": "object", "properties": {
            "size": {"type": "integer"}}}}}),
    );
    let resources = [Resource {
        kind: "Widget",
        plural: "widgets",
        namespaced: false,
        verbs: ALL,
        subresources: &[],
        custom: Some(&custom),
    }];
    let version = GroupVersion {
        group: "example.com",
        version: "v1",
        resources: &resources,
    };
    let document = version.document();
    assert_whole(&document);
    let content = document["paths"]["/apis/example.com/v1/widgets/{name}"]["patch"]["requestBody"]
        ["content"]
        .as_object()
        .expect("content");
    assert!(!content.contains_key("application/strategic-merge-patch+json"));
    assert!(content.contains_key("application/merge-patch+json"));
    let schema = &document["components"]["schemas"]["com.example.v1.Widget"];
    assert_eq!(
        schema["properties"]["spec"]["properties"]["size"],
        json!({"type": "integer"})
    );
    assert_eq!(
        schema["x-kubernetes-group-version-kind"][0]["kind"],
        "Widget"
    );
}

#[test]
fn a_hash_changes_with_what_is_served() {
    let resources = deployments();
    let all = apps(&resources);
    assert_eq!(all.hash(), all.hash());
    assert_eq!(all.hash().len(), 64);
    let none = apps(&[]);
    assert_ne!(all.hash(), none.hash());
    let index = index(&[
        all,
        GroupVersion {
            group: "",
            version: "v1",
            resources: &[],
        },
    ]);
    let url = index["paths"]["apis/apps/v1"]["serverRelativeURL"].as_str();
    assert_eq!(
        url,
        Some(&*format!("/openapi/v3/apis/apps/v1?hash={}", all.hash()))
    );
    assert!(index["paths"].get("api/v1").is_some());
}

#[test]
fn every_built_in_kind_makes_a_whole_document() {
    let mut kinds: Vec<_> = crate::Schema::built_in().kinds.keys().collect();
    kinds.sort();
    for kind in kinds {
        let resources = [Resource {
            kind: &kind.kind,
            plural: "things",
            namespaced: true,
            verbs: ALL,
            subresources: &[],
            custom: None,
        }];
        let version = GroupVersion {
            group: &kind.group,
            version: &kind.version,
            resources: &resources,
        };
        assert_whole(&version.document());
    }
}
