//! Many execs by a client of our own on the shim's socket, past containerd: the shim is what is measured.

use std::{fs, path::Path, sync::Arc, time::Duration};

use anyhow::{Context, Result, ensure};
use berth_proto::shim::api::{
    ConnectRequest, ConnectResponse, DeleteRequest, DeleteResponse, Empty, ExecProcessRequest,
    StartRequest, StartResponse, WaitRequest, WaitResponse,
};
use berth_shim_client::{Bootstrap, Connection};
use protobuf::{Message, MessageField, well_known_types::any::Any};
use tokio::{sync::Semaphore, task::JoinSet};

use crate::tasks::NAMESPACE;

const CONNECT: Duration = Duration::from_secs(2);
const PROCESS: &str = "types.containerd.io/opencontainers/runtime-spec/1/Process";

#[derive(Clone)]
pub struct Shim {
    connection: Connection,
    id: String,
}

impl Shim {
    /// The shim of a container, by the address in its bundle.
    pub async fn of(state: &Path, id: &str) -> Result<Self> {
        let bundle = state
            .join("io.containerd.runtime.v2.task")
            .join(NAMESPACE)
            .join(id);
        let path = bundle.join("address");
        let address =
            fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        let bootstrap = Bootstrap::parse(address.as_bytes())?;
        Ok(Self {
            connection: Connection::open(&bootstrap, NAMESPACE, CONNECT).await?,
            id: id.into(),
        })
    }

    async fn call<A: Message>(&self, method: &str, request: &impl Message) -> Result<A> {
        let answer = self.connection.call(method, request, None).await;
        answer.with_context(|| method.to_owned())
    }

    pub async fn pid(&self) -> Result<i32> {
        let request = ConnectRequest {
            id: self.id.clone(),
            ..Default::default()
        };
        let answer: ConnectResponse = self.call("Connect", &request).await?;
        Ok(answer.shim_pid as i32)
    }

    /// From Exec to Delete.
    async fn exec(&self, exec_id: String, process: &[u8]) -> Result<()> {
        let id = self.id.clone();
        let request = ExecProcessRequest {
            id: id.clone(),
            exec_id: exec_id.clone(),
            spec: MessageField::some(Any {
                type_url: PROCESS.into(),
                value: process.to_vec(),
                ..Default::default()
            }),
            ..Default::default()
        };
        self.call::<Empty>("Exec", &request).await?;
        let request = StartRequest {
            id: id.clone(),
            exec_id: exec_id.clone(),
            ..Default::default()
        };
        self.call::<StartResponse>("Start", &request).await?;
        let request = WaitRequest {
            id: id.clone(),
            exec_id: exec_id.clone(),
            ..Default::default()
        };
        let ended: WaitResponse = self.call("Wait", &request).await?;
        ensure!(
            ended.exit_status == 0,
            "an exec ended with {}",
            ended.exit_status
        );
        let request = DeleteRequest {
            id,
            exec_id,
            ..Default::default()
        };
        self.call::<DeleteResponse>("Delete", &request).await?;
        Ok(())
    }

    /// So many execs, so many of them at a time.
    pub async fn execs(&self, process: &[u8], count: usize, in_flight: usize) -> Result<()> {
        let room = Arc::new(Semaphore::new(in_flight));
        let process: Arc<[u8]> = process.into();
        let mut running: JoinSet<Result<()>> = JoinSet::new();
        for number in 0..count {
            let permit = room.clone().acquire_owned().await?;
            let (shim, process) = (self.clone(), process.clone());
            running.spawn(async move {
                let done = shim.exec(format!("e{number}"), &process).await;
                drop(permit);
                done
            });
            while let Some(done) = running.try_join_next() {
                done??;
            }
        }
        while let Some(done) = running.join_next().await {
            done??;
        }
        Ok(())
    }
}
