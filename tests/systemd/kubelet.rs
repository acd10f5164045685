//! A kubelet where systemd is PID 1: its pods' cgroups are slices, and the machine's shutdown waits for them by logind's leave.

use std::{fs, path::Path, process::Command, time::Duration};

use anyhow::{Context, Result, ensure};
use berth_tests::{
    machine::patient,
    process::{self, eventually},
    systemd::{self, property, systemctl},
};

use crate::{
    driver::{by_systemd, value},
    scene::{Kubelet, container, pod},
};

const SLEEPER: &str = "image: busybox, imagePullPolicy: IfNotPresent, command: [sleep, '1000']";
const SOON: Duration = Duration::from_secs(30);

/// The cgroup of the container's process.
fn cgroup_of(status: &serde_json::Value) -> Result<String> {
    let id = container(status, "a")["containerID"]
        .as_str()
        .context("no id")?;
    let id = id.rsplit('/').next().unwrap_or_default();
    let init = process::init_of(id).context("the container has no process")?;
    let text = fs::read_to_string(format!("/proc/{}/cgroup", init.pid))?;
    Ok(text.trim().trim_start_matches("0::").to_owned())
}

#[test]
fn pods_of_a_kubelet_are_slices_by_their_class_with_limits_that_outlive_a_reload() -> Result<()> {
    by_systemd(async |node| {
        let kubelet = Kubelet::start_with(node, &["--pod-max-pids", "64"])?;
        let limits = "resources: {limits: {cpu: 100m, memory: 64Mi}}";
        let asks = "resources: {requests: {cpu: 250m}}";
        for (name, resources) in [("whole", limits), ("some", asks), ("none", "resources: {}")] {
            let spec = format!(
                "  terminationGracePeriodSeconds: 0\n  containers: [{{name: a, {SLEEPER}, {resources}}}]"
            );
            kubelet.put(&format!("{name}.yaml"), &pod(name, &spec))?;
        }
        let mut slices = Vec::new();
        for (name, class) in [
            ("whole", ""),
            ("some", "burstable/"),
            ("none", "besteffort/"),
        ] {
            let status = kubelet.wait_ready(name).await?;
            let uid = kubelet.pod_dir(name).context("no directory")?;
            let uid = uid
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            let path = node.own_cgroup_parent(&format!("kubepods/{class}pod{uid}"));
            let is = cgroup_of(&status)?;
            ensure!(
                is.starts_with(&format!("{path}/")) && is.ends_with(".scope"),
                "{is} in {path}"
            );
            slices.push(path);
        }
        let unit = |path: &str| path.rsplit('/').next().unwrap_or_default().to_owned();
        let [whole, some, none] = slices.as_slice() else {
            unreachable!("three pods");
        };
        let burstable = node.own_cgroup_parent("kubepods/burstable");
        for again in [false, true] {
            if again {
                systemctl(&["daemon-reload"])?;
            }
            for (path, file, expected) in [
                (whole, "memory.max", "67108864"),
                (whole, "cpu.max", "10000 100000"),
                (whole, "pids.max", "64"),
                (some, "memory.max", "max"),
                (some, "cpu.max", "max 100000"),
                (some, "pids.max", "64"),
                (none, "cpu.weight", "1"),
            ] {
                let is = value(path, file)?;
                ensure!(
                    is == expected,
                    "{path} {file} (reloaded: {again}): {is}, not {expected}"
                );
            }
            // a class weighs what its pods ask for
            ensure!(value(&burstable, "cpu.weight")? == value(some, "cpu.weight")?);
            for (path, name, expected) in [
                (whole, "MemoryMax", "67108864"),
                (whole, "CPUQuotaPerSecUSec", "100ms"),
                (whole, "TasksMax", "64"),
                (some, "MemoryMax", "infinity"),
                (none, "CPUWeight", "1"),
            ] {
                let is = property(&unit(path), name)?;
                ensure!(
                    is == expected,
                    "{path} {name} (reloaded: {again}): {is}, not {expected}"
                );
            }
        }
        for name in ["whole", "some", "none"] {
            kubelet.take(&format!("{name}.yaml"))?;
            kubelet.wait_gone(node, name).await?;
        }
        for path in &slices {
            systemd::gone(&unit(path))?;
        }
        Ok(())
    })
}

/// Starts logind, with a delay of half a minute, in a machine of hack/vm's, which has none by itself. False: this is none of those.
fn start_logind() -> Result<bool> {
    if !Path::new("/run/berth-vm").is_dir() {
        eprintln!("skipped: only a machine of hack/vm's may be told to shut down");
        return Ok(false);
    }
    // without what a whole boot would bring before it
    let alone = "[Unit]\nDefaultDependencies=no\nRequires=\nWants=\nAfter=\n[Service]\nProtectSystem=no\nPrivateTmp=no\n";
    let unit = Path::new("/run/systemd/system/systemd-logind.service.d");
    let config = Path::new("/run/systemd/logind.conf.d");
    for (dir, name, text) in [
        (unit, "alone.conf", alone),
        (config, "delay.conf", "[Login]\nInhibitDelayMaxSec=30\n"),
    ] {
        fs::create_dir_all(dir)?;
        fs::write(dir.join(name), text)?;
    }
    // the shutdown comes as far as to wait for the pods, and no further (of a masked target logind knows nothing)
    let harmless = "[Unit]\nDescription=No reboot\nDefaultDependencies=no\n";
    fs::write("/run/systemd/system/reboot.target", harmless)?;
    systemctl(&["daemon-reload"])?;
    systemctl(&["start", "systemd-logind.service"])?;
    Ok(true)
}

fn busctl(arguments: &[&str]) -> Result<String> {
    let output = Command::new("busctl")
        .args(["call", "org.freedesktop.login1", "/org/freedesktop/login1"])
        .arg("org.freedesktop.login1.Manager")
        .args(arguments)
        .output()?;
    ensure!(output.status.success(), "busctl {arguments:?}: {output:?}");
    Ok(String::from_utf8(output.stdout)?)
}

#[test]
fn a_real_logind_waits_until_pods_have_ended_in_order() -> Result<()> {
    if systemd::is_missing() || !start_logind()? {
        return Ok(());
    }
    by_systemd(async |node| {
        let order = node.volume("order")?;
        let flags = [
            "--shutdown-grace-period",
            "24s",
            "--shutdown-grace-period-critical-pods",
            "12s",
        ];
        let kubelet = Kubelet::start_with(node, &flags)?;
        for (name, priority) in [("critical", "  priority: 2000001000\n"), ("plain", "")] {
            let spec = format!(
                "{priority}  volumes: [{{name: o, hostPath: {{path: {}}}}}]\n  containers:\n  - name: a\n    image: busybox\n    imagePullPolicy: IfNotPresent\n    \
                 volumeMounts: [{{name: o, mountPath: /order}}]\n    command: [sh, -c, \"trap 'echo {name} >> /order/file; exit 0' TERM; while :; do sleep 0.2; done\"]",
                order.display()
            );
            kubelet.put(&format!("{name}.yaml"), &pod(name, &spec))?;
            kubelet.wait_ready(name).await?;
        }
        let held = || busctl(&["ListInhibitors"]);
        ensure!(
            eventually(patient(SOON), || held()
                .is_ok_and(|all| all.contains("berth kubelet"))),
            "no lock: {}\n{}",
            held()?,
            kubelet.log()
        );
        busctl(&["Reboot", "b", "false"])?;
        let goes_on = "the pods have ended: the shutdown may go on";
        ensure!(
            eventually(patient(SOON), || kubelet.log().contains(goes_on)),
            "{}",
            kubelet.log()
        );
        let said = fs::read_to_string(order.join("file"))?;
        ensure!(said == "plain\ncritical\n", "{said}");
        // what logind can't do is told, and the next shutdown is waited for again
        ensure!(
            eventually(patient(SOON), || {
                kubelet.log().contains("the machine does not shut down")
                    && held().is_ok_and(|all| all.contains("berth kubelet"))
            }),
            "{}",
            kubelet.log()
        );
        for name in ["critical", "plain"] {
            kubelet.take(&format!("{name}.yaml"))?;
            kubelet.wait_gone(node, name).await?;
        }
        Ok(())
    })
}
