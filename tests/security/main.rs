//! Attacks, each known from somewhere: the ids are classes of failure, the comments name public cases.

mod annotations;
mod bombs;
mod cgroup_escape;
mod console;
mod descriptors;
mod exec_weaker;
mod hostile_layers;
mod hostile_passwd;
mod image_volumes;
mod keyrings;
mod links_in_images;
mod log_paths;
mod masked_paths;
mod mount_races;
mod output_flood;
mod removal;
mod runtime_binary;
mod siblings;
mod sockets;
mod state_dirs;
mod stream_leaks;
mod stream_tokens;
mod sysctls;
mod user_overflow;
