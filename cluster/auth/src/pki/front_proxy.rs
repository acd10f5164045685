//! Who this server is to API servers beside it, whom it tells on whose behalf it asks: by a CA of its own, so that no client of the cluster can be taken for it.

use std::time::Duration;

use super::{Identity, Pki};
use crate::Error;

/// The name in its certificate; the ConfigMap `extension-apiserver-authentication` tells it.
pub const FRONT_PROXY: &str = "front-proxy-client";

impl Pki {
    /// What servers beside this one know it by, in PEM.
    pub fn front_proxy_ca_pem(&self) -> &str {
        &self.front_pem
    }

    /// A certificate of [`FRONT_PROXY`]'s that holds for `valid`.
    pub fn front_proxy_client(&self, valid: Duration) -> Result<Identity, Error> {
        self.issue(&self.front, FRONT_PROXY, &[], valid)
    }
}
