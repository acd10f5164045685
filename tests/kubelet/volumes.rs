//! Volumes over a real runtime: what is in them, who can leave them, and that nothing of them stays.

use std::fs;

use anyhow::{Result, ensure};
use berth_tests::Node;

use crate::scene::{Kubelet, container, pod};

/// VM-04, too: what is mounted into a container is the directory of the node.
#[test]
fn volumes_are_what_they_are_called_and_sub_paths_stay_in_them_vo_01_vo_02_vm_03_sec_kub_01()
-> Result<()> {
    Node::test(async |node| {
        let host = node.volume("host")?;
        fs::create_dir_all(host.join("inside"))?;
        fs::write(host.join("inside/file"), "within\n")?;
        // Links that lead out of the volume, as a pod might have put them there.
        std::os::unix::fs::symlink("/", host.join("root"))?;
        std::os::unix::fs::symlink("../../../../../../inside", host.join("up"))?;
        std::os::unix::fs::symlink("inside/file", host.join("link"))?;
        let kubelet = Kubelet::start(node)?;
        let text = pod(
            "volumes",
            &format!(
                "  terminationGracePeriodSeconds: 0\n  securityContext: {{fsGroup: 4321}}\n  volumes:\n  - {{name: memory, emptyDir: {{medium: Memory, sizeLimit: 1Mi}}}}\n  - {{name: disk, emptyDir: {{}}}}\n  \
                 - {{name: host, hostPath: {{path: {}}}}}\n  - {{name: self, downwardAPI: {{items: [{{path: labels, fieldRef: {{fieldPath: metadata.labels}}}}]}}}}\n  containers:\n  \
                 - name: a\n    image: busybox\n    command: [sh, -c, \"$(SCRIPT)\"]\n    env:\n    - {{name: PART, value: inside}}\n    - name: SCRIPT\n      value: |\n        \
                 n=$(cat /disk/count 2>/dev/null || echo 0); echo $((n + 1)) > /disk/count\n        \
                 echo \"count $n\"; stat -c 'disk %g' /disk; cat /part/file; cat /file; cat /self/labels; echo\n        \
                 ls -A /root-link /up-link | sort | tr '\\n' ' '; echo\n        \
                 touch /self/x 2>&1; dd if=/dev/zero of=/memory/x bs=1M count=2 2>&1 | grep -o 'No space'\n        \
                 [ $n -gt 0 ] || exit 1; sleep 1000\n    \
                 volumeMounts:\n    - {{name: memory, mountPath: /memory}}\n    - {{name: disk, mountPath: /disk}}\n    - {{name: self, mountPath: /self}}\n    \
                 - {{name: host, mountPath: /part, subPathExpr: $(PART)}}\n    - {{name: host, mountPath: /file, subPath: link}}\n    \
                 - {{name: host, mountPath: /root-link, subPath: root}}\n    - {{name: host, mountPath: /up-link, subPath: up}}",
                host.display()
            ),
        );
        kubelet.put("volumes.yaml", &text)?;
        // Its first life ends; what it has written is there in the second (VO-01).
        kubelet
            .wait("volumes", "in its second life", |status| {
                let it = container(status, "a");
                it["restartCount"] == 1 && it["state"]["running"].is_object()
            })
            .await?;
        let dir = kubelet.pod_dir("volumes").unwrap_or_default();
        let uid = dir
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        for (plugin, name) in [
            ("empty-dir", "memory"),
            ("empty-dir", "disk"),
            ("downward-api", "self"),
        ] {
            ensure!(
                dir.join(format!("volumes/kubernetes.io~{plugin}/{name}"))
                    .is_dir(),
                "{plugin} {name}"
            );
        }
        let path = node
            .dir
            .join(format!("logs/default_volumes-n1_{uid}/a/1.log"));
        let read = || {
            let log = fs::read_to_string(&path).unwrap_or_default();
            log.lines()
                .filter_map(|line| line.splitn(4, ' ').nth(3))
                .map(|line| format!("{line}\n"))
                .collect::<String>()
        };
        let whole = berth_tests::process::eventually(std::time::Duration::from_secs(10), || {
            read().contains("No space")
        });
        let log = read();
        ensure!(whole, "{log}");
        for words in [
            "count 1\n",
            "disk 4321\n",
            "within\nwithin\n",
            "app=\"test\"\n",
            "Read-only file system",
        ] {
            ensure!(log.contains(words), "no {words:?} in {log}");
        }
        // `/` within a volume is the volume, and there is nothing above it.
        let line = log
            .lines()
            .find(|line| line.contains("/root-link"))
            .unwrap_or_default();
        ensure!(
            line.contains("inside") && line.contains("file") && !line.contains("passwd"),
            "{log}"
        );

        kubelet.take("volumes.yaml")?;
        kubelet.wait_gone(node, "volumes").await?;
        ensure!(
            fs::read_to_string(host.join("inside/file"))? == "within\n",
            "the host's own is gone"
        );
        let mounts = fs::read_to_string("/proc/thread-self/mountinfo")?;
        ensure!(!mounts.contains(&uid), "still mounted: {mounts}");
        Ok(())
    })
}
