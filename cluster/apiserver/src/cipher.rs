//! Secrets on the disk: sealed with AES-256-GCM, the key in a file of its own.

use std::{
    fmt, fs, io,
    io::Write as _,
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::Path,
};

use bytes::Bytes;
use ring::{
    aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey},
    rand::{SecureRandom, SystemRandom},
};

/// Before what is sealed; upstream's form, with a key named `key1`.
const PREFIX: &[u8] = b"k8s:enc:aesgcm:v1:key1:";

pub struct Cipher {
    key: LessSafeKey,
    random: SystemRandom,
}

impl fmt::Debug for Cipher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Cipher")
    }
}

#[derive(Debug, thiserror::Error)]
pub enum CipherError {
    #[error("cannot {what} the key of encryption at rest, {path}: {source}")]
    KeyFile {
        what: &'static str,
        path: String,
        source: io::Error,
    },
    #[error(
        "the key of encryption at rest, {path}, has {bytes} bytes and not 32: put the right one back, or Secrets can't be read"
    )]
    KeyLength { path: String, bytes: usize },
    #[error("others may read the key of encryption at rest, {path} (mode {mode:o}): chmod 600 it")]
    KeyMode { path: String, mode: u32 },
    #[error("{key} can't be decrypted: it is damaged, or was sealed with another key")]
    Damaged { key: String },
    #[error("the kernel gave no random bytes")]
    Random,
}

impl Cipher {
    /// With the key in `path`, which is made where there is none.
    pub fn open(path: &Path) -> Result<Self, CipherError> {
        let failed = |what| {
            move |source| CipherError::KeyFile {
                what,
                path: path.display().to_string(),
                source,
            }
        };
        let random = SystemRandom::new();
        let bytes = match fs::read(path) {
            Ok(bytes) => {
                let mode = fs::metadata(path)
                    .map_err(failed("look at"))?
                    .permissions()
                    .mode();
                if mode & 0o077 != 0 {
                    return Err(CipherError::KeyMode {
                        path: path.display().to_string(),
                        mode: mode & 0o777,
                    });
                }
                bytes
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let mut bytes = vec![0; AES_256_GCM.key_len()];
                random.fill(&mut bytes).map_err(|_| CipherError::Random)?;
                // Written aside and renamed: a key that is half there would lose every Secret.
                let aside = path.with_extension("new");
                let mut file = fs::OpenOptions::new()
                    .write(true)
                    .create(true)
                    .truncate(true)
                    .mode(0o600)
                    .open(&aside)
                    .map_err(failed("make"))?;
                file.write_all(&bytes)
                    .and_then(|()| file.sync_all())
                    .and_then(|()| fs::rename(&aside, path))
                    .map_err(failed("write"))?;
                bytes
            }
            Err(error) => return Err(failed("read")(error)),
        };
        let key = UnboundKey::new(&AES_256_GCM, &bytes).map_err(|_| CipherError::KeyLength {
            path: path.display().to_string(),
            bytes: bytes.len(),
        })?;
        Ok(Self {
            key: LessSafeKey::new(key),
            random,
        })
    }

    /// `key` is authenticated with it: what is sealed can't be moved to another object.
    pub fn seal(&self, key: &[u8], plain: &[u8]) -> Result<Bytes, CipherError> {
        let mut nonce = [0; NONCE_LEN];
        self.random
            .fill(&mut nonce)
            .map_err(|_| CipherError::Random)?;
        let mut sealed = plain.to_vec();
        self.key
            .seal_in_place_append_tag(
                Nonce::assume_unique_for_key(nonce),
                Aad::from(key),
                &mut sealed,
            )
            .map_err(|_| CipherError::Random)?;
        Ok([PREFIX, &nonce, &sealed].concat().into())
    }

    /// What was kept before encryption was there is as it is.
    pub fn open_value(&self, key: &[u8], value: Bytes) -> Result<Bytes, CipherError> {
        let Some(rest) = value.strip_prefix(PREFIX) else {
            return Ok(value);
        };
        let damaged = || CipherError::Damaged {
            key: String::from_utf8_lossy(key).into_owned(),
        };
        let (nonce, sealed) = rest.split_at_checked(NONCE_LEN).ok_or_else(damaged)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| damaged())?;
        let mut sealed = sealed.to_vec();
        let plain = self
            .key
            .open_in_place(nonce, Aad::from(key), &mut sealed)
            .map_err(|_| damaged())?;
        Ok(Bytes::copy_from_slice(plain))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sealed_opens_under_its_own_key_alone() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("key");
        let cipher = Cipher::open(&path).expect("a cipher");
        let sealed = cipher.seal(b"/a", b"secret").expect("sealed");
        assert!(!sealed.windows(6).any(|bytes| bytes == b"secret"));
        let again = Cipher::open(&path).expect("the same key");
        assert_eq!(
            again.open_value(b"/a", sealed.clone()).expect("opened"),
            "secret"
        );
        assert!(again.open_value(b"/b", sealed.clone()).is_err());
        let mut flipped = sealed.to_vec();
        *flipped.last_mut().expect("bytes") ^= 1;
        assert!(again.open_value(b"/a", flipped.into()).is_err());
        assert!(again.open_value(b"/a", sealed.slice(..30)).is_err());
        assert_eq!(
            again
                .open_value(b"/a", Bytes::from_static(b"{}"))
                .expect("plain"),
            "{}"
        );
    }

    #[test]
    fn a_key_that_others_can_read_is_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("key");
        fs::write(&path, [1; 32]).expect("a key");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).expect("its mode");
        assert!(matches!(
            Cipher::open(&path),
            Err(CipherError::KeyMode { mode: 0o644, .. })
        ));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("its mode");
        fs::write(&path, [1; 31]).expect("a short key");
        assert!(matches!(
            Cipher::open(&path),
            Err(CipherError::KeyLength { bytes: 31, .. })
        ));
    }
}
