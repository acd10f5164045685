//! The other shim's task service: each call with a deadline, and errors that name shim and step.

use std::{io::ErrorKind, time::Duration};

use berth_engine::Error;
use berth_shim_client::{Bootstrap, Connection, Failure, failure::line};
use protobuf::Message;
use ttrpc::Code;

/// connect(2) to a unix socket answers at once, or nobody takes the call.
const CONNECT: Duration = Duration::from_secs(2);

/// Which shim an error is about.
#[derive(Debug, Clone)]
pub struct Name(pub String);

impl Name {
    pub fn error(&self, step: impl Into<String>, kind: ErrorKind, reason: impl ToString) -> Error {
        Error::Shim {
            shim: self.0.clone(),
            step: step.into(),
            reason: line(&reason.to_string()),
            kind,
        }
    }

    pub fn failure(&self, step: impl Into<String>, failure: Failure) -> Error {
        let kind = match failure.bare() {
            Failure::Refused { code, .. } => match code {
                Code::NOT_FOUND => ErrorKind::NotFound,
                Code::INVALID_ARGUMENT => ErrorKind::InvalidInput,
                Code::UNIMPLEMENTED => ErrorKind::Unsupported,
                Code::DEADLINE_EXCEEDED => ErrorKind::TimedOut,
                _ => ErrorKind::Other,
            },
            Failure::Hangs(_) => ErrorKind::TimedOut,
            Failure::Died(_) => ErrorKind::BrokenPipe,
            Failure::Garbage(_) => ErrorKind::InvalidData,
            Failure::NotRun { error, .. } => error.kind(),
            Failure::Failed(_) | Failure::Logged(..) => ErrorKind::Other,
        };
        match failure {
            Failure::Refused { message, .. } => self.error(step, kind, message),
            failure => self.error(step, kind, failure),
        }
    }
}

#[derive(Debug)]
pub struct Client {
    name: Name,
    connection: Connection,
}

impl Client {
    pub async fn connect(
        name: &Name,
        namespace: &str,
        bootstrap: &Bootstrap,
    ) -> Result<Client, Error> {
        let connection = Connection::open(bootstrap, namespace, CONNECT).await;
        let connection = connection.map_err(|failure| {
            name.failure(
                format!("connect to {}", bootstrap.socket.display()),
                failure,
            )
        })?;
        Ok(Client {
            name: name.clone(),
            connection,
        })
    }

    /// One call; `what` says on what, for errors. No deadline: it may take as long as a container runs.
    pub async fn call<R: Message>(
        &self,
        method: &str,
        what: &str,
        request: &impl Message,
        deadline: Option<Duration>,
    ) -> Result<R, Error> {
        let answer = self.connection.call(method, request, deadline).await;
        answer.map_err(|failure| self.name.failure(format!("{method} {what}"), failure))
    }
}
