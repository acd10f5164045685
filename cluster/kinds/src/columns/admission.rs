use serde_json::Value;

use super::{AGE, NAME, column};
use crate::kind::{Cell, Column};

pub(crate) const WEBHOOKS: &[Column] =
    &[NAME, column("Webhooks", "integer", Cell::Of(webhooks)), AGE];

fn webhooks(object: &Value, _: i64) -> Value {
    object["webhooks"].as_array().map_or(0, Vec::len).into()
}
