//! The built-in kinds of Kubernetes 1.36, from text: a file a group and version under `table/`, a line a field.
//!
//! ```text
//! package io.k8s.api.core.v1          what OpenAPI puts before the names of its types
//! api-version v1                      of its kinds
//!
//! ContainerPort                       a type
//!   hostPort 2 int32                  a field: its name in JSON, its number in protobuf, its type
//!   protocol 4 string default="TCP"
//! Pod kind                            a type with apiVersion and kind (`kind=v1`: of this one, `kind=*`: of every one)
//!   metadata 1 meta.v1.ObjectMeta     a type of another package
//!   spec 2 PodSpec
//! PodSpec
//!   containers 2 []Container required zero keys=name merge-key=name merge
//!   nodeSelector 7 {}string atomic
//! Volume
//!   azureDisk 2.3 AzureDiskVolumeSource zero      number 3 of the message that is number 2: JSON has its fields inlined
//! ```
//!
//! | word | says |
//! |---|---|
//! | `required` | OpenAPI's required |
//! | `zero` | `0`, `false`, `""` and empty lists are kept ([`Field::keeps_zero`]) |
//! | `atomic`, `granular` | x-kubernetes-map-type, and `atomic` x-kubernetes-list-type of lists |
//! | `set`, `keys=a,b` | x-kubernetes-list-type set and map, with its keys |
//! | `merge`, `merge-key=a`, `replace`, `retain-keys` | how a strategic merge treats it |
//! | `default=JSON` | OpenAPI's default |

use std::{collections::HashMap, sync::LazyLock};

use sha2::{Digest, Sha256};

use crate::{
    Field, GroupVersionKind, IntegerFormat, ListKind, MapKind, ObjectId, ObjectType, Schema,
    StringFormat, Type,
};

/// One a group and version.
const TABLES: &[&str] = &[
    include_str!("table/admissionregistration.v1.txt"),
    include_str!("table/apiextensions.v1.txt"),
    include_str!("table/apiregistration.v1.txt"),
    include_str!("table/apps.v1.txt"),
    include_str!("table/authentication.v1.txt"),
    include_str!("table/authorization.v1.txt"),
    include_str!("table/autoscaling.v1.txt"),
    include_str!("table/autoscaling.v2.txt"),
    include_str!("table/batch.v1.txt"),
    include_str!("table/certificates.v1.txt"),
    include_str!("table/coordination.v1.txt"),
    include_str!("table/core.v1.txt"),
    include_str!("table/discovery.v1.txt"),
    include_str!("table/events.v1.txt"),
    include_str!("table/meta.v1.txt"),
    include_str!("table/metrics.v1beta1.txt"),
    include_str!("table/networking.v1.txt"),
    include_str!("table/node.v1.txt"),
    include_str!("table/policy.v1.txt"),
    include_str!("table/rbac.v1.txt"),
    include_str!("table/resource.v1.txt"),
    include_str!("table/scheduling.v1.txt"),
    include_str!("table/storage.v1.txt"),
];

static BUILT_IN: LazyLock<Schema> = LazyLock::new(|| {
    parse(TABLES).unwrap_or_else(|error| panic!("the table of built-in kinds: {error}"))
});

impl Schema {
    /// All built-in kinds. Read at its first use, in a few milliseconds.
    pub fn built_in() -> &'static Schema {
        &BUILT_IN
    }
}

/// Of the whole table: other numbers, another digest.
pub(crate) fn digest() -> &'static [u8; 32] {
    static DIGEST: LazyLock<[u8; 32]> = LazyLock::new(|| {
        let mut hash = Sha256::new();
        for table in TABLES {
            hash.update(table);
        }
        hash.finalize().into()
    });
    &DIGEST
}

fn parse(tables: &[&str]) -> Result<Schema, String> {
    let mut ids = HashMap::new();
    let mut every_version = Vec::new();
    for table in tables {
        let package = header(table, "package")?;
        every_version.extend(header(table, "api-version"));
        for line in types(table) {
            let name = line.split(' ').next().unwrap_or_default();
            let id = ObjectId(u32::try_from(ids.len()).map_err(|error| error.to_string())?);
            if ids.insert((short(package), name), id).is_some() {
                return Err(format!("{package}.{name} is there twice"));
            }
        }
    }
    let mut schema = Schema::default();
    for table in tables {
        let package = header(table, "package")?;
        for line in table.lines().skip_while(|line| !line.is_empty()) {
            if line.is_empty() {
                continue;
            }
            if let Some(line) = line.strip_prefix("  ") {
                let field = field(line, package, &ids)
                    .ok_or_else(|| format!("{package}: field {line:?}"))?;
                let object = schema.objects.last_mut().ok_or("a field of no type")?;
                object.fields.push(field);
                continue;
            }
            let mut words = line.split(' ');
            let name = words.next().unwrap_or_default();
            let mut kind = MapKind::Granular;
            let mut kinds = Vec::new();
            for word in words {
                match word.split_once('=').unwrap_or((word, "")) {
                    ("atomic", "") => kind = MapKind::Atomic,
                    ("kind", "") => kinds.push(header(table, "api-version")?),
                    ("kind", "*") => kinds.extend(&every_version),
                    ("kind", version) => kinds.push(version),
                    _ => return Err(format!("{package}: type {line:?}")),
                }
            }
            let id = schema.push(ObjectType {
                name: format!("{package}.{name}").into(),
                fields: Vec::new(),
                kind,
                preserve_unknown: false,
            });
            for version in kinds {
                schema
                    .kinds
                    .insert(GroupVersionKind::new(version, name), id);
            }
        }
    }
    for object in &mut schema.objects {
        object.fields.shrink_to_fit();
        if !object.fields.is_sorted_by(|a, b| a.name < b.name) {
            return Err(format!("{}: fields are not in order", object.name));
        }
    }
    schema.objects.shrink_to_fit();
    Ok(schema)
}

fn header<'a>(table: &'a str, name: &str) -> Result<&'a str, String> {
    table
        .lines()
        .take_while(|line| !line.is_empty())
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))
        .ok_or_else(|| format!("a table without {name}"))
}

fn types(table: &str) -> impl Iterator<Item = &str> {
    table
        .lines()
        .skip_while(|line| !line.is_empty())
        .filter(|line| !line.is_empty() && !line.starts_with(' '))
}

/// `core.v1` of `io.k8s.api.core.v1`.
fn short(package: &str) -> &str {
    package
        .rmatch_indices('.')
        .nth(1)
        .map_or(package, |(at, _)| &package[at + 1..])
}

type Ids<'a> = HashMap<(&'a str, &'a str), ObjectId>;

fn field(line: &str, package: &str, ids: &Ids<'_>) -> Option<Field> {
    let mut words = line.split(' ');
    let (name, numbers, ty) = (words.next()?, words.next()?, words.next()?);
    let mut field = Field::plain(name, Type::Any);
    if numbers != "-" {
        let numbers = numbers.split('.').map(str::parse);
        let mut numbers = numbers.collect::<Result<Vec<u32>, _>>().ok()?;
        field.number = numbers.pop()?;
        field.within = numbers.into();
    }
    let mut list = ListKind::Atomic;
    for word in words {
        match word.split_once('=').unwrap_or((word, "")) {
            ("required", "") => field.required = true,
            ("zero", "") => field.keeps_zero = true,
            ("atomic", "") => field.map_kind = Some(MapKind::Atomic),
            ("granular", "") => field.map_kind = Some(MapKind::Granular),
            ("set", "") => list = ListKind::Set,
            ("keys", keys) => {
                list = ListKind::Map {
                    keys: keys.split(',').map(Box::from).collect(),
                };
            }
            ("merge", "") => field.patch_merge = true,
            ("merge-key", key) => field.merge_key = Some(key.into()),
            ("replace", "") => field.patch_replace = true,
            ("retain-keys", "") => field.retain_keys = true,
            ("default", value) => field.default = Some(serde_json::from_str(value).ok()?),
            _ => return None,
        }
    }
    let map = field.map_kind.unwrap_or(MapKind::Granular);
    field.ty = of(ty, package, ids, list, map)?;
    if !matches!(field.ty, Type::Object(_)) {
        field.map_kind = None;
    }
    Some(field)
}

fn of(word: &str, package: &str, ids: &Ids<'_>, list: ListKind, map: MapKind) -> Option<Type> {
    let inner = |word| of(word, package, ids, ListKind::Atomic, MapKind::Granular).map(Box::new);
    Some(match word {
        "any" => Type::Any,
        "bool" => Type::Boolean,
        "int32" => Type::Integer(IntegerFormat::Int32),
        "int64" => Type::Integer(IntegerFormat::Int64),
        "number" => Type::Number,
        "string" => Type::String(StringFormat::Plain),
        "bytes" => Type::String(StringFormat::Bytes),
        "time" => Type::String(StringFormat::Time),
        "micro-time" => Type::String(StringFormat::MicroTime),
        "quantity" => Type::String(StringFormat::Quantity),
        "int-or-string" => Type::String(StringFormat::IntOrString),
        _ => {
            if let Some(word) = word.strip_prefix("[]") {
                Type::List(inner(word)?, list)
            } else if let Some(word) = word.strip_prefix("{}") {
                Type::Map(inner(word)?, map)
            } else {
                let key = word.rsplit_once('.').unwrap_or((short(package), word));
                Type::Object(*ids.get(&key)?)
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(api_version: &str, kind: &str) -> &'static ObjectType {
        let schema = Schema::built_in();
        let kind = GroupVersionKind::new(api_version, kind);
        schema.object(schema.kind(&kind).expect("a built-in kind"))
    }

    fn at<'a>(object: &'a ObjectType, path: &str) -> &'a Field
    where
        'static: 'a,
    {
        let (name, rest) = path.split_once('.').unwrap_or((path, ""));
        let field = object.field(name).expect("a field");
        if rest.is_empty() {
            return field;
        }
        let mut ty = &field.ty;
        while let Type::List(inner, _) | Type::Map(inner, _) = ty {
            ty = inner;
        }
        let Type::Object(id) = ty else {
            panic!("{name} is no object")
        };
        at(Schema::built_in().object(*id), rest)
    }

    #[test]
    fn a_few_facts_of_every_sort_are_as_upstream_has_them() {
        let deployment = object("apps/v1", "Deployment");
        assert_eq!(deployment.name.as_ref(), "io.k8s.api.apps.v1.Deployment");
        let containers = at(deployment, "spec.template.spec.containers");
        assert!(containers.required && containers.patch_merge && !containers.retain_keys);
        assert_eq!(containers.merge_key.as_deref(), Some("name"));
        assert_eq!(containers.number, 2);
        let replicas = at(deployment, "spec.replicas");
        assert!(replicas.keeps_zero && !replicas.required);
        assert!(at(deployment, "spec.strategy").retain_keys);
        let ports = at(deployment, "spec.template.spec.containers.ports");
        let Type::List(_, ListKind::Map { keys }) = &ports.ty else {
            panic!("{ports:?}")
        };
        assert_eq!(keys, &["containerPort".into(), "protocol".into()]);
        assert_eq!(ports.merge_key.as_deref(), Some("containerPort"));
        let protocol = at(deployment, "spec.template.spec.containers.ports.protocol");
        assert_eq!(protocol.default, Some("TCP".into()));
        let pod = object("v1", "Pod");
        assert_eq!(at(pod, "spec.hostPID").number, 12);
        let config_map = at(pod, "spec.volumes.configMap.name");
        assert_eq!((config_map.number, &*config_map.within), (1, &[1][..]));
        let empty_dir = at(pod, "spec.volumes.emptyDir");
        assert_eq!((empty_dir.number, &*empty_dir.within), (2, &[2][..]));
        assert_eq!(
            at(pod, "spec.containers.resources.limits").ty,
            Type::Map(
                Box::new(Type::String(StringFormat::Quantity)),
                MapKind::Granular
            )
        );
        assert_eq!(
            at(pod, "spec.nodeSelector").ty,
            Type::Map(Box::new(Type::String(StringFormat::Plain)), MapKind::Atomic)
        );
        let secret = object("v1", "Secret");
        assert_eq!(
            at(secret, "data").ty,
            Type::Map(
                Box::new(Type::String(StringFormat::Bytes)),
                MapKind::Granular
            )
        );
        let webhooks = object(
            "admissionregistration.k8s.io/v1",
            "ValidatingAdmissionPolicy",
        );
        let groups = at(webhooks, "spec.matchConstraints.resourceRules.apiGroups");
        assert_eq!((groups.number, &*groups.within), (1, &[2, 2][..]));
        assert!(at(object("policy/v1", "PodDisruptionBudget"), "spec.selector").patch_replace);
        let volume = object("v1", "PersistentVolume");
        assert_eq!(
            at(volume, "spec.claimRef").map_kind,
            Some(MapKind::Granular)
        );
        let Type::Object(id) = at(volume, "spec.claimRef").ty else {
            panic!("claimRef is an object")
        };
        assert_eq!(Schema::built_in().object(id).kind, MapKind::Atomic);
    }

    #[test]
    fn kinds_of_every_group_are_found_in_every_group() {
        for version in ["v1", "apps/v1", "rbac.authorization.k8s.io/v1"] {
            let name = &object(version, "DeleteOptions").name;
            assert_eq!(
                name.as_ref(),
                "io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions"
            );
        }
        let table = object("meta.k8s.io/v1", "Table");
        assert!(table.field("columnDefinitions").is_some());
        let schema = Schema::built_in();
        for (version, kind) in [("v1", "pod"), ("apps/v2", "Deployment"), ("", "Pod")] {
            assert_eq!(schema.kind(&GroupVersionKind::new(version, kind)), None);
        }
    }

    #[test]
    fn a_table_with_a_mistake_says_where() {
        for (text, says) in [
            ("package a.b.v1\n\nA\n  a 1 B\n", "\"a 1 B\""),
            ("package a.b.v1\n\nA\n  a 1 string wrong\n", "wrong"),
            ("package a.b.v1\n\nA\n\nA\n", "twice"),
            ("package a.b.v1\n\nA\n  b 1 string\n  a 2 string\n", "order"),
            ("package a.b.v1\n\nA kind\n", "api-version"),
            ("A\n", "package"),
        ] {
            let error = parse(&[text]).expect_err(text);
            assert!(error.contains(says), "{text}: {error}");
        }
    }
}
