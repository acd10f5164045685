//! The client's TCP connection, of which a second handle tells whether the client is still there while nobody reads.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt, DuplexStream, Interest, ReadBuf},
    net::TcpStream,
    time::{Instant, sleep},
};

/// How often a connection that nobody reads is looked at. A client that goes while its input is stuck is noticed within this.
const LOOK_EVERY: Duration = Duration::from_secs(1);

#[derive(Debug, Clone)]
pub(crate) struct Connection(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    stream: TcpStream,
    since: Instant,
    /// When bytes last went either way, ms after `since`.
    used_at: AtomicU64,
}

impl Connection {
    pub fn new(stream: TcpStream) -> Self {
        Self(Arc::new(Inner {
            stream,
            since: Instant::now(),
            used_at: AtomicU64::new(0),
        }))
    }

    fn used(&self) {
        let now = self.0.since.elapsed().as_millis() as u64;
        self.0.used_at.store(now, Ordering::Relaxed);
    }

    /// Until no byte has gone either way for this long. A client's pings are bytes: who sends them is there.
    pub async fn idle(&self, limit: Duration) {
        loop {
            let used_at = Duration::from_millis(self.0.used_at.load(Ordering::Relaxed));
            let left = (used_at + limit).saturating_sub(self.0.since.elapsed());
            if left.is_zero() {
                return;
            }
            sleep(left).await;
        }
    }

    /// Whether the client has closed its side or is gone. What it sent before may still lie unread.
    async fn is_closed(&self) -> bool {
        // Returns at once: input lies ready, or the end of it, or we would not be asked.
        let look = tokio::time::timeout(
            Duration::from_millis(1),
            self.0.stream.ready(Interest::READABLE | Interest::ERROR),
        );
        match look.await {
            Ok(Ok(ready)) => ready.is_read_closed() || ready.is_error(),
            Ok(Err(_)) => true,
            Err(_nothing_to_read) => false,
        }
    }

    /// Hands input on to whoever takes it, however slowly, but no longer than its sender is there. Input that nobody takes any
    /// more (a process that closed its stdin) is dropped, and the stream with it.
    ///
    /// Errors: the client is gone.
    pub async fn hand_on(&self, to: &mut Option<DuplexStream>, input: &[u8]) -> io::Result<()> {
        let Some(stream) = to else { return Ok(()) };
        let write = stream.write_all(input);
        tokio::pin!(write);
        loop {
            tokio::select! {
                // First, so that input which is taken at once costs no timer.
                biased;
                written = &mut write => {
                    if written.is_err() {
                        *to = None;
                    }
                    return Ok(());
                }
                () = sleep(LOOK_EVERY) => {
                    if self.is_closed().await {
                        return Err(io::ErrorKind::ConnectionAborted.into());
                    }
                }
            }
        }
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            ready!(self.0.stream.poll_read_ready(context))?;
            match self.0.stream.try_read_buf(buffer) {
                Ok(_) => {
                    self.used();
                    return Poll::Ready(Ok(()));
                }
                Err(err) if err.kind() == io::ErrorKind::WouldBlock => {}
                Err(err) => return Poll::Ready(Err(err)),
            }
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(context, &[io::IoSlice::new(bytes)])
    }

    /// A frame's head and its data in one call, and so in one packet.
    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.0.stream.poll_write_ready(context))?;
            match self.0.stream.try_write_vectored(slices) {
                Err(err) if err.kind() == io::ErrorKind::WouldBlock => {}
                done => {
                    self.used();
                    return Poll::Ready(done);
                }
            }
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(shutdown(&self.0.stream))
    }
}

fn shutdown(stream: &TcpStream) -> io::Result<()> {
    match rustix::net::shutdown(stream, rustix::net::Shutdown::Write) {
        Ok(()) | Err(rustix::io::Errno::NOTCONN) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}
