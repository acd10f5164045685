//! Reads the entries of a tar stream: ustar, GNU long names, PAX. Strict where parsers are known to disagree (SEC-IMG-03): such an
//! archive would be one tree for us and another for the scanner that passed it.

use std::io::{self, BufRead};

use tar::{EntryType, Header};

const BLOCK: usize = 512;
/// Largest PAX record set or GNU long name. The largest useful ones hold xattrs of at most 64 KiB each (the kernel's XATTR_SIZE_MAX).
const MAX_EXTENSION_BYTES: u64 = 1 << 20;
/// All of them in one layer: a large layer has some hundred thousand entries with a few hundred bytes each. They decompress to memory
/// that is used again, so nothing but this ends a layer that has nothing else (SEC-IMG-07).
const MAX_EXTENSIONS_BYTES: u64 = 1 << 30;
/// Data of entries that are not unpacked: whiteouts, which have none, and the book-keeping of old storage drivers.
const MAX_SKIPPED_BYTES: u64 = 64 << 20;
/// Bytes that may follow the end marker. tar pads to its record size (10 KiB as a rule, 1 MiB at most in practice).
const MAX_TRAILING_BYTES: u64 = 64 << 20;
const XATTR_PREFIX: &[u8] = b"SCHILY.xattr.";

#[derive(Debug)]
pub(crate) enum TarError {
    Read(io::Error),
    Refused { entry: String, why: String },
}

impl From<io::Error> for TarError {
    fn from(error: io::Error) -> Self {
        Self::Read(error)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    Directory,
    Symlink,
    HardLink,
    Char,
    Block,
    Fifo,
}

#[derive(Debug)]
pub(crate) struct Entry {
    /// As it stands in the archive.
    pub(crate) path: Vec<u8>,
    pub(crate) kind: Kind,
    pub(crate) link: Vec<u8>,
    /// Bytes of data that follow; only files have any.
    pub(crate) size: u64,
    /// Permission, set-id and sticky bits.
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Seconds and nanoseconds since 1970.
    pub(crate) mtime: (i64, u32),
    pub(crate) device: (u32, u32),
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// What PAX records say of the next entry.
#[derive(Debug, Default)]
struct Pax {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u64>,
    gid: Option<u64>,
    mtime: Option<(i64, u32)>,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

pub(crate) struct TarReader<R> {
    input: R,
    /// Data of the current entry that is not read yet, and the padding after it.
    remaining: u64,
    padding: u64,
    /// Of the whole archive so far.
    extensions_bytes: u64,
    skipped_bytes: u64,
}

impl<R: BufRead> TarReader<R> {
    pub(crate) fn new(input: R) -> Self {
        Self {
            input,
            remaining: 0,
            padding: 0,
            extensions_bytes: 0,
            skipped_bytes: 0,
        }
    }

    pub(crate) fn input(&self) -> &R {
        &self.input
    }

    /// The next entry; what was not read of the last one is skipped. `None` at the end.
    pub(crate) fn next(&mut self) -> Result<Option<Entry>, TarError> {
        self.skipped_bytes = self.skipped_bytes.saturating_add(self.remaining);
        if self.skipped_bytes > MAX_SKIPPED_BYTES {
            return Err(refused(
                b"",
                "more than 64 MiB of data belong to entries that are no files",
            ));
        }
        self.skip(self.remaining + self.padding)?;
        (self.remaining, self.padding) = (0, 0);
        let mut pax: Option<Pax> = None;
        let mut long_path: Option<Vec<u8>> = None;
        let mut long_link: Option<Vec<u8>> = None;
        loop {
            let Some(header) = self.header()? else {
                return match pax.is_none() && long_path.is_none() && long_link.is_none() {
                    true => Ok(None),
                    false => Err(refused(
                        b"",
                        "the archive ends where the entry of an extended header should be",
                    )),
                };
            };
            let name = header.path_bytes().into_owned();
            let size = number(&header.as_old().size, "size", &name)?;
            let Ok(size) = u64::try_from(size) else {
                return Err(refused(&name, "its size is negative"));
            };
            match header.entry_type() {
                EntryType::XHeader => {
                    if pax.is_some() {
                        return Err(refused(&name, "two PAX headers describe one entry"));
                    }
                    pax = Some(parse_pax(&self.extension(&name, size)?, &name)?);
                }
                EntryType::XGlobalHeader => {
                    // `git archive` leaves a comment here. What would rename or resize later entries is taken differently by every reader.
                    let global = parse_pax(&self.extension(&name, size)?, &name)?;
                    if global.path.is_some() || global.link.is_some() || global.size.is_some() {
                        return Err(refused(
                            &name,
                            "a global PAX header sets path, linkpath or size",
                        ));
                    }
                }
                EntryType::GNULongName | EntryType::GNULongLink => {
                    let is_path = header.entry_type() == EntryType::GNULongName;
                    let mut text = self.extension(&name, size)?;
                    text.truncate(text.iter().position(|b| *b == 0).unwrap_or(text.len()));
                    let slot = if is_path {
                        &mut long_path
                    } else {
                        &mut long_link
                    };
                    if slot.replace(text).is_some() {
                        return Err(refused(&name, "two long names describe one entry"));
                    }
                }
                _ => {
                    return self
                        .entry(&header, size, pax.unwrap_or_default(), long_path, long_link)
                        .map(Some);
                }
            }
        }
    }

    fn entry(
        &mut self,
        header: &Header,
        size: u64,
        pax: Pax,
        long_path: Option<Vec<u8>>,
        long_link: Option<Vec<u8>>,
    ) -> Result<Entry, TarError> {
        let path = agreed(pax.path, long_path)?.unwrap_or_else(|| header.path_bytes().into_owned());
        let link = agreed(pax.link, long_link)?.unwrap_or_else(|| {
            header
                .link_name_bytes()
                .map(|l| l.into_owned())
                .unwrap_or_default()
        });
        let size = pax.size.unwrap_or(size);
        let mut kind = match header.entry_type() {
            EntryType::Regular | EntryType::Continuous => Kind::File,
            EntryType::Directory => Kind::Directory,
            EntryType::Symlink => Kind::Symlink,
            EntryType::Link => Kind::HardLink,
            EntryType::Char => Kind::Char,
            EntryType::Block => Kind::Block,
            EntryType::Fifo => Kind::Fifo,
            EntryType::GNUSparse => {
                return Err(refused(&path, "sparse files in layers are not supported"));
            }
            other => {
                let byte = char::from(other.as_byte());
                return Err(refused(
                    &path,
                    &format!("entry type {byte:?} is not one that a layer has"),
                ));
            }
        };
        // Directories of the archives before ustar: a file whose name ends in a slash.
        if kind == Kind::File && path.ends_with(b"/") {
            kind = Kind::Directory;
        }
        if kind != Kind::File && size != 0 {
            return Err(refused(&path, "it has data but is no file"));
        }
        self.remaining = size;
        self.padding = size.wrapping_neg() % BLOCK as u64;
        if size > i64::MAX as u64 - BLOCK as u64 {
            return Err(refused(&path, "its size is beyond what a file can have"));
        }
        let old = header.as_old();
        let id = |pax: Option<u64>, field: &[u8], what: &str| -> Result<u32, TarError> {
            let value = match pax {
                Some(value) => i128::from(value),
                None => number(field, what, &path)?.into(),
            };
            // 2^32-1 means "leave it" to chown.
            u32::try_from(value)
                .ok()
                .filter(|id| *id != u32::MAX)
                .ok_or_else(|| refused(&path, &format!("{what} {value} is not below 4294967295")))
        };
        let device = |value: io::Result<Option<u32>>| {
            value
                .map(Option::unwrap_or_default)
                .map_err(|_| refused(&path, "its device number can't be read"))
        };
        Ok(Entry {
            kind,
            link,
            size,
            mode: (number(&old.mode, "mode", &path)? & 0o7777) as u32,
            uid: id(pax.uid, &old.uid, "uid")?,
            gid: id(pax.gid, &old.gid, "gid")?,
            mtime: match pax.mtime {
                Some(mtime) => mtime,
                None => (number(&old.mtime, "mtime", &path)?, 0),
            },
            device: match kind {
                Kind::Char | Kind::Block => (
                    device(header.device_major())?,
                    device(header.device_minor())?,
                ),
                _ => (0, 0),
            },
            xattrs: pax.xattrs,
            path,
        })
    }

    /// A piece of the current entry's data; empty at its end. Follow with `consume`.
    pub(crate) fn data(&mut self) -> io::Result<&[u8]> {
        if self.remaining == 0 {
            return Ok(&[]);
        }
        let remaining = self.remaining;
        let piece = self.input.fill_buf()?;
        if piece.is_empty() {
            return Err(truncated());
        }
        let length = usize::try_from(remaining)
            .unwrap_or(usize::MAX)
            .min(piece.len());
        Ok(&piece[..length])
    }

    pub(crate) fn consume(&mut self, length: usize) {
        self.input.consume(length);
        self.remaining -= length as u64;
    }

    /// Reads on to the end of the stream, so that whoever hashes it has seen all.
    pub(crate) fn drain(mut self) -> Result<(), TarError> {
        let mut trailing = 0u64;
        loop {
            let length = self.input.fill_buf()?.len();
            if length == 0 {
                return Ok(());
            }
            self.input.consume(length);
            trailing += length as u64;
            if trailing > MAX_TRAILING_BYTES {
                return Err(refused(
                    b"",
                    "more than 64 MiB follow the end marker of the archive",
                ));
            }
        }
    }

    /// The next header block; `None` at the end marker or at the end of the stream.
    fn header(&mut self) -> Result<Option<Header>, TarError> {
        let mut header = Header::new_old();
        if !self.block(header.as_mut_bytes())? {
            return Ok(None);
        }
        if is_zero(header.as_bytes()) {
            // One block of zeros and then an entry: some readers stop, some go on.
            let mut second = [0; BLOCK];
            if self.block(&mut second)? && !is_zero(&second) {
                return Err(refused(b"", "an entry follows a block of zeros"));
            }
            return Ok(None);
        }
        let bytes = header.as_bytes();
        let sum: i64 = bytes
            .iter()
            .enumerate()
            .map(|(at, byte)| {
                if (148..156).contains(&at) {
                    32
                } else {
                    i64::from(*byte)
                }
            })
            .sum();
        if number(&bytes[148..156], "checksum", b"").ok() != Some(sum) {
            return Err(refused(
                b"",
                "the checksum of a header is wrong: this is no tar archive or a damaged one",
            ));
        }
        Ok(Some(header))
    }

    /// Fills `block`; false where the stream ends before its first byte.
    fn block(&mut self, block: &mut [u8; BLOCK]) -> io::Result<bool> {
        let mut have = 0;
        while have < BLOCK {
            let piece = self.input.fill_buf()?;
            if piece.is_empty() {
                return if have == 0 {
                    Ok(false)
                } else {
                    Err(truncated())
                };
            }
            let length = piece.len().min(BLOCK - have);
            block[have..have + length].copy_from_slice(&piece[..length]);
            self.input.consume(length);
            have += length;
        }
        Ok(true)
    }

    fn extension(&mut self, name: &[u8], size: u64) -> Result<Vec<u8>, TarError> {
        if size > MAX_EXTENSION_BYTES {
            return Err(refused(name, "its extended header is larger than 1 MiB"));
        }
        self.extensions_bytes += BLOCK as u64 + size;
        if self.extensions_bytes > MAX_EXTENSIONS_BYTES {
            return Err(refused(
                name,
                "the archive has more than 1 GiB of extended headers",
            ));
        }
        let mut bytes = vec![0; size as usize];
        self.input
            .read_exact(&mut bytes)
            .map_err(|e| match e.kind() {
                io::ErrorKind::UnexpectedEof => truncated(),
                _ => e,
            })?;
        self.skip(size.wrapping_neg() % BLOCK as u64)?;
        Ok(bytes)
    }

    fn skip(&mut self, mut length: u64) -> io::Result<()> {
        while length > 0 {
            let have = self.input.fill_buf()?.len();
            if have == 0 {
                return Err(truncated());
            }
            let step = usize::try_from(length).unwrap_or(usize::MAX).min(have);
            self.input.consume(step);
            length -= step as u64;
        }
        Ok(())
    }
}

fn truncated() -> io::Error {
    io::Error::new(
        io::ErrorKind::UnexpectedEof,
        "the archive is cut off in the middle of an entry",
    )
}

fn is_zero(block: &[u8]) -> bool {
    block.iter().all(|b| *b == 0)
}

pub(crate) fn shown(path: &[u8]) -> String {
    let cut = &path[..path.len().min(200)];
    let mut text = String::from_utf8_lossy(cut).into_owned();
    if cut.len() < path.len() {
        text.push('…');
    }
    text
}

pub(crate) fn refused(entry: &[u8], why: &str) -> TarError {
    TarError::Refused {
        entry: shown(entry),
        why: why.to_owned(),
    }
}

fn agreed(pax: Option<Vec<u8>>, gnu: Option<Vec<u8>>) -> Result<Option<Vec<u8>>, TarError> {
    match (pax, gnu) {
        (Some(pax), Some(gnu)) if pax != gnu => {
            Err(refused(&pax, "its PAX name and its GNU name differ"))
        }
        (pax, gnu) => Ok(pax.or(gnu)),
    }
}

/// A number field: octal text ended by space or NUL, or base 256 with the top bit set (two's complement).
fn number(field: &[u8], what: &str, entry: &[u8]) -> Result<i64, TarError> {
    let bad = || refused(entry, &format!("its {what} field is no number"));
    if field[0] & 0x80 != 0 {
        let negative = field[0] & 0x40 != 0;
        let mut value: i128 = if negative { -1 } else { 0 };
        for (at, byte) in field.iter().enumerate() {
            let byte = match at {
                0 if negative => byte | 0x80,
                0 => byte & 0x7f,
                _ => *byte,
            };
            value = (value << 8) | i128::from(byte);
        }
        return i64::try_from(value).map_err(|_| bad());
    }
    let text = std::str::from_utf8(field).map_err(|_| bad())?;
    let text = text.trim_start_matches(' ');
    let end = text.find([' ', '\0']).unwrap_or(text.len());
    let (digits, rest) = text.split_at(end);
    if rest.bytes().any(|b| !matches!(b, b' ' | 0)) {
        return Err(bad());
    }
    match digits {
        "" => Ok(0),
        digits if digits.bytes().all(|b| matches!(b, b'0'..=b'7')) => {
            i64::from_str_radix(digits, 8).map_err(|_| bad())
        }
        _ => Err(bad()),
    }
}

fn parse_pax(mut bytes: &[u8], entry: &[u8]) -> Result<Pax, TarError> {
    let bad = |why: &str| refused(entry, &format!("its PAX header: {why}"));
    let text = |value: &[u8]| std::str::from_utf8(value).ok().map(str::to_owned);
    let decimal = |key: &str, value: &[u8]| {
        // `parse` alone would take a sign.
        text(value)
            .filter(|t| t.bytes().all(|b| b.is_ascii_digit()))
            .and_then(|t| t.parse::<u64>().ok())
            .ok_or_else(|| bad(&format!("{key} is no number")))
    };
    let mut pax = Pax::default();
    while !bytes.is_empty() {
        let space = bytes
            .iter()
            .take(20)
            .position(|b| *b == b' ')
            .ok_or_else(|| bad("a record has no length"))?;
        let length = decimal("a length", &bytes[..space])? as usize;
        if length <= space + 1 || length > bytes.len() || bytes[length - 1] != b'\n' {
            return Err(bad("a record's length is wrong"));
        }
        let record = &bytes[space + 1..length - 1];
        bytes = &bytes[length..];
        let equals = record
            .iter()
            .position(|b| *b == b'=')
            .ok_or_else(|| bad("a record has no key"))?;
        let (key, value) = (&record[..equals], &record[equals + 1..]);
        let name = || -> Result<Option<Vec<u8>>, TarError> {
            if value.is_empty() || value.contains(&0) {
                return Err(bad("a name is empty or has a NUL"));
            }
            Ok(Some(value.to_vec()))
        };
        match key {
            b"path" => pax.path = name()?,
            b"linkpath" => pax.link = name()?,
            b"size" => pax.size = Some(decimal("size", value)?),
            b"uid" => pax.uid = Some(decimal("uid", value)?),
            b"gid" => pax.gid = Some(decimal("gid", value)?),
            b"mtime" => {
                pax.mtime = Some(
                    text(value)
                        .and_then(|t| seconds(&t))
                        .ok_or_else(|| bad("mtime is no time"))?,
                )
            }
            key if key.starts_with(b"GNU.sparse.") => {
                return Err(bad("sparse files in layers are not supported"));
            }
            key if key.starts_with(XATTR_PREFIX) => {
                pax.xattrs
                    .push((key[XATTR_PREFIX.len()..].to_vec(), value.to_vec()));
            }
            _ => {}
        }
    }
    Ok(pax)
}

/// `1700000000.123456789` or `-1.5`; digits past the ninth are cut.
fn seconds(text: &str) -> Option<(i64, u32)> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    if !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let mut seconds: i64 = whole.parse().ok()?;
    let digits: String = fraction
        .chars()
        .chain("000000000".chars())
        .take(9)
        .collect();
    let mut nanos: u32 = digits.parse().ok()?;
    if whole.starts_with('-') && nanos > 0 {
        seconds = seconds.checked_sub(1)?;
        nanos = 1_000_000_000 - nanos;
    }
    Some((seconds, nanos))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn number_fields_are_octal_or_base_256() {
        for (field, value) in [
            (&b"0000644\0"[..], Some(0o644)),
            (b"   644 \0", Some(0o644)),
            (b"\0\0\0\0\0\0\0\0", Some(0)),
            (b"77777777", Some(0o77777777)),
            (b"\x80\0\0\0\0\0\0\x05", Some(5)),
            (b"\xff\xff\xff\xff\xff\xff\xff\xfe", Some(-2)),
            (b"\x80\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff", None),
            (b"\x90\0\0\0\0\0\0\0\0\0\0\x01", None),
            (b"0000648\0", None),
            (b"-000001\0", None),
            (b"+000001\0", None),
            (b"12\x0034\0\0\0", None),
        ] {
            assert_eq!(number(field, "size", b"").ok(), value, "{field:?}");
        }
    }

    #[test]
    fn pax_times_keep_nanoseconds_and_sign() {
        assert_eq!(seconds("1700000000.5"), Some((1_700_000_000, 500_000_000)));
        assert_eq!(seconds("-1.5"), Some((-2, 500_000_000)));
        assert_eq!(seconds("1.1234567899"), Some((1, 123_456_789)));
        assert_eq!(seconds("1.-2"), None);
        assert_eq!(seconds("x"), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..3000)) {
            let mut reader = TarReader::new(&bytes[..]);
            while let Ok(Some(_)) = reader.next() {}
            let _ = parse_pax(&bytes, b"");
        }

        #[test]
        fn any_field_values_are_read_or_refused(
            bytes in proptest::collection::vec(any::<u8>(), 512), kind in proptest::sample::select(b"0123456xgLKSV\0".to_vec()),
            size in 0u64..3000, rest in proptest::collection::vec(any::<u8>(), 0..4000),
        ) {
            let mut header = Header::from_byte_slice(&bytes).clone();
            header.set_entry_type(EntryType::new(kind));
            header.set_size(size);
            header.set_cksum();
            let archive = [&header.as_bytes()[..], &rest].concat();
            let mut reader = TarReader::new(&archive[..]);
            while let Ok(Some(_)) = reader.next() {}
        }
    }
}
