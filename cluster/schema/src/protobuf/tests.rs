use serde_json::{Map, Value, json};

use super::*;

/// What kubectl 1.36.3 posted (`kubectl create deployment web --image=nginx:1 --replicas=0 --port=80`, …), and what it prints for the same
/// command with `--dry-run=client -o json`.
macro_rules! bodies {
    ($($name:literal),*) => {
        &[$((
            $name,
            include_bytes!(concat!("kubectl/", $name, ".bin")) as &[u8],
            include_str!(concat!("kubectl/", $name, ".json")),
        )),*]
    };
}

pub(crate) const BODIES: &[(&str, &[u8], &str)] = bodies!(
    "clusterrole",
    "configmap",
    "cronjob",
    "deployment",
    "ingress",
    "job",
    "namespace",
    "pdb",
    "priorityclass",
    "quota",
    "role",
    "rolebinding",
    "secret",
    "service",
    "serviceaccount"
);

/// Structs that Go prints although nothing is in them.
fn without_empty_structs(value: &mut Value) {
    if let Value::Object(object) = value {
        object.values_mut().for_each(without_empty_structs);
        object.retain(|name, value| {
            let is_struct = matches!(
                name.as_str(),
                "loadBalancer" | "metadata" | "resources" | "spec" | "status" | "strategy"
            );
            !is_struct || *value != json!({})
        });
    } else if let Value::Array(list) = value {
        list.iter_mut().for_each(without_empty_structs);
    }
}

#[test]
fn what_kubectl_posts_is_what_it_prints() {
    let schema = Schema::built_in();
    for (name, body, text) in BODIES {
        let (kind, mut value) = schema.decode_protobuf(body, None).expect(name);
        let mut printed: Value = serde_json::from_str(text).expect(name);
        let id = schema.kind(&kind).expect(name);
        assert_eq!(schema.conform(id, &mut printed), Ok(Vec::new()), "{name}");
        without_empty_structs(&mut printed);
        without_empty_structs(&mut value);
        assert_eq!(value, printed, "{name}");
    }
}

#[test]
fn reviews_and_token_requests_of_kubectl_are_read() {
    let schema = Schema::built_in();
    let read = |body: &[u8]| {
        schema
            .decode_protobuf(body, None)
            .expect("a body of kubectl")
            .1
    };
    let review = read(include_bytes!("kubectl/access-review.bin"));
    assert_eq!(
        review["spec"],
        json!({"resourceAttributes": {"namespace": "default", "verb": "get", "resource": "pods"}})
    );
    assert_eq!(review["kind"], "SelfSubjectAccessReview");
    let review = read(include_bytes!("kubectl/self-review.bin"));
    assert_eq!(review["apiVersion"], "authentication.k8s.io/v1");
    let token = read(include_bytes!("kubectl/token.bin"));
    assert_eq!(
        token["spec"],
        json!({"audiences": ["x"], "expirationSeconds": 600})
    );
}

/// Writes a value by the table, for the tests.
fn encode(
    schema: &Schema,
    object: &ObjectType,
    within: &[u32],
    value: &Map<String, Value>,
) -> Vec<u8> {
    let mut out = Vec::new();
    let mut inlined: Vec<u32> = Vec::new();
    for field in &object.fields {
        if field.number == 0 || !field.within.starts_with(within) {
            continue;
        }
        if let Some(next) = field.within.get(within.len()) {
            if !inlined.contains(next) {
                inlined.push(*next);
            }
            continue;
        }
        let Some(value) = value.get(field.name.as_ref()) else {
            continue;
        };
        match (&field.ty, value) {
            (Type::List(item, _), Value::Array(list)) => {
                for value in list {
                    one(schema, item, field.number, value, &mut out);
                }
            }
            (Type::Map(item, _), Value::Object(map)) => {
                for (key, value) in map {
                    let mut entry = Vec::new();
                    bytes_field(1, key.as_bytes(), &mut entry);
                    one(schema, item, 2, value, &mut entry);
                    bytes_field(field.number, &entry, &mut out);
                }
            }
            (ty, value) => one(schema, ty, field.number, value, &mut out),
        }
    }
    for number in inlined {
        let within: Vec<u32> = within.iter().copied().chain([number]).collect();
        let message = encode(schema, object, &within, value);
        bytes_field(number, &message, &mut out);
    }
    out
}

const SECONDS: u64 = 1_795_359_845;

fn one(schema: &Schema, ty: &Type, number: u32, value: &Value, out: &mut Vec<u8>) {
    let mut message = Vec::new();
    match ty {
        Type::Boolean => return varint_field(number, value.as_bool().unwrap_or(false).into(), out),
        Type::Integer(_) => {
            return varint_field(number, value.as_i64().unwrap_or(0) as u64, out);
        }
        Type::Number => {
            put_varint(u64::from(number) << 3 | 1, out);
            return out.extend(value.as_f64().unwrap_or(0.0).to_le_bytes());
        }
        Type::Object(id) => {
            let object = value.as_object().expect("an object");
            message = encode(schema, schema.object(*id), &[], object);
        }
        Type::List(item, _) => {
            for value in value.as_array().expect("a list") {
                one(schema, item, 1, value, &mut message);
            }
        }
        Type::Any => bytes_field(1, value.to_string().as_bytes(), &mut message),
        Type::Map(..) => unreachable!("a map is a field's"),
        Type::String(StringFormat::Bytes) => {
            message = STANDARD
                .decode(value.as_str().expect("text"))
                .expect("base64");
        }
        Type::String(StringFormat::Plain) => message = value.as_str().expect("text").into(),
        Type::String(StringFormat::Quantity) => {
            bytes_field(1, value.as_str().expect("text").as_bytes(), &mut message);
        }
        Type::String(StringFormat::IntOrString) => match value {
            Value::String(text) => {
                varint_field(1, 1, &mut message);
                bytes_field(3, text.as_bytes(), &mut message);
            }
            value => varint_field(2, value.as_i64().unwrap_or(0) as u64, &mut message),
        },
        Type::String(StringFormat::Time) => varint_field(1, SECONDS, &mut message),
        Type::String(StringFormat::MicroTime) => {
            varint_field(1, SECONDS, &mut message);
            varint_field(2, 42_000, &mut message);
        }
    }
    bytes_field(number, &message, out);
}

fn put_varint(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn varint_field(number: u32, value: u64, out: &mut Vec<u8>) {
    put_varint(u64::from(number) << 3, out);
    put_varint(value, out);
}

fn bytes_field(number: u32, bytes: &[u8], out: &mut Vec<u8>) {
    put_varint(u64::from(number) << 3 | 2, out);
    put_varint(bytes.len() as u64, out);
    out.extend(bytes);
}

/// Something in every field.
fn full(schema: &Schema, object: &ObjectType, depth: usize) -> Map<String, Value> {
    let mut value = Map::new();
    for (n, field) in object.fields.iter().enumerate() {
        if field.number != 0 && !is_union(object, field) && depth > 0 {
            let of = filled(schema, &field.ty, n as i64 + 1, depth - 1);
            // What has no room left below says nothing, and isn't there.
            if field.keeps_zero || of != json!({}) {
                value.insert(field.name.to_string(), of);
            }
        }
    }
    value
}

fn filled(schema: &Schema, ty: &Type, n: i64, depth: usize) -> Value {
    match ty {
        Type::Any => json!({"a": [n]}),
        Type::Boolean => true.into(),
        Type::Integer(IntegerFormat::Int32) => (-n).into(),
        Type::Integer(IntegerFormat::Int64) => (n << 40).into(),
        Type::Number => 0.5.into(),
        Type::String(StringFormat::Plain) => format!("text {n}").into(),
        Type::String(StringFormat::Bytes) => STANDARD.encode([n as u8, 0, 255]).into(),
        Type::String(StringFormat::Time) => "2026-11-22T15:04:05Z".into(),
        Type::String(StringFormat::MicroTime) => "2026-11-22T15:04:05.000042Z".into(),
        Type::String(StringFormat::Quantity) => "100m".into(),
        Type::String(StringFormat::IntOrString) if n % 2 == 0 => "50%".into(),
        Type::String(StringFormat::IntOrString) => 5.into(),
        Type::Object(id) => full(schema, schema.object(*id), depth).into(),
        Type::List(item, _) => json!([filled(schema, item, n, depth)]),
        Type::Map(item, _) => json!({"key": filled(schema, item, n, depth)}),
    }
}

#[test]
fn every_field_of_every_kind_is_read_from_its_number() {
    let schema = Schema::built_in();
    let mut fields = 0;
    for (at, object) in schema.objects.iter().enumerate() {
        let (id, name) = (ObjectId(at as u32), &object.name);
        // Three levels: each type has its turn.
        let value = full(schema, object, 3);
        let numbered = |field: &&Field| field.number != 0 && !is_union(object, field);
        let numbered = object.fields.iter().filter(numbered);
        let wanted = numbered
            .filter(|field| field.keeps_zero || !is_empty(schema, &field.ty))
            .count();
        assert_eq!(value.len(), wanted, "{name}");
        let message = encode(schema, object, &[], &value);
        let read = schema.decode_protobuf_object(id, &message);
        let read = read.unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(read, value, "{name}");
        let mut conformed = Value::Object(read);
        let unknown = schema.conform(id, &mut conformed);
        assert_eq!(unknown, Ok(Vec::new()), "{name}");
        assert_eq!(conformed, Value::Object(value), "{name}");
        fields += wanted;
    }
    assert!(fields > 2_000, "{fields}");
}

/// No field of it is in protobuf.
fn is_empty(schema: &Schema, ty: &Type) -> bool {
    matches!(ty, Type::Object(id) if schema.object(*id).fields.is_empty())
}

fn object_named(name: &str) -> ObjectId {
    let objects = &Schema::built_in().objects;
    let at = objects
        .iter()
        .position(|object| object.name.ends_with(name));
    ObjectId(at.expect("a type") as u32)
}

#[test]
fn zeros_are_dropped_where_they_say_nothing() {
    let schema = Schema::built_in();
    let read = |name: &str, message: &[u8]| {
        Value::Object(
            schema
                .decode_protobuf_object(object_named(name), message)
                .expect(name),
        )
    };
    // replicas 0, minReadySeconds 0, paused false.
    assert_eq!(
        read(".apps.v1.DeploymentSpec", b"\x08\0\x28\0\x38\0"),
        json!({"replicas": 0})
    );
    // storageClassName "", volumeName "".
    let claim = b"\x2a\0\x1a\0";
    assert_eq!(
        read(".PersistentVolumeClaimSpec", claim),
        json!({"storageClassName": ""})
    );
    // creationTimestamp of no time, deletionTimestamp of 0 s.
    let meta = b"\x42\0\x4a\x02\x08\0";
    assert_eq!(
        read(".ObjectMeta", meta),
        json!({"deletionTimestamp": "1970-01-01T00:00:00Z"})
    );
    // A key without a value, a value without a key.
    assert_eq!(
        read(".core.v1.ConfigMap", b"\x12\x03\x0a\x01a\x12\x03\x12\x01b"),
        json!({"data": {"a": "", "": "b"}})
    );
    // A message in two parts is one.
    let split = b"\x12\x04\x12\x02\x0a\0\x12\x06\x12\x04\x12\x02\x0a\0";
    let split = schema.decode_protobuf_object(object_named(".core.v1.Pod"), split);
    assert!(split.is_ok(), "{split:?}");
}

#[test]
fn lists_of_numbers_are_read_packed_and_not() {
    let schema = Schema::built_in();
    let id = object_named(".core.v1.PodSecurityContext");
    for message in [&b"\x20\x01\x20\x02"[..], b"\x22\x02\x01\x02"] {
        let read = schema.decode_protobuf_object(id, message).expect("numbers");
        assert_eq!(read["supplementalGroups"], json!([1, 2]));
    }
}

#[test]
fn what_is_one_of_two_things_in_a_schema_is_read() {
    let schema = Schema::built_in();
    let id = object_named(".JSONSchemaProps");
    let number = |name: &str| schema.object(id).field(name).expect(name).number;
    let mut string = Vec::new();
    bytes_field(number("type"), b"string", &mut string);
    let mut message = Vec::new();
    let mut part = |name: &str, content: &[u8]| bytes_field(number(name), content, &mut message);
    let mut props = Vec::new();
    bytes_field(1, &string, &mut props);
    part("items", &props);
    part("additionalItems", b"\x08\x01");
    let mut additional = Vec::new();
    varint_field(1, 1, &mut additional);
    bytes_field(2, &string, &mut additional);
    part("additionalProperties", &additional);
    let mut strings = Vec::new();
    bytes_field(2, b"a", &mut strings);
    let mut entry = Vec::new();
    bytes_field(1, b"k", &mut entry);
    bytes_field(2, &strings, &mut entry);
    part("dependencies", &entry);
    part("default", b"\x0a\x07{\"a\":1}");
    let read = schema
        .decode_protobuf_object(id, &message)
        .expect("a schema");
    assert_eq!(
        Value::Object(read),
        json!({
            "items": {"type": "string"}, "additionalItems": true,
            "additionalProperties": {"type": "string"}, "dependencies": {"k": ["a"]},
            "default": {"a": 1},
        })
    );
}

fn unknown(api_version: &str, kind: &str, raw: &[u8]) -> Vec<u8> {
    let mut meta = Vec::new();
    bytes_field(1, api_version.as_bytes(), &mut meta);
    bytes_field(2, kind.as_bytes(), &mut meta);
    let mut body = MAGIC.to_vec();
    bytes_field(1, &meta, &mut body);
    bytes_field(2, raw, &mut body);
    body
}

#[test]
fn a_body_that_is_none_is_refused_sec_api_05() {
    let schema = Schema::built_in();
    let mut other_encoding = unknown("v1", "Pod", b"");
    bytes_field(3, b"gzip", &mut other_encoding);
    let mut other_type = unknown("v1", "Pod", b"");
    bytes_field(4, b"application/json", &mut other_type);
    let bad_name = unknown("v1", "Pod", b"\x0a\x03\x0a\x01\xff");
    let bad_type = unknown("v1", "Pod", b"\x08\x01");
    let bad_list = unknown("v1", "Pod", b"\x12\x02\x10\x01");
    let bad_pack = unknown("v1", "Pod", b"\x12\x05\x72\x03\x22\x01\xff");
    let group = unknown("v1", "Pod", &[0x13; 1_000_000]);
    let huge = unknown("v1", "Pod", b"\x0a\x80\x80\x80\x80\x80\x80\x80\x80\x80\x01");
    let no_quantity = unknown(
        "v1",
        "ResourceQuota",
        b"\x12\x0c\x0a\x0a\x0a\x01a\x12\x05\x0a\x03abc",
    );
    let no_time = unknown(
        "v1",
        "Pod",
        b"\x0a\x0c\x42\x0a\x08\xff\xff\xff\xff\xff\xff\xff\xff\x7f",
    );
    let no_json = unknown("apps/v1", "ControllerRevision", b"\x12\x05\x0a\x03{]}");
    let cases: &[(&str, &[u8])] = &[
        ("prefix", b""),
        ("prefix", b"{}"),
        ("prefix", b"k8s"),
        ("registered", b"k8s\0"),
        ("registered", &unknown("v1", "pod", b"")),
        ("registered", &unknown("apps/v9", "Deployment", b"")),
        ("contentEncoding", &other_encoding),
        ("contentType", &other_type),
        ("UTF-8", &bad_name),
        ("wire type", &bad_type),
        ("wire type", &bad_list),
        ("without an end", &bad_pack),
        ("group", &group),
        ("beyond the message", &huge),
        ("quantities", &no_quantity),
        ("is no time", &no_time),
        ("json parse error", &no_json),
    ];
    for (says, body) in cases {
        let error = schema.decode_protobuf(body, None).expect_err(says);
        assert!(error.to_string().contains(says), "{error}, not {says}");
    }
    let default = GroupVersionKind::new("v1", "Pod");
    let (kind, _) = schema
        .decode_protobuf(b"k8s\0", Some(&default))
        .expect("a Pod");
    assert_eq!(kind, default);
}

#[test]
fn nesting_of_any_depth_is_refused_and_not_followed_sec_api_05() {
    let schema = Schema::built_in();
    let id = object_named(".JSONSchemaProps");
    let not = schema.object(id).field("not").expect("a field").number;
    let nested = |levels: usize| {
        let (mut heads, mut length) = (Vec::new(), 0);
        for _ in 0..levels {
            let mut head = Vec::new();
            put_varint(u64::from(not) << 3 | 2, &mut head);
            put_varint(length, &mut head);
            length += head.len() as u64;
            heads.push(head);
        }
        heads.into_iter().rev().flatten().collect::<Vec<u8>>()
    };
    assert!(
        schema
            .decode_protobuf_object(id, &nested(MAX_DEPTH - 1))
            .is_ok()
    );
    for levels in [MAX_DEPTH, 10_000, 1_000_000] {
        let error = schema.decode_protobuf_object(id, &nested(levels));
        let error = error.expect_err("too deep");
        assert!(error.to_string().contains("max depth"), "{error}");
    }
    // JSON in it counts, too.
    let json = format!("{}{}", "[".repeat(MAX_DEPTH), "]".repeat(MAX_DEPTH));
    let mut raw = Vec::new();
    bytes_field(1, json.as_bytes(), &mut raw);
    let mut message = Vec::new();
    bytes_field(2, &raw, &mut message);
    let revision = object_named(".apps.v1.ControllerRevision");
    assert!(schema.decode_protobuf_object(revision, &message).is_err());
}

#[test]
fn very_many_values_of_few_bytes_are_refused_sec_api_04() {
    let schema = Schema::built_in();
    let id = object_named(".core.v1.PodSpec");
    let containers = b"\x12\0".repeat(MAX_VALUES + 1);
    let error = schema
        .decode_protobuf_object(id, &containers)
        .expect_err("too many");
    assert!(error.to_string().contains("values"), "{error}");
}
