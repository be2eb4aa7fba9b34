//! `process.scheduler`, `process.ioPriority` and `process.execCPUAffinity` to numbers of the kernel.

use husk_protocol::agent;
use oci_spec::runtime::{IOPriorityClass, LinuxIOPriority, LinuxSchedulerFlag, LinuxSchedulerPolicy, Scheduler};

use super::BundleError;

/// The greatest CPU number that sched_setaffinity(2) is given (`CPU_SETSIZE`), exclusively.
const MAX_CPUS: u32 = 1024;

fn invalid(field: &str, fault: &'static str) -> BundleError {
    BundleError::Invalid {
        path: format!("process.{field}"),
        fault,
    }
}

/// Translates the scheduler, with the checks of sched_setattr(2) that need no kernel.
pub(super) fn scheduler(scheduler: &Scheduler) -> Result<agent::Scheduler, BundleError> {
    let policy = *scheduler.policy();
    let is_real_time = matches!(policy, LinuxSchedulerPolicy::SchedFifo | LinuxSchedulerPolicy::SchedRr);
    let is_deadline = matches!(policy, LinuxSchedulerPolicy::SchedDeadline);
    // Numbers of linux/sched.h.
    let number = match policy {
        LinuxSchedulerPolicy::SchedOther => 0,
        LinuxSchedulerPolicy::SchedFifo => 1,
        LinuxSchedulerPolicy::SchedRr => 2,
        LinuxSchedulerPolicy::SchedBatch => 3,
        LinuxSchedulerPolicy::SchedIdle => 5,
        LinuxSchedulerPolicy::SchedDeadline => 6,
        LinuxSchedulerPolicy::SchedIso => {
            return Err(BundleError::UnsupportedValue {
                path: "process.scheduler.policy".into(),
                value: "\"SCHED_ISO\"".into(),
            });
        }
    };
    let nice = scheduler.nice().unwrap_or_default();
    if !(-20..=19).contains(&nice) {
        return Err(invalid("scheduler.nice", "is not between -20 and 19"));
    }
    let priority = scheduler.priority().unwrap_or_default();
    if priority != 0 && !is_real_time {
        return Err(invalid("scheduler.priority", "is for SCHED_FIFO and SCHED_RR alone"));
    }
    let priority = u32::try_from(priority).map_err(|_| invalid("scheduler.priority", "is negative"))?;
    let [runtime, deadline, period] =
        [scheduler.runtime(), scheduler.deadline(), scheduler.period()].map(|time| time.unwrap_or_default());
    for (field, time) in [
        ("scheduler.runtime", runtime),
        ("scheduler.deadline", deadline),
        ("scheduler.period", period),
    ] {
        if time != 0 && !is_deadline {
            return Err(invalid(field, "is for SCHED_DEADLINE alone"));
        }
    }
    Ok(agent::Scheduler {
        policy: number,
        nice,
        priority,
        flags: flags(scheduler.flags().as_deref().unwrap_or_default())?,
        runtime,
        deadline,
        period,
        ..Default::default()
    })
}

fn flags(flags: &[LinuxSchedulerFlag]) -> Result<u64, BundleError> {
    let mut set = 0;
    for (index, flag) in flags.iter().enumerate() {
        set |= match flag {
            LinuxSchedulerFlag::SchedResetOnFork => 1,
            LinuxSchedulerFlag::SchedFlagReclaim => 2,
            LinuxSchedulerFlag::SchedFlagDLOverrun => 4,
            LinuxSchedulerFlag::SchedFlagKeepPolicy => 8,
            LinuxSchedulerFlag::SchedFlagKeepParams => 0x10,
            // The specification has no field for the values between which utilization would be clamped.
            LinuxSchedulerFlag::SchedFlagUtilClampMin | LinuxSchedulerFlag::SchedFlagUtilClampMax => {
                return Err(BundleError::UnsupportedValue {
                    path: format!("process.scheduler.flags[{index}]"),
                    value: format!("{:?}", flag.to_string()),
                });
            }
        };
    }
    Ok(set)
}

/// What ioprio_set(2) takes.
pub(super) fn io_priority(priority: &LinuxIOPriority) -> Result<u32, BundleError> {
    let class: u32 = match priority.class() {
        IOPriorityClass::IoprioClassRt => 1,
        IOPriorityClass::IoprioClassBe => 2,
        IOPriorityClass::IoprioClassIdle => 3,
    };
    match u32::try_from(priority.priority()) {
        Ok(level @ 0..=7) => Ok(class << 13 | level),
        _ => Err(invalid("ioPriority.priority", "is not between 0 and 7")),
    }
}

/// CPUs as `0-3,7` names them.
pub(super) fn cpus(field: &str, list: Option<&String>) -> Result<Vec<u32>, BundleError> {
    let wrong = || BundleError::Value {
        path: format!("process.execCPUAffinity.{field}"),
        value: list.cloned().unwrap_or_default(),
        expected: "a list such as 0-3,7 of CPUs below 1024 is expected",
    };
    let mut cpus = Vec::new();
    for range in list.iter().flat_map(|list| list.split(',')) {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let number = |text: &str| text.parse::<u32>().ok().filter(|cpu| *cpu < MAX_CPUS);
        match (number(first), number(last)) {
            (Some(first), Some(last)) if first <= last => cpus.extend(first..=last),
            _ => return Err(wrong()),
        }
    }
    Ok(cpus)
}

#[cfg(test)]
mod tests {
    use oci_spec::runtime::Process;
    use serde_json::{Value, json};

    use super::*;

    fn translated(value: Value) -> Result<agent::Scheduler, String> {
        let process: Process = serde_json::from_value(json!({"user": {}, "cwd": "/", "scheduler": value})).unwrap();
        scheduler(process.scheduler().as_ref().unwrap()).map_err(|error| error.to_string())
    }

    #[test]
    fn schedulers_are_the_kernels() {
        let found =
            translated(json!({"policy": "SCHED_FIFO", "priority": 10, "flags": ["SCHED_RESET_ON_FORK"]})).unwrap();
        assert_eq!((found.policy, found.priority, found.flags), (1, 10, 1));
        let found = translated(json!({"policy": "SCHED_OTHER", "nice": -5})).unwrap();
        assert_eq!((found.policy, found.nice), (0, -5));
        let found = translated(json!({"policy": "SCHED_DEADLINE", "runtime": 1, "deadline": 2, "period": 3})).unwrap();
        assert_eq!(
            (found.policy, found.runtime, found.deadline, found.period),
            (6, 1, 2, 3)
        );
    }

    #[test]
    fn what_contradicts_itself_is_named() {
        for (value, field) in [
            (json!({"policy": "SCHED_OTHER", "nice": 20}), "process.scheduler.nice"),
            (
                json!({"policy": "SCHED_OTHER", "priority": 1}),
                "process.scheduler.priority",
            ),
            (
                json!({"policy": "SCHED_FIFO", "priority": -1}),
                "process.scheduler.priority",
            ),
            (
                json!({"policy": "SCHED_IDLE", "deadline": 1}),
                "process.scheduler.deadline",
            ),
            (json!({"policy": "SCHED_ISO"}), "process.scheduler.policy"),
            (
                json!({"policy": "SCHED_OTHER", "flags": ["SCHED_FLAG_UTIL_CLAMP_MIN"]}),
                "process.scheduler.flags[0]",
            ),
        ] {
            let refusal = translated(value).unwrap_err();
            assert!(refusal.contains(field), "{refusal}");
        }
    }

    #[test]
    fn lists_of_cpus_are_read() {
        let read = |text: &str| cpus("final", Some(&text.to_owned())).map_err(|error| error.to_string());
        assert_eq!(read("0-3,7").unwrap(), [0, 1, 2, 3, 7]);
        assert_eq!(cpus("final", None).unwrap(), [0_u32; 0]);
        for wrong in ["3-1", "1024", "4294967296", "a", "1,,2", "", "-1"] {
            let refusal = read(wrong).unwrap_err();
            assert!(refusal.contains("process.execCPUAffinity.final"), "{refusal}");
        }
    }
}
