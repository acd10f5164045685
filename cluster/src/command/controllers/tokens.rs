//! By what Secrets get the tokens of ServiceAccounts, by upstream's flags.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use berth_auth::{Tokens as Signer, pki};
use berth_controllers::AccountTokens;
use clap::Args;

use crate::{
    error::Error,
    host::{failed, file},
};

#[derive(Debug, Args)]
pub struct Tokens {
    /// The key by which the API server knows tokens of ServiceAccounts (PEM; of `berth up` it is DATA/pki/token.key): Secrets of the type
    /// kubernetes.io/service-account-token get theirs. Without it they get none
    #[arg(long, value_name = "FILE")]
    service_account_private_key_file: Option<PathBuf>,
    /// The CA that these Secrets tell of, by which the API server is known (PEM; of `berth up` it is DATA/pki/ca.crt)
    #[arg(long, value_name = "FILE")]
    root_ca_file: Option<PathBuf>,
}

impl Tokens {
    /// # Errors
    /// A file can't be read or used.
    pub fn read(&self) -> Result<Option<AccountTokens>, Error> {
        let key = self.service_account_private_key_file.as_deref();
        key.map(|key| read(key, self.root_ca_file.as_deref()))
            .transpose()
    }
}

/// # Errors
/// A file can't be read or used.
pub fn read(key: &Path, ca: Option<&Path>) -> Result<AccountTokens, Error> {
    let unusable = |error| failed(format!("cannot sign tokens by {}", key.display()), error);
    let bytes = pki::read_token_key(key).map_err(unusable)?;
    // what stands in a Secret names neither
    let signer = Signer::new(&bytes, String::new(), Vec::new()).map_err(unusable)?;
    let ca = ca.map(|path| fs::read(path).map_err(file("read", path)));
    Ok(AccountTokens {
        signer: Arc::new(signer),
        ca: ca.transpose()?,
    })
}
