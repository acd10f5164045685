//! The kinds that the API server has built in: names, columns, defaults and rules of each, as data and as functions without side effects.

mod columns;
mod defaults;
mod image;
mod kind;
mod list;
mod quantity;
mod read;
mod selectable;
mod selector;
mod time;
mod write;

pub use columns::{SCALE as SCALE_COLUMNS, human_duration};
pub use kind::{Cell, Column, Invalid, Kind, Reason, Subresource};
pub use list::{all, by_kind, by_plural};
pub use selectable::selectable;
