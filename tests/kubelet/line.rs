//! A line to a runtime's socket that can be made bad: slow, silent, cut.

use std::{path::Path, sync::Arc, time::Duration};

use anyhow::Result;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{UnixListener, UnixStream},
    sync::watch,
    task::JoinHandle,
};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Is {
    Good,
    /// Each piece comes so much later.
    Slow(Duration),
    /// Nothing comes through, and nobody hangs up.
    Silent,
    /// Whoever speaks is hung up on.
    Cut,
}

pub struct Line {
    is: watch::Sender<Is>,
    accepts: JoinHandle<()>,
}

impl Line {
    /// From the socket `at`, which is made, to the one at `to`.
    pub fn lay(at: &Path, to: &Path) -> Result<Self> {
        let (is, becomes) = watch::channel(Is::Good);
        let listener = UnixListener::bind(at)?;
        let to: Arc<Path> = to.into();
        let accepts = tokio::spawn(async move {
            while let Ok((caller, _)) = listener.accept().await {
                let (to, becomes) = (to.clone(), becomes.clone());
                tokio::spawn(async move {
                    if *becomes.borrow() == Is::Cut {
                        return;
                    }
                    let Ok(called) = UnixStream::connect(&to).await else {
                        return;
                    };
                    let (from_caller, to_caller) = caller.into_split();
                    let (from_called, to_called) = called.into_split();
                    tokio::select! {
                        () = carry(from_caller, to_called, becomes.clone()) => {}
                        () = carry(from_called, to_caller, becomes.clone()) => {}
                        () = cut(becomes) => {}
                    }
                });
            }
        });
        Ok(Self { is, accepts })
    }

    pub fn make(&self, is: Is) {
        self.is.send_replace(is);
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.accepts.abort();
        self.is.send_replace(Is::Cut);
    }
}

async fn cut(mut becomes: watch::Receiver<Is>) {
    let _ = becomes.wait_for(|is| *is == Is::Cut).await;
}

async fn carry(
    mut from: impl AsyncReadExt + Unpin,
    mut to: impl AsyncWriteExt + Unpin,
    mut becomes: watch::Receiver<Is>,
) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        if becomes.wait_for(|is| *is != Is::Silent).await.is_err() {
            return;
        }
        let is = *becomes.borrow();
        if let Is::Slow(delay) = is {
            tokio::time::sleep(delay).await;
        }
        if to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
    }
}
