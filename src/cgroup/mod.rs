//! The container's cgroup (v2).

pub mod devices;
