//! `keel-image import` and `export`: from a tar archive of a root file system to an image of one layer, and from a bundle
//! to such an archive.

use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, IsTerminal, Read, Write};
use std::path::Path;

use serde_json::{Value, json};

use crate::error::{Context, Error, Kind as ErrorClass, Result};
use crate::image::cli::{ExportOptions, Global, ImportOptions};
use crate::image::compression::Compression;
use crate::image::container_root::ContainerRoot;
use crate::image::limits::Limits;
use crate::image::make;
use crate::image::pack::{Kind, Packed, Top, pack};
use crate::image::platform::Platform;
use crate::image::scratch::Unfinished;
use crate::image::unpack::Owners;
use crate::image::unpack::decoder::Decoder;

pub fn import(global: &Global, options: &ImportOptions) -> Result<Vec<u8>> {
    let name = global.named(&options.reference)?.to_string();
    let limits = Limits::new(&options.limits)?;
    let store = global.store()?;
    let what = || format!("import {}", options.file.display());
    let from = &options.file;
    let (layer, diff_id, packed) = make::layer(&store, options.compression, |out| match from {
        from if from.as_os_str() == "-" => plain(io::stdin().lock(), out).map(|()| Packed::default()),
        from if from.is_dir() => {
            let top = Top { directory: open(from)?.into(), owners: Owners::Kept };
            pack(vec![top], Kind::Plain, &limits.unpack, out)
        }
        from => plain(open(from)?, out).map(|()| Packed::default()),
    })
    .context(what)?;
    packed.warnings.iter().for_each(|warning| global.say(warning));
    let host = Platform::host();
    let Platform { os, architecture, variant } = options.platform.as_ref().unwrap_or(&host);
    let mut config = json!({"os": os, "architecture": architecture});
    if !variant.is_empty() {
        config["variant"] = json!(variant);
    }
    make::add_layer(&mut config, &diff_id, "keel-image import", options.message.as_deref())?;
    options.config.apply(&mut config);
    let image = make::image(global, &store, &name, &config, &[layer], &limits).context(what)?;
    Ok(make::result(global, &name, &image))
}

fn open(path: &Path) -> Result<File> {
    File::open(path).map_err(|error| {
        let missing = error.kind() == io::ErrorKind::NotFound;
        Error::from(error).with_kind(if missing { ErrorClass::NotFound } else { ErrorClass::Other })
    })
}

/// The archive itself, byte for byte, whatever it was compressed with.
fn plain(from: impl Read, to: &mut impl Write) -> Result<()> {
    let mut from = BufReader::with_capacity(256 << 10, from);
    let compression = Compression::of_blob(from.fill_buf()?);
    let mut decoder = Decoder::new(from, compression)?;
    let copied = io::copy(&mut decoder, to).map_err(|error| match compression {
        Compression::None => Error::from(error),
        // What is no error of the system is one of the data.
        _ if error.raw_os_error().is_none() => {
            Error::of_kind(ErrorClass::Integrity, format!("the compressed data: {error}"))
        }
        _ => error.into(),
    })?;
    if copied == 0 {
        return Err(Error::of_kind(ErrorClass::Integrity, "it is empty, and no archive"));
    }
    Ok(())
}

pub fn export(global: &Global, options: &ExportOptions) -> Result<Vec<u8>> {
    let what = || format!("export {}", options.bundle.display());
    let limits = Limits::new(&options.limits)?.unpack;
    let root = ContainerRoot::read(&options.bundle).context(what)?;
    if root.is_in_use()? {
        global.say("a container is using the bundle: what it writes meanwhile may be there in part");
    }
    let (tops, kind) = root.whole().context(what)?;
    let to_stdout = options.file.as_os_str() == "-";
    let packed = if to_stdout {
        if io::stdout().is_terminal() {
            return Err(Error::new("write the archive to stdout: it is a terminal")
                .with_way_out("Name a file, or redirect it."));
        }
        pack(tops, kind, &limits, BufWriter::with_capacity(256 << 10, io::stdout().lock())).context(what)?
    } else {
        let file = Unfinished::new(&options.file)?;
        let packed =
            pack(tops, kind, &limits, BufWriter::with_capacity(256 << 10, &file.file)).context(what)?;
        file.finish()?;
        packed
    };
    packed.warnings.iter().for_each(|warning| global.say(warning));
    let text: Value = json!({"bundle": options.bundle, "entries": packed.entries});
    Ok(if global.json && !to_stdout { format!("{text:#}\n").into_bytes() } else { Vec::new() })
}
