//! A line to a runtime's socket that knows calls: of each kind one answer is lost on the way back; or calls are refused.

use std::{
    collections::BTreeSet,
    convert::Infallible,
    future::poll_fn,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::Result;
use http::{Request, Response};
use hyper::{body::Incoming, server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    net::{UnixListener, UnixStream},
    sync::watch,
    task::JoinHandle,
};
use tonic::{
    Status,
    body::Body,
    transport::{Channel, Endpoint},
};
use tower::Service;

/// What becomes of the connection whose answer is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loss {
    /// It stays, and somebody on the way says that nobody is there.
    Unavailable,
    /// It breaks, with all that is under way on it.
    Cut,
}

/// The calls that have lost an answer, by name.
type Lost = Arc<Mutex<BTreeSet<String>>>;

pub struct Losses {
    lost: Lost,
    refused: Lost,
    accepts: JoinHandle<()>,
}

impl Losses {
    /// From the socket `at`, which is made, to the one at `to`.
    pub fn lay(at: &Path, to: &Path, loss: Option<Loss>) -> Result<Self> {
        let listener = UnixListener::bind(at)?;
        let channel = Endpoint::from_shared(format!("unix://{}", to.display()))?.connect_lazy();
        let (lost, refused) = (Lost::default(), Lost::default());
        let shared = (lost.clone(), refused.clone());
        let accepts = tokio::spawn(async move {
            while let Ok((caller, _)) = listener.accept().await {
                tokio::spawn(serve(caller, channel.clone(), shared.clone(), loss));
            }
        });
        Ok(Self {
            lost,
            refused,
            accepts,
        })
    }

    /// Does not let calls of this name through from now on, or does so again.
    pub fn refuse(&self, name: &str, is_refused: bool) {
        let mut refused = held(&self.refused);
        match is_refused {
            true => refused.insert(name.to_owned()),
            false => refused.remove(name),
        };
    }

    pub fn lost(&self) -> BTreeSet<String> {
        held(&self.lost).clone()
    }
}

impl Drop for Losses {
    fn drop(&mut self) {
        self.accepts.abort();
    }
}

fn held(lost: &Lost) -> std::sync::MutexGuard<'_, BTreeSet<String>> {
    lost.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn serve(
    caller: UnixStream,
    channel: Channel,
    (lost, refused): (Lost, Lost),
    loss: Option<Loss>,
) {
    let (cuts, mut is_cut) = watch::channel(false);
    let service = service_fn(|request: Request<Incoming>| {
        let (mut channel, cuts) = (channel.clone(), cuts.clone());
        let (lost, refused) = (lost.clone(), refused.clone());
        async move {
            let path = request.uri().path();
            let name = path.rsplit('/').next().unwrap_or_default().to_owned();
            if held(&refused).contains(&name) {
                return Ok::<_, Infallible>(Status::internal("the line refuses").into_http());
            }
            let answer = match poll_fn(|cx| channel.poll_ready(cx)).await {
                Ok(()) => channel.call(request.map(Body::new)).await,
                Err(error) => Err(error),
            };
            let answer: Response<Body> = match answer {
                Ok(answer) => answer,
                Err(error) => Status::unavailable(error.to_string()).into_http(),
            };
            if loss.is_none() || !held(&lost).insert(name) {
                return Ok(answer);
            }
            // by its head the runtime is done with it
            drop(answer);
            if loss == Some(Loss::Cut) {
                cuts.send_replace(true);
                std::future::pending::<()>().await;
            }
            Ok(Status::unavailable("the answer is lost").into_http())
        }
    });
    let serves =
        http2::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(caller), service);
    tokio::select! {
        // whoever has hung up hears nothing
        _ = serves => {}
        _ = is_cut.wait_for(|is| *is) => {}
    }
}
