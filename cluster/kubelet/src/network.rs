//! Whether pods can be attached to a network, as the runtime says.

use std::time::{Duration, Instant};

use berth_proto::cri::StatusResponse;
use tokio::sync::Mutex;

use crate::{Error, runtime::Runtime};

/// Upstream's: how old what is known may be. What is wrong may have been mended since, and is asked for sooner.
const GOOD_FOR: Duration = Duration::from_secs(5);
const BAD_FOR: Duration = Duration::from_secs(1);
/// Who does not say so by then, is tried.
const WITHIN: Duration = Duration::from_secs(5);

/// What was said last, and when.
#[derive(Debug, Default)]
pub(crate) struct Network(Mutex<Option<(Instant, Option<String>)>>);

impl Network {
    /// Why no pod can be attached, in upstream's words; none: there is no reason known.
    ///
    /// # Errors
    /// The runtime does not answer.
    pub async fn why_not(&self, runtime: &Runtime) -> Result<Option<String>, Error> {
        let mut last = self.0.lock().await;
        if let Some((at, why)) = &*last {
            let good_for = if why.is_none() { GOOD_FOR } else { BAD_FOR };
            if at.elapsed() < good_for {
                return Ok(why.clone());
            }
        }
        let why = match tokio::time::timeout(WITHIN, runtime.status()).await {
            Ok(status) => said(&status?),
            Err(_) => None,
        };
        *last = Some((Instant::now(), why.clone()));
        Ok(why)
    }
}

fn said(status: &StatusResponse) -> Option<String> {
    let conditions = &status.status.as_ref()?.conditions;
    let network = conditions.iter().find(|one| one.r#type == "NetworkReady")?;
    (!network.status).then(|| {
        format!(
            "container runtime network not ready: NetworkReady=false reason:{} message:{}",
            network.reason, network.message
        )
    })
}
