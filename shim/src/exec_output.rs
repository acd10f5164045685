//! What commands of ExecSync have written: while they run, and until a caller has fetched what no single answer can carry.
//!
//! A stream's first 64 KiB are in this process's memory; a longer one lies in a memory file (memfd), which is not part of it, can be
//! swapped out, and goes with its last descriptor, whatever becomes of the shim. A file in the pod's bundle would be the same
//! memory on most nodes, whose /run is a tmpfs, and less of it.
//!
//! Bounds: a call has two streams of 16 MiB at most; calls that run and outputs not yet fetched are [`MAX_CALLS`] together. A call above
//! that is refused: an answer that somebody waits for is never dropped for another's.

use std::{
    collections::HashMap,
    fs::File,
    io::{self, Write},
    os::unix::fs::FileExt,
    sync::{Arc, Mutex},
    time::Duration,
};

use berth_proto::shim::v1::pod::{ExecOutputRequest, ExecOutputResponse};
use rustix::fs::{MemfdFlags, memfd_create};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, sleep_until},
};

use crate::{container::lock, error::Error, pod::Pod};

/// Output carried by one answer: ttrpc's message holds 4 MiB, and what is on its way is in this process's memory, some times over.
pub const MAX_ANSWER_BYTES: usize = 1 << 20;
/// Of a stream, in this process's memory. Probes write less.
const MAX_IN_MEMORY_BYTES: usize = 64 << 10;
/// Calls of a pod at once. Five descriptors each stay below the usual limit of 1024; kubelets send one a probe.
const MAX_CALLS: usize = 128;
/// How long an output is kept after somebody asked for a piece of it. Who asks for the pieces waits 5 s for each.
const KEPT: Duration = Duration::from_secs(30);

/// What is kept of one stream.
#[derive(Debug, Default)]
pub struct Output {
    /// All of it, unless there is a file.
    bytes: Vec<u8>,
    file: Option<File>,
    len: usize,
}

impl Output {
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn append(&mut self, piece: &[u8]) -> io::Result<()> {
        if self.file.is_none() && self.len + piece.len() > MAX_IN_MEMORY_BYTES {
            let mut file = File::from(memfd_create("exec-output", MemfdFlags::CLOEXEC)?);
            file.write_all(&self.bytes)?;
            self.bytes = Vec::new();
            self.file = Some(file);
        }
        match &mut self.file {
            None => self.bytes.extend_from_slice(piece),
            Some(file) => file.write_all(piece)?,
        }
        self.len += piece.len();
        Ok(())
    }

    /// Up to `most` bytes from `offset` on; none at the end.
    pub fn read(&self, offset: usize, most: usize) -> io::Result<Vec<u8>> {
        let from = offset.min(self.len);
        let to = from.saturating_add(most).min(self.len);
        let Some(file) = &self.file else {
            return Ok(self.bytes[from..to].to_vec());
        };
        let mut piece = vec![0; to - from];
        file.read_exact_at(&mut piece, from as u64)?;
        Ok(piece)
    }
}

/// A call's place among [`MAX_CALLS`].
#[derive(Debug)]
pub struct Place(#[expect(dead_code, reason = "held, not used")] OwnedSemaphorePermit);

/// Outputs too large for one answer, until they are fetched.
#[derive(Debug)]
pub struct Outputs {
    places: Arc<Semaphore>,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    serial: u64,
    kept: HashMap<String, Kept>,
}

#[derive(Debug)]
struct Kept {
    streams: [Output; 2],
    read_to_end: [bool; 2],
    asked_at: Instant,
    _place: Place,
}

impl Default for Outputs {
    fn default() -> Self {
        Self {
            places: Arc::new(Semaphore::new(MAX_CALLS)),
            inner: Mutex::default(),
        }
    }
}

impl Outputs {
    /// A place for a new call.
    pub fn admit(&self) -> Result<Place, Error> {
        let place = self.places.clone().try_acquire_owned();
        place.map(Place).map_err(|_| Error::TooMany {
            what: "ExecSync calls in this pod that run or whose output is not fetched yet",
            most: MAX_CALLS,
        })
    }

    /// Keeps the streams of a call that has ended, whose answer has the first half of [`MAX_ANSWER_BYTES`] of each. Answers with
    /// the token to ask for the rest with.
    pub fn keep(pod: &Arc<Pod>, place: Place, stdout: Output, stderr: Output) -> String {
        let streams = [stdout, stderr];
        let kept = Kept {
            // What was in the answer whole is not asked for again.
            read_to_end: [0, 1].map(|at| streams[at].len() <= MAX_ANSWER_BYTES / 2),
            streams,
            asked_at: Instant::now(),
            _place: place,
        };
        let token = {
            let mut inner = lock(&pod.outputs.inner);
            inner.serial += 1;
            let token = inner.serial.to_string();
            inner.kept.insert(token.clone(), kept);
            token
        };
        let (pod, expiring) = (pod.clone(), token.clone());
        tokio::spawn(async move {
            while let Some(until) = pod.outputs.kept_until(&expiring) {
                if until <= Instant::now() {
                    lock(&pod.outputs.inner).kept.remove(&expiring);
                    break;
                }
                sleep_until(until).await;
            }
        });
        token
    }

    fn kept_until(&self, token: &str) -> Option<Instant> {
        let inner = lock(&self.inner);
        inner.kept.get(token).map(|kept| kept.asked_at + KEPT)
    }

    /// The next piece.
    pub fn read(&self, request: &ExecOutputRequest) -> Result<ExecOutputResponse, Error> {
        let mut inner = lock(&self.inner);
        let kept = inner
            .kept
            .get_mut(&request.token)
            .ok_or_else(|| Error::Unknown {
                what: "kept exec output",
                id: request.token.clone(),
            })?;
        kept.asked_at = Instant::now();
        let at = usize::from(request.stderr);
        let offset = usize::try_from(request.offset).unwrap_or(usize::MAX);
        let data = kept.streams[at]
            .read(offset, MAX_ANSWER_BYTES)
            .map_err(Error::io("read kept exec output"))?;
        kept.read_to_end[at] |= offset.saturating_add(data.len()) >= kept.streams[at].len();
        if kept.read_to_end == [true; 2] {
            inner.kept.remove(&request.token);
        }
        Ok(ExecOutputResponse {
            data,
            ..Default::default()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_reads_the_same_in_memory_and_in_a_file() {
        for len in [
            0,
            1,
            MAX_IN_MEMORY_BYTES,
            MAX_IN_MEMORY_BYTES + 1,
            5 * MAX_IN_MEMORY_BYTES,
        ] {
            let bytes: Vec<u8> = (0..len).map(|at| (at % 251) as u8).collect();
            let mut output = Output::default();
            for piece in bytes.chunks(10_007) {
                output.append(piece).unwrap();
            }
            assert_eq!(output.len(), len);
            assert_eq!(output.file.is_some(), len > MAX_IN_MEMORY_BYTES);
            assert!(output.bytes.len() <= MAX_IN_MEMORY_BYTES);
            assert_eq!(output.read(0, usize::MAX).unwrap(), bytes);
            let half = len / 2;
            assert_eq!(
                output.read(half, 100).unwrap(),
                bytes[half..len.min(half + 100)]
            );
            assert_eq!(output.read(len + 7, 1).unwrap(), b"");
            assert_eq!(output.read(usize::MAX, usize::MAX).unwrap(), b"");
        }
    }

    #[test]
    fn a_call_too_many_is_refused_until_another_has_gone() {
        let outputs = Outputs::default();
        let mut places: Vec<_> = (0..MAX_CALLS).map(|_| outputs.admit().unwrap()).collect();
        let refused = outputs.admit().unwrap_err().to_string();
        assert!(refused.contains("128"), "{refused}");
        places.pop();
        outputs.admit().unwrap();
    }
}
