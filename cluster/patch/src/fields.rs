//! Which fields somebody owns: paths into an object, sets of them, and the form that `managedFields` keeps them in.

mod path;
mod set;
mod v1;

pub(crate) use path::equal_values;
pub use path::{PathElement, show_path};
pub use set::FieldSet;
pub use v1::FieldsError;
