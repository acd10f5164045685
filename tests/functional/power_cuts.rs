//! Power that is lost in the middle of a pull, of a pod's life and of removals (REL-12). The disk below the daemon's root is recorded by
//! dm-log-writes: every write in the order in which the device had it, and each flush. From the record those disks are made that a cut would
//! have left. The development machine has no device mapper; `hack/test --vm` has.

use std::{
    fs::{self, File},
    os::unix::fs::{FileExt, PermissionsExt},
    path::Path,
    process::Command,
};

use anyhow::{Context, Result, ensure};
use berth_proto::cri::{ContainerConfig, PodSandboxState};
use berth_tests::{
    Node, Setup, container,
    image::{Image, Layer},
    tarball::Entry,
};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

/// Cuts that are tried, of all that the record has; `BERTH_TEST_CUTS` says otherwise.
const CUTS: usize = 16;
const DISK_BYTES: u64 = 64 << 20;
/// Of writes to a file system that keeps some MiB.
const RECORD_BYTES: u64 = 256 << 20;
const SECTOR: usize = 512;
const IMAGE: &str = "localhost:5000/own/power:1";
/// What an image's files are, in one line.
const SUMS: &str = "find /bin /data -type f | sort | xargs sha256sum | sha256sum";

/// drivers/md/dm-log-writes.c: a sector with this number, the count of entries and the size of a sector in it; then entries, each a sector
/// of header and the sectors that were written.
const MAGIC: u64 = 0x006a_7366_7773_6872;
const FLUSH: u64 = 1;
const FUA: u64 = 2;
const DISCARD: u64 = 4;
const MARK: u64 = 8;

struct Written {
    /// Where on the disk, and where in the record, in bytes.
    to: u64,
    from: u64,
    bytes: u64,
    /// What came before is on the platter once this is.
    settles: bool,
}

/// All that was written, in order.
fn read(record: &File) -> Result<Vec<Written>> {
    let number = |at: u64| -> Result<u64> {
        let mut bytes = [0; 8];
        record.read_exact_at(&mut bytes, at)?;
        Ok(u64::from_le_bytes(bytes))
    };
    ensure!(number(0)? == MAGIC, "this is no record of dm-log-writes");
    let mut at = SECTOR as u64;
    let mut all = Vec::new();
    for _ in 0..number(16)? {
        let (sector, sectors, flags) = (number(at)?, number(at + 8)?, number(at + 16)?);
        at += SECTOR as u64;
        if flags & MARK != 0 {
            continue;
        }
        let bytes = match flags & DISCARD {
            0 => sectors * SECTOR as u64,
            _ => 0,
        };
        all.push(Written {
            to: sector * SECTOR as u64,
            from: at,
            bytes,
            settles: flags & (FLUSH | FUA) != 0,
        });
        at += bytes;
    }
    Ok(all)
}

fn put<'a>(
    writes: impl IntoIterator<Item = &'a Written>,
    record: &File,
    disk: &Path,
) -> Result<()> {
    let disk = File::options().write(true).open(disk)?;
    let mut buffer = Vec::new();
    for write in writes {
        buffer.resize(write.bytes as usize, 0);
        record.read_exact_at(&mut buffer, write.from)?;
        disk.write_all_at(&buffer, write.to)?;
    }
    Ok(())
}

fn run(program: &str, arguments: &[&str]) -> Result<String> {
    let output = Command::new(program)
        .args(arguments)
        // Nodes of devices are made by dmsetup itself: udev does not run on every machine.
        .env("DM_DISABLE_UDEV", "1")
        .output()
        .with_context(|| format!("run {program}"))?;
    ensure!(
        output.status.success(),
        "{program} {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

/// A file as a disk, for as long as `with` has not returned and whoever opened it in there keeps it.
fn as_disk<T>(file: &Path, with: impl FnOnce(&str) -> Result<T>) -> Result<T> {
    let disk = run(
        "losetup",
        &["--find", "--show", &file.display().to_string()],
    )?;
    let outcome = with(&disk);
    run("losetup", &["--detach", &disk])?;
    outcome
}

fn mount_disk(disk: &str, at: &Path) -> Result<()> {
    mount(Some(disk), at, Some("ext4"), MsFlags::empty(), None::<&str>)
        .with_context(|| format!("mount {disk}"))
}

/// The recorded disk, of this process alone.
fn name() -> String {
    format!("berth-power-{}", std::process::id())
}

fn recorded() -> String {
    format!("/dev/mapper/{}", name())
}

/// Goes after the test's mounts have gone.
struct Recorded;

impl Drop for Recorded {
    fn drop(&mut self) {
        if Path::new(&recorded()).exists()
            && let Err(error) = run("dmsetup", &["remove", "--retry", &name()])
        {
            eprintln!("{error:#}");
        }
    }
}

fn prepare(dir: &Path) -> Result<()> {
    let (power, lib) = (dir.join("power"), dir.join("lib"));
    fs::create_dir(&power)?;
    mount(
        Some("tmpfs"),
        &power,
        Some("tmpfs"),
        MsFlags::empty(),
        None::<&str>,
    )?;
    let (disk, record) = (power.join("disk"), power.join("record"));
    File::create(&disk)?.set_len(DISK_BYTES)?;
    File::create(&record)?.set_len(RECORD_BYTES)?;
    // Nothing is left to be written by the kernel when it likes.
    let lazy = "lazy_itable_init=0,lazy_journal_init=0,nodiscard";
    run(
        "mkfs.ext4",
        &["-q", "-F", "-E", lazy, &disk.display().to_string()],
    )?;
    as_disk(&disk, |disk| mount_disk(disk, &lib))?;
    fs::set_permissions(&lib, fs::Permissions::from_mode(0o700))?;
    fs::remove_dir(lib.join("lost+found"))?;
    umount2(&lib, MntFlags::empty())?;
    fs::copy(&disk, power.join("cut"))?;
    as_disk(&disk, |disk| {
        as_disk(&record, |record| {
            let sectors = DISK_BYTES / SECTOR as u64;
            let table = format!("0 {sectors} log-writes {disk} {record}");
            run("dmsetup", &["create", &name(), "--table", &table])
        })
    })?;
    mount_disk(&recorded(), &lib)
}

/// Three layers: a program, files of many sizes, and some of them changed.
fn push(node: &Node) -> Result<()> {
    let program = Layer::of(&[
        Entry::dir("bin", 0o755),
        Entry::file("bin/busybox", 0o755, fs::read("/bin/busybox")?),
        Entry::symlink("bin/sh", "busybox"),
        Entry::symlink("bin/sleep", "busybox"),
    ])?;
    let file = |number: usize| {
        let bytes: Vec<u8> = (0..number * 997).map(|_| rand::random()).collect();
        Entry::file(&format!("data/{number}"), 0o644, bytes)
    };
    let mut below = vec![Entry::dir("data", 0o755)];
    below.extend((1..40).map(file));
    let above: Vec<_> = (1..40).step_by(3).map(file).collect();
    let layers = vec![program, Layer::of(&below)?, Layer::of(&above)?];
    let image = Image::new(layers).but(serde_json::json!({ "Env": ["PATH=/bin"] }));
    image.push(&node.registry, "own/power", &["1"])?;
    Ok(())
}

fn sleeper() -> ContainerConfig {
    container("c", IMAGE, &["sleep", "100000"])
}

/// What the files of the image are, as a container of it sees them.
async fn sums(node: &Node, name: &str) -> Result<String> {
    let pod = node.run(node.pod(name)).await?;
    let id = node.start_container(&pod, sleeper()).await?;
    node.cri
        .shell(&id, &format!("busybox --install -s /bin; {SUMS}"))
        .await
}

/// The machine is off: of its memory nothing is left.
fn off(node: &mut Node) -> Result<()> {
    node.daemon.kill_9();
    umount2(&node.daemon.root, MntFlags::empty()).context("somebody uses the disk still")?;
    for entry in fs::read_dir(&node.daemon.state)?.flatten() {
        match entry.file_type()?.is_dir() {
            true => fs::remove_dir_all(entry.path()),
            false => fs::remove_file(entry.path()),
        }
        .with_context(|| entry.path().display().to_string())?;
    }
    Ok(())
}

#[test]
fn a_cut_at_any_flush_leaves_an_image_whole_or_absent_and_a_store_that_opens_rel_12() -> Result<()>
{
    let loaded = Command::new("modprobe")
        .args(["dm-log-writes"])
        .output()
        .is_ok_and(|done| done.status.success());
    if !loaded {
        eprintln!("skipped: this kernel has no dm-log-writes");
        return Ok(());
    }
    let _recorded = Recorded;
    let setup = Setup {
        before: Some(prepare),
        no_restart: true,
        ..Setup::default()
    };
    Node::test_with(setup, async |node| {
        push(node)?;
        node.cri.pull(IMAGE).await?;
        let whole = sums(node, "before").await?;
        node.remove_all().await?;
        node.cri.remove_image(IMAGE).await?;

        let power = node.dir.join("power");
        let (cut, torn) = (power.join("cut"), power.join("torn"));
        off(node)?;
        run("dmsetup", &["remove", "--retry", &name()])?;
        let record = File::open(power.join("record"))?;
        let writes = read(&record)?;
        let flushes: Vec<usize> = (0..writes.len()).filter(|n| writes[*n].settles).collect();
        let cuts = std::env::var("BERTH_TEST_CUTS");
        let cuts = cuts.ok().and_then(|cuts| cuts.parse().ok());
        let step = (flushes.len() / cuts.unwrap_or(CUTS)).max(1);
        ensure!(flushes.len() >= CUTS, "{} flushes", flushes.len());

        let (mut done, mut tried, mut had_it) = (0, 0, 0);
        let mut pods_of_before = 0;
        for (number, flush) in flushes.iter().enumerate().step_by(step) {
            // Mounted, a disk is written to: that is a copy.
            put(&writes[done..=*flush], &record, &cut)?;
            done = flush + 1;
            fs::copy(&cut, &torn)?;
            // Every second time with a part of what was on the way: a disk writes that in an order of its own.
            if tried % 2 == 1 {
                let next = flushes.get(number + 1).copied().unwrap_or(writes.len());
                put(writes[done..next].iter().step_by(2), &record, &torn)?;
            }
            as_disk(&torn, |disk| mount_disk(disk, &node.daemon.root))?;
            node.restart().await?;
            let what = format!("cut {tried}, at flush {number} of {}", flushes.len());
            for pod in node.cri.pods(None).await? {
                pods_of_before += 1;
                ensure!(pod.state() == PodSandboxState::SandboxNotready, "{what}");
            }
            had_it += usize::from(node.cri.image(IMAGE).await?.is_some());
            // Pulled where it is not there.
            let found = sums(node, "after").await.context(what.clone())?;
            ensure!(found == whole, "{what}: {found} and not {whole}");
            node.remove_all().await.context(what.clone())?;
            ensure!(node.audit()?.is_empty(), "{what}: {:?}", node.audit()?);
            off(node)?;
            tried += 1;
        }
        eprintln!(
            "{tried} cuts at {} flushes of {} writes: {had_it} had the image, {pods_of_before} a pod",
            flushes.len(),
            writes.len()
        );
        // Before, between and after: else the cuts were elsewhere.
        ensure!(
            had_it > 0 && had_it < tried && pods_of_before > 0,
            "{had_it} of {tried}"
        );
        // What the machine had it has at the end, by the same name.
        as_disk(&power.join("disk"), |disk| {
            let table = format!("0 {} linear {disk} 0", DISK_BYTES / SECTOR as u64);
            run("dmsetup", &["create", &name(), "--table", &table])
        })?;
        mount_disk(&recorded(), &node.daemon.root)?;
        node.restart().await
    })
}
