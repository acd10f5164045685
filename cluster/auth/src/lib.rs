//! Who asks the API server, and what they may.

mod attributes;

pub use attributes::{Attributes, Authorizer, Decision, User};
