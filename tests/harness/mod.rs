//! What the test programs have in common: lists of tests that may be skipped for a reason.
//!
//! With STRICT=1 a test that has to be skipped is a failure, unless MAY_SKIP has a line with just its reason.

use std::cell::RefCell;
use std::env;

use libtest_mimic::{Arguments, Completion, Conclusion, Failed, Trial};

/// A test file's list of its tests; one that is forgotten is dead code, which the lint rejects.
#[macro_export]
macro_rules! tests {
    ($($name:ident),+ $(,)?) => {
        pub const TESTS: &[$crate::harness::Test] =
            &[$($crate::harness::Test { name: concat!(module_path!(), "::", stringify!($name)), run: $name }),+];
    };
}

/// Ends the test as skipped unless all needs are met: `needs!(program("strace"), root());`.
#[macro_export]
macro_rules! needs {
    ($($need:expr),+ $(,)?) => {
        $(if let Err(why) = $need { return $crate::harness::skip(why) })+
    };
}

pub struct Test {
    pub name: &'static str,
    pub run: fn(),
}

thread_local! {
    /// Why the test that runs on this thread was skipped.
    static SKIPPED: RefCell<Option<String>> = const { RefCell::new(None) };
}

pub fn skip(why: String) {
    SKIPPED.set(Some(why));
}

fn skipped() -> Option<String> {
    SKIPPED.take()
}

/// Runs the tests of a program of this name. `prepared` is asked before each whether it can run at all.
pub fn run(program: &str, tests: &[&'static [Test]], prepared: fn() -> Result<(), String>) -> Conclusion {
    let tests = tests.iter().copied().flatten();
    libtest_mimic::run(&Arguments::from_args(), tests.map(|test| trial(program, test, prepared)).collect())
}

fn trial(program: &str, test: &'static Test, prepared: fn() -> Result<(), String>) -> Trial {
    let name = test.name.strip_prefix(program).and_then(|name| name.strip_prefix("::")).unwrap_or(test.name);
    Trial::ignorable_test(name, move || {
        match prepared() {
            Ok(()) => (test.run)(),
            Err(why) => skip(why),
        }
        match skipped() {
            None => Ok(Completion::Completed),
            Some(why) if env::var("STRICT").is_ok_and(|strict| strict == "1") && !may_skip(&why) => {
                Err(Failed::from(format!("skipped, but STRICT=1: {why}")))
            }
            Some(why) => {
                eprintln!("SKIP {name}: {why}");
                Ok(Completion::ignored_with(why))
            }
        }
    })
}

fn may_skip(why: &str) -> bool {
    env::var("MAY_SKIP").is_ok_and(|reasons| reasons.lines().any(|reason| reason.trim() == why))
}
