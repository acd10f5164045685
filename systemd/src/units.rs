//! Units: started, changed, stopped.
//!
//! A job of systemd's is done when its `JobRemoved` has come: the answer to the call tells only that it is queued. All that one call here
//! asks of the bus and of systemd together takes at most [`PATIENCE`].

use std::{
    io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use crate::{
    bus::{Bus, Failure},
    message::{Method, Writer},
    property::Property,
};

/// systemd answers within a few ms, and within a second while it reloads hundreds of units.
const PATIENCE: Duration = Duration::from_secs(10);

const MANAGER: Method = Method {
    destination: "org.freedesktop.systemd1",
    path: "/org/freedesktop/systemd1",
    interface: "org.freedesktop.systemd1.Manager",
    member: "",
};
const NO_SUCH_UNIT: &str = "org.freedesktop.systemd1.NoSuchUnit";
const UNIT_EXISTS: &str = "org.freedesktop.systemd1.UnitExists";

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(
        "{step}: no D-Bus at {}: {source}; systemd is asked over its system bus (Debian's package dbus)", path.display()
    )]
    NoBus {
        step: String,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{step}: no answer within {waited_ms} ms over D-Bus")]
    Silent { step: String, waited_ms: u128 },
    #[error("{step}: D-Bus: {source}")]
    Io {
        step: String,
        #[source]
        source: io::Error,
    },
    #[error("{step}: what is at the D-Bus socket does not speak D-Bus: {what}")]
    Garbage { step: String, what: &'static str },
    /// systemd's own word, with D-Bus' name of the error.
    #[error("{step}: {text} ({name})")]
    Refused {
        step: String,
        name: String,
        text: String,
    },
    #[error("{step}: systemd's job ended as {result:?}; `journalctl -u {unit}` may say why")]
    Job {
        step: String,
        unit: String,
        result: String,
    },
}

/// Whether systemd is this machine's PID 1 (sd_booted(3)).
pub fn is_booted() -> bool {
    Path::new("/run/systemd/system").is_dir()
}

/// systemd, over a connection of its own.
#[derive(Debug)]
pub struct Units {
    bus: Bus,
    began: Instant,
}

/// What came of a start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Started {
    Started,
    /// A unit of that name is there already; nothing was changed.
    Exists,
}

impl Units {
    /// For what is to be done next: its time begins here.
    pub fn connect() -> Result<Units, Error> {
        let began = Instant::now();
        match Bus::connect(began + PATIENCE) {
            Ok(bus) => Ok(Units { bus, began }),
            Err(failure) => Err(error("reach systemd", began, failure)),
        }
    }

    #[cfg(test)]
    fn connect_to(path: &Path, patience: Duration) -> Result<Units, Error> {
        let began = Instant::now();
        match Bus::connect_to(path, began + patience) {
            Ok(bus) => Ok(Units { bus, began }),
            Err(failure) => Err(error("reach systemd", began, failure)),
        }
    }

    /// Makes and starts a transient unit. When it answers, the unit's cgroup is there with these limits, and its processes are in it.
    pub fn start(&mut self, unit: &str, properties: &[Property]) -> Result<Started, Error> {
        let step = || format!("start {unit}");
        self.follow(unit).map_err(|f| self.error(step(), f))?;
        let mut body = Writer::default();
        body.string(unit);
        // A job for the same unit that is queued already: neither of them is to win.
        body.string("fail");
        body.properties(properties);
        // Auxiliary units: none.
        body.array(8, |_| ());
        match self.manager("StartTransientUnit", "ssa(sv)a(sa(sv))", body) {
            Ok(job) => self.wait_for(step(), unit, &job).map(|()| Started::Started),
            Err(Failure::Refused(name, _)) if name == UNIT_EXISTS => Ok(Started::Exists),
            Err(failure) => Err(self.error(step(), failure)),
        }
    }

    /// Changes properties of a unit until the next boot; systemd has written their files when it answers.
    pub fn set(&mut self, unit: &str, properties: &[Property]) -> Result<(), Error> {
        let mut body = Writer::default();
        body.string(unit);
        // At run time only.
        body.boolean(true);
        body.properties(properties);
        self.manager("SetUnitProperties", "sba(sv)", body)
            .map(drop)
            .map_err(|failure| self.error(format!("change {unit}"), failure))
    }

    /// Stops a unit with all that is in it, and forgets a failed one. One that is not there is no error.
    pub fn stop(&mut self, unit: &str) -> Result<(), Error> {
        let step = || format!("stop {unit}");
        self.follow(unit).map_err(|f| self.error(step(), f))?;
        let mut body = Writer::default();
        body.string(unit);
        body.string("replace");
        match self.manager("StopUnit", "ss", body) {
            Ok(job) => self.wait_for(step(), unit, &job)?,
            Err(Failure::Refused(name, _)) if name == NO_SUCH_UNIT => return Ok(()),
            Err(failure) => return Err(self.error(step(), failure)),
        }
        let mut body = Writer::default();
        body.string(unit);
        match self.manager("ResetFailedUnit", "s", body) {
            Err(failure) if !matches!(failure, Failure::Refused(..)) => {
                Err(self.error(step(), failure))
            }
            _ => Ok(()),
        }
    }

    /// systemd sends signals to those alone who have subscribed, and the bus the jobs of this unit alone.
    fn follow(&mut self, unit: &str) -> Result<(), Failure> {
        self.bus.listen(&format!(
            "type='signal',sender='{}',path='{}',interface='{}',member='JobRemoved',arg2='{unit}'",
            MANAGER.destination, MANAGER.path, MANAGER.interface
        ))?;
        match self.manager("Subscribe", "", Writer::default()) {
            // A second time on one connection.
            Err(Failure::Refused(..)) | Ok(_) => Ok(()),
            Err(failure) => Err(failure),
        }
    }

    /// Answers the first string of the answer: of a job its path.
    fn manager(
        &mut self,
        member: &'static str,
        signature: &str,
        body: Writer,
    ) -> Result<String, Failure> {
        let method = Method { member, ..MANAGER };
        let answer = self.bus.call(&method, signature, body)?;
        Ok(answer.strings.into_iter().next().unwrap_or_default())
    }

    /// `JobRemoved` has the job's number, its path, the unit and the result.
    fn wait_for(&mut self, step: String, unit: &str, job: &str) -> Result<(), Error> {
        let result = self.bus.signal("JobRemoved", |signal| {
            let is_it = signal.strings.first().is_some_and(|path| path == job);
            is_it.then(|| signal.strings.get(2).cloned().unwrap_or_default())
        });
        match result {
            Ok(result) if result == "done" => Ok(()),
            Ok(result) => Err(Error::Job {
                step,
                unit: unit.to_owned(),
                result,
            }),
            Err(failure) => Err(self.error(step, failure)),
        }
    }

    fn error(&self, step: String, failure: Failure) -> Error {
        error(&step, self.began, failure)
    }
}

pub(crate) fn error(step: &str, began: Instant, failure: Failure) -> Error {
    let step = step.to_owned();
    match failure {
        Failure::Absent(path, source) => Error::NoBus { step, path, source },
        Failure::Silent => Error::Silent {
            step,
            waited_ms: began.elapsed().as_millis(),
        },
        Failure::Io(source) => Error::Io { step, source },
        Failure::Garbage(what) => Error::Garbage { step, what },
        Failure::Refused(name, text) => Error::Refused { step, name, text },
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Write},
        os::unix::net::{UnixListener, UnixStream},
        thread,
    };

    use super::*;
    use crate::message::{self, FIXED, Kind, tests::incoming};

    const PATIENCE: Duration = Duration::from_millis(500);

    /// A bus that answers as it is told, each in a thread of its own.
    fn bus(behave: impl FnOnce(UnixStream) + Send + 'static) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("bus");
        let listener = UnixListener::bind(&path).unwrap();
        thread::spawn(move || behave(listener.accept().unwrap().0));
        (dir, path)
    }

    fn greet(stream: &mut UnixStream) {
        let mut line = Vec::new();
        let mut byte = [0];
        for end in [&b"\r\n"[..], b"BEGIN\r\n"] {
            line.clear();
            while !line.ends_with(end) {
                stream.read_exact(&mut byte).unwrap();
                line.push(byte[0]);
            }
            if end == b"\r\n" {
                assert!(line.starts_with(b"\0AUTH EXTERNAL "), "{line:?}");
                stream.write_all(b"OK 1234\r\n").unwrap();
            }
        }
    }

    /// The next call's name, and its number.
    fn heard(stream: &mut UnixStream) -> Option<(String, u32)> {
        let mut fixed = [0; FIXED];
        stream.read_exact(&mut fixed).ok()?;
        let mut bytes = fixed.to_vec();
        bytes.resize(message::length(&fixed)?, 0);
        stream.read_exact(&mut bytes[FIXED..]).ok()?;
        let serial = u32::from_ne_bytes(fixed[8..12].try_into().unwrap());
        Some((message::read(&bytes)?.member, serial))
    }

    /// Answers every call; where it is `of`, with these messages.
    fn serving(of: &'static str, answers: fn(u32) -> Vec<Vec<u8>>) -> impl FnOnce(UnixStream) {
        move |mut stream| {
            greet(&mut stream);
            while let Some((member, serial)) = heard(&mut stream) {
                let told = match member == of {
                    true => answers(serial),
                    false => vec![incoming(Kind::Answer, serial, "", &["/job/0"])],
                };
                for message in told {
                    stream.write_all(&message).unwrap();
                }
            }
        }
    }

    fn removed(job: &str, result: &str) -> Vec<u8> {
        incoming(Kind::Signal, 0, "JobRemoved", &[job, "x.scope", result])
    }

    #[test]
    fn a_start_is_over_when_its_job_is_also_where_that_comes_first() {
        let (_dir, path) = bus(serving("StartTransientUnit", |serial| {
            vec![
                removed("/job/6", "failed"),
                removed("/job/7", "done"),
                incoming(Kind::Answer, serial, "", &["/job/7"]),
            ]
        }));
        let mut units = Units::connect_to(&path, PATIENCE).unwrap();
        assert_eq!(units.start("x.scope", &[]).unwrap(), Started::Started);
    }

    #[test]
    fn what_systemd_says_is_passed_on() {
        let (_dir, path) = bus(serving("StartTransientUnit", |serial| {
            vec![incoming(
                Kind::Error,
                serial,
                "org.freedesktop.DBus.Error.InvalidArgs",
                &["MemoryMax= is out of range"],
            )]
        }));
        let mut units = Units::connect_to(&path, PATIENCE).unwrap();
        let refused = units.start("x.scope", &[]).unwrap_err().to_string();
        for part in ["start x.scope", "out of range", "InvalidArgs"] {
            assert!(refused.contains(part), "{refused}");
        }
        let (_dir, path) = bus(serving("StartTransientUnit", |serial| {
            vec![
                incoming(Kind::Answer, serial, "", &["/job/1"]),
                removed("/job/1", "failed"),
            ]
        }));
        let mut units = Units::connect_to(&path, PATIENCE).unwrap();
        let failed = units.start("x.scope", &[]).unwrap_err().to_string();
        assert!(failed.contains("\"failed\""), "{failed}");
    }

    #[test]
    fn a_unit_that_is_there_or_is_not_is_no_error() {
        let (_dir, path) = bus(serving("StartTransientUnit", |serial| {
            vec![incoming(Kind::Error, serial, UNIT_EXISTS, &["exists"])]
        }));
        let mut units = Units::connect_to(&path, PATIENCE).unwrap();
        assert_eq!(units.start("x.slice", &[]).unwrap(), Started::Exists);
        let (_dir, path) = bus(serving("StopUnit", |serial| {
            vec![incoming(Kind::Error, serial, NO_SUCH_UNIT, &["not loaded"])]
        }));
        let mut units = Units::connect_to(&path, PATIENCE).unwrap();
        units.stop("x.slice").unwrap();
    }

    #[test]
    fn a_bus_that_is_not_there_hangs_or_talks_rubbish_is_an_error_in_time() {
        let dir = tempfile::tempdir().unwrap();
        let missing = dir.path().join("bus");
        let error = Units::connect_to(&missing, PATIENCE).unwrap_err();
        assert!(
            matches!(error, Error::NoBus { .. }) && error.to_string().contains("dbus"),
            "{error}"
        );
        // Nobody accepts, and then nobody speaks.
        let _listener = UnixListener::bind(&missing).unwrap();
        let began = Instant::now();
        let error = Units::connect_to(&missing, PATIENCE).unwrap_err();
        assert!(matches!(error, Error::Silent { .. }), "{error}");
        assert!(began.elapsed() < 3 * PATIENCE, "{:?}", began.elapsed());

        type Behaviour = fn(UnixStream);
        let behaviours: [(Behaviour, &str); 5] = [
            (
                |mut s| drop(s.write_all(b"REJECTED KERBEROS\r\n")),
                "whom the kernel",
            ),
            (|mut s| drop(s.write_all(&[b'x'; 4096])), "without an end"),
            (drop, "D-Bus"),
            (
                |mut s| {
                    greet(&mut s);
                    let _ = s.write_all(&[0xff; 64]);
                    thread::sleep(PATIENCE);
                },
                "wrong head",
            ),
            // A byte now and then does not stretch it.
            (
                |mut s| {
                    let _ = s.write_all(b"OK ");
                    while s.write_all(b"1").is_ok() {
                        thread::sleep(PATIENCE / 10);
                    }
                },
                "no answer within",
            ),
        ];
        for (behave, says) in behaviours {
            let (_dir, path) = bus(behave);
            let began = Instant::now();
            let error = Units::connect_to(&path, PATIENCE).unwrap_err().to_string();
            assert!(error.contains(says), "{says}: {error}");
            assert!(began.elapsed() < 3 * PATIENCE, "{says}");
        }
    }

    #[test]
    fn a_job_that_never_ends_is_named_with_its_unit() {
        let (_dir, path) = bus(serving("StopUnit", |serial| {
            vec![incoming(Kind::Answer, serial, "", &["/job/1"])]
        }));
        let mut units = Units::connect_to(&path, PATIENCE).unwrap();
        let error = units.stop("x.slice").unwrap_err().to_string();
        assert!(
            error.contains("stop x.slice") && error.contains("no answer within"),
            "{error}"
        );
    }
}
