#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| oncelog::simulation::fuzz::table(bytes));
