//! The API server that kubectl uses: one way for every kind, led by data.
//!
//! ```text
//!   serve ── router ─┬─ authenticate, authorize, audit
//!                    ├─ discovery, openapi, health
//!                    ├─ log, exec, proxy … ─ passage ──────────────────► a kubelet, a pod, a service
//!                    └─ a resource ─┬─ read, watch ──────────────── cache ◄─ feed ◄─┐
//!                                   └─ write, patch, delete ─────── storage ─────── store
//!                                        └─ admission, fields            controllers ▲
//! ```
//!
//! What a kind is, is data: of `berth_kinds` and `berth_schema` for those that are built in, of their definitions for custom ones ([`custom`]).
//!
//! Invariant: nothing but [`storage`] writes, and nothing but [`cache`] and [`storage`] reads the store.

mod admission;
mod api;
mod audit;
mod authenticate;
mod body;
mod cache;
mod catalog;
mod cipher;
mod clock;
mod collection;
mod controllers;
mod custom;
mod delete;
mod discovery;
mod failure;
mod fields;
mod figures;
#[cfg(any(test, feature = "fuzz"))]
pub mod fuzz;
mod health;
mod metrics;
mod object;
mod openapi;
mod parts;
mod passage;
mod patch;
mod queue;
mod read;
mod request;
mod respond;
mod review;
mod router;
mod selector;
mod serve;
mod server;
mod service_ip;
mod storage;
mod subresource;
mod table;
mod watch;
mod write;

pub use router::{InProcess, Router};
pub use server::{Config, Error, Server};
