//! nfnetlink: the messages of netfilter, their attributes, and the transactions of nf_tables.

use std::{collections::HashMap, io};

use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST};
use nix::{libc, sys::socket::SockProtocol};

use crate::netlink::{Channel, HEADER_BYTES};

/// struct nfgenmsg
const GENERIC_BYTES: usize = 4;
/// struct nlattr
const ATTRIBUTE_HEADER_BYTES: usize = 4;
const NLA_F_NESTED: u16 = 1 << 15;
const NLA_TYPE_MASK: u16 = 0x3fff;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NFNL_MSG_BATCH_BEGIN: u16 = 0x10;
const NFNL_MSG_BATCH_END: u16 = 0x11;
pub const NFNL_SUBSYS_CTNETLINK: u16 = 1;
pub const NFNL_SUBSYS_NFTABLES: u16 = 10;
pub const NFPROTO_UNSPEC: u8 = 0;
/// What the smallest limit of a system lets through (net.core.wmem_default is 208 KiB).
const ORDINARY_BYTES: usize = 32 << 10;
/// A dump that another program's change cut short (EINTR) is begun again this often.
const MAX_DUMPS: usize = 8;

/// Attributes, as they lie in a message. Netfilter's numbers are big-endian.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Attributes(Vec<u8>);

impl Attributes {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn bytes(mut self, kind: u16, value: &[u8]) -> Self {
        let length = ATTRIBUTE_HEADER_BYTES + value.len();
        self.0.extend((length as u16).to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    pub fn number(self, kind: u16, value: u32) -> Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    pub fn name(self, kind: u16, value: &str) -> Self {
        let mut terminated = value.as_bytes().to_vec();
        terminated.push(0);
        self.bytes(kind, &terminated)
    }

    pub fn nested(self, kind: u16, value: Attributes) -> Self {
        self.bytes(kind | NLA_F_NESTED, &value.0)
    }

    pub fn chain(mut self, more: Attributes) -> Self {
        self.0.extend(more.0);
        self
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }
}

/// Attributes of a message that the kernel sent, by their kinds.
#[derive(Debug, Default)]
pub struct Parsed<'a>(HashMap<u16, &'a [u8]>);

impl<'a> Parsed<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Self(list(bytes).collect())
    }

    pub fn bytes(&self, kind: u16) -> Option<&'a [u8]> {
        self.0.get(&kind).copied()
    }

    pub fn nested(&self, kind: u16) -> Parsed<'a> {
        self.bytes(kind).map(Parsed::new).unwrap_or_default()
    }

    /// A name, without its NUL.
    pub fn text(&self, kind: u16) -> Option<&'a str> {
        let bytes = self.bytes(kind)?;
        std::str::from_utf8(bytes.strip_suffix(&[0]).unwrap_or(bytes)).ok()
    }

    pub fn number16(&self, kind: u16) -> Option<u16> {
        Some(u16::from_be_bytes(self.bytes(kind)?.try_into().ok()?))
    }
}

/// The attributes in their order: a list may have several of one kind. What is cut short is left out.
pub fn list(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let (header, _) = bytes.split_first_chunk::<ATTRIBUTE_HEADER_BYTES>()?;
        let length = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let kind = u16::from_ne_bytes([header[2], header[3]]) & NLA_TYPE_MASK;
        let value = bytes.get(ATTRIBUTE_HEADER_BYTES..length)?;
        bytes = &bytes[length.next_multiple_of(4).min(bytes.len())..];
        Some((kind, value))
    })
}

/// A request of a subsystem.
#[derive(Debug, Clone)]
pub struct Message {
    /// What it is to do, for the error.
    pub what: &'static str,
    pub subsystem: u16,
    pub kind: u8,
    pub family: u8,
    /// NLM_F_CREATE, NLM_F_EXCL, …
    pub flags: u16,
    pub attributes: Attributes,
}

impl Message {
    fn append(&self, datagram: &mut Vec<u8>, sequence: u32, flags: u16) {
        let header = Header {
            kind: self.subsystem << 8 | u16::from(self.kind),
            flags: self.flags | flags | NLM_F_REQUEST,
            sequence,
            family: self.family,
            resource: 0,
        };
        header.append(datagram, &self.attributes.0);
    }
}

/// struct nlmsghdr and struct nfgenmsg
#[derive(Debug)]
struct Header {
    kind: u16,
    flags: u16,
    sequence: u32,
    family: u8,
    resource: u16,
}

impl Header {
    fn append(&self, datagram: &mut Vec<u8>, attributes: &[u8]) {
        let length = HEADER_BYTES + GENERIC_BYTES + attributes.len();
        datagram.extend((length as u32).to_ne_bytes());
        datagram.extend(self.kind.to_ne_bytes());
        datagram.extend(self.flags.to_ne_bytes());
        datagram.extend(self.sequence.to_ne_bytes());
        // The sender's port: the kernel fills in the socket's.
        datagram.extend([0; 4]);
        datagram.extend([self.family, 0]);
        datagram.extend(self.resource.to_be_bytes());
        datagram.extend(attributes);
        datagram.resize(datagram.len().next_multiple_of(4), 0);
    }
}

/// The kernel refused a request.
#[derive(Debug)]
pub struct Refusal {
    pub what: &'static str,
    pub source: io::Error,
}

/// What the kernel says to a request: its sequence number and errno (0: done).
fn answer(message: &[u8]) -> Option<(u32, i32)> {
    let word = |at: usize| -> Option<[u8; 4]> { message.get(at..at + 4)?.try_into().ok() };
    if kind_of(message) != NLMSG_ERROR {
        return None;
    }
    Some((
        u32::from_ne_bytes(word(8)?),
        -i32::from_ne_bytes(word(HEADER_BYTES)?),
    ))
}

fn kind_of(message: &[u8]) -> u16 {
    u16::from_ne_bytes([message[4], message[5]])
}

/// A netfilter socket in the namespace that the thread was in when it was opened.
#[derive(Debug)]
pub struct Socket(Channel);

impl Socket {
    pub fn open() -> io::Result<Self> {
        Channel::open(SockProtocol::NetlinkNetFilter).map(Self)
    }

    /// All of nf_tables' requests or none of them.
    pub fn transact(&mut self, messages: &[Message]) -> Result<(), Refusal> {
        let Some((last, _)) = messages.split_last() else {
            return Ok(());
        };
        let failed = |what| move |source| Refusal { what, source };
        let edge = |kind, sequence| Header {
            kind,
            flags: NLM_F_REQUEST,
            sequence,
            family: NFPROTO_UNSPEC,
            resource: NFNL_SUBSYS_NFTABLES,
        };
        let mut datagram = Vec::with_capacity(
            messages
                .iter()
                .map(|m| m.attributes.len() + HEADER_BYTES + GENERIC_BYTES)
                .sum::<usize>()
                + 64,
        );
        let begin = self.0.next_sequence();
        edge(NFNL_MSG_BATCH_BEGIN, begin).append(&mut datagram, &[]);
        let mut steps = HashMap::with_capacity(messages.len());
        let mut end = begin;
        for (n, message) in messages.iter().enumerate() {
            end = self.0.next_sequence();
            steps.insert(end, message.what);
            // Only a refused request and the last one are answered.
            let flags = if n + 1 == messages.len() {
                NLM_F_ACK
            } else {
                0
            };
            message.append(&mut datagram, end, flags);
        }
        edge(NFNL_MSG_BATCH_END, self.0.next_sequence()).append(&mut datagram, &[]);
        // A transaction is one datagram, and the kernel's limit is meant for senders that it does not trust. It counts the socket buffer's
        // own overhead, too.
        if datagram.len() > ORDINARY_BYTES {
            self.0
                .widen(datagram.len() * 2 + 4096)
                .map_err(failed(last.what))?;
        }
        self.0.send(&datagram).map_err(failed(last.what))?;
        let mut refused = None;
        loop {
            for message in self.0.receive().map_err(failed(last.what))? {
                let Some((sequence, errno)) = answer(message) else {
                    continue;
                };
                if errno != 0 && refused.is_none() {
                    refused = Some(Refusal {
                        what: steps.get(&sequence).copied().unwrap_or("commit"),
                        source: io::Error::from_raw_os_error(errno),
                    });
                }
                // An answer to the beginning is one to the whole.
                if sequence == end || sequence == begin {
                    return refused.map_or(Ok(()), Err);
                }
            }
        }
    }

    /// A request of its own, outside of transactions.
    pub fn request(&mut self, message: &Message) -> io::Result<()> {
        let sequence = self.0.next_sequence();
        let mut datagram = Vec::new();
        message.append(&mut datagram, sequence, NLM_F_ACK);
        self.0.send(&datagram)?;
        loop {
            for message in self.0.receive()? {
                match answer(message) {
                    Some((to, 0)) if to == sequence => return Ok(()),
                    Some((to, errno)) if to == sequence => {
                        return Err(io::Error::from_raw_os_error(errno));
                    }
                    _ => {}
                }
            }
        }
    }

    /// Shows `each` the attributes of every object; from the beginning, after `begin`, where another program changed them meanwhile.
    pub fn dump(
        &mut self,
        message: &Message,
        mut begin: impl FnMut(),
        mut each: impl FnMut(&[u8]),
    ) -> io::Result<()> {
        for _ in 0..MAX_DUMPS {
            begin();
            match self.dump_once(message, &mut each) {
                Err(error) if error.raw_os_error() == Some(libc::EINTR) => {}
                result => return result,
            }
        }
        Err(io::Error::from_raw_os_error(libc::EINTR))
    }

    fn dump_once(&mut self, message: &Message, each: &mut impl FnMut(&[u8])) -> io::Result<()> {
        let sequence = self.0.next_sequence();
        let mut datagram = Vec::new();
        message.append(&mut datagram, sequence, NLM_F_DUMP);
        self.0.send(&datagram)?;
        /// The objects changed between two datagrams of the dump.
        const NLM_F_DUMP_INTR: u16 = 0x10;
        let mut interrupted = false;
        loop {
            for message in self.0.receive()? {
                if message[8..12] != sequence.to_ne_bytes() {
                    continue;
                }
                interrupted |= u16::from_ne_bytes([message[6], message[7]]) & NLM_F_DUMP_INTR != 0;
                match (kind_of(message), answer(message)) {
                    (NLMSG_DONE, _) if interrupted => {
                        return Err(io::Error::from_raw_os_error(libc::EINTR));
                    }
                    (NLMSG_DONE, _) => return Ok(()),
                    (_, Some((_, 0))) => {}
                    (_, Some((_, errno))) => return Err(io::Error::from_raw_os_error(errno)),
                    _ => {
                        if let Some(attributes) = message.get(HEADER_BYTES + GENERIC_BYTES..) {
                            each(attributes);
                        }
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_padded_and_read_back_by_kind() {
        let made = Attributes::new().name(1, "abc").bytes(2, &[7]).nested(
            3,
            Attributes::new().number(1, 5).bytes(2, &9u16.to_be_bytes()),
        );
        assert_eq!(made.len() % 4, 0);
        assert_eq!(made.0[..8], [8, 0, 1, 0, b'a', b'b', b'c', 0]);
        let parsed = Parsed::new(&made.0);
        assert_eq!(parsed.bytes(1), Some(&b"abc\0"[..]));
        assert_eq!(parsed.bytes(2), Some(&[7][..]));
        assert_eq!(parsed.nested(3).bytes(1), Some(&[0, 0, 0, 5][..]));
        assert_eq!(parsed.nested(3).number16(2), Some(9));
        assert_eq!(parsed.nested(4).bytes(1), None);
    }

    #[test]
    fn attributes_that_are_cut_short_or_lie_about_their_length_are_left_out() {
        let made = Attributes::new().number(1, 5).number(2, 6).0;
        for length in 0..made.len() {
            assert!(list(&made[..length]).count() <= length / 8);
        }
        for lie in [0, 3, 4000] {
            let mut bytes = made.clone();
            bytes[8..10].copy_from_slice(&u16::to_ne_bytes(lie));
            assert_eq!(list(&bytes).count(), 1, "{lie}");
        }
    }
}
