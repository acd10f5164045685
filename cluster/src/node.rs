//! The way to the runtime: its socket, its services, and what is said when one of them fails.

use std::{
    convert::Infallible,
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use berth_proto::{
    admin::images_client::ImagesClient,
    cri::{image_service_client::ImageServiceClient, runtime_service_client::RuntimeServiceClient},
};
use tokio::net::UnixStream;
use tonic::{
    Status,
    transport::{Channel, Endpoint},
};

use crate::error::Error;

/// An ExecSync answer may hold 16 MiB of each stream; lists of a full node stay far below.
const MAX_MESSAGE_BYTES: usize = 64 << 20;

/// A local socket answers at once or is not served.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Where a runtime listens: `unix:///run/berth/berth.sock`, or just the path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address(PathBuf);

impl Address {
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl FromStr for Address {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        let path = text
            .strip_prefix("unix://")
            .or_else(|| text.strip_prefix("unix:"))
            .unwrap_or(text);
        Ok(Address(path.into()))
    }
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "unix://{}", self.0.display())
    }
}

/// A runtime that answers.
#[derive(Debug, Clone)]
pub struct Node {
    address: Address,
    channel: Channel,
}

impl Node {
    pub async fn connect(address: &Address) -> Result<Self, Error> {
        // tonic's own error buries the errno, which is what tells "not running" from "not allowed".
        UnixStream::connect(&address.0)
            .await
            .map_err(|source| Error::Connect {
                endpoint: address.to_string(),
                source,
            })?;
        let channel = async {
            Endpoint::from_shared(address.to_string())?
                .connect_timeout(CONNECT_TIMEOUT)
                .connect()
                .await
        }
        .await
        .map_err(|source| Error::Channel {
            endpoint: address.to_string(),
            source,
        })?;
        Ok(Node {
            address: address.clone(),
            channel,
        })
    }

    pub fn runtime(&self) -> RuntimeServiceClient<Channel> {
        RuntimeServiceClient::new(self.channel.clone()).max_decoding_message_size(MAX_MESSAGE_BYTES)
    }

    pub fn images(&self) -> ImageServiceClient<Channel> {
        ImageServiceClient::new(self.channel.clone()).max_decoding_message_size(MAX_MESSAGE_BYTES)
    }

    /// Berth's own service; another runtime answers UNIMPLEMENTED.
    pub fn admin_images(&self) -> ImagesClient<Channel> {
        ImagesClient::new(self.channel.clone()).max_decoding_message_size(MAX_MESSAGE_BYTES)
    }

    /// For `map_err` of a call: `what` completes "cannot …".
    pub fn cannot(&self, what: impl Into<String>) -> impl FnOnce(Status) -> Error {
        let (what, endpoint) = (what.into(), self.address.to_string());
        move |status| Error::Rpc {
            what,
            endpoint,
            status: Box::new(status),
        }
    }

    /// For a field that an answer must have.
    pub fn lacks(&self, rpc: &'static str, lacks: &'static str) -> Error {
        Error::Answer {
            endpoint: self.address.to_string(),
            rpc,
            lacks,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_may_be_a_url_or_a_path() {
        for text in [
            "unix:///run/berth/berth.sock",
            "unix:/run/berth/berth.sock",
            "/run/berth/berth.sock",
        ] {
            assert_eq!(
                text.parse::<Address>().unwrap().to_string(),
                "unix:///run/berth/berth.sock",
                "{text}"
            );
        }
    }

    #[tokio::test]
    async fn a_socket_that_is_not_there_is_named_with_what_to_do() {
        let error = Node::connect(&"/nonexistent/berth.sock".parse().unwrap())
            .await
            .unwrap_err();
        assert_eq!(
            error.to_string(),
            "cannot connect to unix:///nonexistent/berth.sock: No such file or directory (os error 2). Is berthd \
             running? It listens at --endpoint, and only root may connect"
        );
    }
}
