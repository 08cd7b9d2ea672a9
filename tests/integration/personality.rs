//! /linux/personality.

use serde_json::json;

use crate::sandbox::Sandbox;
use crate::tests;

tests![
    a_32_bit_personality_shows_in_uname,
    the_native_personality_is_the_default,
    an_unknown_domain_is_refused,
    flags_are_refused,
];

fn a_32_bit_personality_shows_in_uname() {
    let mut c = Sandbox::new();
    let seen = c.set("/linux/personality", json!({"domain": "LINUX32"})).report();
    // PER_LINUX32
    assert_eq!(seen["personality"], "00000008");
    assert_ne!(seen["uname"]["machine"], std::env::consts::ARCH);
}

fn the_native_personality_is_the_default() {
    for domain in [json!(null), json!({"domain": "LINUX"})] {
        let mut c = Sandbox::new();
        let seen = c.set("/linux/personality", domain).report();
        assert_eq!(
            (&seen["personality"], &seen["uname"]["machine"]),
            (&json!("00000000"), &json!(std::env::consts::ARCH))
        );
    }
}

fn an_unknown_domain_is_refused() {
    Sandbox::new().set("/linux/personality", json!({"domain": "BSD"})).refused("/linux/personality/domain");
    Sandbox::new().set("/linux/personality", json!({})).refused("/linux/personality/domain");
}

fn flags_are_refused() {
    let personality = json!({"domain": "LINUX", "flags": ["ADDR_NO_RANDOMIZE"]});
    Sandbox::new().set("/linux/personality", personality).refused("/linux/personality/flags");
}
