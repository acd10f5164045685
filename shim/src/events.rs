//! Events for containerd, told in order to the socket that `TTRPC_ADDRESS` names ([`crate::event_queue`]). berthd has no need of them: it polls
//! `Pod.Changes`.

use std::sync::Arc;

use berth_proto::shim::{
    api::{CreateTaskRequest, ForwardRequest},
    events::task::{
        TaskCheckpointed, TaskCreate, TaskDelete, TaskExecAdded, TaskExecStarted, TaskExit, TaskIO,
        TaskOOM, TaskPaused, TaskResumed, TaskStart,
    },
};
use protobuf::{Message, MessageField, well_known_types::any::Any};

use crate::{
    clock,
    container::{Container, Ended},
    event_queue::{Queue, Waiting},
    reaper::Exit,
};

#[derive(Debug, Clone, Default)]
pub struct Events {
    namespace: String,
    /// None: nobody listens.
    queue: Option<Arc<Queue>>,
}

impl Events {
    pub fn new(namespace: &str) -> Events {
        let address = std::env::var("TTRPC_ADDRESS").unwrap_or_default();
        Events {
            namespace: namespace.to_owned(),
            queue: (!address.is_empty()).then(|| Queue::to(&address)),
        }
    }

    /// Whether anybody hears of what is told.
    pub fn are_heard(&self) -> bool {
        self.queue.is_some()
    }

    /// Tells what is queued, for the life of the shim.
    pub async fn run(self) {
        if let Some(queue) = self.queue {
            queue.run().await;
        }
    }

    /// Waits for the last ones to be taken, but not for long.
    pub async fn settle(&self) {
        if let Some(queue) = &self.queue {
            queue.settle().await;
        }
    }

    fn tell<M: Message>(&self, topic: &str, event: M) {
        self.queue(topic, event, false);
    }

    fn tell_of_exec<M: Message>(&self, topic: &str, event: M) {
        self.queue(topic, event, true);
    }

    fn queue<M: Message>(&self, topic: &str, event: M, of_exec: bool) {
        let Some(queue) = &self.queue else { return };
        let name = format!("containerd.events.{}", M::NAME);
        let Ok(value) = event.write_to_bytes() else {
            return;
        };
        let mut request = ForwardRequest::new();
        let envelope = request.envelope.mut_or_insert_default();
        envelope.timestamp = clock::timestamp(clock::now_ns());
        envelope.namespace = self.namespace.clone();
        envelope.topic = topic.to_owned();
        envelope.event = MessageField::some(Any {
            type_url: name,
            value,
            ..Default::default()
        });
        queue.push(Waiting { request, of_exec });
    }

    /// What will be told of a container that this request makes; none where nobody listens.
    pub fn creation(&self, request: &CreateTaskRequest) -> Option<TaskCreate> {
        self.queue.as_ref()?;
        Some(TaskCreate {
            container_id: request.id.clone(),
            bundle: request.bundle.clone(),
            rootfs: request.rootfs.clone(),
            io: MessageField::some(TaskIO {
                stdin: request.stdin.clone(),
                stdout: request.stdout.clone(),
                stderr: request.stderr.clone(),
                terminal: request.terminal,
                ..Default::default()
            }),
            checkpoint: request.checkpoint.clone(),
            ..Default::default()
        })
    }

    pub fn created(&self, creation: Option<TaskCreate>, pid: i32) {
        if let Some(mut creation) = creation {
            creation.pid = pid as u32;
            self.tell("/tasks/create", creation);
        }
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

    pub fn checkpointed(&self, id: &str, path: &str) {
        self.tell(
            "/tasks/checkpointed",
            TaskCheckpointed {
                container_id: id.to_owned(),
                checkpoint: path.to_owned(),
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
        self.tell_of_exec(
            "/tasks/exec-added",
            TaskExecAdded {
                container_id: id.to_owned(),
                exec_id: exec_id.to_owned(),
                ..Default::default()
            },
        );
    }

    pub fn exec_started(&self, id: &str, exec_id: &str, pid: i32) {
        self.tell_of_exec(
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
        self.tell_of_exec(
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
