//! Bandwidth (`kubernetes.io/{ingress,egress}-bandwidth`): a token bucket at each end of the pod's pair. What is for the pod leaves the host by the host's
//! end; what the pod sends, by its own. So packets wait before they are lost, and both buckets go with the pair. The price: a container with NET_ADMIN can
//! take away the one at its own end. (CNI's plugin has a link more a pod for it, on the host.)

use std::io;

use netlink_packet_core::{DefaultNla, NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::{
    RouteNetlinkMessage,
    tc::{TcAttribute, TcHandle, TcMessage, TcOption},
};

use nix::libc;

use super::Inner;
use crate::{Bandwidth, Error, INTERFACE, link::Link, netlink::Socket};

/// include/uapi/linux/pkt_sched.h
const TCA_TBF_PARMS: u16 = 1;
const TCA_TBF_RATE64: u16 = 4;
const TCA_TBF_BURST: u16 = 6;
/// 1:0, what tc calls a link's first own discipline.
const HANDLE: TcHandle = TcHandle { major: 1, minor: 0 };
/// What waits longer is dropped: senders slow down by that.
const LATENCY_MS: u64 = 25;
/// TC_LINKLAYER_ETHERNET
const ETHERNET: u8 = 1;

impl Inner {
    /// Limits what goes through the pod's pair.
    pub fn shape(
        &self,
        host: &mut Socket,
        host_link: &str,
        inside: &mut Socket,
        eth0: u32,
        bandwidth: &Bandwidth,
    ) -> Result<(), Error> {
        let at = |link: &str| {
            let link = link.to_owned();
            move |source| Error::Netlink {
                what: "limit the bandwidth of",
                link,
                source,
            }
        };
        let limit = |socket: &mut Socket, index, name: &str, bits| {
            match socket.change(vec![token_bucket(index, bits)]) {
                // No such kind of discipline: a pod that came up without its limit before is not refused for it now.
                Err(error)
                    if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EOPNOTSUPP)) =>
                {
                    tracing::warn!(
                        link = name,
                        "this kernel has no token buckets (CONFIG_NET_SCH_TBF): the pod's bandwidth is not limited"
                    );
                    Ok(())
                }
                result => result.map_err(at(name)),
            }
        };
        if let Some(bits) = bandwidth.ingress_bits {
            let gone = || io::Error::from_raw_os_error(libc::ENODEV);
            let link = Link::find(host, host_link)
                .and_then(|link| link.ok_or_else(gone))
                .map_err(at(host_link))?;
            limit(host, link.index, host_link, bits)?;
        }
        if let Some(bits) = bandwidth.egress_bits {
            limit(inside, eth0, INTERFACE, bits)?;
        }
        Ok(())
    }
}

fn token_bucket(link: u32, bits: u64) -> (RouteNetlinkMessage, u16) {
    let mut message = TcMessage::with_index(link as i32);
    message.header.parent = TcHandle::ROOT;
    message.header.handle = HANDLE;
    let options = options(bits)
        .into_iter()
        .map(|(kind, value)| TcOption::Other(DefaultNla::new(kind, value)));
    message.attributes = vec![
        TcAttribute::Kind("tbf".to_owned()),
        TcAttribute::Options(options.collect()),
    ];
    (
        RouteNetlinkMessage::NewQueueDiscipline(message),
        NLM_F_CREATE | NLM_F_REPLACE,
    )
}

/// bytes/s, and the bucket in bytes.
fn rate_and_burst(bits: u64) -> (u64, u32) {
    let burst = u32::try_from(Bandwidth::burst_bits(bits) / 8).unwrap_or(u32::MAX);
    ((bits / 8).max(1), burst)
}

fn options(bits: u64) -> [(u16, Vec<u8>); 3] {
    let (rate, burst) = rate_and_burst(bits);
    let waiting = rate.saturating_mul(LATENCY_MS) / 1000;
    let limit = u32::try_from(waiting.saturating_add(u64::from(burst))).unwrap_or(u32::MAX);
    // struct tc_ratespec: cell_log, linklayer, overhead, cell_align, mpu, rate
    let mut parameters = vec![0, ETHERNET, 0, 0, 0, 0, 0, 0];
    parameters.extend(u32::try_from(rate).unwrap_or(u32::MAX).to_ne_bytes());
    // struct tc_tbf_qopt: … no peak rate, limit, buffer (in ticks: TCA_TBF_BURST has it in bytes, Linux 3.13), mtu
    parameters.extend([0; 12]);
    parameters.extend(limit.to_ne_bytes());
    parameters.extend([0; 8]);
    [
        (TCA_TBF_PARMS, parameters),
        (TCA_TBF_RATE64, rate.to_ne_bytes().to_vec()),
        (TCA_TBF_BURST, burst.to_ne_bytes().to_vec()),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bandwidth_of_kubernetes_has_its_bucket() {
        for (bits, rate, burst) in [
            (1_000, 125, 65_536),
            (10_000_000, 1_250_000, 125_000),
            (1_000_000_000, 125_000_000, 12_500_000),
            (1_000_000_000_000_000, 125_000_000_000_000, u32::MAX - 1),
        ] {
            assert_eq!(rate_and_burst(bits), (rate, burst), "{bits}");
            let [(_, parameters), (_, rate64), _] = options(bits);
            assert_eq!(parameters.len(), 36);
            assert_eq!(rate64, rate.to_ne_bytes());
        }
    }
}
