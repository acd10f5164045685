//! logind: a lock that holds the machine's shutdown up for a while, and the word that one is coming (org.freedesktop.login1(5)).

use std::{
    os::fd::OwnedFd,
    path::Path,
    time::{Duration, Instant},
};

use crate::{
    bus::{Bus, Failure},
    message::{Method, Received, Writer},
    units::{Error, error},
};

/// logind answers within a few ms.
const PATIENCE: Duration = Duration::from_secs(10);
/// Longer than a machine runs: a shutdown is waited for without end.
const FOR_EVER: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

const MANAGER: Method = Method {
    destination: "org.freedesktop.login1",
    path: "/org/freedesktop/login1",
    interface: "org.freedesktop.login1.Manager",
    member: "",
};
const SIGNAL: &str = "PrepareForShutdown";

/// A connection that hears of shutdowns.
#[derive(Debug)]
pub struct Login {
    bus: Bus,
    began: Instant,
}

impl Login {
    /// Hears of each shutdown from now on.
    ///
    /// # Errors
    /// There is no bus, or none that speaks D-Bus and passes descriptors.
    pub fn connect() -> Result<Self, Error> {
        Self::connect_to(&Bus::place(), PATIENCE)
    }

    fn connect_to(path: &Path, patience: Duration) -> Result<Self, Error> {
        let began = Instant::now();
        let failed = |failure| error("reach logind", began, failure);
        let bus = Bus::connect_as(path, began + patience, true).map_err(failed)?;
        let mut login = Self { bus, began };
        let rule = format!(
            "type='signal',sender='{}',path='{}',interface='{}',member='{SIGNAL}'",
            MANAGER.destination, MANAGER.path, MANAGER.interface
        );
        login.bus.listen(&rule).map_err(failed)?;
        Ok(login)
    }

    /// How long logind lets itself be held up at most (InhibitDelayMaxSec of logind.conf(5)).
    pub fn longest_delay(&mut self) -> Result<Duration, Error> {
        let microseconds = self.property("InhibitDelayMaxUSec")?;
        Ok(Duration::from_micros(microseconds))
    }

    /// Whether a shutdown has begun already.
    pub fn is_shutting_down(&mut self) -> Result<bool, Error> {
        Ok(self.property("PreparingForShutdown")? != 0)
    }

    /// A lock that holds a shutdown up until it is dropped, or until logind's patience ends. People are told who holds it, and why.
    pub fn delay_shutdown(&mut self, who: &str, why: &str) -> Result<OwnedFd, Error> {
        const STEP: &str = "take a lock on the shutdown";
        self.begin();
        let method = Method {
            member: "Inhibit",
            ..MANAGER
        };
        let mut body = Writer::default();
        for word in ["shutdown", who, why, "delay"] {
            body.string(word);
        }
        let called = self.bus.call(&method, "ssss", body);
        called.map_err(|failure| error(STEP, self.began, failure))?;
        let lock = self.bus.take_descriptor();
        lock.ok_or_else(|| {
            let failure = Failure::Garbage("an answer without the lock's descriptor");
            error(STEP, self.began, failure)
        })
    }

    /// Waits for the next word of logind: a shutdown begins (true), or does not take place (false).
    pub fn wait(&mut self) -> Result<bool, Error> {
        self.began = Instant::now();
        self.bus.wait_until(self.began + FOR_EVER);
        let begins = |signal: &Received| signal.numbers.first().map(|it| *it != 0);
        let heard = self.bus.signal(SIGNAL, begins);
        heard.map_err(|failure| error("wait for a shutdown", self.began, failure))
    }

    fn begin(&mut self) {
        self.began = Instant::now();
        self.bus.wait_until(self.began + PATIENCE);
    }

    fn property(&mut self, name: &str) -> Result<u64, Error> {
        let step = format!("ask logind for {name}");
        self.begin();
        let method = Method {
            interface: "org.freedesktop.DBus.Properties",
            member: "Get",
            ..MANAGER
        };
        let mut body = Writer::default();
        body.string(MANAGER.interface);
        body.string(name);
        let answer = self.bus.call(&method, "ss", body);
        let answer = answer.map_err(|failure| error(&step, self.began, failure))?;
        let value = answer.numbers.first().copied();
        value.ok_or_else(|| {
            error(
                &step,
                self.began,
                Failure::Garbage("a property of another type"),
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{IoSlice, Read, Write},
        os::{
            fd::AsFd,
            unix::net::{UnixListener, UnixStream},
        },
        thread,
    };

    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

    use super::*;
    use crate::message::{
        FIXED, Kind, length, read,
        tests::{incoming, with_body},
    };

    fn line(stream: &mut UnixStream) -> Vec<u8> {
        let mut line = Vec::new();
        let mut byte = [0];
        while !line.ends_with(b"\n") && stream.read_exact(&mut byte).is_ok() {
            line.push(byte[0]);
        }
        line
    }

    fn heard(stream: &mut UnixStream) -> Option<(String, Vec<String>, u32)> {
        let mut fixed = [0; FIXED];
        stream.read_exact(&mut fixed).ok()?;
        let mut bytes = fixed.to_vec();
        bytes.resize(length(&fixed)?, 0);
        stream.read_exact(&mut bytes[FIXED..]).ok()?;
        let serial = u32::from_ne_bytes(bytes[8..12].try_into().ok()?);
        let message = read(&bytes)?;
        Some((message.member, message.strings, serial))
    }

    fn signal(begins: bool) -> Vec<u8> {
        let mut body = Writer::default();
        body.boolean(begins);
        with_body(Kind::Signal, 0, SIGNAL, "b", body)
    }

    fn property(serial: u32, kind: &str, value: u64) -> Vec<u8> {
        let mut body = Writer::default();
        body.signature(kind);
        match kind {
            "t" => body.u64(value),
            _ => body.boolean(value != 0),
        }
        with_body(Kind::Answer, serial, "", "v", body)
    }

    /// A bus with a logind behind it, which says that a shutdown begins once somebody has the lock, and once that is let go that it does not.
    fn logind(mut stream: UnixStream) {
        line(&mut stream);
        stream.write_all(b"OK 1234\r\n").unwrap();
        assert_eq!(line(&mut stream), b"NEGOTIATE_UNIX_FD\r\n");
        stream.write_all(b"AGREE_UNIX_FD\r\n").unwrap();
        line(&mut stream);
        while let Some((member, strings, serial)) = heard(&mut stream) {
            match (member.as_str(), strings.last().map(String::as_str)) {
                ("Get", Some("InhibitDelayMaxUSec")) => {
                    stream.write_all(&property(serial, "t", 5_000_000)).unwrap();
                }
                ("Get", Some("PreparingForShutdown")) => {
                    stream.write_all(&property(serial, "b", 1)).unwrap();
                }
                ("Inhibit", _) => {
                    assert_eq!(strings, ["shutdown", "kubelet", "pods", "delay"]);
                    let (mut ours, theirs) = UnixStream::pair().unwrap();
                    let mut body = Writer::default();
                    body.u32(0);
                    let answer = with_body(Kind::Answer, serial, "", "h", body);
                    let mut space =
                        [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
                    let mut along = SendAncillaryBuffer::new(&mut space);
                    let fds = [theirs.as_fd()];
                    assert!(along.push(SendAncillaryMessage::ScmRights(&fds)));
                    let bytes = [IoSlice::new(&answer)];
                    let sent = sendmsg(&stream, &bytes, &mut along, SendFlags::empty()).unwrap();
                    assert_eq!(sent, answer.len());
                    drop(theirs);
                    stream.write_all(&signal(true)).unwrap();
                    // until nobody has it any more
                    let _ = ours.read(&mut [0]);
                    stream.write_all(&signal(false)).unwrap();
                }
                _ => stream
                    .write_all(&incoming(Kind::Answer, serial, "", &[]))
                    .unwrap(),
            }
        }
    }

    #[test]
    fn a_lock_holds_a_shutdown_up_until_it_is_let_go() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("bus");
        let listener = UnixListener::bind(&path).unwrap();
        let serving = thread::spawn(move || logind(listener.accept().unwrap().0));
        let mut login = Login::connect_to(&path, PATIENCE).unwrap();
        assert_eq!(login.longest_delay().unwrap(), Duration::from_secs(5));
        assert!(login.is_shutting_down().unwrap());
        let lock = login.delay_shutdown("kubelet", "pods").unwrap();
        assert!(login.wait().unwrap());
        drop(lock);
        assert!(!login.wait().unwrap());
        drop(login);
        serving.join().unwrap();
    }

    #[test]
    fn a_bus_without_descriptors_or_a_logind_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("bus");
        let listener = UnixListener::bind(&path).unwrap();
        let serving = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            line(&mut stream);
            stream.write_all(b"OK 1234\r\n").unwrap();
            line(&mut stream);
            stream.write_all(b"ERROR\r\n").unwrap();
        });
        let error = Login::connect_to(&path, PATIENCE).unwrap_err().to_string();
        assert!(error.contains("descriptors"), "{error}");
        serving.join().unwrap();
        let error = Login::connect_to(&dir.path().join("none"), PATIENCE);
        assert!(matches!(error, Err(Error::NoBus { .. })), "{error:?}");
    }
}
