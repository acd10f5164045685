//! Tokens by which a node joins: `ID.SECRET`, kept as the Secret `bootstrap-token-ID` in kube-system.

use base64::{Engine, prelude::BASE64_STANDARD};
use serde_json::Value;
use subtle::ConstantTimeEq;

use crate::{AUTHENTICATED, Error, User, token::seconds};

/// Of the Secrets that hold them.
pub const SECRET_TYPE: &str = "bootstrap.kubernetes.io/token";
pub const NAMESPACE: &str = "kube-system";

const USER_PREFIX: &str = "system:bootstrap:";
const GROUP: &str = "system:bootstrappers";

/// The name of the Secret that `token` belongs to, where it has the form of a bootstrap token (6 and 16 of `[a-z0-9]`).
pub fn secret_name(token: &str) -> Option<String> {
    let (id, secret) = token.split_once('.')?;
    let fits = |text: &str, len| {
        text.len() == len
            && text
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
    };
    (fits(id, 6) && fits(secret, 16)).then(|| format!("bootstrap-token-{id}"))
}

/// Who `token` is, by the Secret of [`secret_name`] as the API has it (`data` in base64). `now` in seconds since 1970. What is secret is compared in
/// constant time.
pub fn authenticate(token: &str, secret: Option<&Value>, now: u64) -> Result<User, Error> {
    let name =
        secret_name(token).ok_or(Error::Token("it has not the form of a bootstrap token"))?;
    let (id, offered) = token.split_once('.').unwrap_or_default();
    let secret = secret.ok_or(Error::Token("there is no such bootstrap token"))?;
    if secret["type"] != SECRET_TYPE
        || secret["metadata"]["name"] != name
        || secret["metadata"]["namespace"] != NAMESPACE
    {
        return Err(Error::Token("its Secret is none of a bootstrap token"));
    }
    if secret["metadata"]["deletionTimestamp"].is_string() {
        return Err(Error::Token("its Secret is being deleted"));
    }
    let data = |key: &str| -> Vec<u8> {
        let encoded = secret["data"][key].as_str().unwrap_or_default();
        BASE64_STANDARD.decode(encoded).unwrap_or_default()
    };
    let kept = data("token-secret");
    if kept.is_empty() || !bool::from(kept.ct_eq(offered.as_bytes())) {
        return Err(Error::Token("its secret is another"));
    }
    if data("token-id") != id.as_bytes() {
        return Err(Error::Token("its Secret has another id"));
    }
    let expiration = String::from_utf8(data("expiration")).unwrap_or_default();
    if !expiration.is_empty() {
        match seconds(&expiration) {
            Some(end) if now < end => {}
            Some(_) => return Err(Error::Token("it has expired")),
            None => return Err(Error::Token("its expiration is no time")),
        }
    }
    if data("usage-bootstrap-authentication") != b"true" {
        return Err(Error::Token("it is not for authentication"));
    }
    let mut groups = vec![GROUP.to_owned()];
    let extra = String::from_utf8(data("auth-extra-groups")).unwrap_or_default();
    for group in extra.split(',').map(str::trim).filter(|g| !g.is_empty()) {
        if !group_fits(group) {
            return Err(Error::Token("one of its groups may not be given"));
        }
        if !groups.iter().any(|other| other == group) {
            groups.push(group.to_owned());
        }
    }
    groups.push(AUTHENTICATED.to_owned());
    Ok(User {
        username: format!("{USER_PREFIX}{id}"),
        groups,
        ..User::default()
    })
}

/// `system:bootstrappers:` and up to 256 of `[a-z0-9:-]`, the last no `:` or `-`.
fn group_fits(group: &str) -> bool {
    group
        .strip_prefix(GROUP)
        .and_then(|rest| rest.strip_prefix(':'))
        .is_some_and(|rest| {
            let fits = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
            rest.len() <= 256
                && rest.bytes().all(|b| fits(b) || b == b':' || b == b'-')
                && rest.bytes().next_back().is_some_and(fits)
        })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn secret() -> Value {
        let encode = |text: &str| BASE64_STANDARD.encode(text);
        json!({
            "metadata": { "name": "bootstrap-token-abcdef", "namespace": "kube-system" },
            "type": SECRET_TYPE,
            "data": {
                "token-id": encode("abcdef"),
                "token-secret": encode("0123456789abcdef"),
                "expiration": encode("2026-11-22T00:00:00Z"),
                "usage-bootstrap-authentication": encode("true"),
                "auth-extra-groups": encode("system:bootstrappers:workers"),
            },
        })
    }

    const BEFORE: u64 = 1_795_305_599;

    #[test]
    fn a_token_is_its_id_and_its_groups() {
        let user = authenticate("abcdef.0123456789abcdef", Some(&secret()), BEFORE).unwrap();
        assert_eq!(user.username, "system:bootstrap:abcdef");
        assert_eq!(
            user.groups,
            [GROUP, "system:bootstrappers:workers", AUTHENTICATED]
        );
    }

    #[test]
    fn sec_api_08_whatever_is_wrong_with_it_refuses_a_token() {
        let token = "abcdef.0123456789abcdef";
        assert!(authenticate(token, None, BEFORE).is_err());
        assert!(authenticate(token, Some(&secret()), BEFORE + 1).is_err());
        for wrong in [
            "abcdef.0123456789abcdeg",
            "abcdef.0123456789abcde",
            "abcdef.",
            "abcdef",
            "abcdeg.0123456789abcdef",
            "ABCDEF.0123456789abcdef",
            "abcdef.0123456789abcdef\n",
            "",
        ] {
            assert!(
                authenticate(wrong, Some(&secret()), BEFORE).is_err(),
                "{wrong:?}"
            );
        }
        let change = |pointer: &str, value: Value| {
            let mut secret = secret();
            *secret.pointer_mut(pointer).unwrap() = value;
            secret
        };
        for changed in [
            change("/type", json!("Opaque")),
            change("/metadata/namespace", json!("default")),
            change("/metadata/name", json!("bootstrap-token-other1")),
            change("/data/token-secret", json!("")),
            change("/data/token-secret", json!(null)),
            change("/data/token-id", json!("eHh4eHh4")),
            change("/data/expiration", json!(BASE64_STANDARD.encode("soon"))),
            change("/data/usage-bootstrap-authentication", json!("")),
            change(
                "/data/auth-extra-groups",
                json!(BASE64_STANDARD.encode("system:masters")),
            ),
            change(
                "/data/auth-extra-groups",
                json!(BASE64_STANDARD.encode("system:bootstrappers:a-")),
            ),
        ] {
            assert!(
                authenticate(token, Some(&changed), BEFORE).is_err(),
                "{changed}"
            );
        }
        let mut leaving = secret();
        leaving["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        assert!(authenticate(token, Some(&leaving), BEFORE).is_err());
    }
}
