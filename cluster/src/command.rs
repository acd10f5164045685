//! One file a command.

pub mod audit;
pub mod checkpoint;
pub mod exec;
pub mod image;
pub mod logs;
pub mod pod;
pub mod progress;
pub mod run;
pub mod shell;
pub mod shim;
pub mod up;
pub mod version;
