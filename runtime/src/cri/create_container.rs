//! CreateContainer: which image, and whether the configuration makes sense; the rest is the pod's driver's.

use berth_proto::cri::{CreateContainerRequest, CreateContainerResponse};

use super::Service;
use crate::{
    checkpoint::restore,
    error::Error,
    id,
    pod::{create::Plan, event::Request, image_volumes},
};

pub async fn create_container(
    service: &Service,
    request: CreateContainerRequest,
) -> Result<CreateContainerResponse, Error> {
    let missing = |what: &str| Error::InvalidArgument(format!("{what} is missing"));
    let mut config = request.config.ok_or_else(|| missing("config"))?;
    let pod = service.registry.pod(&request.pod_sandbox_id)?;
    berth_spec::check_container(&pod.pod.config, &config).map_err(|source| Error::Spec {
        what: "container".into(),
        source,
    })?;
    let handler = &pod.pod.handler;
    let node = &service.registry.node;
    node.check_features(handler, &config).await?;
    let name = config.image.as_ref().map_or("", |i| i.image.as_str());
    if name.is_empty() {
        return Err(missing("config.image"));
    }
    let (archive, image) = if restore::is_path(name) {
        let (node, name) = (node.clone(), name.to_owned());
        // A file of some GiB is read to find a few bytes of it.
        let opened = tokio::task::spawn_blocking(move || restore::open(&node, &name));
        let (archive, image) = opened
            .await
            .map_err(|_| Error::Panicked("open a checkpoint"))??;
        (Some(archive), image)
    } else {
        let image = node.images.resolve(name)?;
        let image = image.ok_or_else(|| Error::NotFound {
            what: "image",
            id: name.chars().take(256).collect(),
        })?;
        if node.images.holds_checkpoint(&image) {
            return Err(Error::Unimplemented(format!(
                "image {name} holds a checkpoint: containers are restored from archives only (name the file of one as the image)"
            )));
        }
        (None, image)
    };
    let volumes = image_volumes::resolve(&service.registry.node.images, &mut config)?;
    let plan = Plan {
        id: id::generate(),
        config,
        image,
        volumes,
        archive,
    };
    let request = |reply| Request::Create {
        plan: Box::new(plan),
        replacing: false,
        reply,
    };
    let container_id = pod.ask(request).await?;
    Ok(CreateContainerResponse { container_id })
}
