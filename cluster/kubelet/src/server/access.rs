//! Who asks, and whether they may: by a client's certificate or a token, which the API server looks at (TokenReview), and by its word
//! (SubjectAccessReview).

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use berth_auth::{User, x509};
use http::{Method, Request, header};
use k8s_openapi::api::{
    authentication::v1::{TokenReview, TokenReviewSpec},
    authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec},
};
use kube::{Api, api::PostParams};
use sha2::{Digest, Sha256};

use crate::{
    Cluster,
    api::{Failed, within},
};

/// Upstream's: how long the API server's word is taken for what it was.
const TOKEN_KEPT: Duration = Duration::from_secs(120);
const ALLOWED_KEPT: Duration = Duration::from_secs(300);
const DENIED_KEPT: Duration = Duration::from_secs(30);
/// Answers that are kept at most; beyond, all are forgotten, and asked for again.
const MOST_KEPT: usize = 1024;

#[derive(Debug)]
pub(super) enum Denied {
    /// They have not said who they are, or it is not so.
    Nobody,
    MayNot(String),
    /// The API server could not be asked.
    NotKnown(String),
}

#[derive(Debug)]
pub(super) struct Access {
    cluster: Cluster,
    /// By the SHA-256 of the token.
    users: Mutex<Kept<[u8; 32], Option<User>>>,
    allowed: Mutex<Kept<Asked, Result<(), String>>>,
}

/// Answers, and how long each holds.
type Kept<K, V> = HashMap<K, (V, Instant)>;

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Asked {
    user: String,
    groups: Vec<String>,
    /// As text: it counts as well, to some authorizers.
    extra: String,
    verb: &'static str,
    subresource: &'static str,
}

impl Access {
    pub fn new(cluster: Cluster) -> Self {
        Self {
            cluster,
            users: Mutex::default(),
            allowed: Mutex::default(),
        }
    }

    pub async fn check<B>(
        &self,
        request: &Request<B>,
        certificate: Option<&[u8]>,
    ) -> Result<(), Denied> {
        let user = match (certificate, bearer(request)) {
            (Some(certificate), _) => x509::user(certificate).map_err(|_| Denied::Nobody)?,
            (None, Some(token)) => self.user(&token).await?,
            (None, None) => return Err(Denied::Nobody),
        };
        let (verb, subresources) = attributes(request.method(), request.uri().path());
        let mut last = Ok(());
        for subresource in subresources {
            last = self.may(&user, verb, subresource).await;
            if !matches!(last, Err(Denied::MayNot(_))) {
                break;
            }
        }
        last
    }

    async fn user(&self, token: &str) -> Result<User, Denied> {
        let key: [u8; 32] = Sha256::digest(token.as_bytes()).into();
        if let Some(known) = kept(&self.users, &key) {
            return known.ok_or(Denied::Nobody);
        }
        let review = TokenReview {
            spec: TokenReviewSpec {
                token: token.to_owned(),
                audiences: None,
            },
            ..TokenReview::default()
        };
        let api = Api::<TokenReview>::all(self.cluster.client.clone());
        let answer = within(api.create(&PostParams::default(), &review))
            .await
            .map_err(|failed| not_asked(&failed))?;
        let status = answer.status.unwrap_or_default();
        let user = status
            .user
            .filter(|_| status.authenticated == Some(true))
            .map(|user| User {
                username: user.username.unwrap_or_default(),
                uid: user.uid.unwrap_or_default(),
                groups: user.groups.unwrap_or_default(),
                extra: user.extra.unwrap_or_default(),
            });
        keep(&self.users, key, user.clone(), TOKEN_KEPT);
        user.ok_or(Denied::Nobody)
    }

    async fn may(
        &self,
        user: &User,
        verb: &'static str,
        subresource: &'static str,
    ) -> Result<(), Denied> {
        let asked = Asked {
            user: user.username.clone(),
            groups: user.groups.clone(),
            extra: format!("{:?}", user.extra),
            verb,
            subresource,
        };
        if let Some(known) = kept(&self.allowed, &asked) {
            return known.map_err(Denied::MayNot);
        }
        let review = SubjectAccessReview {
            spec: SubjectAccessReviewSpec {
                user: Some(user.username.clone()),
                uid: Some(user.uid.clone()).filter(|uid| !uid.is_empty()),
                groups: Some(user.groups.clone()),
                extra: Some(user.extra.clone()),
                resource_attributes: Some(ResourceAttributes {
                    verb: Some(verb.into()),
                    version: Some("v1".into()),
                    resource: Some("nodes".into()),
                    subresource: Some(subresource.into()),
                    name: Some(self.cluster.node.clone()),
                    ..ResourceAttributes::default()
                }),
                non_resource_attributes: None,
            },
            ..SubjectAccessReview::default()
        };
        let api = Api::<SubjectAccessReview>::all(self.cluster.client.clone());
        let answer = within(api.create(&PostParams::default(), &review))
            .await
            .map_err(|failed| not_asked(&failed))?;
        let status = answer.status.unwrap_or_default();
        let result = match status.allowed && status.denied != Some(true) {
            true => Ok(()),
            false => Err(format!(
                "Forbidden (user={}, verb={verb}, resource=nodes, subresource={subresource})",
                user.username
            )),
        };
        let holds = if result.is_ok() {
            ALLOWED_KEPT
        } else {
            DENIED_KEPT
        };
        keep(&self.allowed, asked, result.clone(), holds);
        result.map_err(Denied::MayNot)
    }
}

fn not_asked(failed: &Failed) -> Denied {
    Denied::NotKnown(format!("the API server can't be asked who may: {failed}"))
}

fn kept<K: Eq + std::hash::Hash, V: Clone>(all: &Mutex<Kept<K, V>>, key: &K) -> Option<V> {
    let all = all.lock().unwrap_or_else(PoisonError::into_inner);
    let (value, until) = all.get(key)?;
    (*until > Instant::now()).then(|| value.clone())
}

fn keep<K: Eq + std::hash::Hash, V>(all: &Mutex<Kept<K, V>>, key: K, value: V, holds: Duration) {
    let mut all = all.lock().unwrap_or_else(PoisonError::into_inner);
    if all.len() >= MOST_KEPT {
        all.clear();
    }
    all.insert(key, (value, Instant::now() + holds));
}

fn bearer<B>(request: &Request<B>) -> Option<String> {
    let value = request
        .headers()
        .get(header::AUTHORIZATION)?
        .to_str()
        .ok()?;
    let (scheme, token) = value.split_once(' ')?;
    let token = token.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then(|| token.to_owned())
}

/// The verb, and the parts of a node of which one must be allowed, the narrowest first (upstream's fine-grained authorization).
fn attributes(method: &Method, path: &str) -> (&'static str, &'static [&'static str]) {
    let first = path
        .trim_start_matches('/')
        .split('/')
        .next()
        .unwrap_or_default();
    let verb = match (first, method.as_str()) {
        // Looking into a container is doing something in it, whatever the request's method: a WebSocket begins with a GET.
        ("exec" | "attach" | "portForward" | "run" | "cri", _) => "create",
        (_, "POST") => "create",
        (_, "PUT") => "update",
        (_, "PATCH") => "patch",
        (_, "DELETE") => "delete",
        _ => "get",
    };
    let subresources: &[&str] = match first {
        "stats" => &["stats"],
        "metrics" => &["metrics"],
        "logs" => &["log"],
        "checkpoint" => &["checkpoint"],
        "pods" | "runningpods" => &["pods", "proxy"],
        "configz" => &["configz", "proxy"],
        "healthz" => &["healthz", "proxy"],
        _ => &["proxy"],
    };
    (verb, subresources)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_done_in_a_container_is_never_only_read_sec_kub_03() {
        for (method, path, verb, subresources) in [
            (
                Method::GET,
                "/exec/default/p/c",
                "create",
                ["proxy"].as_slice(),
            ),
            (Method::POST, "/exec/default/p/c", "create", &["proxy"]),
            (Method::GET, "/attach/default/p/c", "create", &["proxy"]),
            (Method::GET, "/portForward/default/p", "create", &["proxy"]),
            (Method::GET, "/run/default/p/c", "create", &["proxy"]),
            (Method::GET, "/containerLogs/default/p/c", "get", &["proxy"]),
            (Method::GET, "/pods", "get", &["pods", "proxy"]),
            (Method::GET, "/stats/summary", "get", &["stats"]),
            (Method::GET, "/metrics/resource", "get", &["metrics"]),
            (
                Method::POST,
                "/checkpoint/default/p/c",
                "create",
                &["checkpoint"],
            ),
            (Method::GET, "/debug/pprof", "get", &["proxy"]),
            (Method::GET, "//exec/default/p/c", "create", &["proxy"]),
            (Method::DELETE, "/x", "delete", &["proxy"]),
        ] {
            assert_eq!(
                attributes(&method, path),
                (verb, subresources),
                "{method} {path}"
            );
        }
    }

    #[test]
    fn a_token_is_read_from_one_header_alone() {
        let with = |value: &str| {
            Request::builder()
                .header("Authorization", value)
                .body(())
                .unwrap()
        };
        assert_eq!(bearer(&with("Bearer abc")).as_deref(), Some("abc"));
        assert_eq!(bearer(&with("bearer  abc ")).as_deref(), Some("abc"));
        for none in ["Basic abc", "Bearer ", "abc"] {
            assert_eq!(bearer(&with(none)), None, "{none}");
        }
    }

    #[test]
    fn an_answer_is_kept_for_its_time_and_not_more_than_so_many() {
        let all = Mutex::new(Kept::new());
        keep(&all, 1, "a", Duration::from_secs(60));
        keep(&all, 2, "b", Duration::ZERO);
        assert_eq!((kept(&all, &1), kept(&all, &2)), (Some("a"), None));
        for key in 0..3 * MOST_KEPT {
            keep(&all, key, "c", Duration::from_secs(60));
        }
        assert!(all.lock().unwrap().len() <= MOST_KEPT);
    }
}
