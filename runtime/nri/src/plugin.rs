//! One plugin: its connection from the first byte to the last, and the calls to it.
//!
//! A plugin that does not answer within its time, whose connection ends, or that answers with what is no answer, is let go of: its connection
//! is closed, a process that we started is killed, and whoever waits for it goes on without it. One that says no is heard, and stays.

use std::{
    future::Future,
    sync::{
        Arc, Mutex as StdMutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use async_trait::async_trait;
use berth_proto::nri::nri_ttrpc::{PluginClient, Runtime as RuntimeService, create_runtime};
use tokio::{
    net::UnixStream,
    process::Child,
    sync::{Mutex, oneshot, watch},
    task::AbortHandle,
};
use ttrpc::{
    r#async::{
        Client, Server, TtrpcContext,
        transport::{Listener, Socket},
    },
    context::Context,
};

use crate::{Error, NRI_VERSION, Settings, api, mux, registry::Nri};

/// Longer names are no names of plugins; they end up in each line about them.
const MAX_NAME_BYTES: usize = 128;
/// Of what a plugin says, so much goes on.
const MAX_WORDS: usize = 1024;
/// Requests of one plugin that are worked on at a time; a stock one sends the next after the answer.
const MAX_REQUESTS: usize = 8;

/// All events that there are.
const ALL_EVENTS: u32 = (1 << (api::Event::LAST as u32 - 1)) - 1;

/// The bit of an event in a subscription.
pub(crate) const fn bit(event: api::Event) -> u32 {
    1 << (event as u32 - 1)
}

/// How a call to a plugin ended.
#[derive(Debug)]
pub(crate) enum Answer<T> {
    Said(T),
    /// It said no.
    Refused(Error),
    /// It is not there any more.
    Gone,
}

pub struct Plugin {
    /// Two digits, a dash, its name.
    name: String,
    index: String,
    base: String,
    /// Tells apart those of one name.
    pub(crate) number: u32,
    events: u32,
    /// Events that it wants by StateChange.
    by_state_change: AtomicU32,
    client: PluginClient,
    request_timeout: Duration,
    /// One request at a time.
    turn: Mutex<()>,
    connection: Arc<Connection>,
}

impl std::fmt::Debug for Plugin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Plugin({})", self.name)
    }
}

/// What closing takes away.
struct Connection {
    closed: watch::Sender<bool>,
    carrier: AbortHandle,
    process: StdMutex<Option<Child>>,
    /// Serves as long as it is there.
    server: StdMutex<Option<Server>>,
}

impl Connection {
    fn close(&self) {
        self.closed.send_replace(true);
        // The socket goes with its carrier.
        self.carrier.abort();
        let process = lock(&self.process).take();
        if let Some(mut process) = process {
            // Reaped by the runtime.
            let _ = process.start_kill();
        }
        drop(lock(&self.server).take());
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.close();
    }
}

fn lock<T>(mutex: &StdMutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A plugin that we started: what it is called is decided by its file.
#[derive(Debug)]
pub(crate) struct Launched {
    pub index: String,
    pub base: String,
    pub config: String,
    pub process: Child,
}

impl Plugin {
    /// Waits for the plugin to register, and configures it. It is not synchronized yet.
    pub(crate) async fn connect(
        trunk: UnixStream,
        launched: Option<Launched>,
        nri: &Arc<Nri>,
    ) -> Result<Self, Error> {
        let settings = &nri.settings;
        let (connections, carry) = mux::multiplex(trunk);
        let (closed, mut closing) = watch::channel(false);
        let (registered, mut registration) = oneshot::channel();
        let service = Arc::new(Service {
            given: launched.as_ref().map(|l| (l.index.clone(), l.base.clone())),
            registered: StdMutex::new(Some(registered)),
            name: StdMutex::new(String::new()),
            requests: Arc::new(tokio::sync::Semaphore::new(MAX_REQUESTS)),
            nri: Arc::downgrade(nri),
        });
        let listener = Listener::new(futures_util::stream::iter([Ok(connections.runtime)]));
        let mut server = Server::new()
            .add_listener(listener)
            .register_service(create_runtime(service));
        let told = closed.clone();
        let carrier = tokio::spawn(async move {
            if let Err(e) = carry.await {
                tracing::warn!("the connection of an NRI plugin broke: {e}");
            }
            told.send_replace(true);
        });
        let (process, given, config) = match launched {
            Some(l) => (Some(l.process), Some((l.index, l.base)), l.config),
            None => (None, None, String::new()),
        };
        let connection = Arc::new(Connection {
            closed,
            carrier: carrier.abort_handle(),
            process: StdMutex::new(process),
            server: StdMutex::new(None),
        });
        let who = given
            .as_ref()
            .map_or("(not registered yet)".to_owned(), |(index, base)| {
                format!("{index}-{base}")
            });
        let lost = |why: &str| Error::Lost {
            plugin: who.clone(),
            why: why.to_owned(),
        };
        server.start().await.map_err(|e| lost(&e.to_string()))?;
        *lock(&connection.server) = Some(server);
        let (index, base) = tokio::select! {
            name = &mut registration => name.map_err(|_| lost("its connection ended before it registered"))?,
            _ = closing.wait_for(|closed| *closed) => {
                return Err(lost("its connection ended before it registered"));
            }
            () = tokio::time::sleep(settings.registration_timeout) => {
                return Err(lost(&format!(
                    "it did not register within {:?}",
                    settings.registration_timeout
                )));
            }
        }?;
        let mut plugin = Self {
            name: format!("{index}-{base}"),
            index,
            base,
            number: nri.next_number(),
            events: 0,
            by_state_change: AtomicU32::new(0),
            client: PluginClient::new(Client::new(Socket::new(connections.plugin))),
            request_timeout: settings.request_timeout,
            turn: Mutex::new(()),
            connection,
        };
        plugin.configure(config, settings).await?;
        Ok(plugin)
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn instance(&self) -> api::PluginInstance {
        api::PluginInstance {
            name: self.base.clone(),
            index: self.index.clone(),
            ..Default::default()
        }
    }

    pub(crate) fn wants(&self, event: api::Event) -> bool {
        self.events & bit(event) != 0
    }

    pub fn is_closed(&self) -> bool {
        *self.connection.closed.borrow()
    }

    pub(crate) fn close(&self) {
        self.connection.close();
    }

    /// Ready when the plugin is gone.
    pub(crate) async fn closed(&self) {
        let mut closing = self.connection.closed.subscribe();
        // An error: the sender is gone, and it with it.
        let _ = closing.wait_for(|closed| *closed).await;
    }

    async fn configure(&mut self, config: String, settings: &Settings) -> Result<(), Error> {
        let request = api::ConfigureRequest {
            config,
            runtime_name: settings.runtime_name.clone(),
            runtime_version: settings.runtime_version.clone(),
            registration_timeout: settings.registration_timeout.as_millis() as i64,
            request_timeout: settings.request_timeout.as_millis() as i64,
            NRI_version: NRI_VERSION.into(),
            ..Default::default()
        };
        let answer = self
            .ask("Configure", self.request_timeout, |context| {
                self.client.configure(context, &request)
            })
            .await;
        let events = match answer {
            Answer::Said(answer) => answer.events as u32,
            Answer::Refused(error) => return Err(error),
            Answer::Gone => return Err(self.lost("it did not take its configuration")),
        };
        if events & !ALL_EVENTS != 0 {
            return Err(self.lost(&format!("it wants events that there are not: {events:#x}")));
        }
        self.events = match events {
            // Whoever says nothing gets all events; but nobody is made a judge unasked.
            0 => ALL_EVENTS & !bit(api::Event::VALIDATE_CONTAINER_ADJUSTMENT),
            events => events,
        };
        Ok(())
    }

    fn lost(&self, why: &str) -> Error {
        Error::Lost {
            plugin: self.name.clone(),
            why: why.to_owned(),
        }
    }

    /// One request, when it is its turn. Its time runs from when it is sent.
    pub(crate) async fn ask<T, F>(
        &self,
        call: &'static str,
        timeout: Duration,
        request: impl FnOnce(Context) -> F,
    ) -> Answer<T>
    where
        F: Future<Output = ttrpc::Result<T>>,
    {
        let asked = async {
            let _turn = self.turn.lock().await;
            if self.is_closed() {
                return None;
            }
            let since = Instant::now();
            let request = request(ttrpc::context::with_duration(timeout));
            let answer = tokio::time::timeout(timeout, request).await;
            // Two look at the time, we and ttrpc, which tells the plugin of it, too: whichever was first, it has passed.
            Some(answer.map(|answer| (answer, since.elapsed() >= timeout)))
        };
        let answer = tokio::select! {
            answer = asked => answer,
            () = self.closed() => None,
        };
        let why = match answer {
            None => return Answer::Gone,
            Some(Ok((Ok(said), _))) => return Answer::Said(said),
            Some(Ok((Err(ttrpc::Error::RpcStatus(status)), _)))
                if status.code() != ttrpc::Code::DEADLINE_EXCEEDED =>
            {
                return Answer::Refused(Error::Refused {
                    plugin: self.name.clone(),
                    call,
                    why: words(status.message()),
                });
            }
            Some(Ok((Err(error), false))) => words(&error.to_string()),
            Some(Ok((Err(_), true)) | Err(_)) => format!("no answer within {timeout:?}"),
        };
        if !self.is_closed() {
            tracing::error!(plugin = %self.name, call, "NRI plugin is let go of: {why}");
            self.close();
        }
        Answer::Gone
    }

    /// [`Self::ask`] for a call that has only to be heard. A plugin that lacks it is told by StateChange.
    pub(crate) async fn tell<T, F>(
        &self,
        call: &'static str,
        state: api::StateChangeEvent,
        request: impl FnOnce(Context) -> F,
    ) -> Answer<()>
    where
        F: Future<Output = ttrpc::Result<T>>,
    {
        let bit = bit(state.event.enum_value_or_default());
        if self.by_state_change.load(Ordering::Relaxed) & bit == 0 {
            let mut lacks = false;
            let answer = self
                .ask(call, self.request_timeout, |context| {
                    let request = request(context);
                    let lacks = &mut lacks;
                    async move {
                        match request.await {
                            Err(ttrpc::Error::RpcStatus(status))
                                if matches!(
                                    status.code(),
                                    ttrpc::Code::UNIMPLEMENTED | ttrpc::Code::NOT_FOUND
                                ) =>
                            {
                                *lacks = status.code() == ttrpc::Code::UNIMPLEMENTED
                                    || status.message().contains("is not supported");
                                match *lacks {
                                    true => Ok(()),
                                    false => Err(ttrpc::Error::RpcStatus(status)),
                                }
                            }
                            other => other.map(drop),
                        }
                    }
                })
                .await;
            if !lacks {
                return answer;
            }
            self.by_state_change.fetch_or(bit, Ordering::Relaxed);
        }
        self.ask(call, self.request_timeout, |context| async {
            self.client.state_change(context, &state).await.map(drop)
        })
        .await
    }

    pub(crate) fn client(&self) -> &PluginClient {
        &self.client
    }

    pub(crate) fn request_timeout(&self) -> Duration {
        self.request_timeout
    }
}

fn words(said: &str) -> String {
    said.chars().take(MAX_WORDS).collect()
}

/// Index and name of a plugin that has registered, or why it was refused.
type Registration = Result<(String, String), Error>;

/// What the plugin calls.
struct Service {
    /// Index and name of one that we started.
    given: Option<(String, String)>,
    registered: StdMutex<Option<oneshot::Sender<Registration>>>,
    name: StdMutex<String>,
    requests: Arc<tokio::sync::Semaphore>,
    nri: std::sync::Weak<Nri>,
}

fn status(code: ttrpc::Code, why: impl Into<String>) -> ttrpc::Error {
    ttrpc::Error::RpcStatus(ttrpc::get_status(code, why.into()))
}

#[async_trait]
impl RuntimeService for Service {
    async fn register_plugin(
        &self,
        _: &TtrpcContext,
        request: api::RegisterPluginRequest,
    ) -> ttrpc::Result<api::Empty> {
        let Some(registered) = lock(&self.registered).take() else {
            return Err(status(
                ttrpc::Code::ALREADY_EXISTS,
                "this plugin is registered already",
            ));
        };
        let name = match &self.given {
            Some(given) => Ok(given.clone()),
            None => named(&request.plugin_idx, &request.plugin_name),
        };
        match name {
            Ok((index, base)) => {
                *lock(&self.name) = format!("{index}-{base}");
                let version: String = request.NRI_version.chars().take(64).collect();
                tracing::info!(plugin = %format!("{index}-{base}"), nri = %version, "NRI plugin registers");
                let _ = registered.send(Ok((index, base)));
                Ok(api::Empty::default())
            }
            Err(why) => {
                let _ = registered.send(Err(Error::Lost {
                    plugin: "(not registered)".into(),
                    why: why.clone(),
                }));
                Err(status(ttrpc::Code::INVALID_ARGUMENT, why))
            }
        }
    }

    async fn update_containers(
        &self,
        _: &TtrpcContext,
        request: api::UpdateContainersRequest,
    ) -> ttrpc::Result<api::UpdateContainersResponse> {
        let name = lock(&self.name).clone();
        let Some(nri) = self.nri.upgrade() else {
            return Err(status(ttrpc::Code::UNAVAILABLE, "berthd is ending"));
        };
        if name.is_empty() {
            return Err(status(ttrpc::Code::FAILED_PRECONDITION, "register first"));
        }
        let Ok(_request) = self.requests.try_acquire() else {
            return Err(status(
                ttrpc::Code::RESOURCE_EXHAUSTED,
                format!("{MAX_REQUESTS} requests of this plugin are under way"),
            ));
        };
        if let Some(evict) = request.evict.first() {
            return Err(status(
                ttrpc::Code::UNIMPLEMENTED,
                format!(
                    "evict of container {:.80?}: Berth ends no container for a plugin",
                    evict.container_id
                ),
            ));
        }
        tracing::info!(plugin = %name, containers = request.update.len(), "NRI plugin asks for other limits");
        let failed = nri.update(&name, request.update).await;
        Ok(api::UpdateContainersResponse {
            failed,
            ..Default::default()
        })
    }
}

/// Index and name, checked.
fn named(index: &str, name: &str) -> Result<(String, String), String> {
    check_index(index)?;
    check_name(name)?;
    Ok((index.to_owned(), name.to_owned()))
}

pub(crate) fn check_index(index: &str) -> Result<(), String> {
    match index.as_bytes() {
        [a, b] if a.is_ascii_digit() && b.is_ascii_digit() => Ok(()),
        _ => Err(format!(
            "index {index:.80?} of an NRI plugin: must be two digits"
        )),
    }
}

fn check_name(name: &str) -> Result<(), String> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.+".contains(&b);
    match !name.is_empty() && name.len() <= MAX_NAME_BYTES && name.bytes().all(plain) {
        true => Ok(()),
        false => Err(format!(
            "name {name:.80?} of an NRI plugin: must be 1 to {MAX_NAME_BYTES} of a-z, A-Z, 0-9, `-`, `_`, `.`, `+`"
        )),
    }
}

/// `NN-name` of a file.
pub(crate) fn parse_file_name(file: &str) -> Result<(String, String), String> {
    match file.split_once('-') {
        Some((index, name)) => named(index, name),
        None => Err(format!("{file:.80?} is not NN-name")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plugins_have_an_index_of_two_digits_and_a_plain_name() {
        for (file, good) in [
            ("00-logger", true),
            ("99-a_b.c+d-e", true),
            ("0-logger", false),
            ("100-logger", false),
            ("ab-logger", false),
            ("-logger", false),
            ("logger", false),
            ("00-", false),
            ("00-a/b", false),
            ("00-a b", false),
            ("00-ä", false),
        ] {
            assert_eq!(parse_file_name(file).is_ok(), good, "{file}");
        }
        assert!(check_name(&"a".repeat(MAX_NAME_BYTES)).is_ok());
        assert!(check_name(&"a".repeat(MAX_NAME_BYTES + 1)).is_err());
    }

    #[test]
    fn events_are_bits_from_zero() {
        assert_eq!(bit(api::Event::RUN_POD_SANDBOX), 1);
        assert_eq!(bit(api::Event::VALIDATE_CONTAINER_ADJUSTMENT), 1 << 13);
        assert_eq!(ALL_EVENTS, (1 << 14) - 1);
    }
}
