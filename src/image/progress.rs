//! What the user sees while layers come in, on stderr: a line a layer on a terminal, a plain line now and then
//! elsewhere, or JSON for programs.
//!
//! Nothing here has a thread of its own: whoever moves bytes says so, and what is due is written then.

use std::io::{self, IsTerminal, Read, Write, stderr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use clap::ValueEnum;
use indicatif::{HumanBytes, MultiProgress, ProgressBar, ProgressStyle};
use serde_json::json;

use crate::image::digest::Digest;

/// Not oftener is a line written that is not overwritten.
const EVERY: Duration = Duration::from_secs(2);

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// A line a layer on a terminal, plain lines elsewhere
    #[default]
    Auto,
    Plain,
    Json,
    None,
}

pub struct Progress {
    shown: Shown,
    layers: AtomicU64,
    layers_done: AtomicU64,
    total: AtomicU64,   // bytes
    fetched: AtomicU64, // bytes
    started: Instant,
    last: Mutex<Instant>,
}

enum Shown {
    Bars { bars: MultiProgress, sum: ProgressBar },
    Plain,
    Json,
    None,
}

/// One layer on its way.
pub struct Task<'p> {
    progress: &'p Progress,
    bar: Option<ProgressBar>,
    digest: String,
    size: u64,  // bytes
    moved: u64, // bytes
}

impl Progress {
    pub fn new(mode: Mode, quiet: bool) -> Self {
        let shown = match mode {
            _ if quiet => Shown::None,
            Mode::Auto if stderr().is_terminal() => {
                let bars = MultiProgress::new();
                let sum = bars.add(ProgressBar::new(0).with_style(style(
                    "{prefix:15} {wide_bar} {bytes:>10} of {total_bytes:10} {bytes_per_sec:>12}, {eta} left",
                )));
                sum.set_prefix("all");
                Shown::Bars { bars, sum }
            }
            Mode::Auto | Mode::Plain => Shown::Plain,
            Mode::Json => Shown::Json,
            Mode::None => Shown::None,
        };
        let now = Instant::now();
        Self {
            shown,
            layers: AtomicU64::new(0),
            layers_done: AtomicU64::new(0),
            total: AtomicU64::new(0),
            fetched: AtomicU64::new(0),
            started: now,
            last: Mutex::new(now),
        }
    }

    /// An image has so many layers, of so many bytes together.
    pub fn expect(&self, layers: usize, size: u64) {
        self.layers.fetch_add(layers as u64, Ordering::Relaxed);
        self.grow(size as i64);
    }

    /// There is more to move than was thought, or less.
    fn grow(&self, size: i64) {
        let total = self.total.fetch_add(size as u64, Ordering::Relaxed).wrapping_add(size as u64);
        if let Shown::Bars { sum, .. } = &self.shown {
            sum.set_length(total);
        }
    }

    /// A layer is going to be looked at.
    pub fn layer(&self, digest: &Digest, size: u64) -> Task<'_> {
        let digest = format!("{}:{}", digest.algorithm().name(), &digest.hex()[..12]);
        let bar = match &self.shown {
            Shown::Bars { bars, sum } => {
                let bar = bars.insert_before(sum, ProgressBar::new(size));
                bar.set_style(style("{prefix:19} {msg:9} {wide_bar} {bytes:>10} {bytes_per_sec:>12}"));
                bar.set_prefix(digest.clone());
                bar.set_message("waiting");
                Some(bar)
            }
            _ => None,
        };
        Task { progress: self, bar, digest, size, moved: 0 }
    }

    /// Something that the user may like to know, which is no error.
    pub fn say(&self, text: &str) {
        // What others sent stands in it: nothing of that is for the terminal to obey.
        let text: String = text.chars().filter(|c| !c.is_control()).collect();
        match &self.shown {
            // EPIPE: there is nobody left to tell.
            Shown::Bars { bars, .. } => drop(bars.println(format!("keel-image: {text}"))),
            Shown::Plain => line(&format!("keel-image: {text}")),
            Shown::Json => line(&json!({"event": "warning", "text": text}).to_string()),
            Shown::None => {}
        }
    }

    fn moved(&self, bytes: u64) {
        let fetched = self.fetched.fetch_add(bytes, Ordering::Relaxed) + bytes;
        match &self.shown {
            Shown::Bars { sum, .. } => sum.set_position(fetched),
            Shown::Plain | Shown::Json => {
                let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
                if last.elapsed() >= EVERY {
                    *last = Instant::now();
                    self.summary(fetched);
                }
            }
            Shown::None => {}
        }
    }

    fn summary(&self, fetched: u64) {
        let (done, layers) = (self.layers_done.load(Ordering::Relaxed), self.layers.load(Ordering::Relaxed));
        let total = self.total.load(Ordering::Relaxed);
        let rate = (fetched as f64 / self.started.elapsed().as_secs_f64()) as u64;
        if let Shown::Json = self.shown {
            let text = json!({"event": "progress", "layers": layers, "layersDone": done, "bytes": fetched,
                "total": total, "bytesPerSecond": rate});
            return line(&text.to_string());
        }
        line(&format!(
            "keel-image: {done} of {layers} layers, {} of {}, {}/s",
            HumanBytes(fetched),
            HumanBytes(total),
            HumanBytes(rate)
        ));
    }

    fn event(&self, digest: &str, state: &str, size: u64) {
        if let Shown::Json = self.shown {
            line(&json!({"event": "layer", "digest": digest, "state": state, "size": size}).to_string());
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Shown::Bars { bars, .. } = &self.shown {
            // The result follows; EPIPE: there is nobody to clear them for.
            let _ = bars.clear();
        }
    }
}

impl Task<'_> {
    /// `state` is "fetching" from elsewhere, or "unpacking" what is here.
    pub fn begin(&self, state: &'static str) {
        if let Some(bar) = &self.bar {
            bar.set_message(state);
            bar.reset_elapsed();
        }
        self.progress.event(&self.digest, state, self.size);
    }

    /// Another begin follows: what was moved does not count.
    pub fn restart(&mut self) {
        self.progress.fetched.fetch_sub(self.moved, Ordering::Relaxed);
        self.moved = 0;
        if let Some(bar) = &self.bar {
            bar.set_position(0);
        }
    }

    /// `state` is "done", "cached" if there was nothing to do, or "fetched" if somebody else does the rest.
    pub fn end(self, state: &'static str) {
        match state {
            // It is moved once more.
            "fetched" => self.progress.grow(self.moved as i64),
            state => {
                self.progress.layers_done.fetch_add(1, Ordering::Relaxed);
                if state == "cached" {
                    self.progress.grow(-(self.size as i64));
                }
            }
        }
        if let Some(bar) = &self.bar {
            bar.finish_with_message(state);
        }
        self.progress.event(&self.digest, state, self.size);
    }

    fn add(&mut self, bytes: u64) {
        self.moved += bytes;
        if let Some(bar) = &self.bar {
            bar.set_position(self.moved);
        }
        self.progress.moved(bytes);
    }
}

/// A stream whose bytes are counted.
pub struct Counted<'t, 'p, R> {
    pub inner: R,
    pub task: &'t mut Task<'p>,
}

impl<R: Read> Read for Counted<'_, '_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.task.add(read as u64);
        Ok(read)
    }
}

fn style(template: &str) -> ProgressStyle {
    // The templates are constants, which a test reads.
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

fn line(text: &str) {
    // EPIPE: there is nobody left to tell.
    let _ = stderr().write_all(format!("{text}\n").as_bytes());
}
