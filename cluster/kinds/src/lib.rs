//! The kinds that the API server has built in: names, columns, defaults and rules of each, as data and as functions without side effects.

mod kind;

pub use kind::{Cell, Column, Invalid, Kind, Reason, Subresource};
