//! The events of a shim: the service that it tells them to, and how a person reads them.

use std::{
    io,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use berth_proto::shim::{
    api::{Empty, ForwardRequest},
    events::task as told,
    shim_async::{Events, create_events},
};
use clap::Args;
use protobuf::{Message, well_known_types::any::Any};
use rustix::fs::Mode;
use serde::Serialize;
use serde_json::{Map, Value, json};
use tokio::{
    net::{UnixListener, UnixStream},
    signal::unix::SignalKind,
    sync::mpsc,
    task::JoinHandle,
    time::timeout,
};
use tokio_stream::wrappers::UnixListenerStream;
use ttrpc::r#async::{Server, TtrpcContext, transport::Listener};

use super::{place::Place, views};
use crate::{
    error::Error,
    output::{self, Format},
};

/// Events that nobody has printed yet: beyond them the shim waits, as it does for a slow containerd.
const MAX_QUEUED: usize = 256;
/// How long the last events of a container are waited for.
const LAST: Duration = Duration::from_secs(2);

/// One event, for printing.
#[derive(Debug, Clone, Serialize)]
pub struct Event {
    time: Option<String>,
    namespace: String,
    pub topic: String,
    /// The message's name.
    r#type: String,
    pub event: Map<String, Value>,
}

impl std::fmt::Display for Event {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let time = self.time.as_deref().unwrap_or("-");
        write!(f, "{time}  {}", self.topic)?;
        for (key, value) in &self.event {
            match value {
                Value::String(text) => write!(f, "  {key}={text}")?,
                value => write!(f, "  {key}={value}")?,
            }
        }
        Ok(())
    }
}

impl Event {
    pub fn line(&self, format: Format) -> String {
        match format {
            Format::Table => self.to_string(),
            // A stream of documents: one a line, which YAML takes, too.
            Format::Json | Format::Yaml => json!(self).to_string(),
        }
    }
}

struct Service {
    events: mpsc::Sender<Event>,
}

#[async_trait]
impl Events for Service {
    async fn forward(&self, _: &TtrpcContext, request: ForwardRequest) -> ttrpc::Result<Empty> {
        let envelope = request.envelope.unwrap_or_default();
        let any = envelope.event.unwrap_or_default();
        let event = Event {
            time: views::time(envelope.timestamp.as_ref()),
            namespace: envelope.namespace,
            topic: envelope.topic,
            r#type: name(&any).into(),
            event: decoded(&any),
        };
        // Nobody wants them any more: that is no fault of the shim.
        let _ = self.events.send(event).await;
        Ok(Empty::new())
    }
}

/// A socket that a shim tells its events to; gone with this.
#[allow(missing_debug_implementations, reason = "a ttrpc server has none")]
pub struct Socket {
    /// Serves as long as it is there.
    _server: Server,
    path: PathBuf,
    events: mpsc::Receiver<Event>,
}

impl Socket {
    /// None: another process takes these events.
    pub async fn listen(path: &Path) -> Result<Option<Self>, Error> {
        let failed = |source| Error::File {
            what: "listen for events on",
            path: path.into(),
            source,
        };
        if UnixStream::connect(path).await.is_ok() {
            return Ok(None);
        }
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
        // 0600 from its first instant.
        let before = rustix::process::umask(Mode::from_raw_mode(0o177));
        let listener = UnixListener::bind(path);
        rustix::process::umask(before);
        let (sender, events) = mpsc::channel(MAX_QUEUED);
        let mut server = Server::new()
            .add_listener(Listener::new(UnixListenerStream::new(
                listener.map_err(failed)?,
            )))
            .register_service(create_events(Arc::new(Service { events: sender })));
        server
            .start()
            .await
            .map_err(|error| failed(io::Error::other(error)))?;
        Ok(Some(Self {
            _server: server,
            path: path.into(),
            events,
        }))
    }

    pub async fn next(&mut self) -> Option<Event> {
        self.events.recv().await
    }

    /// Prints on stderr what comes, until the deletion of the container has been told; without a format nothing.
    pub fn print(mut self, id: &str, format: Option<Format>) -> Printing {
        let id = id.to_owned();
        let task = tokio::spawn(async move {
            while let Some(event) = self.next().await {
                if let Some(format) = format {
                    eprintln!("{}", event.line(format));
                }
                if event.topic == "/tasks/delete" && event.event["containerId"] == id.as_str() {
                    return;
                }
            }
        });
        Printing { task }
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Events that are taken beside what else goes on.
#[derive(Debug)]
pub struct Printing {
    task: JoinHandle<()>,
}

impl Printing {
    /// Waits a little for the last one.
    pub async fn finish(mut self) {
        let _ = timeout(LAST, &mut self.task).await;
    }
}

impl Drop for Printing {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn name(any: &Any) -> &str {
    any.type_url.rsplit('/').next().unwrap_or_default()
}

/// The fields of an event; those of an unknown one as the number of its bytes.
fn decoded(any: &Any) -> Map<String, Value> {
    fn of<M: Message>(any: &Any, fields: impl FnOnce(M) -> Value) -> Option<Value> {
        M::parse_from_bytes(&any.value).ok().map(fields)
    }
    let fields = match name(any).strip_prefix("containerd.events.").unwrap_or("") {
        "TaskCreate" => of(
            any,
            |event: told::TaskCreate| json!({"containerId": event.container_id, "pid": event.pid, "bundle": event.bundle}),
        ),
        "TaskStart" => of(
            any,
            |event: told::TaskStart| json!({"containerId": event.container_id, "pid": event.pid}),
        ),
        "TaskExit" => of(any, |event: told::TaskExit| {
            json!({"containerId": event.container_id, "id": event.id, "pid": event.pid,
                "exitStatus": event.exit_status, "exitedAt": views::time(event.exited_at.as_ref())})
        }),
        "TaskDelete" => of(any, |event: told::TaskDelete| {
            json!({"containerId": event.container_id, "id": event.id, "pid": event.pid,
                "exitStatus": event.exit_status, "exitedAt": views::time(event.exited_at.as_ref())})
        }),
        "TaskOOM" => of(
            any,
            |event: told::TaskOOM| json!({"containerId": event.container_id}),
        ),
        "TaskExecAdded" => of(
            any,
            |event: told::TaskExecAdded| json!({"containerId": event.container_id, "execId": event.exec_id}),
        ),
        "TaskExecStarted" => of(
            any,
            |event: told::TaskExecStarted| json!({"containerId": event.container_id, "execId": event.exec_id, "pid": event.pid}),
        ),
        "TaskPaused" => of(
            any,
            |event: told::TaskPaused| json!({"containerId": event.container_id}),
        ),
        "TaskResumed" => of(
            any,
            |event: told::TaskResumed| json!({"containerId": event.container_id}),
        ),
        "TaskCheckpointed" => of(
            any,
            |event: told::TaskCheckpointed| json!({"containerId": event.container_id, "checkpoint": event.checkpoint}),
        ),
        _ => None,
    };
    match fields {
        Some(Value::Object(fields)) => fields,
        _ => Map::from_iter([("bytes".into(), json!(any.value.len()))]),
    }
}

/// Print what the shim of a container tells, as it tells it
///
/// Until it is interrupted. The events of a shim go to one place: a `run --events` that is under way has those of its own.
#[derive(Debug, Args)]
pub struct Listen {
    /// The container, or the group of containers that share a shim; it need not be there yet
    id: String,
    /// End after so many
    #[arg(long)]
    count: Option<u64>,
}

impl Listen {
    pub async fn run(self, place: &Place, format: Format) -> Result<ExitCode, Error> {
        place.ensure()?;
        let path = match place.record(&self.id) {
            Ok(record) => record.events,
            Err(Error::NoTask { .. }) => {
                super::place::check_id("id", &self.id)?;
                place.events_socket(&self.id)?
            }
            Err(error) => return Err(error),
        };
        let Some(mut socket) = Socket::listen(&path).await? else {
            return Err(Error::Invalid {
                what: format!("events of {}", self.id),
                why: "another process takes them already".into(),
            });
        };
        let mut interrupt = super::run::listen(SignalKind::interrupt())?;
        let mut terminate = super::run::listen(SignalKind::terminate())?;
        let mut left = self.count.unwrap_or(u64::MAX);
        while left > 0 {
            let event = tokio::select! {
                event = socket.next() => event,
                // So that the socket goes, too.
                _ = interrupt.recv() => None,
                _ = terminate.recv() => None,
            };
            let Some(event) = event else { break };
            output::text_out(&(event.line(format) + "\n"))?;
            left -= 1;
        }
        Ok(ExitCode::SUCCESS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_a_line_with_its_fields() {
        let event = told::TaskExit {
            container_id: "c".into(),
            id: "e".into(),
            pid: 7,
            exit_status: 3,
            ..Default::default()
        };
        let any = Any {
            type_url: "containerd.events.TaskExit".into(),
            value: event.write_to_bytes().unwrap(),
            ..Default::default()
        };
        let shown = Event {
            time: None,
            namespace: "default".into(),
            topic: "/tasks/exit".into(),
            r#type: name(&any).into(),
            event: decoded(&any),
        };
        let line = shown.line(Format::Table);
        for part in [
            "/tasks/exit",
            "containerId=c",
            "id=e",
            "pid=7",
            "exitStatus=3",
        ] {
            assert!(line.contains(part), "{line}");
        }
        let parsed: Value = serde_json::from_str(&shown.line(Format::Json)).unwrap();
        assert_eq!(parsed["event"]["exitStatus"], 3);
    }

    #[test]
    fn what_is_not_known_is_told_by_its_length() {
        for any in [
            Any {
                type_url: "x/containerd.events.Novel".into(),
                value: vec![1, 2],
                ..Default::default()
            },
            Any {
                type_url: "containerd.events.TaskOOM".into(),
                value: vec![0xff, 0xff],
                ..Default::default()
            },
        ] {
            assert_eq!(decoded(&any)["bytes"], 2);
        }
    }
}
