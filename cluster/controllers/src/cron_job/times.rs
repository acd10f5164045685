//! The times of a schedule: every minute at which a clock on the wall shows what the schedule names. So one that a clock passes over in spring has no time, and one
//! that it shows twice in autumn has two (as upstream).

use berth_kinds::{Calendar, Schedule};
use jiff::{SignedDuration, Timestamp, Zoned, tz::TimeZone};

/// After so many days without a time there is none (as upstream: 31st of February).
const DAYS: usize = 5 * 366;

/// A schedule and the clock that it goes by.
#[derive(Debug, Clone)]
pub(super) struct Times {
    pub schedule: Schedule,
    pub zone: TimeZone,
}

/// What has come since some time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Due {
    /// The latest.
    pub at: Timestamp,
    /// More than a hundred, about: too many to be anything but a mistake or a long sleep.
    pub many: bool,
}

const MANY: i64 = 100;

fn later(time: Timestamp, seconds: i64) -> Option<Timestamp> {
    time.checked_add(SignedDuration::from_secs(seconds)).ok()
}

fn whole(time: Timestamp) -> Timestamp {
    Timestamp::from_second(time.as_second()).unwrap_or(time)
}

impl Times {
    /// The first after `time`.
    pub fn next(&self, time: Timestamp) -> Option<Timestamp> {
        match &self.schedule {
            Schedule::Every(seconds) => later(whole(time), i64::from(*seconds)),
            Schedule::Calendar(calendar) => self.next_of(calendar, time),
        }
    }

    fn next_of(&self, calendar: &Calendar, time: Timestamp) -> Option<Timestamp> {
        let second = time.as_second();
        let minute = Timestamp::from_second(second - second.rem_euclid(60) + 60).ok()?;
        let mut at = minute.to_zoned(self.zone.clone());
        let mut days = 0;
        while days < DAYS {
            let weekday = at.weekday().to_sunday_zero_offset().unsigned_abs();
            if !calendar.has_day(at.month().unsigned_abs(), at.day().unsigned_abs(), weekday) {
                let tomorrow = at.date().tomorrow().ok()?;
                at = tomorrow.to_zoned(self.zone.clone()).ok()?;
                days += 1;
                continue;
            }
            let (hour, now) = (at.hour().unsigned_abs(), at.minute().unsigned_abs());
            let minute = calendar.has_hour(hour).then(|| calendar.minute_from(now));
            let minutes = match minute.flatten() {
                Some(minute) if minute == now => return Some(whole(at.timestamp())),
                Some(minute) => minute - now,
                None => 60 - now,
            };
            let before = at.date();
            at = self.go(&at, minutes)?;
            days += usize::from(at.date() != before);
        }
        None
    }

    /// Where the clock is changed on the way: minute by minute.
    fn go(&self, from: &Zoned, minutes: u8) -> Option<Zoned> {
        let by = |minutes: i64| from.checked_add(SignedDuration::from_mins(minutes)).ok();
        let to = by(i64::from(minutes))?;
        if to.offset() == from.offset() {
            Some(to)
        } else {
            by(1)
        }
    }

    /// The latest that is after `since` and not after `now`.
    ///
    /// # Errors
    /// It has no times at all.
    pub fn due(&self, since: Timestamp, now: Timestamp) -> Result<Option<Due>, String> {
        let none = || "the schedule has no time within five years".to_owned();
        let first = self.next(since).ok_or_else(none)?;
        if first > now {
            return Ok(None);
        }
        let second = self.next(first).ok_or_else(none)?;
        let between = (second.as_second() - first.as_second()).max(1);
        let many = (now.as_second() - first.as_second()) / between + 1 > MANY;
        let at = match &self.schedule {
            Schedule::Every(_) => {
                let passed = (now.as_second() - first.as_second()) / between;
                later(first, passed * between).ok_or_else(none)?
            }
            Schedule::Calendar(_) => self.latest(first, now),
        };
        Ok(Some(Due { at, many }))
    }

    /// The last from `first`, which is one, to `now`: what comes next only grows, so that halves are enough.
    fn latest(&self, first: Timestamp, now: Timestamp) -> Timestamp {
        let (mut last, mut end) = (first, now.as_second());
        while last.as_second() < end {
            let middle = last.as_second() + (end - last.as_second()) / 2;
            let next = Timestamp::from_second(middle)
                .ok()
                .and_then(|at| self.next(at));
            match next.filter(|next| *next <= now) {
                Some(next) => last = next,
                None => end = middle,
            }
        }
        last
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn times(schedule: &str, zone: &str) -> Times {
        Times {
            schedule: schedule.parse().expect("a schedule"),
            zone: TimeZone::get(zone).expect("a zone"),
        }
    }

    fn at(text: &str) -> Timestamp {
        text.parse().expect("a time")
    }

    #[test]
    fn a_schedule_goes_by_the_clock_of_its_zone() {
        for (schedule, zone, after, next) in [
            (
                "* * * * *",
                "UTC",
                "2026-01-01T00:00:00Z",
                "2026-01-01T00:01:00Z",
            ),
            (
                "* * * * *",
                "UTC",
                "2026-01-01T00:00:59.9Z",
                "2026-01-01T00:01:00Z",
            ),
            (
                "0 12 * * *",
                "Europe/Berlin",
                "2026-07-01T00:00:00Z",
                "2026-07-01T10:00:00Z",
            ),
            (
                "0 12 * * *",
                "Asia/Kolkata",
                "2026-07-01T06:30:00Z",
                "2026-07-02T06:30:00Z",
            ),
            (
                "0 0 29 2 *",
                "UTC",
                "2025-01-01T00:00:00Z",
                "2028-02-29T00:00:00Z",
            ),
            (
                "0 0 13 * fri",
                "UTC",
                "2026-01-01T00:00:00Z",
                "2026-01-02T00:00:00Z",
            ),
            // passed over in spring, shown twice in autumn
            (
                "30 2 * * *",
                "America/New_York",
                "2026-03-07T12:00:00Z",
                "2026-03-09T06:30:00Z",
            ),
            (
                "30 1 * * *",
                "America/New_York",
                "2026-10-31T12:00:00Z",
                "2026-11-01T05:30:00Z",
            ),
            (
                "30 1 * * *",
                "America/New_York",
                "2026-11-01T05:30:00Z",
                "2026-11-01T06:30:00Z",
            ),
            (
                "@every 90s",
                "UTC",
                "2026-01-01T00:00:00.7Z",
                "2026-01-01T00:01:30Z",
            ),
        ] {
            assert_eq!(
                times(schedule, zone).next(at(after)),
                Some(at(next)),
                "{schedule} {zone}"
            );
        }
        let never = times("0 0 31 2 *", "UTC");
        assert_eq!(never.next(at("2026-01-01T00:00:00Z")), None);
        assert!(
            never
                .due(at("2026-01-01T00:00:00Z"), at("2027-01-01T00:00:00Z"))
                .is_err()
        );
    }

    #[test]
    fn what_is_due_is_the_latest_only() {
        let due = |schedule: &str, since: &str, now: &str| {
            times(schedule, "UTC")
                .due(at(since), at(now))
                .expect("times")
        };
        let one = |text: &str, many| Some(Due { at: at(text), many });
        let (since, later) = ("2026-01-01T00:00:00Z", "2026-01-01T02:59:59Z");
        assert_eq!(due("0 * * * *", since, "2026-01-01T00:59:59Z"), None);
        assert_eq!(
            due("0 * * * *", since, later),
            one("2026-01-01T02:00:00Z", false)
        );
        assert_eq!(
            due("* * * * *", since, later),
            one("2026-01-01T02:59:00Z", true)
        );
        assert_eq!(
            due("@every 7m", since, later),
            one("2026-01-01T02:55:00Z", false)
        );
        assert_eq!(
            due("* * * * *", "1970-01-01T00:00:00Z", later),
            one("2026-01-01T02:59:00Z", true)
        );
    }

    fn calendar() -> impl Strategy<Value = String> {
        let pick = |values: &'static [&'static str]| prop::sample::select(values);
        (
            pick(&["*", "0", "30", "*/7", "5,55", "59", "10-20/5"]),
            pick(&["*", "0", "1", "2", "2-3", "*/5", "23"]),
            pick(&["*", "1", "*/3", "28-31", "8,25"]),
            pick(&["*", "*", "3", "10-11", "4"]),
            pick(&["*", "0", "sun", "1-5"]),
        )
            .prop_map(|(a, b, c, d, e)| format!("{a} {b} {c} {d} {e}"))
    }

    proptest! {
        /// Against every minute, looked at by itself.
        #[test]
        fn next_is_the_first_minute_that_the_clock_shows(
            schedule in calendar(),
            zone in prop::sample::select(vec!["UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "America/Asuncion", "Asia/Kathmandu", "Africa/Casablanca"]),
            second in prop_oneof![1_772_000_000_i64..1_776_000_000, 1_789_000_000_i64..1_794_000_000, 1_704_000_000_i64..1_790_000_000],
        ) {
            let times = times(&schedule, zone);
            let Schedule::Calendar(calendar) = &times.schedule else { unreachable!("it is one") };
            let start = Timestamp::from_second(second).expect("a time");
            let shows = |at: &Zoned| {
                let weekday = at.weekday().to_sunday_zero_offset().unsigned_abs();
                let minute = at.minute().unsigned_abs();
                calendar.has_day(at.month().unsigned_abs(), at.day().unsigned_abs(), weekday)
                    && calendar.has_hour(at.hour().unsigned_abs())
                    && calendar.minute_from(minute) == Some(minute)
            };
            let end = second + 3 * 86_400;
            let by_hand = (second / 60 * 60 + 60..end).step_by(60).find(|second| {
                shows(&Timestamp::from_second(*second).expect("a time").to_zoned(times.zone.clone()))
            });
            let next = times.next(start).map(|at| at.as_second()).filter(|at| *at < end);
            prop_assert_eq!(next, by_hand);
        }

        #[test]
        fn the_latest_is_followed_by_one_after_now(schedule in calendar(), since in 1_704_000_000_i64..1_790_000_000, passed in 0_i64..10_000_000) {
            let times = times(&schedule, "Europe/Berlin");
            let since = Timestamp::from_second(since).expect("a time");
            let now = later(since, passed).expect("a time");
            match times.due(since, now) {
                Ok(Some(due)) => {
                    prop_assert!(due.at > since && due.at <= now);
                    prop_assert_eq!(times.next(later(due.at, -1).expect("a time")), Some(due.at));
                    prop_assert!(times.next(due.at).is_none_or(|next| next > now));
                }
                Ok(None) => prop_assert!(times.next(since).is_none_or(|next| next > now)),
                Err(_) => prop_assert!(times.next(since).is_none()),
            }
        }
    }
}
