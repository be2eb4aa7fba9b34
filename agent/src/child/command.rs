//! What a process executes: command, arguments and environment.

use std::ffi::CString;
use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Read};
use std::os::unix::fs::OpenOptionsExt;

use husk_protocol::agent::Process;
use husk_protocol::agent::failure::Kind;
use nix::errno::Errno;
use nix::unistd::{AccessFlags, access};

use super::ChildError;
use crate::sys::errno;

/// No more of a passwd file is read.
const MAX_PASSWD: u64 = 4 << 20;

/// Why there is nothing to execute.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CommandError {
    // Callers of OCI runtimes look for "executable file not found in $PATH", "no such file or directory" and
    // "permission denied" in the error, in small letters.
    #[error("command {0:?} not found: executable file not found in $PATH of the container")]
    NotInPath(String),
    #[error("command {0:?} not found in the container: no such file or directory")]
    NotFound(String),
    #[error("command {0:?} is a directory: permission denied")]
    Directory(String),
    #[error("command {path:?} may not be executed: {}", errno.desc().to_lowercase())]
    NotExecutable { path: String, errno: Errno },
}

impl CommandError {
    pub(super) fn kind(&self) -> Kind {
        match self {
            Self::NotInPath(_) | Self::NotFound(_) => Kind::COMMAND_NOT_FOUND,
            Self::Directory(_) | Self::NotExecutable { .. } => Kind::COMMAND_NOT_EXECUTABLE,
        }
    }
}

/// Finds the command: by its path, or in the directories of the process's PATH.
pub(super) fn find(process: &Process) -> Result<CString, CommandError> {
    let name = process.args.first().map_or("", String::as_str);
    if name.contains('/') {
        check(name)?;
        return Ok(c_string(name));
    }
    let path = process
        .env
        .iter()
        .rev()
        .find_map(|variable| variable.strip_prefix("PATH="))
        .unwrap_or("");
    let mut worse = None;
    for directory in path.split(':') {
        let candidate = if directory.is_empty() {
            format!("./{name}")
        } else {
            format!("{directory}/{name}")
        };
        match check(&candidate) {
            Ok(()) if !name.is_empty() => return Ok(c_string(&candidate)),
            Err(error @ CommandError::NotExecutable { .. }) => worse = worse.or(Some(error)),
            _ => {}
        }
    }
    Err(worse.unwrap_or_else(|| CommandError::NotInPath(name.to_owned())))
}

fn check(path: &str) -> Result<(), CommandError> {
    let unusable = |error: &std::io::Error| match error.kind() {
        ErrorKind::NotFound | ErrorKind::NotADirectory => CommandError::NotFound(path.to_owned()),
        _ => CommandError::NotExecutable {
            path: path.to_owned(),
            errno: errno(error),
        },
    };
    if fs::metadata(path).map_err(|error| unusable(&error))?.is_dir() {
        return Err(CommandError::Directory(path.to_owned()));
    }
    access(path, AccessFlags::X_OK).map_err(|errno| CommandError::NotExecutable {
        path: path.to_owned(),
        errno,
    })
}

/// The environment; HOME is the user's of the container's passwd file where it is not given.
pub(super) fn environment(process: &Process) -> Result<Vec<CString>, ChildError> {
    let mut environment = strings(&process.env);
    if !process.env.iter().any(|variable| variable.starts_with("HOME=")) {
        let home = home(&read_passwd(), process.user.uid).unwrap_or_else(|| "/".to_owned());
        environment.push(c_string(&format!("HOME={home}")));
    }
    Ok(environment)
}

/// A missing or unreadable file is as good as an empty one.
fn read_passwd() -> String {
    let mut text = Vec::new();
    // The container may have put anything there, a FIFO for instance.
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open("/etc/passwd");
    if let Ok(file) = file
        && file.metadata().is_ok_and(|metadata| metadata.is_file())
    {
        let _ = file.take(MAX_PASSWD).read_to_end(&mut text);
    }
    String::from_utf8_lossy(&text).into_owned()
}

/// The home directory of a user: the sixth field of passwd(5).
fn home(passwd: &str, uid: u32) -> Option<String> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let this: u32 = fields.nth(2)?.trim().parse().ok()?;
        let home = fields.nth(2)?;
        (this == uid && !home.is_empty()).then(|| home.to_owned())
    })
}

/// For execve(2); that none has a NUL inside was checked when the request came.
pub(super) fn strings(strings: &[String]) -> Vec<CString> {
    strings.iter().map(|string| c_string(string)).collect()
}

fn c_string(string: &str) -> CString {
    CString::new(string).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n# rubbish\n:::\nuser:x:1000:1000::/home/user:/bin/sh\n\
                          other:x:1000:1::/other:/x\nnobody:x:65534:1:::\n";

    #[test]
    fn homes_are_found() {
        assert_eq!(home(PASSWD, 0).as_deref(), Some("/root"));
        assert_eq!(home(PASSWD, 1000).as_deref(), Some("/home/user"));
        assert_eq!(home(PASSWD, 65534), None);
        assert_eq!(home(PASSWD, 5), None);
        assert_eq!(home("", 0), None);
    }

    proptest::proptest! {
        #[test]
        fn any_passwd_is_survived(text in "[a-z0-9:\n]{0,200}", uid in 0..20_u32) {
            let _ = home(&text, uid);
        }
    }

    fn process(command: &str, path: &str) -> Process {
        Process {
            args: vec![command.to_owned()],
            env: vec![format!("PATH={path}")],
            ..Process::default()
        }
    }

    #[test]
    fn commands_are_found_as_a_shell_finds_them() {
        let directory = tempfile::tempdir().unwrap();
        let (one, two) = (directory.path().join("one"), directory.path().join("two"));
        for (directory, mode) in [(&one, 0o644), (&two, 0o755)] {
            fs::create_dir(directory).unwrap();
            fs::write(directory.join("tool"), "").unwrap();
            fs::set_permissions(directory.join("tool"), fs::Permissions::from_mode(mode)).unwrap();
        }
        let path = format!("/nowhere:{}:{}", one.display(), two.display());
        let two_tool = two.join("tool").display().to_string();
        assert_eq!(find(&process("tool", &path)).unwrap().to_str().unwrap(), two_tool);
        assert_eq!(find(&process(&two_tool, "")).unwrap().to_str().unwrap(), two_tool);
        let refused = find(&process("tool", &one.display().to_string())).unwrap_err();
        assert_eq!(refused.kind(), Kind::COMMAND_NOT_EXECUTABLE);
        assert!(refused.to_string().ends_with(": permission denied"), "{refused}");
        for (command, path, kind) in [
            ("nothing", path.as_str(), Kind::COMMAND_NOT_FOUND),
            ("", path.as_str(), Kind::COMMAND_NOT_FOUND),
            ("tool", "", Kind::COMMAND_NOT_FOUND),
            ("/no/such", "", Kind::COMMAND_NOT_FOUND),
            (&format!("{two_tool}/x"), "", Kind::COMMAND_NOT_FOUND),
            (&two.display().to_string(), "", Kind::COMMAND_NOT_EXECUTABLE),
        ] {
            assert_eq!(find(&process(command, path)).unwrap_err().kind(), kind, "{command}");
        }
    }

    #[test]
    fn home_is_added_once() {
        let given = Process {
            env: vec!["HOME=/x".to_owned()],
            ..Process::default()
        };
        assert_eq!(environment(&given).unwrap(), [CString::from(c"HOME=/x")]);
        let mut added = Process {
            env: vec!["A=1".to_owned()],
            ..Process::default()
        };
        added.user.mut_or_insert_default().uid = 0;
        let environment = environment(&added).unwrap();
        assert_eq!(environment.len(), 2);
        assert!(environment[1].to_bytes().starts_with(b"HOME=/"));
    }
}
