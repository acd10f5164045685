//! Log lines: each event with the fields of the spans around it, so that a line can be found by its pod, its container or its RPC.
//!
//! ```text
//! 2026-03-01T12:00:00.123456Z  WARN berthd::pod::driver: run: … rpc=RunPodSandbox pod_id=4f… namespace=default name=web
//! {"timestamp":"2026-03-01T12:00:00.123456Z","level":"WARN","target":"berthd::pod::driver","message":"run: …","rpc":"RunPodSandbox",…}
//! ```

use std::{
    fmt::Write as _,
    io::{self, Write as _},
};

use serde_json::Value;
use tracing::{Event, Level, Subscriber, span};
use tracing_subscriber::{
    fmt::{
        format::Writer,
        time::{FormatTime, SystemTime},
    },
    layer::{Context, Layer},
    registry::LookupSpan,
};

use super::fields::{Fields, UNLOGGED};
use crate::config::LogFormat;

#[derive(Debug)]
pub struct Lines {
    format: LogFormat,
    colours: bool,
}

/// What every line begins with. Fields of the same name give way.
#[derive(Debug)]
struct Head {
    timestamp: String,
    level: Level,
    target: String,
    message: String,
}

impl Lines {
    pub fn new(format: LogFormat, colours: bool) -> Self {
        Self { format, colours }
    }

    fn line(&self, head: &Head, fields: &Fields) -> String {
        match self.format {
            LogFormat::Json => json(head, fields),
            LogFormat::Text => text(head, fields, self.colours),
        }
    }
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Lines {
    fn on_new_span(
        &self,
        attributes: &span::Attributes<'_>,
        id: &span::Id,
        context: Context<'_, S>,
    ) {
        let mut fields = Fields::default();
        attributes.record(&mut fields);
        fields.0.retain(|(name, _)| !name.starts_with(UNLOGGED));
        if let Some(span) = context.span(id) {
            span.extensions_mut().insert(fields);
        }
    }

    fn on_record(&self, id: &span::Id, values: &span::Record<'_>, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        let mut extensions = span.extensions_mut();
        if let Some(fields) = extensions.get_mut::<Fields>() {
            values.record(fields);
            fields.0.retain(|(name, _)| !name.starts_with(UNLOGGED));
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let mut own = Fields::default();
        event.record(&mut own);
        let message = match own.take("message") {
            Some(Value::String(message)) => message,
            _ => String::new(),
        };
        // What the event says itself comes first, and wins over the spans.
        let mut fields = own;
        for span in context.event_scope(event).into_iter().flatten() {
            if let Some(around) = span.extensions().get::<Fields>() {
                for (name, value) in &around.0 {
                    if !fields.0.iter().any(|(known, _)| known == name) {
                        fields.set(name, value.clone());
                    }
                }
            }
        }
        let metadata = event.metadata();
        let mut timestamp = String::new();
        let _ = SystemTime.format_time(&mut Writer::new(&mut timestamp));
        let head = Head {
            timestamp,
            level: *metadata.level(),
            target: metadata.target().to_owned(),
            message,
        };
        // One write, so that lines of several threads stay whole. A stderr that is gone must end nobody.
        let _ = io::stderr().write_all(self.line(&head, &fields).as_bytes());
    }
}

fn json(head: &Head, fields: &Fields) -> String {
    let heads = [
        ("timestamp", Value::from(head.timestamp.as_str())),
        ("level", head.level.to_string().into()),
        ("target", head.target.as_str().into()),
        ("message", head.message.as_str().into()),
    ];
    let of_head = |name: &str| heads.iter().any(|(known, _)| *known == name);
    let others = fields.0.iter().filter(|(name, _)| !of_head(name));
    let mut line = String::new();
    for (name, value) in heads.iter().chain(others) {
        line.push(if line.is_empty() { '{' } else { ',' });
        let _ = write!(line, "\"{name}\":{value}");
    }
    line.push_str("}\n");
    line
}

fn text(head: &Head, fields: &Fields, colours: bool) -> String {
    let colour = match (colours, head.level) {
        (false, _) => "",
        (_, Level::ERROR) => "\x1b[31m",
        (_, Level::WARN) => "\x1b[33m",
        (_, Level::INFO) => "\x1b[32m",
        _ => "\x1b[34m",
    };
    let end = if colour.is_empty() { "" } else { "\x1b[0m" };
    let Head {
        timestamp,
        level,
        target,
        ..
    } = head;
    let mut line = format!("{timestamp} {colour}{level:>5}{end} {target}:");
    for part in head.message.split(' ') {
        line.push(' ');
        plain(&mut line, part);
    }
    for (name, value) in &fields.0 {
        let _ = write!(line, " {name}=");
        match value {
            Value::String(text) if text.is_empty() || text.contains([' ', '"', '=']) => {
                plain(&mut line, &format!("{text:?}"));
            }
            Value::String(text) => plain(&mut line, text),
            other => {
                let _ = write!(line, "{other}");
            }
        }
    }
    line.push('\n');
    line
}

/// A line is a line: nothing that a client or a program says may begin another, or speak to the terminal.
fn plain(line: &mut String, text: &str) {
    for c in text.chars() {
        match c {
            '\t' => line.push('\t'),
            c if c.is_control() => line.extend(c.escape_default()),
            c => line.push(c),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(message: &str) -> Head {
        Head {
            timestamp: "T".into(),
            level: Level::WARN,
            target: "berthd".into(),
            message: message.into(),
        }
    }

    fn fields() -> Fields {
        Fields(vec![
            ("pod_id", "4f".into()),
            ("why", "a \"b\" c".into()),
            ("count", 3.into()),
            ("level", "mine".into()),
        ])
    }

    #[test]
    fn a_line_of_text_ends_with_its_fields() {
        assert_eq!(
            text(
                &head("run: it  failed"),
                &Fields(fields().0[..3].to_vec()),
                false
            ),
            "T  WARN berthd: run: it  failed pod_id=4f why=\"a \\\"b\\\" c\" count=3\n"
        );
    }

    #[test]
    fn nothing_that_is_said_begins_another_line_or_speaks_to_the_terminal() {
        let evil = "a\nT ERROR berthd: forged\x1b[2J\r";
        for format in [LogFormat::Text, LogFormat::Json] {
            let fields = Fields(vec![("name", evil.into())]);
            let line = Lines::new(format, false).line(&head(evil), &fields);
            assert_eq!(line.matches('\n').count(), 1, "{line}");
            assert!(!line.contains(['\x1b', '\r']), "{line}");
        }
    }

    #[test]
    fn a_line_of_json_is_one_flat_object_whose_head_is_its_own() {
        let line = json(&head("m"), &fields());
        let object: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(object["message"], "m");
        assert_eq!(object["level"], "WARN");
        assert_eq!(object["pod_id"], "4f");
        assert_eq!(object["count"], 3);
    }
}
