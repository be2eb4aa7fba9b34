//! What `husk-vmm` is told: its configuration and the requests of its control socket; and what it says.

use std::sync::LazyLock;

use arbitrary::{Result, Unstructured};
use husk_vmm_config::{Config, Report, Request, Response};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::json;

static CONFIG: LazyLock<Value> = LazyLock::new(|| {
    json!({
        "vcpus": {"count": 2, "threads_per_core": 1},
        "memory_mib": 128,
        "kernel": {"image": 3, "initramfs": [4], "command_line": "quiet"},
        "disks": [{"id": "husk-0", "read_only": true, "queues": 1, "file": 10}],
        "vsock": {"cid": 3, "listener": 5, "ports": [{"port": 1024, "acceptor": 6}]},
        "console": {"listener": 11},
        "control": 7,
        "report": 8,
        "lifeline": 9,
    })
});

pub fn run(data: &[u8]) {
    read(data);
    // A script that ends in the middle of a change has ended.
    let _ = changed(&mut Unstructured::new(data));
}

fn changed(script: &mut Unstructured<'_>) -> Result<()> {
    let mut document = match script.int_in_range(0..=3_u8)? {
        0 => json!({"request": "attach", "disk": "husk-0"}),
        _ => CONFIG.clone(),
    };
    json::change(&mut document, script)?;
    read(&serde_json::to_vec(&document).unwrap());
    Ok(())
}

fn read(text: &[u8]) {
    if let Ok(config) = Config::read(text) {
        let again = serde_json::to_vec(&config).unwrap();
        assert_eq!(Config::read(again.as_slice()).unwrap(), config);
    }
    comes_back::<Request>(text);
    comes_back::<Response>(text);
    comes_back::<Report>(text);
}

/// What is understood is written so that it is understood the same.
fn comes_back<T: DeserializeOwned + Serialize>(text: &[u8]) {
    if let Ok(value) = serde_json::from_slice::<T>(text) {
        let written = serde_json::to_vec(&value).unwrap();
        let again: T = serde_json::from_slice(&written).unwrap();
        assert_eq!(serde_json::to_vec(&again).unwrap(), written);
    }
}
