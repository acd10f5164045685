//! The real shim over ttrpc, with real containers. Needs root and Debian's busybox-static.

mod containers;
mod events;
mod exec;
mod front;
mod group;
mod harness;
mod leftovers;
mod logs;
mod process;
mod rest;
mod sandbox;
mod stdio;
