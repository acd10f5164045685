//! `differential COUNT SEED`: COUNT strategic merge patches of objects that are made up, a line of JSON each: `kind`, `live`, `patch`, and `ours`, the
//! object as this crate has it patched (null: refused, and `why`).
//!
//! Whoever wants to compare it with another implementation pipes it into that. Upstream's is `strategicpatch.StrategicMergePatch` of
//! k8s.io/apimachinery with the struct of the kind from k8s.io/api: a program of a screen in Go, with the two as modules. What it gives is equal where
//! both are the same JSON, or both refuse. Upstream's own answer is by chance where a value is both in a list and in its `$deleteFromPrimitiveList` (it
//! goes through a map in random order), and it panics where an element of a merged list that is ordered lacks its key: of 50,000 some 160 and 370.

use berth_patch::{PatchType, patch};
use berth_schema::{GroupVersionKind, Schema};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use serde_json::{Map, Value, json};

enum Form {
    Text,
    Number,
    /// Any names, texts.
    Labels,
    Object(&'static [(&'static str, Form)]),
    /// Merged by what is at a key, which is a text or a number.
    Merged(&'static str, &'static Form),
    /// A list that is replaced as a whole.
    Atomic(&'static Form),
    /// Texts that are merged.
    Set,
}

use Form::{Atomic, Labels, Merged, Number, Object, Set, Text};

static METADATA: Form = Object(&[
    ("name", Text),
    ("labels", Labels),
    ("annotations", Labels),
    ("finalizers", Set),
    (
        "ownerReferences",
        Merged("uid", &Object(&[("uid", Text), ("name", Text)])),
    ),
]);
static CONTAINER: Form = Object(&[
    ("name", Text),
    ("image", Text),
    ("command", Atomic(&Text)),
    (
        "ports",
        Merged(
            "containerPort",
            &Object(&[
                ("containerPort", Number),
                ("protocol", Text),
                ("name", Text),
            ]),
        ),
    ),
    (
        "env",
        Merged(
            "name",
            &Object(&[
                ("name", Text),
                ("value", Text),
                (
                    "valueFrom",
                    Object(&[("fieldRef", Object(&[("fieldPath", Text)]))]),
                ),
            ]),
        ),
    ),
    (
        "volumeMounts",
        Merged("mountPath", &Object(&[("mountPath", Text), ("name", Text)])),
    ),
    (
        "resources",
        Object(&[("limits", Labels), ("requests", Labels)]),
    ),
    (
        "livenessProbe",
        Object(&[
            ("periodSeconds", Number),
            ("exec", Object(&[("command", Atomic(&Text))])),
        ]),
    ),
    (
        "securityContext",
        Object(&[("capabilities", Object(&[("add", Atomic(&Text))]))]),
    ),
]);
static POD_SPEC: Form = Object(&[
    ("nodeName", Text),
    ("nodeSelector", Labels),
    ("containers", Merged("name", &CONTAINER)),
    ("initContainers", Merged("name", &CONTAINER)),
    (
        "volumes",
        Merged(
            "name",
            &Object(&[
                ("name", Text),
                ("emptyDir", Object(&[("medium", Text)])),
                (
                    "configMap",
                    Object(&[
                        ("name", Text),
                        ("items", Atomic(&Object(&[("key", Text), ("path", Text)]))),
                    ]),
                ),
            ]),
        ),
    ),
    (
        "tolerations",
        Atomic(&Object(&[("key", Text), ("value", Text)])),
    ),
    (
        "imagePullSecrets",
        Merged("name", &Object(&[("name", Text)])),
    ),
    (
        "hostAliases",
        Merged("ip", &Object(&[("ip", Text), ("hostnames", Atomic(&Text))])),
    ),
    (
        "topologySpreadConstraints",
        Merged(
            "topologyKey",
            &Object(&[
                ("topologyKey", Text),
                ("maxSkew", Number),
                ("whenUnsatisfiable", Text),
            ]),
        ),
    ),
    (
        "securityContext",
        Object(&[
            ("runAsUser", Number),
            ("supplementalGroups", Atomic(&Number)),
        ]),
    ),
]);
static KINDS: [(&str, &str, Form); 5] = [
    (
        "v1",
        "Pod",
        Object(&[
            ("spec", Form::Merged("", &POD_SPEC)),
            (
                "status",
                Object(&[
                    ("phase", Text),
                    (
                        "conditions",
                        Merged(
                            "type",
                            &Object(&[("type", Text), ("status", Text), ("reason", Text)]),
                        ),
                    ),
                ]),
            ),
        ]),
    ),
    (
        "apps/v1",
        "Deployment",
        Object(&[(
            "spec",
            Object(&[
                ("replicas", Number),
                ("selector", Object(&[("matchLabels", Labels)])),
                (
                    "strategy",
                    Object(&[
                        ("type", Text),
                        (
                            "rollingUpdate",
                            Object(&[("maxSurge", Number), ("maxUnavailable", Number)]),
                        ),
                    ]),
                ),
            ]),
        )]),
    ),
    (
        "v1",
        "Service",
        Object(&[(
            "spec",
            Object(&[
                ("selector", Labels),
                ("type", Text),
                ("externalIPs", Atomic(&Text)),
                (
                    "ports",
                    Merged(
                        "port",
                        &Object(&[("port", Number), ("name", Text), ("targetPort", Number)]),
                    ),
                ),
            ]),
        )]),
    ),
    (
        "v1",
        "ServiceAccount",
        Object(&[
            (
                "secrets",
                Merged("name", &Object(&[("name", Text), ("namespace", Text)])),
            ),
            (
                "imagePullSecrets",
                Merged("name", &Object(&[("name", Text)])),
            ),
        ]),
    ),
    ("v1", "ConfigMap", Object(&[("data", Labels)])),
];

struct Dice(StdRng);

impl Dice {
    fn one_of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.0.random_range(0..all.len())]
    }

    fn chance(&mut self, percent: u32) -> bool {
        self.0.random_range(0..100) < percent
    }

    fn text(&mut self) -> Value {
        self.one_of(&["a", "b", "c", "d"]).into()
    }

    fn number(&mut self) -> Value {
        self.0.random_range(0..4_i64).into()
    }

    fn key(&mut self, of: &str) -> Value {
        match of {
            "containerPort" | "port" => self.number(),
            _ => self.text(),
        }
    }

    /// Of its form; as a patch with directives and nulls, and now and then with what is wrong.
    fn value(&mut self, form: &Form, patch: bool) -> Value {
        if patch && self.chance(3) {
            return Value::Null;
        }
        if patch && self.chance(1) {
            return if self.chance(50) {
                self.number()
            } else {
                self.text()
            };
        }
        match form {
            Text => self.text(),
            Number => self.number(),
            Labels => {
                let mut labels = Map::new();
                for name in ["a", "b", "c"] {
                    if self.chance(40) {
                        let value = if patch && self.chance(20) {
                            Value::Null
                        } else {
                            self.text()
                        };
                        labels.insert(name.to_owned(), value);
                    }
                }
                if patch && self.chance(4) {
                    let directive = self.one_of(&["replace", "delete", "merge"]);
                    labels.insert("$patch".to_owned(), directive.into());
                }
                labels.into()
            }
            Object(fields) => self.object(fields, patch),
            Atomic(item) => self.list(|dice| dice.value(item, false)),
            Set => {
                let mut list: Vec<Value> = Vec::new();
                for text in ["a", "b", "c", "d"] {
                    if self.chance(35) {
                        list.push(text.into());
                    }
                }
                list.into()
            }
            Merged("", spec) => self.value(spec, patch),
            Merged(key, item) => {
                let mut items: Vec<Value> = Vec::new();
                for _ in 0..self.0.random_range(0..4) {
                    let mut value = self.value(item, patch);
                    let of = self.key(key);
                    let Some(fields) = value.as_object_mut() else {
                        continue;
                    };
                    if !patch && items.iter().any(|one| one[*key] == of) {
                        continue;
                    }
                    if !(patch && self.chance(1)) {
                        fields.insert((*key).to_owned(), of);
                    }
                    if patch && self.chance(12) {
                        fields.retain(|name, _| name == key);
                        fields.insert("$patch".to_owned(), "delete".into());
                    }
                    items.push(value);
                }
                if patch && self.chance(4) {
                    items.push(json!({"$patch": "replace"}));
                }
                items.into()
            }
        }
    }

    fn list(&mut self, mut item: impl FnMut(&mut Self) -> Value) -> Value {
        (0..self.0.random_range(0..3)).map(|_| item(self)).collect()
    }

    fn object(&mut self, fields: &[(&'static str, Form)], patch: bool) -> Value {
        let mut object = Map::new();
        for (name, form) in fields {
            if !self.chance(if patch { 30 } else { 60 }) {
                continue;
            }
            let value = self.value(form, patch);
            if patch {
                match form {
                    Merged(key, _) if !key.is_empty() && self.chance(35) => {
                        let mut order: Vec<Value> = Vec::new();
                        let mut of: Vec<Value> = value
                            .as_array()
                            .into_iter()
                            .flatten()
                            .filter(|item| item.get("$patch").is_none())
                            .filter_map(|item| item.get(*key).cloned())
                            .collect();
                        if self.chance(60) {
                            of.push(self.key(key));
                        }
                        for item in of {
                            if !order.iter().any(|one| one[*key] == item) {
                                order.insert(
                                    self.0.random_range(0..=order.len()),
                                    json!({*key: item}),
                                );
                            }
                        }
                        object.insert(format!("$setElementOrder/{name}"), order.into());
                    }
                    Set if self.chance(50) => {
                        let gone = self.value(&Set, false);
                        object.insert(format!("$deleteFromPrimitiveList/{name}"), gone);
                        if self.chance(50) {
                            let mut order = value.as_array().cloned().unwrap_or_default();
                            let more = self.text();
                            if !order.contains(&more) {
                                order.push(more);
                            }
                            object.insert(format!("$setElementOrder/{name}"), order.into());
                        }
                    }
                    _ => {}
                }
                // now and then without the list whose order it is
                if self.chance(8) {
                    continue;
                }
            }
            object.insert((*name).to_owned(), value);
        }
        if patch && self.chance(3) {
            let directive = self.one_of(&["replace", "delete", "merge", "nothing"]);
            object.insert("$patch".to_owned(), directive.into());
        }
        if patch && self.chance(4) {
            let names: Vec<Value> = fields
                .iter()
                .filter(|(name, _)| object.contains_key(*name) || self.chance(30))
                .map(|(name, _)| (*name).into())
                .collect();
            object.insert("$retainKeys".to_owned(), names.into());
        }
        object.into()
    }
}

fn main() {
    let mut args = std::env::args().skip(1);
    let mut number = || args.next().and_then(|text| text.parse::<u64>().ok());
    let (Some(count), Some(seed)) = (number(), number()) else {
        eprintln!("differential COUNT SEED");
        std::process::exit(2);
    };
    let mut dice = Dice(StdRng::seed_from_u64(seed));
    let schema = Schema::built_in();
    for _ in 0..count {
        let (api_version, kind, form) = &KINDS[dice.0.random_range(0..KINDS.len())];
        let id = schema
            .kind(&GroupVersionKind::new(api_version, kind))
            .expect("a built-in kind");
        let mut whole = |patch: bool| {
            let mut object = dice.value(form, patch);
            let metadata = dice.value(&METADATA, patch);
            if let Some(fields) = object.as_object_mut() {
                fields.insert("metadata".to_owned(), metadata);
                if *kind == "Deployment" && dice.chance(80) {
                    let template = json!({
                        "metadata": dice.value(&METADATA, patch),
                        "spec": dice.value(&POD_SPEC, patch),
                    });
                    if let Some(spec) = fields.get_mut("spec").and_then(Value::as_object_mut) {
                        spec.insert("template".to_owned(), template);
                    }
                }
            }
            object
        };
        let (live, wanted) = (whole(false), whole(true));
        let body = wanted.to_string();
        let (ours, why) = match patch(
            PatchType::Strategic,
            Some((schema, id)),
            &live,
            body.as_bytes(),
        ) {
            Ok(ours) => (ours, String::new()),
            Err(error) => (Value::Null, error.to_string()),
        };
        println!(
            "{}",
            json!({"kind": kind, "live": live, "patch": wanted, "ours": ours, "why": why})
        );
    }
}
