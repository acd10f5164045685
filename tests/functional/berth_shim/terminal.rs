//! Terminals of persons.

use std::fs::File;
use std::io::Read;
use std::io::Write;
use std::process::Child;
use std::process::Stdio;
use std::time::Duration;
use std::time::Instant;

use anyhow::{Result, bail, ensure};
use berth_tests::process;
use nix::{
    pty::{Winsize, openpty},
    sys::signal::{Signal, kill},
    sys::termios::tcgetattr,
    unistd::Pid,
};

use super::yard::{SOON, Yard, refs};

/// A `berth` with a terminal.
pub(super) struct Seat {
    pub(super) child: Child,
    pub(super) master: File,
    /// Held open, so that the terminal's settings can be read at any time.
    pub(super) slave: File,
    pub(super) text: String,
}

impl Seat {
    pub(super) fn take(yard: &Yard, words: &[&str], size: (u16, u16)) -> Result<Self> {
        let size = winsize(size);
        let pty = openpty(&size, None)?;
        let slave = File::from(pty.slave);
        let child = yard
            .command(words)?
            .stdin(slave.try_clone()?)
            .stdout(slave.try_clone()?)
            .stderr(Stdio::piped())
            .spawn()?;
        let master = File::from(pty.master);
        let flags = rustix::fs::fcntl_getfl(&master)?;
        rustix::fs::fcntl_setfl(&master, flags | rustix::fs::OFlags::NONBLOCK)?;
        Ok(Self {
            child,
            master,
            slave,
            text: String::new(),
        })
    }

    pub(super) fn is_raw(&self) -> Result<bool> {
        use nix::sys::termios::LocalFlags;
        Ok(!tcgetattr(&self.slave)?
            .local_flags
            .intersects(LocalFlags::ICANON | LocalFlags::ECHO))
    }

    pub(super) fn expect(&mut self, part: &str) -> Result<()> {
        let began = Instant::now();
        while !self.text.contains(part) {
            let mut buffer = [0; 4096];
            match self.master.read(&mut buffer) {
                Ok(n) => self.text += &String::from_utf8_lossy(&buffer[..n]),
                Err(_) => std::thread::sleep(Duration::from_millis(10)),
            }
            if began.elapsed() > SOON {
                bail!("no {part:?} in {:?}", self.text);
            }
        }
        self.text.clear();
        Ok(())
    }

    pub(super) fn resize(&self, size: (u16, u16)) -> Result<()> {
        let (columns, rows) = size;
        let size = rustix::termios::Winsize {
            ws_col: columns,
            ws_row: rows,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        rustix::termios::tcsetwinsize(&self.master, size)?;
        // It is not the terminal's foreground process group: nobody gave it a session.
        kill(Pid::from_raw(self.child.id() as i32), Signal::SIGWINCH)?;
        Ok(())
    }

    pub(super) fn code(&mut self) -> Result<Option<i32>> {
        let began = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status.code());
            }
            // Its last output must find room.
            let _ = self.master.read(&mut [0; 4096]);
            ensure!(began.elapsed() < SOON, "berth does not end");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn winsize((columns, rows): (u16, u16)) -> Winsize {
    Winsize {
        ws_col: columns,
        ws_row: rows,
        ws_xpixel: 0,
        ws_ypixel: 0,
    }
}

#[test]
fn a_terminal_has_the_persons_size_and_is_restored_whatever_happens() -> Result<()> {
    Yard::each(|yard| {
        let id = yard.id("seat");
        let bundle = yard.bundle("seat", &[], &["sh"])?;
        let words = yard.words("run", &id, &bundle, &["--tty", "--interactive"]);
        let mut seat = Seat::take(yard, &refs(&words), (101, 37))?;
        ensure!(process::eventually(SOON, || seat.is_raw().unwrap_or(false)));
        seat.master.write_all(b"stty size; echo first-$?\n")?;
        seat.expect("37 101")?;
        seat.resize((90, 30))?;
        // The size goes its own way, beside the bytes.
        let began = Instant::now();
        loop {
            seat.master.write_all(b"stty size\n")?;
            if seat.expect("30 90").is_ok() {
                break;
            }
            ensure!(began.elapsed() < SOON, "not resized");
        }
        // The terminal's own signals are the container's.
        seat.master.write_all(b"sleep 1000\n")?;
        std::thread::sleep(Duration::from_millis(300));
        seat.master.write_all(b"\x03")?;
        seat.master.write_all(b"echo interrupted-$?\n")?;
        seat.expect("interrupted-130")?;
        seat.master.write_all(b"exit 5\n")?;
        ensure!(seat.code()? == Some(5));
        ensure!(!seat.is_raw()?, "raw after exit");

        // The shim is killed, or this program is told to end: cooked again.
        let id = yard.id("seat2");
        let words = yard.words("run", &id, &bundle, &["--tty", "--interactive"]);
        let mut seat = Seat::take(yard, &refs(&words), (80, 24))?;
        ensure!(process::eventually(SOON, || seat.is_raw().unwrap_or(false)));
        process::kill_9(yard.shim_pid(&id)?);
        ensure!(seat.code()? == Some(1));
        ensure!(!seat.is_raw()?, "raw after the shim's death");

        let id = yard.id("seat3");
        let words = yard.words("run", &id, &bundle, &["--tty", "--interactive"]);
        let mut seat = Seat::take(yard, &refs(&words), (80, 24))?;
        ensure!(process::eventually(SOON, || seat.is_raw().unwrap_or(false)));
        for _ in 0..3 {
            kill(Pid::from_raw(seat.child.id() as i32), Signal::SIGTERM)?;
            std::thread::sleep(Duration::from_millis(200));
        }
        ensure!(seat.code()? == Some(137));
        ensure!(!seat.is_raw()?, "raw after signals");
        Ok(())
    })
}
