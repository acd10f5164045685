//! What a pod needs at its neediest, by upstream's rule (KEP 753): its containers together with its sidecars, or one of its init containers beside the
//! sidecars that were begun before it, whichever is more. For requests and limits alike, in whatever they are summed.

/// Amounts of one resource, or of many, each by itself.
pub trait Amount: Default {
    /// Adds each to its like.
    fn add(&mut self, more: &Self);
    /// Raises each to its like, where that is more.
    fn at_least(&mut self, least: &Self);
}

/// How long a container runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Runs {
    /// Beside all others of its kind.
    Main,
    /// From its turn among the init containers to the end.
    Sidecar,
    /// In its turn alone.
    Init,
}

/// Of a pod's containers, where init containers and sidecars are in their order.
pub fn neediest<A: Amount>(containers: impl IntoIterator<Item = (Runs, A)>) -> A {
    let (mut together, mut sidecars, mut most) = (A::default(), A::default(), A::default());
    for (runs, mut own) in containers {
        match runs {
            Runs::Main => together.add(&own),
            // all of them run beside the containers, which is more than any of their beginnings
            Runs::Sidecar => {
                together.add(&own);
                sidecars.add(&own);
            }
            Runs::Init => {
                own.add(&sidecars);
                most.at_least(&own);
            }
        }
    }
    together.at_least(&most);
    together
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Clone, Default, PartialEq)]
    struct Two([u64; 2]);

    impl Amount for Two {
        fn add(&mut self, more: &Self) {
            (self.0[0], self.0[1]) = (self.0[0] + more.0[0], self.0[1] + more.0[1]);
        }

        fn at_least(&mut self, least: &Self) {
            self.0 = [self.0[0].max(least.0[0]), self.0[1].max(least.0[1])];
        }
    }

    /// What runs at each moment of the pod's life.
    fn moments(all: &[(Runs, [u64; 2])]) -> Vec<Vec<[u64; 2]>> {
        let mut moments = Vec::new();
        let mut up = Vec::new();
        for (runs, own) in all.iter().filter(|(runs, _)| *runs != Runs::Main) {
            moments.push(up.iter().copied().chain([*own]).collect());
            if *runs == Runs::Sidecar {
                up.push(*own);
            }
        }
        let mains = all.iter().filter(|(runs, _)| *runs == Runs::Main);
        moments.push(up.into_iter().chain(mains.map(|(_, own)| *own)).collect());
        moments
    }

    fn runs() -> impl Strategy<Value = Runs> {
        prop_oneof![Just(Runs::Main), Just(Runs::Sidecar), Just(Runs::Init)]
    }

    proptest! {
        #[test]
        fn it_is_the_most_of_each_that_any_moment_of_its_life_needs(
            all in proptest::collection::vec((runs(), any::<[u16; 2]>()), 0..8)
        ) {
            let all: Vec<_> = all.into_iter().map(|(runs, own)| (runs, own.map(u64::from))).collect();
            let most = |at: usize| {
                let sums = moments(&all).into_iter().map(|up| up.iter().map(|own| own[at]).sum::<u64>());
                sums.max().unwrap_or(0)
            };
            let needs = neediest(all.iter().map(|(runs, own)| (*runs, Two(*own))));
            prop_assert_eq!(needs, Two([most(0), most(1)]));
        }
    }
}
