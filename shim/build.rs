//! How the shim is linked.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    // Not position independent: the loader would write addresses into half a megabyte of tables (.data.rel.ro) at each start, which
    // every pod then holds as pages of its own. As it is they are the file's, shared by all pods of the node.
    println!("cargo:rustc-link-arg-bins=-no-pie");
}
