//! What a request must be like before anything is done about it. A refusal names the field.

use husk_protocol::TOKEN_LEN;
use husk_protocol::agent::{CreateRequest, DeviceRule, ExecRequest, Layer, Mount, Process, Resources};

use crate::cgroup::Cgroup;
use crate::refusal::Refusal;
use crate::stdio::Token;

/// The kernel checks a program only as far as its patience goes, which is somewhat over 1,000 rules.
const MAX_RULES: usize = 500;
/// Their paths are one mount's option, which is a page at most.
const MAX_LAYERS: usize = 128;
/// The longest filter that the kernel takes (`BPF_MAXINSNS`), in bytes.
const MAX_PROGRAM: usize = 4096 * 8;

/// Checks a Create request as far as that is possible without doing it.
pub(crate) fn check_create(request: &CreateRequest) -> Result<(), Refusal> {
    check_id("container", &request.container)?;
    check_process(request.process.as_ref())?;
    let root = request
        .root
        .as_ref()
        .ok_or_else(|| Refusal::invalid("root", "is missing"))?;
    // Who executes nothing needs no image.
    if !(root.disk.is_empty() && request.process.pause) {
        check_id("root.disk", &root.disk)?;
    }
    check_layers(&root.layers)?;
    for (index, mount) in request.mounts.iter().enumerate() {
        check_mount(&format!("mounts[{index}]"), mount)?;
    }
    for (index, device) in request.devices.iter().enumerate() {
        check_path(&format!("devices[{index}].path"), &device.path)?;
        let kind = device.mode & libc::S_IFMT;
        if ![libc::S_IFCHR, libc::S_IFBLK, libc::S_IFIFO].contains(&kind) {
            return Err(Refusal::invalid(
                format!("devices[{index}].mode"),
                "is of no device or FIFO",
            ));
        }
    }
    for (field, paths) in [
        ("masked_paths", &request.masked_paths),
        ("readonly_paths", &request.readonly_paths),
    ] {
        for (index, path) in paths.iter().enumerate() {
            check_path(&format!("{field}[{index}]"), path)?;
        }
    }
    check_resources(request.resources.get_or_default())?;
    check_text("cgroup_path", &request.cgroup_path)?;
    if !Cgroup::is_path(&request.cgroup_path) {
        return Err(Refusal::invalid("cgroup_path", "leads out of the guest's cgroups"));
    }
    for (index, sysctl) in request.sysctls.iter().enumerate() {
        check_text(&format!("sysctls[{index}].path"), &sysctl.path)?;
        check_text(&format!("sysctls[{index}].value"), &sysctl.value)?;
    }
    for (field, hooks) in [
        ("create_hooks", &request.create_hooks),
        ("start_hooks", &request.start_hooks),
    ] {
        for (index, hook) in hooks.iter().flat_map(|hooks| &hooks.hooks).enumerate() {
            check_path(&format!("{field}.hooks[{index}].path"), &hook.path)?;
            for text in hook.args.iter().chain(&hook.env) {
                check_text(&format!("{field}.hooks[{index}]"), text)?;
            }
        }
    }
    for (index, offset) in request.time_offsets.iter().enumerate() {
        if !["monotonic", "boottime"].contains(&offset.clock.as_str()) {
            return Err(Refusal::invalid(
                format!("time_offsets[{index}].clock"),
                "is neither \"monotonic\" nor \"boottime\"",
            ));
        }
    }
    if let Some(seccomp) = request.seccomp.as_ref()
        && (seccomp.program.is_empty() || seccomp.program.len() % 8 != 0 || seccomp.program.len() > MAX_PROGRAM)
    {
        return Err(Refusal::invalid("seccomp.program", "is not 1 to 4096 instructions"));
    }
    check_text("hostname", &request.hostname)?;
    check_text("domainname", &request.domainname)
}

/// Checks limits and rules for devices.
pub(crate) fn check_resources(resources: &Resources) -> Result<(), Refusal> {
    for (index, setting) in resources.settings.iter().enumerate() {
        let field = format!("resources.settings[{index}].file");
        if !Cgroup::is_file_name(&setting.file) {
            return Err(Refusal::invalid(field, "is no name of a file"));
        }
        check_text(&field, &setting.file)?;
    }
    let rules = &resources.devices.get_or_default().rules;
    if rules.len() > MAX_RULES {
        return Err(Refusal::invalid("resources.devices", "has more than 500 rules"));
    }
    let unknown = |rule: &DeviceRule| rule.kind.enum_value().is_err();
    match rules.iter().position(unknown) {
        Some(index) => Err(Refusal::invalid(
            format!("resources.devices[{index}].kind"),
            "is no known one",
        )),
        None => Ok(()),
    }
}

fn check_layers(layers: &[Layer]) -> Result<(), Refusal> {
    if layers.len() > MAX_LAYERS {
        return Err(Refusal::invalid("root.layers", "are more than 128"));
    }
    for (index, layer) in layers.iter().enumerate() {
        let field = |name: &str| format!("root.layers[{index}].{name}");
        if !["erofs", "ext4"].contains(&layer.type_.as_str()) {
            return Err(Refusal::invalid(field("type"), "is neither \"erofs\" nor \"ext4\""));
        }
        for (name, bytes) in [("offset", layer.offset), ("length", layer.length)] {
            if bytes % 512 != 0 {
                return Err(Refusal::invalid(field(name), "is no whole number of sectors"));
            }
        }
    }
    Ok(())
}

fn check_mount(field: &str, mount: &Mount) -> Result<(), Refusal> {
    check_path(&format!("{field}.destination"), &mount.destination)?;
    if mount.destination.split('/').all(|name| matches!(name, "" | ".")) {
        return Err(Refusal::invalid(format!("{field}.destination"), "is the root itself"));
    }
    check_text(&format!("{field}.type"), &mount.type_)?;
    check_text(&format!("{field}.source"), &mount.source)?;
    check_text(&format!("{field}.data"), &mount.data)?;
    for (index, file) in mount.files.iter().enumerate() {
        // A file's path is a cgroup's in this: names, none of which leads upwards.
        if !Cgroup::is_path(&file.path) || (file.path.is_empty() && mount.files.len() > 1) {
            return Err(Refusal::invalid(
                format!("{field}.files[{index}].path"),
                "leads out of the mount",
            ));
        }
        check_text(&format!("{field}.files[{index}].path"), &file.path)?;
    }
    Ok(())
}

/// Checks an Exec request as far as that is possible without doing it.
pub(crate) fn check_exec(request: &ExecRequest) -> Result<(), Refusal> {
    check_id("exec", &request.exec)?;
    if request.process.pause {
        return Err(Refusal::invalid("process.pause", "is for a container's first process"));
    }
    check_process(request.process.as_ref())
}

fn check_process(process: Option<&Process>) -> Result<(), Refusal> {
    let process = process.ok_or_else(|| Refusal::invalid("process", "is missing"))?;
    if process.args.is_empty() != process.pause {
        let fault = match process.pause {
            true => "is for nothing where the process is the agent's own",
            false => "is empty",
        };
        return Err(Refusal::invalid("process.args", fault));
    }
    for (field, strings) in [("process.args", &process.args), ("process.env", &process.env)] {
        for (index, string) in strings.iter().enumerate() {
            check_text(&format!("{field}[{index}]"), string)?;
        }
    }
    check_path("process.cwd", &process.cwd)?;
    let stdio = process.stdio.get_or_default();
    if stdio.terminal && stdio.stdin.is_empty() {
        return Err(Refusal::invalid(
            "process.stdio.stdin",
            "is empty: a terminal needs a connection",
        ));
    }
    if stdio.terminal && !(stdio.stdout.is_empty() && stdio.stderr.is_empty()) {
        return Err(Refusal::invalid(
            "process.stdio",
            "names more than one connection for a terminal",
        ));
    }
    tokens(process).map(drop)
}

/// The tokens of stdin, stdout and stderr; none for /dev/null.
pub(crate) fn tokens(process: &Process) -> Result<[Option<Token>; 3], Refusal> {
    let stdio = process.stdio.get_or_default();
    let mut tokens = [None; 3];
    let fields = [
        ("process.stdio.stdin", &stdio.stdin),
        ("process.stdio.stdout", &stdio.stdout),
        ("process.stdio.stderr", &stdio.stderr),
    ];
    for (token, (field, bytes)) in tokens.iter_mut().zip(fields) {
        if !bytes.is_empty() {
            let array = <[u8; TOKEN_LEN]>::try_from(bytes.as_slice());
            *token = Some(array.map_err(|_| Refusal::invalid(field, "is not 16 bytes long"))?);
        }
    }
    let named: Vec<_> = tokens.iter().flatten().collect();
    if (1..named.len()).any(|index| named[..index].contains(&named[index])) {
        return Err(Refusal::invalid("process.stdio", "names a connection twice"));
    }
    Ok(tokens)
}

fn check_id(field: &str, id: &str) -> Result<(), Refusal> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
    if id.is_empty() || id.len() > 128 || id.starts_with('.') || !id.bytes().all(allowed) {
        let reason = "must be 1 to 128 of letters, digits, '_', '.', '-' and not begin with a dot";
        return Err(Refusal::invalid(field, reason));
    }
    Ok(())
}

fn check_path(field: &str, path: &str) -> Result<(), Refusal> {
    if !path.starts_with('/') {
        return Err(Refusal::invalid(field, "is no absolute path"));
    }
    check_text(field, path)
}

fn check_text(field: &str, text: &str) -> Result<(), Refusal> {
    if text.contains('\0') {
        Err(Refusal::invalid(field, "contains a NUL"))
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use husk_protocol::agent::{CgroupSetting, Device, Mount, Root, Stdio, Sysctl, TimeOffset};

    use super::*;

    fn process() -> Process {
        Process {
            args: vec!["sh".to_owned()],
            cwd: "/".to_owned(),
            ..Process::default()
        }
    }

    fn request() -> CreateRequest {
        CreateRequest {
            container: "a".to_owned(),
            process: Some(process()).into(),
            root: Some(Root {
                disk: "husk-0".to_owned(),
                ..Root::default()
            })
            .into(),
            ..CreateRequest::default()
        }
    }

    fn layer(request: &mut CreateRequest, offset: u64, kind: &str) {
        request.root.mut_or_insert_default().layers.push(Layer {
            offset,
            length: 512,
            type_: kind.to_owned(),
            ..Layer::default()
        });
    }

    fn refused(change: impl FnOnce(&mut CreateRequest)) -> String {
        let mut request = request();
        change(&mut request);
        let refusal = check_create(&request).unwrap_err();
        assert_eq!(refusal.code(), ttrpc::Code::INVALID_ARGUMENT);
        refusal.to_string()
    }

    #[test]
    fn a_refusal_names_the_field() {
        check_create(&request()).unwrap();
        let process = |request: &mut CreateRequest, change: fn(&mut Process)| {
            change(request.process.as_mut().unwrap());
        };
        for (refusal, field) in [
            (refused(|r| r.container = "../x".to_owned()), "container:"),
            (refused(|r| r.container = "x".repeat(129)), "container:"),
            (refused(|r| r.container = ".x".to_owned()), "container:"),
            (refused(|r| r.process = None.into()), "process:"),
            (refused(|r| process(r, |p| p.args.clear())), "process.args:"),
            (
                refused(|r| process(r, |p| p.args.push("a\0b".to_owned()))),
                "process.args[1]:",
            ),
            (
                refused(|r| process(r, |p| p.env.push("\0".to_owned()))),
                "process.env[0]:",
            ),
            (refused(|r| process(r, |p| p.cwd = "x".to_owned())), "process.cwd:"),
            (refused(|r| r.root = None.into()), "root:"),
            (
                refused(|r| r.root.as_mut().unwrap().disk = "a/b".to_owned()),
                "root.disk:",
            ),
            (refused(|r| layer(r, 0, "xfs")), "root.layers[0].type:"),
            (refused(|r| layer(r, 100, "erofs")), "root.layers[0].offset:"),
            (refused(|r| r.mounts.push(Mount::default())), "mounts[0].destination:"),
            (
                refused(|r| {
                    r.mounts.push(Mount {
                        destination: "/./".to_owned(),
                        ..Mount::default()
                    })
                }),
                "mounts[0].destination:",
            ),
            (
                refused(|r| {
                    r.devices.push(Device {
                        path: "/dev/x".to_owned(),
                        ..Device::default()
                    })
                }),
                "devices[0].mode:",
            ),
            (refused(|r| r.masked_paths.push("x".to_owned())), "masked_paths[0]:"),
            (refused(|r| r.readonly_paths.push(String::new())), "readonly_paths[0]:"),
            (
                refused(|r| {
                    r.resources.mut_or_insert_default().settings.push(CgroupSetting {
                        file: "../x".to_owned(),
                        ..CgroupSetting::default()
                    })
                }),
                "resources.settings[0].file:",
            ),
            (refused(|r| r.cgroup_path = "a/../b".to_owned()), "cgroup_path:"),
            (
                refused(|r| {
                    r.sysctls.push(Sysctl {
                        path: "\0".to_owned(),
                        ..Sysctl::default()
                    })
                }),
                "sysctls[0].path:",
            ),
            (
                refused(|r| r.time_offsets.push(TimeOffset::default())),
                "time_offsets[0].clock:",
            ),
            (refused(|r| r.hostname = "\0".to_owned()), "hostname:"),
        ] {
            assert!(refusal.starts_with(field), "{refusal:?} does not begin with {field:?}");
        }
    }

    #[test]
    fn tokens_are_of_one_length_and_different() {
        let with = |stdio: Stdio| Process {
            stdio: Some(stdio).into(),
            ..process()
        };
        let good = Stdio {
            stdin: vec![1; 16],
            stderr: vec![2; 16],
            ..Stdio::default()
        };
        assert_eq!(tokens(&with(good)).unwrap(), [Some([1; 16]), None, Some([2; 16])]);
        let short = Stdio {
            stdout: vec![1; 15],
            ..Stdio::default()
        };
        assert!(
            tokens(&with(short))
                .unwrap_err()
                .to_string()
                .starts_with("process.stdio.stdout")
        );
        let twice = Stdio {
            stdin: vec![1; 16],
            stderr: vec![1; 16],
            ..Stdio::default()
        };
        assert!(tokens(&with(twice)).is_err());
        let terminal = Stdio {
            terminal: true,
            stdin: vec![1; 16],
            stdout: vec![2; 16],
            ..Stdio::default()
        };
        assert!(check_process(Some(&with(terminal))).is_err());
    }
}
