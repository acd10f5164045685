//! The task service of a shim, by either of its names: a call, its deadline, and what became of it.

use std::{path::PathBuf, time::Duration};

use berth_proto::shim::shim_async::Client;
use protobuf::Message;
use tokio::{net::UnixStream, time::timeout};
use ttrpc::r#async::transport::Socket;

use super::binary::Bootstrap;
use crate::error::{Error, Failure};

/// The header that says which namespace a call is about; Go's shims refuse a Create without it.
const NAMESPACE_HEADER: &str = "containerd-namespace-ttrpc";

/// A connection to a shim.
#[derive(Clone)]
pub struct Task {
    /// The shim's name, for errors.
    shim: String,
    namespace: String,
    service: &'static str,
    client: Client,
    deadline: Duration,
}

impl std::fmt::Debug for Task {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Task({} of {})", self.service, self.shim)
    }
}

impl Task {
    pub async fn connect(
        shim: &str,
        namespace: &str,
        bootstrap: &Bootstrap,
        deadline: Duration,
    ) -> Result<Self, Error> {
        let error = |failure| Error::Shim {
            shim: shim.into(),
            step: "connect".into(),
            failure,
        };
        let path: &PathBuf = &bootstrap.path;
        let stream = timeout(deadline, UnixStream::connect(path))
            .await
            .map_err(|_| error(Failure::Hangs(deadline)))?
            .map_err(|source| {
                error(Failure::Died(format!(
                    "nobody answers at {}: {source}",
                    path.display()
                )))
            })?;
        Ok(Self {
            shim: shim.into(),
            namespace: namespace.into(),
            service: match bootstrap.version {
                2 => "containerd.task.v2.Task",
                _ => "containerd.task.v3.Task",
            },
            client: Client::new(Socket::new(stream)),
            deadline,
        })
    }

    /// One call that must be answered within the deadline.
    pub async fn call<A: Message>(
        &self,
        method: &'static str,
        request: &impl Message,
    ) -> Result<A, Error> {
        match timeout(self.deadline, self.unbounded(method, request)).await {
            Ok(answer) => answer,
            Err(_) => Err(self.error(method, Failure::Hangs(self.deadline))),
        }
    }

    /// One call that may last: `Wait`.
    pub async fn unbounded<A: Message>(
        &self,
        method: &'static str,
        request: &impl Message,
    ) -> Result<A, Error> {
        let payload = request
            .write_to_bytes()
            .map_err(|error| self.error(method, Failure::Failed(format!("encode it: {error}"))))?;
        let request = ttrpc::Request {
            service: self.service.into(),
            method: method.into(),
            payload,
            metadata: vec![ttrpc::proto::KeyValue {
                key: NAMESPACE_HEADER.into(),
                value: self.namespace.clone(),
                ..Default::default()
            }],
            ..Default::default()
        };
        let answer = self
            .client
            .request(request)
            .await
            .map_err(|error| self.error(method, failure(error)))?;
        A::parse_from_bytes(&answer.payload).map_err(|error| {
            self.error(
                method,
                Failure::Garbage(format!("its answer is no {}: {error}", A::NAME)),
            )
        })
    }

    fn error(&self, method: &str, failure: Failure) -> Error {
        Error::Shim {
            shim: self.shim.clone(),
            step: method.into(),
            failure,
        }
    }
}

fn failure(error: ttrpc::Error) -> Failure {
    match error {
        ttrpc::Error::RpcStatus(status) => Failure::Refused {
            code: format!("{:?}", status.code()),
            message: status.message,
        },
        ttrpc::Error::Others(message) => Failure::Garbage(message),
        other => Failure::Died(other.to_string()),
    }
}
