//! One socket, two connections: each piece of either goes as a frame of its connection's number, its length (4 bytes each, big-endian) and
//! itself.
//!
//! Both connections carry ttrpc, whose messages begin with 10 bytes of which the first 4 are the length of the rest. A stock peer (Go) reads
//! a frame in one piece into what its buffered reader offers at that moment, and fails where the frame is longer: so a message is cut where
//! that reader would have it, at 4096 bytes, and goes on as one frame.
//!
//! # Synchronization
//! Three loops in one future: trunk to connections, and each connection to the trunk, whose writer they share frame by frame. A connection
//! that is not read from holds up the trunk and nothing else; nothing is kept beyond the two pipes.

use std::io;

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, duplex, split},
    net::UnixStream,
    sync::Mutex,
};

/// Number of the connection on which the plugin serves.
pub const PLUGIN: u32 = 1;
/// Number of the connection on which the runtime serves.
pub const RUNTIME: u32 = 2;

/// Connection number and length.
const HEADER_BYTES: usize = 8;
/// Of a ttrpc message.
const MESSAGE_HEADER_BYTES: usize = 10;
/// The longest ttrpc message after its header.
pub const MAX_MESSAGE_BYTES: usize = 4 << 20;
/// Nothing longer makes sense: a frame is a message, or a part of one.
pub const MAX_FRAME_BYTES: usize = MESSAGE_HEADER_BYTES + MAX_MESSAGE_BYTES;
/// What a stock peer's reader is sure to have room for.
const FIRST_FRAME_BYTES: usize = 4096;
/// Between the trunk and each connection. Most messages are smaller.
const PIPE_BYTES: usize = 16 << 10;

/// The two connections.
#[derive(Debug)]
pub struct Connections {
    pub plugin: DuplexStream,
    pub runtime: DuplexStream,
}

/// Splits `trunk`. The future carries the bytes, until the peer closes (no error) or breaks the rules; dropping it closes the trunk.
pub fn multiplex(
    trunk: UnixStream,
) -> (
    Connections,
    impl Future<Output = io::Result<()>> + Send + 'static,
) {
    let (plugin, plugin_inner) = duplex(PIPE_BYTES);
    let (runtime, runtime_inner) = duplex(PIPE_BYTES);
    let carry = async move {
        let (mut from_trunk, to_trunk) = trunk.into_split();
        let to_trunk = Mutex::new(to_trunk);
        let (from_plugin, mut to_plugin) = split(plugin_inner);
        let (from_runtime, mut to_runtime) = split(runtime_inner);
        tokio::select! {
            ended = inward(&mut from_trunk, &mut to_plugin, &mut to_runtime) => ended,
            ended = outward(PLUGIN, from_plugin, &to_trunk) => ended,
            ended = outward(RUNTIME, from_runtime, &to_trunk) => ended,
        }
    };
    (Connections { plugin, runtime }, carry)
}

fn broken(why: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

/// Frames of other connections than the two are skipped, as others do.
async fn inward(
    trunk: &mut (impl AsyncRead + Unpin),
    plugin: &mut (impl AsyncWrite + Unpin),
    runtime: &mut (impl AsyncWrite + Unpin),
) -> io::Result<()> {
    let mut header = [0; HEADER_BYTES];
    let mut piece = vec![0; PIPE_BYTES];
    loop {
        match trunk.read(&mut header[..1]).await? {
            0 => return Ok(()),
            _ => trunk.read_exact(&mut header[1..]).await?,
        };
        let [a, b, c, d, e, f, g, h] = header;
        let id = u32::from_be_bytes([a, b, c, d]);
        let mut left = u32::from_be_bytes([e, f, g, h]) as usize;
        if left > MAX_FRAME_BYTES {
            return Err(broken(format!(
                "a frame of {left} bytes for connection {id}: at most {MAX_FRAME_BYTES} are allowed"
            )));
        }
        while left > 0 {
            let room = left.min(piece.len());
            let part = &mut piece[..room];
            trunk.read_exact(part).await?;
            match id {
                PLUGIN => plugin.write_all(part).await?,
                RUNTIME => runtime.write_all(part).await?,
                _ => {}
            }
            left -= room;
        }
    }
}

/// Ends where the connection is closed: the one without the other is of no use.
async fn outward(
    id: u32,
    mut from: impl AsyncRead + Unpin,
    trunk: &Mutex<impl AsyncWrite + Unpin>,
) -> io::Result<()> {
    let mut header = [0; MESSAGE_HEADER_BYTES];
    let mut piece = vec![0; PIPE_BYTES];
    loop {
        match from.read(&mut header[..1]).await? {
            0 => return Ok(()),
            _ => from.read_exact(&mut header[1..]).await?,
        };
        let length = u32::from_be_bytes([header[0], header[1], header[2], header[3]]) as usize;
        if length > MAX_MESSAGE_BYTES {
            return Err(broken(format!("a message of {length} bytes")));
        }
        let first = length.min(FIRST_FRAME_BYTES - MESSAGE_HEADER_BYTES);
        from.read_exact(&mut piece[..first]).await?;
        let mut trunk = trunk.lock().await;
        let mut frame = Vec::with_capacity(HEADER_BYTES + MESSAGE_HEADER_BYTES + first);
        frame.extend(id.to_be_bytes());
        frame.extend(((MESSAGE_HEADER_BYTES + first) as u32).to_be_bytes());
        frame.extend(header);
        frame.extend(&piece[..first]);
        trunk.write_all(&frame).await?;
        let mut left = length - first;
        if left > 0 {
            trunk.write_all(&id.to_be_bytes()).await?;
            trunk.write_all(&(left as u32).to_be_bytes()).await?;
        }
        while left > 0 {
            let room = left.min(piece.len());
            from.read_exact(&mut piece[..room]).await?;
            trunk.write_all(&piece[..room]).await?;
            left -= room;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn frame(id: u32, body: &[u8]) -> Vec<u8> {
        let mut frame = id.to_be_bytes().to_vec();
        frame.extend((body.len() as u32).to_be_bytes());
        frame.extend(body);
        frame
    }

    fn message(length: usize) -> Vec<u8> {
        let mut message = (length as u32).to_be_bytes().to_vec();
        message.extend([0, 0, 0, 1, 1, 0]);
        message.extend((0..length).map(|at| at as u8));
        message
    }

    #[tokio::test]
    async fn frames_reach_their_connections_whole_and_others_are_skipped() {
        let (trunk, mut peer) = UnixStream::pair().unwrap();
        let (mut connections, carry) = multiplex(trunk);
        tokio::spawn(carry);
        let mut bytes = frame(2, b"to the ");
        bytes.extend(frame(77, b"to nobody"));
        bytes.extend(frame(0, b""));
        bytes.extend(frame(1, b"plugin"));
        bytes.extend(frame(2, b"runtime"));
        // A byte at a time: a header may come in pieces.
        for byte in bytes {
            peer.write_all(&[byte]).await.unwrap();
        }
        let mut got = [0; 14];
        connections.runtime.read_exact(&mut got).await.unwrap();
        assert_eq!(&got, b"to the runtime");
        let mut got = [0; 6];
        connections.plugin.read_exact(&mut got).await.unwrap();
        assert_eq!(&got, b"plugin");
    }

    #[tokio::test]
    async fn hostile_frames_end_the_connection_and_cost_nothing() {
        for (name, bytes, error) in [
            ("nothing", vec![], None),
            (
                "a cut header",
                frame(1, b"")[..5].to_vec(),
                Some(io::ErrorKind::UnexpectedEof),
            ),
            (
                "a cut frame",
                frame(1, b"longer")[..10].to_vec(),
                Some(io::ErrorKind::UnexpectedEof),
            ),
            (
                "a huge length",
                [1u32.to_be_bytes(), u32::MAX.to_be_bytes()].concat(),
                Some(io::ErrorKind::InvalidData),
            ),
            (
                "one byte too many",
                [
                    9u32.to_be_bytes(),
                    (MAX_FRAME_BYTES as u32 + 1).to_be_bytes(),
                ]
                .concat(),
                Some(io::ErrorKind::InvalidData),
            ),
        ] {
            let (trunk, mut peer) = UnixStream::pair().unwrap();
            let (_connections, carry) = multiplex(trunk);
            let carried = tokio::spawn(carry);
            peer.write_all(&bytes).await.unwrap();
            peer.shutdown().await.unwrap();
            let ended = tokio::time::timeout(Duration::from_secs(5), carried)
                .await
                .unwrap_or_else(|_| panic!("{name}: goes on"))
                .unwrap();
            assert_eq!(ended.err().map(|e| e.kind()), error, "{name}");
        }
    }

    #[tokio::test]
    async fn a_message_is_cut_where_a_stock_peer_has_room_for_it() {
        for (length, frames) in [
            (0, &[10][..]),
            (4086, &[4096]),
            (4087, &[4096, 1]),
            (100_000, &[4096, 95_914]),
            (MAX_MESSAGE_BYTES, &[4096, MAX_MESSAGE_BYTES - 4086]),
        ] {
            let (trunk, mut peer) = UnixStream::pair().unwrap();
            let (mut connections, carry) = multiplex(trunk);
            tokio::spawn(carry);
            let message = message(length);
            let sent = message.clone();
            let writer = tokio::spawn(async move {
                connections.plugin.write_all(&sent).await.unwrap();
                connections
            });
            let mut got = vec![];
            for size in frames {
                assert_eq!(peer.read_u32().await.unwrap(), PLUGIN);
                assert_eq!(peer.read_u32().await.unwrap() as usize, *size, "{length}");
                let mut part = vec![0; *size];
                peer.read_exact(&mut part).await.unwrap();
                got.extend(part);
            }
            assert_eq!(got, message);
            drop(writer.await.unwrap());
        }
    }

    #[tokio::test]
    async fn both_connections_write_whole_frames_side_by_side() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (mut a, carry_a) = multiplex(ours);
        let (mut b, carry_b) = multiplex(theirs);
        tokio::spawn(carry_a);
        tokio::spawn(carry_b);
        let long = message(1 << 20);
        let (first, second) = (long.clone(), long.clone());
        let write =
            async { tokio::join!(a.plugin.write_all(&first), a.runtime.write_all(&second)) };
        let read = async {
            let (mut plugin, mut runtime) = (vec![0; long.len()], vec![0; long.len()]);
            let read = tokio::join!(
                b.plugin.read_exact(&mut plugin),
                b.runtime.read_exact(&mut runtime)
            );
            read.0.unwrap();
            read.1.unwrap();
            (plugin, runtime)
        };
        let (wrote, (plugin, runtime)) = tokio::join!(write, read);
        wrote.0.unwrap();
        wrote.1.unwrap();
        assert!(plugin == long && runtime == long);
    }
}
