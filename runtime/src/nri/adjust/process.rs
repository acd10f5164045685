//! What a container's processes run under, as plugins want it.

use berth_nri::api::{self, Field};
use oci_spec::runtime::LinuxSeccomp;
use serde_json::{Value, json};

use super::Target;
use crate::error::Error;

/// As the kernel has it.
const OOM_SCORE_ADJ: std::ops::RangeInclusive<i64> = -1000..=1000;

impl Target<'_> {
    pub(super) fn seccomp(&mut self, adjust: &api::LinuxContainerAdjustment) -> Result<(), Error> {
        let Some(policy) = adjust.seccomp_policy.as_ref() else {
            return Ok(());
        };
        let what = "the seccomp policy";
        if !policy.listener_path.is_empty() {
            return Err(self.unbuilt(Field::SeccompPolicy, what, "a listener is not built"));
        }
        let mut value = json!({
            "defaultAction": policy.default_action,
            "architectures": policy.architectures,
            "flags": policy.flags,
            "syscalls": policy.syscalls.iter().map(syscall).collect::<Vec<_>>(),
        });
        if let Some(errno) = policy.default_errno.as_ref() {
            value["defaultErrnoRet"] = json!(errno.value);
        }
        let made: LinuxSeccomp = serde_json::from_value(value)
            .map_err(|e| self.wrong(Field::SeccompPolicy, what, &e.to_string()))?;
        if let Some(linux) = self.spec.linux_mut() {
            linux.set_seccomp(Some(made));
        }
        Ok(())
    }

    /// I/O priority and scheduler: libcontainer sets them.
    pub(super) fn process(&mut self, adjust: &api::LinuxContainerAdjustment) -> Result<(), Error> {
        if let Some(priority) = adjust.io_priority.as_ref() {
            let what = "the I/O priority";
            let class = match priority.class.enum_value() {
                Ok(api::IOPrioClass::IOPRIO_CLASS_RT) => "IOPRIO_CLASS_RT",
                Ok(api::IOPrioClass::IOPRIO_CLASS_BE) => "IOPRIO_CLASS_BE",
                Ok(api::IOPrioClass::IOPRIO_CLASS_IDLE) => "IOPRIO_CLASS_IDLE",
                _ => return Err(self.wrong(Field::IoPriority, what, "it has no class")),
            };
            if !(0..=7).contains(&priority.priority) {
                return Err(self.wrong(Field::IoPriority, what, "it is not from 0 to 7"));
            }
            let value = json!({ "class": class, "priority": priority.priority });
            let made = serde_json::from_value(value)
                .map_err(|e| self.wrong(Field::IoPriority, what, &e.to_string()))?;
            if let Some(process) = self.spec.process_mut() {
                process.set_io_priority(Some(made));
            }
        }
        if let Some(scheduler) = adjust.scheduler.as_ref() {
            let what = "the scheduler";
            let policy = match scheduler.policy.enum_value() {
                Ok(api::LinuxSchedulerPolicy::SCHED_NONE) | Err(_) => {
                    return Err(self.wrong(Field::LinuxSched, what, "it has no policy"));
                }
                Ok(policy) => format!("{policy:?}"),
            };
            if !scheduler.flags.is_empty() {
                return Err(self.unbuilt(Field::LinuxSched, what, "its flags are not built"));
            }
            let some = |value: u64| (value != 0).then_some(value);
            let value = json!({
                "policy": policy,
                "nice": scheduler.nice,
                "priority": scheduler.priority,
                "runtime": some(scheduler.runtime),
                "deadline": some(scheduler.deadline),
                "period": some(scheduler.period),
            });
            let made = serde_json::from_value(value)
                .map_err(|e| self.wrong(Field::LinuxSched, what, &e.to_string()))?;
            if let Some(process) = self.spec.process_mut() {
                process.set_scheduler(Some(made));
            }
        }
        Ok(())
    }

    /// Which nodes go with which mode and flags is the kernel's to say, when the container is made.
    pub(super) fn memory_policy(
        &mut self,
        adjust: &api::LinuxContainerAdjustment,
    ) -> Result<(), Error> {
        let Some(policy) = adjust.memory_policy.as_ref() else {
            return Ok(());
        };
        let what = "the memory policy";
        let wrong = |why: &str| self.wrong(Field::MemoryPolicy, what, why);
        let mode = policy.mode.enum_value();
        let mode = mode.map_err(|n| wrong(&format!("there is no mode {n}")))?;
        let flags: Result<Vec<String>, i32> = policy
            .flags
            .iter()
            .map(|flag| flag.enum_value().map(|flag| format!("{flag:?}")))
            .collect();
        let flags = flags.map_err(|n| wrong(&format!("there is no flag {n}")))?;
        let value = json!({ "mode": format!("{mode:?}"), "nodes": policy.nodes, "flags": flags });
        let made = serde_json::from_value(value).map_err(|e| wrong(&e.to_string()))?;
        if let Some(linux) = self.spec.linux_mut() {
            linux.set_memory_policy(Some(made));
        }
        Ok(())
    }

    pub(super) fn oom_score(
        &mut self,
        adjust: &api::LinuxContainerAdjustment,
        notes: &mut Vec<String>,
    ) -> Result<(), Error> {
        let Some(asked) = adjust.oom_score_adj.as_ref() else {
            return Ok(());
        };
        if !OOM_SCORE_ADJ.contains(&asked.value) {
            let what = format!("oom_score_adj {}", asked.value);
            return Err(self.wrong(Field::OomScoreAdj, &what, "it is not from -1000 to 1000"));
        }
        let host = &self.pod.node.host;
        let mut score = asked.value as i32;
        if score < host.oom_score_adj && !host.can_lower_oom_score {
            notes.push(format!(
                "oom_score_adj {score} is below the daemon's own {}, and it lacks CAP_SYS_RESOURCE: {0} is set",
                host.oom_score_adj
            ));
            score = host.oom_score_adj;
        }
        if let Some(process) = self.spec.process_mut() {
            process.set_oom_score_adj(Some(score));
        }
        Ok(())
    }
}

fn syscall(syscall: &api::LinuxSyscall) -> Value {
    let args: Vec<Value> = syscall
        .args
        .iter()
        .map(|arg| {
            json!({
                "index": arg.index,
                "value": arg.value,
                "valueTwo": arg.value_two,
                "op": arg.op,
            })
        })
        .collect();
    let mut value = json!({ "names": syscall.names, "action": syscall.action });
    if let Some(errno) = syscall.errno_ret.as_ref() {
        value["errnoRet"] = json!(errno.value);
    }
    if !args.is_empty() {
        value["args"] = json!(args);
    }
    value
}
