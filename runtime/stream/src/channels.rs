//! WebSocket messages that say which of a session's streams they belong to: a byte, or in base64 a digit, in front of the data.

use std::io;

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::{BufMut, Bytes, BytesMut};
use tokio_tungstenite::tungstenite::Message;

use crate::websocket::invalid;

/// How a client speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Dialect {
    pub name: &'static str,
    /// Text messages, for clients in browsers of old.
    pub base64: bool,
    /// A client can close one channel.
    pub can_close: bool,
    /// The end of a session is told as a `Status`.
    pub status: bool,
}

const BINARY: Dialect = Dialect {
    name: "v4.channel.k8s.io",
    base64: false,
    can_close: false,
    status: true,
};

const BASE64: Dialect = Dialect {
    name: "v4.base64.channel.k8s.io",
    base64: true,
    ..BINARY
};

/// What a client speaks that names nothing: the first version.
pub(crate) const UNNAMED: Dialect = Dialect {
    name: "",
    status: false,
    ..BINARY
};

/// Of exec and attach, in the order in which we prefer them.
pub(crate) const OF_COMMANDS: [Dialect; 5] = [
    Dialect {
        name: "v5.channel.k8s.io",
        can_close: true,
        ..BINARY
    },
    BINARY,
    BASE64,
    Dialect {
        name: "channel.k8s.io",
        ..UNNAMED
    },
    Dialect {
        name: "base64.channel.k8s.io",
        base64: true,
        ..UNNAMED
    },
];

/// Of port-forward. (Its newest form is SPDY in a tunnel.)
pub(crate) const OF_PORTS: [Dialect; 2] = [BINARY, BASE64];

impl Dialect {
    /// Channels that can be told apart.
    pub fn channels(self) -> usize {
        // a digit, or a byte of which 255 is the close of v5
        if self.base64 { 10 } else { 255 }
    }

    pub fn message(self, channel: u8, data: &[u8]) -> Message {
        if self.base64 {
            let mut text = String::with_capacity(1 + data.len().div_ceil(3) * 4);
            text.push(char::from(b'0' + channel));
            STANDARD.encode_string(data, &mut text);
            return Message::text(text);
        }
        let mut bytes = BytesMut::with_capacity(1 + data.len());
        bytes.put_u8(channel);
        bytes.put_slice(data);
        Message::Binary(bytes.freeze())
    }

    /// Channel and data of a client's message; none: it carries none. Whether it says that it is text makes no difference: Kubernetes'
    /// Python client says so of what it has as a string, whatever was agreed on. Errors: not of this dialect.
    pub fn read(self, message: Message) -> io::Result<Option<(u8, Bytes)>> {
        let mut data: Bytes = match message {
            Message::Binary(data) => data,
            Message::Text(text) => text.into(),
            Message::Ping(_) | Message::Pong(_) | Message::Frame(_) | Message::Close(_) => {
                return Ok(None);
            }
        };
        if data.is_empty() {
            return Err(invalid("a message without a channel"));
        }
        let channel = data.split_to(1)[0];
        if !self.base64 {
            return Ok(Some((channel, data)));
        }
        if !channel.is_ascii_digit() {
            return Err(invalid("a message without a channel"));
        }
        let data = STANDARD
            .decode(data)
            .map_err(|_| invalid("data that is not base64"))?;
        Ok(Some((channel - b'0', data.into())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_one_end_writes_the_other_reads() {
        for dialect in OF_COMMANDS.into_iter().chain(OF_PORTS).chain([UNNAMED]) {
            for (channel, data) in [(0, &b""[..]), (3, b"x"), (9, &[0, 255, 10, 128])] {
                let read = dialect.read(dialect.message(channel, data)).unwrap();
                assert_eq!(
                    read,
                    Some((channel, Bytes::copy_from_slice(data))),
                    "{dialect:?}"
                );
            }
        }
    }

    // SEC-CRI-08
    #[test]
    fn what_is_of_another_dialect_is_refused() {
        let base64 = OF_COMMANDS[4];
        for text in ["", "x", ":eA==", "0?", "0eA", "1eA=="] {
            let read = base64.read(Message::text(text));
            assert_eq!(read.is_ok(), text == "1eA==", "{text:?}");
        }
        let as_string = OF_COMMANDS[1].read(Message::text("\0typed")).unwrap();
        assert_eq!(as_string, Some((0, Bytes::from_static(b"typed"))));
        assert!(OF_COMMANDS[0].read(Message::Binary(Bytes::new())).is_err());
    }
}
