//! Files through exec, as `kubectl cp` carries them: tar on the one side of the stream, tar on the other.

use std::{
    io::{Read, Write},
    time::Instant,
};

use anyhow::{Context, Result, ensure};
use berth_proto::cri;
use berth_tests::{
    BUSYBOX, Node, container, process,
    remote::{Remote, STDOUT},
    spdy::{self, Frame},
};
use futures_util::{SinkExt, StreamExt};
use rand::{Rng, SeedableRng, rngs::StdRng};
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::Message;

/// MiB of the file, where BERTH_TEST_COPY_MIB says nothing else: many times what all buffers hold.
const COPY_MIB: usize = 64;
/// What a client writes at once.
const PIECE: usize = 32 << 10;
/// What a copy may add to the memory of the daemon and of the shim, KiB: buffers, whatever the file's length.
const GROWTH_KIB: u64 = 8 << 10;

/// A tar archive of one file of random bytes, in pieces; and the file's digest.
struct Archive {
    seed: StdRng,
    left: usize,
    digest: Sha256,
}

impl Archive {
    fn new(bytes: usize) -> (Vec<u8>, Self) {
        let mut header = [0_u8; 512];
        header[..4].copy_from_slice(b"file");
        header[100..108].copy_from_slice(b"0000644\0");
        header[108..116].copy_from_slice(b"0000000\0");
        header[116..124].copy_from_slice(b"0000000\0");
        header[124..136].copy_from_slice(format!("{bytes:011o}\0").as_bytes());
        header[136..148].copy_from_slice(b"00000000000\0");
        header[148..156].copy_from_slice(b"        ");
        header[156] = b'0';
        header[257..265].copy_from_slice(b"ustar\x0000");
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        let archive = Self {
            seed: StdRng::seed_from_u64(1),
            left: bytes,
            digest: Sha256::new(),
        };
        (header.to_vec(), archive)
    }

    fn piece(&mut self) -> Option<Vec<u8>> {
        let mut piece = vec![0; self.left.min(PIECE)];
        if piece.is_empty() {
            return None;
        }
        self.left -= piece.len();
        self.seed.fill_bytes(&mut piece);
        self.digest.update(&piece);
        Some(piece)
    }
}

/// The digest of the one file in an archive that comes in pieces.
#[derive(Default)]
struct Unpacked {
    seen: usize,
    digest: Sha256,
}

impl Unpacked {
    fn take(&mut self, piece: &[u8], bytes: usize) {
        let (from, to) = (512_usize, 512 + bytes);
        let begin = from.saturating_sub(self.seen).min(piece.len());
        let end = to.saturating_sub(self.seen).min(piece.len());
        self.digest.update(&piece[begin..end.max(begin)]);
        self.seen += piece.len();
    }
}

fn hex(digest: Sha256) -> String {
    digest
        .finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

async fn url(node: &Node, id: &str, cmd: &[&str], stdin: bool) -> Result<String> {
    let request = cri::ExecRequest {
        container_id: id.to_owned(),
        cmd: cmd.iter().map(ToString::to_string).collect(),
        stdin,
        stdout: true,
        ..Default::default()
    };
    Ok(node.cri.runtime().exec(request).await?.into_inner().url)
}

/// Makes the archive on a thread of its own: what is measured is the stream.
fn make(bytes: usize) -> (mpsc::Receiver<Vec<u8>>, std::thread::JoinHandle<String>) {
    let (sender, receiver) = mpsc::channel(16);
    let maker = std::thread::spawn(move || {
        let (header, mut archive) = Archive::new(bytes);
        let mut next = Some(header);
        while let Some(piece) = next {
            if sender.blocking_send(piece).is_err() {
                break;
            }
            next = archive.piece();
        }
        // Up to a whole block, and two empty ones.
        let _ = sender.blocking_send(vec![0; bytes.next_multiple_of(512) - bytes + 1024]);
        hex(archive.digest)
    });
    (receiver, maker)
}

async fn up_by_spdy(url: &str, mut pieces: mpsc::Receiver<Vec<u8>>) -> Result<String> {
    let (mut sender, mut receiver) = spdy::open(url, "v4.channel.k8s.io").await?;
    let [error, stdin, _] = sender.streams(["error", "stdin", "stdout"]).await?;
    let send = async {
        while let Some(piece) = pieces.recv().await {
            sender.data(stdin, &piece, false).await?;
        }
        sender.data(stdin, b"", true).await
    };
    let (sent, status) = tokio::join!(send, receiver.whole(error));
    sent?;
    Ok(String::from_utf8(status?)?)
}

async fn down_by_spdy(url: &str, bytes: usize) -> Result<String> {
    let (mut sender, mut receiver) = spdy::open(url, "v4.channel.k8s.io").await?;
    let [_, stdout] = sender.streams(["error", "stdout"]).await?;
    let mut unpacked = Unpacked::default();
    while let Some(frame) = receiver.next().await? {
        if let Frame::Data {
            id,
            bytes: data,
            last,
        } = frame
            && id == stdout
        {
            unpacked.take(&data, bytes);
            if last {
                break;
            }
        }
    }
    Ok(hex(unpacked.digest))
}

async fn up_by_websocket(url: &str, mut pieces: mpsc::Receiver<Vec<u8>>) -> Result<String> {
    let (mut sink, mut messages) = Remote::open(url).await?.split();
    let send = async {
        while let Some(piece) = pieces.recv().await {
            let message = [&[0], &*piece].concat();
            sink.send(Message::binary(message)).await?;
        }
        sink.send(Message::binary(vec![255, 0])).await?;
        anyhow::Ok(())
    };
    let receive = async {
        let mut status = Vec::new();
        while let Some(Ok(Message::Binary(message))) = messages.next().await {
            if message[0] == 3 {
                status.extend_from_slice(&message[1..]);
            }
        }
        status
    };
    let (sent, status) = tokio::join!(send, receive);
    sent?;
    Ok(String::from_utf8(status)?)
}

async fn down_by_websocket(url: &str, bytes: usize) -> Result<String> {
    let (_, mut messages) = Remote::open(url).await?.split();
    let mut unpacked = Unpacked::default();
    while let Some(Ok(Message::Binary(message))) = messages.next().await {
        if message[0] == STDOUT {
            unpacked.take(&message[1..], bytes);
        }
    }
    Ok(hex(unpacked.digest))
}

fn copies(spdy: bool) -> Result<()> {
    let mib = std::env::var("BERTH_TEST_COPY_MIB")
        .ok()
        .and_then(|mib| mib.parse().ok())
        .unwrap_or(COPY_MIB);
    // Not a whole number of blocks.
    let bytes = (mib << 20) - 77;
    Node::test(async |node| {
        let pod = node.run(node.pod("copies")).await?;
        let data = node.volume("data")?;
        let config = berth_tests::request::ContainerRequest::mount(
            container("c", BUSYBOX, &["sleep", "1000"]),
            berth_tests::request::bind(&data, "/data"),
        );
        let id = node.start_container(&pod, config).await?;
        let shim = process::shims().first().context("no shim")?.pid;
        let daemon = node.daemon.pid().context("no daemon")?;
        // A first session brings what every one needs.
        Remote::open(&url(node, &id, &["true"], true).await?)
            .await?
            .outcome()
            .await?;
        let before = (process::resident_kib(daemon)?, process::resident_kib(shim)?);

        let begin = Instant::now();
        let (pieces, maker) = make(bytes);
        let up = url(node, &id, &["tar", "xf", "-", "-C", "/data"], true).await?;
        let status = match spdy {
            true => up_by_spdy(&up, pieces).await?,
            false => up_by_websocket(&up, pieces).await?,
        };
        ensure!(status.contains("Success"), "{status}");
        let up_took = begin.elapsed();
        let sent = maker
            .join()
            .map_err(|_| anyhow::anyhow!("the maker panicked"))?;
        let mut file = std::fs::File::open(data.join("file"))?;
        let (mut digest, mut buffer) = (Sha256::new(), vec![0; 1 << 20]);
        while let read @ 1.. = file.read(&mut buffer)? {
            digest.update(&buffer[..read]);
        }
        ensure!(hex(digest) == sent, "another file arrived");

        let begin = Instant::now();
        let down = url(node, &id, &["tar", "cf", "-", "-C", "/data", "file"], false).await?;
        let back = match spdy {
            true => down_by_spdy(&down, bytes).await?,
            false => down_by_websocket(&down, bytes).await?,
        };
        ensure!(back == sent, "another file came back");
        let down_took = begin.elapsed();
        let after = (process::resident_kib(daemon)?, process::resident_kib(shim)?);
        ensure!(
            after.0 < before.0 + GROWTH_KIB && after.1 < before.1 + GROWTH_KIB,
            "KiB of daemon and shim: {before:?} before, {after:?} after {mib} MiB each way"
        );
        let rate = |took: std::time::Duration| mib as f64 / took.as_secs_f64();
        let _ = writeln!(
            std::io::stdout(),
            "{mib} MiB: {:.0} MiB/s up, {:.0} MiB/s down",
            rate(up_took),
            rate(down_took)
        );
        Ok(())
    })
}

#[test]
fn a_large_file_is_copied_both_ways_whole_over_spdy() -> Result<()> {
    copies(true)
}

#[test]
fn a_large_file_is_copied_both_ways_whole_over_websocket() -> Result<()> {
    copies(false)
}
