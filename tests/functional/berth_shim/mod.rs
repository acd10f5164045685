//! `berth shim`: any shim v2 by hand. Each case is asked of our own shim and of Debian's for runc, and at each end nothing is left.

mod faults;
mod life;
mod streams;
mod terminal;
mod yard;
