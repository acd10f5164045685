//! The fuzzers' entries (fuzz/), driven by mutations of what real clients send: in each run some thousand inputs, and as many as go
//! into BERTH_TEST_FUZZ_SECONDS where that is set. An input that ends in a panic is printed by its seed and round. Where
//! BERTH_TEST_FUZZ_CORPUS names a directory, the unchanged inputs are written there, below the target's name: libFuzzer begins with them.

use rand::{RngExt, SeedableRng, rngs::StdRng};

use super::{hostile::resident, *};
use crate::fuzz;

/// Inputs of an ordinary run.
const ROUNDS: u64 = 3000;

/// What all of them together may leave in memory. An input is a few KiB, and so is what it may hold.
const LEFT_BYTES: usize = 32 << 20;

const SEED: u64 = 0x5bd1;

/// A frame as the packing entry takes it.
fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u16).to_be_bytes();
    [&[0x80, 3, 0, kind, flags, 0][..], &length, payload].concat()
}

fn data(id: u32, flags: u8, payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u16).to_be_bytes();
    [&id.to_be_bytes()[..], &[flags, 0], &length, payload].concat()
}

fn open(id: u32, headers: &[(&str, &str)]) -> Vec<u8> {
    let mut payload = id.to_be_bytes().to_vec();
    payload.extend_from_slice(&[0; 6]);
    payload.extend_from_slice(&(headers.len() as u32).to_be_bytes());
    for part in headers.iter().flat_map(|(name, value)| [name, value]) {
        payload.extend_from_slice(&(part.len() as u32).to_be_bytes());
        payload.extend_from_slice(part.as_bytes());
    }
    frame(1, 0, &payload)
}

/// Whole sessions, as clients speak them.
pub(super) fn spdy_seeds() -> Vec<Vec<u8>> {
    let command = [
        open(1, &[("streamtype", "error")]),
        open(3, &[("streamtype", "stdin")]),
        open(5, &[("streamtype", "stdout")]),
        open(7, &[("streamtype", "stderr")]),
        frame(6, 0, &[0, 0, 0, 1]),
        data(3, 0, b"hello"),
        data(1, 1, b""),
        data(3, 1, b" world"),
        frame(7, 0, &[0; 8]),
    ];
    let terminal = [
        open(1, &[("streamtype", "error")]),
        open(3, &[("streamtype", "stdin")]),
        open(5, &[("streamtype", "stdout")]),
        open(7, &[("streamtype", "resize")]),
        data(7, 0, b"{\"Width\":80,\"Height\":24}\n{\"Wid"),
        data(7, 1, b"th\":81,\"Height\":25}"),
        data(3, 1, b"ls\r"),
    ];
    let pair = |id: u32, port: &str| {
        let request = id.to_string();
        let headers = |kind| {
            [
                ("streamtype", kind),
                ("port", port),
                ("requestid", &*request),
            ]
        };
        [
            open(id, &headers("error")),
            data(id, 1, b""),
            open(id + 2, &headers("data")),
            data(id + 2, 0, b"GET /"),
        ]
        .concat()
    };
    let ports = [
        pair(1, "80"),
        pair(5, "1"),
        frame(4, 0, &[0, 0, 0, 1, 0, 0, 0, 4, 0, 0, 1, 0]),
        frame(3, 0, &[0, 0, 0, 3, 0, 0, 0, 5]),
        frame(8, 1, &[0, 0, 0, 7, 0, 0, 0, 0]),
        frame(9, 0, &[0, 0, 0, 7, 0, 1, 0, 0]),
        pair(9, "65536"),
    ];
    vec![
        [&[0x83][..], &command.concat()].concat(),
        [&[0x84][..], &command.concat()].concat(),
        [&[0x87][..], &command.concat()].concat(),
        [&[0x8b][..], &terminal.concat()].concat(),
        [&[0x81][..], &ports.concat()].concat(),
        [&[0x01][..], &ports.concat()].concat(),
    ]
}

/// A masked message; the mask is nothing, so that mutations reach the data.
fn message(opcode: u8, payload: &[u8]) -> Vec<u8> {
    let head = match payload.len() {
        short @ 0..126 => vec![opcode, 0x80 | short as u8],
        long => [&[opcode, 0x80 | 126][..], &(long as u16).to_be_bytes()].concat(),
    };
    [&head[..], &[0; 4], payload].concat()
}

pub(super) fn websocket_seeds() -> Vec<Vec<u8>> {
    let session = [
        message(0x82, b"\x00hello"),
        message(0x02, b"\x00in "),
        message(0x00, b"two "),
        message(0x89, b"ping"),
        message(0x80, b"parts"),
        message(0x82, b"\x04{\"Width\":80,\"Height\":24}"),
        message(0x82, &[&[0][..], &[b'x'; 300]].concat()),
        message(0x82, &[255, 0]),
        message(0x88, &[3, 0xe8]),
    ]
    .concat();
    let base64 = [
        message(0x81, b"0aGVsbG8="),
        message(0x81, b"4eyJXaWR0aCI6ODAsIkhlaWdodCI6MjR9"),
        message(0x88, &[3, 0xe8]),
    ]
    .concat();
    // The same inside SPDY's tunnel.
    let tunnelled = message(0x82, &spdy_seeds()[5][1..]);
    vec![
        [&[0x00][..], &session].concat(),
        [&[0x41][..], &session].concat(),
        [&[0x80][..], &session].concat(),
        [&[0x02][..], &base64].concat(),
        [&[0x81][..], &base64].concat(),
        [&[0x00][..], &tunnelled].concat(),
    ]
}

/// One to eight changes: bytes, lengths, pieces that go, come twice or from another seed.
fn mutate(random: &mut StdRng, seeds: &[Vec<u8>]) -> Vec<u8> {
    let mut input = seeds[random.random_range(0..seeds.len())].clone();
    for _ in 0..random.random_range(1..=8) {
        let at = random.random_range(0..input.len());
        let to = random.random_range(at..input.len().min(at + 64)) + 1;
        match random.random_range(0..8) {
            0 => input[at] = random.random(),
            1 => input[at] ^= 1 << random.random_range(0..8),
            2 => input[at] = [0, 1, 0x7f, 0x80, 0xff][random.random_range(0..5)],
            3 if input.len() > to - at => drop(input.drain(at..to)),
            4 => {
                let piece = input[at..to].to_vec();
                input.splice(at..at, piece);
            }
            5 => {
                let other = &seeds[random.random_range(0..seeds.len())];
                let from = random.random_range(0..other.len());
                input.truncate(at + 1);
                input.extend_from_slice(&other[from..]);
            }
            6 => input.truncate(at + 1),
            _ => {
                for byte in &mut input[at..to] {
                    *byte = random.random();
                }
            }
        }
    }
    input
}

fn drive(what: &str, entry: fn(&[u8]), seeds: &[Vec<u8>]) {
    if let Some(corpus) = std::env::var_os("BERTH_TEST_FUZZ_CORPUS") {
        let dir = std::path::Path::new(&corpus).join(what);
        std::fs::create_dir_all(&dir).unwrap();
        for (number, seed) in seeds.iter().enumerate() {
            std::fs::write(dir.join(format!("session-{number}")), seed).unwrap();
        }
    }
    for seed in seeds {
        entry(seed);
    }
    entry(&[]);
    let until = std::env::var("BERTH_TEST_FUZZ_SECONDS")
        .ok()
        .and_then(|seconds| seconds.parse().ok())
        .map(|seconds| std::time::Instant::now() + Duration::from_secs(seconds));
    let mut random = StdRng::seed_from_u64(SEED);
    // What the allocator keeps of the first hundreds is not the input's.
    let (mut rounds, mut before) = (0, 0);
    while until.map_or(rounds < ROUNDS, |until| std::time::Instant::now() < until) {
        let input = mutate(&mut random, seeds);
        if std::panic::catch_unwind(|| entry(&input)).is_err() {
            panic!("{what}: seed {SEED:#x}, round {rounds}: {input:02x?}");
        }
        rounds += 1;
        if rounds == ROUNDS / 4 {
            before = resident();
        }
    }
    let grown = resident().saturating_sub(before);
    assert!(
        grown < LEFT_BYTES,
        "{what}: {} MiB after {rounds} inputs",
        grown >> 20
    );
    println!(
        "{what}: {rounds} inputs, {} KiB more than after the first",
        grown >> 10
    );
}

// SEC-CRI-08
#[test]
fn no_spdy_frames_hang_or_panic() {
    drive("spdy", fuzz::spdy, &spdy_seeds());
}

// SEC-CRI-08
#[test]
fn no_websocket_messages_hang_or_panic() {
    drive("websocket", fuzz::websocket, &websocket_seeds());
}
