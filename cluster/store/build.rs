//! Compiles etcd's .proto files with protox (pure Rust: nothing to install).

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    tonic_prost_build::configure()
        .bytes(".")
        .compile_fds(protox::compile(["rpc.proto"], ["proto"])?)?;
    Ok(())
}
