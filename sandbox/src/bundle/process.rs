//! `process` to the agent's message.

use std::collections::HashSet;

use husk_protocol::agent;
use oci_spec::runtime::{LinuxPersonality, LinuxPersonalityDomain, PosixRlimit, PosixRlimitType, Process};

use super::{BundleError, capabilities, schedule};
use crate::confinement::Confinement;

/// Translates the container's first process.
pub(super) fn translate(process: &Process) -> Result<agent::Process, BundleError> {
    let args = process.args().clone().unwrap_or_default();
    if args.first().is_none_or(String::is_empty) {
        return Err(BundleError::Missing("process.args"));
    }
    let cwd = process.cwd().to_string_lossy();
    if !cwd.starts_with('/') {
        return Err(BundleError::Value {
            path: "process.cwd".into(),
            value: cwd.into(),
            expected: "an absolute path is expected",
        });
    }
    if let Some(score) = process.oom_score_adj().filter(|score| !(-1000..=1000).contains(score)) {
        return Err(BundleError::Value {
            path: "process.oomScoreAdj".into(),
            value: score.to_string(),
            expected: "-1000 to 1000 is expected",
        });
    }
    let user = process.user();
    let affinity = process.exec_cpu_affinity().as_ref();
    let env = process.env().clone().unwrap_or_default();
    if let Some(index) = env.iter().position(|entry| !entry.contains('=')) {
        return Err(BundleError::Value {
            path: format!("process.env[{index}]"),
            value: env[index].clone(),
            expected: "NAME=VALUE is expected",
        });
    }
    Ok(agent::Process {
        args,
        env,
        cwd: cwd.into(),
        user: Some(agent::User {
            uid: user.uid(),
            gid: user.gid(),
            additional_gids: user.additional_gids().clone().unwrap_or_default(),
            umask: umask(user.umask())?,
            ..Default::default()
        })
        .into(),
        capabilities: process.capabilities().as_ref().map(capabilities::translate).into(),
        rlimits: rlimits(process.rlimits().as_deref().unwrap_or_default())?,
        no_new_privileges: process.no_new_privileges().unwrap_or(false),
        oom_score_adj: process.oom_score_adj(),
        stdio: Some(stdio(process)?).into(),
        scheduler: process
            .scheduler()
            .as_ref()
            .map(schedule::scheduler)
            .transpose()?
            .into(),
        io_priority: process.io_priority().as_ref().map(schedule::io_priority).transpose()?,
        initial_cpus: schedule::cpus("initial", affinity.and_then(|cpus| cpus.initial().as_ref()))?,
        final_cpus: schedule::cpus("final", affinity.and_then(|cpus| cpus.cpu_affinity_final().as_ref()))?,
        ..Default::default()
    })
}

/// How the host is to confine the process; empty texts ask for nothing.
pub(super) fn confinement(process: &Process) -> Confinement {
    let given = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
    Confinement {
        apparmor_profile: given(process.apparmor_profile()),
        selinux_label: given(process.selinux_label()),
        mount_label: None,
    }
}

/// What personality(2) takes (`linux/personality.h`).
pub(super) fn persona(personality: &LinuxPersonality) -> u32 {
    match personality.domain() {
        LinuxPersonalityDomain::PerLinux => 0,
        LinuxPersonalityDomain::PerLinux32 => 8,
    }
}

fn umask(umask: Option<u32>) -> Result<Option<u32>, BundleError> {
    match umask {
        Some(mask @ 0o1000..) => Err(BundleError::Value {
            path: "process.user.umask".into(),
            value: mask.to_string(),
            expected: "0 to 511 (0777) is expected",
        }),
        mask => Ok(mask),
    }
}

fn rlimits(limits: &[PosixRlimit]) -> Result<Vec<agent::Rlimit>, BundleError> {
    let mut seen = HashSet::new();
    let mut translated = Vec::new();
    for (index, limit) in limits.iter().enumerate() {
        let resource = resource(limit.typ());
        if !seen.insert(resource) {
            return Err(BundleError::Value {
                path: format!("process.rlimits[{index}].type"),
                value: limit.typ().to_string(),
                expected: "each type may stand once",
            });
        }
        if limit.soft() > limit.hard() {
            return Err(BundleError::Invalid {
                path: format!("process.rlimits[{index}].soft"),
                fault: "is above the hard limit",
            });
        }
        translated.push(agent::Rlimit {
            resource,
            soft: limit.soft(),
            hard: limit.hard(),
            ..Default::default()
        });
    }
    Ok(translated)
}

/// The limits' numbers (`include/uapi/asm-generic/resource.h`).
fn resource(kind: PosixRlimitType) -> u32 {
    match kind {
        PosixRlimitType::RlimitCpu => 0,
        PosixRlimitType::RlimitFsize => 1,
        PosixRlimitType::RlimitData => 2,
        PosixRlimitType::RlimitStack => 3,
        PosixRlimitType::RlimitCore => 4,
        PosixRlimitType::RlimitRss => 5,
        PosixRlimitType::RlimitNproc => 6,
        PosixRlimitType::RlimitNofile => 7,
        PosixRlimitType::RlimitMemlock => 8,
        PosixRlimitType::RlimitAs => 9,
        PosixRlimitType::RlimitLocks => 10,
        PosixRlimitType::RlimitSigpending => 11,
        PosixRlimitType::RlimitMsgqueue => 12,
        PosixRlimitType::RlimitNice => 13,
        PosixRlimitType::RlimitRtprio => 14,
        PosixRlimitType::RlimitRttime => 15,
    }
}

/// The terminal and its first size; the tokens come with the streams.
fn stdio(process: &Process) -> Result<agent::Stdio, BundleError> {
    let terminal = process.terminal().unwrap_or(false);
    let mut window = None;
    if let Some(size) = process.console_size().filter(|_| terminal) {
        window = Some(agent::WindowSize {
            columns: cells("width", size.width())?,
            rows: cells("height", size.height())?,
            ..Default::default()
        });
    }
    Ok(agent::Stdio {
        terminal,
        window: window.into(),
        ..Default::default()
    })
}

/// A terminal's size has 16 bits a direction (`struct winsize`).
fn cells(field: &str, value: u64) -> Result<u32, BundleError> {
    u16::try_from(value).map(u32::from).map_err(|_| BundleError::Value {
        path: format!("process.consoleSize.{field}"),
        value: value.to_string(),
        expected: "0 to 65535 is expected",
    })
}
