//! The namespaces that a container is to have.

use std::fmt::Write as _;

use husk_protocol::agent::namespace::Kind;
use husk_protocol::agent::{CreateRequest, IdMapping};
use nix::sched::CloneFlags;

use crate::refusal::Refusal;

/// CLONE_NEWTIME of linux/sched.h, which nix has not.
pub(crate) const CLONE_NEWTIME: CloneFlags = CloneFlags::from_bits_retain(libc::CLONE_NEWTIME);

/// Namespaces as a request wants them: new ones, and those of other containers.
pub(crate) struct Namespaces {
    pub own: CloneFlags,
    pub joined: Vec<(CloneFlags, String)>,
}

/// The namespaces that a request asks for.
pub(crate) fn namespaces(request: &CreateRequest) -> Result<Namespaces, Refusal> {
    let mut namespaces = Namespaces {
        own: CloneFlags::empty(),
        joined: Vec::new(),
    };
    let mut seen = CloneFlags::empty();
    for (index, namespace) in request.namespaces.iter().enumerate() {
        let field = format!("namespaces[{index}]");
        let kind = match namespace.kind.enum_value_or_default() {
            Kind::UNKNOWN => return Err(Refusal::invalid(field, "is of no known kind")),
            Kind::MOUNT => CloneFlags::CLONE_NEWNS,
            Kind::PID => CloneFlags::CLONE_NEWPID,
            Kind::IPC => CloneFlags::CLONE_NEWIPC,
            Kind::UTS => CloneFlags::CLONE_NEWUTS,
            Kind::NETWORK => CloneFlags::CLONE_NEWNET,
            Kind::CGROUP => CloneFlags::CLONE_NEWCGROUP,
            Kind::USER => CloneFlags::CLONE_NEWUSER,
            Kind::TIME => CLONE_NEWTIME,
        };
        if seen.contains(kind) {
            return Err(Refusal::invalid(field, "is of a kind that is there before"));
        }
        seen |= kind;
        if namespace.container.is_empty() {
            namespaces.own |= kind;
        } else {
            namespaces.joined.push((kind, namespace.container.clone()));
        }
    }
    if !namespaces.own.contains(CloneFlags::CLONE_NEWNS) {
        return Err(Refusal::invalid(
            "namespaces",
            "have no new mount namespace, without which there is no root",
        ));
    }
    check_user_namespace(request, &namespaces)?;
    if !request.time_offsets.is_empty() && !namespaces.own.contains(CLONE_NEWTIME) {
        return Err(Refusal::invalid("time_offsets", "are of no new time namespace"));
    }
    let is_named = !request.hostname.is_empty() || !request.domainname.is_empty();
    if is_named && !seen.contains(CloneFlags::CLONE_NEWUTS) {
        return Err(Refusal::invalid(
            "hostname",
            "is the guest's own without a UTS namespace",
        ));
    }
    Ok(namespaces)
}

fn check_user_namespace(request: &CreateRequest, namespaces: &Namespaces) -> Result<(), Refusal> {
    let is_own = namespaces.own.contains(CloneFlags::CLONE_NEWUSER);
    for (field, mappings) in [
        ("uid_mappings", &request.uid_mappings),
        ("gid_mappings", &request.gid_mappings),
    ] {
        if !is_own && !mappings.is_empty() {
            return Err(Refusal::invalid(field, "are of no new user namespace"));
        }
        // Its first process begins as this user and this group.
        if is_own && !mappings.iter().any(|range| range.inside == 0 && range.size > 0) {
            return Err(Refusal::invalid(field, "have no id 0 in the namespace"));
        }
    }
    // Its other namespaces would have to belong to it, which those made with the process cannot.
    if namespaces
        .joined
        .iter()
        .any(|(kind, _)| *kind == CloneFlags::CLONE_NEWUSER)
    {
        return Err(Refusal::invalid(
            "namespaces",
            "have a user namespace of another container",
        ));
    }
    Ok(())
}

/// Ranges as `/proc/PID/uid_map` takes them (user_namespaces(7)).
pub(crate) fn id_map(mappings: &[IdMapping]) -> String {
    mappings.iter().fold(String::new(), |mut text, range| {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{} {} {}", range.inside, range.outside, range.size);
        text
    })
}

/// The guest's id for one of a user namespace.
pub(crate) fn outside(mappings: &[IdMapping], id: u32) -> Option<u32> {
    let range = mappings
        .iter()
        .find(|range| range.inside <= id && id - range.inside < range.size)?;
    range.outside.checked_add(id - range.inside)
}

#[cfg(test)]
mod tests {
    use husk_protocol::agent::Namespace;

    use super::*;

    fn request(kinds: &[(Kind, &str)]) -> CreateRequest {
        let namespace = |(kind, container): &(Kind, &str)| Namespace {
            kind: (*kind).into(),
            container: (*container).to_owned(),
            ..Namespace::default()
        };
        CreateRequest {
            namespaces: kinds.iter().map(namespace).collect(),
            ..CreateRequest::default()
        }
    }

    #[test]
    fn namespaces_are_new_or_joined() {
        let wanted = request(&[
            (Kind::MOUNT, ""),
            (Kind::PID, ""),
            (Kind::IPC, "pause"),
            (Kind::CGROUP, ""),
        ]);
        let found = namespaces(&wanted).unwrap();
        let own = CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWPID | CloneFlags::CLONE_NEWCGROUP;
        assert_eq!(found.own, own);
        assert_eq!(found.joined, [(CloneFlags::CLONE_NEWIPC, "pause".to_owned())]);
    }

    #[test]
    fn ids_are_mapped() {
        let range = |inside, outside, size| IdMapping {
            inside,
            outside,
            size,
            ..IdMapping::default()
        };
        let ranges = [range(0, 100_000, 10), range(1000, 5, 1), range(2000, u32::MAX, 9)];
        assert_eq!(id_map(&ranges[..2]), "0 100000 10\n1000 5 1\n");
        for (id, expected) in [
            (0, Some(100_000)),
            (9, Some(100_009)),
            (10, None),
            (1000, Some(5)),
            (2000, Some(u32::MAX)),
            (2001, None),
        ] {
            assert_eq!(outside(&ranges, id), expected, "{id}");
        }
    }

    #[test]
    fn what_cannot_be_is_refused() {
        for (kinds, field) in [
            (&[][..], "namespaces:"),
            (&[(Kind::MOUNT, "other")], "namespaces:"),
            (&[(Kind::MOUNT, ""), (Kind::UNKNOWN, "")], "namespaces[1]:"),
            (
                &[(Kind::MOUNT, ""), (Kind::PID, ""), (Kind::PID, "x")],
                "namespaces[2]:",
            ),
            (&[(Kind::MOUNT, ""), (Kind::USER, "")], "uid_mappings:"),
            (&[(Kind::MOUNT, ""), (Kind::USER, "other")], "namespaces:"),
        ] {
            let refusal = namespaces(&request(kinds)).err().unwrap().to_string();
            assert!(refusal.starts_with(field), "{refusal}");
        }
        let named = CreateRequest {
            hostname: "x".to_owned(),
            ..request(&[(Kind::MOUNT, "")])
        };
        assert!(namespaces(&named).err().unwrap().to_string().starts_with("hostname:"));
    }
}
