//! Sets of completion indexes, as a job's status has them: `1,3-5,7`.

use std::{cmp::Ordering, fmt};

/// Sorted spans, both ends within, with a gap between any two.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Indexes(Vec<(u32, u32)>);

impl Indexes {
    /// Those of `text` that are below `completions`; what is no index in it is passed over.
    pub fn parse(text: &str, completions: u32) -> Self {
        let spans = text.split(',').filter_map(|span| {
            let (first, last) = span.split_once('-').unwrap_or((span, span));
            let (first, last) = (first.parse().ok()?, last.parse::<u32>().ok()?);
            (first < completions && first <= last).then(|| (first, last.min(completions - 1)))
        });
        Self::of_spans(spans.collect())
    }

    fn of_spans(mut spans: Vec<(u32, u32)>) -> Self {
        spans.sort_unstable();
        let mut joined: Vec<(u32, u32)> = Vec::with_capacity(spans.len());
        for (first, last) in spans {
            match joined.last_mut() {
                Some(before) if first <= before.1.saturating_add(1) => {
                    before.1 = before.1.max(last);
                }
                _ => joined.push((first, last)),
            }
        }
        Self(joined)
    }

    /// With those of `other`, too.
    pub fn with(&self, other: &Self) -> Self {
        Self::of_spans(self.0.iter().chain(&other.0).copied().collect())
    }

    pub fn contains(&self, index: u32) -> bool {
        let found = self.0.binary_search_by(|&(first, last)| {
            if last < index {
                Ordering::Less
            } else if first > index {
                Ordering::Greater
            } else {
                Ordering::Equal
            }
        });
        found.is_ok()
    }

    pub fn count(&self) -> usize {
        let lengths = self.0.iter().map(|(first, last)| last - first + 1);
        lengths.map(|length| length as usize).sum()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many are in both.
    pub fn common(&self, other: &Self) -> usize {
        let (mut mine, mut theirs, mut common) = (0, 0, 0);
        while let (Some(a), Some(b)) = (self.0.get(mine), other.0.get(theirs)) {
            let (first, last) = (a.0.max(b.0), a.1.min(b.1));
            if first <= last {
                common += (last - first + 1) as usize;
            }
            if a.1 < b.1 { mine += 1 } else { theirs += 1 }
        }
        common
    }

    /// The lowest that are not in it, below `completions`.
    pub fn missing(self, completions: u32) -> impl Iterator<Item = u32> + use<> {
        let mut spans = self.0.into_iter().peekable();
        let mut next = 0;
        std::iter::from_fn(move || {
            while let Some(&(first, last)) = spans.peek() {
                if next < first {
                    break;
                }
                next = last.saturating_add(1).max(next);
                spans.next();
            }
            (next < completions).then(|| {
                next += 1;
                next - 1
            })
        })
    }
}

impl FromIterator<u32> for Indexes {
    fn from_iter<I: IntoIterator<Item = u32>>(indexes: I) -> Self {
        Self::of_spans(indexes.into_iter().map(|index| (index, index)).collect())
    }
}

impl fmt::Display for Indexes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, (first, last)) in self.0.iter().enumerate() {
            if at > 0 {
                f.write_str(",")?;
            }
            match last - first {
                0 => write!(f, "{first}")?,
                // as upstream: two are no span
                1 => write!(f, "{first},{last}")?,
                _ => write!(f, "{first}-{last}")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::Indexes;

    #[test]
    fn indexes_are_written_as_upstream_writes_them() {
        for (indexes, written) in [
            (&[][..], ""),
            (&[0], "0"),
            (&[1, 0], "0,1"),
            (&[0, 1, 2], "0-2"),
            (&[7, 1, 3, 5, 4], "1,3-5,7"),
            (&[1, 2, 4, 5, 6], "1,2,4-6"),
        ] {
            let set: Indexes = indexes.iter().copied().collect();
            assert_eq!(set.to_string(), written);
            assert_eq!(Indexes::parse(written, 8), set);
        }
    }

    #[test]
    fn what_is_no_index_of_the_job_is_passed_over() {
        assert_eq!(Indexes::parse("1,x,3-5,-,9-2,7,8-", 5).to_string(), "1,3,4");
        assert_eq!(Indexes::parse("3-4294967295", 5).to_string(), "3,4");
        assert!(Indexes::parse("0", 0).is_empty());
    }

    proptest! {
        #[test]
        fn a_set_is_a_set(one in proptest::collection::btree_set(0_u32..40, 0..30), two in proptest::collection::btree_set(0_u32..40, 0..30)) {
            let set: Indexes = one.iter().copied().collect();
            let other: Indexes = two.iter().copied().collect();
            prop_assert_eq!(set.count(), one.len());
            prop_assert_eq!(Indexes::parse(&set.to_string(), 40), set.clone());
            for index in 0..45 {
                prop_assert_eq!(set.contains(index), one.contains(&index));
            }
            let union: BTreeSet<u32> = &one | &two;
            prop_assert_eq!(set.with(&other), union.into_iter().collect());
            prop_assert_eq!(set.common(&other), (&one & &two).len());
            let missing: Vec<u32> = set.missing(45).collect();
            prop_assert_eq!(missing, (0..45).filter(|index| !one.contains(index)).collect::<Vec<_>>());
        }
    }
}
