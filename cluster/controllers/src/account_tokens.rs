//! Secrets of the type `kubernetes.io/service-account-token`: each gets the token of the account that it names, and goes with that account.

use std::{fmt, sync::Arc};

use berth_auth::Tokens;
use k8s_openapi::{
    ByteString,
    api::core::v1::{Secret, ServiceAccount},
};
use kube::ResourceExt;

use crate::{
    Cache, Context, Error, Key, Queue,
    controller::{Controller, MANAGER, Next},
};

const TYPE: &str = "kubernetes.io/service-account-token";
const OF_THE_TYPE: &str = "type=kubernetes.io/service-account-token";
const NAME: &str = "kubernetes.io/service-account.name";
const UID: &str = "kubernetes.io/service-account.uid";

/// What Secrets' tokens are made of.
#[derive(Clone)]
pub struct AccountTokens {
    /// By the key by which the API server knows its own.
    pub signer: Arc<Tokens>,
    /// The CA by which a pod knows the server, in PEM; none: Secrets get none.
    pub ca: Option<Vec<u8>>,
}

impl fmt::Debug for AccountTokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AccountTokens").finish_non_exhaustive()
    }
}

pub(crate) struct TokenSecrets {
    context: Arc<Context>,
    /// None: there is no key, and so nothing is done.
    with: Option<With>,
}

struct With {
    tokens: AccountTokens,
    accounts: Cache<ServiceAccount>,
    secrets: Cache<Secret>,
}

/// What a Secret lacks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Lacks {
    ca: bool,
    namespace: bool,
    token: bool,
}

impl Lacks {
    fn of(secret: &Secret, ca: Option<&[u8]>) -> Self {
        let data = |name: &str| secret.data.as_ref()?.get(name).map(|it| it.0.as_slice());
        let is_empty = |name: &str| data(name).is_none_or(<[u8]>::is_empty);
        Self {
            ca: ca.is_some_and(|ca| data("ca.crt") != Some(ca)),
            namespace: is_empty("namespace"),
            token: is_empty("token"),
        }
    }

    fn nothing(self) -> bool {
        !(self.ca || self.namespace || self.token)
    }
}

fn annotation<'a>(secret: &'a Secret, name: &str) -> &'a str {
    secret.annotations().get(name).map_or("", String::as_str)
}

fn is_of_the_type(secret: &Secret) -> bool {
    secret.type_.as_deref() == Some(TYPE)
}

/// Whether it is the account that the Secret means: by its name, and by its uid where it has one.
fn is_of(secret: &Secret, account: &ServiceAccount) -> bool {
    let uid = annotation(secret, UID);
    annotation(secret, NAME) == account.name_any()
        && (uid.is_empty() || account.metadata.uid.as_deref() == Some(uid))
}

fn refers_to(account: &ServiceAccount, secret: &str) -> bool {
    let mut secrets = account.secrets.iter().flatten();
    secrets.any(|it| it.name.as_deref() == Some(secret))
}

impl Controller for TokenSecrets {
    const NAME: &'static str = "serviceaccount-token-controller";
    /// It makes what accounts are known by: none has it for itself.
    const ACCOUNT: &'static str = MANAGER;

    fn new(context: Arc<Context>, queue: Queue) -> Self {
        let Some(tokens) = context.options().account_tokens.clone() else {
            tracing::info!(
                "there is no key for tokens: Secrets of the type {TYPE} get none (--service-account-private-key-file)"
            );
            return Self {
                context,
                with: None,
            };
        };
        let accounts = context.cache::<ServiceAccount>();
        let secrets = context.cache_where::<Secret>(OF_THE_TYPE);
        queue.follow(&secrets);
        let known = secrets.clone();
        accounts.on_change(move |old, new| {
            // one of the name that has another uid is another one
            let Some(account) = new.or(old) else { return };
            let namespace = account.namespace().unwrap_or_default();
            for secret in known.in_namespace(&namespace) {
                if annotation(&secret, NAME) == account.name_any() {
                    queue.add(Key::of(&*secret));
                }
            }
        });
        let with = Some(With {
            tokens,
            accounts,
            secrets,
        });
        Self { context, with }
    }

    async fn reconcile(&self, key: &Key) -> Result<Next, Error> {
        let Some(with) = &self.with else {
            return Ok(Next::Settled);
        };
        let secret = with.secrets.get(key).filter(|it| is_of_the_type(it));
        let Some(secret) = secret else {
            self.unmention(with, key).await?;
            return Ok(Next::Settled);
        };
        if secret.metadata.deletion_timestamp.is_some() {
            return Ok(Next::Settled);
        }
        let Some(account) = self.account(with, &secret).await? else {
            let message = "its account is not there: it is deleted";
            tracing::info!(secret = %key, account = annotation(&secret, NAME), message);
            // another has its name by now, or somebody has deleted it
            return match self.context.delete(&*secret, None).await {
                Err(error) if !error.is_conflict() => Err(error),
                _ => Ok(Next::Settled),
            };
        };
        let ca = with.tokens.ca.as_deref();
        if Lacks::of(&secret, ca).nothing() {
            return Ok(Next::Settled);
        }
        // a token that somebody has put there meanwhile stays
        let mut live = match self.context.read::<Secret>(key).await {
            Err(error) if error.is_not_found() => return Ok(Next::Settled),
            live => live?,
        };
        let lacks = Lacks::of(&live, ca);
        if live.metadata.uid != secret.metadata.uid || lacks.nothing() {
            return Ok(Next::Settled);
        }
        fill(&mut live, &account, &with.tokens, lacks)?;
        match self.context.update(&live).await {
            Err(error) if error.is_not_found() => Ok(Next::Settled),
            written => written.map(|_| Next::Settled),
        }
    }
}

impl TokenSecrets {
    /// The server is asked before it is said that there is none: a Secret is often made in the moment after its account.
    async fn account(
        &self,
        with: &With,
        secret: &Secret,
    ) -> Result<Option<Arc<ServiceAccount>>, Error> {
        let namespace = secret.namespace().unwrap_or_default();
        let key = Key::new(&namespace, annotation(secret, NAME));
        if let Some(known) = with.accounts.get(&key).filter(|it| is_of(secret, it)) {
            return Ok(Some(known));
        }
        match self.context.read::<ServiceAccount>(&key).await {
            Err(error) if error.is_not_found() => Ok(None),
            read => Ok(Some(read?).filter(|it| is_of(secret, it)).map(Arc::new)),
        }
    }

    /// Accounts mention no Secret of the type that has gone.
    async fn unmention(&self, with: &With, key: &Key) -> Result<(), Error> {
        let accounts = with.accounts.in_namespace(&key.namespace);
        for account in accounts.iter().filter(|it| refers_to(it, &key.name)) {
            match self.context.read::<Secret>(key).await {
                Err(error) if error.is_not_found() => {}
                read => return read.map(drop),
            }
            let mut account = ServiceAccount::clone(account);
            if let Some(secrets) = &mut account.secrets {
                secrets.retain(|it| it.name.as_deref() != Some(key.name.as_str()));
            }
            match self.context.update(&account).await {
                Err(error) if error.is_not_found() => {}
                written => written.map(drop)?,
            }
        }
        Ok(())
    }
}

fn fill(
    secret: &mut Secret,
    account: &ServiceAccount,
    with: &AccountTokens,
    lacks: Lacks,
) -> Result<(), Error> {
    let (name, namespace) = (secret.name_any(), secret.namespace().unwrap_or_default());
    let account_name = account.name_any();
    let uid = account.metadata.uid.clone().unwrap_or_default();
    let data = secret.data.get_or_insert_default();
    if let (true, Some(ca)) = (lacks.ca, &with.ca) {
        data.insert("ca.crt".into(), ByteString(ca.clone()));
    }
    if lacks.namespace {
        let bytes = namespace.clone().into_bytes();
        data.insert("namespace".into(), ByteString(bytes));
    }
    if lacks.token {
        let token = with
            .signer
            .issue_kept(&namespace, &account_name, &uid, &name)
            .map_err(|error| Error::Other(format!("sign a token for {account_name}: {error}")))?;
        data.insert("token".into(), ByteString(token.into_bytes()));
    }
    let annotations = secret.annotations_mut();
    annotations.insert(NAME.into(), account_name);
    annotations.insert(UID.into(), uid);
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn secret(uid: Option<&str>, data: Value) -> Secret {
        let mut secret = json!({
            "metadata": {"name": "s", "namespace": "d", "annotations": {NAME: "robot"}},
            "type": TYPE, "data": data,
        });
        if let Some(uid) = uid {
            secret["metadata"]["annotations"][UID] = uid.into();
        }
        serde_json::from_value(secret).expect("a Secret")
    }

    fn account(name: &str, uid: &str) -> ServiceAccount {
        let account = json!({
            "metadata": {"name": name, "namespace": "d", "uid": uid},
            "secrets": [{"name": "s"}],
        });
        serde_json::from_value(account).expect("an account")
    }

    #[test]
    fn a_secret_is_of_the_account_of_its_name_and_uid() {
        let robot = account("robot", "1");
        assert!(is_of(&secret(None, json!({})), &robot));
        assert!(is_of(&secret(Some("1"), json!({})), &robot));
        assert!(!is_of(&secret(Some("2"), json!({})), &robot));
        assert!(!is_of(
            &secret(Some("1"), json!({})),
            &account("other", "1")
        ));
        assert!(refers_to(&robot, "s") && !refers_to(&robot, "t"));
    }

    #[test]
    fn what_a_secret_lacks_is_what_is_empty_and_a_ca_of_others() {
        let (own, other) = (Some(&b"own"[..]), Some(&b"other"[..]));
        let whole = secret(
            None,
            json!({"token": "dA==", "namespace": "ZA==", "ca.crt": "b3du"}),
        );
        assert!(Lacks::of(&whole, own).nothing());
        assert!(Lacks::of(&whole, None).nothing());
        assert!(Lacks::of(&whole, other).ca);
        let empty = secret(None, json!({"token": ""}));
        let lacks = Lacks::of(&empty, own);
        assert!(lacks.ca && lacks.namespace && lacks.token);
        assert!(!Lacks::of(&empty, None).ca);
    }
}
