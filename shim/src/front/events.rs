//! The service that the other shim tells its events to. Ends come by `Wait`, whose answer can't be lost on the way; what only an event
//! tells is that the kernel killed for want of memory.

use std::sync::Weak;

use async_trait::async_trait;
use berth_proto::shim::{
    api::{Empty, ForwardRequest},
    events::task::TaskOOM,
    shim_async::Events as Service,
};
use berth_shim_client::failure::line;
use protobuf::Message;
use ttrpc::r#async::TtrpcContext;

use super::Front;
use crate::journal;

#[derive(Debug)]
pub struct EventsService(pub Weak<Front>);

#[async_trait]
impl Service for EventsService {
    async fn forward(&self, _: &TtrpcContext, request: ForwardRequest) -> ttrpc::Result<Empty> {
        let envelope = request.envelope.unwrap_or_default();
        if envelope.topic == "/tasks/oom"
            && let Some(front) = self.0.upgrade()
        {
            let event = envelope.event.unwrap_or_default();
            match TaskOOM::parse_from_bytes(&event.value) {
                Ok(oom) => {
                    let id = line(&oom.container_id);
                    journal!("{} tells that {id} was out of memory", front.name().0);
                    front.note_oom(oom.container_id);
                }
                Err(error) => journal!("event /tasks/oom of {}: {error}", front.name().0),
            }
        }
        // Others are heard, and of no use here: an error would be told again and again.
        Ok(Empty::new())
    }
}
