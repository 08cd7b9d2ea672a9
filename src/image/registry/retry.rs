//! When to ask again, and when to give up.

use std::time::{Duration, SystemTime};

use crate::error::{Error, Result};

const MOST_ATTEMPTS: u32 = 5;
const FIRST_WAIT: Duration = Duration::from_millis(500);
/// A registry that wants more patience gets none: whoever called us decides.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// What failed, and whether the same may succeed if it is done again.
pub enum Failure {
    Final(Error),
    /// Not before so long, if the other side has said so.
    Passing(Error, Option<Duration>),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Final(error)
    }
}

impl Failure {
    pub fn into_error(self) -> Error {
        match self {
            Self::Final(error) | Self::Passing(error, _) => error,
        }
    }
}

#[derive(Default)]
pub struct Backoff {
    failures: u32,
}

impl Backoff {
    /// Waits twice as long each time, or as long as asked; or passes the error on.
    pub fn wait(&mut self, failure: Failure, notify: fn(&str)) -> Result<()> {
        let (error, asked) = match failure {
            Failure::Final(error) => return Err(error),
            Failure::Passing(error, asked) => (error, asked),
        };
        self.failures += 1;
        if self.failures >= MOST_ATTEMPTS {
            return Err(error);
        }
        if let Some(asked) = asked.filter(|asked| *asked > LONGEST_WAIT) {
            return Err(error.because(format!("wait {} s, as the registry asks", asked.as_secs())));
        }
        let wait = asked.unwrap_or_else(|| jittered(FIRST_WAIT * 2u32.pow(self.failures - 1)));
        notify(&format!("{error}; again in {:.1} s", wait.as_secs_f32()));
        std::thread::sleep(wait);
        Ok(())
    }
}

/// Up to a quarter longer, so that many who failed together do not come back together.
fn jittered(wait: Duration) -> Duration {
    let nanos = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().subsec_nanos();
    wait + wait / 4 * (nanos / 1000 % 1000) / 1000
}

/// `Retry-After`: seconds, or a date. RFC 9110, section 10.2.3.
pub fn retry_after(header: &str, now: SystemTime) -> Option<Duration> {
    match header.trim().parse() {
        Ok(seconds) => Some(Duration::from_secs(seconds)),
        Err(_) => Some(httpdate::parse_http_date(header).ok()?.duration_since(now).unwrap_or_default()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let now = httpdate::parse_http_date("Wed, 21 Oct 2015 07:28:00 GMT").unwrap();
        for (header, seconds) in [
            ("7", Some(7)),
            (" 0 ", Some(0)),
            ("Wed, 21 Oct 2015 07:28:30 GMT", Some(30)),
            ("Wed, 21 Oct 2015 07:00:00 GMT", Some(0)),
            ("-1", None),
            ("soon", None),
        ] {
            assert_eq!(retry_after(header, now), seconds.map(Duration::from_secs), "{header}");
        }
    }

    #[test]
    fn who_asks_for_too_much_patience_is_given_up() {
        let asked = Failure::Passing(Error::new("429"), Some(Duration::from_secs(3600)));
        let error = Backoff::default().wait(asked, |_| ()).unwrap_err();
        assert_eq!(error.to_string(), "wait 3600 s, as the registry asks: 429");
        let mut backoff = Backoff::default();
        let mut attempts = 1;
        while backoff.wait(Failure::Passing(Error::new("503"), Some(Duration::ZERO)), |_| ()).is_ok() {
            attempts += 1;
        }
        assert_eq!(attempts, 5);
    }
}
