//! Generates the messages of `proto/options.proto`, without protoc.

use std::path::PathBuf;

use ttrpc_codegen::{Codegen, ProtobufCustomize};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    println!("cargo::rerun-if-changed=proto");
    Codegen::new()
        .out_dir(&out)
        .inputs(["proto/options.proto"])
        .include("proto")
        .rust_protobuf()
        .rust_protobuf_customize(ProtobufCustomize::default().gen_mod_rs(false).lite_runtime(true))
        .run()?;
    // The generated file begins with inner attributes, so it can only be a module of a file beside it.
    std::fs::write(out.join("mod.rs"), "pub mod options;\n")?;
    Ok(())
}
