//! Tokens of ServiceAccounts: JWTs signed with ES256, bound to an audience, a time and objects that must still be there.

use std::collections::BTreeMap;

use base64::{
    Engine,
    prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD as BASE64},
};
use ring::{
    rand::{SecureRandom, SystemRandom},
    signature::{self, EcdsaKeyPair, KeyPair, UnparsedPublicKey},
};
use serde_json::{Value, json};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use crate::{Error, User, rbac::SERVICE_ACCOUNT_PREFIX};

/// What TokenRequest allows, in seconds.
pub const MIN_EXPIRATION: u64 = 600;
pub const MAX_EXPIRATION: u64 = 1 << 32;
const DEFAULT_EXPIRATION: u64 = 3600;

/// Longer ones are not looked at: ours have some hundred bytes.
const MAX_TOKEN: usize = 16 << 10;

/// How long a token outlives the deletion of what it is bound to, in seconds: what ends gracefully still has things to do.
const DELETION_LEEWAY: u64 = 60;

const ALGORITHM: &str = "ES256";

/// Who issues the tokens that stand in Secrets: kube-controller-manager, with the server's key.
const OF_SECRETS: &str = "kubernetes/serviceaccount";
/// … until a Secret that nobody used has this label.
const INVALID: &str = "kubernetes.io/legacy-token-invalid-since";

/// Before the point of a P-256 key in its SubjectPublicKeyInfo (RFC 5480).
const P256: [u8; 26] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a,
    0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];

/// An object that a token lives and dies with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bound {
    /// serviceaccounts, pods, secrets or nodes.
    pub resource: &'static str,
    /// Empty for nodes.
    pub namespace: String,
    pub name: String,
    /// Empty: of a Secret that has the token itself.
    pub uid: String,
    /// The token, where the Secret must have it.
    pub kept: Option<String>,
}

impl Bound {
    /// Whether `object`, as found under that name, is the one that was meant, and is not being deleted for longer than a token may
    /// outlive that (60 s; one that stands in a Secret doesn't outlive it). `now` in seconds since 1970.
    pub fn holds(&self, object: Option<&Value>, now: u64) -> bool {
        let Some((object, metadata)) = object.map(|object| (object, &object["metadata"])) else {
            return false;
        };
        if let Some(token) = &self.kept {
            return metadata["deletionTimestamp"].is_null()
                && metadata["labels"][INVALID].is_null()
                && object["data"]["token"] == BASE64_STANDARD.encode(token);
        }
        let leaving = match metadata["deletionTimestamp"].as_str() {
            Some(since) => seconds(since).is_none_or(|since| now > since + DELETION_LEEWAY),
            None => false,
        };
        !self.uid.is_empty() && metadata["uid"] == self.uid && !leaving
    }
}

/// What a token is asked for.
#[derive(Debug, Clone, Default)]
pub struct TokenAsk {
    pub namespace: String,
    pub service_account: String,
    pub service_account_uid: String,
    /// Empty: the server's own.
    pub audiences: Vec<String>,
    /// In seconds; 0: an hour.
    pub expiration: u64,
    /// The pod, Secret or node (name, uid) that it is bound to: at most one of them, but that of a pod says its node too.
    pub pod: Option<(String, String)>,
    pub secret: Option<(String, String)>,
    pub node: Option<(String, String)>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Issued {
    pub token: String,
    /// In seconds since 1970.
    pub expires: u64,
}

/// A token whose signature, time, issuer and audience are good. It holds only while each of `bound` does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified {
    pub user: User,
    /// Those asked for that the token has.
    pub audiences: Vec<String>,
    pub bound: Vec<Bound>,
}

#[derive(Debug)]
pub struct Tokens {
    key: EcdsaKeyPair,
    /// Which key it is, for the header: as Kubernetes' own components call it, by its SubjectPublicKeyInfo.
    kid: String,
    /// … and as it was called before.
    kid_before: String,
    issuer: String,
    audiences: Vec<String>,
    random: SystemRandom,
}

impl Tokens {
    /// `key` as of [`crate::Pki::token_key`]; `audiences`: the server's own.
    pub fn new(key: &[u8], issuer: String, audiences: Vec<String>) -> Result<Self, Error> {
        let random = SystemRandom::new();
        let key =
            EcdsaKeyPair::from_pkcs8(&signature::ECDSA_P256_SHA256_FIXED_SIGNING, key, &random)
                .map_err(|e| Error::Certificate {
                    act: "read the key of the tokens",
                    why: e.to_string(),
                })?;
        let digest =
            |bytes: &[u8]| BASE64.encode(ring::digest::digest(&ring::digest::SHA256, bytes));
        let point = key.public_key().as_ref();
        Ok(Self {
            kid: digest(&[&P256, point].concat()),
            kid_before: digest(point),
            key,
            issuer,
            audiences,
            random,
        })
    }

    /// `now` in seconds since 1970.
    pub fn issue(&self, ask: &TokenAsk, now: u64) -> Result<Issued, Error> {
        let lives = match ask.expiration {
            0 => DEFAULT_EXPIRATION,
            short if short < MIN_EXPIRATION => {
                return Err(Error::Invalid(
                    "spec.expirationSeconds: may not specify a duration less than 10 minutes"
                        .to_owned(),
                ));
            }
            long if long > MAX_EXPIRATION => {
                return Err(Error::Invalid(
                    "spec.expirationSeconds: may not specify a duration larger than 2^32 seconds"
                        .to_owned(),
                ));
            }
            lives => lives,
        };
        let expires = now + lives;
        let object = |(name, uid): &(String, String)| json!({ "name": name, "uid": uid });
        let mut bound = json!({
            "namespace": ask.namespace,
            "serviceaccount": { "name": ask.service_account, "uid": ask.service_account_uid },
        });
        for (field, of) in [
            ("pod", &ask.pod),
            ("secret", &ask.secret),
            ("node", &ask.node),
        ] {
            if let Some(of) = of {
                bound[field] = object(of);
            }
        }
        let audiences = match ask.audiences.is_empty() {
            true => &self.audiences,
            false => &ask.audiences,
        };
        let claims = json!({
            "aud": audiences,
            "exp": expires,
            "iat": now,
            "nbf": now,
            "iss": self.issuer,
            "jti": self.id()?,
            "sub": format!("{SERVICE_ACCOUNT_PREFIX}{}:{}", ask.namespace, ask.service_account),
            "kubernetes.io": bound,
        });
        let token = self.signed(&claims)?;
        Ok(Issued { token, expires })
    }

    /// The token that is to stand in the Secret of this name, of the type `kubernetes.io/service-account-token`: it has no end but the Secret's.
    ///
    /// # Errors
    /// It can't be signed.
    pub fn issue_kept(
        &self,
        namespace: &str,
        account: &str,
        account_uid: &str,
        secret: &str,
    ) -> Result<String, Error> {
        self.signed(&json!({
            "iss": OF_SECRETS,
            "kubernetes.io/serviceaccount/namespace": namespace,
            "kubernetes.io/serviceaccount/secret.name": secret,
            "kubernetes.io/serviceaccount/service-account.name": account,
            "kubernetes.io/serviceaccount/service-account.uid": account_uid,
            "sub": format!("{SERVICE_ACCOUNT_PREFIX}{namespace}:{account}"),
        }))
    }

    fn signed(&self, claims: &Value) -> Result<String, Error> {
        let header = json!({ "alg": ALGORITHM, "kid": self.kid });
        let mut token = format!(
            "{}.{}",
            BASE64.encode(header.to_string()),
            BASE64.encode(claims.to_string())
        );
        let signature = self
            .key
            .sign(&self.random, token.as_bytes())
            .map_err(|_| Error::Token("it can't be signed"))?;
        token.push('.');
        token.push_str(&BASE64.encode(signature));
        Ok(token)
    }

    /// Random, in the form of a UUID.
    fn id(&self) -> Result<String, Error> {
        let mut bytes = [0; 16];
        self.random
            .fill(&mut bytes)
            .map_err(|_| Error::Token("there are no random numbers"))?;
        bytes[6] = bytes[6] & 0x0f | 0x40;
        bytes[8] = bytes[8] & 0x3f | 0x80;
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        Ok([
            &hex[..8],
            &hex[8..12],
            &hex[12..16],
            &hex[16..20],
            &hex[20..],
        ]
        .join("-"))
    }

    /// `audiences`: of whom one must be meant; empty: the server's own.
    pub fn verify(&self, token: &str, audiences: &[String], now: u64) -> Result<Verified, Error> {
        let claims = self.claims(token)?;
        if claims["iss"] == OF_SECRETS {
            return self.verify_kept(token, &claims, audiences);
        }
        let number = |name: &str| claims[name].as_u64();
        // Who issued it is who reads it: their clocks are one.
        if number("exp").is_none_or(|end| now >= end) {
            return Err(Error::Token("it has expired"));
        }
        if number("nbf").is_none_or(|begin| now < begin) {
            return Err(Error::Token("it doesn't hold yet"));
        }
        if claims["iss"] != self.issuer {
            return Err(Error::Token("it is of another issuer"));
        }
        let meant = match audiences.is_empty() {
            true => &self.audiences[..],
            false => audiences,
        };
        let has: Vec<&str> = match &claims["aud"] {
            Value::String(one) => vec![one],
            several => several
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(Value::as_str)
                .collect(),
        };
        let audiences: Vec<String> = meant
            .iter()
            .filter(|audience| has.contains(&audience.as_str()))
            .cloned()
            .collect();
        if audiences.is_empty() {
            return Err(Error::Token("it is meant for others"));
        }
        let (user, bound) = who(&claims)?;
        Ok(Verified {
            user,
            audiences,
            bound,
        })
    }

    /// One that stands in a Secret of the type `kubernetes.io/service-account-token`: it is the server's own audiences', and has no end but the Secret's.
    fn verify_kept(
        &self,
        token: &str,
        claims: &Value,
        audiences: &[String],
    ) -> Result<Verified, Error> {
        // who makes them says none of these
        if ["aud", "exp", "nbf"]
            .iter()
            .any(|claim| !claims[*claim].is_null())
        {
            return Err(Error::Token("it says more than a Secret's token does"));
        }
        let own = self.audiences.iter();
        let audiences: Vec<String> = own
            .filter(|own| audiences.is_empty() || audiences.contains(own))
            .cloned()
            .collect();
        if audiences.is_empty() {
            return Err(Error::Token("it is meant for others"));
        }
        let claim = |name: &str| -> Result<String, Error> {
            claims[format!("kubernetes.io/serviceaccount/{name}")]
                .as_str()
                .filter(|text| !text.is_empty())
                .map(str::to_owned)
                .ok_or(Error::Token("it doesn't say whose it is"))
        };
        let namespace = claim("namespace")?;
        let mut account = json!({"serviceaccount": {
            "name": claim("service-account.name")?,
            "uid": claim("service-account.uid")?,
        }});
        account["namespace"] = namespace.as_str().into();
        let said = json!({"sub": claims["sub"], "kubernetes.io": account});
        let (mut user, mut bound) = who(&said)?;
        user.extra.clear();
        bound.push(Bound {
            resource: "secrets",
            namespace,
            name: claim("secret.name")?,
            uid: String::new(),
            kept: Some(token.to_owned()),
        });
        Ok(Verified {
            user,
            audiences,
            bound,
        })
    }

    /// What a token says whose signature is good.
    fn claims(&self, token: &str) -> Result<Value, Error> {
        const MALFORMED: Error = Error::Token("it is no JWT");
        if token.len() > MAX_TOKEN {
            return Err(MALFORMED);
        }
        let (signed, signature) = token.rsplit_once('.').ok_or(MALFORMED)?;
        let (header, claims) = signed.split_once('.').ok_or(MALFORMED)?;
        let decode = |part: &str| BASE64.decode(part).map_err(|_| MALFORMED);
        let parse = |part: &str| -> Result<Value, Error> {
            serde_json::from_slice(&decode(part)?).map_err(|_| MALFORMED)
        };
        let header = parse(header)?;
        // The key decides about the algorithm, never the token: neither `none` nor a secret made of the public key.
        if header["alg"] != ALGORITHM {
            return Err(Error::Token("it is not signed with ES256"));
        }
        if header["kid"] != self.kid && header["kid"] != self.kid_before {
            return Err(Error::Token("it is signed with another key"));
        }
        if !header["crit"].is_null() {
            return Err(Error::Token("it asks for what isn't understood"));
        }
        UnparsedPublicKey::new(
            &signature::ECDSA_P256_SHA256_FIXED,
            self.key.public_key().as_ref(),
        )
        .verify(signed.as_bytes(), &decode(signature)?)
        .map_err(|_| Error::Token("its signature is wrong"))?;
        parse(claims)
    }

    /// `/openid/v1/jwks`
    pub fn jwks(&self) -> Value {
        // An uncompressed point: 4, x, y.
        let (x, y) = self.key.public_key().as_ref()[1..].split_at(32);
        json!({ "keys": [{
            "use": "sig",
            "kty": "EC",
            "kid": self.kid,
            "crv": "P-256",
            "alg": ALGORITHM,
            "x": BASE64.encode(x),
            "y": BASE64.encode(y),
        }] })
    }

    /// `/.well-known/openid-configuration`
    pub fn discovery(&self, jwks_uri: &str) -> Value {
        json!({
            "issuer": self.issuer,
            "jwks_uri": jwks_uri,
            "response_types_supported": ["id_token"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": [ALGORITHM],
        })
    }
}

fn who(claims: &Value) -> Result<(User, Vec<Bound>), Error> {
    let private = &claims["kubernetes.io"];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let namespace = text(&private["namespace"]);
    let account = &private["serviceaccount"];
    let name = text(&account["name"]);
    let user = User::service_account(&namespace, &name);
    if namespace.is_empty() || name.is_empty() || claims["sub"] != user.username {
        return Err(Error::Token("it is of no ServiceAccount"));
    }
    let mut bound = vec![Bound {
        resource: "serviceaccounts",
        namespace: namespace.clone(),
        name,
        uid: text(&account["uid"]),
        kept: None,
    }];
    let mut extra = BTreeMap::from([(
        crate::CREDENTIAL_ID.to_owned(),
        vec![format!("JTI={}", text(&claims["jti"]))],
    )]);
    for (field, resource) in [("pod", "pods"), ("secret", "secrets"), ("node", "nodes")] {
        let object = &private[field];
        if object.is_null() {
            continue;
        }
        let (name, uid) = (text(&object["name"]), text(&object["uid"]));
        if field != "secret" {
            for (what, value) in [("name", &name), ("uid", &uid)] {
                extra.insert(
                    format!("authentication.kubernetes.io/{field}-{what}"),
                    vec![value.clone()],
                );
            }
        }
        // The node of a token that is bound to a pod says where it runs: with the pod gone it is gone too.
        if field == "node" && !private["pod"].is_null() {
            continue;
        }
        bound.push(Bound {
            resource,
            namespace: if field == "node" {
                String::new()
            } else {
                namespace.clone()
            },
            name,
            uid,
            kept: None,
        });
    }
    let user = User {
        uid: text(&account["uid"]),
        extra,
        ..user
    };
    Ok((user, bound))
}

/// Since 1970, of a time as the API writes it.
pub(crate) fn seconds(text: &str) -> Option<u64> {
    let time = OffsetDateTime::parse(text, &Rfc3339).ok()?;
    u64::try_from(time.unix_timestamp()).ok()
}

#[cfg(test)]
mod tests;
