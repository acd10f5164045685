//! Netlink, synchronous: requests in one datagram, their answers in order.

use std::{
    io,
    os::fd::{AsRawFd, OwnedFd},
};

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use nix::{
    libc,
    sys::{
        socket::{
            AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, connect,
            recv, send, setsockopt, socket,
            sockopt::{ReceiveTimeout, SndBufForce},
        },
        time::{TimeVal, TimeValLike},
    },
};

/// The kernel answers at once, but for the time that others hold RTNL; a machine under load holds it for seconds.
const ANSWER_TIMEOUT_S: i64 = 30;
/// The kernel fills a dump's datagrams up to 32 KiB (netlink(7), NLMSG_GOODSIZE of large reads).
const BUFFER_BYTES: usize = 64 << 10;
/// struct nlmsghdr
pub const HEADER_BYTES: usize = 16;
/// A dump of more is not a machine for the built-in bridge; it bounds the wait in [`Socket::dump`].
const MAX_DUMP_MESSAGES: usize = 4 << 20;

/// A socket to the kernel in the namespace that the thread was in when it was opened, whatever the thread does later.
#[derive(Debug)]
pub struct Channel {
    fd: OwnedFd,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Channel {
    pub fn open(protocol: SockProtocol) -> io::Result<Self> {
        let fd = socket(
            AddressFamily::Netlink,
            SockType::Datagram,
            SockFlag::SOCK_CLOEXEC,
            protocol,
        )?;
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
        // Connected to the kernel: no other process's messages reach us (CVE-2012-3520's class).
        connect(fd.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
        setsockopt(&fd, ReceiveTimeout, &TimeVal::seconds(ANSWER_TIMEOUT_S))?;
        Ok(Self {
            fd,
            sequence: 0,
            buffer: vec![0; BUFFER_BYTES],
        })
    }

    /// Room for one datagram of this many bytes, whatever the limit of the system is.
    pub fn widen(&self, bytes: usize) -> io::Result<()> {
        Ok(setsockopt(&self.fd, SndBufForce, &bytes)?)
    }

    pub fn next_sequence(&mut self) -> u32 {
        self.sequence = self.sequence.wrapping_add(1);
        self.sequence
    }

    pub fn send(&self, datagram: &[u8]) -> io::Result<()> {
        let sent = send(self.fd.as_raw_fd(), datagram, MsgFlags::empty())?;
        if sent != datagram.len() {
            return Err(io::Error::new(
                io::ErrorKind::WriteZero,
                format!(
                    "{sent} of {} bytes of a netlink request were taken",
                    datagram.len()
                ),
            ));
        }
        Ok(())
    }

    /// The messages of the next datagram, each with its header.
    pub fn receive(&mut self) -> io::Result<Vec<&[u8]>> {
        let length = loop {
            // MSG_TRUNC: the datagram's length even where the buffer is too small for it.
            match recv(self.fd.as_raw_fd(), &mut self.buffer, MsgFlags::MSG_TRUNC) {
                Ok(length) => break length,
                Err(nix::Error::EINTR) => {}
                Err(nix::Error::EAGAIN) => {
                    return Err(io::Error::new(
                        io::ErrorKind::TimedOut,
                        format!(
                            "no answer from the kernel in {ANSWER_TIMEOUT_S} s: another process holds the lock on the network (RTNL)"
                        ),
                    ));
                }
                Err(errno) => return Err(errno.into()),
            }
        };
        if length == 0 || length > self.buffer.len() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("a netlink answer of {length} bytes"),
            ));
        }
        let mut rest = &self.buffer[..length];
        let mut messages = Vec::new();
        while rest.len() >= HEADER_BYTES {
            let length = u32::from_ne_bytes([rest[0], rest[1], rest[2], rest[3]]) as usize;
            if length < HEADER_BYTES || length > rest.len() {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    "a netlink message longer than its datagram",
                ));
            }
            messages.push(&rest[..length]);
            rest = &rest[length.next_multiple_of(4).min(rest.len())..];
        }
        Ok(messages)
    }
}

/// rtnetlink.
#[derive(Debug)]
pub struct Socket(Channel);

impl Socket {
    pub fn open() -> io::Result<Self> {
        Channel::open(SockProtocol::NetlinkRoute).map(Self)
    }

    /// Sends all requests at once; the kernel takes them one after the other. The first that it refused is the error.
    pub fn change(&mut self, requests: Vec<(RouteNetlinkMessage, u16)>) -> io::Result<()> {
        let count = requests.len();
        self.send(
            requests
                .into_iter()
                .map(|(message, flags)| (message, flags | NLM_F_REQUEST | NLM_F_ACK)),
        )?;
        let mut answered = 0;
        let mut refused = None;
        while answered < count {
            for message in self.receive()? {
                let NetlinkPayload::Error(answer) = message?.payload else {
                    continue;
                };
                if answer.header.len() < 12 {
                    continue;
                }
                answered += 1;
                if answer.code.is_some() && refused.is_none() {
                    refused = Some(answer.to_io());
                }
            }
        }
        match refused {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    /// One object by name or index. The errno of the kernel where there is none.
    pub fn get(&mut self, request: RouteNetlinkMessage) -> io::Result<RouteNetlinkMessage> {
        self.send([(request, NLM_F_REQUEST)])?;
        loop {
            for message in self.receive()? {
                match message?.payload {
                    NetlinkPayload::InnerMessage(message) => return Ok(message),
                    NetlinkPayload::Error(answer) if answer.code.is_some() => {
                        return Err(answer.to_io());
                    }
                    _ => {}
                }
            }
        }
    }

    /// All objects of a kind. One that the library can't parse (a kind of link or route newer than it) is passed over.
    pub fn dump(&mut self, request: RouteNetlinkMessage) -> io::Result<Vec<RouteNetlinkMessage>> {
        self.send([(request, NLM_F_REQUEST | NLM_F_DUMP)])?;
        let mut objects = Vec::new();
        loop {
            for message in self.receive()? {
                match message.map(|message| message.payload) {
                    Ok(NetlinkPayload::InnerMessage(message)) => objects.push(message),
                    Ok(NetlinkPayload::Done(_)) => return Ok(objects),
                    Ok(NetlinkPayload::Error(answer)) if answer.code.is_some() => {
                        return Err(answer.to_io());
                    }
                    Ok(_) => {}
                    Err(error) => tracing::debug!(%error, "passing over a netlink message"),
                }
                if objects.len() > MAX_DUMP_MESSAGES {
                    return Err(io::Error::new(
                        io::ErrorKind::InvalidData,
                        format!("more than {MAX_DUMP_MESSAGES} objects"),
                    ));
                }
            }
        }
    }

    fn send(
        &mut self,
        requests: impl IntoIterator<Item = (RouteNetlinkMessage, u16)>,
    ) -> io::Result<()> {
        let mut datagram = Vec::with_capacity(512);
        for (message, flags) in requests {
            let mut header = NetlinkHeader::default();
            header.flags = flags;
            header.sequence_number = self.0.next_sequence();
            let mut message = NetlinkMessage::new(header, NetlinkPayload::from(message));
            message.finalize();
            let start = datagram.len();
            datagram.resize(start + message.buffer_len().next_multiple_of(4), 0);
            message.serialize(&mut datagram[start..]);
        }
        self.0.send(&datagram)
    }

    /// The messages of the next datagram.
    fn receive(&mut self) -> io::Result<Vec<io::Result<NetlinkMessage<RouteNetlinkMessage>>>> {
        let messages = self.0.receive()?;
        Ok(messages
            .into_iter()
            .map(|message| {
                NetlinkMessage::deserialize(message)
                    .map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e.to_string()))
            })
            .collect())
    }
}

/// The link, address or route is there already.
pub fn is_there(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EEXIST)
}

/// There is no such link.
pub fn is_gone(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::ENODEV)
}
