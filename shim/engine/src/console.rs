//! A terminal for an exec, from the container's own devpts.

use std::os::fd::OwnedFd;

use oci_spec::runtime::Process;
use rustix::{
    fs::{FileType, Mode, OFlags, fstat, fstatfs, major, minor},
    pty::{OpenptFlags, ioctl_tiocgptpeer, unlockpt},
    termios::{Winsize, tcsetwinsize},
};

use crate::Error;

/// `DEVPTS_SUPER_MAGIC`
const DEVPTS: i64 = 0x1cd1;

/// The multiplexer's device number.
const PTMX: (u32, u32) = (5, 2);

/// Opens a new terminal: master and slave. Called inside the container's mount namespace, so the path is the container's to
/// forge: what comes back is checked to be the multiplexer of a devpts, and the slave is asked of it, not of a path
/// (SEC-ENG-04, CVE-2025-52565).
pub(crate) fn open(process: &Process) -> Result<(OwnedFd, OwnedFd), Error> {
    let step = || Error::errno("open a terminal in the container's /dev/pts");
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let master = rustix::fs::open("/dev/pts/ptmx", flags, Mode::empty()).map_err(step())?;
    let stat = fstat(&master).map_err(step())?;
    let genuine = FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice
        && (major(stat.st_rdev), minor(stat.st_rdev)) == PTMX
        && fstatfs(&master).map_err(step())?.f_type == DEVPTS;
    if !genuine {
        return Err(step()(rustix::io::Errno::NODEV));
    }
    unlockpt(&master).map_err(step())?;
    let slave = ioctl_tiocgptpeer(
        &master,
        OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC,
    )
    .map_err(step())?;
    if let Some(size) = process.console_size() {
        let size = Winsize {
            ws_row: size.height().try_into().unwrap_or(u16::MAX),
            ws_col: size.width().try_into().unwrap_or(u16::MAX),
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        tcsetwinsize(&slave, size).map_err(step())?;
    }
    give(&slave, (process.user().uid(), process.user().gid()));
    Ok((master, slave))
}

/// The user of a process owns its terminal.
pub(crate) fn give(slave: &OwnedFd, (uid, gid): (u32, u32)) {
    let _ = rustix::fs::fchown(
        slave,
        Some(rustix::fs::Uid::from_raw(uid)),
        Some(rustix::fs::Gid::from_raw(gid)),
    );
}
