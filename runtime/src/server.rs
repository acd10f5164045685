//! The unix socket: who may connect, and the end of serving.

use std::{
    fs, io,
    os::unix::fs::{FileTypeExt, PermissionsExt},
    path::Path,
    time::Duration,
};

use berth_proto::{
    admin::images_server::ImagesServer,
    cri::{image_service_server::ImageServiceServer, runtime_service_server::RuntimeServiceServer},
};
use futures_util::StreamExt;
use tokio::net::{UnixListener, UnixStream};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;

use crate::{admin::Admin, cri::Service, error::Error, rpc::Surrounding};

/// The kubelet's own bound on a CRI message.
const MAX_MESSAGE: usize = 16 << 20;
/// A kubelet, a person or two with crictl, a test with some dozens.
const MAX_CONCURRENT_STREAMS: u32 = 1024;
/// Calls that a client has given up before they were looked at: one more ends its connection, and every other call on it. A kubelet has one
/// connection and, of its 110 pods, one call each that it may give up at the same moment; h2's own 20 are fewer than that. A flood
/// (CVE-2023-44487) is still ended after as many, and 1,024 of them were found to hold up other clients for more than a second.
const MAX_PENDING_RESETS: usize = 128;

/// Listens at `path`: mode 0600, a stale socket replaced. Whoever else is there has lost its lock, so it is stale.
pub fn listen(path: &Path) -> Result<UnixListener, Error> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(Error::io("make", parent))?;
    }
    match fs::symlink_metadata(path) {
        Ok(meta) if meta.file_type().is_socket() => {
            fs::remove_file(path).map_err(Error::io("remove stale socket", path))?;
        }
        Ok(_) => {
            let other = io::Error::from(io::ErrorKind::AlreadyExists);
            return Err(Error::io("listen on what is no socket, at", path)(other));
        }
        Err(_) => {}
    }
    // Nobody is let in before its mode is set: connecting needs write permission, and the umask takes it from all others first.
    let before = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o177));
    let bound = UnixListener::bind(path);
    rustix::process::umask(before);
    let listener = bound.map_err(Error::io("listen on", path))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))
        .map_err(Error::io("chmod", path))?;
    Ok(listener)
}

/// Serves until `end` is ready, then lets calls under way finish for at most `grace`.
pub async fn serve(
    listener: UnixListener,
    service: Service,
    end: impl Future<Output = ()>,
    grace: Duration,
) -> Result<(), Error> {
    let incoming = UnixListenerStream::new(listener)
        .filter(|stream| std::future::ready(stream.as_ref().map_or(true, is_root)));
    let admin = Admin {
        node: service.registry.node.clone(),
    };
    let registry = service.registry.clone();
    let (begin_drain, drain) = tokio::sync::oneshot::channel::<()>();
    let serving = Server::builder()
        .max_concurrent_streams(MAX_CONCURRENT_STREAMS)
        .http2_max_pending_accept_reset_streams(Some(MAX_PENDING_RESETS))
        .layer(Surrounding(registry.node.clone()))
        .add_service(
            RuntimeServiceServer::new(service.clone()).max_decoding_message_size(MAX_MESSAGE),
        )
        .add_service(ImageServiceServer::new(service).max_decoding_message_size(MAX_MESSAGE))
        .add_service(ImagesServer::new(admin).max_decoding_message_size(MAX_MESSAGE))
        .serve_with_incoming_shutdown(incoming, async {
            let _ = drain.await;
        });
    let mut serving = std::pin::pin!(serving);
    tokio::select! {
        result = &mut serving => return result.map_err(broken),
        () = end => {}
    }
    let _ = begin_drain.send(());
    // These would never end by themselves.
    registry.happenings.close();
    match tokio::time::timeout(grace, serving).await {
        Ok(result) => result.map_err(broken),
        Err(_) => {
            tracing::warn!(
                "calls under way did not finish within {grace:?}: their clients will ask again"
            );
            Ok(())
        }
    }
}

fn broken(e: tonic::transport::Error) -> Error {
    Error::io("serve on", "the CRI socket")(io::Error::other(e))
}

/// The socket's mode keeps others out already; this holds, too, where somebody loosened it or passed a descriptor on.
fn is_root(stream: &UnixStream) -> bool {
    match stream.peer_cred() {
        Ok(peer) if peer.uid() == 0 => true,
        Ok(peer) => {
            tracing::warn!(uid = peer.uid(), pid = ?peer.pid(), "refused a connection: only root may use this socket");
            false
        }
        Err(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_stale_socket_is_replaced_and_a_file_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s.sock");
        drop(listen(&path).unwrap());
        let listener = listen(&path).unwrap();
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
        drop(listener);
        let file = dir.path().join("file");
        fs::write(&file, "precious").unwrap();
        listen(&file).unwrap_err();
        assert_eq!(fs::read(&file).unwrap(), b"precious");
    }
}
