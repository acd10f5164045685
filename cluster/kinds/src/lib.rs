//! The kinds that the API server has built in: names, columns, defaults and rules of each, as data and as functions without side effects.

mod autoscaler;
mod columns;
mod cron;
mod defaults;
mod field;
mod image;
mod kind;
mod list;
mod name;
mod neediest;
pub mod policy;
mod prepare;
mod quantity;
mod quota;
mod read;
mod selectable;
mod selector;
mod time;
mod validate;
mod volume;
mod write;

pub use columns::{SCALE as SCALE_COLUMNS, human_duration};
pub use cron::{Calendar, Schedule};
pub use kind::{Cell, Column, Invalid, Kind, Reason, Subresource};
pub use list::{all, by_kind, by_plural};
pub use name::dns_subdomain;
pub use neediest::{Amount, Runs, neediest};
pub use quantity::Quantity;
pub use quota::COUNTED;
pub use read::at;
pub use selectable::{looked_at, selectable};
pub use validate::{ephemeral_containers_update, resize_update};
pub use volume::Room;
