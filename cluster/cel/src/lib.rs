//! CEL, the Common Expression Language, with the libraries that Kubernetes adds to it, over JSON as it lies there.
//!
//! ```text
//!   text ── token ── parse ──▶ Expr ── check (names, functions, fields) ──▶ Program ── eval, within a Budget ──▶ Val
//! ```
//!
//! An expression is somebody's from outside: its length, its depth, the steps that it takes and what they make are bounded ([`Budget`]), and a function or a
//! variable that isn't there is refused by its name when it is compiled, not when an object meets it.
//!
//! It is our own because of these bounds: the interpreter of the crate `cel` (0.15) has none, its comprehensions copy what they walk over, and its parser
//! brings some thirty crates with it.
//!
//! Deliberately absent: messages in protobuf, `cel.bind`, `authorizer`, and a whole type checker: what is known of types is held against what is asked of
//! them, and what isn't known is found out when it runs.

mod check;
mod error;
mod eval;
mod expr;
mod library;
mod operate;
mod parse;
mod program;
mod shape;
mod token;
mod value;

pub use error::Error;
pub use eval::Budget;
pub use program::{Program, Wants};
pub use shape::{Fields, Shape};
pub use value::Val;
