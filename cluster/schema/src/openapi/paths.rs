//! Paths and their operations.

use serde_json::{Map, Value, json};

use super::{GroupVersion, Resource, schemas};

/// Content types of PATCH; custom resources have no strategic merge.
const PATCHES: [&str; 4] = [
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/apply-patch+yaml",
    "application/strategic-merge-patch+json",
];

pub(super) fn paths(version: &GroupVersion<'_>) -> Map<String, Value> {
    let mut paths = Map::new();
    for resource in version.resources {
        let kind = (version.group, version.version, resource.kind);
        let has = |verb: &str| resource.verbs.contains(&verb);
        let base = format!("/{}", version.path());
        let plural = resource.plural;
        let collection = match resource.namespaced {
            true => format!("{base}/namespaces/{{namespace}}/{plural}"),
            false => format!("{base}/{plural}"),
        };
        let one = |method, action| (method, Operation::new(action, kind, resource));
        let mut operations = Vec::new();
        if has("list") {
            operations.push(one("get", "list"));
        }
        if has("create") {
            operations.push(one("post", "post"));
        }
        if has("deletecollection") {
            operations.push(one("delete", "deletecollection"));
        }
        add(&mut paths, &collection, resource.namespaced, operations);
        if resource.namespaced && has("list") {
            let everywhere = format!("{base}/{plural}");
            add(&mut paths, &everywhere, false, vec![one("get", "list")]);
        }
        let mut operations = Vec::new();
        for (verb, method, action) in [
            ("get", "get", "get"),
            ("update", "put", "put"),
            ("patch", "patch", "patch"),
            ("delete", "delete", "delete"),
        ] {
            if has(verb) {
                operations.push(one(method, action));
            }
        }
        let item = format!("{collection}/{{name}}");
        add(&mut paths, &item, resource.namespaced, operations);
        for subresource in resource.subresources {
            let kind = subresource.kind.unwrap_or(kind);
            let mut operations = Vec::new();
            for verb in subresource.verbs {
                let (method, action) = match *verb {
                    "get" => ("get", "get"),
                    "update" => ("put", "put"),
                    "patch" => ("patch", "patch"),
                    "create" => ("post", "post"),
                    "delete" => ("delete", "delete"),
                    _ => continue,
                };
                operations.push((method, Operation::new(action, kind, resource)));
            }
            let path = format!("{item}/{}", subresource.name);
            add(&mut paths, &path, resource.namespaced, operations);
        }
    }
    paths
}

struct Operation<'a> {
    action: &'static str,
    kind: (&'a str, &'a str, &'a str),
    resource: &'a Resource<'a>,
}

impl<'a> Operation<'a> {
    fn new(
        action: &'static str,
        kind: (&'a str, &'a str, &'a str),
        resource: &'a Resource<'a>,
    ) -> Self {
        Operation {
            action,
            kind,
            resource,
        }
    }

    fn document(&self, path: &str) -> Value {
        let (group, version, kind) = self.kind;
        let own = self.kind.2 == self.resource.kind;
        let custom = self.resource.custom.filter(|_| own);
        let reference = schemas::reference(group, version, kind, custom.is_some());
        let parameters: &[(&str, &str)] = match self.action {
            "list" => &[
                ("allowWatchBookmarks", "boolean"),
                ("continue", "string"),
                ("fieldSelector", "string"),
                ("labelSelector", "string"),
                ("limit", "integer"),
                ("resourceVersion", "string"),
                ("resourceVersionMatch", "string"),
                ("sendInitialEvents", "boolean"),
                ("timeoutSeconds", "integer"),
                ("watch", "boolean"),
            ],
            "post" | "put" => &[
                ("dryRun", "string"),
                ("fieldManager", "string"),
                ("fieldValidation", "string"),
            ],
            "patch" => &[
                ("dryRun", "string"),
                ("fieldManager", "string"),
                ("fieldValidation", "string"),
                ("force", "boolean"),
            ],
            "delete" | "deletecollection" => &[
                ("dryRun", "string"),
                ("gracePeriodSeconds", "integer"),
                ("orphanDependents", "boolean"),
                ("propagationPolicy", "string"),
            ],
            _ => &[],
        };
        let parameters: Vec<_> = parameters
            .iter()
            .map(|(name, ty)| json!({"name": name, "in": "query", "schema": {"type": ty}}))
            .collect();
        let content = |types: &[&str], schema: &Value| -> Value {
            let of = |ty: &&str| ((*ty).to_string(), json!({ "schema": schema }));
            types.iter().map(of).collect::<Map<_, _>>().into()
        };
        let json_only = ["application/json"];
        let body = match self.action {
            "post" | "put" => Some(content(&["*/*"], &reference)),
            "patch" => {
                let types = match self.resource.custom {
                    Some(_) => &PATCHES[..3],
                    None => &PATCHES[..],
                };
                Some(content(types, &schemas::meta("Patch")))
            }
            "delete" | "deletecollection" => {
                Some(content(&["*/*"], &schemas::meta("DeleteOptions")))
            }
            _ => None,
        };
        let answer = match self.action {
            "list" => schemas::reference(group, version, &format!("{kind}List"), custom.is_some()),
            "delete" | "deletecollection" => schemas::meta("Status"),
            _ => reference,
        };
        let mut operation = json!({
            "operationId": self.id(path),
            "x-kubernetes-action": self.action,
            "x-kubernetes-group-version-kind": {"group": group, "version": version, "kind": kind},
            "parameters": parameters,
            "responses": {"200": {"description": "OK", "content": content(&json_only, &answer)}},
        });
        if let Some(body) = body {
            operation["requestBody"] = json!({ "content": body });
        }
        operation
    }

    /// Of each operation in a document another.
    fn id(&self, path: &str) -> String {
        let mut id = String::from(self.action);
        for part in path.split('/').filter(|part| !part.is_empty()) {
            let part = part.trim_matches(|c| c == '{' || c == '}');
            let mut letters = part.chars().filter(char::is_ascii_alphanumeric);
            id.extend(letters.next().map(|first| first.to_ascii_uppercase()));
            id.extend(letters);
        }
        id
    }
}

fn add(
    paths: &mut Map<String, Value>,
    path: &str,
    namespaced: bool,
    operations: Vec<(&'static str, Operation<'_>)>,
) {
    if operations.is_empty() {
        return;
    }
    let mut item: Map<String, Value> = operations
        .iter()
        .map(|(method, operation)| ((*method).to_string(), operation.document(path)))
        .collect();
    let mut parameters = Vec::new();
    for (name, there) in [("name", path.contains("{name}")), ("namespace", namespaced)] {
        if there {
            parameters.push(json!({
                "name": name, "in": "path", "required": true, "schema": {"type": "string"}
            }));
        }
    }
    if !parameters.is_empty() {
        item.insert("parameters".into(), parameters.into());
    }
    paths.insert(path.into(), item.into());
}
