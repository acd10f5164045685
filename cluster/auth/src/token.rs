//! Tokens of ServiceAccounts: JWTs signed with ES256, bound to an audience, a time and objects that must still be there.

use serde_json::Value;

use crate::{Error, User};

/// An object that a token lives and dies with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bound {
    /// serviceaccounts, pods, secrets or nodes.
    pub resource: &'static str,
    /// Empty for nodes.
    pub namespace: String,
    pub name: String,
    pub uid: String,
}

impl Bound {
    /// Whether `object`, as found under that name, is the one that was meant, and is not being deleted for longer than a token may
    /// outlive that (60 s). `now` in seconds since 1970.
    pub fn holds(&self, object: Option<&Value>, now: u64) -> bool {
        let _ = (object, now);
        false
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
pub struct Tokens {}

impl Tokens {
    /// `key` as of [`crate::Pki::token_key`]; `audiences`: the server's own.
    pub fn new(key: &[u8], issuer: String, audiences: Vec<String>) -> Result<Self, Error> {
        let _ = (key, issuer, audiences);
        Ok(Self {})
    }

    /// `now` in seconds since 1970.
    pub fn issue(&self, ask: &TokenAsk, now: u64) -> Result<Issued, Error> {
        let _ = (ask, now);
        Err(Error::Token("not built yet"))
    }

    /// `audiences`: of whom one must be meant; empty: the server's own.
    pub fn verify(&self, token: &str, audiences: &[String], now: u64) -> Result<Verified, Error> {
        let _ = (token, audiences, now);
        Err(Error::Token("not built yet"))
    }

    /// `/openid/v1/jwks`
    pub fn jwks(&self) -> Value {
        Value::Null
    }

    /// `/.well-known/openid-configuration`
    pub fn discovery(&self, jwks_uri: &str) -> Value {
        let _ = jwks_uri;
        Value::Null
    }
}
