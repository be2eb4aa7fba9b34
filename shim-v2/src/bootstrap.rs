//! The handshake of `start`: what containerd writes on stdin, and the form of the answer.
//!
//! | containerd | stdin | answer |
//! |---|---|---|
//! | 1.6, 1.7, 2.0 to 2.2 | nothing, or an `Any` with the runtime's options | the socket's address as it is |
//! | 2.3 and later | `BootstrapParams` | `BootstrapResult`, with extensions from 2.4 on |
//!
//! A bare address stands for version 2 of the task service, which every containerd speaks.

use std::path::PathBuf;

use anyhow::{Context, Result};
use containerd_shim_protos::TASK_API_VERSION;
use containerd_shim_protos::bootstrap_api::{BootstrapParams, BootstrapResult};
use protobuf::Message;
use protobuf::well_known_types::any::Any;

use crate::args::Flags;
use crate::generated::options::{
    BootstrapExtension, BootstrapExtensions, MountCapabilities, RuncOptions, RuntimeOptions, TypedValue,
};
use crate::snapshots;

/// The type of options that containerd passes to runtimes that it knows nothing of.
const RUNTIME_OPTIONS: &str = "runtimeoptions.v1.Options";
/// The type of options that containerd's clients pass on.
const RUNC_OPTIONS: &str = "containerd.runc.v1.Options";
/// The type of the extension that says which mounts are the shim's.
const MOUNT_CAPABILITIES: &str = "type.googleapis.com/containerd.types.MountCapabilities";
/// containerd's level for debugging (BootstrapParams.log_level).
const DEBUG: i32 = -4;

/// What containerd has said on stdin.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Handshake {
    /// Whether the answer is a message.
    is_message: bool,
    /// Where the socket is to be.
    pub(crate) socket_directory: Option<PathBuf>,
    /// Where events go.
    pub(crate) events: Option<String>,
    pub(crate) debug: bool,
    pub(crate) options: Options,
}

/// The runtime's options in containerd's configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Options {
    /// `ConfigPath`: the configuration file.
    pub(crate) path: Option<PathBuf>,
    /// The table of options itself, as TOML.
    pub(crate) body: Option<String>,
    /// The cgroup on the host that the shim is to be in.
    pub(crate) shim_cgroup: Option<String>,
}

impl Handshake {
    /// Understands what came on stdin. An `Any` can be taken for parameters, which therefore must name this container.
    ///
    /// # Errors
    /// The runtime's options are not what they are said to be: a start without them would not be what was asked for.
    pub(crate) fn parse(input: &[u8], flags: &Flags) -> Result<Self> {
        let parameters = BootstrapParams::parse_from_bytes(input)
            .ok()
            .filter(|parameters| parameters.instance_id == flags.id && parameters.namespace == flags.namespace);
        let Some(parameters) = parameters else {
            let options = Any::parse_from_bytes(input).unwrap_or_default();
            return Ok(Self {
                debug: flags.debug,
                options: Options::parse(&options)?,
                ..Self::default()
            });
        };
        let extensions = parameters
            .extensions
            .iter()
            .filter_map(|extension| extension.value.as_ref());
        let options = extensions.map(Options::parse).collect::<Result<Vec<_>>>()?;
        let options = options.into_iter().find(|options| *options != Options::default());
        let text = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        Ok(Self {
            is_message: true,
            socket_directory: parameters.socket_dir.as_deref().and_then(text).map(PathBuf::from),
            events: text(&parameters.containerd_ttrpc_address),
            debug: flags.debug || parameters.log_level.value() <= DEBUG,
            options: options.unwrap_or_default(),
        })
    }

    /// The answer: where the shim listens.
    pub(crate) fn answer(&self, address: &str) -> Result<Vec<u8>, protobuf::Error> {
        if !self.is_message {
            return Ok(address.into());
        }
        let result = BootstrapResult {
            version: TASK_API_VERSION,
            address: address.into(),
            protocol: "ttrpc".into(),
            ..Default::default()
        };
        // Messages that are written one behind the other are one.
        Ok([result.write_to_bytes()?, extensions()?].concat())
    }
}

/// What the shim can do that not every shim can. An older containerd does not look at it.
fn extensions() -> Result<Vec<u8>, protobuf::Error> {
    let mounts = MountCapabilities {
        types: snapshots::TYPES.map(str::to_owned).into(),
        transforms: snapshots::TRANSFORMS.map(str::to_owned).into(),
        ..Default::default()
    };
    let value = TypedValue {
        type_url: MOUNT_CAPABILITIES.into(),
        value: mounts.write_to_bytes()?,
        ..Default::default()
    };
    let extension = BootstrapExtension {
        value: Some(value).into(),
        ..Default::default()
    };
    let all = BootstrapExtensions {
        extensions: vec![extension],
        ..Default::default()
    };
    all.write_to_bytes()
}

impl Options {
    /// The options in a message; one of another type has none for husk.
    pub(crate) fn parse(any: &Any) -> Result<Self> {
        let text = |text: String| Some(text).filter(|text| !text.is_empty());
        let malformed = || format!("the runtime's options are no {}", any.type_url);
        Ok(match any.type_url.rsplit('/').next() {
            Some(RUNTIME_OPTIONS) => {
                let options = RuntimeOptions::parse_from_bytes(&any.value).with_context(malformed)?;
                let body = String::from_utf8(options.config_body);
                Self {
                    path: text(options.config_path).map(PathBuf::from),
                    body: text(body.context("the table of the runtime's options is not UTF-8")?),
                    ..Self::default()
                }
            }
            Some(RUNC_OPTIONS) => {
                let options = RuncOptions::parse_from_bytes(&any.value).with_context(malformed)?;
                Self {
                    shim_cgroup: text(options.shim_cgroup),
                    ..Self::default()
                }
            }
            _ => Self::default(),
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn flags() -> Flags {
        Flags {
            namespace: "default".into(),
            id: "box".into(),
            ..Flags::default()
        }
    }

    fn options(path: &str, body: &str) -> Any {
        let mut value = Vec::new();
        for (number, text) in [(1, "x"), (2, path), (3, body)] {
            value.extend([number << 3 | 2, u8::try_from(text.len()).unwrap()]);
            value.extend(text.as_bytes());
        }
        Any {
            type_url: format!("types.containerd.io/{RUNTIME_OPTIONS}"),
            value,
            ..Default::default()
        }
    }

    #[test]
    fn an_old_containerd_gets_an_address() {
        let silent = Handshake::parse(b"", &flags()).unwrap();
        assert_eq!(silent.answer("unix:///x").unwrap(), b"unix:///x");
        let told = Handshake::parse(&options("/etc/x.toml", "a=1").write_to_bytes().unwrap(), &flags()).unwrap();
        assert_eq!(told.answer("unix:///x").unwrap(), b"unix:///x");
        assert_eq!(told.options.path, Some("/etc/x.toml".into()));
        assert_eq!(told.options.body.as_deref(), Some("a=1"));
    }

    #[test]
    fn a_new_containerd_gets_a_message() {
        let mut parameters = BootstrapParams {
            instance_id: "box".into(),
            namespace: "default".into(),
            containerd_ttrpc_address: "/run/ttrpc".into(),
            socket_dir: Some("/run/s".into()),
            ..Default::default()
        };
        parameters
            .extensions
            .push(containerd_shim_protos::bootstrap_api::Extension {
                value: Some(options("/etc/x.toml", "")).into(),
                ..Default::default()
            });
        let handshake = Handshake::parse(&parameters.write_to_bytes().unwrap(), &flags()).unwrap();
        assert_eq!(handshake.events.as_deref(), Some("/run/ttrpc"));
        assert_eq!(handshake.socket_directory, Some("/run/s".into()));
        assert_eq!(handshake.options.path, Some("/etc/x.toml".into()));
        let bytes = handshake.answer("unix:///x").unwrap();
        let answer = BootstrapResult::parse_from_bytes(&bytes).unwrap();
        assert_eq!((answer.version, answer.address.as_str()), (3, "unix:///x"));
        let told = BootstrapExtensions::parse_from_bytes(&bytes).unwrap();
        let value = &told.extensions[0].value;
        let mounts = MountCapabilities::parse_from_bytes(&value.value).unwrap();
        assert_eq!(
            (value.type_url.as_str(), &*mounts.types[0]),
            (MOUNT_CAPABILITIES, "erofs")
        );
        parameters.instance_id = "another".into();
        let other = Handshake::parse(&parameters.write_to_bytes().unwrap(), &flags()).unwrap();
        assert!(!other.is_message);
    }

    #[test]
    fn the_shims_own_cgroup_is_among_runcs_options() {
        let any = Any {
            type_url: RUNC_OPTIONS.into(),
            value: [&[0x08, 1, 0x1a, 5][..], b"/shim"].concat(),
            ..Default::default()
        };
        let told = Handshake::parse(&any.write_to_bytes().unwrap(), &flags()).unwrap();
        assert_eq!(told.options.shim_cgroup.as_deref(), Some("/shim"));
        assert_eq!((told.options.path, told.options.body), (None, None));
    }

    #[test]
    fn options_that_are_none_are_an_error() {
        for (kind, value) in [
            // A length beyond the end; a table that is no text.
            (RUNTIME_OPTIONS, &[0x12, 9, b'x'][..]),
            (RUNTIME_OPTIONS, &[0x1a, 1, 0xff]),
            (RUNC_OPTIONS, &[0x1a, 9, b'x']),
        ] {
            let any = Any {
                type_url: kind.into(),
                value: value.into(),
                ..Default::default()
            };
            let told = Handshake::parse(&any.write_to_bytes().unwrap(), &flags());
            assert!(format!("{:#}", told.unwrap_err()).contains("the runtime's options"));
        }
    }

    proptest! {
        #[test]
        fn any_input_is_survived(input in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(handshake) = Handshake::parse(&input, &flags()) {
                handshake.answer("unix:///x").unwrap();
            }
        }
    }
}
