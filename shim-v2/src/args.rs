//! The command line, as containerd writes it: flags in the style of Go's, then the verb.

use std::ffi::OsString;
use std::path::PathBuf;

use thiserror::Error;

/// What is said to people who start the program themselves.
pub(crate) const HELP: &str = "\
containerd-shim-husk-v2 is started by containerd, for containers of the runtime io.containerd.husk.v2.

Usage: containerd-shim-husk-v2 -namespace NAMESPACE -id ID [FLAGS] start|delete
       containerd-shim-husk-v2 -info
       containerd-shim-husk-v2 -v

Flags:
  -namespace NAMESPACE  containerd's namespace of the container
  -id ID                The container
  -address SOCKET       containerd's main socket
  -bundle DIR           The container's bundle (delete) [default: the working directory]
  -publish-binary PROGRAM  Accepted; events go to TTRPC_ADDRESS
  -socket PATH          Accepted
  -debug                Say more in containerd's log
  -info                 Tell containerd what the runtime is, as protobuf
  -v                    Tell the version";

/// What is asked for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Task {
    Start(Flags),
    Delete(Flags),
    Info,
    Version,
    Help,
}

/// What containerd says about the container.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Flags {
    pub(crate) namespace: String,
    pub(crate) id: String,
    /// containerd's main socket; only its text matters.
    pub(crate) address: String,
    pub(crate) bundle: PathBuf,
    pub(crate) debug: bool,
}

/// Why the command line is not understood.
#[derive(Debug, Error, PartialEq, Eq)]
pub(crate) enum ArgsError {
    #[error("flag {0:?} is not known; containerd starts this program, and -h tells more")]
    Flag(String),
    #[error("flag -{0} needs a value")]
    Value(String),
    #[error("{0:?} is no verb; start and delete are")]
    Verb(String),
    #[error("a verb is missing; containerd starts this program, and -h tells more")]
    NoVerb,
    #[error("flag -{0} is missing")]
    Missing(&'static str),
    #[error("an argument is not UTF-8")]
    Utf8,
}

/// Reads the command line without the program's name.
pub(crate) fn parse(arguments: impl Iterator<Item = OsString>) -> Result<Task, ArgsError> {
    let mut flags = Flags {
        bundle: ".".into(),
        ..Flags::default()
    };
    let mut arguments = arguments.map(|argument| argument.into_string().map_err(|_| ArgsError::Utf8));
    let mut verb = None;
    while let Some(argument) = arguments.next().transpose()? {
        let Some(flag) = argument.strip_prefix('-') else {
            verb = Some(argument);
            break;
        };
        let flag = flag.strip_prefix('-').unwrap_or(flag);
        let (name, given) = match flag.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (flag, None),
        };
        match name {
            "info" => return Ok(Task::Info),
            "v" | "version" => return Ok(Task::Version),
            "h" | "help" => return Ok(Task::Help),
            "debug" => {
                flags.debug = given.as_deref() != Some("false");
                continue;
            }
            _ => {}
        }
        let mut value = || match &given {
            Some(value) => Ok(value.clone()),
            None => arguments
                .next()
                .transpose()?
                .ok_or_else(|| ArgsError::Value(name.into())),
        };
        match name {
            "namespace" => flags.namespace = value()?,
            "id" => flags.id = value()?,
            "address" => flags.address = value()?,
            "bundle" => flags.bundle = value()?.into(),
            // Neither events nor the socket need it.
            "publish-binary" | "socket" => drop(value()?),
            _ => return Err(ArgsError::Flag(argument.clone())),
        }
    }
    let verb = verb.ok_or(ArgsError::NoVerb)?;
    for (value, name) in [(&flags.namespace, "namespace"), (&flags.id, "id")] {
        if value.is_empty() {
            return Err(ArgsError::Missing(name));
        }
    }
    match verb.as_str() {
        "start" => Ok(Task::Start(flags)),
        "delete" => Ok(Task::Delete(flags)),
        _ => Err(ArgsError::Verb(verb)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<Task, ArgsError> {
        parse(text.split_whitespace().map(OsString::from))
    }

    #[test]
    fn what_containerd_writes_is_understood() {
        let start = "-namespace default -address /run/c.sock -publish-binary /usr/bin/containerd -id box -debug start";
        let mut expected = Flags {
            namespace: "default".into(),
            id: "box".into(),
            address: "/run/c.sock".into(),
            bundle: ".".into(),
            debug: true,
        };
        assert_eq!(parsed(start), Ok(Task::Start(expected)));
        expected = Flags {
            namespace: "k8s.io".into(),
            id: "box".into(),
            bundle: "/b".into(),
            ..Flags::default()
        };
        let delete = "--namespace=k8s.io -id box -bundle /b delete";
        assert_eq!(parsed(delete), Ok(Task::Delete(expected)));
        assert_eq!(parsed("-v"), Ok(Task::Version));
        assert_eq!(parsed("-info"), Ok(Task::Info));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, error) in [
            ("", ArgsError::NoVerb),
            ("-id", ArgsError::Value("id".into())),
            ("-what x start", ArgsError::Flag("-what".into())),
            ("-id box start", ArgsError::Missing("namespace")),
            ("-namespace n -id box run", ArgsError::Verb("run".into())),
        ] {
            assert_eq!(parsed(text), Err(error));
        }
    }
}
