//! Image archives: an OCI layout or what `docker save` writes, whose digests are right and whose documents are changed.

use std::io::Write;
use std::sync::LazyLock;

use arbitrary::{Result, Unstructured};
use flate2::Compression;
use flate2::write::GzEncoder;
use husk_image::source::Source;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::layer::{LIMITS, file};
use crate::{json, tar};

static DIR: LazyLock<tempfile::TempDir> = LazyLock::new(|| tempfile::tempdir().unwrap());

pub fn run(data: &[u8]) {
    let Some((kind, rest)) = data.split_first() else { return };
    let mut script = Unstructured::new(rest);
    // A script that ends too early is no image.
    let archive = match kind % 4 {
        0 => Ok(rest.to_vec()),
        1 => docker(&mut script),
        2 => layout(&mut script).map(|archive| compress(&archive)),
        _ => layout(&mut script),
    };
    if let Ok(archive) = archive {
        open(&archive);
    }
}

/// Opens the archive and converts all layers.
fn open(archive: &[u8]) {
    let path = DIR.path().join("image");
    std::fs::write(&path, archive).unwrap();
    let Ok(source) = Source::open(&path, DIR.path(), &LIMITS) else {
        return;
    };
    // What is wrong with it does not matter.
    let _ = source.image(Some("tag"));
    if let Ok(image) = source.image(None) {
        for layer in &image.layers {
            let _ = source.convert(layer, &file(), &mut |_, _| {});
        }
    }
}

fn compress(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn digest(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

/// Adds a blob and gives its descriptor.
fn blob(archive: &mut Vec<u8>, media_type: &str, bytes: &[u8]) -> Value {
    let digest = digest(bytes);
    tar::add(archive, &format!("blobs/{}", digest.replace(':', "/")), bytes);
    json!({"mediaType": media_type, "digest": digest, "size": bytes.len()})
}

/// A document with changes, which are none in most documents.
fn document(mut value: Value, script: &mut Unstructured<'_>) -> Result<Vec<u8>> {
    if script.ratio(1, 3)? {
        json::change(&mut value, script)?;
    }
    Ok(serde_json::to_vec(&value).unwrap())
}

/// A layer's archive, and what stands for it in the image: compressed, and damaged now and then.
fn layer(script: &mut Unstructured<'_>) -> Result<(Vec<u8>, Vec<u8>)> {
    let plain = tar::archive(script)?;
    let mut packed = if script.arbitrary()? {
        compress(&plain)
    } else {
        plain.clone()
    };
    if script.ratio(1, 8)? {
        packed = [&b"\x28\xb5\x2f\xfd"[..], script.bytes(script.len().min(200))?].concat();
    } else if !packed.is_empty() && script.ratio(1, 4)? {
        let at = script.choose_index(packed.len())?;
        packed[at] ^= script.arbitrary::<u8>()?;
    }
    Ok((plain, packed))
}

fn config(plain: &[u8]) -> Value {
    json!({
        "architecture": "amd64", "os": "linux",
        "config": {"User": "1:2", "Env": ["A=b"], "Entrypoint": ["/a"], "Cmd": ["b"], "WorkingDir": "/w",
                   "Volumes": {"/v": {}}, "StopSignal": "SIGTERM"},
        "rootfs": {"type": "layers", "diff_ids": [digest(plain)]},
    })
}

fn layout(script: &mut Unstructured<'_>) -> Result<Vec<u8>> {
    const TYPE: &str = "application/vnd.oci.image";
    let (plain, packed) = layer(script)?;
    let mut archive = Vec::new();
    let layer_type = *script.choose(&[
        "layer.v1.tar+gzip",
        "layer.v1.tar",
        "layer.v1.tar+zstd",
        "layer.nondistributable.v1.tar",
    ])?;
    let layer = blob(&mut archive, &format!("{TYPE}.{layer_type}"), &packed);
    let config = document(config(&plain), script)?;
    let config = blob(&mut archive, &format!("{TYPE}.config.v1+json"), &config);
    let manifest = json!({"schemaVersion": 2, "config": config, "layers": [layer]});
    let manifest = document(manifest, script)?;
    let mut inner = blob(&mut archive, &format!("{TYPE}.manifest.v1+json"), &manifest);
    if script.arbitrary()? {
        inner["platform"] = json!({"architecture": "amd64", "os": "linux"});
    }
    inner["annotations"] = json!({"org.opencontainers.image.ref.name": "tag"});
    if script.ratio(1, 4)? {
        let index = document(json!({"schemaVersion": 2, "manifests": [inner]}), script)?;
        inner = blob(&mut archive, &format!("{TYPE}.index.v1+json"), &index);
    }
    let index = document(json!({"schemaVersion": 2, "manifests": [inner]}), script)?;
    tar::add(&mut archive, "index.json", &index);
    let version = document(json!({"imageLayoutVersion": "1.0.0"}), script)?;
    tar::add(&mut archive, "oci-layout", &version);
    archive.resize(archive.len() + 1024, 0);
    Ok(archive)
}

fn docker(script: &mut Unstructured<'_>) -> Result<Vec<u8>> {
    let (plain, packed) = layer(script)?;
    let mut archive = Vec::new();
    tar::add(&mut archive, "config.json", &document(config(&plain), script)?);
    tar::add(&mut archive, "a/layer.tar", &packed);
    let manifest = json!([{"Config": "config.json", "RepoTags": ["name:tag"], "Layers": ["a/layer.tar"]}]);
    tar::add(&mut archive, "manifest.json", &document(manifest, script)?);
    archive.resize(archive.len() + 1024, 0);
    Ok(archive)
}
