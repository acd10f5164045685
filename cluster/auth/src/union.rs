use std::sync::Arc;

use crate::{Attributes, Authorizer, Decision, MASTERS, User};

/// Several authorizers, asked in their order: the first opinion holds. `system:masters` may everything, before any of them is asked.
#[derive(Debug)]
pub struct Union(pub Vec<Arc<dyn Authorizer>>);

impl Authorizer for Union {
    fn authorize(&self, user: &User, asked: &Attributes) -> Decision {
        if user.groups.iter().any(|group| group == MASTERS) {
            return Decision::Allow {
                reason: String::new(),
            };
        }
        let mut reasons = Vec::new();
        for authorizer in &self.0 {
            match authorizer.authorize(user, asked) {
                Decision::NoOpinion { reason } if reason.is_empty() => {}
                Decision::NoOpinion { reason } => reasons.push(reason),
                opinion => return opinion,
            }
        }
        Decision::NoOpinion {
            reason: reasons.join("; "),
        }
    }
}
