use std::{
    io::{self, BufRead},
    os::fd::AsFd,
    path::{Path, PathBuf},
    process::ExitCode,
};

use berth_proto::{
    admin::{ImportRequest, PullRequest, import_request::Part},
    cri::{AuthConfig, ImageSpec, ListImagesRequest, PullImageRequest, RemoveImageRequest},
};
use clap::{Args, Subcommand};
use serde::Serialize;
use tokio::{
    fs::File,
    io::{AsyncRead, AsyncReadExt},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;

use super::progress::Progress;
use crate::{
    error::Error,
    node::{Address, Node},
    output::{self, Format, Table},
};

/// Of an archive on its way to the daemon: far below the 4 MiB that a gRPC message may have.
const CHUNK_BYTES: usize = 256 << 10;

/// Chunks that may wait for the daemon.
const CHUNKS_AHEAD: usize = 4;

/// The registry credentials that are used where --creds is not given.
const CREDENTIALS_VARIABLE: &str = "BERTH_REGISTRY_CREDS";

#[derive(Debug, Subcommand)]
pub enum Image {
    Pull(Pull),
    /// List the images that are here
    List,
    Import(Import),
    Remove(Remove),
}

/// Pull images from their registries
///
/// Shows each layer's progress on a terminal, and a line a change elsewhere.
#[derive(Debug, Args)]
pub struct Pull {
    #[arg(required = true, value_name = "REF")]
    references: Vec<String>,
    /// File with one line USER:PASSWORD, or - for standard input. Without it, the variable BERTH_REGISTRY_CREDS is
    /// taken. (Never as an argument: other users can read those.)
    #[arg(long, value_name = "FILE")]
    creds: Option<PathBuf>,
}

/// Import an OCI or docker archive
///
/// As `docker save` or `skopeo copy … oci-archive:` writes it, plain or compressed.
#[derive(Debug, Args)]
pub struct Import {
    /// The archive, or - for standard input
    archive: PathBuf,
    /// Name for an image that the archive does not name
    #[arg(long, default_value = "", hide_default_value = true)]
    name: String,
}

/// Remove images
///
/// One that is not there is no error.
#[derive(Debug, Args)]
pub struct Remove {
    #[arg(required = true, value_name = "REF|ID")]
    references: Vec<String>,
}

impl Image {
    pub async fn run(self, address: &Address, format: Format) -> Result<ExitCode, Error> {
        match self {
            Image::Pull(pull) => pull.run(address, format).await,
            Image::List => list(address, format).await,
            Image::Import(import) => import.run(address, format).await,
            Image::Remove(remove) => remove.run(address).await,
        }
    }
}

#[derive(Debug, Serialize)]
struct Pulled {
    image: String,
    id: String,
}

impl Pull {
    async fn run(self, address: &Address, format: Format) -> Result<ExitCode, Error> {
        let credentials = credentials(self.creds.as_deref())?;
        let node = Node::connect(address).await?;
        let mut pulled = Vec::new();
        for image in self.references {
            let id = pull(&node, &image, credentials.as_ref()).await?;
            pulled.push(Pulled { image, id });
        }
        output::print(format, &pulled, || {
            let mut table = Table::default();
            for image in &pulled {
                table.row([image.id.clone(), image.image.clone()]);
            }
            table
        })?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Pulls by Berth's own service, which tells the progress, or else by the CRI's.
pub async fn pull(
    node: &Node,
    image: &str,
    credentials: Option<&Credentials>,
) -> Result<String, Error> {
    let what = || format!("pull {image}");
    let (username, password) = credentials
        .map(|it| (it.user.clone(), it.password.clone()))
        .unwrap_or_default();
    let request = PullRequest {
        image: image.to_owned(),
        username: username.clone(),
        password: password.clone(),
    };
    let mut updates = match node.admin_images().pull(request).await {
        Ok(answer) => answer.into_inner(),
        Err(status) if status.code() == Code::Unimplemented => {
            let request = PullImageRequest {
                image: Some(ImageSpec {
                    image: image.to_owned(),
                    ..Default::default()
                }),
                auth: credentials.map(|_| AuthConfig {
                    username,
                    password,
                    ..Default::default()
                }),
                sandbox_config: None,
            };
            return Ok(node
                .images()
                .pull_image(request)
                .await
                .map_err(node.cannot(what()))?
                .into_inner()
                .image_ref);
        }
        Err(status) => return Err(node.cannot(what())(status)),
    };
    let mut progress = Progress::on_stderr(image);
    let mut id = String::new();
    while let Some(update) = updates.message().await.map_err(node.cannot(what()))? {
        progress.show(&update.layers);
        if !update.image_id.is_empty() {
            id = update.image_id;
        }
    }
    if id.is_empty() {
        Err(node.lacks("Pull", "an image_id"))
    } else {
        Ok(id)
    }
}

#[derive(Debug, Serialize)]
struct Listed {
    id: String,
    tags: Vec<String>,
    digests: Vec<String>,
    size_bytes: u64,
    pinned: bool,
}

async fn list(address: &Address, format: Format) -> Result<ExitCode, Error> {
    let node = Node::connect(address).await?;
    let answer = node
        .images()
        .list_images(ListImagesRequest::default())
        .await
        .map_err(node.cannot("list images"))?;
    let mut images: Vec<Listed> = answer
        .into_inner()
        .images
        .into_iter()
        .map(|image| Listed {
            id: image.id,
            tags: image.repo_tags,
            digests: image.repo_digests,
            size_bytes: image.size,
            pinned: image.pinned,
        })
        .collect();
    images.sort_by(|a, b| (&a.tags, &a.id).cmp(&(&b.tags, &b.id)));
    output::print(format, &images, || {
        let mut table = Table::new(&["IMAGE", "ID", "SIZE"]);
        for image in &images {
            let row = |name: &str| {
                [
                    name.to_owned(),
                    output::short(&image.id),
                    output::bytes(image.size_bytes),
                ]
            };
            match &image.tags[..] {
                [] => table.row(row(image.digests.first().map_or("<none>", String::as_str))),
                tags => tags.iter().for_each(|tag| table.row(row(tag))),
            }
        }
        table
    })?;
    Ok(ExitCode::SUCCESS)
}

#[derive(Debug, Serialize)]
struct Imported {
    id: String,
    names: Vec<String>,
}

impl Import {
    async fn run(self, address: &Address, format: Format) -> Result<ExitCode, Error> {
        let node = Node::connect(address).await?;
        let archive = open_archive(&self.archive)
            .await
            .map_err(|source| Error::File {
                what: "open",
                path: self.archive.clone(),
                source,
            })?;
        let (sender, requests) = tokio::sync::mpsc::channel(CHUNKS_AHEAD);
        let (answer, read) = tokio::join!(
            async {
                node.admin_images()
                    .import(ReceiverStream::new(requests))
                    .await
            },
            send_archive(archive, self.name, sender)
        );
        // A file that can't be read cuts the stream short: then the read's error is the one that tells why.
        read.map_err(|source| Error::File {
            what: "read",
            path: self.archive.clone(),
            source,
        })?;
        let answer = answer
            .map_err(node.cannot(format!("import {}", self.archive.display())))?
            .into_inner();
        let images: Vec<Imported> = answer
            .images
            .into_iter()
            .map(|image| Imported {
                id: image.id,
                names: image.names,
            })
            .collect();
        output::print(format, &images, || {
            let mut table = Table::default();
            for image in &images {
                table.row([image.id.clone(), image.names.join(" ")]);
            }
            table
        })?;
        Ok(ExitCode::SUCCESS)
    }
}

async fn open_archive(path: &Path) -> io::Result<File> {
    if path == Path::new("-") {
        return Ok(File::from_std(
            io::stdin().as_fd().try_clone_to_owned()?.into(),
        ));
    }
    File::open(path).await
}

/// The name first, then the bytes. Stops without an error when the daemon has hung up: its answer says why.
async fn send_archive(
    mut archive: impl AsyncRead + Unpin,
    name: String,
    sender: tokio::sync::mpsc::Sender<ImportRequest>,
) -> io::Result<()> {
    if sender
        .send(ImportRequest {
            part: Some(Part::Name(name)),
        })
        .await
        .is_err()
    {
        return Ok(());
    }
    loop {
        let mut chunk = Vec::with_capacity(CHUNK_BYTES);
        if (&mut archive)
            .take(CHUNK_BYTES as u64)
            .read_to_end(&mut chunk)
            .await?
            == 0
        {
            return Ok(());
        }
        if sender
            .send(ImportRequest {
                part: Some(Part::Chunk(chunk.into())),
            })
            .await
            .is_err()
        {
            return Ok(());
        }
    }
}

impl Remove {
    async fn run(self, address: &Address) -> Result<ExitCode, Error> {
        let node = Node::connect(address).await?;
        let mut failures = 0;
        for image in self.references {
            let request = RemoveImageRequest {
                image: Some(ImageSpec {
                    image: image.clone(),
                    ..Default::default()
                }),
            };
            if let Err(status) = node.images().remove_image(request).await {
                eprintln!("berth: {}", node.cannot(format!("remove {image}"))(status));
                failures += 1;
            }
        }
        if failures == 0 {
            Ok(ExitCode::SUCCESS)
        } else {
            Err(Error::Some(failures))
        }
    }
}

/// Never shown by Debug.
pub struct Credentials {
    pub user: String,
    pub password: String,
}

fn credentials(from: Option<&Path>) -> Result<Option<Credentials>, Error> {
    let (place, line) = match from {
        Some(path) if path == Path::new("-") => {
            let mut line = String::new();
            io::stdin()
                .lock()
                .read_line(&mut line)
                .map_err(|source| Error::File {
                    what: "read credentials from",
                    path: path.into(),
                    source,
                })?;
            ("standard input".to_owned(), line)
        }
        Some(path) => {
            let text = std::fs::read_to_string(path).map_err(|source| Error::File {
                what: "read credentials from",
                path: path.into(),
                source,
            })?;
            (path.display().to_string(), text)
        }
        None => match std::env::var(CREDENTIALS_VARIABLE) {
            Ok(text) => (CREDENTIALS_VARIABLE.to_owned(), text),
            Err(_) => return Ok(None),
        },
    };
    parse_credentials(&line)
        .map(Some)
        .ok_or(Error::Credentials { place })
}

/// One line; the first colon divides, so a password may have colons and a user may not.
fn parse_credentials(text: &str) -> Option<Credentials> {
    let line = text.strip_suffix('\n').unwrap_or(text);
    let line = line.strip_suffix('\r').unwrap_or(line);
    let (user, password) = line.split_once(':')?;
    (!user.is_empty() && !line.contains('\n')).then(|| Credentials {
        user: user.to_owned(),
        password: password.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_one_line_split_at_the_first_colon() {
        let parse = |text| parse_credentials(text).map(|it| (it.user, it.password));
        let pair = |user: &str, password: &str| Some((user.to_owned(), password.to_owned()));
        for (text, expected) in [
            ("me:secret\n", pair("me", "secret")),
            ("me:se:cret", pair("me", "se:cret")),
            ("me:secret\r\n", pair("me", "secret")),
            ("me:", pair("me", "")),
            ("me", None),
            (":secret", None),
            ("me:a\nyou:b\n", None),
            ("", None),
        ] {
            assert_eq!(parse(text), expected, "{text:?}");
        }
    }

    #[tokio::test]
    async fn an_archive_is_sent_in_chunks_after_its_name() {
        let archive = vec![7; CHUNK_BYTES * 2 + 1];
        let (sender, mut requests) = tokio::sync::mpsc::channel(CHUNKS_AHEAD);
        send_archive(&archive[..], "x:1".into(), sender)
            .await
            .unwrap();
        assert_eq!(
            requests.recv().await.unwrap().part,
            Some(Part::Name("x:1".into()))
        );
        let mut sizes = Vec::new();
        while let Some(ImportRequest {
            part: Some(Part::Chunk(chunk)),
        }) = requests.recv().await
        {
            sizes.push(chunk.len());
        }
        assert_eq!(sizes, [CHUNK_BYTES, CHUNK_BYTES, 1]);
    }
}
