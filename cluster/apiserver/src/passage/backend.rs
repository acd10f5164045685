//! Where a request goes on to.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use super::{Trust, may_be_called, may_be_dialled};
use crate::failure::Failure;

/// A name must be resolved within it.
const RESOLVE_WITHIN: Duration = Duration::from_secs(5);
/// Addresses of one name that are tried.
const MOST_ADDRESSES: usize = 4;

#[derive(Debug, Clone)]
pub struct Backend {
    /// Checked: these are dialled, and no name is asked again.
    pub addresses: Vec<SocketAddr>,
    /// As the other side is called: its `Host`, and what its certificate must say.
    pub host: String,
    pub port: u16,
    pub trust: Trust,
}

impl Backend {
    /// # Errors
    /// 400 where its address may not be dialled, 503 where its name has none.
    pub async fn at(host: &str, port: u16, trust: Trust) -> Result<Self, Failure> {
        Self::checked(host, port, trust, may_be_dialled).await
    }

    /// One whose address is an admin's choice.
    ///
    /// # Errors
    /// As [`Self::at`]'s.
    pub async fn of_admin(host: &str, port: u16, trust: Trust) -> Result<Self, Failure> {
        Self::checked(host, port, trust, may_be_called).await
    }

    async fn checked(
        host: &str,
        port: u16,
        trust: Trust,
        allowed: fn(IpAddr) -> bool,
    ) -> Result<Self, Failure> {
        let resolved: Vec<IpAddr> = match host.parse::<IpAddr>() {
            Ok(address) => vec![address],
            Err(_) => resolve(host, port).await?,
        };
        // One that may not be is enough: a name that leads here and there is somebody's trick.
        if !resolved.iter().copied().all(allowed) {
            return Err(Failure::bad_request(format!(
                "address not allowed: {host} is one of this machine, of its link or of a metadata service"
            )));
        }
        Ok(Self {
            addresses: resolved
                .into_iter()
                .take(MOST_ADDRESSES)
                .map(|address| SocketAddr::new(address, port))
                .collect(),
            host: host.to_owned(),
            port,
            trust,
        })
    }

    pub fn authority(&self) -> String {
        match self.host.parse::<std::net::Ipv6Addr>() {
            Ok(address) => format!("[{address}]:{}", self.port),
            Err(_) => format!("{}:{}", self.host, self.port),
        }
    }

    pub fn scheme(&self) -> &'static str {
        match self.trust {
            Trust::Plain => "http",
            _ => "https",
        }
    }
}

async fn resolve(host: &str, port: u16) -> Result<Vec<IpAddr>, Failure> {
    let unknown =
        |why: &dyn std::fmt::Display| Failure::unreached(format!("dial tcp: lookup {host}: {why}"));
    let looked_up = tokio::time::timeout(RESOLVE_WITHIN, tokio::net::lookup_host((host, port)));
    let addresses: Vec<IpAddr> = match looked_up.await {
        Ok(Ok(found)) => found.map(|address| address.ip()).collect(),
        Ok(Err(error)) => return Err(unknown(&error)),
        Err(_) => return Err(unknown(&"i/o timeout")),
    };
    if addresses.is_empty() {
        return Err(unknown(&"no such host"));
    }
    Ok(addresses)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_name_of_this_machine_is_as_little_dialled_as_its_address_sec_api_03() {
        for host in ["127.0.0.1", "::1", "localhost", "169.254.169.254"] {
            let refused = Backend::at(host, 10250, Trust::Plain)
                .await
                .expect_err(host);
            assert_eq!(refused.code, 400, "{refused}");
            assert!(
                refused.message.starts_with("address not allowed"),
                "{refused}"
            );
        }
        let v6 = Backend::at("2001:db8::1", 1, Trust::Plain)
            .await
            .expect("it may be");
        assert_eq!(v6.authority(), "[2001:db8::1]:1");
    }
}
