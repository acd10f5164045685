//! Daemons and shims that die between any two steps, and clients that give up.

mod creates;
mod deadlines;
mod exits;
mod random;
mod shim_death;
mod shim_silence;
mod sites;
