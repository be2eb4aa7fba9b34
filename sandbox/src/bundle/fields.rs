//! The fields of `config.json` that are honoured; all others are refused by name.
//!
//! The check walks the JSON as it stands in the file, so that a field which no type knows (a newer specification's, a
//! misspelt one) is found as well as one that is known and not honoured. A field without content (`null`, `[]`, `{}`)
//! asks for nothing and passes.

#[cfg(test)]
mod table;

use serde_json::Value;

use super::BundleError;

/// What is honoured at one place of the configuration.
enum Field {
    /// Any value; its type and range are checked where it is translated.
    Any,
    /// Only these strings, which say what husk does anyway.
    Text(&'static [&'static str]),
    /// Only zero, which means "not set".
    Zero,
    /// An object whose members' names are data, with such values.
    Map(&'static Field),
    /// A list of such values.
    List(&'static Field),
    /// An object with these fields and no others.
    Object(&'static [(&'static str, Field)]),
}

use Field::{Any, List, Map, Object, Text, Zero};

const SPEC: Field = Object(&[
    ("ociVersion", Any),
    ("annotations", Map(&Any)),
    ("hostname", Any),
    ("domainname", Any),
    ("root", Object(&[("path", Any), ("readonly", Any)])),
    (
        "mounts",
        List(&Object(&[
            ("destination", Any),
            ("type", Any),
            ("source", Any),
            ("options", List(&Any)),
            ("uidMappings", ID_MAPPINGS),
            ("gidMappings", ID_MAPPINGS),
        ])),
    ),
    ("process", PROCESS),
    (
        "hooks",
        Object(&[
            ("prestart", HOOKS),
            ("createRuntime", HOOKS),
            ("createContainer", HOOKS),
            ("startContainer", HOOKS),
            ("poststart", HOOKS),
            ("poststop", HOOKS),
        ]),
    ),
    ("linux", LINUX),
]);

const HOOKS: Field = List(&Object(&[
    ("path", Any),
    ("args", List(&Any)),
    ("env", List(&Any)),
    ("timeout", Any),
]));

const PROCESS: Field = Object(&[
    ("terminal", Any),
    ("consoleSize", Object(&[("height", Any), ("width", Any)])),
    (
        "user",
        Object(&[
            ("uid", Any),
            ("gid", Any),
            ("umask", Any),
            ("additionalGids", List(&Any)),
            ("username", Text(&[""])),
        ]),
    ),
    ("args", List(&Any)),
    ("env", List(&Any)),
    ("cwd", Any),
    (
        "capabilities",
        Object(&[
            ("bounding", List(&Any)),
            ("effective", List(&Any)),
            ("inheritable", List(&Any)),
            ("permitted", List(&Any)),
            ("ambient", List(&Any)),
        ]),
    ),
    ("rlimits", List(&Object(&[("type", Any), ("hard", Any), ("soft", Any)]))),
    ("noNewPrivileges", Any),
    ("oomScoreAdj", Any),
    ("apparmorProfile", Any),
    ("selinuxLabel", Any),
    (
        "scheduler",
        Object(&[
            ("policy", Any),
            ("nice", Any),
            ("priority", Any),
            ("flags", List(&Any)),
            ("runtime", Any),
            ("deadline", Any),
            ("period", Any),
        ]),
    ),
    ("ioPriority", Object(&[("class", Any), ("priority", Any)])),
    ("execCPUAffinity", Object(&[("initial", Any), ("final", Any)])),
]);

const ID_MAPPINGS: Field = List(&Object(&[("containerID", Any), ("hostID", Any), ("size", Any)]));

const LINUX: Field = Object(&[
    ("namespaces", List(&Object(&[("type", Any), ("path", Any)]))),
    (
        "devices",
        List(&Object(&[
            ("path", Any),
            ("type", Any),
            ("major", Any),
            ("minor", Any),
            ("fileMode", Any),
            ("uid", Any),
            ("gid", Any),
        ])),
    ),
    ("cgroupsPath", Any),
    ("maskedPaths", List(&Any)),
    ("readonlyPaths", List(&Any)),
    ("mountLabel", Any),
    ("rootfsPropagation", Any),
    ("uidMappings", ID_MAPPINGS),
    ("gidMappings", ID_MAPPINGS),
    ("timeOffsets", Map(&Object(&[("secs", Any), ("nanosecs", Any)]))),
    ("sysctl", Map(&Any)),
    // The specification knows no flag yet.
    ("personality", Object(&[("domain", Any)])),
    ("resources", RESOURCES),
    ("seccomp", SECCOMP),
]);

const SECCOMP: Field = Object(&[
    ("defaultAction", Any),
    ("defaultErrnoRet", Any),
    ("architectures", List(&Any)),
    ("flags", List(&Any)),
    (
        "syscalls",
        List(&Object(&[
            ("names", List(&Any)),
            ("action", Any),
            ("errnoRet", Any),
            (
                "args",
                List(&Object(&[
                    ("index", Any),
                    ("value", Any),
                    ("valueTwo", Any),
                    ("op", Any),
                ])),
            ),
        ])),
    ),
]);

const RESOURCES: Field = Object(&[
    (
        "devices",
        List(&Object(&[
            ("allow", Any),
            ("type", Any),
            ("major", Any),
            ("minor", Any),
            ("access", Any),
        ])),
    ),
    (
        "cpu",
        Object(&[
            ("shares", Any),
            ("quota", Any),
            ("period", Any),
            ("burst", Any),
            ("idle", Any),
            // Real-time scheduling has no controller in cgroup v2.
            ("realtimeRuntime", Zero),
            ("realtimePeriod", Zero),
            ("cpus", Any),
            ("mems", Any),
        ]),
    ),
    (
        "memory",
        Object(&[
            ("limit", Any),
            ("reservation", Any),
            ("swap", Any),
            ("kernel", Any),
            ("kernelTCP", Any),
            ("swappiness", Any),
            ("disableOOMKiller", Any),
            // cgroup v2 is hierarchical always, which no runtime lets a configuration forbid.
            ("useHierarchy", Any),
            ("checkBeforeUpdate", Any),
        ]),
    ),
    ("pids", Object(&[("limit", Any)])),
    (
        "blockIO",
        Object(&[
            ("weight", Any),
            // Of a scheduler that is in no kernel any more.
            ("leafWeight", Zero),
            (
                "weightDevice",
                List(&Object(&[
                    ("major", Any),
                    ("minor", Any),
                    ("weight", Any),
                    ("leafWeight", Zero),
                ])),
            ),
            ("throttleReadBpsDevice", List(&THROTTLE)),
            ("throttleWriteBpsDevice", List(&THROTTLE)),
            ("throttleReadIOPSDevice", List(&THROTTLE)),
            ("throttleWriteIOPSDevice", List(&THROTTLE)),
        ]),
    ),
    ("hugepageLimits", List(&Object(&[("pageSize", Any), ("limit", Any)]))),
    (
        "network",
        Object(&[
            ("classID", Any),
            ("priorities", List(&Object(&[("name", Any), ("priority", Any)]))),
        ]),
    ),
    // Files of cgroup v2 by their names.
    ("unified", Any),
]);

const THROTTLE: Field = Object(&[("major", Any), ("minor", Any), ("rate", Any)]);

/// Refuses the first field that is not honoured in limits alone, as an update has them.
pub(super) fn check_resources(resources: &Value) -> Result<(), BundleError> {
    let mut path = "linux.resources".to_owned();
    if !resources.is_object() {
        return Err(BundleError::Value {
            path,
            value: kind(resources).into(),
            expected: "an object is expected",
        });
    }
    walk(resources, Some(&RESOURCES), &mut path)
}

/// Refuses the first field that is not honoured.
pub(super) fn check(spec: &Value) -> Result<(), BundleError> {
    if !spec.is_object() {
        return Err(BundleError::Value {
            path: "the top level".into(),
            value: kind(spec).into(),
            expected: "an object is expected",
        });
    }
    walk(spec, Some(&SPEC), &mut String::new())
}

fn walk(value: &Value, field: Option<&Field>, path: &mut String) -> Result<(), BundleError> {
    if is_empty(value) {
        return Ok(());
    }
    let Some(field) = field else {
        return Err(BundleError::Unsupported(path.clone()));
    };
    if let Value::String(text) = value
        && text.contains('\0')
    {
        return Err(BundleError::Invalid {
            path: path.clone(),
            fault: "holds a zero byte",
        });
    }
    let honoured = match (field, value) {
        (Object(fields), Value::Object(members)) => {
            for (name, member) in members {
                let known = fields.iter().find(|(known, _)| known == name).map(|(_, field)| field);
                descend(path, &member_suffix(path, name), |path| walk(member, known, path))?;
            }
            return Ok(());
        }
        (Map(element), Value::Object(members)) => {
            for (name, member) in members {
                descend(path, &member_suffix(path, name), |path| match name.contains('\0') {
                    true => Err(BundleError::Invalid {
                        path: path.clone(),
                        fault: "has a zero byte in its name",
                    }),
                    false => walk(member, Some(element), path),
                })?;
            }
            return Ok(());
        }
        (List(element), Value::Array(elements)) => {
            for (index, value) in elements.iter().enumerate() {
                descend(path, &format!("[{index}]"), |path| walk(value, Some(element), path))?;
            }
            return Ok(());
        }
        (Text(accepted), Value::String(text)) => accepted.contains(&text.as_str()),
        (Zero, Value::Number(number)) => number.as_i64() == Some(0),
        // A value of the wrong type is the typed parse's to refuse.
        _ => true,
    };
    if honoured {
        Ok(())
    } else {
        Err(BundleError::UnsupportedValue {
            path: path.clone(),
            value: value.to_string(),
        })
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(elements) => elements.is_empty(),
        Value::Object(members) => members.is_empty(),
        _ => false,
    }
}

fn member_suffix(path: &str, name: &str) -> String {
    let plain = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    match (plain, path.is_empty()) {
        (true, true) => name.to_owned(),
        (true, false) => format!(".{name}"),
        (false, _) => format!("[{name:?}]"),
    }
}

fn descend(
    path: &mut String,
    suffix: &str,
    visit: impl FnOnce(&mut String) -> Result<(), BundleError>,
) -> Result<(), BundleError> {
    let length = path.len();
    path.push_str(suffix);
    visit(path)?;
    path.truncate(length);
    Ok(())
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a truth value",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}
