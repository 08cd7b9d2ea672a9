//! The session keyring: the container's own, by its id.

use crate::sandbox::Sandbox;
use crate::tests;

tests![
    a_container_has_its_own_session_keyring,
    two_containers_have_different_keyrings,
    no_new_keyring_keeps_the_callers
];

fn name(description: &str) -> &str {
    description.rsplit(';').next().unwrap()
}

fn a_container_has_its_own_session_keyring() {
    let mut c = Sandbox::new();
    let seen = c.report();
    // All for who has it; view, read, search and link for its owner.
    assert_eq!(seen["keyring"], format!("keyring;0;0;3f1b0000;_ses.{}", c.id));
}

fn two_containers_have_different_keyrings() {
    let (mut a, mut b) = (Sandbox::new(), Sandbox::new());
    assert_ne!(a.report()["keyring"], b.report()["keyring"]);
}

fn no_new_keyring_keeps_the_callers() {
    let mut c = Sandbox::new();
    c.acts("report").write_config();
    let seen = c.keel(&["run", "--no-new-keyring", &c.id]).ok().json();
    assert_ne!(name(seen["keyring"].as_str().unwrap_or(";none")), format!("_ses.{}", c.id));
}
