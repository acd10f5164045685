//! `containerd.services.streaming.v1.Streaming`: a process's streams as messages over this shim's own socket, for a containerd whose runtime has
//! `io_type = "streaming"`. It connects before the task is made, by an id that Create's URIs then name, and again after a restart.
//!
//! ```text
//!   client: StreamInit(id) ─▶    answered by an Empty
//!   output: client: WindowUpdate(n) ─▶   ◀─ Data: up to so many bytes, in pieces
//!   input:  ◀─ WindowUpdate(n)           client: Data ─▶, its half-close is the end of stdin
//! ```
//!
//! Behind each id is a pipe, which bounds what is held: a client that is away holds up the process, as one that does not read its fifo does.
//!
//! # Synchronization
//! A channel's pipe is locked by the one client that has it for as long as it has it; a newer client lets `turn` go up, and the older one goes.

use std::{
    collections::{BTreeMap, HashMap},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::{Arc, Mutex as StdMutex},
};

use async_trait::async_trait;
use protobuf::{
    Message,
    well_known_types::{
        any::Any,
        wrappers::{BytesValue, Int32Value, StringValue},
    },
};
use rustix::pipe::{PipeFlags, pipe_with};
use tokio::{
    io::AsyncWriteExt,
    net::unix::pipe::{Receiver, Sender},
    select,
    sync::{Mutex, watch},
};
use ttrpc::{
    Code,
    r#async::{
        SSReceiver, SSSender, ServerStream, Service, StreamHandler, StreamInner, TtrpcContext,
    },
    get_status,
    proto::Response,
};

use crate::{container::lock, error::Error, stdio_uri::Target, stream::set_nonblocking};

const SERVICE: &str = "containerd.services.streaming.v1.Streaming";
/// The messages. Each has one field, numbered 1, and so the form of a well-known wrapper.
const INIT: &str = "containerd.services.streaming.v1.StreamInit";
const DATA: &str = "containerd.types.transfer.Data";
const WINDOW: &str = "containerd.types.transfer.WindowUpdate";
/// One message's data, and what a client may send ahead: containerd's own figures.
const MAX_DATA_BYTES: usize = 32 << 10;
const WINDOW_BYTES: i32 = 64 << 10;
/// Channels at a time: three a container and exec.
const MAX_CHANNELS: usize = 4096;

#[derive(Debug)]
pub struct Streams {
    /// This shim's own.
    socket: PathBuf,
    channels: StdMutex<BTreeMap<String, Arc<Channel>>>,
}

#[derive(Debug)]
struct Channel {
    /// What the process has of it.
    end: watch::Sender<End>,
    /// Raised by each client that connects.
    turn: watch::Sender<u64>,
}

#[derive(Debug, Clone)]
enum End {
    /// No task has named it yet.
    Unclaimed,
    Output(Arc<Mutex<Output>>),
    Input(Arc<Mutex<Option<Sender>>>),
}

#[derive(Debug)]
struct Output {
    source: Receiver,
    /// Read, and not sent to a client that went away.
    pending: Vec<u8>,
}

impl Streams {
    pub fn at(socket: PathBuf) -> Arc<Streams> {
        Arc::new(Streams {
            socket,
            channels: StdMutex::default(),
        })
    }

    /// What a process's output is written to.
    pub fn output(&self, socket: &Path, id: &str) -> Result<Sender, Error> {
        let (source, sink) = self.pipe(socket)?;
        self.claim(id, || {
            Ok(End::Output(Arc::new(Mutex::new(Output {
                source: Receiver::from_owned_fd_unchecked(source)?,
                pending: Vec::new(),
            }))))
        })?;
        Sender::from_owned_fd_unchecked(sink).map_err(Error::io("make a stream"))
    }

    /// What a process's input comes from.
    pub fn input(&self, socket: &Path, id: &str) -> Result<Receiver, Error> {
        let (source, sink) = self.pipe(socket)?;
        self.claim(id, || {
            let sink = Sender::from_owned_fd_unchecked(sink)?;
            Ok(End::Input(Arc::new(Mutex::new(Some(sink)))))
        })?;
        Receiver::from_owned_fd_unchecked(source).map_err(Error::io("make a stream"))
    }

    fn pipe(&self, socket: &Path) -> Result<(OwnedFd, OwnedFd), Error> {
        // A client may write more slashes than there are.
        if socket.components().ne(self.socket.components()) {
            return Err(Error::invalid(
                format!("stream at {}", socket.display()),
                "this shim serves its own streams and no other server's",
            ));
        }
        let step = "make a stream";
        let (source, sink) = pipe_with(PipeFlags::CLOEXEC).map_err(Error::io(step))?;
        set_nonblocking(&source).map_err(Error::io(step))?;
        set_nonblocking(&sink).map_err(Error::io(step))?;
        Ok((source, sink))
    }

    fn claim(&self, id: &str, end: impl FnOnce() -> std::io::Result<End>) -> Result<(), Error> {
        let channel = self.channel(id)?;
        if !matches!(&*channel.end.borrow(), End::Unclaimed) {
            return Err(Error::Exists {
                what: "stream",
                id: id.to_owned(),
            });
        }
        channel
            .end
            .send_replace(end().map_err(Error::io("make a stream"))?);
        Ok(())
    }

    fn channel(&self, id: &str) -> Result<Arc<Channel>, Error> {
        let mut channels = lock(&self.channels);
        if let Some(channel) = channels.get(id) {
            return Ok(channel.clone());
        }
        if channels.len() >= MAX_CHANNELS {
            return Err(Error::TooMany {
                what: "streams",
                most: MAX_CHANNELS,
            });
        }
        let channel = Arc::new(Channel {
            end: watch::Sender::new(End::Unclaimed),
            turn: watch::Sender::new(0),
        });
        channels.insert(id.to_owned(), channel.clone());
        Ok(channel)
    }

    /// A process is deleted: what nobody has read of its streams is nobody's.
    pub fn forget(&self, uris: &[String; 3]) {
        for uri in uris {
            if let Ok(Target::Stream { id, .. }) = Target::parse(uri) {
                lock(&self.channels).remove(&id);
            }
        }
    }

    /// The service, for the server.
    pub fn service(self: &Arc<Self>) -> HashMap<String, Service> {
        let stream: Arc<dyn StreamHandler + Send + Sync> = Arc::new(Handler(self.clone()));
        let service = Service {
            methods: HashMap::new(),
            streams: HashMap::from([("Stream".to_owned(), stream)]),
        };
        HashMap::from([(SERVICE.to_owned(), service)])
    }

    async fn serve(&self, stream: ServerStream<Any, Any>) -> ttrpc::Result<()> {
        let (to, mut from) = stream.split();
        let Some(mut first) = from.recv().await? else {
            return Ok(());
        };
        // Go's client opens a stream with an empty message, which this server takes for the first.
        if first == Any::default() {
            match from.recv().await? {
                Some(second) => first = second,
                None => return Ok(()),
            }
        }
        let init: StringValue = message(&first, INIT)?;
        let channel = self.channel(&init.value)?;
        // Nobody else knows of it but who is here: it goes with its last client.
        let _unclaimed = Unclaimed(self, &init.value);
        let mut turn = 0;
        channel.turn.send_modify(|last| {
            *last += 1;
            turn = *last;
        });
        let mut turns = channel.turn.subscribe();
        to.send(&any("google.protobuf.Empty", Vec::new())).await?;
        let mut window = 0_i32;
        let mut end = channel.end.subscribe();
        let end = loop {
            let now = end.borrow_and_update().clone();
            if !matches!(now, End::Unclaimed) {
                break now;
            }
            select! {
                changed = end.changed() => if changed.is_err() { return Ok(()) },
                got = from.recv() => match got? {
                    Some(update) => window = window.saturating_add(credit(&update)?),
                    None => return Ok(()),
                },
            }
        };
        let carried = async {
            match end {
                End::Output(output) => carry_out(&output, window, &to, &mut from).await,
                End::Input(input) => carry_in(&input, &to, &mut from).await,
                End::Unclaimed => Ok(()),
            }
        };
        select! {
            biased;
            _ = turns.wait_for(|last| *last > turn) => Err(status(
                Code::ABORTED,
                format!("another client has connected to stream {:?}", init.value),
            )),
            carried = carried => carried,
        }
    }
}

/// Removes a channel that no task has claimed when its client goes.
struct Unclaimed<'a>(&'a Streams, &'a str);

impl Drop for Unclaimed<'_> {
    fn drop(&mut self) {
        let mut channels = lock(&self.0.channels);
        // Its own receiver is dropped by now.
        if let Some(channel) = channels.get(self.1)
            && matches!(&*channel.end.borrow(), End::Unclaimed)
            && channel.turn.receiver_count() == 0
        {
            channels.remove(self.1);
        }
    }
}

async fn carry_out(
    output: &Mutex<Output>,
    mut window: i32,
    to: &SSSender<Any>,
    from: &mut SSReceiver<Any>,
) -> ttrpc::Result<()> {
    let mut output = output.lock().await;
    loop {
        if output.pending.is_empty() {
            select! {
                biased;
                got = from.recv() => match got? {
                    Some(update) => window = window.saturating_add(credit(&update)?),
                    None => return Ok(()),
                },
                ready = output.source.readable(), if window > 0 => {
                    let mut buffer = vec![0; MAX_DATA_BYTES];
                    match ready.and_then(|()| output.source.try_read(&mut buffer)) {
                        // The process has ended, and all that it wrote is told.
                        Ok(0) => return Ok(()),
                        Ok(n) => {
                            buffer.truncate(n);
                            output.pending = buffer;
                        }
                        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                        Err(_) => return Ok(()),
                    }
                }
            }
        } else if window > 0 {
            let n = output.pending.len().min(window as usize);
            let data = BytesValue {
                value: output.pending[..n].to_vec(),
                ..Default::default()
            };
            to.send(&packed(DATA, &data)?).await?;
            output.pending.drain(..n);
            window -= n as i32;
        } else {
            match from.recv().await? {
                Some(update) => window = window.saturating_add(credit(&update)?),
                None => return Ok(()),
            }
        }
    }
}

async fn carry_in(
    input: &Mutex<Option<Sender>>,
    to: &SSSender<Any>,
    from: &mut SSReceiver<Any>,
) -> ttrpc::Result<()> {
    let mut input = input.lock().await;
    let grant = |bytes: i32| {
        packed(
            WINDOW,
            &Int32Value {
                value: bytes,
                ..Default::default()
            },
        )
    };
    to.send(&grant(WINDOW_BYTES)?).await?;
    while let Some(sink) = &mut *input {
        let Some(got) = from.recv().await? else {
            // The client closes its side: the end of stdin. One that only goes away comes back.
            *input = None;
            break;
        };
        let data: BytesValue = message(&got, DATA)?;
        if data.value.len() > WINDOW_BYTES as usize {
            return Err(status(
                Code::INVALID_ARGUMENT,
                format!(
                    "{} bytes at once: {WINDOW_BYTES} were granted",
                    data.value.len()
                ),
            ));
        }
        if sink.write_all(&data.value).await.is_err() {
            // The process reads no more.
            *input = None;
            break;
        }
        to.send(&grant(data.value.len() as i32)?).await?;
    }
    Ok(())
}

fn credit(any: &Any) -> ttrpc::Result<i32> {
    let update: Int32Value = message(any, WINDOW)?;
    if update.value < 0 {
        return Err(status(
            Code::INVALID_ARGUMENT,
            format!("a window of {} bytes", update.value),
        ));
    }
    Ok(update.value)
}

fn message<M: Message>(any: &Any, name: &str) -> ttrpc::Result<M> {
    let given = any.type_url.rsplit('/').next().unwrap_or_default();
    if given != name {
        let given: String = given.chars().take(100).collect();
        return Err(status(
            Code::INVALID_ARGUMENT,
            format!("{given:?} where {name} is due"),
        ));
    }
    M::parse_from_bytes(&any.value)
        .map_err(|error| status(Code::INVALID_ARGUMENT, format!("{name}: {error}")))
}

fn packed(name: &str, message: &impl Message) -> ttrpc::Result<Any> {
    let bytes = message
        .write_to_bytes()
        .map_err(|error| status(Code::INTERNAL, format!("{name}: {error}")))?;
    Ok(any(name, bytes))
}

fn any(name: &str, value: Vec<u8>) -> Any {
    Any {
        type_url: name.to_owned(),
        value,
        ..Default::default()
    }
}

fn status(code: Code, message: String) -> ttrpc::Error {
    ttrpc::Error::RpcStatus(get_status(code, message))
}

struct Handler(Arc<Streams>);

#[async_trait]
impl StreamHandler for Handler {
    async fn handler(
        &self,
        _: TtrpcContext,
        stream: StreamInner,
    ) -> ttrpc::Result<Option<Response>> {
        match self.0.serve(ServerStream::new(stream)).await {
            Ok(()) => Ok(None),
            Err(error) => {
                let status = match error {
                    ttrpc::Error::RpcStatus(status) => status,
                    other => get_status(Code::UNKNOWN, other.to_string()),
                };
                let mut response = Response::new();
                response.set_status(status);
                Ok(Some(response))
            }
        }
    }
}
