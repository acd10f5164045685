//! Each controller's own ServiceAccount, shown by tokens that are asked for, and asked for again before they end.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use berth_controllers::Callers;
use http::{HeaderValue, Request, header::AUTHORIZATION};
use k8s_openapi::{
    api::{
        authentication::v1::{TokenRequest, TokenRequestSpec},
        core::v1::ServiceAccount,
    },
    jiff::Timestamp,
};
use kube::{Api, Client, api::PostParams, client::Body};
use tokio::sync::Mutex;
use tower::service_fn;

const NAMESPACE: &str = "kube-system";
/// What a token is asked for; the server may say less.
const LIFETIME_S: i64 = 3600;
/// How much of a token's life is left when the next one is asked for: a fifth, as upstream's clients.
const RENEW: u32 = 5;
/// Between two tries to renew one that still holds.
const AGAIN: Duration = Duration::from_secs(10);

struct Token {
    header: HeaderValue,
    renew: Instant,
    end: Instant,
}

struct Account {
    name: String,
    manager: Client,
    token: Mutex<Option<Token>>,
}

/// `manager` makes the accounts and asks for their tokens; `nobody` leads to the same server and shows nothing of its own.
pub fn callers(manager: Client, nobody: Client) -> Callers {
    let makes = manager.clone();
    Callers::by_account(manager, move |name| {
        let account = Arc::new(Account {
            name: name.to_owned(),
            manager: makes.clone(),
            token: Mutex::default(),
        });
        let nobody = nobody.clone();
        let service = service_fn(move |mut request: Request<Body>| {
            let (account, nobody) = (account.clone(), nobody.clone());
            async move {
                let header = account.header().await?;
                request.headers_mut().insert(AUTHORIZATION, header);
                nobody.send(request).await
            }
        });
        Client::new(service, "default")
    })
}

impl Account {
    /// One asks, whoever else needs it waits.
    async fn header(&self) -> kube::Result<HeaderValue> {
        let mut held = self.token.lock().await;
        let now = Instant::now();
        if let Some(token) = held.as_ref().filter(|token| now < token.renew) {
            return Ok(token.header.clone());
        }
        match self.ask().await {
            Ok(token) => Ok(held.insert(token).header.clone()),
            Err(error) => match held.as_mut().filter(|token| now < token.end) {
                Some(token) => {
                    tracing::warn!(account = self.name, %error, "its token is not renewed yet");
                    token.renew = now + AGAIN;
                    Ok(token.header.clone())
                }
                None => Err(error),
            },
        }
    }

    async fn ask(&self) -> kube::Result<Token> {
        let accounts = Api::<ServiceAccount>::namespaced(self.manager.clone(), NAMESPACE);
        let wanted = TokenRequest {
            spec: Some(TokenRequestSpec {
                expiration_seconds: Some(LIFETIME_S),
                ..TokenRequestSpec::default()
            }),
            ..TokenRequest::default()
        };
        let params = PostParams::default();
        let asked = accounts.create_token_request(&self.name, &params, &wanted);
        let answer = match asked.await {
            Err(error) if has_code(&error, 404) => {
                let mut account = ServiceAccount::default();
                account.metadata.name = Some(self.name.clone());
                match accounts.create(&params, &account).await {
                    // somebody else was faster
                    Err(error) if !has_code(&error, 409) => return Err(error),
                    _ => {}
                }
                accounts
                    .create_token_request(&self.name, &params, &wanted)
                    .await?
            }
            answer => answer?,
        };
        let status = answer.status.unwrap_or_default();
        let token = status.token.unwrap_or_default();
        let mut header = HeaderValue::from_str(&format!("Bearer {token}"))
            .map_err(|error| kube::Error::Service(error.into()))?;
        header.set_sensitive(true);
        let end = status.expiration_timestamp.map(|time| time.0);
        let lasts = end.unwrap_or_default().duration_since(Timestamp::now());
        let lasts = Duration::try_from(lasts).unwrap_or_default();
        let now = Instant::now();
        Ok(Token {
            header,
            renew: now + (lasts - lasts / RENEW),
            end: now + lasts,
        })
    }
}

fn has_code(error: &kube::Error, code: u16) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == code)
}
