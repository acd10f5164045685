//! Fields that a schema doesn't have are dropped: nothing that nobody validated is stored.

use serde_json::Value;

use super::{
    node::{Additional, Node},
    object_meta,
};
use crate::{Error, Path, Schema};

/// As upstream: further ones are not told of.
const MAX_UNKNOWN: usize = 100;

pub(super) fn prune(root: &Node, object: &mut Value) -> Result<Vec<String>, Error> {
    let mut unknown = match object.get_mut("metadata") {
        Some(metadata @ Value::Object(_)) => conform_metadata(metadata)?,
        _ => Vec::new(),
    };
    let mut prune = Prune {
        unknown: Vec::new(),
    };
    prune.node(Some(root), object, &Path::Root);
    prune.unknown.sort();
    for path in prune.unknown {
        unknown.push(format!("unknown field \"{path}\""));
    }
    unknown.truncate(MAX_UNKNOWN);
    Ok(unknown)
}

/// It is said of `metadata.x`, and of types as if it were an object's: as upstream.
fn conform_metadata(metadata: &mut Value) -> Result<Vec<String>, Error> {
    let unknown = Schema::built_in().conform(object_meta(), metadata)?;
    Ok(unknown
        .into_iter()
        .map(|text| text.replacen("field \"", "field \"metadata.", 1))
        .collect())
}

struct Prune {
    unknown: Vec<String>,
}

impl Prune {
    /// Without a node nothing is known: a map's values may be anything, but for fields of objects among them.
    fn node(&mut self, node: Option<&Node>, value: &mut Value, path: &Path<'_>) {
        match value {
            Value::Object(object) => {
                let mut gone = Vec::new();
                for (name, value) in object.iter_mut() {
                    let below = path.key(name);
                    let implied = matches!(name.as_str(), "apiVersion" | "kind" | "metadata");
                    match node {
                        Some(node) if node.embedded && implied => {}
                        Some(node) if node.properties.contains_key(name) => {
                            self.node(node.properties.get(name), value, &below);
                        }
                        Some(Node {
                            additional: Some(additional),
                            ..
                        }) => match additional {
                            Additional::Any => self.node(None, value, &below),
                            Additional::Node(node) => self.node(Some(node), value, &below),
                        },
                        Some(node) if node.preserve_unknown => {}
                        _ => {
                            if self.unknown.len() < MAX_UNKNOWN {
                                self.unknown.push(below.to_string());
                            }
                            gone.push(name.clone());
                        }
                    }
                }
                for name in gone {
                    object.remove(&name);
                }
            }
            Value::Array(list) => {
                let items = node.and_then(|node| node.items.as_deref());
                if items.is_none() && node.is_some_and(|node| node.preserve_unknown) {
                    return;
                }
                for (index, value) in list.iter_mut().enumerate() {
                    self.node(items, value, &path.index(index));
                }
            }
            _ => {}
        }
    }
}
