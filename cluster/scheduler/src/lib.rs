//! Finds each pod a node.
//!
//! ```text
//! API server ─ watches ─▶ drive ─▶ scheduler ─┬─ queue     pods that wait, and what may cure them
//!            ◀ bindings ┘                     ├─ cluster   nodes as a dense array, pods, what is counted of them
//!                                             ├─ decide    filters and scores; a class's answers are kept until a node changes
//!                                             └─ preempt   whom to end for whom
//! ```
//!
//! Pods that want the same are of one class (Borg's equivalence classes): for the second one only nodes that have changed since are asked. What depends on
//! other nodes' pods (affinity, spread) is counted as pods come and go, and summed up once a decision.
//!
//! Invariant: [`Scheduler`] does no I/O and has no clock but the queue's: what it decides can be tested against an oracle.
//! Invariant: a pod that was decided counts as there at once, and until it is known not to be.

mod amounts;
mod around;
mod class;
mod cluster;
mod decide;
mod drive;
mod fit;
mod node;
#[cfg(test)]
mod oracle;
mod pod;
mod preempt;
mod profile;
mod queue;
mod scheduler;
mod score;
mod selector;
mod tally;
mod unfit;
mod volumes;

pub use decide::Settings;
pub use drive::{Error, run};
pub use fit::Demands;
pub use pod::PodFacts;
pub use profile::{Profile, Weights};
pub use scheduler::{Decision, Scheduler};
pub use score::Fit;
pub use unfit::{Refusal, Unfit};
pub use volumes::{Seen, Step};
