//! Stopping: the signal, the grace, the kill; and taking a whole pod down.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use berth_proto::{cri, shim::v1::pod as v1};
use nix::sys::signal::Signal;
use oci_spec::image::ImageConfiguration;

use super::{Pod, create, launch, shim::Shim, teardown};
use crate::{
    error::Error,
    trace::{phase, step},
};

/// After SIGKILL the kernel needs no permission of the process. One that is still there then hangs in the kernel (a dead NFS
/// server, a frozen cgroup), and its callers are told so instead of being kept.
pub const KILL_PATIENCE: Duration = Duration::from_secs(10);
/// The most that a caller may ask for; a pod's terminationGracePeriodSeconds is far below.
const MAX_GRACE: Duration = Duration::from_secs(24 * 3600);
/// While a pod's containers end, how often it is looked at: the shim tells of changes, this is for lost ones.
const CHANGES_PATIENCE: Duration = Duration::from_millis(500);

/// Seconds of a StopContainer. A negative one means no grace.
pub fn grace(timeout_s: i64) -> Duration {
    Duration::from_secs(timeout_s.max(0) as u64).min(MAX_GRACE)
}

/// A stop under way: the signal has been sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deadline {
    /// When SIGKILL follows; `None`: it has been sent.
    pub kill_at: Option<Instant>,
    /// When the callers are told that it hangs.
    pub give_up_at: Instant,
}

impl Deadline {
    pub fn new(now: Instant, grace: Duration) -> Self {
        Self {
            kill_at: Some(now + grace),
            give_up_at: now + grace + KILL_PATIENCE,
        }
    }

    /// A later stop with a shorter grace wins; a longer one changes nothing.
    pub fn shorten(&mut self, now: Instant, grace: Duration) {
        let asked = Self::new(now, grace);
        if let Some(kill_at) = &mut self.kill_at {
            *kill_at = (*kill_at).min(now + grace);
            self.give_up_at = self.give_up_at.min(asked.give_up_at);
        }
    }

    pub fn next(&self) -> Instant {
        self.kill_at.unwrap_or(self.give_up_at)
    }
}

/// The container's own word, else the image's, else SIGTERM.
pub fn stop_signal(config: &cri::ContainerConfig, image: &ImageConfiguration) -> i32 {
    from_cri(config.stop_signal())
        .or_else(|| {
            let named = image.config().as_ref()?.stop_signal().as_deref()?;
            from_image(named)
        })
        .unwrap_or(Signal::SIGTERM as i32)
}

/// `None` for RUNTIME_DEFAULT.
fn from_cri(signal: cri::Signal) -> Option<i32> {
    let name = signal.as_str_name();
    match name {
        "RUNTIME_DEFAULT" => None,
        // Other names of the same.
        "SIGCLD" => Some(Signal::SIGCHLD as i32),
        "SIGPOLL" => Some(Signal::SIGIO as i32),
        "SIGIOT" => Some(Signal::SIGABRT as i32),
        name => by_name(&name.replace("PLUS", "+").replace("MINUS", "-")),
    }
}

/// The CRI's name of a signal. Of several names that of signal(7) comes first in the CRI's list.
pub fn to_cri(number: i32) -> cri::Signal {
    (1..)
        .map_while(|n| cri::Signal::try_from(n).ok())
        .find(|signal| from_cri(*signal) == Some(number))
        .unwrap_or(cri::Signal::RuntimeDefault)
}

/// "SIGQUIT", "QUIT" or "3".
fn from_image(named: &str) -> Option<i32> {
    if let Ok(number) = named.parse::<i32>() {
        return (1..=nix::libc::SIGRTMAX())
            .contains(&number)
            .then_some(number);
    }
    let upper = named.to_ascii_uppercase();
    by_name(&upper).or_else(|| by_name(&format!("SIG{upper}")))
}

fn by_name(name: &str) -> Option<i32> {
    if let Ok(signal) = name.parse::<Signal>() {
        return Some(signal as i32);
    }
    // Real-time signals have no name of their own: SIGRTMIN+3.
    let (base, rest) = match (name.strip_prefix("SIGRTMIN"), name.strip_prefix("SIGRTMAX")) {
        (Some(rest), _) => (nix::libc::SIGRTMIN(), rest),
        (_, Some(rest)) => (nix::libc::SIGRTMAX(), rest),
        _ => return None,
    };
    let offset = match rest {
        "" => 0,
        rest => rest.parse::<i32>().ok()?,
    };
    let number = base + offset;
    (nix::libc::SIGRTMIN()..=nix::libc::SIGRTMAX())
        .contains(&number)
        .then_some(number)
}

/// Nothing runs in the pod any more.
#[derive(Debug)]
pub struct Ended {
    /// The shim's last word on its containers: how they ended.
    pub last: Option<v1::InspectResponse>,
    /// The shim, where it is still there.
    pub alive: Option<Shim>,
}

/// What taking a pod down came to.
#[derive(Debug)]
pub struct Outcome {
    pub result: Result<(), Error>,
    /// Whether the shim was told to end, or is dead: then the pod is no longer ready, whatever failed later.
    pub began: bool,
}

/// Kills what runs, and lets go of every container's task.
pub async fn end(pod: &Pod, shim: Option<Shim>, containers: Vec<String>) -> Result<Ended, Outcome> {
    let mut deaf = false;
    if let Some(shim) = shim {
        let ending = end_containers(pod, &shim, &containers);
        match phase(step!("end containers"), ending).await {
            Ok(last) => {
                return Ok(Ended {
                    last: Some(last),
                    alive: Some(shim),
                });
            }
            Err(e) if e.code() == tonic::Code::Unavailable => {}
            // Who asks for the end of the pod gets it, also where the shim does not hear of it any more.
            Err(e @ Error::Silent { .. }) => {
                tracing::warn!(pod_id = %pod.id, "its containers are ended past their shim: {e}");
                deaf = true;
            }
            Err(e) => {
                return Err(Outcome {
                    result: Err(e),
                    began: false,
                });
            }
        }
    }
    // No shim any more: `delete` does what it would have done, before anybody is told that they have ended.
    let ended = match deaf {
        true => launch::end_deaf(pod).await,
        false => launch::end(pod, None).await,
    };
    match ended {
        Ok(()) => Ok(Ended {
            last: None,
            alive: None,
        }),
        Err(e) => Err(Outcome {
            result: Err(e),
            began: true,
        }),
    }
}

/// Lets go of every container's mount, ends the shim, frees the network.
pub async fn take_down(
    pod: &Arc<Pod>,
    shim: Option<&Shim>,
    containers: Vec<String>,
) -> Result<(), Error> {
    let unmounting = pod.clone();
    tokio::task::spawn_blocking(move || {
        containers
            .iter()
            .try_for_each(|id| teardown::unroot(&unmounting, id))
    })
    .await
    .map_err(|_| Error::Panicked("unmount"))??;
    teardown::surroundings(pod, shim).await
}

async fn end_containers(
    pod: &Pod,
    shim: &Shim,
    containers: &[String],
) -> Result<v1::InspectResponse, Error> {
    let since = Instant::now();
    let mut now = shim.inspect().await?;
    for container in now.containers.iter().filter(|c| runs(c)) {
        shim.kill(&container.id, nix::libc::SIGKILL, true).await?;
    }
    while let Some(alive) = now.containers.iter().find(|c| runs(c)) {
        if since.elapsed() > KILL_PATIENCE {
            return Err(Error::Stuck {
                what: format!("stop pod {}: container {}", pod.id, alive.id),
                stage: "killed, waiting for its end",
                since: since.elapsed(),
            });
        }
        now = match shim.changes(now.generation, CHANGES_PATIENCE).await {
            Err(Error::Silent { .. }) => shim.inspect().await?,
            other => other?,
        };
    }
    for id in containers {
        teardown::end_task(shim, id).await?;
    }
    Ok(now)
}

fn runs(container: &v1::ContainerState) -> bool {
    container.state.enum_value_or_default() == v1::TaskState::RUNNING
}

/// Removes a container: its task (where there is a shim to hold it), then all that the daemon made for it.
pub async fn remove_container(pod: Arc<Pod>, shim: Option<Shim>, id: String) -> Result<(), Error> {
    if let Some(shim) = shim {
        match teardown::end_task(&shim, &id).await {
            Err(e) if e.code() != tonic::Code::Unavailable => return Err(e),
            _ => {}
        }
    }
    create::forget(&pod, &id).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_later_stop_with_a_shorter_grace_wins_rel_01() {
        let now = Instant::now();
        let s = Duration::from_secs;
        let mut deadline = Deadline::new(now, s(30));
        deadline.shorten(now + s(1), s(60));
        assert_eq!(deadline, Deadline::new(now, s(30)));
        deadline.shorten(now + s(2), s(3));
        assert_eq!(deadline, Deadline::new(now, s(5)));
        assert_eq!(deadline.next(), now + s(5));
        deadline.kill_at = None;
        deadline.shorten(now + s(6), s(0));
        assert_eq!(deadline.next(), now + s(5) + KILL_PATIENCE);
    }

    #[test]
    fn signals_are_known_by_all_their_names() {
        for (named, number) in [
            ("SIGQUIT", Some(3)),
            ("QUIT", Some(3)),
            ("sigterm", Some(15)),
            ("3", Some(3)),
            ("SIGRTMIN+3", Some(nix::libc::SIGRTMIN() + 3)),
            ("RTMAX-1", Some(nix::libc::SIGRTMAX() - 1)),
            ("SIGRTMAX+1", None),
            ("0", None),
            ("SIGNOTHING", None),
            ("", None),
        ] {
            assert_eq!(from_image(named), number, "{named:?}");
        }
    }

    #[test]
    fn every_cri_signal_has_a_number() {
        for n in 1..=65 {
            let signal = cri::Signal::try_from(n).unwrap();
            assert!(from_cri(signal).is_some(), "{}", signal.as_str_name());
        }
        for number in (1..=nix::libc::SIGSYS).chain(nix::libc::SIGRTMIN()..=nix::libc::SIGRTMAX()) {
            assert_eq!(from_cri(to_cri(number)), Some(number), "{number}");
        }
        assert_eq!(to_cri(0), cri::Signal::RuntimeDefault);
        assert_eq!(to_cri(17), cri::Signal::Sigchld);
        assert_eq!(from_cri(cri::Signal::RuntimeDefault), None);
        assert_eq!(from_cri(cri::Signal::Sigusr1), Some(10));
        assert_eq!(
            from_cri(cri::Signal::Sigrtmaxminus14),
            Some(nix::libc::SIGRTMAX() - 14)
        );
    }

    #[test]
    fn an_absurd_grace_is_bounded() {
        assert_eq!(grace(-1), Duration::ZERO);
        assert_eq!(grace(i64::MAX), MAX_GRACE);
        assert_eq!(grace(30), Duration::from_secs(30));
    }
}
