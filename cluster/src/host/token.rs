//! Bootstrap tokens: what a machine shows that wants to become a node (Secrets of the type bootstrap.kubernetes.io/token in kube-system).

use std::{collections::BTreeMap, time::Duration};

use k8s_openapi::{
    api::core::v1::Secret, apimachinery::pkg::apis::meta::v1::ObjectMeta, jiff::Timestamp,
};
use kube::{Api, Client, api::PostParams};
use rustix::rand::{GetRandomFlags, getrandom};

use super::failed;
use crate::error::Error;

/// Of upstream's kubeadm: they may ask for a node's certificate, and get it.
const GROUP: &str = "system:bootstrappers:kubeadm:default-node-token";
const LETTERS: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";

/// `length` letters of [`LETTERS`], each as likely as any other.
fn letters(length: usize) -> Result<String, Error> {
    let mut text = String::with_capacity(length);
    while text.len() < length {
        let mut byte = [0];
        getrandom(&mut byte, GetRandomFlags::empty())
            .map_err(|error| failed("cannot make a token", error))?;
        // 252 is the greatest multiple of 36 that a byte holds
        if byte[0] < 252 {
            text.push(char::from(LETTERS[usize::from(byte[0] % 36)]));
        }
    }
    Ok(text)
}

/// A new token, `ID.SECRET`, that is good for `valid`.
///
/// # Errors
/// The server does not take it.
pub async fn create(client: Client, valid: Duration, description: &str) -> Result<String, Error> {
    let (id, secret) = (letters(6)?, letters(16)?);
    let until = Timestamp::now()
        .checked_add(valid)
        .map_err(|error| failed("cannot make a token that is good for so long", error))?;
    let until = Timestamp::from_second(until.as_second()).unwrap_or(until);
    let data = BTreeMap::from([
        ("token-id".to_owned(), id.clone()),
        ("token-secret".to_owned(), secret.clone()),
        ("expiration".to_owned(), until.to_string()),
        ("usage-bootstrap-authentication".to_owned(), "true".into()),
        ("auth-extra-groups".to_owned(), GROUP.into()),
        ("description".to_owned(), description.to_owned()),
    ]);
    let object = Secret {
        metadata: ObjectMeta {
            name: Some(format!("bootstrap-token-{id}")),
            namespace: Some("kube-system".into()),
            ..ObjectMeta::default()
        },
        type_: Some("bootstrap.kubernetes.io/token".into()),
        string_data: Some(data),
        ..Secret::default()
    };
    Api::<Secret>::namespaced(client, "kube-system")
        .create(&PostParams::default(), &object)
        .await
        .map_err(|error| failed("cannot make a token", error))?;
    Ok(format!("{id}.{secret}"))
}
