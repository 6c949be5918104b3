//! Compiles the protocol files without protoc.

use std::{env, fs, path::PathBuf};

use prost::Message;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = ["quorate/v1/kv.proto", "quorate/v1/admin.proto", "quorate/internal/v1/peer.proto"];
    for file in files {
        println!("cargo::rerun-if-changed={file}");
    }
    let descriptors = protox::compile(files, ["."])?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    // Reflection shows clients what is meant for them.
    let public = protox::compile(&files[..2], ["."])?;
    fs::write(out.join("public_descriptors.bin"), public.encode_to_vec())?;
    // No generated connect(): whoever opens a connection brings the connector, so that simulated
    // networks can carry every call. Ordered maps: equal messages have equal bytes.
    tonic_prost_build::configure()
        .build_transport(false)
        .codec_path("crate::codec::CompactCodec")
        .bytes(".")
        .btree_map(".")
        .compile_fds(descriptors)?;
    Ok(())
}
