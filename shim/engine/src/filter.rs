//! A seccomp profile as BPF: compiled once a profile and node, then read from a file.
//!
//! Compiling the usual profile takes libseccomp 10 ms and more, half of a container's start. The file is named by a hash over
//! the profile and the compiler's version, holds its own hash (a torn or damaged file is compiled anew), and appears by rename.
//! A container keeps a link to it, so that an exec finds what its init was started with.

use std::{
    fs, io,
    io::{Read, Write},
    path::{Path, PathBuf},
};

use berth_kernel::seccomp::{self, Flags, INSTRUCTION_BYTES, MAX_INSTRUCTIONS};
use libseccomp::{
    ScmpAction, ScmpArch, ScmpArgCompare, ScmpCompareOp, ScmpFilterContext, ScmpSyscall,
    ScmpVersion,
};
use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompFilterFlag,
    LinuxSeccompOperator,
};
use sha2::{Digest, Sha256};

use crate::Error;

/// Changes whenever the same profile would compile to something else by our doing.
const FORMAT: &str = "berth seccomp 1";

/// What a filter file starts with.
const MAGIC: &[u8; 8] = b"BERTHBPF";

/// Magic, hash of the rest, flags.
const HEADER_BYTES: usize = 8 + 32 + 8;

/// A filter ready for the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Filter {
    program: Vec<u8>,
    flags: u64,
}

impl Filter {
    /// Puts this thread under the filter.
    pub(crate) fn install(&self) -> io::Result<()> {
        seccomp::install(&self.program, Flags::from_bits(self.flags))
    }

    /// As the kernel has it.
    pub(crate) fn program(&self) -> &[u8] {
        &self.program
    }

    fn encode(&self) -> Vec<u8> {
        let mut rest = self.flags.to_ne_bytes().to_vec();
        rest.extend_from_slice(&self.program);
        let mut bytes = MAGIC.to_vec();
        bytes.extend_from_slice(&Sha256::digest(&rest));
        bytes.extend_from_slice(&rest);
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<Filter> {
        let rest = bytes.strip_prefix(MAGIC)?;
        let (hash, rest) = rest.split_at_checked(32)?;
        if Sha256::digest(rest).as_slice() != hash {
            return None;
        }
        let (flags, program) = rest.split_first_chunk::<8>()?;
        (!program.is_empty()).then(|| Filter {
            program: program.to_vec(),
            flags: u64::from_ne_bytes(*flags),
        })
    }

    /// Reads a filter file.
    pub(crate) fn read(path: &Path) -> Result<Filter, Error> {
        let longest = HEADER_BYTES + MAX_INSTRUCTIONS * INSTRUCTION_BYTES;
        let mut bytes = Vec::new();
        fs::File::open(path)
            .and_then(|file| file.take(longest as u64 + 1).read_to_end(&mut bytes))
            .map_err(Error::io(format!("read seccomp filter {}", path.display())))?;
        Filter::decode(&bytes)
            .ok_or_else(|| Error::Seccomp(format!("{} is damaged", path.display())))
    }
}

/// The filter of a profile, from the cache where it is there, and a copy at `keep_at` for later execs.
pub(crate) fn prepare(
    profile: &LinuxSeccomp,
    cache_dir: Option<&Path>,
    keep_at: &Path,
) -> Result<Filter, Error> {
    let cached = match cache_dir {
        Some(directory) => Some(directory.join(format!("{}.bpf", key(profile)?))),
        None => None,
    };
    if let Some(cached) = &cached
        && let Ok(filter) = Filter::read(cached)
    {
        keep(&filter, cached, keep_at)?;
        return Ok(filter);
    }
    let filter = compile(profile)?;
    match cached {
        Some(cached) => {
            write(&filter, &cached)?;
            keep(&filter, &cached, keep_at)?;
        }
        None => write(&filter, keep_at)?,
    }
    Ok(filter)
}

fn keep(filter: &Filter, cached: &Path, keep_at: &Path) -> Result<(), Error> {
    // Another file system, or no more links to be had.
    if fs::hard_link(cached, keep_at).is_err() {
        write(filter, keep_at)?;
    }
    Ok(())
}

fn write(filter: &Filter, path: &Path) -> Result<(), Error> {
    let step = || Error::io(format!("write seccomp filter {}", path.display()));
    let mut temporary = PathBuf::from(path);
    temporary.set_extension(format!("{}.tmp", std::process::id()));
    let mut open = fs::OpenOptions::new();
    std::os::unix::fs::OpenOptionsExt::mode(&mut open, 0o600);
    let written = open
        .write(true)
        .create(true)
        .truncate(true)
        .open(&temporary)
        .and_then(|mut file| file.write_all(&filter.encode()))
        .and_then(|()| fs::rename(&temporary, path));
    if written.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    written.map_err(step())
}

fn key(profile: &LinuxSeccomp) -> Result<String, Error> {
    let profile = serde_json::to_vec(profile).map_err(|e| Error::Seccomp(e.to_string()))?;
    let version =
        ScmpVersion::current().map_err(|e| Error::Seccomp(format!("libseccomp's version: {e}")))?;
    let mut hash = Sha256::new();
    hash.update(format!("{FORMAT}\n{}\n{version}\n", std::env::consts::ARCH));
    hash.update(profile);
    Ok(hex::encode(hash.finalize()))
}

pub(crate) fn compile(profile: &LinuxSeccomp) -> Result<Filter, Error> {
    let failed = |what: String| {
        move |e: libseccomp::error::SeccompError| Error::Seccomp(format!("{what}: {e}"))
    };
    let default = action(profile.default_action(), profile.default_errno_ret())?;
    let mut context = ScmpFilterContext::new(default).map_err(failed("make a filter".into()))?;
    for arch in profile.architectures().iter().flatten() {
        let arch = architecture(*arch);
        let known = context
            .is_arch_present(arch)
            .map_err(failed(format!("look for {arch:?}")))?;
        if !known {
            context
                .add_arch(arch)
                .map_err(failed(format!("add {arch:?}")))?;
        }
    }
    for rule in profile.syscalls().iter().flatten() {
        let action = action(rule.action(), rule.errno_ret())?;
        // libseccomp refuses a rule that says what the default says.
        if action == default {
            continue;
        }
        for name in rule.names() {
            // A name that this libseccomp does not know: of another machine or a newer kernel. The default covers it.
            let Ok(syscall) = ScmpSyscall::from_name(name) else {
                continue;
            };
            for conditions in alternatives(rule.args().as_deref().unwrap_or_default()) {
                let added = if conditions.is_empty() {
                    context.add_rule(action, syscall)
                } else {
                    context.add_rule_conditional(action, syscall, &conditions)
                };
                match added {
                    Ok(_) => {}
                    // The same rule twice.
                    Err(e) if e.errno() == Some(libseccomp::error::SeccompErrno::EEXIST) => {}
                    Err(e) => return Err(failed(format!("rule for {name}"))(e)),
                }
            }
        }
    }
    let program = export(&context)?;
    if program.is_empty() || program.len() > MAX_INSTRUCTIONS * INSTRUCTION_BYTES {
        return Err(Error::Seccomp(format!(
            "compiles to {} instructions, the kernel takes {MAX_INSTRUCTIONS}",
            program.len() / INSTRUCTION_BYTES
        )));
    }
    let mut flags = Flags::default();
    for flag in profile.flags().iter().flatten() {
        let name = match flag {
            LinuxSeccompFilterFlag::SeccompFilterFlagLog => "SECCOMP_FILTER_FLAG_LOG",
            LinuxSeccompFilterFlag::SeccompFilterFlagTsync => "SECCOMP_FILTER_FLAG_TSYNC",
            LinuxSeccompFilterFlag::SeccompFilterFlagSpecAllow => "SECCOMP_FILTER_FLAG_SPEC_ALLOW",
            // It is about notifications, which are refused below.
            LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv => {
                "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"
            }
        };
        let flag = Flags::by_name(name)
            .ok_or_else(|| Error::Seccomp(format!("flag {name} is not built")))?;
        flags = flags.and(flag);
    }
    Ok(Filter {
        program,
        flags: flags.bits(),
    })
}

fn export(context: &ScmpFilterContext) -> Result<Vec<u8>, Error> {
    let step = || Error::io("export a seccomp filter");
    let memory = rustix::fs::memfd_create("seccomp", rustix::fs::MemfdFlags::CLOEXEC)
        .map_err(|e| step()(e.into()))?;
    context
        .export_bpf(&memory)
        .map_err(|e| Error::Seccomp(format!("export: {e}")))?;
    let mut file = fs::File::from(memory);
    let mut program = Vec::new();
    io::Seek::rewind(&mut file).map_err(step())?;
    file.read_to_end(&mut program).map_err(step())?;
    Ok(program)
}

/// The conditions of a rule all hold together; where one argument is compared more than once they are alternatives (libseccomp
/// knows one comparison an argument and rule; profiles written for runc rely on it).
fn alternatives(args: &[LinuxSeccompArg]) -> Vec<Vec<ScmpArgCompare>> {
    let compare = |arg: &LinuxSeccompArg| {
        let (op, datum) = match arg.op() {
            LinuxSeccompOperator::ScmpCmpNe => (ScmpCompareOp::NotEqual, arg.value()),
            LinuxSeccompOperator::ScmpCmpLt => (ScmpCompareOp::Less, arg.value()),
            LinuxSeccompOperator::ScmpCmpLe => (ScmpCompareOp::LessOrEqual, arg.value()),
            LinuxSeccompOperator::ScmpCmpEq => (ScmpCompareOp::Equal, arg.value()),
            LinuxSeccompOperator::ScmpCmpGe => (ScmpCompareOp::GreaterEqual, arg.value()),
            LinuxSeccompOperator::ScmpCmpGt => (ScmpCompareOp::Greater, arg.value()),
            // (argument & value) == valueTwo
            LinuxSeccompOperator::ScmpCmpMaskedEq => (
                ScmpCompareOp::MaskedEqual(arg.value()),
                arg.value_two().unwrap_or(0),
            ),
        };
        ScmpArgCompare::new(arg.index() as u32, op, datum)
    };
    let repeated = args
        .iter()
        .enumerate()
        .any(|(at, arg)| args[..at].iter().any(|other| other.index() == arg.index()));
    if repeated {
        args.iter().map(|arg| vec![compare(arg)]).collect()
    } else {
        vec![args.iter().map(compare).collect()]
    }
}

fn action(action: LinuxSeccompAction, errno: Option<u32>) -> Result<ScmpAction, Error> {
    let errno = errno.unwrap_or(nix::errno::Errno::EPERM as u32);
    Ok(match action {
        LinuxSeccompAction::ScmpActKill | LinuxSeccompAction::ScmpActKillThread => {
            ScmpAction::KillThread
        }
        LinuxSeccompAction::ScmpActKillProcess => ScmpAction::KillProcess,
        LinuxSeccompAction::ScmpActTrap => ScmpAction::Trap,
        LinuxSeccompAction::ScmpActErrno => ScmpAction::Errno(errno as i32),
        LinuxSeccompAction::ScmpActTrace => ScmpAction::Trace(errno as u16),
        LinuxSeccompAction::ScmpActLog => ScmpAction::Log,
        LinuxSeccompAction::ScmpActAllow => ScmpAction::Allow,
        LinuxSeccompAction::ScmpActNotify => {
            return Err(Error::Seccomp("action SCMP_ACT_NOTIFY is not built".into()));
        }
    })
}

fn architecture(arch: Arch) -> ScmpArch {
    match arch {
        Arch::ScmpArchNative => ScmpArch::Native,
        Arch::ScmpArchX86 => ScmpArch::X86,
        Arch::ScmpArchX86_64 => ScmpArch::X8664,
        Arch::ScmpArchX32 => ScmpArch::X32,
        Arch::ScmpArchArm => ScmpArch::Arm,
        Arch::ScmpArchAarch64 => ScmpArch::Aarch64,
        Arch::ScmpArchMips => ScmpArch::Mips,
        Arch::ScmpArchMips64 => ScmpArch::Mips64,
        Arch::ScmpArchMips64n32 => ScmpArch::Mips64N32,
        Arch::ScmpArchMipsel => ScmpArch::Mipsel,
        Arch::ScmpArchMipsel64 => ScmpArch::Mipsel64,
        Arch::ScmpArchMipsel64n32 => ScmpArch::Mipsel64N32,
        Arch::ScmpArchPpc => ScmpArch::Ppc,
        Arch::ScmpArchPpc64 => ScmpArch::Ppc64,
        Arch::ScmpArchPpc64le => ScmpArch::Ppc64Le,
        Arch::ScmpArchS390 => ScmpArch::S390,
        Arch::ScmpArchS390x => ScmpArch::S390X,
        Arch::ScmpArchParisc => ScmpArch::Parisc,
        Arch::ScmpArchParisc64 => ScmpArch::Parisc64,
        Arch::ScmpArchRiscv64 => ScmpArch::Riscv64,
        Arch::ScmpArchLoongarch64 => ScmpArch::Loongarch64,
        Arch::ScmpArchM68k => ScmpArch::M68k,
        Arch::ScmpArchSh => ScmpArch::Sh,
        Arch::ScmpArchSheb => ScmpArch::Sheb,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn profile(json: &str) -> LinuxSeccomp {
        serde_json::from_str(json).unwrap()
    }

    const PROFILE: &str = r#"{
        "defaultAction": "SCMP_ACT_ALLOW",
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
        "syscalls": [
            {"names": ["swapon", "no_such_call_ever"], "action": "SCMP_ACT_ERRNO", "errnoRet": 95},
            {"names": ["personality"], "action": "SCMP_ACT_ERRNO", "args": [
                {"index": 0, "value": 8, "op": "SCMP_CMP_EQ"}, {"index": 0, "value": 4294967295, "op": "SCMP_CMP_EQ"}]},
            {"names": ["clone"], "action": "SCMP_ACT_ERRNO", "args": [
                {"index": 0, "value": 2114060288, "valueTwo": 2114060288, "op": "SCMP_CMP_MASKED_EQ"}]}
        ]
    }"#;

    #[test]
    fn a_profile_is_compiled_once_and_a_damaged_file_again() {
        let directory = tempfile::tempdir().unwrap();
        let (cache, kept) = (
            directory.path().join("cache"),
            directory.path().join("kept"),
        );
        fs::create_dir(&cache).unwrap();
        let first = prepare(&profile(PROFILE), Some(&cache), &kept).unwrap();
        assert_eq!(first.program.len() % INSTRUCTION_BYTES, 0);
        let files: Vec<_> = fs::read_dir(&cache)
            .unwrap()
            .map(|e| e.unwrap().path())
            .collect();
        assert_eq!(files.len(), 1, "{files:?}");
        assert_eq!(Filter::read(&kept).unwrap(), first);

        let mut bytes = fs::read(&files[0]).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        fs::remove_file(&kept).unwrap();
        fs::write(&files[0], bytes).unwrap();
        assert!(
            Filter::read(&files[0])
                .unwrap_err()
                .to_string()
                .contains("damaged")
        );
        assert_eq!(
            prepare(&profile(PROFILE), Some(&cache), &kept).unwrap(),
            first
        );
        assert_eq!(Filter::read(&files[0]).unwrap(), first);
    }

    #[test]
    fn what_is_not_built_is_refused_by_name() {
        let directory = tempfile::tempdir().unwrap();
        let kept = directory.path().join("kept");
        for (json, name) in [
            (r#"{"defaultAction": "SCMP_ACT_NOTIFY"}"#, "SCMP_ACT_NOTIFY"),
            (
                r#"{"defaultAction": "SCMP_ACT_ALLOW", "flags": ["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"]}"#,
                "WAIT_KILLABLE",
            ),
        ] {
            let error = prepare(&profile(json), None, &kept)
                .unwrap_err()
                .to_string();
            assert!(error.contains(name), "{error}");
        }
    }

    #[test]
    fn one_argument_compared_twice_makes_alternatives() {
        let profile = profile(PROFILE);
        let rules = profile.syscalls().as_ref().unwrap();
        let shape = |at: usize| -> Vec<usize> {
            alternatives(rules[at].args().as_deref().unwrap_or_default())
                .iter()
                .map(Vec::len)
                .collect()
        };
        assert_eq!(
            (shape(0), shape(1), shape(2)),
            (vec![0], vec![1, 1], vec![1])
        );
    }
}
