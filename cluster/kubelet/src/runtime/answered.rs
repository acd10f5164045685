//! Calls whose answer was lost: on the way, or with the daemon that was to give it. Whether they were done nobody knows, so they are put again, where
//! that does no harm; only then is there something to tell of.

use std::time::{Duration, Instant};

use tonic::{Code, Status};

use crate::error::is_lost;

use super::CALL;

/// Between two tries; the last one is between all that come after.
const PAUSES: [Duration; 3] = [
    Duration::from_millis(50),
    Duration::from_millis(250),
    Duration::from_secs(1),
];
/// A daemon that ends says "unavailable", and so does one whose shim is gone for good: it is believed after so many tries.
const MOST_SAID: usize = 4;
/// A line that broke is mended with the daemon that comes next: as long as for an answer is waited for that.
const MOST_LOST: Duration = CALL;

/// Asks until there is an answer, which may be that it can't be done.
pub(super) async fn answered<T, A>(ask: impl Fn() -> A) -> Result<T, Status>
where
    A: Future<Output = Result<T, Status>>,
{
    let mut tries = Tries::default();
    loop {
        let answer = ask().await;
        match answer.as_ref().err().and_then(|status| tries.next(status)) {
            Some(pause) => tokio::time::sleep(pause).await,
            None => return answer,
        }
    }
}

/// … of what may not be done twice: looks first whether it has been.
pub(super) async fn until_done<A, L>(
    act: impl Fn() -> A,
    is_done: impl Fn() -> L,
) -> Result<(), Status>
where
    A: Future<Output = Result<(), Status>>,
    L: Future<Output = Result<bool, Status>>,
{
    let mut tries = Tries::default();
    let mut answer = act().await;
    loop {
        let Some(pause) = answer.as_ref().err().and_then(|status| tries.next(status)) else {
            return answer;
        };
        tokio::time::sleep(pause).await;
        answer = match is_done().await {
            Ok(true) => Ok(()),
            Ok(false) => act().await,
            Err(status) => Err(status),
        };
    }
}

#[derive(Debug)]
struct Tries {
    began: Instant,
    count: usize,
}

impl Default for Tries {
    fn default() -> Self {
        Self {
            began: Instant::now(),
            count: 0,
        }
    }
}

impl Tries {
    /// How long to wait before the next one; none: that was the answer.
    fn next(&mut self, status: &Status) -> Option<Duration> {
        self.count += 1;
        let again = match is_lost(status) {
            true => self.began.elapsed() < MOST_LOST,
            false => status.code() == Code::Unavailable && self.count < MOST_SAID,
        };
        again.then(|| PAUSES[(self.count - 1).min(PAUSES.len() - 1)])
    }
}

#[cfg(test)]
mod tests {
    use std::{cell::RefCell, io};

    use super::*;

    fn lost() -> Status {
        Status::from_error(Box::new(io::Error::from(io::ErrorKind::BrokenPipe)))
    }

    #[tokio::test]
    async fn what_was_lost_is_asked_again_and_what_was_answered_is_not() {
        for (mut answers, expected, asked) in [
            (vec![Ok(1)], Ok(1), 1),
            (vec![Err(lost()), Ok(2)], Ok(2), 2),
            (
                vec![Err(Status::not_found("x")), Ok(3)],
                Err(Code::NotFound),
                1,
            ),
        ] {
            answers.reverse();
            let all = answers.len();
            let answers = RefCell::new(answers);
            let answer = answered(|| async { answers.borrow_mut().pop().unwrap() }).await;
            assert_eq!(answer.map_err(|status| status.code()), expected);
            assert_eq!(all - answers.borrow().len(), asked);
        }
    }

    #[test]
    fn who_says_to_be_unavailable_is_believed_in_the_end() {
        let mut tries = Tries::default();
        let said = Status::unavailable("the daemon ends");
        let pauses: Vec<_> = std::iter::from_fn(|| tries.next(&said)).collect();
        assert_eq!(pauses, PAUSES);
    }

    #[tokio::test]
    async fn what_may_not_be_done_twice_is_looked_for_first() {
        for (done_by_the_first, acts) in [(true, 1), (false, 2)] {
            let acted = RefCell::new(0);
            let act = || async {
                *acted.borrow_mut() += 1;
                match *acted.borrow() {
                    1 => Err(lost()),
                    _ => Ok(()),
                }
            };
            let is_done = || async { Ok(done_by_the_first) };
            until_done(act, is_done).await.unwrap();
            assert_eq!(acted.into_inner(), acts);
        }
    }
}
