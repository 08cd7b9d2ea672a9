//! /hostname and /domainname.

use serde_json::{Value, json};

use crate::sandbox::Sandbox;
use crate::tests;

tests![
    both_names_are_seen_inside,
    without_a_hostname_the_hosts_is_inherited,
    the_hosts_names_stay,
    a_name_without_its_own_uts_namespace_is_refused,
    a_name_of_more_than_64_bytes_is_refused,
    a_name_that_is_no_string_is_refused,
];

fn names(report: &Value) -> (&str, &str) {
    (report["uname"]["hostname"].as_str().unwrap(), report["uname"]["domainname"].as_str().unwrap())
}

fn host() -> (String, String) {
    let read = |name| std::fs::read_to_string(format!("/proc/sys/kernel/{name}")).unwrap().trim().to_owned();
    (read("hostname"), read("domainname"))
}

fn both_names_are_seen_inside() {
    let mut c = Sandbox::new();
    c.set("/hostname", "mrsdalloway").set("/domainname", "foobarbaz.test");
    assert_eq!(names(&c.report()), ("mrsdalloway", "foobarbaz.test"));
}

fn without_a_hostname_the_hosts_is_inherited() {
    let mut c = Sandbox::new();
    let seen = c.unset("/hostname").report();
    assert_eq!(names(&seen), (&*host().0, &*host().1));
}

fn the_hosts_names_stay() {
    let before = host();
    Sandbox::new().set("/hostname", "a").set("/domainname", "b").report();
    assert_eq!(host(), before);
}

fn a_name_without_its_own_uts_namespace_is_refused() {
    let before = host();
    Sandbox::new().without_namespace("uts").refused("/hostname");
    Sandbox::new().unset("/hostname").set("/domainname", "d").without_namespace("uts").refused("/domainname");
    assert_eq!(host(), before);
}

fn a_name_of_more_than_64_bytes_is_refused() {
    let mut c = Sandbox::new();
    assert_eq!(names(&c.set("/hostname", "n".repeat(64)).report()).0, "n".repeat(64));
    c.set("/hostname", "n".repeat(65)).refused("/hostname");
    Sandbox::new().set("/domainname", "n".repeat(65)).refused("/domainname");
}

fn a_name_that_is_no_string_is_refused() {
    Sandbox::new().set("/hostname", json!(["a"])).refused("/hostname");
}
