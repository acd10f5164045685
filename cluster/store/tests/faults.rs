//! The embedded store under kill -9, on a full disk, with damaged files (REL-22, SEC-API-12).

#![allow(clippy::zombie_processes)] // Each child is waited for where it ends.

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead, BufReader, Read, Write},
    os::unix::fs::{FileExt, PermissionsExt},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use berth_store::{
    Durability, Embedded, Error, Keys, Op, RangeAnswer, RangeRequest, Revision, Store, Txn,
};
use bytes::Bytes;

const DIRECTORY: &str = "BERTH_STORE_TEST_DIRECTORY";

/// What a child writes at most: one that should have been killed ends.
const MOST: usize = 5000;

fn put(key: String, value: impl Into<Bytes>) -> Op {
    Op::Put {
        key: key.into(),
        value: value.into(),
        lease: 0,
    }
}

fn all() -> RangeRequest {
    RangeRequest {
        keys: Keys::prefix("/"),
        revision: 0,
        limit: 0,
        keys_only: false,
        count_only: false,
    }
}

fn run<T>(test: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap()
        .block_on(test)
}

fn read(store: &Embedded) -> Result<RangeAnswer, Error> {
    run(store.range(all()))
}

/// This program again, as the child that `test` is.
fn child(test: &str, directory: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env(DIRECTORY, directory)
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    command
}

fn directory() -> Option<PathBuf> {
    std::env::var_os(DIRECTORY).map(PathBuf::from)
}

/// Not a test of its own: writes until it is killed, and says what was acknowledged.
#[test]
fn a_child_that_writes() {
    let Some(directory) = directory() else { return };
    berth_failpoint::setup();
    let store = std::sync::Arc::new(Embedded::open(&directory).unwrap());
    run(async {
        let begun = store.status().await.unwrap().revision;
        let writers: Vec<_> = (0..4)
            .map(|w| {
                let store = store.clone();
                tokio::spawn(async move {
                    for n in 0..MOST {
                        let name = format!("{begun}-{w}-{n}");
                        let value = format!("{name}{}", "x".repeat(n % 3000));
                        // Two keys: both or none.
                        let txn = Txn {
                            then: vec![
                                put(format!("/left/{name}"), value.clone()),
                                put(format!("/right/{name}"), value),
                                // Over and over: what a compaction has something to remove of.
                                put(format!("turn/{w}"), name.clone()),
                            ],
                            durability: match w {
                                0 => Durability::Relaxed,
                                _ => Durability::Synced,
                            },
                            ..Txn::default()
                        };
                        let Ok(done) = store.txn(txn).await else {
                            return;
                        };
                        // One write: a line is told whole or not at all.
                        let line = format!("acknowledged {name} {}\n", done.revision);
                        std::io::stdout().write_all(line.as_bytes()).unwrap();
                        if w == 3 && n % 50 == 49 {
                            let _ = store.compact(done.revision.saturating_sub(20)).await;
                        }
                    }
                })
            })
            .collect();
        for writer in writers {
            writer.await.unwrap();
        }
    });
}

fn acknowledged(lines: impl Iterator<Item = String>, all: &mut BTreeMap<String, Revision>) {
    for line in lines {
        // The test's own words may stand before it.
        if let Some((_, said)) = line.split_once("acknowledged ")
            && let Some((name, revision)) = said.split_once(' ')
            && let Ok(revision) = revision.parse()
        {
            all.insert(name.to_owned(), revision);
        }
    }
}

/// All that was acknowledged is there, whole; nothing is there by half; and it takes writes.
fn holds(directory: &Path, acknowledged: &BTreeMap<String, Revision>) {
    let store = Embedded::open(directory).unwrap();
    let found = read(&store).unwrap();
    let mut sides: BTreeMap<String, Vec<(Revision, Bytes)>> = BTreeMap::new();
    for kv in &found.kvs {
        let key = String::from_utf8_lossy(&kv.key).into_owned();
        let name = key.rsplit('/').next().unwrap().to_owned();
        assert!(kv.value.starts_with(name.as_bytes()), "{key}");
        sides
            .entry(name)
            .or_default()
            .push((kv.mod_revision, kv.value.clone()));
    }
    for (name, sides) in &sides {
        assert!(
            sides.len() == 2 && sides[0] == sides[1],
            "{name} is there by half"
        );
    }
    for (name, revision) in acknowledged {
        let Some(sides) = sides.get(name) else {
            panic!("{name} of revision {revision} was acknowledged and is lost");
        };
        assert_eq!(sides[0].0, *revision, "{name}");
    }
    let revision = found.revision;
    let txn = Txn {
        then: vec![
            put("/left/again".into(), "again"),
            put("/right/again".into(), "again"),
        ],
        ..Txn::default()
    };
    assert_eq!(run(store.txn(txn)).unwrap().revision, revision + 1);
}

#[test]
fn a_kill_at_any_moment_loses_nothing_that_was_acknowledged() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store");
    let mut acked = BTreeMap::new();
    for round in 0..8u64 {
        let mut child = child("a_child_that_writes", &path).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let reading = std::thread::spawn(move || lines.map_while(Result::ok).collect::<Vec<_>>());
        // Also while it opens.
        std::thread::sleep(Duration::from_millis(
            30 + 90 * round + u64::from(rand::random::<u8>()),
        ));
        child.kill().unwrap();
        child.wait().unwrap();
        acknowledged(reading.join().unwrap().into_iter(), &mut acked);
        holds(&path, &acked);
    }
    assert!(acked.len() > 100, "only {} were written", acked.len());
}

#[test]
fn a_kill_between_any_two_steps_loses_nothing_that_was_acknowledged() {
    if !berth_failpoint::ON {
        return;
    }
    for site in [
        "store.open.marked=return(kill)",
        "store.commit.worked_out=20*off->return(kill)",
        "store.commit.written=20*off->return(kill)",
        "store.sweep.chosen=1*off->return(kill)",
    ] {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("store");
        let mut acked = BTreeMap::new();
        for _ in 0..2 {
            let output = child("a_child_that_writes", &path)
                .env("FAILPOINTS", site)
                .output()
                .unwrap();
            assert!(!output.status.success(), "{site} was not reached");
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            acknowledged(text.lines().map(str::to_owned), &mut acked);
            holds(&path, &acked);
        }
    }
}

#[test]
fn a_write_that_fails_is_not_acknowledged_and_nothing_is_written_after_it() {
    if !berth_failpoint::ON {
        return;
    }
    for site in [
        "store.commit.worked_out=20*off->return(error)",
        "store.commit.written=20*off->return(enospc)",
    ] {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("store");
        let mut acked = BTreeMap::new();
        let output = child("a_child_that_writes", &path)
            .env("FAILPOINTS", site)
            .output()
            .unwrap();
        assert!(output.status.success(), "it is refused and ends by itself");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        acknowledged(text.lines().map(str::to_owned), &mut acked);
        assert!(acked.len() >= 10, "{}", acked.len());
        holds(&path, &acked);
    }
}

/// Not a test of its own: on a disk of 8 MiB, which it makes larger when it is full.
#[test]
fn a_child_on_a_small_disk() {
    let Some(directory) = directory() else { return };
    let path = directory.join("store");
    let store = Embedded::open(&path).unwrap();
    let value = |n: u64| {
        // Doesn't shrink when it is compressed.
        let mut bytes = vec![0; 100_000];
        let mut state = n + 1;
        for chunk in bytes.chunks_mut(8) {
            state = state
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            chunk.copy_from_slice(&(state ^ (state >> 29)).to_le_bytes()[..chunk.len()]);
        }
        Bytes::from(bytes)
    };
    let one = |n: u64| Txn {
        then: vec![put(format!("/{n:05}"), value(n))],
        ..Txn::default()
    };
    let mut written = 0;
    let error = loop {
        match run(store.txn(one(written))) {
            Ok(_) => written += 1,
            Err(e) => break e,
        }
        assert!(written < 1000, "the disk isn't full");
    };
    assert!(matches!(error, Error::Broken { .. }), "{error:?}");
    assert!(written > 10, "{written}");
    let check = |store: &Embedded| {
        let found = read(store).unwrap();
        assert!(
            found.count == written || found.count == written + 1,
            "{}",
            found.count
        );
        for (n, kv) in found.kvs.iter().enumerate().take(written as usize) {
            assert!(kv.value == value(n as u64), "{n}");
        }
    };
    check(&store);
    let refused = run(store.txn(one(0))).unwrap_err();
    assert!(refused.to_string().contains("read only"), "{refused}");
    drop(store);
    let grown = Command::new("mount")
        .args(["-o", "remount,size=512m"])
        .arg(&directory)
        .status()
        .unwrap();
    assert!(grown.success());
    let store = Embedded::open(&path).unwrap();
    check(&store);
    run(store.txn(one(0))).unwrap();
    println!("survived {written}");
}

#[test]
fn a_full_disk_loses_nothing_that_was_acknowledged() {
    let directory = tempfile::tempdir().unwrap();
    let child = child("a_child_on_a_small_disk", directory.path());
    // The mount is in a namespace of its own, and gone with it.
    let output = Command::new("unshare")
        .args(["--mount", "--propagation", "private", "sh", "-c"])
        .arg("mount -t tmpfs -o size=8m,mode=700 tmpfs \"$0\" && exec \"$@\"")
        .arg(directory.path())
        .arg(child.get_program())
        .args(child.get_args())
        .env(DIRECTORY, directory.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && said.contains("survived"),
        "{said}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

fn files(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => files(&path, found),
            false => found.push(path),
        }
    }
}

/// A store in `directory` with 200 keys; what is in it.
fn sample(directory: &Path, relaxed: bool) -> RangeAnswer {
    let store = Embedded::open(directory).unwrap();
    for n in 0..200 {
        let txn = Txn {
            then: vec![put(format!("/{n}"), format!("value {n} {}", "x".repeat(n)))],
            durability: match relaxed {
                true => Durability::Relaxed,
                false => Durability::Synced,
            },
            ..Txn::default()
        };
        run(store.txn(txn)).unwrap();
    }
    read(&store).unwrap()
}

/// How much of `path` is more than the zeros that a log ends with.
fn used(path: &Path) -> usize {
    let mut bytes = Vec::new();
    let file = fs::File::open(path).unwrap();
    file.take(1 << 20).read_to_end(&mut bytes).unwrap();
    bytes
        .iter()
        .rposition(|byte| *byte != 0)
        .map_or(0, |n| n + 1)
}

/// A copy without the zeros: those are holes.
fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let (from, name) = {
            let entry = entry.unwrap();
            (entry.path(), entry.file_name())
        };
        let to = to.join(name);
        if from.is_dir() {
            copy(&from, &to);
            continue;
        }
        let mut head = vec![0; used(&from)];
        fs::File::open(&from)
            .unwrap()
            .read_exact_at(&mut head, 0)
            .unwrap();
        fs::write(&to, head).unwrap();
        let len = from.metadata().unwrap().len();
        fs::OpenOptions::new()
            .write(true)
            .open(&to)
            .unwrap()
            .set_len(len)
            .unwrap();
    }
}

/// Opened, the store has `expected` or says that it is damaged. True where it opened.
fn damaged_or(directory: &Path, expected: &RangeAnswer, what: &str) -> bool {
    // fjall may find what it reads impossible, and panic.
    let opened = std::panic::catch_unwind(|| Embedded::open(directory));
    let Ok(Ok(store)) = opened else { return false };
    let Ok(found) = read(&store) else {
        return false;
    };
    assert!(found == *expected, "{what} is served");
    true
}

#[test]
fn a_flipped_byte_is_found_and_never_served() {
    let directory = tempfile::tempdir().unwrap();
    let (path, copied) = (
        directory.path().join("store"),
        directory.path().join("copy"),
    );
    let expected = sample(&path, false);
    let mut all = Vec::new();
    files(&path, &mut all);
    let mut found = 0;
    let mut tried = 0;
    for file in &all {
        let used = used(file);
        let name = file.strip_prefix(&path).unwrap();
        let log = name.extension().is_some_and(|end| end == "jnl");
        for _ in 0..if log { 40 } else { 4 } {
            if used == 0 {
                continue;
            }
            copy(&path, &copied);
            let at = rand::random::<u64>() % used as u64;
            let target = fs::OpenOptions::new()
                .read(true)
                .write(true)
                .open(copied.join(name))
                .unwrap();
            let mut byte = [0];
            target.read_exact_at(&mut byte, at).unwrap();
            byte[0] ^= 1 << (rand::random::<u8>() % 8);
            target.write_all_at(&byte, at).unwrap();
            let what = format!("byte {at} of {}", name.display());
            // What is no part of anything that counts (a number that only fjall looks at) may be served: it is what was written.
            let served = damaged_or(&copied, &expected, &what);
            found += usize::from(!served);
            tried += 1;
            fs::remove_dir_all(&copied).unwrap();
        }
    }
    assert!(found >= 20, "{found} of {tried}");
}

#[test]
fn what_says_which_tables_there_are_is_believed_only_whole() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store");
    sample(&path, false);
    let mut all = Vec::new();
    files(&path, &mut all);
    all.retain(|file| file.file_name().unwrap() == "current");
    for current in all.clone() {
        let number = fs::read(&current).unwrap()[..8].try_into().unwrap();
        let number = u64::from_le_bytes(number);
        all.push(current.with_file_name(format!("v{number}")));
    }
    assert!(all.len() >= 6, "{all:?}");
    for file in all {
        let whole = fs::read(&file).unwrap();
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 2;
            fs::write(&file, bytes).unwrap();
            let opened = Embedded::open(&path);
            assert!(
                matches!(opened, Err(Error::Corrupt { .. })),
                "byte {at} of {}: {opened:?}",
                file.display()
            );
        }
        fs::write(&file, whole).unwrap();
    }
    Embedded::open(&path).unwrap();
}

#[test]
fn a_log_without_its_acknowledged_end_is_refused() {
    for relaxed in [false, true] {
        let directory = tempfile::tempdir().unwrap();
        let (path, copied) = (
            directory.path().join("store"),
            directory.path().join("copy"),
        );
        let expected = sample(&path, relaxed);
        let log = {
            let mut all = Vec::new();
            files(&path, &mut all);
            all.retain(|file| file.extension().is_some_and(|end| end == "jnl"));
            assert_eq!(all.len(), 1);
            all.remove(0).strip_prefix(&path).unwrap().to_owned()
        };
        let end = used(&path.join(&log)) as u64;
        for cut in [1, 7, 100, end / 2, end - 10] {
            for zeros in [false, true] {
                copy(&path, &copied);
                let file = fs::OpenOptions::new()
                    .write(true)
                    .open(copied.join(&log))
                    .unwrap();
                file.set_len(end - cut).unwrap();
                if zeros {
                    file.set_len(64 << 20).unwrap();
                }
                let what = format!("a log short of {cut} bytes");
                assert!(
                    !damaged_or(&copied, &expected, &what),
                    "{what} is not found"
                );
                fs::remove_dir_all(&copied).unwrap();
            }
        }
        // What a crash left of a write that nobody was told of is dropped.
        for torn in [&[1u8][..], &[1, 2, 0, 0, 0, 9], &[2; 40], &[0xff; 500]] {
            copy(&path, &copied);
            let file = fs::OpenOptions::new()
                .write(true)
                .open(copied.join(&log))
                .unwrap();
            file.write_all_at(torn, end).unwrap();
            drop(file);
            assert!(
                damaged_or(&copied, &expected, "a torn end"),
                "{torn:?} is refused"
            );
            fs::remove_dir_all(&copied).unwrap();
        }
    }
}

#[test]
fn a_store_that_lost_a_part_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store");
    sample(&path, false);
    for part in ["db", "synced"] {
        let aside = directory.path().join("aside");
        fs::rename(path.join(part), &aside).unwrap();
        let refused = Embedded::open(&path).unwrap_err();
        assert!(
            matches!(refused, Error::Corrupt { .. }),
            "{part}: {refused}"
        );
        let _ = fs::remove_dir_all(path.join(part));
        fs::rename(&aside, path.join(part)).unwrap();
    }
    assert_eq!(read(&Embedded::open(&path).unwrap()).unwrap().count, 200);
}

#[test]
fn nobody_else_may_read_the_files_and_one_process_has_them() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store");
    fs::create_dir(&path).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    let store = Embedded::open(&path).unwrap();
    // Enough to make tables of.
    for n in 0..30 {
        let value: Vec<u8> = (0..500_000).map(|_| rand::random()).collect();
        let txn = Txn {
            then: vec![put(format!("/{n}"), value)],
            durability: Durability::Relaxed,
            ..Txn::default()
        };
        run(store.txn(txn)).unwrap();
    }
    let refused = Embedded::open(&path).unwrap_err();
    assert!(refused.to_string().contains("another process"), "{refused}");
    drop(store);
    let mut all = Vec::new();
    files(&path, &mut all);
    assert!(all.len() > 5, "{all:?}");
    for file in &all {
        for path in file.ancestors().take_while(|dir| dir.starts_with(&path)) {
            let mode = path.metadata().unwrap().permissions().mode() & 0o7777;
            let expected = if path.is_dir() { 0o700 } else { 0o600 };
            assert_eq!(mode, expected, "{}", path.display());
        }
    }
    // The umask is the store's own.
    let other = directory.path().join("other");
    fs::write(&other, "").unwrap();
    assert_ne!(other.metadata().unwrap().permissions().mode() & 0o077, 0);
}
