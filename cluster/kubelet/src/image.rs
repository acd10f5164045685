//! Images: when they are pulled, and with whose credentials.

use berth_proto::cri::{AuthConfig, ImageSpec, PodSandboxConfig};
use serde_json::Value;

use crate::{
    Error, Level,
    node::Inner,
    objects::Objects,
    pod::{Desired, PullPolicy},
};

/// What the runtime says of an image that is here.
#[derive(Debug, Clone, Default)]
pub(crate) struct ImageFacts {
    pub id: String,
    /// The image's user by number, or by name; neither: root.
    pub user: Option<i64>,
    pub username: String,
    pub bytes: u64,
}

/// The image `name` for `container` of the pod, pulled where `policy` says so.
pub(crate) async fn ensure(
    node: &Inner,
    pod: &Desired,
    container: &str,
    name: &str,
    policy: PullPolicy,
    sandbox: &PodSandboxConfig,
) -> Result<ImageFacts, Error> {
    let spec = |image: &str| ImageSpec {
        image: image.to_owned(),
        runtime_handler: pod.runtime_handler(),
        annotations: sandbox.annotations.clone(),
        ..Default::default()
    };
    let tell = |level, reason, message| node.tell(level, pod, container, reason, message);
    let here = facts(node, spec(name)).await.map_err(|error| {
        if error.is_unanswered() {
            return error;
        }
        let message = format!("Failed to inspect image {name:?}: {error}");
        tell(Level::Warning, "InspectFailed", message);
        Error::ImageStatus {
            container: container.to_owned(),
            image: name.to_owned(),
            why: error.to_string(),
        }
    })?;
    match (policy, here) {
        (PullPolicy::IfNotPresent | PullPolicy::Never, Some(facts)) => {
            let message = format!("Container image {name:?} already present on machine");
            tell(Level::Normal, "Pulled", message);
            return Ok(facts);
        }
        (PullPolicy::Never, None) => {
            let message =
                format!("Container image {name:?} is not present with pull policy of Never");
            tell(Level::Warning, "ErrImageNeverPull", message);
            return Err(Error::ImageNeverPull {
                container: container.to_owned(),
                image: name.to_owned(),
            });
        }
        (PullPolicy::Always | PullPolicy::IfNotPresent, _) => {}
    }
    let missing = missing_secrets(pod, &node.objects);
    if !missing.is_empty() {
        let message = format!(
            "Unable to retrieve some image pull secrets ({}); attempting to pull the image may not succeed.",
            missing.join(", ")
        );
        node.tell(
            Level::Warning,
            pod,
            "",
            "FailedToRetrieveImagePullSecret",
            message,
        );
    }
    tell(Level::Normal, "Pulling", format!("Pulling image {name:?}"));
    let began = std::time::Instant::now();
    let failed = |error: Error| {
        if error.is_unanswered() {
            return error;
        }
        let message = format!("Failed to pull image {name:?}: {error}");
        tell(Level::Warning, "Failed", message);
        Error::Pull {
            container: container.to_owned(),
            image: name.to_owned(),
            why: error.to_string(),
        }
    };
    let mut pulled = Err(Error::Answer {
        rpc: "PullImage",
        lacks: "an answer",
    });
    for auth in credentials(pod, &node.objects, name) {
        pulled = node.runtime.pull(spec(name), auth, sandbox.clone()).await;
        if pulled.is_ok() {
            break;
        }
    }
    let id = pulled.map_err(failed)?;
    let facts = facts(node, spec(&id))
        .await
        .and_then(|facts| {
            facts.ok_or(Error::Answer {
                rpc: "ImageStatus",
                lacks: "the image just pulled",
            })
        })
        .map_err(failed)?;
    // pulls of one node wait for nobody: both times are one
    let took = format!("{:.3}s", began.elapsed().as_secs_f64());
    let message = format!(
        "Successfully pulled image {name:?} in {took} ({took} including waiting). Image size: {} bytes.",
        facts.bytes
    );
    tell(Level::Normal, "Pulled", message);
    Ok(facts)
}

async fn facts(node: &Inner, spec: ImageSpec) -> Result<Option<ImageFacts>, Error> {
    let image = node.runtime.image(spec).await?;
    Ok(image.map(|image| ImageFacts {
        id: image.id,
        user: image.uid.map(|uid| uid.value),
        username: image.username,
        bytes: image.size,
    }))
}

/// The names of the pull secrets that are not there: without them an image of everybody's can be pulled still.
fn missing_secrets(pod: &Desired, objects: &Objects) -> Vec<String> {
    let all = pod.spec.image_pull_secrets.iter().flatten();
    all.map(|it| &it.name)
        .filter(|name| objects.secret(&pod.namespace, name).is_none())
        .cloned()
        .collect()
}

/// Those of the pod's pull secrets that are for the image's registry, the closest first; none where there are none.
fn credentials(pod: &Desired, objects: &Objects, image: &str) -> Vec<Option<AuthConfig>> {
    let wanted = with_registry(image);
    let mut found: Vec<(usize, AuthConfig)> = Vec::new();
    for reference in pod.spec.image_pull_secrets.iter().flatten() {
        // A secret that is missing is no reason not to try, as upstream.
        let Some(secret) = objects.secret(&pod.namespace, &reference.name) else {
            continue;
        };
        let (key, inner) = match secret.kind.as_str() {
            "kubernetes.io/dockercfg" => (".dockercfg", ""),
            _ => (".dockerconfigjson", "/auths"),
        };
        let parsed: Option<Value> = secret
            .data
            .get(key)
            .and_then(|bytes| serde_json::from_slice(bytes).ok());
        let entries = parsed
            .as_ref()
            .and_then(|it| it.pointer(inner))
            .and_then(Value::as_object);
        for (server, entry) in entries.into_iter().flatten() {
            let place = place(server);
            if is_for(place, &wanted) {
                let text = |name: &str| {
                    entry
                        .get(name)
                        .and_then(Value::as_str)
                        .unwrap_or_default()
                        .to_owned()
                };
                found.push((
                    place.len(),
                    AuthConfig {
                        username: text("username"),
                        password: text("password"),
                        auth: text("auth"),
                        identity_token: text("identitytoken"),
                        registry_token: text("registrytoken"),
                        server_address: place.to_owned(),
                    },
                ));
            }
        }
    }
    found.sort_by_key(|(length, _)| std::cmp::Reverse(*length));
    match found.is_empty() {
        true => vec![None],
        false => found.into_iter().map(|(_, auth)| Some(auth)).collect(),
    }
}

/// `https://index.docker.io/v1/` is `index.docker.io`.
fn place(server: &str) -> &str {
    let bare = server
        .trim_start_matches("https://")
        .trim_start_matches("http://")
        .trim_end_matches('/');
    bare.strip_suffix("/v1")
        .or_else(|| bare.strip_suffix("/v2"))
        .unwrap_or(bare)
}

/// Credentials go to the registry that they are for, or to one path of it, and nowhere else.
fn is_for(place: &str, image: &str) -> bool {
    let place = match place {
        "index.docker.io" | "registry-1.docker.io" => "docker.io",
        place => place,
    };
    image
        .strip_prefix(place)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with(['/', ':', '@']))
}

/// `nginx` is `docker.io/library/nginx`.
fn with_registry(image: &str) -> String {
    match image.split_once('/') {
        Some((first, _)) if first.contains(['.', ':']) || first == "localhost" => image.to_owned(),
        Some(_) => format!("docker.io/{image}"),
        None => format!("docker.io/library/{image}"),
    }
}

/// As runtimes list it: `nginx` is `docker.io/library/nginx:latest`; beside a digest a tag says nothing.
pub(crate) fn as_listed(image: &str) -> String {
    let whole = match image.strip_prefix("docker.io/") {
        Some(rest) => with_registry(rest),
        None => with_registry(image),
    };
    let (name, digest) = match whole.split_once('@') {
        Some((name, digest)) => (name, Some(digest)),
        None => (whole.as_str(), None),
    };
    let from = name.rfind('/').map_or(0, |at| at + 1);
    let tag = name[from..].find(':').map(|at| from + at);
    match (digest, tag) {
        (Some(digest), tag) => format!("{}@{digest}", &name[..tag.unwrap_or(name.len())]),
        (None, Some(_)) => whole,
        (None, None) => format!("{whole}:latest"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::pod::tests::pod;

    #[test]
    fn credentials_go_to_the_registry_that_they_are_for_and_nowhere_else() {
        let objects = Objects::default();
        let config = json!({"auths": {
            "https://index.docker.io/v1/": {"username": "hub"},
            "quay.io": {"username": "quay"},
            "quay.io/team": {"username": "team"},
            "localhost:5000": {"username": "local"},
        }});
        let secret = json!({
            "metadata": {"namespace": "default", "name": "s"},
            "type": "kubernetes.io/dockerconfigjson",
            "stringData": {".dockerconfigjson": config.to_string()},
        });
        objects.put_secret(serde_json::from_value(secret).unwrap());
        let pod = pod(
            "  containers: [{name: a, image: x}]\n  imagePullSecrets: [{name: none}, {name: s}]",
        );
        assert_eq!(missing_secrets(&pod, &objects), ["none"]);
        for (image, users) in [
            ("nginx", "hub"),
            ("me/nginx:1", "hub"),
            ("docker.io/library/nginx@sha256:aa", "hub"),
            ("quay.io/other/x", "quay"),
            ("quay.io/team/x", "team quay"),
            ("quay.io/teams/x", "quay"),
            ("quay.io.evil.test/x", "-"),
            ("localhost:5000/x", "local"),
            ("localhost:50001/x", "-"),
        ] {
            let found: Vec<_> = credentials(&pod, &objects, image)
                .into_iter()
                .map(|auth| auth.map_or("-".to_owned(), |auth| auth.username))
                .collect();
            assert_eq!(found.join(" "), users, "{image}");
        }
    }

    #[test]
    fn a_name_is_what_runtimes_make_of_it() {
        for (name, listed) in [
            ("nginx", "docker.io/library/nginx:latest"),
            ("nginx:1", "docker.io/library/nginx:1"),
            ("me/nginx", "docker.io/me/nginx:latest"),
            ("docker.io/nginx", "docker.io/library/nginx:latest"),
            ("docker.io/me/nginx:1", "docker.io/me/nginx:1"),
            ("localhost:5000/x", "localhost:5000/x:latest"),
            ("quay.io/team/x:1@sha256:aa", "quay.io/team/x@sha256:aa"),
            ("nginx@sha256:aa", "docker.io/library/nginx@sha256:aa"),
        ] {
            assert_eq!(as_listed(name), listed);
        }
    }
}
