//! config.json: what container tools write, changed.

use std::sync::LazyLock;

use arbitrary::{Result, Unstructured};
use husk_sandbox::bundle::{self, Bundle};
use serde_json::Value;

use crate::json;

static DOCUMENTS: LazyLock<[Value; 5]> = LazyLock::new(|| {
    [
        include_str!("../../tests/data/runc-spec.json"),
        include_str!("../../tests/data/bundles/ctr.json"),
        include_str!("../../tests/data/bundles/cri.json"),
        include_str!("../../tests/data/bundles/docker.json"),
        include_str!("../../tests/data/bundles/podman.json"),
    ]
    .map(|text| serde_json::from_str(text).unwrap())
});

static DIR: LazyLock<tempfile::TempDir> = LazyLock::new(|| {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("rootfs")).unwrap();
    dir
});

pub fn run(data: &[u8]) {
    let Some((kind, rest)) = data.split_first() else { return };
    if kind % 8 == 7 {
        translate(rest);
    } else {
        // A script that ends in the middle of a change has ended.
        let _ = changed(usize::from(*kind), &mut Unstructured::new(rest));
    }
}

fn changed(kind: usize, script: &mut Unstructured<'_>) -> Result<()> {
    let mut document = DOCUMENTS[kind % DOCUMENTS.len()].clone();
    // The roots of the documents are on other machines.
    document["root"]["path"] = "rootfs".into();
    json::change(&mut document, script)?;
    translate(&serde_json::to_vec(&document).unwrap());
    if let Some(process) = document.get("process") {
        // What is wrong with it does not matter.
        let _ = bundle::process(&serde_json::to_vec(process).unwrap());
    }
    Ok(())
}

fn translate(text: &[u8]) {
    let _ = Bundle::parse(DIR.path(), text);
}
