//! Layers: archives become layer files, these a tree, and that an EROFS image.

use std::fs::File;

use arbitrary::Unstructured;
use husk_image::layer;
use husk_image::tree::Tree;
use husk_image::{Limits, erofs};
use nix::sys::memfd::{MFdFlags, memfd_create};

use crate::tar;

/// So that an archive of holes fills no memory.
pub const LIMITS: Limits = Limits {
    layer_bytes: 1 << 20,
    entries: 200,
    metadata_bytes: 1 << 20,
    layers: 8,
    json_bytes: 64 << 10,
    archive_bytes: 1 << 20,
    archive_members: 50,
};

pub fn file() -> File {
    File::from(memfd_create("layer", MFdFlags::MFD_CLOEXEC).unwrap())
}

pub fn run(data: &[u8]) {
    let Some((kind, rest)) = data.split_first() else { return };
    if kind % 4 == 0 {
        put_together(&[rest]);
    } else {
        let mut script = Unstructured::new(rest);
        let archives: Vec<_> = (0..kind % 4).map_while(|_| tar::archive(&mut script).ok()).collect();
        put_together(&archives);
    }
}

/// Makes the image of these layers, if they can be layers.
fn put_together(archives: &[impl AsRef<[u8]>]) {
    let mut tree = Tree::new(&LIMITS);
    let mut lengths = Vec::new();
    for archive in archives {
        let file = file();
        if layer::convert(archive.as_ref(), &file, &LIMITS).is_err() {
            return;
        }
        // What was written can be read.
        let entries = layer::read_index(&file).unwrap();
        lengths.push(file.metadata().unwrap().len());
        if tree.apply(entries).is_err() {
            return;
        }
    }
    // Its links may go round in circles.
    let _ = tree.file(b"a/b");
    erofs::write(&tree, &lengths, [7; 16], &file()).unwrap();
}
