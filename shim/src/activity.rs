//! Who calls the shim: root, and nobody else (SEC-ENG-14); and when, for [`crate::idle`].

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures_util::stream;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{UnixListener, UnixStream},
    sync::Notify,
    time::sleep,
};

use crate::journal;

/// After a failed accept (no descriptor left): not to spin.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// A connection of which is told when something was read.
#[derive(Debug)]
pub struct Watched {
    connection: UnixStream,
    activity: Arc<Notify>,
}

/// The connections that come.
pub fn accept(
    listener: UnixListener,
    activity: Arc<Notify>,
) -> impl stream::Stream<Item = io::Result<Watched>> {
    stream::unfold((listener, activity), |(listener, activity)| async move {
        loop {
            match listener.accept().await {
                Ok((connection, _)) => match connection.peer_cred() {
                    Ok(peer) if peer.uid() == 0 => {
                        let watched = Watched {
                            connection,
                            activity: activity.clone(),
                        };
                        return Some((Ok(watched), (listener, activity)));
                    }
                    Ok(peer) => journal!("a connection of uid {} was refused", peer.uid()),
                    Err(error) => journal!("a connection of an unknown peer was refused: {error}"),
                },
                Err(error) => {
                    journal!("accept: {error}");
                    sleep(ACCEPT_RETRY).await;
                }
            }
        }
    })
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.connection).poll_read(context, buffer);
        if read.is_ready() {
            self.activity.notify_one();
        }
        read
    }
}

impl AsyncWrite for Watched {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.connection).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.connection).poll_write_vectored(context, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.connection.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.connection).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.connection).poll_shutdown(context)
    }
}
