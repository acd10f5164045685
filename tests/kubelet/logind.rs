//! As much of a system bus with logind behind it as a kubelet asks for: a lock on the shutdown, and the word that one begins.

use std::{
    io::{IoSlice, Read, Write},
    mem::MaybeUninit,
    os::{
        fd::AsFd,
        unix::net::{UnixListener, UnixStream},
    },
    path::Path,
    sync::mpsc::{Receiver, Sender, channel},
    time::Duration,
};

use anyhow::{Context, Result};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

/// Kinds of messages.
const ANSWER: u8 = 2;
const SIGNAL: u8 = 4;

pub struct Logind {
    /// Connections that have a lock, each with its own end of that.
    locks: Receiver<(UnixStream, UnixStream)>,
}

/// A lock that somebody has.
pub struct Held {
    bus: UnixStream,
    ours: UnixStream,
}

impl Logind {
    /// Serves at the socket `at`, until the process ends.
    pub fn serve(at: &Path) -> Result<Self> {
        let listener = UnixListener::bind(at)?;
        let (told, locks) = channel();
        std::thread::spawn(move || {
            while let Ok((stream, _)) = listener.accept() {
                let told = told.clone();
                std::thread::spawn(move || talk(stream, &told));
            }
        });
        Ok(Self { locks })
    }

    /// Waits until somebody has a lock.
    pub fn held(&self) -> Result<Held> {
        let (bus, ours) = self
            .locks
            .recv_timeout(Duration::from_secs(60))
            .context("nobody takes a lock")?;
        Ok(Held { bus, ours })
    }
}

impl Held {
    /// A shutdown begins.
    pub fn shut_down(&mut self) -> Result<()> {
        let begins = message(SIGNAL, 0, "PrepareForShutdown", "b", &1_u32.to_ne_bytes());
        Ok(self.bus.write_all(&begins)?)
    }

    /// Whether it is let go within `limit`.
    pub fn is_let_go(&mut self, limit: Duration) -> Result<bool> {
        self.ours.set_read_timeout(Some(limit))?;
        Ok(matches!(self.ours.read(&mut [0]), Ok(0)))
    }
}

fn talk(mut stream: UnixStream, told: &Sender<(UnixStream, UnixStream)>) -> Option<()> {
    for answer in ["OK 1234\r\n", "AGREE_UNIX_FD\r\n", ""] {
        let mut byte = [0];
        while byte != *b"\n" {
            stream.read_exact(&mut byte).ok()?;
        }
        stream.write_all(answer.as_bytes()).ok()?;
    }
    loop {
        let mut bytes = vec![0; 16];
        stream.read_exact(&mut bytes).ok()?;
        let number = |bytes: &[u8], at: usize| {
            bytes[at..at + 4]
                .try_into()
                .map(u32::from_ne_bytes)
                .unwrap_or(0)
        };
        let (body, serial, fields) = (number(&bytes, 4), number(&bytes, 8), number(&bytes, 12));
        let rest = (fields as usize).next_multiple_of(8) + body as usize;
        bytes.resize(16 + rest, 0);
        stream.read_exact(&mut bytes[16..]).ok()?;
        let says = |word: &str| {
            bytes
                .windows(word.len())
                .any(|part| part == word.as_bytes())
        };
        if says("Inhibit\0") {
            let (ours, theirs) = UnixStream::pair().ok()?;
            let answer = message(ANSWER, serial, "", "h", &0_u32.to_ne_bytes());
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut along = SendAncillaryBuffer::new(&mut space);
            let fds = [theirs.as_fd()];
            along.push(SendAncillaryMessage::ScmRights(&fds));
            let parts = [IoSlice::new(&answer)];
            sendmsg(&stream, &parts, &mut along, SendFlags::empty()).ok()?;
            told.send((stream.try_clone().ok()?, ours)).ok()?;
            continue;
        }
        let answer = if says("InhibitDelayMaxUSec\0") {
            let mut variant = b"\x01t\0\0\0\0\0\0".to_vec();
            variant.truncate(8);
            variant.extend(60_000_000_u64.to_ne_bytes());
            message(ANSWER, serial, "", "v", &variant)
        } else if says("PreparingForShutdown\0") {
            message(ANSWER, serial, "", "v", b"\x01b\0\0\0\0\0\0")
        } else {
            message(ANSWER, serial, "", "", &[])
        };
        stream.write_all(&answer).ok()?;
    }
}

/// A message to a client of the bus (D-Bus specification, "Message Protocol").
fn message(kind: u8, reply: u32, member: &str, signature: &str, body: &[u8]) -> Vec<u8> {
    let order = if cfg!(target_endian = "little") {
        b'l'
    } else {
        b'B'
    };
    let mut fields: Vec<u8> = Vec::new();
    let begin = |fields: &mut Vec<u8>, code: u8, kind: u8| {
        fields.resize(fields.len().next_multiple_of(8), 0);
        fields.extend([code, 1, kind, 0]);
    };
    begin(&mut fields, 5, b'u');
    fields.extend(reply.to_ne_bytes());
    if !member.is_empty() {
        begin(&mut fields, 3, b's');
        fields.extend((member.len() as u32).to_ne_bytes());
        fields.extend(member.as_bytes());
        fields.push(0);
    }
    if !signature.is_empty() {
        begin(&mut fields, 8, b'g');
        fields.push(signature.len() as u8);
        fields.extend(signature.as_bytes());
        fields.push(0);
    }
    let mut message = vec![order, kind, 0, 1];
    message.extend((body.len() as u32).to_ne_bytes());
    message.extend(7_u32.to_ne_bytes());
    message.extend((fields.len() as u32).to_ne_bytes());
    message.extend(fields);
    message.resize(message.len().next_multiple_of(8), 0);
    message.extend(body);
    message
}
