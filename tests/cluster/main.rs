//! The API server, by its real clients: what they send, what they understand, what they must not be able to do.

mod accounts;
mod admission;
mod aggregated;
mod batch;
mod clients;
mod collection;
mod commands;
mod definitions;
mod etcdctl;
mod hostile;
mod kube_rs;
mod kubelets;
mod manifests;
mod nodes;
mod policies;
mod restarts;
mod scheduler;
mod starting;
mod stock;
mod transcripts;
mod trouble;
mod volumes;
mod watches;
mod webhooks;
mod workloads;
