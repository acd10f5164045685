//! Where pods come from.

mod directory;

pub use directory::Directory;
