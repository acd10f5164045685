//! The other shim's task service: each call by the name that its version has, with a deadline, and errors that name shim and step.

use std::{
    io::ErrorKind,
    time::{Duration, Instant},
};

use berth_engine::Error;
use berth_proto::shim::shim_async::Client as Connection;
use protobuf::Message;
use tokio::time::timeout;
use ttrpc::{Code, proto::Request};

/// connect(2) to a unix socket answers at once, or nobody takes the call.
const CONNECT: Duration = Duration::from_secs(2);
/// Of what a shim says in an error: runc's carry the end of its log.
const MAX_MESSAGE_BYTES: usize = 2048;

/// Which shim an error is about.
#[derive(Debug, Clone)]
pub struct Name(pub String);

impl Name {
    pub fn error(&self, step: impl Into<String>, kind: ErrorKind, reason: impl ToString) -> Error {
        Error::Shim {
            shim: self.0.clone(),
            step: step.into(),
            reason: printable(&reason.to_string()),
            kind,
        }
    }
}

/// One line without control characters: it goes into logs and answers.
pub fn printable(text: &str) -> String {
    let mut shown: String = text
        .trim()
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    if shown.len() > MAX_MESSAGE_BYTES {
        let cut = (0..=MAX_MESSAGE_BYTES)
            .rev()
            .find(|at| shown.is_char_boundary(*at));
        shown.truncate(cut.unwrap_or(0));
        shown.push('…');
    }
    shown
}

/// Where a shim listens and what it speaks, as its `start` has said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// Absolute path of a unix socket.
    pub socket: String,
    /// Of the task service: 2 or 3.
    pub version: u32,
}

pub struct Client {
    name: Name,
    service: String,
    connection: Connection,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Client({}, {})", self.name.0, self.service)
    }
}

impl Client {
    pub async fn connect(name: &Name, address: &Address) -> Result<Client, Error> {
        let step = || format!("connect to {}", address.socket);
        let target = format!("unix://{}", address.socket);
        let connected = timeout(CONNECT, Connection::connect(&target)).await;
        let connection = connected
            .map_err(|_| name.error(step(), ErrorKind::TimedOut, late(CONNECT)))?
            .map_err(|error| name.error(step(), ErrorKind::ConnectionRefused, error))?;
        Ok(Client {
            name: name.clone(),
            service: format!("containerd.task.v{}.Task", address.version),
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
        let step = || format!("{method} {what}");
        let bad = |error: protobuf::Error| self.name.error(step(), ErrorKind::InvalidData, error);
        let request = Request {
            service: self.service.clone(),
            method: method.to_owned(),
            payload: request.write_to_bytes().map_err(bad)?,
            timeout_nano: deadline.map_or(0, |deadline| deadline.as_nanos() as i64),
            ..Default::default()
        };
        let began = Instant::now();
        let answer = self.connection.request(request);
        let answer = match deadline {
            None => answer.await,
            Some(deadline) => timeout(deadline, answer)
                .await
                .map_err(|_| self.name.error(step(), ErrorKind::TimedOut, late(deadline)))?,
        };
        match answer {
            Ok(answer) => R::parse_from_bytes(&answer.payload).map_err(bad),
            Err(ttrpc::Error::RpcStatus(status)) => {
                let kind = match status.code.enum_value() {
                    Ok(Code::NOT_FOUND) => ErrorKind::NotFound,
                    Ok(Code::INVALID_ARGUMENT) => ErrorKind::InvalidInput,
                    Ok(Code::UNIMPLEMENTED) => ErrorKind::Unsupported,
                    Ok(Code::DEADLINE_EXCEEDED) => ErrorKind::TimedOut,
                    _ => ErrorKind::Other,
                };
                Err(self.name.error(step(), kind, status.message))
            }
            // The other side of the same clock.
            Err(error) => match deadline {
                Some(deadline) if began.elapsed() >= deadline => {
                    Err(self.name.error(step(), ErrorKind::TimedOut, late(deadline)))
                }
                _ => Err(self.name.error(step(), ErrorKind::BrokenPipe, error)),
            },
        }
    }
}

fn late(deadline: Duration) -> String {
    format!("no answer for {} ms", deadline.as_millis())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_shim_says_is_one_short_line() {
        assert_eq!(printable(" a\nb\x1b[1m "), "a b [1m");
        let long = printable(&"ä".repeat(MAX_MESSAGE_BYTES));
        assert!(long.len() <= MAX_MESSAGE_BYTES + '…'.len_utf8() && long.ends_with('…'));
    }
}
