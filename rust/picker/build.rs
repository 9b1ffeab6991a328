//! Makes the messages and services from the committed descriptors, so that a build needs no protoc.

use prost::Message as _;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let file = "src/proto.binpb";
    println!("cargo::rerun-if-changed={file}");
    let descriptors = prost_types::FileDescriptorSet::decode(std::fs::read(file)?.as_slice())?;
    tonic_prost_build::configure()
        .build_client(false)
        .build_transport(false)
        .bytes(".envoy.service.ext_proc.v3")
        .emit_rerun_if_changed(false)
        .compile_fds(descriptors)?;
    Ok(())
}
