//! Who asks: by client certificate, by token, or nobody; and on whose behalf.

use berth_auth::{Attributes, Decision, User, bootstrap, x509};
use http::{HeaderMap, header};
use serde_json::Value;

use crate::{api::Api, catalog::REGISTRY, clock, failure::Failure};

/// What the connection knows of its client.
#[derive(Debug, Clone, Default)]
pub struct Peer {
    pub address: Option<std::net::SocketAddr>,
    /// DER, checked by TLS against our CA.
    pub certificate: Option<std::sync::Arc<Vec<u8>>>,
    /// In process: whom the caller acts as.
    pub user: Option<User>,
}

/// Seconds since the epoch.
fn now() -> u64 {
    clock::now().unsigned_abs()
}

/// # Errors
/// 401 where something is shown that does not hold; who shows nothing is anonymous.
pub async fn authenticate(api: &Api, headers: &HeaderMap, peer: &Peer) -> Result<User, Failure> {
    if let Some(user) = &peer.user {
        return Ok(user.clone());
    }
    if let Some(certificate) = &peer.certificate {
        return x509::user(certificate)
            .map(authenticated)
            .map_err(|error| refused(&error));
    }
    let mut tokens = headers.get_all(header::AUTHORIZATION).iter();
    let Some(value) = tokens.next() else {
        return Ok(User::anonymous());
    };
    // two of them are no token at all (SEC-API-11)
    if tokens.next().is_some() {
        return Err(Failure::unauthorized());
    }
    let value = value.to_str().map_err(|_| Failure::unauthorized())?;
    let Some((scheme, token)) = value.split_once(' ') else {
        return Ok(User::anonymous());
    };
    if !scheme.eq_ignore_ascii_case("bearer") {
        return Ok(User::anonymous());
    }
    bearer(api, token.trim(), &[]).await.map(|(user, _)| user)
}

/// The user that a token is of, and the audiences that it has of those asked for.
///
/// # Errors
/// 401.
pub async fn bearer(
    api: &Api,
    token: &str,
    audiences: &[String],
) -> Result<(User, Vec<String>), Failure> {
    if let Some(name) = bootstrap::secret_name(token) {
        let path = format!("{}/{name}", bootstrap::NAMESPACE);
        let secret = api.cache.shard("secrets").get(&path);
        let secret = secret.map(|entry| entry.value());
        let user = bootstrap::authenticate(token, secret.as_ref(), now())
            .map_err(|error| refused(&error))?;
        return Ok((authenticated(user), Vec::new()));
    }
    let verified = api
        .tokens
        .verify(token, audiences, now())
        .map_err(|error| refused(&error))?;
    for bound in &verified.bound {
        let storage = match bound.resource {
            "nodes" => "minions",
            other => other,
        };
        let object = lookup(api, storage, &bound.namespace, &bound.name).await?;
        if !bound.holds(object.as_ref(), now()) {
            return Err(Failure::unauthorized());
        }
    }
    Ok((authenticated(verified.user), verified.audiences))
}

/// From the cache, and from the store where the cache has it not yet.
async fn lookup(
    api: &Api,
    storage: &str,
    namespace: &str,
    name: &str,
) -> Result<Option<Value>, Failure> {
    let path = if namespace.is_empty() {
        name.to_owned()
    } else {
        format!("{namespace}/{name}")
    };
    if let Some(entry) = api.cache.shard(storage).get(&path) {
        return Ok(Some(entry.value()));
    }
    let stored = api
        .storage
        .read(&format!("{REGISTRY}{storage}/{path}"))
        .await?;
    Ok(stored.map(|stored| stored.value))
}

fn refused(error: &berth_auth::Error) -> Failure {
    // Why is for the log: whoever guesses learns nothing.
    tracing::debug!(%error, "a client is not who it says");
    Failure::unauthorized()
}

fn authenticated(mut user: User) -> User {
    if !user
        .groups
        .iter()
        .any(|group| group == berth_auth::AUTHENTICATED)
    {
        user.groups.push(berth_auth::AUTHENTICATED.into());
    }
    user
}

/// Whom `user` wants to be, where it says so and may.
///
/// # Errors
/// 400 where the headers say half of it, 403 where `user` may not.
pub fn impersonate(api: &Api, headers: &HeaderMap, user: User) -> Result<User, Failure> {
    let all = |name: &str| -> Result<Vec<String>, Failure> {
        headers
            .get_all(name)
            .iter()
            .map(|value| {
                value
                    .to_str()
                    .map(str::to_owned)
                    .map_err(|_| Failure::bad_request(format!("{name} is no text")))
            })
            .collect()
    };
    let names = all("impersonate-user")?;
    let groups = all("impersonate-group")?;
    let uids = all("impersonate-uid")?;
    let mut extra = std::collections::BTreeMap::<String, Vec<String>>::new();
    for (header, value) in headers {
        if let Some(key) = header.as_str().strip_prefix("impersonate-extra-") {
            let value = value
                .to_str()
                .map_err(|_| Failure::bad_request(format!("{header} is no text")))?;
            extra.entry(key.to_owned()).or_default().push(value.into());
        }
    }
    let name = match names.as_slice() {
        [] if groups.is_empty() && uids.is_empty() && extra.is_empty() => return Ok(user),
        [] => {
            return Err(Failure::bad_request(
                "requested groups, uid or extra without impersonating a user",
            ));
        }
        [one] if uids.len() < 2 => one.clone(),
        _ => return Err(Failure::bad_request("a user is impersonated twice")),
    };
    let may = |group: &str, resource: &str, subresource: &str, namespace: &str, name: &str| {
        let asked = Attributes {
            verb: "impersonate".into(),
            group: group.into(),
            version: if group.is_empty() { "" } else { "v1" }.into(),
            resource: resource.into(),
            subresource: subresource.into(),
            namespace: namespace.into(),
            name: name.into(),
            ..Attributes::default()
        };
        match api.authorizer.authorize(&user, &asked) {
            Decision::Allow { .. } => Ok(()),
            Decision::Deny { reason } | Decision::NoOpinion { reason } => Err(
                Failure::forbidden_of(group, resource, name, denied(&user, &asked, &reason)),
            ),
        }
    };
    let account = name
        .strip_prefix("system:serviceaccount:")
        .and_then(|rest| rest.split_once(':'));
    match account {
        Some((namespace, name)) => may("", "serviceaccounts", "", namespace, name)?,
        None => may("", "users", "", "", &name)?,
    }
    for group in &groups {
        may("", "groups", "", "", group)?;
    }
    let authentication = "authentication.k8s.io";
    for uid in &uids {
        may(authentication, "uids", "", "", uid)?;
    }
    for (key, values) in &extra {
        for value in values {
            may(authentication, "userextras", key, "", value)?;
        }
    }
    let mut groups = groups;
    if groups.is_empty()
        && let Some((namespace, _)) = account
    {
        groups = vec![
            "system:serviceaccounts".into(),
            format!("system:serviceaccounts:{namespace}"),
        ];
    }
    let impersonated = User {
        username: name,
        uid: uids.into_iter().next().unwrap_or_default(),
        groups,
        extra,
    };
    if impersonated.username == User::anonymous().username {
        return Ok(User {
            groups: vec![berth_auth::UNAUTHENTICATED.into()],
            ..impersonated
        });
    }
    Ok(authenticated(impersonated))
}

/// Upstream's sentence of a 403.
pub fn denied(user: &User, asked: &Attributes, reason: &str) -> String {
    let mut what = asked.resource.clone();
    if !asked.subresource.is_empty() {
        what = format!("{what}/{}", asked.subresource);
    }
    let place = if asked.namespace.is_empty() {
        "at the cluster scope".to_owned()
    } else {
        format!("in the namespace {:?}", asked.namespace)
    };
    let mut sentence = format!(
        "User {:?} cannot {} resource {what:?} in API group {:?} {place}",
        user.username, asked.verb, asked.group
    );
    if !reason.is_empty() {
        sentence = format!("{sentence}: {reason}");
    }
    sentence
}
