//! From the compressed stream to the plain one, both digests computed on the way: a thread reads and hashes, one
//! inflates and hashes, the caller's extracts. The channels between them hold a few pieces each, so that none runs
//! far ahead.
//!
//! A layer that is not what its digest says must be reported as that, and not as whatever its bytes broke first: so
//! when only the archive is malformed, the stream is still read to its end.

use std::io::{self, BufRead, ErrorKind, Read};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread::{Builder, Scope, ScopedJoinHandle};

use super::decoder::Decoder;
use super::limits::{LayerLimits, RATIO_FROM};
use super::{LayerSpec, integrity, limit, malformed};
use crate::error::{Context, Result};
use crate::image::compression::Compression;
use crate::image::digest::{Digest, Hasher};

const PIECE: usize = 256 << 10; // bytes
const PIECES: usize = 4; // under way in each channel

/// `None` is the end; a channel that closes without it, the sender's failure.
type Piece = Option<Vec<u8>>;

/// The receiving end of a channel, to be read.
pub struct Pieces {
    from: Receiver<Piece>,
    /// Emptied buffers go back.
    back: Sender<Vec<u8>>,
    piece: Vec<u8>,
    at: usize,
    before: u64,
    ended: bool,
}

impl Pieces {
    /// Bytes read so far.
    fn position(&self) -> u64 {
        self.before + self.at as u64
    }
}

impl BufRead for Pieces {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.at == self.piece.len() && !self.ended {
            let next = self.from.recv().map_err(|_| io::Error::from(ErrorKind::BrokenPipe))?;
            self.ended = next.is_none();
            self.before += self.at as u64;
            self.at = 0;
            let old = std::mem::replace(&mut self.piece, next.unwrap_or_default());
            // It fails when the sender has ended and needs no more buffers.
            let _ = self.back.send(old);
        }
        Ok(&self.piece[self.at..])
    }

    fn consume(&mut self, n: usize) {
        self.at += n;
    }
}

impl Read for Pieces {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let piece = self.fill_buf()?;
        let n = piece.len().min(into.len());
        into[..n].copy_from_slice(&piece[..n]);
        self.consume(n);
        Ok(n)
    }
}

/// The sending end.
struct Sink<'a> {
    to: SyncSender<Piece>,
    back: Receiver<Vec<u8>>,
    /// The receiver has failed in a way that no digest explains.
    abandoned: &'a AtomicBool,
    open: bool,
}

impl Sink<'_> {
    fn buffer(&self) -> Vec<u8> {
        let mut buffer = self.back.try_recv().unwrap_or_default();
        buffer.resize(PIECE, 0);
        buffer
    }

    fn send(&mut self, piece: Piece) {
        self.open = self.open && self.to.send(piece).is_ok();
    }

    fn is_abandoned(&self) -> bool {
        self.abandoned.load(Ordering::Relaxed)
    }
}

fn pipe(abandoned: &AtomicBool) -> (Sink<'_>, Pieces) {
    let (to, from) = sync_channel(PIECES);
    let (give_back, back) = channel();
    let sink = Sink { to, back, abandoned, open: true };
    (sink, Pieces { from, back: give_back, piece: Vec::new(), at: 0, before: 0, ended: false })
}

/// What the threads found wrong, once they have ended; the reader's comes first: it explains the others'.
pub struct Threads<'scope>(Vec<ScopedJoinHandle<'scope, Result<()>>>);

impl Threads<'_> {
    pub fn join(self) -> Result<()> {
        let results: Vec<_> = self.0.into_iter().map(|thread| thread.join()).collect();
        for result in results {
            result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        }
        Ok(())
    }
}

/// Starts what turns `stream` into the layer's plain bytes. The caller sets `abandoned` when it needs no verdict.
pub fn start<'scope>(
    scope: &'scope Scope<'scope, '_>,
    stream: impl Read + Send + 'scope,
    layer: &'scope LayerSpec,
    limits: &'scope LayerLimits,
    abandoned: &'scope AtomicBool,
) -> Result<(Threads<'scope>, Pieces)> {
    if layer.compression == Compression::None && layer.digest != layer.diff_id {
        let (digest, diff_id) = (&layer.digest, &layer.diff_id);
        return Err(integrity(format!("it is not compressed, but its diff_id is {diff_id}, not {digest}")));
    }
    let (sink, compressed) = pipe(abandoned);
    let (digest, diff_id) = (parse(&layer.digest)?, parse(&layer.diff_id)?);
    let starting = || "start a thread";
    let reader = Builder::new().spawn_scoped(scope, move || read(stream, layer, limits, &digest, sink));
    let reader = reader.context(starting)?;
    if layer.compression == Compression::None {
        return Ok((Threads(vec![reader]), compressed));
    }
    let (sink, plain) = pipe(abandoned);
    let inflate = move || inflate(compressed, layer, limits, &diff_id, sink);
    let inflater = Builder::new().spawn_scoped(scope, inflate);
    if inflater.is_err() {
        // The reader has no one left to read for.
        abandoned.store(true, Ordering::Relaxed);
    }
    let inflater = inflater.context(starting)?;
    Ok((Threads(vec![reader, inflater]), plain))
}

/// Reads the blob; its end is passed on only when size and digest are right.
fn read(
    mut stream: impl Read,
    layer: &LayerSpec,
    limits: &LayerLimits,
    digest: &Digest,
    mut sink: Sink<'_>,
) -> Result<()> {
    let mut hasher = Hasher::new(digest.algorithm());
    let mut total = 0;
    while !sink.is_abandoned() {
        let mut piece = sink.buffer();
        let n = match stream.read(&mut piece) {
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            n => n.context(|| "read the blob")?,
        };
        if n == 0 {
            break;
        }
        total += n as u64;
        if total > layer.size {
            return Err(integrity(format!(
                "the blob is longer than the {} bytes of its manifest",
                layer.size
            )));
        }
        if layer.compression == Compression::None && total > limits.bytes {
            return Err(limit("bytes", format!("more than {} bytes", limits.bytes)));
        }
        piece.truncate(n);
        hasher.update(&piece);
        sink.send(Some(piece));
    }
    if sink.is_abandoned() {
        return Ok(());
    }
    if total < layer.size {
        return Err(integrity(format!("the blob ends after {total} of {} bytes", layer.size)));
    }
    check(hasher, digest, "digest")?;
    sink.send(None);
    Ok(())
}

fn inflate(
    compressed: Pieces,
    layer: &LayerSpec,
    limits: &LayerLimits,
    diff_id: &Digest,
    mut sink: Sink<'_>,
) -> Result<()> {
    let mut hasher = Hasher::new(diff_id.algorithm());
    let mut decoder = Decoder::new(compressed, layer.compression)?;
    let mut total = 0;
    // Whoever extracts has failed when the pipe is no longer open, and says so.
    while sink.open && !sink.is_abandoned() {
        let mut piece = sink.buffer();
        let n = match decoder.read(&mut piece) {
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            // The reader says why.
            Err(error) if error.kind() == ErrorKind::BrokenPipe => return Ok(()),
            Err(error) => return Err(malformed(format!("the {} data: {error}", layer.compression.name()))),
            Ok(n) => n,
        };
        if n == 0 {
            check(hasher, diff_id, "diff_id")?;
            sink.send(None);
            break;
        }
        total += n as u64;
        if let Err(error) = check_plain_size(total, decoder.get_ref().position(), limits) {
            sink.abandoned.store(true, Ordering::Relaxed);
            return Err(error);
        }
        piece.truncate(n);
        hasher.update(&piece);
        sink.send(Some(piece));
    }
    Ok(())
}

/// Whether so many plain bytes may come of so many compressed ones.
pub fn check_plain_size(plain: u64, compressed: u64, limits: &LayerLimits) -> Result<()> {
    if plain > limits.bytes {
        return Err(limit("bytes", format!("more than {} bytes", limits.bytes)));
    }
    if plain > RATIO_FROM && plain > compressed.saturating_mul(limits.ratio) {
        let most = limits.ratio;
        return Err(limit("ratio", format!("{compressed} bytes become {plain}: more than {most} for one")));
    }
    Ok(())
}

fn parse(digest: &str) -> Result<Digest> {
    Digest::parse(digest).map_err(|_| integrity(format!("{digest:?} is no sha256 or sha512 digest")))
}

fn check(hasher: Hasher, expected: &Digest, what: &str) -> Result<()> {
    match hasher.finish() {
        found if found == *expected => Ok(()),
        found => Err(integrity(format!("the {what} is {found}, not {expected}"))),
    }
}
