//! A shim's socket: a call by the name that its task service has, its deadline, and what became of it.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use protobuf::Message;
use tokio::{net::UnixStream, time::timeout};
use ttrpc::{Code, asynchronous::Client, asynchronous::transport::Socket, proto::Request};

use crate::{
    Bootstrap, Failure,
    frames::{Checked, NOISE},
};

/// The header that says which namespace a call is about; Go's shims refuse a Create without it.
const NAMESPACE_HEADER: &str = "containerd-namespace-ttrpc";

/// Connects to the socket of a shim, for whichever of its services.
pub async fn connect(socket: &Path, deadline: Duration) -> Result<Client, Failure> {
    let stream = timeout(deadline, UnixStream::connect(socket))
        .await
        .map_err(|_| Failure::Hangs(deadline))?
        .map_err(|error| {
            Failure::Died(format!("nobody answers at {}: {error}", socket.display()))
        })?;
    Ok(Client::new(Socket::new(Checked::new(stream))))
}

/// A shim's task service.
#[derive(Clone)]
pub struct Connection {
    namespace: String,
    service: &'static str,
    client: Client,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Connection({})", self.service)
    }
}

impl Connection {
    pub async fn open(
        bootstrap: &Bootstrap,
        namespace: &str,
        deadline: Duration,
    ) -> Result<Self, Failure> {
        Ok(Self {
            namespace: namespace.to_owned(),
            service: bootstrap.service(),
            client: connect(&bootstrap.socket, deadline).await?,
        })
    }

    /// One call. No deadline: it may take as long as a container runs.
    pub async fn call<A: Message>(
        &self,
        method: &str,
        request: &impl Message,
        deadline: Option<Duration>,
    ) -> Result<A, Failure> {
        let payload = request
            .write_to_bytes()
            .map_err(|error| Failure::Failed(format!("encode it: {error}")))?;
        let request = Request {
            service: self.service.into(),
            method: method.into(),
            payload,
            timeout_nano: deadline.map_or(0, |deadline| deadline.as_nanos() as i64),
            metadata: vec![ttrpc::proto::KeyValue {
                key: NAMESPACE_HEADER.into(),
                value: self.namespace.clone(),
                ..Default::default()
            }],
            ..Default::default()
        };
        let began = Instant::now();
        let answer = self.client.request(request);
        let answer = match deadline {
            None => answer.await,
            Some(deadline) => timeout(deadline, answer)
                .await
                .map_err(|_| Failure::Hangs(deadline))?,
        };
        // Whichever side's clock is first.
        let late = deadline.filter(|deadline| began.elapsed() >= *deadline);
        let answer = match (answer, late) {
            (Ok(answer), _) => answer,
            (Err(ttrpc::Error::RpcStatus(status)), late) => {
                return Err(match (status.code(), late) {
                    (Code::DEADLINE_EXCEEDED, Some(deadline)) => Failure::Hangs(deadline),
                    (code, _) => Failure::Refused {
                        code,
                        message: status.message,
                    },
                });
            }
            (Err(_), Some(deadline)) => return Err(Failure::Hangs(deadline)),
            (Err(error), None) => return Err(broken(error)),
        };
        A::parse_from_bytes(&answer.payload)
            .map_err(|error| Failure::Garbage(format!("its answer is no {}: {error}", A::NAME)))
    }
}

/// What an error without a status says of the other side.
pub fn broken(error: ttrpc::Error) -> Failure {
    match error {
        ttrpc::Error::RpcStatus(status) => Failure::Refused {
            code: status.code(),
            message: status.message,
        },
        ttrpc::Error::Socket(why) if why.contains(NOISE) => Failure::Garbage(why),
        // Of an answer that does not parse.
        ttrpc::Error::Others(why) if why.starts_with("Unpack") => Failure::Garbage(why),
        other => Failure::Died(other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::UnixListener,
    };
    use ttrpc::proto::Status;

    use super::*;

    /// A shim that answers each call with these bytes.
    async fn call(answer: &'static [u8], deadline: Duration) -> Failure {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("s");
        let listener = UnixListener::bind(&socket).unwrap();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut asked = [0; 1024];
            let _ = stream.read(&mut asked).await;
            let _ = stream.write_all(answer).await;
            // The connection stays.
            let _ = stream.read_to_end(&mut Vec::new()).await;
        });
        let bootstrap = Bootstrap { socket, version: 3 };
        let connection = Connection::open(&bootstrap, "n", deadline).await.unwrap();
        connection
            .call::<Status>("State", &Status::new(), Some(deadline))
            .await
            .unwrap_err()
    }

    #[tokio::test]
    async fn noise_is_an_error_at_once_and_silence_after_the_deadline() {
        let began = Instant::now();
        let long = Duration::from_secs(60);
        for noise in [
            &[0x5a; 4096][..],
            &[0; 64],
            b"HTTP/1.1 400 Bad Request\r\n\r\n",
        ] {
            let failure = call(noise, long).await;
            assert!(matches!(failure, Failure::Garbage(_)), "{failure:?}");
            assert!(failure.to_string().contains("no ttrpc"), "{failure}");
        }
        assert!(began.elapsed() < Duration::from_secs(10));
        let short = Duration::from_millis(50);
        let failure = call(b"", short).await;
        assert!(matches!(failure, Failure::Hangs(_)), "{failure:?}");
    }

    #[tokio::test]
    async fn a_socket_that_is_not_there_is_named() {
        let failure = connect(Path::new("/nonexistent/s"), Duration::from_secs(1)).await;
        let failure = failure.err().unwrap();
        assert!(matches!(failure, Failure::Died(_)), "{failure:?}");
        assert!(failure.to_string().contains("/nonexistent/s"), "{failure}");
    }
}
