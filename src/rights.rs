//! What this process may do on the host: as its root, as the root of a user namespace, or as an ordinary user.
//!
//! [user_namespaces(7)](https://man7.org/linux/man-pages/man7/user_namespaces.7.html)

use nix::sys::stat::stat;
use nix::unistd::geteuid;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Rights {
    /// Of the host's root, or of what its capabilities leave of it.
    #[default]
    Root,
    /// Of the root of a user namespace, over what belongs to that: no device can be made, no device filter loaded.
    Namespaced,
    /// Of a user, who gets all others from a user namespace of the container.
    User,
}

/// Of the host's user namespace, at all times: PROC_USER_INIT_INO.
const FIRST_USER_NAMESPACE: u64 = 0xEFFF_FFFD;

impl Rights {
    pub fn of_caller() -> Self {
        if !geteuid().is_root() {
            return Self::User;
        }
        match stat("/proc/self/ns/user") {
            Ok(namespace) if namespace.st_ino != FIRST_USER_NAMESPACE => Self::Namespaced,
            // Without /proc nothing goes, and what needs it says so.
            Ok(_) | Err(_) => Self::Root,
        }
    }

    pub fn is_user(self) -> bool {
        self == Self::User
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rights_are_those_of_the_user_and_its_namespace() {
        let map = std::fs::read_to_string("/proc/self/uid_map").unwrap();
        let is_first = map.split_whitespace().eq(["0", "0", "4294967295"]);
        let expected = match (geteuid().is_root(), is_first) {
            (false, _) => Rights::User,
            (true, false) => Rights::Namespaced,
            (true, true) => Rights::Root,
        };
        assert_eq!(Rights::of_caller(), expected);
    }
}
