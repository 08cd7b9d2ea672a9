//! keel: which file owns which section of config.json.
//!
//! | config.json | file |
//! |---|---|
//! | the order of all of it | [`create`], [`init`] |
#![deny(unsafe_code)]

// Base: used by everything.
pub mod error;
pub mod handover;
pub mod host;
pub mod log;
pub mod netlink;
pub mod proc;
pub mod root;
pub mod socket;
pub mod spec;
pub mod sys;

// Facilities: one file each, none uses another.
pub mod cgroup;
pub mod linux;

// The story.
pub mod bundle;
pub mod container;
pub mod fds;
pub mod gate;
pub mod init;
pub mod notify;
pub mod plan;
pub mod relay;
pub mod spawn;
pub mod sync;

// Operations.
pub mod check;
pub mod cli;
pub mod create;
pub mod delete;
pub mod kill;
pub mod list;
pub mod pause;
pub mod ps;
pub mod run;
pub mod spec_command;
pub mod start;
pub mod state;
pub mod update;
