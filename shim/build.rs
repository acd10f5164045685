//! How the shim is linked, and the pause that it carries for shims that have none.

use std::{env, path::PathBuf, process::Command};

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=src/front/pause.S");
    println!("cargo:rerun-if-env-changed=CC");
    // Not position independent: the loader would write addresses into half a megabyte of tables (.data.rel.ro) at each start, which
    // every pod then holds as pages of its own. As it is they are the file's, shared by all pods of the node.
    println!("cargo:rustc-link-arg-bins=-no-pie");
    assemble_pause();
}

/// By the compiler driver that links Rust's own programs, too; for another machine by its name there, or as `CC` says.
fn assemble_pause() {
    let variable = |name| env::var(name).unwrap_or_default();
    let compiler = match variable("CC") {
        chosen if !chosen.is_empty() => chosen,
        _ if variable("TARGET") == variable("HOST") => "cc".into(),
        _ => format!("{}-linux-gnu-gcc", variable("CARGO_CFG_TARGET_ARCH")),
    };
    let pause = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR")).join("pause");
    let assembled = Command::new(&compiler)
        .args(["-nostdlib", "-static", "-s"])
        .args(["-Wl,--build-id=none", "-Wl,-z,noseparate-code"])
        .arg("src/front/pause.S")
        .arg("-o")
        .arg(&pause)
        .status();
    assert!(
        assembled.as_ref().is_ok_and(|status| status.success()),
        "{compiler} does not assemble src/front/pause.S: {assembled:?}"
    );
}
