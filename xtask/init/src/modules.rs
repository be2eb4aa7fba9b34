//! Loading kernel modules with their dependencies, before there is a root file system with modprobe.

use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::kmod::{ModuleInitFlags, finit_module};

/// The modules of one kernel, as depmod has listed them.
pub(crate) struct Modules {
    /// By name with underscores: the module's file and those it depends on, which are loaded from the last to the first.
    files: HashMap<String, Vec<PathBuf>>,
}

impl Modules {
    /// Reads `modules.dep` in `directory`.
    pub(crate) fn read(directory: &Path) -> Result<Self> {
        let path = directory.join("modules.dep");
        let list = std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        let mut files = HashMap::new();
        for line in list.lines() {
            let paths: Vec<_> = line
                .split_whitespace()
                .map(|path| directory.join(path.trim_end_matches(':')))
                .collect();
            if let Some(name) = paths.first().and_then(|path| path.file_stem()) {
                files.insert(name.to_string_lossy().replace('-', "_"), paths);
            }
        }
        Ok(Self { files })
    }

    /// Loads a module and what it depends on. Loaded already is fine.
    pub(crate) fn load(&self, name: &str) -> Result<()> {
        let paths = self
            .files
            .get(name)
            .with_context(|| format!("the kernel has no module {name}"))?;
        for path in paths.iter().rev() {
            let file = File::open(path).with_context(|| format!("opening {}", path.display()))?;
            match finit_module(file, c"", ModuleInitFlags::empty()) {
                Ok(()) | Err(Errno::EEXIST) => {}
                Err(error) => return Err(error).with_context(|| format!("loading {}", path.display())),
            }
        }
        Ok(())
    }
}
