//! Archives made by hand, so that they can be wrong.

use keel::image::compression::Compression;
use keel::image::unpack::{LayerLimits, LayerSpec, Mode, Options, Owners, Unpacked, unpack};
use keel::sys::fs::fgetxattr;
use sha2::{Digest, Sha256};
use std::ffi::CString;
use std::fs::{self, File};
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

#[derive(Clone, Default)]
pub struct Tar(pub Vec<u8>);

pub struct Header {
    pub name: Vec<u8>,
    pub kind: u8,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub size: u64,
    pub link: Vec<u8>,
    pub device: (u32, u32),
}

impl Header {
    pub fn new(name: impl AsRef<[u8]>, kind: u8) -> Self {
        let (name, link) = (name.as_ref().to_vec(), Vec::new());
        Self { name, kind, mode: 0o644, uid: 0, gid: 0, size: 0, link, device: (0, 0) }
    }

    pub fn block(&self) -> [u8; 512] {
        let mut block = [0; 512];
        block[..self.name.len()].copy_from_slice(&self.name);
        put(&mut block[100..108], format!("{:07o}", self.mode));
        put(&mut block[108..116], format!("{:07o}", self.uid));
        put(&mut block[116..124], format!("{:07o}", self.gid));
        put(&mut block[124..136], format!("{:011o}", self.size));
        put(&mut block[136..148], format!("{:011o}", 1_000_000_000));
        block[156] = self.kind;
        block[157..157 + self.link.len()].copy_from_slice(&self.link);
        put(&mut block[257..265], "ustar\x0000".into());
        put(&mut block[329..337], format!("{:07o}", self.device.0));
        put(&mut block[337..345], format!("{:07o}", self.device.1));
        summed(block)
    }
}

pub fn put(field: &mut [u8], text: String) {
    field[..text.len()].copy_from_slice(text.as_bytes());
}

/// With a right check sum.
pub fn summed(mut block: [u8; 512]) -> [u8; 512] {
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
    put(&mut block[148..156], format!("{sum:06o}\0"));
    block
}

impl Tar {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn block(mut self, block: [u8; 512]) -> Self {
        self.0.extend(block);
        self
    }

    pub fn data(mut self, data: &[u8]) -> Self {
        self.0.extend(data);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    pub fn header(self, header: Header) -> Self {
        self.block(header.block())
    }

    pub fn entry(self, kind: u8, name: impl AsRef<[u8]>, data: &[u8]) -> Self {
        let header = Header { size: data.len() as u64, ..Header::new(name, kind) };
        self.header(header).data(data)
    }

    pub fn file(self, name: impl AsRef<[u8]>, data: impl AsRef<[u8]>) -> Self {
        self.entry(b'0', name, data.as_ref())
    }

    pub fn dir(self, name: &str) -> Self {
        self.header(Header { mode: 0o755, ..Header::new(name, b'5') })
    }

    fn link(self, kind: u8, name: &str, target: &str) -> Self {
        self.header(Header { link: target.into(), ..Header::new(name, kind) })
    }

    pub fn symlink(self, name: &str, target: &str) -> Self {
        self.link(b'2', name, target)
    }

    pub fn hardlink(self, name: &str, target: &str) -> Self {
        self.link(b'1', name, target)
    }

    pub fn device(self, name: &str, kind: u8, device: (u32, u32)) -> Self {
        self.header(Header { device, ..Header::new(name, kind) })
    }

    /// An extended header with these records, well-formed.
    pub fn pax(self, records: &[(&str, &[u8])]) -> Self {
        let data: Vec<u8> = records.iter().flat_map(|(key, value)| record(key, value)).collect();
        self.entry(b'x', "pax", &data)
    }

    /// With its end.
    pub fn end(mut self) -> Vec<u8> {
        self.0.extend([0; 1024]);
        self.0
    }
}

pub fn record(key: &str, value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length.to_string().len() + rest != length {
        length += 1;
    }
    [format!("{length} {key}=").as_bytes(), value, b"\n"].concat()
}

pub fn digest(data: &[u8]) -> String {
    let hex: String = Sha256::digest(data).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

pub const OVERLAY: Mode = Mode::Overlay { user_xattr: false };

pub fn options(mode: Mode) -> Options {
    let limits = LayerLimits { free: 0, ..LayerLimits::default() };
    Options { mode, limits, owners: Owners::Kept, devices: false }
}

pub fn spec(blob: &[u8], plain: &[u8], compression: Compression) -> LayerSpec {
    let (digest, diff_id) = (digest(blob), digest(plain));
    LayerSpec { number: (2, 3), digest, size: blob.len() as u64, diff_id, compression }
}

/// A directory with the target (`root`) and what must stay as it is (`outside`).
pub struct Place(pub PathBuf);

impl Place {
    pub fn new(name: &str) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let (pid, count) = (std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(format!("keel-unpack-{pid}-{count}-{name}"));
        fs::create_dir_all(path.join("root")).unwrap();
        fs::create_dir(path.join("outside")).unwrap();
        fs::create_dir(path.join("outside/directory")).unwrap();
        fs::write(path.join("outside/passwd"), "sentinel").unwrap();
        fs::write(path.join("outside/directory/file"), "sentinel").unwrap();
        fs::set_permissions(path.join("outside/passwd"), fs::Permissions::from_mode(0o640)).unwrap();
        symlink("passwd", path.join("outside/link")).unwrap();
        Self(path)
    }

    pub fn root(&self) -> PathBuf {
        self.0.join("root")
    }

    pub fn outside(&self, name: &str) -> String {
        self.0.join("outside").join(name).to_str().unwrap().into()
    }

    pub fn target(&self) -> OwnedFd {
        File::open(self.root()).unwrap().into()
    }

    pub fn unpack_with(&self, plain: &[u8], options: &Options) -> keel::error::Result<Unpacked> {
        unpack(plain, &spec(plain, plain, Compression::None), self.target(), options)
    }

    pub fn unpack(&self, tar: Tar, mode: Mode) -> keel::error::Result<Unpacked> {
        self.unpack_with(&tar.end(), &options(mode))
    }

    pub fn list(&self) -> Vec<String> {
        list(&self.root())
    }

    pub fn read(&self, path: &str) -> String {
        fs::read_to_string(self.root().join(path)).unwrap_or_else(|error| error.to_string())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).unwrap();
    }
}

/// "path kind": what is below a directory.
pub fn list(root: &Path) -> Vec<String> {
    let mut lines = Vec::new();
    walk(root, &mut |path, meta| {
        let kind = match meta.mode() & libc::S_IFMT {
            libc::S_IFDIR => "dir".into(),
            libc::S_IFLNK => format!("-> {}", fs::read_link(path).unwrap().display()),
            libc::S_IFREG => format!("file {}", meta.size()),
            libc::S_IFCHR if meta.rdev() == 0 => "whiteout".into(),
            libc::S_IFIFO => "fifo".into(),
            _ => "device".into(),
        };
        lines.push(format!("{} {kind}", path.strip_prefix(root).unwrap().display()));
    });
    lines
}

/// All that can be seen of what is below a directory, its contents too.
pub fn snapshot(root: &Path) -> Vec<String> {
    let mut lines = Vec::new();
    walk(root, &mut |path, meta| {
        let is_file = meta.is_file();
        let mut content = Vec::new();
        if is_file {
            File::open(path).unwrap().read_to_end(&mut content).unwrap();
        }
        let link = fs::read_link(path).map(|link| link.display().to_string()).unwrap_or_default();
        lines.push(format!(
            "{:?} {:o} {}:{} links {} mtime {} rdev {} {link} {}{}",
            path.strip_prefix(root).unwrap(),
            meta.mode(),
            meta.uid(),
            meta.gid(),
            if meta.is_dir() { 0 } else { meta.nlink() },
            meta.mtime(),
            meta.rdev(),
            if is_file { digest(&content) } else { String::new() },
            xattrs(path),
        ));
    });
    lines
}

fn walk(dir: &Path, see: &mut impl FnMut(&Path, &fs::Metadata)) {
    let mut paths: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    for path in paths {
        let meta = fs::symlink_metadata(&path).unwrap();
        see(&path, &meta);
        if meta.is_dir() {
            walk(&path, see);
        }
    }
}

/// Of a file or a directory, as getfattr(1) has them in hexadecimal.
pub fn xattrs(path: &Path) -> String {
    let meta = fs::symlink_metadata(path).unwrap();
    if !meta.is_file() && !meta.is_dir() {
        return String::new();
    }
    let file = File::open(path).unwrap();
    let mut names: Vec<_> = keel::image::unpack::xattr::list(&file).unwrap();
    names.sort();
    let line = |name: &CString| {
        let mut value = [0; 4096];
        let size = fgetxattr(&file, name, &mut value).unwrap();
        let hex: String = value[..size].iter().map(|byte| format!("{byte:02x}")).collect();
        format!("{}=0x{hex}", name.to_string_lossy())
    };
    names.iter().map(line).collect::<Vec<_>>().join(" ")
}
