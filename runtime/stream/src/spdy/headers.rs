//! Header blocks of SPDY/3: names and values with their lengths, compressed with zlib. Each direction of a connection has one
//! compression context for all of its blocks, primed with a dictionary that the protocol gives.

use std::{collections::HashMap, io, sync::LazyLock};

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress};

/// Bytes of one block, unpacked. Those of Kubernetes' clients have some hundred.
const BLOCK_LIMIT: usize = 64 << 10;

/// Headers of one block.
const HEADERS_LIMIT: u32 = 64;

/// Words of the dictionary that stand in it with their length in front.
const WORDS: &str = "options head post put delete trace accept accept-charset accept-encoding accept-language accept-ranges age allow \
    authorization cache-control connection content-base content-encoding content-language content-length content-location content-md5 \
    content-range content-type date etag expect expires from host if-match if-modified-since if-none-match if-range \
    if-unmodified-since last-modified location max-forwards pragma proxy-authenticate proxy-authorization range referer retry-after \
    server te trailer transfer-encoding upgrade user-agent vary via warning www-authenticate method get status 200_OK version \
    HTTP/1.1 url public set-cookie keep-alive origin";

/// The rest of it, which has none.
const TAIL: &str = "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505\
    203 Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized403 Forbidden404 Not Found\
    500 Internal Server Error501 Not Implemented503 Service Unavailable\
    Jan Feb Mar Apr May Jun Jul Aug Sept Oct Nov Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMT\
    chunked,text/html,image/png,image/jpg,image/gif,application/xml,application/xhtml+xml,text/plain,text/javascript,publicprivate\
    max-age=gzip,deflate,sdchcharset=utf-8charset=iso-8859-1,utf-,*,enq=0.";

static DICTIONARY: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut dictionary = Vec::with_capacity(1423);
    for word in WORDS.split_whitespace() {
        dictionary.extend_from_slice(&(word.len() as u32).to_be_bytes());
        dictionary.extend_from_slice(word.replace('_', " ").as_bytes());
    }
    dictionary.extend_from_slice(TAIL.as_bytes());
    dictionary
});

pub(crate) type Headers = HashMap<String, String>;

/// The reading side.
pub(crate) struct Unpacker(Decompress);

impl Unpacker {
    pub fn new() -> Self {
        Self(Decompress::new(true))
    }

    /// The headers of one block, by lower-case name. Errors: it is damaged, or unpacks to more than the limits.
    pub fn unpack(&mut self, packed: &[u8]) -> io::Result<Headers> {
        parse(&self.inflate(packed)?)
    }

    fn inflate(&mut self, mut packed: &[u8]) -> io::Result<Vec<u8>> {
        let mut block = Vec::with_capacity(1024);
        loop {
            if block.len() == block.capacity() {
                if block.len() >= BLOCK_LIMIT {
                    return Err(damaged("unpacks to more than 64 KiB"));
                }
                block.reserve(block.len());
            }
            let (taken, made) = (self.0.total_in(), block.len());
            let step = self
                .0
                .decompress_vec(packed, &mut block, FlushDecompress::Sync);
            packed = &packed[(self.0.total_in() - taken) as usize..];
            match step {
                Err(err) if err.needs_dictionary().is_some() => {
                    self.0
                        .set_dictionary(&DICTIONARY)
                        .map_err(|_| damaged("needs a dictionary that is not SPDY/3's"))?;
                }
                Err(_) => return Err(damaged("is not zlib")),
                // nothing more comes out of what has come in
                Ok(_) if packed.is_empty() && block.len() < block.capacity() => return Ok(block),
                Ok(_) if self.0.total_in() == taken && block.len() == made => {
                    return Err(damaged("ends in the middle"));
                }
                Ok(_) => {}
            }
        }
    }
}

fn parse(block: &[u8]) -> io::Result<Headers> {
    let mut rest = block;
    let count = number(&mut rest)?;
    if count > HEADERS_LIMIT {
        return Err(damaged("has more than 64 headers"));
    }
    let mut headers = Headers::new();
    for _ in 0..count {
        let name = text(&mut rest)?.to_ascii_lowercase();
        let value = text(&mut rest)?;
        // several values of one name stand behind each other with a NUL between
        headers.insert(
            name,
            value.split('\0').next().unwrap_or_default().to_owned(),
        );
    }
    Ok(headers)
}

fn number(rest: &mut &[u8]) -> io::Result<u32> {
    let (number, behind) = rest.split_first_chunk().ok_or_else(|| damaged("is cut"))?;
    *rest = behind;
    Ok(u32::from_be_bytes(*number))
}

fn text<'a>(rest: &mut &'a [u8]) -> io::Result<&'a str> {
    let length = number(rest)? as usize;
    let (text, behind) = rest
        .split_at_checked(length)
        .ok_or_else(|| damaged("is cut"))?;
    *rest = behind;
    std::str::from_utf8(text).map_err(|_| damaged("is not UTF-8"))
}

/// The writing side. A server of streams has no headers to send but empty ones.
pub(crate) struct Packer(Compress);

impl Packer {
    pub fn new() -> io::Result<Self> {
        let mut compress = Compress::new(Compression::fast(), true);
        compress
            .set_dictionary(&DICTIONARY)
            .map_err(io::Error::other)?;
        Ok(Self(compress))
    }

    pub fn pack(&mut self, headers: &[(&str, &str)]) -> io::Result<Vec<u8>> {
        let mut block = (headers.len() as u32).to_be_bytes().to_vec();
        for part in headers.iter().flat_map(|(name, value)| [name, value]) {
            block.extend_from_slice(&(part.len() as u32).to_be_bytes());
            block.extend_from_slice(part.as_bytes());
        }
        self.pack_block(&block)
    }

    /// A block as it stands.
    pub fn pack_block(&mut self, block: &[u8]) -> io::Result<Vec<u8>> {
        // a block that can't be packed grows by a few bytes, and a flush adds some
        let mut packed = Vec::with_capacity(block.len() + 128);
        self.0
            .compress_vec(block, &mut packed, FlushCompress::Sync)
            .map_err(io::Error::other)?;
        Ok(packed)
    }
}

fn damaged(how: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("SPDY: a header block {how}"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_dictionary_is_spdy_3s() {
        assert_eq!(DICTIONARY.len(), 1423);
        let mut adler = (1_u32, 0_u32);
        for byte in DICTIONARY.iter() {
            adler.0 = (adler.0 + u32::from(*byte)) % 65_521;
            adler.1 = (adler.1 + adler.0) % 65_521;
        }
        // what every client puts in front of its first block
        assert_eq!((adler.1 << 16) | adler.0, 0xe3c6_a7c2);
    }

    #[test]
    fn blocks_of_one_connection_are_unpacked_in_turn() {
        let (mut packer, mut unpacker) = (Packer::new().unwrap(), Unpacker::new());
        for round in 0..100 {
            let id = round.to_string();
            let packed = packer
                .pack(&[("streamtype", "data"), ("port", "80"), ("requestid", &id)])
                .unwrap();
            let headers = unpacker.unpack(&packed).unwrap();
            assert_eq!(
                (
                    &*headers["streamtype"],
                    &*headers["port"],
                    &headers["requestid"]
                ),
                ("data", "80", &id)
            );
        }
        let empty = packer.pack(&[]).unwrap();
        assert!(unpacker.unpack(&empty).unwrap().is_empty());
    }

    // SEC-CRI-08
    #[test]
    fn a_block_is_bounded_whatever_it_says() {
        let large = "x".repeat(32 << 20);
        let mut packer = Packer::new().unwrap();
        let mut bomb = Vec::with_capacity(1 << 20);
        let mut block = 1_u32.to_be_bytes().to_vec();
        block.extend_from_slice(&(large.len() as u32).to_be_bytes());
        block.extend_from_slice(large.as_bytes());
        packer
            .0
            .compress_vec(&block, &mut bomb, FlushCompress::Sync)
            .unwrap();
        assert!(bomb.len() < 1 << 20);
        assert!(Unpacker::new().unpack(&bomb).is_err());

        for block in [
            vec![0xff, 0xff, 0xff, 0xff],
            vec![0x80, 0, 0, 0],
            vec![0, 0, 0, 1, 0x80, 0, 0, 0],
            vec![0, 0, 0, 1, 0, 0, 0, 1, b'a', 0x7f, 0xff, 0xff, 0xff],
            vec![0, 0, 0, 2, 0, 0, 0, 1, b'a', 0, 0, 0, 1, b'b'],
            vec![0, 0],
            vec![0, 0, 0, 1, 0, 0, 0, 1, 0xff, 0, 0, 0, 0],
        ] {
            let mut packed = Vec::with_capacity(1024);
            Packer::new()
                .unwrap()
                .0
                .compress_vec(&block, &mut packed, FlushCompress::Sync)
                .unwrap();
            assert!(Unpacker::new().unpack(&packed).is_err(), "{block:?}");
        }
        for garbage in [
            &b""[..],
            b"\x00",
            b"GET / HTTP/1.1\r\n",
            &[0x78, 0xbb, 1, 2, 3, 4, 5, 6],
        ] {
            assert!(Unpacker::new().unpack(garbage).is_err(), "{garbage:?}");
        }
    }
}
