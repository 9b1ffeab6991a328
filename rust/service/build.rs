//! Makes the messages and the service of peers from the committed descriptors, so that a build needs no protoc.

#[cfg(feature = "peers")]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    use prost::Message as _;

    let file = "src/peers/proto.binpb";
    println!("cargo::rerun-if-changed={file}");
    let descriptors = prost_types::FileDescriptorSet::decode(std::fs::read(file)?.as_slice())?;
    tonic_prost_build::configure()
        .build_transport(false)
        .emit_rerun_if_changed(false)
        .compile_fds(descriptors)?;
    Ok(())
}

#[cfg(not(feature = "peers"))]
fn main() {}
