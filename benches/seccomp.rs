//! cargo bench --bench seccomp: how long a profile as large as those of the engines takes to compile and to load.
//!     cargo bench --bench seccomp -- config.json      that of a bundle
//!     cargo bench --bench seccomp -- --print          only prints that profile, as /linux/seccomp has it

mod profile;

use std::env;
use std::fs;
use std::time::{Duration, Instant};

use keel::linux::seccomp::Seccomp;
use keel::spec::{Node, Report, parse};
use serde_json::{Map, json};

const ROUNDS: usize = 300;

fn main() {
    if env::args().any(|arg| arg == "--print") {
        return println!("{}", profile::profile());
    }
    let config = match env::args().skip(1).find(|arg| arg.ends_with(".json")) {
        Some(path) => parse(&fs::read(path).expect("a config.json"), &Report::default()).expect("JSON"),
        None => Map::from_iter([("linux".into(), json!({"seccomp": profile::profile()}))]),
    };
    let plan = || {
        let report = Report::default();
        let linux = Node::root(&config, &report).object("linux").expect("an object");
        Seccomp::plan(&linux).expect("a seccomp profile")
    };
    let seccomp = plan();
    println!("{} instructions: {:?}", seccomp.program().len(), seccomp.sizes());
    report("compile", (0..ROUNDS).map(|_| timed(&plan)));
    // A filter is of one thread and ends with it.
    let load = || timed(&|| seccomp.load().expect("the kernel takes it"));
    report("load", (0..ROUNDS).map(|_| std::thread::scope(|s| s.spawn(load).join().expect("it returns"))));
}

fn timed<T>(what: &impl Fn() -> T) -> Duration {
    let begin = Instant::now();
    let result = what();
    let time = begin.elapsed();
    drop(result);
    time
}

fn report(what: &str, times: impl Iterator<Item = Duration>) {
    let mut times: Vec<Duration> = times.collect();
    times.sort_unstable();
    println!("{what:8} min {:?}, median {:?}", times[0], times[times.len() / 2]);
}
