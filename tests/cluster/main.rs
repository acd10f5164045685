//! The API server, by its real clients: what they send, what they understand, what they must not be able to do.

mod collection;
mod commands;
mod definitions;
mod hostile;
mod restarts;
mod watches;
