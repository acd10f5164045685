//! Thresholds: so many answers of a kind in a row, until they count.

use k8s_openapi::api::core::v1::Probe;

#[derive(Debug, Clone)]
pub(super) struct Counter {
    success: u32,
    failure: u32,
    last: Option<bool>,
    in_a_row: u32,
}

impl Counter {
    pub fn of(probe: &Probe) -> Self {
        let threshold =
            |value: Option<i32>, default| value.map_or(default, |it| it.max(1).unsigned_abs());
        Self {
            success: threshold(probe.success_threshold, 1),
            failure: threshold(probe.failure_threshold, 3),
            last: None,
            in_a_row: 0,
        }
    }

    /// Takes one answer; what has been reached by it, again and again as long as it holds.
    pub fn take(&mut self, good: bool) -> Option<bool> {
        if self.last == Some(good) {
            self.in_a_row = self.in_a_row.saturating_add(1);
        } else {
            (self.last, self.in_a_row) = (Some(good), 1);
        }
        let threshold = if good { self.success } else { self.failure };
        (self.in_a_row >= threshold).then_some(good)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_count_when_enough_of_them_came_in_a_row() {
        for (success, failure, answers, reached) in [
            (1, 3, "+", "+"),
            (1, 3, "---", "..-"),
            (1, 3, "--+--", "..+.."),
            (1, 3, "----", "..--"),
            (3, 1, "++-+++", "..-..+"),
            (0, 0, "-+", "-+"),
        ] {
            let mut counter = Counter::of(&Probe {
                success_threshold: Some(success),
                failure_threshold: Some(failure),
                ..Probe::default()
            });
            let got: String = answers
                .chars()
                .map(|answer| match counter.take(answer == '+') {
                    None => '.',
                    Some(true) => '+',
                    Some(false) => '-',
                })
                .collect();
            assert_eq!(got, reached, "{success} {failure} {answers}");
        }
    }
}
