//! Events on their way to containerd: in order, each until it was taken, bounded. A containerd that is away (restarted, killed, upgraded)
//! hears of everything afterwards; one that stays away holds up no container and fills no memory.
//!
//! An event is told at least once: one whose answer was lost is told again.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
    time::Duration,
};

use berth_proto::shim::{
    api::ForwardRequest,
    shim_async::{Client, EventsClient},
};
use tokio::{
    sync::Notify,
    time::{sleep, timeout},
};
use ttrpc::{Code, context};

use crate::{container::lock, journal};

/// Events that wait: some 300 bytes each. Fifty containers that run a probe each second fill it with their execs in seven seconds; the
/// ends of containers, which are kept before all others, in days.
const MAX_WAITING: usize = 1024;
/// One event's way to the daemon. One that stands still (stopped, swapped out) has it in its socket and is not told it again for as long.
const FORWARD: Duration = Duration::from_secs(60);
/// First and longest wait for a daemon that is away.
const AWAY: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));
/// How often an event is told that the daemon answers with an error: it may be starting.
const TRIES: u32 = 5;
/// How long a shim that ends waits for its last events to be taken.
const LAST_EVENTS: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub struct Waiting {
    pub request: ForwardRequest,
    /// Of an exec: dropped before what is told of containers.
    pub of_exec: bool,
}

/// What waits, oldest first.
#[derive(Debug, Default)]
struct Line {
    waiting: VecDeque<Waiting>,
    /// The oldest is on its way.
    telling: bool,
    dropped: u64,
}

impl Line {
    fn push(&mut self, event: Waiting) -> Option<Waiting> {
        let dropped = (self.waiting.len() >= MAX_WAITING).then(|| {
            let oldest_exec = self.waiting.iter().position(|event| event.of_exec);
            self.waiting.remove(oldest_exec.unwrap_or(0))
        });
        self.waiting.push_back(event);
        dropped.flatten()
    }
}

#[derive(Debug)]
pub struct Queue {
    address: String,
    line: Mutex<Line>,
    added: Notify,
    told: Notify,
}

impl Queue {
    /// For the events service of a daemon at this socket.
    pub fn to(address: &str) -> Arc<Queue> {
        let address = match address.strip_prefix("unix://") {
            Some(_) => address.to_owned(),
            None => format!("unix://{address}"),
        };
        Arc::new(Queue {
            address,
            line: Mutex::default(),
            added: Notify::new(),
            told: Notify::new(),
        })
    }

    /// Never waits.
    pub fn push(&self, event: Waiting) {
        let mut line = lock(&self.line);
        if let Some(dropped) = line.push(event) {
            line.dropped += 1;
            // The rest is counted: a shim must not fill its log with what it forgets.
            if line.dropped == 1 {
                journal!(
                    "{} does not take events: {MAX_WAITING} wait, {} of {} is dropped, and more will be: those of execs first",
                    self.address,
                    dropped.request.envelope.topic,
                    dropped.request.envelope.timestamp.seconds
                );
            }
        }
        self.added.notify_one();
    }

    /// Tells what waits, for the life of the shim.
    pub async fn run(self: Arc<Self>) {
        let mut client: Option<EventsClient> = None;
        loop {
            let next = {
                let mut line = lock(&self.line);
                let next = line.waiting.pop_front();
                line.telling = next.is_some();
                next
            };
            let Some(Waiting { request, .. }) = next else {
                self.told.notify_one();
                self.added.notified().await;
                continue;
            };
            self.tell(&mut client, &request).await;
            let dropped = std::mem::take(&mut lock(&self.line).dropped);
            if dropped > 0 {
                journal!(
                    "{} takes events again; {dropped} were dropped",
                    self.address
                );
            }
        }
    }

    /// Tells one until it was taken, or refused for good.
    async fn tell(&self, client: &mut Option<EventsClient>, request: &ForwardRequest) {
        let (mut refused, mut wait, mut away) = (0, AWAY.0, false);
        loop {
            let Err(error) = forward(&self.address, client, request).await else {
                if away {
                    journal!("{} is back", self.address);
                }
                return;
            };
            let topic = &request.envelope.topic;
            if is_refusal(&error) {
                refused += 1;
                if refused == TRIES {
                    journal!("event {topic} was refused by {}: {error}", self.address);
                    return;
                }
            } else if !away && wait == AWAY.1 {
                away = true;
                journal!("{} is away, events are kept: {error}", self.address);
            }
            *client = None;
            sleep(wait).await;
            wait = (wait * 2).min(AWAY.1);
        }
    }

    /// Waits until nothing waits any more, but not for long.
    pub async fn settle(&self) {
        let settled = async {
            loop {
                {
                    let line = lock(&self.line);
                    if line.waiting.is_empty() && !line.telling {
                        return;
                    }
                }
                self.told.notified().await;
            }
        };
        if timeout(LAST_EVENTS, settled).await.is_err() {
            let left = lock(&self.line).waiting.len() + 1;
            journal!(
                "{left} events are lost with this shim: {} does not take them",
                self.address
            );
        }
    }
}

/// Whether the daemon has answered, and said no.
fn is_refusal(error: &ttrpc::Error) -> bool {
    match error {
        ttrpc::Error::RpcStatus(status) => !matches!(
            status.code.enum_value(),
            Ok(Code::UNAVAILABLE | Code::DEADLINE_EXCEEDED | Code::CANCELLED)
        ),
        _ => false,
    }
}

async fn forward(
    address: &str,
    client: &mut Option<EventsClient>,
    request: &ForwardRequest,
) -> ttrpc::Result<()> {
    let connected = match client.take() {
        Some(connected) => connected,
        None => EventsClient::new(Client::connect(address).await?),
    };
    let told = connected
        .forward(context::with_duration(FORWARD), request)
        .await;
    *client = Some(connected);
    told.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(topic: &str, of_exec: bool) -> Waiting {
        let mut request = ForwardRequest::new();
        request.envelope.mut_or_insert_default().topic = topic.to_owned();
        Waiting { request, of_exec }
    }

    #[test]
    fn the_oldest_of_an_exec_is_dropped_first_and_then_the_oldest_at_all() {
        let mut line = Line::default();
        for at in 0..MAX_WAITING {
            let dropped = line.push(event(&at.to_string(), at == 7 || at == 9));
            assert!(dropped.is_none(), "{at}");
        }
        for (added, expected) in [("a", "7"), ("b", "9"), ("c", "0"), ("d", "1")] {
            let dropped = line.push(event(added, false)).unwrap();
            assert_eq!(dropped.request.envelope.topic, expected, "{added}");
            assert_eq!(line.waiting.len(), MAX_WAITING);
        }
        let order: Vec<_> = line
            .waiting
            .iter()
            .map(|event| event.request.envelope.topic.as_str())
            .collect();
        assert_eq!(order[..5], ["2", "3", "4", "5", "6"]);
        assert_eq!(order[MAX_WAITING - 4..], ["a", "b", "c", "d"]);
    }

    #[test]
    fn what_a_daemon_answers_is_told_from_one_that_is_away() {
        let status = |code| ttrpc::Error::RpcStatus(ttrpc::get_status(code, String::new()));
        for (error, refusal) in [
            (status(Code::INVALID_ARGUMENT), true),
            (status(Code::UNIMPLEMENTED), true),
            (status(Code::UNAVAILABLE), false),
            (status(Code::DEADLINE_EXCEEDED), false),
            (ttrpc::Error::Socket("gone".into()), false),
            (ttrpc::Error::Others("gone".into()), false),
        ] {
            assert_eq!(is_refusal(&error), refusal, "{error}");
        }
    }
}
