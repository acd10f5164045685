//! Compiles the .proto files with protox (pure Rust: nothing to install).

use std::{
    env,
    error::Error,
    fmt::Write,
    fs,
    path::{Path, PathBuf},
};

use prost::Message;
use prost_types::FileDescriptorSet;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=cri/api.proto");
    println!("cargo:rerun-if-changed=admin/admin.proto");
    println!("cargo:rerun-if-changed=otlp/trace.proto");
    println!("cargo:rerun-if-changed=shim/pod.proto");
    println!("cargo:rerun-if-changed=shim/sandbox_config.proto");
    println!("cargo:rerun-if-changed=nri/nri.proto");
    let out = PathBuf::from(env::var("OUT_DIR")?);
    if env::var_os("CARGO_FEATURE_GRPC").is_some() {
        grpc(&out)?;
    }
    if env::var_os("CARGO_FEATURE_TTRPC").is_some() {
        ttrpc(&out, "shim", "pod", &["sandbox_config"])?;
        ttrpc(&out, "nri", "nri", &[])?;
    }
    Ok(())
}

fn grpc(out: &Path) -> Result<(), Box<dyn Error>> {
    let mut files = protox::compile(["cri/api.proto", "admin/admin.proto"], ["cri", "admin"])?;
    fs::write(out.join("cri_rpcs.rs"), rpc_list(&files)?)?;
    tonic_prost_build::configure()
        // What carries whole outputs and archives is handed on without a copy. Nothing else: a `Bytes` keeps the whole
        // message that it was cut from in memory, and configurations (KeyValue.value) are kept for long.
        .bytes(".runtime.v1.ExecSyncResponse")
        .bytes(".berth.admin.v1.ImportRequest")
        .compile_fds(files.clone())?;
    for file in &mut files.file {
        file.source_code_info = None;
    }
    fs::write(out.join("descriptors.bin"), files.encode_to_vec())?;
    tonic_prost_build::configure()
        .build_server(false)
        .compile_fds(protox::compile(["otlp/trace.proto"], ["otlp"])?)?;
    Ok(())
}

/// The CRI's method paths as a Rust array, in the order of the .proto file.
fn rpc_list(files: &FileDescriptorSet) -> Result<String, Box<dyn Error>> {
    let mut list = String::from("[\n");
    for file in files
        .file
        .iter()
        .filter(|file| file.package() == "runtime.v1")
    {
        for service in &file.service {
            for method in &service.method {
                writeln!(
                    list,
                    "    \"/{}.{}/{}\",",
                    file.package(),
                    service.name(),
                    method.name()
                )?;
            }
        }
    }
    list.push(']');
    Ok(list)
}

/// `<directory>/<name>.proto` and files of messages alone, into a directory of the same name.
fn ttrpc(out: &Path, directory: &str, name: &str, messages: &[&str]) -> Result<(), Box<dyn Error>> {
    let generated = out.join(directory);
    // Anew, not over what is there: in a copied target directory that may be a link to another's.
    if generated.exists() {
        fs::remove_dir_all(&generated)?;
    }
    fs::create_dir_all(&generated)?;
    ttrpc_codegen::Codegen::new()
        .out_dir(&generated)
        .inputs(
            [name]
                .iter()
                .chain(messages)
                .map(|name| format!("{directory}/{name}.proto")),
        )
        .include(directory)
        .rust_protobuf()
        .customize(ttrpc_codegen::Customize {
            async_all: true,
            ..Default::default()
        })
        .rust_protobuf_customize(ttrpc_codegen::ProtobufCustomize::default().gen_mod_rs(true))
        .run()?;
    // The generator lists the messages only; the services stand beside them.
    let list = generated.join("mod.rs");
    let messages = fs::read_to_string(&list)?;
    fs::write(&list, format!("{messages}\npub mod {name}_ttrpc;\n"))?;
    // It has no unsafe code, but allows it, which the workspace forbids.
    let service = generated.join(format!("{name}_ttrpc.rs"));
    let text = fs::read_to_string(&service)?;
    fs::write(&service, text.replace("#![allow(unsafe_code)]", ""))?;
    Ok(())
}
