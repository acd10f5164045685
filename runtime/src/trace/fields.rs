//! Fields of spans and events, collected.

use std::fmt::Debug;

use serde_json::Value;
use tracing::field::{Field, Visit};

/// Fields with this prefix are for the collector, not for log lines.
pub const UNLOGGED: &str = "otel.";
/// The span's name, where it is known only when it begins.
pub const NAME: &str = "otel.name";
/// `traceparent` as it came.
pub const PARENT: &str = "otel.traceparent";
/// Why what the span is about has failed.
pub const ERROR: &str = "otel.error";
/// gRPC's number of an RPC's outcome: the RPC is over then, whatever goes on below it.
pub const CODE: &str = "otel.grpc_code";

/// Bytes kept of one value. Longer are only the outputs of programs, whose beginning says it.
const MAX_VALUE: usize = 8 << 10;
/// Fields kept of one span or event.
const MAX_FIELDS: usize = 32;

/// In the order of their coming; the last value of a name counts.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct Fields(pub Vec<(&'static str, Value)>);

impl Fields {
    pub fn set(&mut self, name: &'static str, value: Value) {
        match self.0.iter().position(|(known, _)| *known == name) {
            Some(at) => self.0[at].1 = value,
            None if self.0.len() < MAX_FIELDS => self.0.push((name, value)),
            None => {}
        }
    }

    pub fn take(&mut self, name: &str) -> Option<Value> {
        let at = self.0.iter().position(|(known, _)| *known == name)?;
        Some(self.0.remove(at).1)
    }

    fn text(&mut self, field: &Field, mut text: String) {
        if text.len() > MAX_VALUE {
            let cut = (0..=MAX_VALUE).rfind(|at| text.is_char_boundary(*at));
            text.truncate(cut.unwrap_or_default());
            text.push('…');
        }
        self.set(field.name(), Value::String(text));
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.text(field, format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.text(field, value.to_owned());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.set(field.name(), value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.set(field.name(), value.into());
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.set(field.name(), value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.set(field.name(), value.into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_value_of_a_name_counts_and_names_are_bounded() {
        let mut fields = Fields::default();
        for value in 0..3 {
            fields.set("a", value.into());
        }
        assert_eq!(fields.0, [("a", Value::from(2))]);
        for n in 0..100 {
            fields.set(Box::leak(n.to_string().into_boxed_str()), n.into());
        }
        assert_eq!(fields.0.len(), MAX_FIELDS);
        assert_eq!(fields.take("a"), Some(Value::from(2)));
        assert_eq!(fields.take("a"), None);
    }
}
