//! Images that the tests make: OCI layouts, OCI archives and archives as `docker save` writes them.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::Tar;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
/// An uncompressed layer's media type.
pub(crate) const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// How a layer is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    None,
    /// gzip.
    Gzip,
    /// zstd.
    Zstd,
}

/// The files of an OCI layout.
#[derive(Clone, Debug, Default)]
pub struct Layout {
    /// Each file by its path; tests may spoil them.
    pub files: BTreeMap<String, Vec<u8>>,
    manifests: Vec<Value>,
}

/// `sha256:...`.
pub fn digest(bytes: &[u8]) -> String {
    let hash: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hash}")
}

/// Compresses with the program of that name.
///
/// # Panics
/// The program is not there or fails.
pub fn compress(bytes: &[u8], compression: Compression) -> Vec<u8> {
    let program = match compression {
        Compression::None => return bytes.to_vec(),
        Compression::Gzip => "gzip",
        Compression::Zstd => "zstd",
    };
    let mut child = Command::new(program)
        .args(["-1", "-c"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("run {program}: {error}"));
    let mut stdin = child.stdin.take().expect("a pipe");
    let input = bytes.to_vec();
    let writer = std::thread::spawn(move || stdin.write_all(&input));
    let output = child.wait_with_output().expect("wait for a compressor");
    writer.join().expect("a writer").expect("write to a compressor");
    assert!(output.status.success(), "{program} has failed");
    output.stdout
}

/// A configuration for linux/amd64 with these contents of `config`.
pub fn config(config: Value) -> Value {
    json!({"architecture": "amd64", "os": "linux", "config": config, "rootfs": {"type": "layers", "diff_ids": []}})
}

impl Layout {
    /// A layout without images.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a blob and gives its descriptor.
    pub fn blob(&mut self, media_type: &str, bytes: &[u8]) -> Value {
        let digest = digest(bytes);
        self.files.insert(path(&digest), bytes.to_vec());
        json!({"mediaType": media_type, "digest": digest, "size": bytes.len()})
    }

    /// Adds an image of these layers and gives its manifest's descriptor; the digests of the layers go into `config`.
    pub fn image(&mut self, mut config: Value, layers: &[(Tar, Compression)]) -> Value {
        let mut descriptors = Vec::new();
        let mut diff_ids = Vec::new();
        for (layer, compression) in layers {
            let plain = layer.clone().finish();
            diff_ids.push(digest(&plain));
            let end = match compression {
                Compression::None => "",
                Compression::Gzip => "+gzip",
                Compression::Zstd => "+zstd",
            };
            descriptors.push(self.blob(&format!("{LAYER}{end}"), &compress(&plain, *compression)));
        }
        config["rootfs"]["diff_ids"] = json!(diff_ids);
        self.manifest(&config, &descriptors)
    }

    /// Adds a manifest of what is there and gives its descriptor.
    pub fn manifest(&mut self, config: &Value, layers: &[Value]) -> Value {
        let config = self.blob(CONFIG, config.to_string().as_bytes());
        let manifest = json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers});
        self.blob(MANIFEST, manifest.to_string().as_bytes())
    }

    /// Adds an index of several manifests and gives its descriptor.
    pub fn index(&mut self, manifests: &[Value]) -> Value {
        let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests});
        self.blob(INDEX, index.to_string().as_bytes())
    }

    /// Gives what a descriptor leads to a name.
    pub fn tag(&mut self, mut descriptor: Value, name: &str) {
        descriptor["annotations"] = json!({"org.opencontainers.image.ref.name": name});
        self.manifests.push(descriptor);
    }

    /// Makes what a descriptor leads to a part of the layout.
    pub fn add(&mut self, descriptor: Value) {
        self.manifests.push(descriptor);
    }

    /// The same blobs, none of which the layout's index names.
    pub fn untagged(&self) -> Self {
        Self {
            files: self.files.clone(),
            manifests: Vec::new(),
        }
    }

    /// All files of the layout.
    fn all(&self) -> BTreeMap<String, Vec<u8>> {
        let mut files = BTreeMap::new();
        files.insert("oci-layout".to_owned(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec());
        let index = json!({"schemaVersion": 2, "manifests": self.manifests});
        files.insert("index.json".to_owned(), index.to_string().into_bytes());
        files.extend(self.files.clone());
        files
    }

    /// Writes a directory.
    ///
    /// # Panics
    /// It cannot be written.
    pub fn write_directory(&self, directory: &Path) {
        for (name, bytes) in self.all() {
            let path = directory.join(name);
            fs::create_dir_all(path.parent().expect("a parent")).expect("make a directory");
            fs::write(path, bytes).expect("write a file of a layout");
        }
    }

    /// Writes an archive.
    ///
    /// # Panics
    /// It cannot be written.
    pub fn write_archive(&self, path: &Path, compression: Compression) {
        let mut tar = Tar::new().directory("blobs/", 0o755);
        for (name, bytes) in self.all() {
            tar = tar.file(&name, 0o644, bytes);
        }
        fs::write(path, compress(&tar.finish(), compression)).expect("write an archive");
    }
}

/// A blob's path in a layout.
pub fn path(digest: &str) -> String {
    format!("blobs/{}", digest.replacen(':', "/", 1))
}

/// An image of an archive as `docker save` writes it: configuration, tags and layers.
pub type DockerImage<'a> = (Value, &'a [&'a str], &'a [Tar]);

/// An archive as `docker save` wrote it before it wrote layouts.
pub fn docker_archive(images: &[DockerImage<'_>]) -> Vec<u8> {
    let mut tar = Tar::new();
    let mut items = Vec::new();
    let mut seen = BTreeMap::new();
    for (config, tags, layers) in images {
        let mut config = config.clone();
        let mut diff_ids = Vec::new();
        let mut files = Vec::new();
        for layer in *layers {
            let bytes = layer.clone().finish();
            let id = digest(&bytes);
            let name = format!("{}/layer.tar", &id[7..]);
            if seen.insert(name.clone(), ()).is_none() {
                tar = tar
                    .directory(&format!("{}/", &id[7..]), 0o755)
                    .file(&name, 0o644, &bytes);
            }
            diff_ids.push(id);
            files.push(name);
        }
        config["rootfs"]["diff_ids"] = json!(diff_ids);
        let text = config.to_string();
        let name = format!("{}.json", &digest(text.as_bytes())[7..]);
        tar = tar.file(&name, 0o644, text);
        items.push(json!({"Config": name, "RepoTags": tags, "Layers": files}));
    }
    tar.file("manifest.json", 0o644, json!(items).to_string()).finish()
}
