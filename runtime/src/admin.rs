//! `berth.admin.v1`: what `berth image …` asks for beyond the CRI.

use std::{
    fs::File,
    io::Write,
    os::fd::AsRawFd,
    path::{Path, PathBuf},
    pin::Pin,
    sync::Arc,
};

use berth_image::{Auth, LayerProgress as Layer};
use berth_proto::admin::{
    ImportRequest, ImportResponse, ImportedImage, LayerProgress, PullProgress, PullRequest,
    images_server::Images, import_request::Part,
};
use rustix::fs::{CWD, Mode, OFlags, openat};
use tokio::sync::{mpsc, watch};
use tokio_stream::{Stream, wrappers::ReceiverStream};
use tonic::{Request, Response, Status, Streaming};

use crate::{error::Error, node::Node};

/// Messages of progress that wait for a slow client; older ones are worth nothing, so the pull never waits.
const PROGRESS_QUEUE: usize = 16;

#[derive(Debug, Clone)]
pub struct Admin {
    pub node: Arc<Node>,
}

#[tonic::async_trait]
impl Images for Admin {
    async fn import(
        &self,
        request: Request<Streaming<ImportRequest>>,
    ) -> Result<Response<ImportResponse>, Status> {
        let images = self.import(request.into_inner()).await?;
        Ok(Response::new(ImportResponse { images }))
    }

    type PullStream = Pin<Box<dyn Stream<Item = Result<PullProgress, Status>> + Send>>;
    async fn pull(
        &self,
        request: Request<PullRequest>,
    ) -> Result<Response<Self::PullStream>, Status> {
        let request = request.into_inner();
        let (tell, told) = mpsc::channel(PROGRESS_QUEUE);
        tokio::spawn(pull(self.node.clone(), request, tell));
        Ok(Response::new(Box::pin(ReceiverStream::new(told))))
    }
}

impl Admin {
    async fn import(
        &self,
        mut parts: Streaming<ImportRequest>,
    ) -> Result<Vec<ImportedImage>, Status> {
        let dir = self.node.config.root.join("image");
        let mut file = nameless_file(&dir)?;
        let mut name = None;
        while let Some(message) = parts.message().await? {
            match message.part {
                Some(Part::Name(given)) => name = Some(given).filter(|n| !n.is_empty()),
                // To the page cache: short enough for the event loop.
                Some(Part::Chunk(bytes)) => file
                    .write_all(&bytes)
                    .map_err(Error::io("write the archive to", &dir))?,
                None => return Err(Error::InvalidArgument("a part is missing".into()).into()),
            }
        }
        let path = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
        let images = self
            .node
            .images
            .import(&path, name.as_deref())
            .await
            .map_err(Error::from)?;
        drop(file);
        Ok(images
            .iter()
            .map(|image| ImportedImage {
                id: image.id.clone(),
                names: image.repo_tags.clone(),
            })
            .collect())
    }
}

/// A file that no crash can leave behind: it has no name (O_TMPFILE, Linux 3.11).
fn nameless_file(dir: &Path) -> Result<File, Error> {
    let mode = Mode::RUSR | Mode::WUSR;
    openat(
        CWD,
        dir,
        OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC,
        mode,
    )
    .map(File::from)
    .map_err(|e| Error::io("make a temporary file in", dir)(e.into()))
}

/// Pulls, and tells each change until the end. Ends the pull when the client is gone (and nobody else waits for it).
async fn pull(
    node: Arc<Node>,
    request: PullRequest,
    tell: mpsc::Sender<Result<PullProgress, Status>>,
) {
    let auth = match (request.username.as_str(), request.password.as_str()) {
        ("", "") => None,
        _ => Some(Auth {
            username: request.username,
            password: request.password,
            ..Default::default()
        }),
    };
    let (sender, mut changes) = watch::channel(Vec::new());
    let pulled = node.images.pull(&request.image, auth, Some(sender));
    let mut pulled = std::pin::pin!(pulled);
    let mut telling = true;
    let since = std::time::Instant::now();
    let last = loop {
        tokio::select! {
            result = &mut pulled => break result,
            changed = changes.changed(), if telling => match changed {
                Ok(()) => {
                    let layers = progress(&changes.borrow_and_update());
                    let _ = tell.try_send(Ok(PullProgress { layers, image_id: String::new() }));
                }
                Err(_) => telling = false,
            },
            () = tell.closed() => return,
        }
    };
    node.metrics.image_pulls.ended(since, &last);
    let last = match last {
        Ok(image) => Ok(PullProgress {
            layers: progress(&changes.borrow()),
            image_id: image.id.clone(),
        }),
        Err(e) => Err(Error::from(e).into()),
    };
    let _ = tell.send(last).await;
}

fn progress(layers: &[Layer]) -> Vec<LayerProgress> {
    layers
        .iter()
        .map(|layer| LayerProgress {
            digest: layer.digest.clone(),
            stage: layer.stage.to_owned(),
            done_bytes: layer.done_bytes,
            total_bytes: layer.total_bytes,
            stall: layer.stall.clone(),
        })
        .collect()
}
