#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| berth_patch::fuzz::apply_all(input));
