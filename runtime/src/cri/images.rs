//! ImageService: the image store in the CRI's words.

use std::{collections::HashMap, time::Instant};

use berth_image::{Auth, Image as Stored, Usage};
use berth_proto::cri::{image_service_server::ImageService, *};
use serde_json::json;
use tonic::{Request, Response};

use super::{Answer, Service, Streamed, answer, stream_lists::parts, streamed};
use crate::{
    error::Error,
    pod::record::now_ns,
    trace::{phase, step},
};

#[tonic::async_trait]
impl ImageService for Service {
    async fn list_images(&self, request: Request<ListImagesRequest>) -> Answer<ListImagesResponse> {
        answer("ListImages", self.list_images(request.into_inner()))
    }

    async fn image_status(
        &self,
        request: Request<ImageStatusRequest>,
    ) -> Answer<ImageStatusResponse> {
        answer("ImageStatus", self.image_status(request.into_inner()))
    }

    async fn pull_image(&self, request: Request<PullImageRequest>) -> Answer<PullImageResponse> {
        answer("PullImage", self.pull_image(request.into_inner()).await)
    }

    async fn remove_image(
        &self,
        request: Request<RemoveImageRequest>,
    ) -> Answer<RemoveImageResponse> {
        answer("RemoveImage", self.remove_image(request.into_inner()).await)
    }

    async fn image_fs_info(&self, _: Request<ImageFsInfoRequest>) -> Answer<ImageFsInfoResponse> {
        answer("ImageFsInfo", self.image_fs_info().await)
    }

    type StreamImagesStream = Streamed<StreamImagesResponse>;
    async fn stream_images(
        &self,
        request: Request<StreamImagesRequest>,
    ) -> Answer<Self::StreamImagesStream> {
        let filter = request.into_inner().filter;
        let list = self.list_images(ListImagesRequest { filter })?;
        let part = |images| StreamImagesResponse { images };
        Ok(Response::new(streamed(parts(list.images, part))))
    }
}

impl Service {
    fn list_images(&self, request: ListImagesRequest) -> Result<ListImagesResponse, Error> {
        let store = &self.registry.node.images;
        let asked = request
            .filter
            .and_then(|f| f.image)
            .unwrap_or_default()
            .image;
        let images = match asked.as_str() {
            "" => store.list(),
            name => store.resolve(name)?.into_iter().collect(),
        };
        Ok(ListImagesResponse {
            images: images.iter().map(|image| of(image)).collect(),
        })
    }

    /// An image that is not here is no error: the answer has none.
    fn image_status(&self, request: ImageStatusRequest) -> Result<ImageStatusResponse, Error> {
        let name = named(request.image)?;
        let found = self.registry.node.images.resolve(&name)?;
        let info = match &found {
            Some(image) if request.verbose => HashMap::from([(
                "info".to_owned(),
                json!({ "imageSpec": image.config }).to_string(),
            )]),
            _ => HashMap::new(),
        };
        Ok(ImageStatusResponse {
            image: found.map(|image| of(&image)),
            info,
        })
    }

    async fn pull_image(&self, request: PullImageRequest) -> Result<PullImageResponse, Error> {
        let name = named(request.image)?;
        let auth = request.auth.map(|auth| Auth {
            username: auth.username,
            password: auth.password,
            auth: auth.auth,
            server_address: auth.server_address,
            identity_token: auth.identity_token,
            registry_token: auth.registry_token,
        });
        let node = &self.registry.node;
        let since = Instant::now();
        let pulling = node.images.pull(&name, auth, None);
        let pulled = phase(step!("image pull"), pulling).await;
        node.metrics.image_pulls.ended(since, &pulled);
        let image = pulled?;
        Ok(PullImageResponse {
            image_ref: image.id.clone(),
        })
    }

    async fn remove_image(
        &self,
        request: RemoveImageRequest,
    ) -> Result<RemoveImageResponse, Error> {
        let name = named(request.image)?;
        self.registry.node.images.remove(&name).await?;
        Ok(RemoveImageResponse {})
    }

    async fn image_fs_info(&self) -> Result<ImageFsInfoResponse, Error> {
        let store = self.registry.node.images.clone();
        let (images, containers) = tokio::task::spawn_blocking(move || store.fs_info())
            .await
            .map_err(|_| Error::Panicked("image filesystem"))??;
        let usage = |(path, usage): (std::path::PathBuf, Usage)| FilesystemUsage {
            timestamp: now_ns(),
            fs_id: Some(FilesystemIdentifier {
                mountpoint: path.display().to_string(),
            }),
            used_bytes: Some(UInt64Value { value: usage.bytes }),
            inodes_used: Some(UInt64Value {
                value: usage.inodes,
            }),
        };
        Ok(ImageFsInfoResponse {
            image_filesystems: vec![usage(images)],
            container_filesystems: vec![usage(containers)],
        })
    }
}

fn named(image: Option<ImageSpec>) -> Result<String, Error> {
    match image.map(|i| i.image).unwrap_or_default() {
        name if name.is_empty() => Err(Error::InvalidArgument("image is missing".into())),
        name => Ok(name),
    }
}

fn of(image: &Stored) -> Image {
    let user = image
        .config
        .config()
        .as_ref()
        .and_then(|c| c.user().clone())
        .unwrap_or_default();
    let (uid, username) = whom(&user);
    Image {
        id: image.id.clone(),
        repo_tags: image.repo_tags.clone(),
        repo_digests: image.repo_digests.clone(),
        size: image.size_bytes,
        uid: uid.map(|value| Int64Value { value }),
        username,
        spec: None,
        pinned: image.pinned,
    }
}

/// `user[:group]`, the user a number or a name; none is root.
fn whom(user: &str) -> (Option<i64>, String) {
    let user = user.split(':').next().unwrap_or_default();
    match (user, user.parse::<i64>()) {
        ("", _) => (Some(0), String::new()),
        (_, Ok(uid)) => (Some(uid), String::new()),
        (name, Err(_)) => (None, name.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_images_user_is_a_number_or_a_name_cri() {
        for (user, uid, name) in [
            ("", Some(0), ""),
            ("1002", Some(1002), ""),
            ("1002:1002", Some(1002), ""),
            ("www-data", None, "www-data"),
            ("www-data:100", None, "www-data"),
        ] {
            assert_eq!(whom(user), (uid, name.to_owned()), "{user:?}");
        }
    }
}
