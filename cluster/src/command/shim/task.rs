//! The task service of a shim: a call, its deadline, and errors that name shim and step.

use std::time::Duration;

use berth_shim_client::{Bootstrap, Connection, Failure};
use protobuf::Message;

use crate::error::Error;

/// A connection to a shim.
#[derive(Debug, Clone)]
pub struct Task {
    /// The shim's name, for errors.
    shim: String,
    connection: Connection,
    deadline: Duration,
}

impl Task {
    pub async fn connect(
        shim: &str,
        namespace: &str,
        bootstrap: &Bootstrap,
        deadline: Duration,
    ) -> Result<Self, Error> {
        let connection = Connection::open(bootstrap, namespace, deadline).await;
        Ok(Self {
            shim: shim.into(),
            connection: connection.map_err(|failure| error(shim, "connect", failure))?,
            deadline,
        })
    }

    /// One call that must be answered within the deadline.
    pub async fn call<A: Message>(
        &self,
        method: &'static str,
        request: &impl Message,
    ) -> Result<A, Error> {
        let answer = self.connection.call(method, request, Some(self.deadline));
        answer
            .await
            .map_err(|failure| error(&self.shim, method, failure))
    }

    /// One call that may last: `Wait`.
    pub async fn unbounded<A: Message>(
        &self,
        method: &'static str,
        request: &impl Message,
    ) -> Result<A, Error> {
        let answer = self.connection.call(method, request, None);
        answer
            .await
            .map_err(|failure| error(&self.shim, method, failure))
    }
}

fn error(shim: &str, step: &str, failure: Failure) -> Error {
    Error::Shim {
        shim: shim.into(),
        step: step.into(),
        failure,
    }
}
