//! Who asks the API server, and what they may.
//!
//! Authentication: [`pki`] makes the certificates and [`x509`] reads a client's; [`token`] issues and checks the tokens of ServiceAccounts,
//! [`bootstrap`] those of nodes that join. Authorization: [`rbac`] and [`node`], asked one after the other by [`Union`]; both keep an index
//! that is fed with each object as it changes (`set`), and read nothing else. [`restriction`] is what a node may write beyond that, and
//! [`review`] the API's own questions (SubjectAccessReview).

mod any_certificate;
mod attributes;
pub mod bootstrap;
mod error;
pub mod node;
pub mod pki;
pub mod rbac;
pub mod restriction;
pub mod review;
pub mod token;
mod union;
pub mod x509;

pub use any_certificate::any_certificate;
pub use attributes::{Attributes, Authorizer, Decision, User, account_groups};
pub use error::Error;
pub use node::NodeAuthorizer;
pub use pki::Pki;
pub use rbac::Rbac;
pub use token::Tokens;
pub use union::Union;

/// The group that may everything.
pub const MASTERS: &str = "system:masters";
/// In a user's `extra`: which certificate or token it is, so that audit can tell one from another.
pub const CREDENTIAL_ID: &str = "authentication.kubernetes.io/credential-id";
/// The group of all who said who they are.
pub const AUTHENTICATED: &str = "system:authenticated";
/// The group of all who did not, and [`User::anonymous`]'s only one.
pub const UNAUTHENTICATED: &str = "system:unauthenticated";
/// The group of all nodes; a node's user is [`NODE_PREFIX`] and its name.
pub const NODES: &str = "system:nodes";
pub const NODE_PREFIX: &str = "system:node:";
