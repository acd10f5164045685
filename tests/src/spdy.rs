//! A client of the stream server's URLs that speaks SPDY/3.1, as kubelets, crictl and port-forwards do: as much of it as the tests need.

use anyhow::{Context, Result, ensure};
use flate2::{Compress, Compression, FlushCompress};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
};

/// What the client sends.
#[derive(Debug)]
pub struct Sender {
    io: OwnedWriteHalf,
    packer: Compress,
    next_id: u32,
}

/// What comes back.
#[derive(Debug)]
pub struct Receiver(OwnedReadHalf);

#[derive(Debug, PartialEq, Eq)]
pub enum Frame {
    Data { id: u32, bytes: Vec<u8>, last: bool },
    Reset(u32),
    Other(u16),
}

/// Upgrades to `protocol`.
pub async fn open(url: &str, protocol: &str) -> Result<(Sender, Receiver)> {
    let rest = url
        .strip_prefix("http://")
        .with_context(|| format!("{url} is no URL of a stream server"))?;
    let (authority, path) = rest.split_once('/').context("a URL without a path")?;
    let mut io = TcpStream::connect(authority).await?;
    let head = format!(
        "POST /{path} HTTP/1.1\r\nHost: {authority}\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: {protocol}\r\n\r\n"
    );
    io.write_all(head.as_bytes()).await?;
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        answer.push(io.read_u8().await?);
    }
    let answer = String::from_utf8_lossy(&answer);
    ensure!(answer.starts_with("HTTP/1.1 101 "), "{answer}");
    let (read, write) = io.into_split();
    let sender = Sender {
        io: write,
        // Without the dictionary, which is there to save bytes.
        packer: Compress::new(Compression::fast(), true),
        next_id: 1,
    };
    Ok((sender, Receiver(read)))
}

impl Sender {
    /// Opens a stream with these headers; its id.
    pub async fn stream(&mut self, headers: &[(&str, &str)]) -> Result<u32> {
        let mut block = (headers.len() as u32).to_be_bytes().to_vec();
        for part in headers.iter().flat_map(|(name, value)| [name, value]) {
            block.extend_from_slice(&(part.len() as u32).to_be_bytes());
            block.extend_from_slice(part.as_bytes());
        }
        let mut packed = Vec::with_capacity(block.len() + 128);
        self.packer
            .compress_vec(&block, &mut packed, FlushCompress::Sync)?;
        let id = self.next_id;
        self.next_id += 2;
        let payload = [&id.to_be_bytes()[..], &[0; 6], &packed].concat();
        let length = (payload.len() as u32).to_be_bytes();
        let frame = [&[0x80, 3, 0, 1][..], &length, &payload].concat();
        self.io.write_all(&frame).await?;
        Ok(id)
    }

    pub async fn data(&mut self, id: u32, bytes: &[u8], last: bool) -> Result<()> {
        let mut head = [0; 8];
        head[..4].copy_from_slice(&id.to_be_bytes());
        head[4..].copy_from_slice(&(bytes.len() as u32).to_be_bytes());
        head[4] = u8::from(last);
        self.io.write_all(&head).await?;
        self.io.write_all(bytes).await?;
        Ok(())
    }

    /// An exec's or attach's streams, named as the protocol has them; their ids.
    pub async fn streams<const N: usize>(&mut self, names: [&str; N]) -> Result<[u32; N]> {
        let mut ids = [0; N];
        for (id, name) in ids.iter_mut().zip(names) {
            *id = self.stream(&[("streamtype", name)]).await?;
        }
        Ok(ids)
    }

    /// Both streams of a connection to `port`: error and data.
    pub async fn forward(&mut self, port: &str) -> Result<[u32; 2]> {
        let request = self.next_id.to_string();
        let headers = |kind| {
            [
                ("streamtype", kind),
                ("port", port),
                ("requestid", &*request),
            ]
        };
        let error = self.stream(&headers("error")).await?;
        self.data(error, b"", true).await?;
        let data = self.stream(&headers("data")).await?;
        Ok([error, data])
    }
}

impl Receiver {
    /// `None`: the server has closed the connection.
    pub async fn next(&mut self) -> Result<Option<Frame>> {
        let mut head = [0; 8];
        if self.0.read_exact(&mut head).await.is_err() {
            return Ok(None);
        }
        let number = |bytes: &[u8]| u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        let length = number(&[0, head[5], head[6], head[7]]) as usize;
        let mut payload = vec![0; length];
        self.0.read_exact(&mut payload).await?;
        Ok(Some(match (head[0] & 0x80, head[3]) {
            (0, _) => Frame::Data {
                id: number(&head),
                bytes: payload,
                last: head[4] & 1 != 0,
            },
            (_, 3) => Frame::Reset(number(&payload)),
            (_, other) => Frame::Other(other.into()),
        }))
    }

    /// What comes over `id` until that stream ends, as other streams' frames go by.
    pub async fn whole(&mut self, id: u32) -> Result<Vec<u8>> {
        let mut all = Vec::new();
        loop {
            match self.next().await?.context("the connection has ended")? {
                Frame::Data {
                    id: of,
                    bytes,
                    last,
                } if of == id => {
                    all.extend(bytes);
                    if last {
                        return Ok(all);
                    }
                }
                _ => {}
            }
        }
    }
}
