//! What comes from a shim's socket, looked at frame by frame. ttrpc believes a header: after noise it would read and drop up to 4 GiB that
//! never come, and whoever has called would wait for the deadline of the call.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use ttrpc::proto::{
    FLAG_NO_DATA, FLAG_REMOTE_CLOSED, FLAG_REMOTE_OPEN, MESSAGE_HEADER_LENGTH, MESSAGE_LENGTH_MAX,
    MESSAGE_TYPE_DATA, MESSAGE_TYPE_RESPONSE, MessageHeader,
};

/// How the error of a connection begins that noise came from.
pub(crate) const NOISE: &str = "what it sends is no ttrpc";

/// A connection whose end it is when what is read is not what a ttrpc server may send.
#[derive(Debug)]
pub struct Checked<S> {
    connection: S,
    header: [u8; MESSAGE_HEADER_LENGTH],
    /// Of the header, bytes that are here.
    have: usize,
    /// Of the frame's message, bytes to come.
    left: usize,
}

impl<S> Checked<S> {
    pub fn new(connection: S) -> Self {
        Self {
            connection,
            header: [0; MESSAGE_HEADER_LENGTH],
            have: 0,
            left: 0,
        }
    }

    fn take_in(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        loop {
            let of_message = self.left.min(bytes.len());
            self.left -= of_message;
            bytes = &bytes[of_message..];
            if bytes.is_empty() {
                return Ok(());
            }
            let wanted = (MESSAGE_HEADER_LENGTH - self.have).min(bytes.len());
            self.header[self.have..self.have + wanted].copy_from_slice(&bytes[..wanted]);
            self.have += wanted;
            bytes = &bytes[wanted..];
            if self.have == MESSAGE_HEADER_LENGTH {
                self.left = length(MessageHeader::from(self.header))?;
                self.have = 0;
            }
        }
    }
}

/// The length of the message that follows. An error: no server says such a thing.
fn length(header: MessageHeader) -> io::Result<usize> {
    let MessageHeader {
        length,
        stream_id,
        type_,
        flags,
    } = header;
    let wrong = if type_ != MESSAGE_TYPE_RESPONSE && type_ != MESSAGE_TYPE_DATA {
        format!("a frame of type {type_}")
    } else if flags & !(FLAG_REMOTE_CLOSED | FLAG_REMOTE_OPEN | FLAG_NO_DATA) != 0 {
        format!("a frame with the flags {flags:#x}")
    } else if stream_id % 2 == 0 {
        // Those that a client opens are odd, and nobody else opens any.
        format!("a frame of stream {stream_id}")
    } else if length as usize > MESSAGE_LENGTH_MAX {
        format!("a message of {length} bytes")
    } else {
        return Ok(length as usize);
    };
    Err(io::Error::new(
        io::ErrorKind::InvalidData,
        format!("{NOISE}: {wrong}"),
    ))
}

impl<S: AsyncRead + Unpin> AsyncRead for Checked<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.connection).poll_read(context, buffer))?;
        Poll::Ready(self.take_in(&buffer.filled()[before..]))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Checked<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.connection).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.connection).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.connection).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(length: u32, stream_id: u32, type_: u8, flags: u8) -> Vec<u8> {
        let header = MessageHeader {
            length,
            stream_id,
            type_,
            flags,
        };
        let mut frame: Vec<u8> = header.into();
        frame.resize(frame.len() + (length as usize).min(1 << 20), b'x');
        frame
    }

    #[test]
    fn frames_pass_however_they_are_cut_and_noise_does_not() {
        let good = [
            frame(0, 1, MESSAGE_TYPE_RESPONSE, 0),
            frame(300, 3, MESSAGE_TYPE_DATA, FLAG_REMOTE_CLOSED | FLAG_NO_DATA),
            frame(1, u32::MAX, MESSAGE_TYPE_RESPONSE, 0),
        ]
        .concat();
        for size in [1, 2, 9, 10, 11, 64, good.len()] {
            let mut checked = Checked::new(());
            for piece in good.chunks(size) {
                checked.take_in(piece).unwrap();
            }
            let noise = [0x5a; 64];
            let refused = noise
                .chunks(size)
                .find_map(|piece| checked.take_in(piece).err());
            let said = refused.unwrap().to_string();
            assert!(said.starts_with(NOISE), "{said}");
        }
        for (bad, word) in [
            (frame(0, 1, 1, 0), "type 1"),
            (frame(0, 0, MESSAGE_TYPE_RESPONSE, 0), "stream 0"),
            (frame(0, 1, MESSAGE_TYPE_RESPONSE, 0x40), "flags 0x40"),
            (
                frame(u32::MAX, 1, MESSAGE_TYPE_RESPONSE, 0),
                "4294967295 bytes",
            ),
        ] {
            let said = Checked::new(()).take_in(&bad).unwrap_err().to_string();
            assert!(said.contains(word), "{said}");
        }
    }
}
