//! Events for containerd, told in order to the socket that `TTRPC_ADDRESS` names. berthd has no need of them: it polls `Pod.Changes`.
//!
//! The queue is bounded: a daemon that is down, or slow, never holds up a container. What does not fit is dropped, oldest first, with a line in the log.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
    time::Duration,
};

use berth_proto::shim::{
    api::ForwardRequest,
    events::task::{
        TaskCreate, TaskDelete, TaskExecAdded, TaskExecStarted, TaskExit, TaskOOM, TaskPaused,
        TaskResumed, TaskStart,
    },
    shim_async::{Client, EventsClient},
};
use protobuf::{Message, MessageField, well_known_types::any::Any};
use tokio::{sync::Notify, time::sleep};
use ttrpc::context;

use crate::{
    clock,
    container::{Container, Ended, lock},
    journal,
    reaper::Exit,
};

/// Events not yet told: minutes of a busy pod.
const MAX_QUEUED: usize = 1024;
/// One event's way to the daemon.
const FORWARD: Duration = Duration::from_secs(5);
/// After a failure.
const RETRY: Duration = Duration::from_secs(1);
/// How often one event is tried.
const TRIES: u32 = 5;

#[derive(Debug, Clone, Default)]
pub struct Events {
    /// None: nobody listens.
    queue: Option<Arc<Queue>>,
}

#[derive(Debug)]
struct Queue {
    address: String,
    namespace: String,
    requests: Mutex<VecDeque<ForwardRequest>>,
    added: Notify,
}

impl Events {
    pub fn new(namespace: &str) -> Events {
        let address = std::env::var("TTRPC_ADDRESS").unwrap_or_default();
        if address.is_empty() {
            return Events::default();
        }
        let queue = Queue {
            address,
            namespace: namespace.to_owned(),
            requests: Mutex::default(),
            added: Notify::new(),
        };
        Events {
            queue: Some(Arc::new(queue)),
        }
    }

    /// Tells what is queued, for the life of the shim.
    pub async fn run(self) {
        let Some(queue) = self.queue else { return };
        let mut client: Option<EventsClient> = None;
        loop {
            let next = lock(&queue.requests).pop_front();
            let Some(request) = next else {
                queue.added.notified().await;
                continue;
            };
            let mut tries = 0;
            while let Err(error) = forward(&queue, &mut client, &request).await {
                client = None;
                tries += 1;
                if tries == TRIES {
                    journal!(
                        "event {} was not taken by {}: {error}",
                        request.envelope.topic,
                        queue.address
                    );
                    break;
                }
                sleep(RETRY).await;
            }
        }
    }

    fn tell<M: Message>(&self, topic: &str, event: M) {
        let Some(queue) = &self.queue else { return };
        let name = format!("containerd.events.{}", M::NAME);
        let Ok(value) = event.write_to_bytes() else {
            return;
        };
        let mut request = ForwardRequest::new();
        let envelope = request.envelope.mut_or_insert_default();
        envelope.timestamp = clock::timestamp(clock::now_ns());
        envelope.namespace = queue.namespace.clone();
        envelope.topic = topic.to_owned();
        envelope.event = MessageField::some(Any {
            type_url: name,
            value,
            ..Default::default()
        });
        let mut requests = lock(&queue.requests);
        if requests.len() == MAX_QUEUED
            && let Some(dropped) = requests.pop_front()
        {
            journal!(
                "event {} was dropped: {MAX_QUEUED} wait for {}",
                dropped.envelope.topic,
                queue.address
            );
        }
        requests.push_back(request);
        queue.added.notify_one();
    }

    pub fn created(&self, container: &Container) {
        self.tell(
            "/tasks/create",
            TaskCreate {
                container_id: container.id.clone(),
                bundle: container.bundle.display().to_string(),
                pid: container.pid as u32,
                ..Default::default()
            },
        );
    }

    pub fn started(&self, container: &Container) {
        self.tell(
            "/tasks/start",
            TaskStart {
                container_id: container.id.clone(),
                pid: container.pid as u32,
                ..Default::default()
            },
        );
    }

    pub fn exited(&self, container: &Container, ended: &Ended) {
        self.tell(
            "/tasks/exit",
            TaskExit {
                container_id: container.id.clone(),
                id: container.id.clone(),
                pid: container.pid as u32,
                exit_status: ended.exit_code as u32,
                exited_at: clock::timestamp(ended.at),
                ..Default::default()
            },
        );
    }

    pub fn oom(&self, id: &str) {
        self.tell(
            "/tasks/oom",
            TaskOOM {
                container_id: id.to_owned(),
                ..Default::default()
            },
        );
    }

    pub fn paused(&self, id: &str) {
        self.tell(
            "/tasks/paused",
            TaskPaused {
                container_id: id.to_owned(),
                ..Default::default()
            },
        );
    }

    pub fn resumed(&self, id: &str) {
        self.tell(
            "/tasks/resumed",
            TaskResumed {
                container_id: id.to_owned(),
                ..Default::default()
            },
        );
    }

    pub fn deleted(&self, container: &Container, ended: &Ended) {
        self.tell(
            "/tasks/delete",
            TaskDelete {
                container_id: container.id.clone(),
                pid: container.pid as u32,
                exit_status: ended.exit_code as u32,
                exited_at: clock::timestamp(ended.at),
                ..Default::default()
            },
        );
    }

    pub fn exec_added(&self, id: &str, exec_id: &str) {
        self.tell(
            "/tasks/exec-added",
            TaskExecAdded {
                container_id: id.to_owned(),
                exec_id: exec_id.to_owned(),
                ..Default::default()
            },
        );
    }

    pub fn exec_started(&self, id: &str, exec_id: &str, pid: i32) {
        self.tell(
            "/tasks/exec-started",
            TaskExecStarted {
                container_id: id.to_owned(),
                exec_id: exec_id.to_owned(),
                pid: pid as u32,
                ..Default::default()
            },
        );
    }

    pub fn exec_exited(&self, id: &str, exec_id: &str, pid: i32, exit: Exit) {
        self.tell(
            "/tasks/exit",
            TaskExit {
                container_id: id.to_owned(),
                id: exec_id.to_owned(),
                pid: pid as u32,
                exit_status: exit.code as u32,
                exited_at: clock::timestamp(exit.at),
                ..Default::default()
            },
        );
    }
}

async fn forward(
    queue: &Queue,
    client: &mut Option<EventsClient>,
    request: &ForwardRequest,
) -> ttrpc::Result<()> {
    let connected = match client.take() {
        Some(connected) => connected,
        None => {
            let address = match queue.address.strip_prefix("unix://") {
                Some(_) => queue.address.clone(),
                None => format!("unix://{}", queue.address),
            };
            EventsClient::new(Client::connect(&address).await?)
        }
    };
    let told = connected
        .forward(context::with_duration(FORWARD), request)
        .await;
    *client = Some(connected);
    told.map(drop)
}
