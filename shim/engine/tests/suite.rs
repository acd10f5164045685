//! What every engine must do, asked of [`Engine`] alone and checked through /proc and cgroupfs.
//!
//! No libtest: the launcher is forked while this process has one thread, and this process, like a shim, is the subreaper that
//! containers belong to. `suite [--list] [--exact] [name…]` runs all cases or those whose names contain a word; after each,
//! nothing of it may be left: no process, cgroup, mount, descriptor or file.

mod cases;
mod world;

use std::{panic, process::ExitCode, time::Instant};

use berth_engine::Maker;
use world::World;

/// Each case is asked of each.
const MAKERS: [(&str, Maker); 2] = [
    ("native", Maker::Native),
    ("libcontainer", Maker::Libcontainer),
];

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let flag = |name: &str| args.iter().any(|arg| arg == name);
    if flag("--list") {
        // What cargo nextest asks for. No case is ignored.
        if !flag("--ignored") {
            for (maker, _) in MAKERS {
                for (name, _) in cases::ALL {
                    println!("{maker}::{name}: test");
                }
            }
        }
        return ExitCode::SUCCESS;
    }
    let names: Vec<&String> = args.iter().filter(|arg| !arg.starts_with("--")).collect();
    let wanted = |name: &str| {
        names.is_empty()
            || names.iter().any(|n| {
                if flag("--exact") {
                    n.as_str() == name
                } else {
                    name.contains(n.as_str())
                }
            })
    };
    // Before any thread.
    let mut world = World::new();
    let mut failed = Vec::new();
    let all = MAKERS.iter().flat_map(|(maker_name, maker)| {
        let cases = cases::ALL.iter();
        cases.map(move |(name, case)| (format!("{maker_name}::{name}"), *maker, case))
    });
    for (name, maker, case) in all.filter(|(name, ..)| wanted(name)) {
        world.choose(maker);
        let began = Instant::now();
        let outcome = panic::catch_unwind(panic::AssertUnwindSafe(|| {
            case(&mut world);
            world.assert_nothing_left();
        }));
        let ms = began.elapsed().as_millis();
        println!(
            "test {name} ... {} ({ms} ms)",
            if outcome.is_ok() { "ok" } else { "FAILED" }
        );
        if outcome.is_err() {
            world.sweep();
            failed.push(name);
        }
    }
    world.end();
    if failed.is_empty() {
        return ExitCode::SUCCESS;
    }
    eprintln!("{} failed: {failed:?}", failed.len());
    ExitCode::FAILURE
}
