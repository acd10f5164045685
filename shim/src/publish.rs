//! `publish`: an event from stdin to the daemon's socket. Shims are told of this program as their publish binary; those that speak to
//! `TTRPC_ADDRESS` themselves have no need of it.

use std::{
    io::{self, Read},
    time::Duration,
};

use berth_proto::shim::{
    api::ForwardRequest,
    shim_async::{Client, EventsClient},
};
use protobuf::{Message, well_known_types::any::Any};
use tokio::{runtime, time::timeout};
use ttrpc::context;

use crate::{cli::Flags, clock, error::Error};

/// An event names containers and numbers.
const MAX_EVENT_BYTES: u64 = 1 << 20;
const FORWARD: Duration = Duration::from_secs(5);

pub fn publish(flags: &Flags) -> Result<(), Error> {
    let address = std::env::var("TTRPC_ADDRESS").unwrap_or_default();
    if address.is_empty() {
        return Err(Error::invalid(
            "the environment",
            "TTRPC_ADDRESS does not say where the event is to go",
        ));
    }
    if flags.topic.is_empty() {
        return Err(Error::invalid("the event", "it has no -topic"));
    }
    let mut bytes = Vec::new();
    io::stdin()
        .take(MAX_EVENT_BYTES)
        .read_to_end(&mut bytes)
        .map_err(Error::io("read the event from stdin"))?;
    let event = Any::parse_from_bytes(&bytes)
        .map_err(|error| Error::invalid("the event on stdin", error))?;
    let mut request = ForwardRequest::new();
    let envelope = request.envelope.mut_or_insert_default();
    envelope.timestamp = clock::timestamp(clock::now_ns());
    envelope.namespace = flags.namespace.clone();
    envelope.topic = flags.topic.clone();
    envelope.event = Some(event).into();
    let address = match address.strip_prefix("unix://") {
        Some(_) => address,
        None => format!("unix://{address}"),
    };
    let forward = async {
        let client = EventsClient::new(Client::connect(&address).await?);
        client
            .forward(context::with_duration(FORWARD), &request)
            .await
    };
    let told = runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .build()
        .map_err(Error::io("start the runtime"))?
        .block_on(async { timeout(FORWARD, forward).await });
    match told {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(Error::io(format!("tell {address} of {}", flags.topic))(
            io::Error::other(error),
        )),
        Err(_) => Err(Error::io(format!("tell {address} of {}", flags.topic))(
            io::Error::from(io::ErrorKind::TimedOut),
        )),
    }
}
