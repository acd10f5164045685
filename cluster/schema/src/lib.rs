//! What the API's kinds are made of, as data: fields and their types, protobuf numbers, keys of lists, how they are merged.
//!
//! One table has all built-in kinds; a CustomResourceDefinition makes a [`Schema`] of its own. Everything that must know an object's form reads it here:
//! the decoder of protobuf bodies, strict decoding, patches, apply, pruning and OpenAPI.

mod body;
mod conform;
mod custom;
mod error;
#[cfg(any(test, feature = "fuzz"))]
pub mod fuzz;
pub mod openapi;
mod path;
mod protobuf;
mod quantity;
mod table;
mod time;
mod types;

pub use body::{Body, MAX_DEPTH, MAX_VALUES};
pub use custom::{Cause, CustomSchema, check as check_custom};
pub use error::Error;
pub use path::Path;
pub use protobuf::MAGIC;
pub use types::{
    Field, GroupVersionKind, IntegerFormat, ListKind, MapKind, ObjectId, ObjectType, Schema,
    StringFormat, Type,
};
