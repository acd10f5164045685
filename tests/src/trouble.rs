//! A way to an API server that can be made bad: 429, 500, 503, connections that are cut before or after the request was done. It counts what is asked.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use anyhow::{Context, Result};
use serde_json::json;

use crate::cluster::Proxy;

/// While it is bad, one request in so many is answered as ever.
const ANSWERED: usize = 5;

/// What becomes of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bad {
    /// 429, with a Retry-After of a second.
    TooMany,
    /// 500.
    Internal,
    /// 503.
    Unavailable,
    /// The connection ends, and nothing is done.
    Cut,
    /// The connection ends when it is done; of what may not be repeated (POST) nothing is done.
    Lost,
}

#[derive(Debug, Default)]
struct Mood {
    is_bad: AtomicBool,
    asked: AtomicUsize,
    refused: AtomicUsize,
    /// What watches are told over.
    watches: Mutex<Vec<TcpStream>>,
}

/// HTTP without a login: whoever asks is who the `kubectl proxy` behind it is.
#[derive(Debug)]
pub struct Way {
    mood: Arc<Mood>,
    at: SocketAddr,
    _proxy: Proxy,
}

impl Way {
    /// At a free port of `address`; when it is bad, requests meet `bad` by turns.
    pub fn lay(proxy: Proxy, address: Ipv4Addr, bad: &'static [Bad]) -> Result<Self> {
        let listener = TcpListener::bind((address, 0))?;
        let (port, at) = (proxy.port(), listener.local_addr()?);
        let mood = Arc::new(Mood::default());
        let shared = mood.clone();
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let mood = shared.clone();
                std::thread::spawn(move || answer(client, port, &mood, bad));
            }
        });
        Ok(Self {
            mood,
            at,
            _proxy: proxy,
        })
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.at)
    }

    /// A kubeconfig that leads here.
    pub fn write_kubeconfig(&self, path: &Path) -> Result<()> {
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "c",
            "clusters": [{"name": "c", "cluster": {"server": self.url()}}],
            "users": [{"name": "u", "user": {}}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        });
        Ok(std::fs::write(path, config.to_string())?)
    }

    /// Watches break, and nearly all requests are refused.
    pub fn worsen(&self) {
        self.mood.is_bad.store(true, Ordering::SeqCst);
        for watch in self.mood.lock_watches().drain(..) {
            let _ = watch.shutdown(Shutdown::Both);
        }
    }

    pub fn improve(&self) {
        self.mood.is_bad.store(false, Ordering::SeqCst);
    }

    /// All requests so far.
    pub fn asked(&self) -> usize {
        self.mood.asked.load(Ordering::SeqCst)
    }

    /// Those that met something bad.
    pub fn refused(&self) -> usize {
        self.mood.refused.load(Ordering::SeqCst)
    }

    /// Watches since it was last made bad.
    pub fn watches(&self) -> usize {
        self.mood.lock_watches().len()
    }
}

impl Mood {
    fn lock_watches(&self) -> std::sync::MutexGuard<'_, Vec<TcpStream>> {
        self.watches.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One request.
fn answer(mut client: TcpStream, port: u16, mood: &Mood, bad: &[Bad]) -> Result<()> {
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") {
        client.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    let head = String::from_utf8(head)?;
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        let is_length = name.eq_ignore_ascii_case("content-length");
        is_length.then(|| value.trim().parse::<usize>().ok())?
    });
    let mut body = vec![0; length.unwrap_or(0)];
    client.read_exact(&mut body)?;
    let (line, rest) = head.split_once("\r\n").context("a line")?;
    let asked = mood.asked.fetch_add(1, Ordering::SeqCst);
    let mut meets = None;
    if mood.is_bad.load(Ordering::SeqCst) && !asked.is_multiple_of(ANSWERED) {
        let at = mood.refused.fetch_add(1, Ordering::SeqCst);
        meets = Some(bad[at % bad.len()]);
    }
    let is_watch = line.contains("watch=true") || line.contains("watch=1");
    let is_lost = meets == Some(Bad::Lost) && !line.starts_with("POST ") && !is_watch;
    match meets {
        Some(Bad::TooMany) => {
            return refuse(client, 429, "TooManyRequests", "Retry-After: 1\r\n");
        }
        Some(Bad::Internal) => return refuse(client, 500, "InternalError", ""),
        Some(Bad::Unavailable) => return refuse(client, 503, "ServiceUnavailable", ""),
        Some(Bad::Cut | Bad::Lost) if !is_lost => return Ok(client.shutdown(Shutdown::Both)?),
        _ => {}
    }
    if is_watch {
        mood.lock_watches().push(client.try_clone()?);
        // it may have become bad meanwhile, and have seen this one not
        if mood.is_bad.load(Ordering::SeqCst) && meets.is_none() && !asked.is_multiple_of(ANSWERED)
        {
            return Ok(client.shutdown(Shutdown::Both)?);
        }
    }
    let mut server = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    write!(server, "{line}\r\nConnection: close\r\n{rest}")?;
    server.write_all(&body)?;
    if is_lost {
        std::io::copy(&mut server, &mut std::io::sink())?;
    } else {
        std::io::copy(&mut server, &mut client)?;
    }
    Ok(client.shutdown(Shutdown::Both)?)
}

fn refuse(mut client: TcpStream, code: u16, reason: &str, more: &str) -> Result<()> {
    let status = json!({
        "apiVersion": "v1", "kind": "Status", "metadata": {}, "status": "Failure",
        "message": "it is in a bad mood", "reason": reason, "code": code,
    })
    .to_string();
    write!(
        client,
        "HTTP/1.1 {code} {reason}\r\n{more}Content-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{status}",
        status.len()
    )?;
    Ok(client.shutdown(Shutdown::Both)?)
}
