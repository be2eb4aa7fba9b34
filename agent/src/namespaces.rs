//! The namespaces that a container is to have.

use husk_protocol::agent::CreateRequest;
use husk_protocol::agent::namespace::Kind;
use nix::sched::CloneFlags;

use crate::refusal::Refusal;

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
    let is_named = !request.hostname.is_empty() || !request.domainname.is_empty();
    if is_named && !seen.contains(CloneFlags::CLONE_NEWUTS) {
        return Err(Refusal::invalid(
            "hostname",
            "is the guest's own without a UTS namespace",
        ));
    }
    Ok(namespaces)
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
    fn what_cannot_be_is_refused() {
        for (kinds, field) in [
            (&[][..], "namespaces:"),
            (&[(Kind::MOUNT, "other")], "namespaces:"),
            (&[(Kind::MOUNT, ""), (Kind::UNKNOWN, "")], "namespaces[1]:"),
            (
                &[(Kind::MOUNT, ""), (Kind::PID, ""), (Kind::PID, "x")],
                "namespaces[2]:",
            ),
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
