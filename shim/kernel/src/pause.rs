//! The pod's pause: it holds the namespaces that the pod's containers share, is pid 1 of the pod's pid namespace where there is
//! one, reaps what is orphaned there, and ends on SIGTERM. No image, no executable of its own: a copy of its maker that closes
//! everything, gives up every privilege and sleeps.
//!
//! Decisions:
//! - Its handlers are installed before it is reported as started: a SIGTERM sent right after start would else be lost, since
//!   the kernel drops signals that pid 1 of a namespace has no handler for.
//! - It dies with its shim (PDEATHSIG SIGKILL): without the shim nobody serves the pod, and a pause left behind would hold its
//!   namespaces for good. The signal comes when the *thread* that made it ends, so a sibling is made for the maker's parent
//!   only from a thread that lives as long as its process.
//! - Where containers share its pid namespace they see it as pid 1, so it has its own mount namespace with an empty read-only
//!   root: `/proc/1/root` shows nothing of the node. It is not dumpable, has no capability and another user than root.
//! - It allocates nothing: all is prepared before the clone.

use std::{
    ffi::{CStr, CString},
    io,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
    ptr::null,
};

use crate::{
    clone::{Child, Clone},
    descriptors::close_range,
    pidfd, signals, userns,
};

/// The user and group it runs as: what the usual pause images use, and no account has.
pub const PAUSE_UID: u32 = 65535;

/// The highest capability number there can be (the kernel has 41; EINVAL ends the loop earlier).
const MAX_CAPABILITY: i32 = 63;

/// What pause is to hold.
#[derive(Debug, Default)]
pub struct Pause<'a> {
    pub hostname: Option<&'a str>,
    /// A network namespace to join; none: the maker's.
    pub netns: Option<BorrowedFd<'a>>,
    pub new_ipc: bool,
    pub new_uts: bool,
    pub new_pid: bool,
    /// A user namespace to join; the others, `netns` too, are its own then.
    pub user: Option<Joined<'a>>,
    /// Absolute paths under `/proc/sys` and what is written there, inside the namespaces.
    pub sysctls: &'a [(CString, Vec<u8>)],
    pub oom_score_adj: Option<i32>,
    /// Make it a child of the maker's parent.
    pub sibling: bool,
}

/// A user namespace, and whom in it the pause runs as: an id that is mapped there.
#[derive(Debug, std::clone::Clone, Copy)]
pub struct Joined<'a> {
    pub namespace: BorrowedFd<'a>,
    pub id: u32,
}

/// A pause that is ready.
#[derive(Debug)]
pub struct Paused {
    pub pause: Child,
    /// The child that entered the user namespace to make it, and has ended: its parent is to reap it. Only of a sibling.
    pub unreaped: Option<Child>,
}

/// What failed, in the child.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    Clone,
    JoinUser,
    JoinNetns,
    SetHostname,
    /// Index into `Pause::sysctls`.
    Sysctl(usize),
    OomScoreAdj,
    EmptyRoot,
    Signals,
    Privileges,
    /// It died, or closed its report, before it was ready.
    Report,
}

/// A pause that did not come to be.
#[derive(Debug)]
pub struct Failed {
    pub step: Step,
    pub error: io::Error,
    /// Siblings that were made, and have been killed: their parent is to reap them.
    pub unreaped: Vec<Child>,
}

/// Makes the pause and returns when it is ready for signals.
pub fn spawn(pause: &Pause<'_>) -> Result<Paused, Failed> {
    let (report, told) = pipe().map_err(not_cloned)?;
    let oom_score_adj = pause
        .oom_score_adj
        .map(|value| CString::new(value.to_string()).expect("digits"));
    let made = {
        let (told, oom_score_adj) = (told.as_raw_fd(), oom_score_adj.as_deref());
        match pause.user {
            None => spawn_here(pause, oom_score_adj, told),
            Some(user) => spawn_in(user, pause, oom_score_adj, told),
        }
    };
    drop(told);

    let mut answer = [0u8; Report::BYTES];
    // The first to speak is the one that has failed, or the pause.
    let told = match read_all(&report, &mut answer) {
        Ok(n) if n == answer.len() => Report::decode(answer),
        Ok(_) => Some((Step::Report, io::ErrorKind::UnexpectedEof.into())),
        Err(error) => Some((Step::Report, error)),
    };
    let (child, helper) = made?;
    let failed = match (child, told) {
        (Some(child), None) => {
            return Ok(Paused {
                pause: child,
                unreaped: reaped(helper, pause.sibling).pop(),
            });
        }
        (child, told) => {
            let told = told.unwrap_or((Step::Report, io::ErrorKind::UnexpectedEof.into()));
            (child, told)
        }
    };
    let (child, (step, error)) = failed;
    if let Some(child) = &child {
        let _ = pidfd::send_signal(&child.pidfd, libc::SIGKILL);
    }
    let mut unreaped = reaped(child, pause.sibling);
    unreaped.extend(reaped(helper, pause.sibling));
    Err(Failed {
        step,
        error,
        unreaped,
    })
}

fn not_cloned(error: io::Error) -> Failed {
    Failed {
        step: Step::Clone,
        error,
        unreaped: Vec::new(),
    }
}

/// Waits for a child that has ended or been killed; a sibling is not ours to reap.
fn reaped(child: Option<Child>, sibling: bool) -> Vec<Child> {
    match child {
        Some(child) if sibling => vec![child],
        Some(child) => {
            let _ = pidfd::wait(&child.pidfd);
            Vec::new()
        }
        None => Vec::new(),
    }
}

/// The pause, and who made it.
type Made = (Option<Child>, Option<Child>);

fn namespaces(pause: &Pause<'_>) -> i32 {
    let mut namespaces = 0;
    for (wanted, flag) in [
        (pause.new_ipc, libc::CLONE_NEWIPC),
        (pause.new_uts, libc::CLONE_NEWUTS),
        (pause.new_pid, libc::CLONE_NEWPID | libc::CLONE_NEWNS),
    ] {
        if wanted {
            namespaces |= flag;
        }
    }
    namespaces
}

fn spawn_here(
    pause: &Pause<'_>,
    oom_score_adj: Option<&CStr>,
    told: RawFd,
) -> Result<Made, Failed> {
    let clone = Clone {
        namespaces: namespaces(pause),
        sibling: pause.sibling,
        cgroup: None,
    };
    // SAFETY: `run` allocates nothing, takes no lock and calls async-signal-safe functions and raw system calls only.
    let child = unsafe { clone.spawn_unchecked(|| run(pause, oom_score_adj, told)) };
    Ok((Some(child.map_err(not_cloned)?), None))
}

/// A namespace belongs to the user namespace of who makes it, and nobody comes back from there. So one enters, makes the pause, tells its
/// pid and ends.
fn spawn_in(
    user: Joined<'_>,
    pause: &Pause<'_>,
    oom_score_adj: Option<&CStr>,
    told: RawFd,
) -> Result<Made, Failed> {
    let (answer, number) = pipe().map_err(not_cloned)?;
    let namespaces = namespaces(pause);
    let enter = || {
        let entered = (|| {
            // The file is root's, as long as this is.
            lower_oom_score(oom_score_adj)?;
            let errno = |error: io::Error| (Step::JoinUser, error.raw_os_error().unwrap_or(0));
            userns::join(user.namespace).map_err(errno)?;
            userns::become_root().map_err(errno)?;
            let clone = Clone {
                namespaces,
                sibling: true,
                cgroup: None,
            };
            // SAFETY: as in `spawn_here`.
            unsafe { clone.spawn_unchecked(|| run(pause, None, told)) }
                .map_err(|error| (Step::Clone, error.raw_os_error().unwrap_or(0)))
        })();
        match entered {
            Ok(child) => {
                let pid = child.pid.to_ne_bytes();
                // SAFETY: initialised memory of that length.
                let written =
                    unsafe { libc::write(number.as_raw_fd(), pid.as_ptr().cast(), pid.len()) };
                i32::from(written != pid.len() as isize)
            }
            Err((step, errno)) => {
                let message = Report::encode(step, errno);
                // SAFETY: initialised memory of that length.
                unsafe { libc::write(told, message.as_ptr().cast(), message.len()) };
                1
            }
        }
    };
    let clone = Clone {
        sibling: pause.sibling,
        ..Clone::default()
    };
    // SAFETY: `enter` allocates nothing, takes no lock and calls async-signal-safe functions and raw system calls only.
    let helper = unsafe { clone.spawn_unchecked(enter) }.map_err(not_cloned)?;
    drop(number);
    let mut pid = [0; 4];
    let child = match read_all(&answer, &mut pid) {
        Ok(4) => {
            let pid = i32::from_ne_bytes(pid);
            // Nobody has reaped it: its parent hears of it after this.
            pidfd::open(pid).ok().map(|pidfd| Child { pid, pidfd })
        }
        _ => None,
    };
    Ok((child, Some(helper)))
}

/// What the child tells: step, index, errno; all zero: ready.
struct Report;

impl Report {
    const BYTES: usize = 12;

    fn encode(step: Step, errno: i32) -> [u8; Self::BYTES] {
        let (code, index): (u32, u32) = match step {
            Step::Clone => (1, 0),
            Step::JoinNetns => (2, 0),
            Step::SetHostname => (3, 0),
            Step::Sysctl(index) => (4, index as u32),
            Step::OomScoreAdj => (5, 0),
            Step::EmptyRoot => (6, 0),
            Step::Signals => (7, 0),
            Step::Privileges => (8, 0),
            Step::Report => (9, 0),
            Step::JoinUser => (10, 0),
        };
        let mut bytes = [0; Self::BYTES];
        bytes[..4].copy_from_slice(&code.to_ne_bytes());
        bytes[4..8].copy_from_slice(&index.to_ne_bytes());
        bytes[8..].copy_from_slice(&errno.to_ne_bytes());
        bytes
    }

    fn decode(bytes: [u8; Self::BYTES]) -> Option<(Step, io::Error)> {
        let word = |at: usize| {
            u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        let step = match word(0) {
            0 => return None,
            1 => Step::Clone,
            2 => Step::JoinNetns,
            3 => Step::SetHostname,
            4 => Step::Sysctl(word(4) as usize),
            5 => Step::OomScoreAdj,
            6 => Step::EmptyRoot,
            7 => Step::Signals,
            8 => Step::Privileges,
            10 => Step::JoinUser,
            _ => Step::Report,
        };
        Some((step, io::Error::from_raw_os_error(word(8) as i32)))
    }
}

/// The child's life. Nothing here may allocate.
fn run(pause: &Pause<'_>, oom_score_adj: Option<&CStr>, told: RawFd) -> i32 {
    let message = match prepare(pause, oom_score_adj, told) {
        Ok(()) => [0; Report::BYTES],
        Err((step, errno)) => Report::encode(step, errno),
    };
    // SAFETY: `message` is initialised memory of that length; the descriptor is the report pipe, kept open until here.
    let written = unsafe { libc::write(told, message.as_ptr().cast(), message.len()) };
    // Not written: the maker is gone, and PDEATHSIG was perhaps armed too late to hear of it.
    if message != [0; Report::BYTES] || written != Report::BYTES as isize {
        return 1;
    }
    let _ = close_range(0, u32::MAX, 0);
    loop {
        // SAFETY: pause has no precondition; handlers end the process.
        unsafe { libc::pause() };
    }
}

fn prepare(
    pause: &Pause<'_>,
    oom_score_adj: Option<&CStr>,
    told: RawFd,
) -> Result<(), (Step, i32)> {
    if let Some(netns) = pause.netns {
        // SAFETY: a descriptor and a flag; no memory is touched.
        check(Step::JoinNetns, unsafe {
            libc::setns(netns.as_raw_fd(), libc::CLONE_NEWNET)
        })?;
    }
    if let (true, Some(hostname)) = (pause.new_uts, pause.hostname) {
        // SAFETY: pointer and length describe the bytes of a live str.
        check(Step::SetHostname, unsafe {
            libc::sethostname(hostname.as_ptr().cast(), hostname.len())
        })?;
    }
    // /proc/sys shows the namespaces of the process that opens a file, so these are the pod's.
    for (index, (path, value)) in pause.sysctls.iter().enumerate() {
        write_file(path, value).map_err(|errno| (Step::Sysctl(index), errno))?;
    }
    lower_oom_score(oom_score_adj)?;
    // SAFETY: chdir to a C string literal.
    unsafe { libc::chdir(c"/".as_ptr()) };
    if pause.new_pid {
        empty_root().map_err(|errno| (Step::EmptyRoot, errno))?;
    }
    let told = told as u32;
    if told > 0 {
        let _ = close_range(0, told - 1, 0);
    }
    let _ = close_range(told + 1, u32::MAX, 0);
    handle_signals().map_err(|error| (Step::Signals, error.raw_os_error().unwrap_or(0)))?;
    give_up_privileges(pause.user.map_or(PAUSE_UID, |user| user.id))
}

fn lower_oom_score(value: Option<&CStr>) -> Result<(), (Step, i32)> {
    match value.map(|value| write_file(c"/proc/self/oom_score_adj", value.to_bytes())) {
        // Below our own without CAP_SYS_RESOURCE: then it stays our own.
        None | Some(Ok(()) | Err(libc::EACCES)) => Ok(()),
        Some(Err(errno)) => Err((Step::OomScoreAdj, errno)),
    }
}

/// A mount namespace of its own with nothing in it.
fn empty_root() -> Result<(), i32> {
    let here = c".".as_ptr();
    // The tmpfs needs a directory to be mounted on first: /proc is there, it was just written to.
    // SAFETY: every pointer is a C string literal or null where mount(2) allows it; this is the child's own mount namespace
    // (CLONE_NEWNS), made private first, so nothing leaves it.
    unsafe {
        succeeded(libc::mount(
            null(),
            c"/".as_ptr(),
            null(),
            libc::MS_REC | libc::MS_PRIVATE,
            null(),
        ))?;
        let flags = libc::MS_RDONLY | libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
        let options = c"size=4k,nr_inodes=2,mode=0555";
        succeeded(libc::mount(
            c"tmpfs".as_ptr(),
            c"/proc".as_ptr(),
            c"tmpfs".as_ptr(),
            flags,
            options.as_ptr().cast(),
        ))?;
        succeeded(libc::chdir(c"/proc".as_ptr()))?;
        // The old root lands on top of the new one and is detached from there: no directory for it is needed.
        if libc::syscall(libc::SYS_pivot_root, here, here) == 0 {
            succeeded(libc::umount2(here, libc::MNT_DETACH))?;
        } else {
            // An initramfs can't be pivoted away from.
            succeeded(libc::mount(
                here,
                c"/".as_ptr(),
                null(),
                libc::MS_MOVE,
                null(),
            ))?;
            succeeded(libc::chroot(here))?;
        }
        succeeded(libc::chdir(c"/".as_ptr()))
    }
}

extern "C" fn stop(_signal: libc::c_int) {
    // SAFETY: _exit has no precondition and is async-signal-safe.
    unsafe { libc::_exit(0) }
}

fn handle_signals() -> io::Result<()> {
    let handler = stop as extern "C" fn(libc::c_int) as libc::sighandler_t;
    signals::set(libc::SIGTERM, handler, 0)?;
    signals::set(libc::SIGINT, handler, 0)?;
    // Orphans of the pod that end here are reaped by the kernel itself.
    signals::set(libc::SIGCHLD, libc::SIG_IGN, libc::SA_NOCLDWAIT)?;
    signals::unblock_all()
}

fn give_up_privileges(id: u32) -> Result<(), (Step, i32)> {
    const VERSION_3: u32 = 0x2008_0522;
    let failed = Step::Privileges;
    let (header, none) = ([VERSION_3, 0], [0u32; 6]);
    // The raw calls: glibc's wrappers would talk to other threads that this copy of the process does not have.
    // SAFETY: numbers, a C string literal, null for an empty list, and for capset a header and two (third version) cleared
    // capability structs that live over the call.
    unsafe {
        libc::prctl(libc::PR_SET_NAME, c"pause".as_ptr());
        check(failed, libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))?;
        for capability in 0..=MAX_CAPABILITY {
            if libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) == -1 {
                break;
            }
        }
        check(
            failed,
            libc::syscall(libc::SYS_setgroups, 0, null::<u32>()) as i32,
        )?;
        check(
            failed,
            libc::syscall(libc::SYS_setresgid, id, id, id) as i32,
        )?;
        check(
            failed,
            libc::syscall(libc::SYS_setresuid, id, id, id) as i32,
        )?;
        check(
            failed,
            libc::syscall(libc::SYS_capset, header.as_ptr(), none.as_ptr()) as i32,
        )?;
        check(failed, libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0))?;
        // Last: a change of user clears it.
        check(
            failed,
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0),
        )
    }
}

/// An open, one write and a close.
fn write_file(path: &CStr, value: &[u8]) -> Result<(), i32> {
    // SAFETY: a live C string and numbers.
    let fd = unsafe { libc::open(path.as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC) };
    succeeded(fd)?;
    // SAFETY: the bytes of a live slice; the descriptor was just opened here.
    let written = unsafe { libc::write(fd, value.as_ptr().cast(), value.len()) };
    let answer = succeeded(written as i32);
    // SAFETY: our own descriptor, not used after.
    unsafe { libc::close(fd) };
    answer
}

fn check(step: Step, answer: i32) -> Result<(), (Step, i32)> {
    succeeded(answer).map_err(|errno| (step, errno))
}

/// The errno of a call that answers -1 for failure.
fn succeeded(answer: i32) -> Result<(), i32> {
    if answer != -1 {
        return Ok(());
    }
    // SAFETY: the address of this thread's errno is always valid.
    Err(unsafe { *libc::__errno_location() })
}

fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut ends = [0; 2];
    // SAFETY: room for two descriptors, which are ours when the call succeeds.
    unsafe {
        if libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) == -1 {
            return Err(io::Error::last_os_error());
        }
        Ok((OwnedFd::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1])))
    }
}

fn read_all(from: &OwnedFd, into: &mut [u8]) -> io::Result<usize> {
    let mut got = 0;
    while got < into.len() {
        match rustix::io::read(from, &mut into[got..]) {
            Ok(0) => break,
            Ok(n) => got += n,
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(got)
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        os::{fd::AsFd, unix::fs::MetadataExt},
        time::{Duration, Instant},
    };

    use super::*;
    use crate::pidfd::Exit;

    fn status(pid: i32, key: &str) -> String {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = status.lines().find(|line| line.starts_with(key)).unwrap();
        line.split_once(':').unwrap().1.trim().to_owned()
    }

    /// The test thread outlives its pause, as PDEATHSIG wants.
    fn make(pause: &Pause<'_>) -> Child {
        spawn(pause).unwrap().pause
    }

    #[test]
    fn a_pause_ends_with_zero_on_a_sigterm_sent_the_moment_it_is_reported() {
        for new_pid in [false, true] {
            for signal in [libc::SIGTERM, libc::SIGINT] {
                for _ in 0..50 {
                    let child = make(&Pause {
                        new_pid,
                        ..Pause::default()
                    });
                    pidfd::send_signal(&child.pidfd, signal).unwrap();
                    assert_eq!(pidfd::wait(&child.pidfd).unwrap(), Exit::Code(0));
                }
            }
        }
    }

    #[test]
    fn a_pause_has_its_own_namespaces_no_descriptor_and_no_privilege() {
        let sysctls = [(
            CString::new("/proc/sys/kernel/shm_rmid_forced").unwrap(),
            b"1".to_vec(),
        )];
        let child = make(&Pause {
            hostname: Some("berth-test-host"),
            new_ipc: true,
            new_uts: true,
            new_pid: true,
            sysctls: &sysctls,
            oom_score_adj: Some(500),
            ..Pause::default()
        });
        let namespace =
            |pid: &str, name: &str| fs::read_link(format!("/proc/{pid}/ns/{name}")).unwrap();
        let pid = child.pid.to_string();
        for (name, own) in [
            ("ipc", true),
            ("uts", true),
            ("pid", true),
            ("mnt", true),
            ("net", false),
            ("user", false),
        ] {
            assert_eq!(
                namespace(&pid, name) != namespace("self", name),
                own,
                "{name}"
            );
        }
        // It closes the report pipe right after its report.
        let until = Instant::now() + Duration::from_secs(10);
        while fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count() > 0 {
            assert!(Instant::now() < until, "descriptors");
        }
        assert_eq!(
            fs::read_dir(format!("/proc/{pid}/root/")).unwrap().count(),
            0,
            "root"
        );
        assert_eq!(
            fs::read_to_string(format!("/proc/{pid}/oom_score_adj"))
                .unwrap()
                .trim(),
            "500"
        );
        for (key, value) in [
            ("Name:", "pause"),
            ("CapPrm:", "0000000000000000"),
            ("CapBnd:", "0000000000000000"),
            ("NoNewPrivs:", "1"),
        ] {
            assert_eq!(status(child.pid, key), value, "{key}");
        }
        assert!(status(child.pid, "Uid:").starts_with("65535"));
        pidfd::send_signal(&child.pidfd, libc::SIGTERM).unwrap();
        assert_eq!(pidfd::wait(&child.pidfd).unwrap(), Exit::Code(0));
    }

    #[test]
    fn a_pause_in_a_user_namespace_owns_its_namespaces_and_is_nobody_there() {
        let mapping = userns::Mapping {
            inside: 0,
            outside: 500_000,
            count: 1000,
        };
        let maps = userns::IdMaps {
            uids: vec![mapping],
            gids: vec![mapping],
        };
        let made = userns::make(&maps, true).unwrap();
        let netns = made.network.as_ref().unwrap();
        let sysctls = [
            ("kernel/shm_rmid_forced", "1"),
            ("net/ipv4/ip_unprivileged_port_start", "80"),
        ]
        .map(|(name, value)| {
            let path = CString::new(format!("/proc/sys/{name}")).unwrap();
            (path, value.as_bytes().to_vec())
        });
        for new_pid in [false, true] {
            let child = make(&Pause {
                hostname: Some("berth-test-host"),
                netns: Some(netns.as_fd()),
                new_ipc: true,
                new_uts: true,
                new_pid,
                user: Some(Joined {
                    namespace: made.user.as_fd(),
                    id: 999,
                }),
                sysctls: &sysctls,
                oom_score_adj: Some(500),
                ..Pause::default()
            });
            assert_eq!(userns::IdMaps::of_process(child.pid).unwrap(), maps);
            for name in ["ipc", "uts", "net"] {
                let namespace = fs::File::open(format!("/proc/{}/ns/{name}", child.pid)).unwrap();
                let owner = fs::File::from(userns::owner_of(namespace).unwrap());
                let link = fs::metadata(format!("/proc/{}/ns/user", child.pid)).unwrap();
                assert_eq!(owner.metadata().unwrap().ino(), link.ino(), "{name}");
            }
            assert!(status(child.pid, "Uid:").starts_with("500999"));
            assert_eq!(status(child.pid, "CapPrm:"), "0000000000000000");
            let score = fs::read_to_string(format!("/proc/{}/oom_score_adj", child.pid)).unwrap();
            assert_eq!(score.trim(), "500");
            pidfd::send_signal(&child.pidfd, libc::SIGTERM).unwrap();
            assert_eq!(pidfd::wait(&child.pidfd).unwrap(), Exit::Code(0));
        }
        let refused = spawn(&Pause {
            user: Some(Joined {
                namespace: netns.as_fd(),
                id: 0,
            }),
            ..Pause::default()
        });
        assert_eq!(refused.unwrap_err().step, Step::JoinUser);
    }

    #[test]
    fn an_oom_score_adj_that_can_not_be_had_is_no_failure() {
        let own = fs::read_to_string("/proc/self/oom_score_adj").unwrap();
        let child = make(&Pause {
            oom_score_adj: Some(-1000),
            ..Pause::default()
        });
        let has = fs::read_to_string(format!("/proc/{}/oom_score_adj", child.pid)).unwrap();
        // With CAP_SYS_RESOURCE it can be had.
        assert!(has == own || has.trim() == "-1000", "{has}");
        pidfd::send_signal(&child.pidfd, libc::SIGTERM).unwrap();
        pidfd::wait(&child.pidfd).unwrap();
    }

    #[test]
    fn a_sysctl_that_does_not_exist_is_told_with_its_index_and_errno() {
        let sysctls = [
            (
                CString::new("/proc/sys/kernel/shm_rmid_forced").unwrap(),
                b"0".to_vec(),
            ),
            (
                CString::new("/proc/sys/kernel/no_such_thing").unwrap(),
                b"1".to_vec(),
            ),
        ];
        let Failed {
            step,
            error,
            unreaped,
        } = spawn(&Pause {
            new_ipc: true,
            sysctls: &sysctls,
            ..Pause::default()
        })
        .unwrap_err();
        assert!(unreaped.is_empty());
        assert_eq!(
            (step, error.raw_os_error()),
            (Step::Sysctl(1), Some(libc::ENOENT))
        );
    }
}
