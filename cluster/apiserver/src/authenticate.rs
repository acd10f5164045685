//! Who asks: by client certificate, by token, or nobody; and on whose behalf.

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use berth_auth::{Attributes, Decision, User, bootstrap, x509};
use http::{HeaderMap, header};
use serde_json::Value;

use crate::{api::Api, catalog::REGISTRY, clock, failure::Failure, passage};

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
        return match websocket_token(headers)? {
            Some(token) => bearer(api, &token, &[]).await.map(|(user, _)| user),
            None => Ok(User::anonymous()),
        };
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

/// A browser can set no header of a WebSocket but its protocols: one of them may be a token (base64url, unpadded), beside the one that is spoken.
fn websocket_token(headers: &HeaderMap) -> Result<Option<String>, Failure> {
    let is_websocket = headers
        .get(header::UPGRADE)
        .is_some_and(|protocol| protocol.as_bytes().eq_ignore_ascii_case(b"websocket"));
    if !is_websocket || !passage::asks_to_upgrade(headers) {
        return Ok(None);
    }
    let (mut tokens, mut others) = (Vec::new(), 0);
    for value in headers.get_all(header::SEC_WEBSOCKET_PROTOCOL) {
        let value = value.to_str().map_err(|_| Failure::unauthorized())?;
        for protocol in value.split(',').map(str::trim) {
            match protocol.strip_prefix(passage::BEARER_PROTOCOL) {
                Some(token) => tokens.push(token),
                None => others += usize::from(!protocol.is_empty()),
            }
        }
    }
    let token = match tokens.as_slice() {
        [] => return Ok(None),
        [one] if others > 0 => BASE64_URL_SAFE_NO_PAD.decode(one).ok(),
        _ => None,
    };
    token
        .and_then(|token| String::from_utf8(token).ok())
        .filter(|token| !token.is_empty())
        .map(Some)
        .ok_or_else(Failure::unauthorized)
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
        groups = berth_auth::account_groups(namespace).into();
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_websocket_may_have_a_token_among_its_protocols() {
        // "secret"
        const TOKEN: &str = "base64url.bearer.authorization.k8s.io.c2VjcmV0";
        let refused = Err(401);
        for (upgrade, protocols, is) in [
            (
                "websocket",
                vec![TOKEN, "v5.channel.k8s.io"],
                Ok(Some("secret")),
            ),
            (
                "WebSocket",
                vec!["a, base64url.bearer.authorization.k8s.io.c2VjcmV0"],
                Ok(Some("secret")),
            ),
            ("websocket", vec!["v5.channel.k8s.io"], Ok(None)),
            ("websocket", vec![], Ok(None)),
            // of anything but a WebSocket it is no token
            ("SPDY/3.1", vec![TOKEN, "a"], Ok(None)),
            ("", vec![TOKEN, "a"], Ok(None)),
            // and half of one is none
            ("websocket", vec![TOKEN], refused),
            ("websocket", vec![TOKEN, TOKEN, "a"], refused),
            (
                "websocket",
                vec!["base64url.bearer.authorization.k8s.io.", "a"],
                refused,
            ),
            (
                "websocket",
                vec!["base64url.bearer.authorization.k8s.io.c2VjcmV0==", "a"],
                refused,
            ),
            (
                "websocket",
                vec!["base64url.bearer.authorization.k8s.io._w", "a"],
                refused,
            ),
        ] {
            let mut headers = HeaderMap::new();
            if !upgrade.is_empty() {
                headers.insert(header::CONNECTION, "Upgrade".parse().expect("a value"));
                headers.insert(header::UPGRADE, upgrade.parse().expect("a value"));
            }
            for protocol in &protocols {
                headers.append(
                    header::SEC_WEBSOCKET_PROTOCOL,
                    protocol.parse().expect("a value"),
                );
            }
            let token = websocket_token(&headers).map_err(|failure| failure.code);
            assert_eq!(
                token.as_ref().map(Option::as_deref),
                is.as_ref().map(|token| *token),
                "{upgrade} {protocols:?}"
            );
        }
    }
}
