//! When the node runs short of something: hard thresholds, at once; soft ones, where it lasts. Pure functions of what was observed and when.

use std::{
    collections::BTreeMap,
    str::FromStr,
    time::{Duration, Instant},
};

use berth_kinds::Quantity;

use crate::admission::Pressure;

const NANO: i128 = 1_000_000_000;
/// Of a part: 10000 is all.
const WHOLE: u64 = 10_000;

/// Of what something is left, in upstream's words; in the order in which they are acted on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Signal {
    Memory,
    /// Within the limit of the cgroup of all pods.
    AllocatableMemory,
    NodeFs,
    ImageFs,
    NodeInodes,
    ImageInodes,
    Pids,
}

impl Signal {
    const NAMED: [(Self, &'static str); 6] = [
        (Self::Memory, "memory.available"),
        (Self::NodeFs, "nodefs.available"),
        (Self::NodeInodes, "nodefs.inodesFree"),
        (Self::ImageFs, "imagefs.available"),
        (Self::ImageInodes, "imagefs.inodesFree"),
        (Self::Pids, "pid.available"),
    ];

    fn named(name: &str) -> Result<Self, String> {
        let found = Self::NAMED.iter().find(|(_, one)| *one == name);
        let all = || Self::NAMED.map(|(_, one)| one).join(", ");
        found
            .map(|(signal, _)| *signal)
            .ok_or_else(|| format!("{name:?} is none of {}", all()))
    }

    /// What a pod asks for of it, and what it is called when there is too little.
    pub fn resource(self) -> &'static str {
        match self {
            Self::Memory | Self::AllocatableMemory => "memory",
            Self::NodeFs | Self::ImageFs => "ephemeral-storage",
            Self::NodeInodes | Self::ImageInodes => "inodes",
            Self::Pids => "pids",
        }
    }

    pub fn is_of_disk(self) -> bool {
        matches!(self.resource(), "ephemeral-storage" | "inodes")
    }
}

/// A number, or a part of all that there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Amount {
    Of(u64),
    Part(u64),
}

impl Amount {
    fn parse(signal: &str, text: &str) -> Result<Self, String> {
        let wrong = || {
            format!("{signal}: {text:?} is neither an amount, as 100Mi, nor a part of all, as 10%")
        };
        if let Some(part) = text.strip_suffix('%') {
            let part = Quantity::parse(part).ok_or_else(wrong)?;
            let part =
                u64::try_from(part.nano * i128::from(WHOLE) / 100 / NANO).map_err(|_| wrong())?;
            return match part <= WHOLE {
                true => Ok(Self::Part(part)),
                false => Err(wrong()),
            };
        }
        let amount = Quantity::parse(text).and_then(|it| u64::try_from(it.nano / NANO).ok());
        amount.map(Self::Of).ok_or_else(wrong)
    }

    pub fn of(self, capacity: u64) -> u64 {
        match self {
            Self::Of(amount) => amount,
            Self::Part(part) => {
                let part = u128::from(capacity) * u128::from(part) / u128::from(WHOLE);
                u64::try_from(part).unwrap_or(u64::MAX)
            }
        }
    }
}

/// `memory.available<100Mi,nodefs.available<10%`: as given on the command line.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Levels(BTreeMap<Signal, Amount>);

impl Levels {
    fn parse(text: &str, sign: char) -> Result<Self, String> {
        let mut all = BTreeMap::new();
        for part in text.split(',').filter(|part| !part.is_empty()) {
            let Some((name, amount)) = part.split_once(sign) else {
                return Err(format!("{part:?} is no SIGNAL{sign}VALUE"));
            };
            all.insert(Signal::named(name)?, Amount::parse(name, amount)?);
        }
        Ok(Self(all))
    }
}

impl FromStr for Levels {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::parse(text, '<')
    }
}

/// `nodefs.available=500Mi`: so much more than its threshold is to be free before enough has been done.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reclaims(Levels);

impl FromStr for Reclaims {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Levels::parse(text, '=').map(Self)
    }
}

/// `memory.available=1m30s`: how long each soft threshold may be passed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Graces(BTreeMap<Signal, Duration>);

impl FromStr for Graces {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut all = BTreeMap::new();
        for part in text.split(',').filter(|part| !part.is_empty()) {
            let Some((name, time)) = part.split_once('=') else {
                return Err(format!("{part:?} is no SIGNAL=TIME"));
            };
            all.insert(Signal::named(name)?, duration(time)?);
        }
        Ok(Self(all))
    }
}

/// As Go writes it: `1h30m`, `90s`, `500ms`.
///
/// # Errors
/// What it is not.
pub fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is no duration, as 20s, 1m30s or 500ms");
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let mut whole = Duration::ZERO;
    let mut rest = text;
    if rest.is_empty() {
        return Err(wrong());
    }
    while !rest.is_empty() {
        let digits = rest
            .find(|it: char| !it.is_ascii_digit())
            .ok_or_else(wrong)?;
        let (number, tail) = rest.split_at(digits);
        let number: u64 = number.parse().map_err(|_| wrong())?;
        let unit = tail
            .find(|it: char| it.is_ascii_digit())
            .unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit);
        let seconds = |each: u64| number.checked_mul(each).map(Duration::from_secs);
        let part = match unit {
            "ms" => Some(Duration::from_millis(number)),
            "s" => seconds(1),
            "m" => seconds(60),
            "h" => seconds(3600),
            _ => None,
        };
        whole = part
            .and_then(|part| whole.checked_add(part))
            .ok_or_else(wrong)?;
        rest = tail;
    }
    Ok(whole)
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Threshold {
    pub signal: Signal,
    pub least: Amount,
    /// How long it may be passed; none: it is a hard one.
    pub grace: Option<Duration>,
    /// How much more is to be free before it is no longer passed.
    pub reclaim: Option<Amount>,
}

/// All of them, and what else is about evictions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Thresholds {
    pub(crate) all: Vec<Threshold>,
    /// Of a pod that is evicted for a soft threshold; it may ask for less.
    pub max_pod_grace: Duration,
    /// How long a node says that it ran short after it did last.
    pub transition: Duration,
}

impl Default for Thresholds {
    /// Upstream's; it has none for process ids, but with fewer than these no process may come up that could end another.
    fn default() -> Self {
        Self::new(
            &Levels::default(),
            &Levels::default(),
            &Graces::default(),
            &Reclaims::default(),
        )
        .unwrap_or_else(|_| Self {
            all: Vec::new(),
            max_pod_grace: Duration::ZERO,
            transition: TRANSITION,
        })
    }
}

/// Upstream's.
const TRANSITION: Duration = Duration::from_secs(300);
const DEFAULTS: [(Signal, Amount); 6] = [
    (Signal::Memory, Amount::Of(100 << 20)),
    (Signal::NodeFs, Amount::Part(1000)),
    (Signal::NodeInodes, Amount::Part(500)),
    (Signal::ImageFs, Amount::Part(1500)),
    (Signal::ImageInodes, Amount::Part(500)),
    (Signal::Pids, Amount::Part(200)),
];

impl Thresholds {
    /// What is not among `hard` is as by default.
    ///
    /// # Errors
    /// A soft one without a time.
    pub fn new(
        hard: &Levels,
        soft: &Levels,
        graces: &Graces,
        reclaims: &Reclaims,
    ) -> Result<Self, String> {
        let mut hard_ones = BTreeMap::from(DEFAULTS);
        hard_ones.extend(&hard.0);
        // what pods can't have within their own limit is the same amount
        let of_pods = hard_ones[&Signal::Memory];
        hard_ones.insert(Signal::AllocatableMemory, of_pods);
        let reclaim = |signal: Signal| {
            let signal = match signal {
                Signal::AllocatableMemory => Signal::Memory,
                other => other,
            };
            reclaims.0.0.get(&signal).copied()
        };
        let mut all: Vec<_> = hard_ones
            .into_iter()
            .map(|(signal, least)| Threshold {
                signal,
                least,
                grace: None,
                reclaim: reclaim(signal),
            })
            .collect();
        for (signal, least) in &soft.0 {
            let Some(grace) = graces.0.get(signal) else {
                let named = Signal::NAMED.iter().find(|(one, _)| one == signal);
                let name = named.map_or("", |(_, name)| name);
                return Err(format!(
                    "the soft threshold of {name} has no time: --eviction-soft-grace-period={name}=TIME gives it one"
                ));
            };
            all.push(Threshold {
                signal: *signal,
                least: *least,
                grace: Some(*grace),
                reclaim: reclaim(*signal),
            });
        }
        Ok(Self {
            all,
            max_pod_grace: Duration::ZERO,
            transition: TRANSITION,
        })
    }

    fn hard(&self, signal: Signal, capacity: u64) -> u64 {
        let mut all = self.all.iter();
        let found = all.find(|it| it.signal == signal && it.grace.is_none());
        found.map_or(0, |it| it.least.of(capacity))
    }

    /// Bytes that pods can't have, of so many.
    pub(crate) fn memory_reserved(&self, capacity: u64) -> u64 {
        self.hard(Signal::Memory, capacity)
    }

    pub(crate) fn storage_reserved(&self, capacity: u64) -> u64 {
        self.hard(Signal::NodeFs, capacity)
    }
}

/// What is left, and of how much.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Left {
    pub available: u64,
    /// 0: it is not known, or there is no end of it.
    pub capacity: u64,
}

pub(crate) type Observed = BTreeMap<Signal, Left>;

/// What was seen before.
#[derive(Debug, Default)]
pub(crate) struct Course {
    /// Since when each is passed.
    since: BTreeMap<Key, Instant>,
    /// Those that were acted on, until enough is free again.
    met: Vec<Threshold>,
    last: [Option<Instant>; 3],
}

/// A signal may have a hard and a soft one.
type Key = (Signal, bool);

fn key(threshold: &Threshold) -> Key {
    (threshold.signal, threshold.grace.is_some())
}

/// What there is to do.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Verdict {
    /// As the node's conditions say.
    pub pressure: Pressure,
    /// The first that something is to be done about.
    pub acts: Option<Threshold>,
}

impl Threshold {
    pub fn is_passed(&self, observed: &Observed, with_reclaim: bool) -> bool {
        let Some(left) = observed.get(&self.signal).filter(|left| left.capacity > 0) else {
            return false;
        };
        let more = self
            .reclaim
            .filter(|_| with_reclaim)
            .map_or(0, |it| it.of(left.capacity));
        left.available < self.least.of(left.capacity).saturating_add(more)
    }
}

impl Course {
    /// Follows one more look.
    pub fn follow(
        &mut self,
        thresholds: &Thresholds,
        observed: &Observed,
        now: Instant,
    ) -> Verdict {
        let mut passed: Vec<&Threshold> = thresholds
            .all
            .iter()
            .filter(|it| {
                it.is_passed(observed, false)
                    || (self.met.contains(it) && it.is_passed(observed, true))
            })
            .collect();
        passed.sort_by_key(|it| (it.signal, it.grace.is_some()));
        self.since
            .retain(|one, _| passed.iter().any(|it| key(it) == *one));
        for threshold in &passed {
            self.since.entry(key(threshold)).or_insert(now);
        }
        let is_of = |kind: usize, signal: Signal| match kind {
            0 => signal.resource() == "memory",
            1 => signal.is_of_disk(),
            _ => signal == Signal::Pids,
        };
        for (kind, last) in self.last.iter_mut().enumerate() {
            if passed.iter().any(|it| is_of(kind, it.signal)) {
                *last = Some(now);
            }
        }
        let is_short = |kind: usize| {
            self.last[kind]
                .is_some_and(|last| last == now || now.duration_since(last) < thresholds.transition)
        };
        let pressure = Pressure {
            memory: is_short(0),
            disk: is_short(1),
            pids: is_short(2),
        };
        let lasts = |it: &&&Threshold| {
            let since = self.since.get(&key(it)).copied().unwrap_or(now);
            now.duration_since(since) >= it.grace.unwrap_or_default()
        };
        let met: Vec<Threshold> = passed
            .iter()
            .filter(lasts)
            .map(|it| (*it).clone())
            .collect();
        let acts = met.first().cloned();
        self.met = met;
        Verdict { pressure, acts }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_written_as_everywhere() {
        for (text, ms) in [
            ("0", Some(0)),
            ("0s", Some(0)),
            ("20s", Some(20_000)),
            ("1m30s", Some(90_000)),
            ("500ms", Some(500)),
            ("1h", Some(3_600_000)),
            ("", None),
            ("20", None),
            ("s", None),
            ("-1s", None),
            ("1d", None),
            ("99999999999999999999s", None),
            ("18446744073709551615h", None),
        ] {
            assert_eq!(duration(text).ok().map(|it| it.as_millis()), ms, "{text}");
        }
    }

    fn left(signal: Signal, available: u64) -> Observed {
        let capacity = 1000;
        BTreeMap::from([(
            signal,
            Left {
                available,
                capacity,
            },
        )])
    }

    fn thresholds(hard: &str, soft: &str, graces: &str, reclaims: &str) -> Thresholds {
        let (hard, soft) = (hard.parse().unwrap(), soft.parse().unwrap());
        Thresholds::new(
            &hard,
            &soft,
            &graces.parse().unwrap(),
            &reclaims.parse().unwrap(),
        )
        .unwrap()
    }

    /// Seconds, what is left of memory, whether it is short, and whether something is done by a soft one.
    type Step = (u64, u64, bool, Option<bool>);

    fn course(thresholds: &Thresholds, steps: &[Step]) {
        let begin = Instant::now();
        let mut course = Course::default();
        for (at, available, is_short, acts) in steps {
            let now = begin + Duration::from_secs(*at);
            let verdict = course.follow(thresholds, &left(Signal::Memory, *available), now);
            assert_eq!(verdict.pressure.memory, *is_short, "{at}");
            assert_eq!(verdict.acts.map(|it| it.grace.is_some()), *acts, "{at}");
            assert!(!verdict.pressure.disk && !verdict.pressure.pids);
        }
    }

    #[test]
    fn a_hard_threshold_acts_at_once_and_its_condition_lasts() {
        let thresholds = thresholds("memory.available<100", "", "", "");
        course(
            &thresholds,
            &[
                (0, 100, false, None),
                (10, 99, true, Some(false)),
                (20, 100, true, None),
                (309, 500, true, None),
                (310, 500, false, None),
            ],
        );
    }

    #[test]
    fn a_soft_threshold_acts_where_it_lasts() {
        let thresholds = thresholds(
            "memory.available<10",
            "memory.available<30%",
            "memory.available=1m30s",
            "",
        );
        course(
            &thresholds,
            &[
                (0, 299, true, None),
                (80, 299, true, None),
                // it begins anew
                (85, 300, true, None),
                (90, 200, true, None),
                (179, 200, true, None),
                (180, 200, true, Some(true)),
                // the hard one goes before it
                (190, 9, true, Some(false)),
            ],
        );
    }

    #[test]
    fn once_begun_as_much_is_freed_as_was_asked_for() {
        let thresholds = thresholds("memory.available<100", "", "", "memory.available=50");
        course(
            &thresholds,
            &[
                (0, 120, false, None),
                (10, 99, true, Some(false)),
                (20, 149, true, Some(false)),
                (30, 150, true, None),
                (40, 120, true, None),
            ],
        );
    }

    #[test]
    fn what_is_passed_is_told_by_its_kind_and_the_first_counts() {
        let thresholds = Thresholds::default();
        let mut all = left(Signal::Pids, 19);
        all.extend(left(Signal::ImageInodes, 49));
        let verdict = Course::default().follow(&thresholds, &all, Instant::now());
        let expected = Pressure {
            memory: false,
            disk: true,
            pids: true,
        };
        assert_eq!(verdict.pressure, expected);
        assert_eq!(verdict.acts.unwrap().signal, Signal::ImageInodes);
        for (signal, available, is_short) in [
            (Signal::NodeFs, 99, true),
            (Signal::NodeFs, 100, false),
            (Signal::ImageFs, 149, true),
            (Signal::ImageFs, 150, false),
            (Signal::NodeInodes, 49, true),
            (Signal::NodeInodes, 50, false),
        ] {
            let verdict =
                Course::default().follow(&thresholds, &left(signal, available), Instant::now());
            assert_eq!(verdict.pressure.disk, is_short, "{signal:?} {available}");
        }
        // some file systems have no inodes to count
        let unknown = BTreeMap::from([(
            Signal::NodeInodes,
            Left {
                available: 0,
                capacity: 0,
            },
        )]);
        let verdict = Course::default().follow(&thresholds, &unknown, Instant::now());
        assert_eq!(verdict.pressure, Pressure::default());
    }

    #[test]
    fn they_are_written_as_upstreams_and_what_is_none_is_refused_by_name() {
        let all = thresholds("memory.available<1Gi,nodefs.available<12.5%", "", "", "");
        assert_eq!(all.memory_reserved(8 << 30), 1 << 30);
        assert_eq!(all.storage_reserved(1000), 125);
        assert_eq!(Thresholds::default().storage_reserved(1000), 100);
        for bad in [
            "memory.available",
            "memory.available<x",
            "nodefs.available<101%",
            "nodefs.available<-1%",
            "containerfs.available<10%",
        ] {
            assert!(bad.parse::<Levels>().is_err(), "{bad}");
        }
        let soft: Levels = "pid.available<10%".parse().unwrap();
        let (none, reclaims) = (Levels::default(), Reclaims::default());
        let refused = Thresholds::new(&none, &soft, &Graces::default(), &reclaims).unwrap_err();
        assert!(refused.contains("pid.available"), "{refused}");
        for (text, seconds) in [
            ("90s", Some(90)),
            ("1m30s", Some(90)),
            ("2h", Some(7200)),
            ("500ms", Some(0)),
        ] {
            assert_eq!(
                duration(text).ok().map(|it| it.as_secs()),
                seconds,
                "{text}"
            );
        }
        for bad in ["", "5", "s", "1x", "99999999999999999999s"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }
}
