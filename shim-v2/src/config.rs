//! The configuration file, `/etc/husk/config.toml`.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use husk_sandbox::bundle::Machine;
use husk_sandbox::sandbox::{MAX_VCPUS, MIN_MEMORY_MIB};
use husk_sandbox::size;
use serde::Deserialize;
use thiserror::Error;

use crate::bootstrap::Options;

/// Where it is by default.
const PATH: &str = "/etc/husk/config.toml";

/// What an operator has chosen for all sandboxes.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Config {
    /// vCPUs of a machine where neither annotation nor limit says more.
    cpus: u32,
    /// Its memory, such as `512M`.
    memory: String,
    /// A kernel of the operator's own.
    pub(crate) kernel: Option<PathBuf>,
    /// Where images are kept.
    pub(crate) image_cache: Option<PathBuf>,
    /// How long a guest may take to boot and to answer, in seconds.
    timeout: u32,
}

impl Default for Config {
    fn default() -> Self {
        let machine = Machine::default();
        Self {
            cpus: machine.cpus,
            memory: format!("{}M", machine.memory_mib),
            kernel: None,
            image_cache: None,
            timeout: 60,
        }
    }
}

/// Why a configuration cannot be used.
#[derive(Debug, Error)]
pub(crate) enum ConfigError {
    #[error("the configuration {} cannot be read", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{place}: {}", source.message())]
    Form {
        place: String,
        #[source]
        source: toml::de::Error,
    },
    #[error("{place}: {key} = {value}: {expected}")]
    Value {
        place: String,
        key: &'static str,
        value: String,
        expected: String,
    },
}

impl Config {
    /// The configuration in containerd's options for the runtime, or in the file that they name, or in the usual file if
    /// there is one.
    pub(crate) fn load(options: &Options) -> Result<Self, ConfigError> {
        if let Some(path) = &options.path {
            return Self::parse(&read(path)?, &path.display().to_string());
        }
        if let Some(body) = &options.body {
            return Self::parse(body, "the runtime's options in containerd's configuration");
        }
        match read(Path::new(PATH)) {
            Ok(text) => Self::parse(&text, PATH),
            Err(ConfigError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(error),
        }
    }

    fn parse(text: &str, place: &str) -> Result<Self, ConfigError> {
        let config: Self = toml::from_str(text).map_err(|source| ConfigError::Form {
            place: place.into(),
            source,
        })?;
        let wrong = |key, value: &dyn ToString, expected: &dyn ToString| ConfigError::Value {
            place: place.into(),
            key,
            value: value.to_string(),
            expected: expected.to_string(),
        };
        size::memory_mib(&config.memory).map_err(|error| wrong("memory", &config.memory, &error))?;
        if !(1..=MAX_VCPUS).contains(&config.cpus) {
            return Err(wrong("cpus", &config.cpus, &format!("1 to {MAX_VCPUS} are possible")));
        }
        if !(1..=86_400).contains(&config.timeout) {
            return Err(wrong("timeout", &config.timeout, &"1 to 86400 seconds are possible"));
        }
        Ok(config)
    }

    /// The size of a machine for which nothing else is said.
    pub(crate) fn machine(&self) -> Machine {
        Machine {
            cpus: self.cpus,
            // Checked when it was read.
            memory_mib: size::memory_mib(&self.memory).unwrap_or(MIN_MEMORY_MIB),
        }
    }

    /// How long a guest may take to boot and to answer.
    pub(crate) fn patience(&self) -> Duration {
        Duration::from_secs(self.timeout.into())
    }
}

fn read(path: &Path) -> Result<String, ConfigError> {
    fs::read_to_string(path).map_err(|source| ConfigError::Read {
        path: path.into(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<Config, String> {
        Config::parse(text, "file").map_err(|error| error.to_string())
    }

    #[test]
    fn what_is_not_said_has_a_default() {
        let config = parsed("cpus = 2\nmemory = \"1G\"").unwrap();
        assert_eq!(
            config.machine(),
            Machine {
                cpus: 2,
                memory_mib: 1024
            }
        );
        assert_eq!(config.patience(), Duration::from_secs(60));
        assert_eq!(parsed("").unwrap(), Config::default());
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, word) in [
            ("cpu = 2", "cpu"),
            ("cpus = 0", "cpus = 0"),
            ("cpus = 65", "1 to 64"),
            ("memory = \"1M\"", "memory = 1M"),
            ("timeout = 0", "timeout"),
            ("cpus = ", "file"),
        ] {
            let error = parsed(text).unwrap_err();
            assert!(error.contains(word), "{error}");
        }
    }

    #[test]
    fn options_come_before_the_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config.toml");
        fs::write(&path, "cpus = 3").unwrap();
        let options = |path: Option<&Path>, body: Option<&str>| Options {
            path: path.map(Into::into),
            body: body.map(Into::into),
            shim_cgroup: None,
        };
        let cpus = |options| Config::load(&options).unwrap().machine().cpus;
        assert_eq!(cpus(options(None, Some("cpus = 5"))), 5);
        assert_eq!(cpus(options(Some(&path), Some("cpus = 5"))), 3);
        assert!(Config::load(&options(Some(Path::new("/no/such/file")), None)).is_err());
    }
}
