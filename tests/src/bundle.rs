//! OCI bundles, begun from what `runc spec` writes.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::Host;

/// The output of `runc spec` (runc 1.1), as it is.
const RUNC_SPEC: &str = include_str!("../data/runc-spec.json");

/// A bundle directory whose `config.json` a test changes.
#[derive(Clone, Debug)]
pub struct Bundle {
    directory: PathBuf,
    config: Value,
}

impl Bundle {
    /// What `runc spec` writes, word for word, over a root file system: a terminal, three capabilities, a read-only root.
    ///
    /// # Panics
    /// The directory cannot be made.
    pub fn as_runc_writes_it(host: &Host, rootfs: &Path) -> Self {
        let bundle = Self::of(host, serde_json::from_str(RUNC_SPEC).expect("runc writes JSON"));
        std::os::unix::fs::symlink(rootfs, bundle.directory.join("rootfs")).expect("link the root file system");
        bundle
    }

    /// A bundle with this `config.json`.
    ///
    /// # Panics
    /// The directory cannot be made.
    pub fn of(host: &Host, config: Value) -> Self {
        let directory = tempfile::Builder::new()
            .prefix("bundle-")
            .tempdir_in(host.scratch())
            .expect("make a bundle");
        let directory = directory.keep();
        Self { directory, config }.written()
    }

    /// The same with pipes instead of a terminal, and with `script` for /bin/sh as its command.
    ///
    /// # Panics
    /// The directory cannot be made.
    pub fn of_script(host: &Host, rootfs: &Path, script: &str) -> Self {
        let bundle = Self::as_runc_writes_it(host, rootfs).with("/process/terminal", false);
        bundle.with("/process/args", json!(["/bin/sh", "-c", script]))
    }

    /// Sets the value at a JSON pointer, of which only the last part may be new.
    ///
    /// # Panics
    /// There is no such place.
    pub fn with(mut self, pointer: &str, value: impl Into<Value>) -> Self {
        let (parent, key) = pointer.rsplit_once('/').expect("a JSON pointer");
        let parent = self
            .config
            .pointer_mut(parent)
            .unwrap_or_else(|| panic!("{parent} is in config.json"));
        match parent {
            Value::Array(items) => items.push(value.into()),
            other => other[key] = value.into(),
        }
        self.written()
    }

    /// The value at a JSON pointer.
    ///
    /// # Panics
    /// There is no such place.
    pub fn get(&self, pointer: &str) -> &Value {
        self.config
            .pointer(pointer)
            .unwrap_or_else(|| panic!("{pointer} is in config.json"))
    }

    /// Without the namespace of this type: the guest's own is shared.
    ///
    /// # Panics
    /// There is none.
    pub fn without_namespace(mut self, kind: &str) -> Self {
        let namespaces = self
            .config
            .pointer_mut("/linux/namespaces")
            .and_then(Value::as_array_mut);
        namespaces
            .expect("namespaces")
            .retain(|namespace| namespace["type"] != kind);
        self.written()
    }

    /// Without the mount on this path.
    ///
    /// # Panics
    /// There are no mounts.
    pub fn without_mount(mut self, destination: &str) -> Self {
        let mounts = self.config.pointer_mut("/mounts").and_then(Value::as_array_mut);
        mounts
            .expect("mounts")
            .retain(|mount| mount["destination"] != destination);
        self.written()
    }

    /// With these capabilities in every set.
    pub fn with_capabilities(mut self, names: &[&str]) -> Self {
        for set in ["bounding", "effective", "permitted", "inheritable", "ambient"] {
            self = self.with(&format!("/process/capabilities/{set}"), json!(names));
        }
        self
    }

    /// The bundle's directory.
    pub fn path(&self) -> &Path {
        &self.directory
    }

    fn written(self) -> Self {
        fs::write(self.directory.join("config.json"), self.config.to_string()).expect("write config.json");
        self
    }
}
