//! A connection to the system bus, for a call or two. Nothing of it waits longer than its deadline.

use std::{
    io::{self, IoSliceMut, Write},
    mem::MaybeUninit,
    os::{fd::OwnedFd, unix::net::UnixStream},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketAddrUnix,
    SocketFlags, SocketType, recvmsg,
};

use crate::message::{self, FIXED, Kind, Method, Received, Writer};

/// Where the bus listens (D-Bus specification, "Well-known Message Bus Instances").
const SOCKET: &str = "/run/dbus/system_bus_socket";
/// The specification's variable for another place: `unix:path=…`.
const ADDRESS: &str = "DBUS_SYSTEM_BUS_ADDRESS";
/// A bus whose queue of connections is full is asked again after this.
const CONNECT_POLL: Duration = Duration::from_millis(10);
/// The bus greets with "OK" and its id: 35 bytes.
const MAX_GREETING_BYTES: usize = 256;
/// Signals that are kept until somebody waits for them. The match lets in those of one unit.
const MAX_SIGNALS: usize = 64;
/// Descriptors that are kept until somebody takes them; what comes beyond is closed.
const MAX_DESCRIPTORS: usize = 4;

const BUS: Method = Method {
    destination: "org.freedesktop.DBus",
    path: "/org/freedesktop/DBus",
    interface: "org.freedesktop.DBus",
    member: "",
};

/// What went wrong, without what it was about.
#[derive(Debug)]
pub(crate) enum Failure {
    /// There is no bus.
    Absent(PathBuf, io::Error),
    /// Over the deadline.
    Silent,
    Io(io::Error),
    /// What came is no D-Bus.
    Garbage(&'static str),
    /// An answer by which the callee refuses: name and text.
    Refused(String, String),
}

#[derive(Debug)]
pub(crate) struct Bus {
    stream: UnixStream,
    until: Instant,
    serial: u32,
    signals: Vec<Received>,
    descriptors: Vec<OwnedFd>,
}

impl Bus {
    /// Connects, and is known to the bus afterwards.
    pub(crate) fn connect(until: Instant) -> Result<Bus, Failure> {
        Bus::connect_to(&Bus::place(), until)
    }

    /// Where the bus listens.
    pub(crate) fn place() -> PathBuf {
        socket(std::env::var(ADDRESS).ok().as_deref())
    }

    pub(crate) fn connect_to(path: &Path, until: Instant) -> Result<Bus, Failure> {
        Bus::connect_as(path, until, false)
    }

    /// … with answers that may have descriptors, where `descriptors`.
    pub(crate) fn connect_as(
        path: &Path,
        until: Instant,
        descriptors: bool,
    ) -> Result<Bus, Failure> {
        let mut bus = Bus {
            stream: dial(path, until)?,
            until,
            serial: 0,
            signals: Vec::new(),
            descriptors: Vec::new(),
        };
        bus.authenticate(descriptors)?;
        let hello = Method {
            member: "Hello",
            ..BUS
        };
        bus.call(&hello, "", Writer::default())?;
        Ok(bus)
    }

    /// What comes next may take until then.
    pub(crate) fn wait_until(&mut self, until: Instant) {
        self.until = until;
    }

    /// The first that came along and was not taken.
    pub(crate) fn take_descriptor(&mut self) -> Option<OwnedFd> {
        match self.descriptors.is_empty() {
            true => None,
            false => Some(self.descriptors.remove(0)),
        }
    }

    /// From now on signals that match are kept for [`Bus::signal`].
    pub(crate) fn listen(&mut self, rule: &str) -> Result<(), Failure> {
        let method = Method {
            member: "AddMatch",
            ..BUS
        };
        let mut body = Writer::default();
        body.string(rule);
        self.call(&method, "s", body).map(drop)
    }

    /// Calls a method and waits for its answer.
    pub(crate) fn call(
        &mut self,
        method: &Method,
        signature: &str,
        body: Writer,
    ) -> Result<Received, Failure> {
        self.serial += 1;
        let serial = self.serial;
        self.send(&message::call(method, serial, signature, body))?;
        loop {
            let received = self.receive()?;
            let ours = received.reply_serial == serial;
            if received.kind == Kind::Answer as u8 && ours {
                return Ok(received);
            }
            if received.kind == Kind::Error as u8 && ours {
                let text = received.strings.into_iter().next().unwrap_or_default();
                return Err(Failure::Refused(received.error_name, text));
            }
            self.keep(received);
        }
    }

    /// The next signal of this name that `accept` answers something for.
    pub(crate) fn signal<T>(
        &mut self,
        member: &str,
        mut accept: impl FnMut(&Received) -> Option<T>,
    ) -> Result<T, Failure> {
        let mut accept =
            |signal: &Received| (signal.member == member).then(|| accept(signal)).flatten();
        if let Some(kept) = self.signals.iter().find_map(&mut accept) {
            return Ok(kept);
        }
        loop {
            let received = self.receive()?;
            if received.kind == Kind::Signal as u8
                && let Some(accepted) = accept(&received)
            {
                return Ok(accepted);
            }
        }
    }

    fn keep(&mut self, received: Received) {
        if received.kind == Kind::Signal as u8 {
            if self.signals.len() == MAX_SIGNALS {
                self.signals.remove(0);
            }
            self.signals.push(received);
        }
    }

    /// As whom we are told by the kernel (SO_PEERCRED): EXTERNAL, with the uid in hexadecimal digits of its decimal ones.
    fn authenticate(&mut self, descriptors: bool) -> Result<(), Failure> {
        let uid = rustix::process::geteuid().as_raw().to_string();
        let digits: String = uid.bytes().map(|byte| format!("{byte:02x}")).collect();
        self.send(format!("\0AUTH EXTERNAL {digits}\r\n").as_bytes())?;
        if !self.line()?.starts_with(b"OK ") {
            return Err(Failure::Garbage(
                "it does not take us for whom the kernel says we are",
            ));
        }
        if descriptors {
            self.send(b"NEGOTIATE_UNIX_FD\r\n")?;
            if !self.line()?.starts_with(b"AGREE_UNIX_FD") {
                return Err(Failure::Garbage("it passes no descriptors"));
            }
        }
        self.send(b"BEGIN\r\n")
    }

    fn line(&mut self) -> Result<Vec<u8>, Failure> {
        let mut line = Vec::new();
        while !line.ends_with(b"\r\n") {
            if line.len() == MAX_GREETING_BYTES {
                return Err(Failure::Garbage("a greeting without an end"));
            }
            let mut byte = [0];
            self.fill(&mut byte)?;
            line.push(byte[0]);
        }
        Ok(line)
    }

    fn receive(&mut self) -> Result<Received, Failure> {
        let mut fixed = [0; FIXED];
        self.fill(&mut fixed)?;
        let length =
            message::length(&fixed).ok_or(Failure::Garbage("a message with a wrong head"))?;
        let mut bytes = fixed.to_vec();
        bytes.resize(length, 0);
        self.fill(&mut bytes[FIXED..])?;
        message::read(&bytes).ok_or(Failure::Garbage("a message that breaks its own lengths"))
    }

    fn left(&self) -> Result<Duration, Failure> {
        let left = self.until.saturating_duration_since(Instant::now());
        // A timeout of zero would be none.
        (!left.is_zero()).then_some(left).ok_or(Failure::Silent)
    }

    fn send(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        let left = self.left()?;
        self.stream
            .set_write_timeout(Some(left))
            .and_then(|()| self.stream.write_all(bytes))
            .map_err(failed)
    }

    fn fill(&mut self, buffer: &mut [u8]) -> Result<(), Failure> {
        let mut filled = 0;
        while filled < buffer.len() {
            // Again each time: a bus that sends a byte now and then must not stretch it.
            let left = self.left()?;
            self.stream
                .set_read_timeout(Some(left))
                .map_err(Failure::Io)?;
            match self.read(&mut buffer[filled..]) {
                Ok(0) => return Err(Failure::Io(io::ErrorKind::UnexpectedEof.into())),
                Ok(read) => filled += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(failed(error)),
            }
        }
        Ok(())
    }
}

impl Bus {
    /// Bytes, and descriptors that come along with them.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
        let mut along = RecvAncillaryBuffer::new(&mut space);
        let received = recvmsg(
            &self.stream,
            &mut [IoSliceMut::new(buffer)],
            &mut along,
            RecvFlags::CMSG_CLOEXEC,
        )?;
        for message in along.drain() {
            if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                let room = MAX_DESCRIPTORS - self.descriptors.len();
                self.descriptors.extend(descriptors.take(room));
            }
        }
        Ok(received.bytes)
    }
}

fn failed(error: io::Error) -> Failure {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Failure::Silent,
        _ => Failure::Io(error),
    }
}

/// The first address of the list that is a path.
fn socket(addresses: Option<&str>) -> PathBuf {
    addresses
        .into_iter()
        .flat_map(|list| list.split(';'))
        .filter_map(|address| address.strip_prefix("unix:"))
        .flat_map(|keys| keys.split(','))
        .find_map(|key| key.strip_prefix("path="))
        .unwrap_or(SOCKET)
        .into()
}

/// connect(2) waits without end where the listener's queue is full: so it is asked not to wait, again and again.
fn dial(path: &Path, until: Instant) -> Result<UnixStream, Failure> {
    let absent = |errno: rustix::io::Errno| Failure::Absent(path.to_owned(), errno.into());
    let address = SocketAddrUnix::new(path).map_err(absent)?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
        .map_err(absent)?;
    loop {
        match rustix::net::connect(&socket, &address) {
            Ok(()) => break,
            Err(rustix::io::Errno::AGAIN) if Instant::now() < until => {
                std::thread::sleep(CONNECT_POLL);
            }
            Err(rustix::io::Errno::AGAIN) => return Err(Failure::Silent),
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(absent(errno)),
        }
    }
    let stream = UnixStream::from(socket);
    stream.set_nonblocking(false).map_err(Failure::Io)?;
    Ok(stream)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bus_is_where_its_variable_says() {
        for (address, path) in [
            (None, SOCKET),
            (Some("unix:path=/x/y"), "/x/y"),
            (Some("tcp:host=a;unix:guid=1,path=/z"), "/z"),
            (Some("unix:abstract=a"), SOCKET),
            (Some(""), SOCKET),
        ] {
            assert_eq!(socket(address), Path::new(path), "{address:?}");
        }
    }
}
