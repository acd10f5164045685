//! Claims and the volumes to which they are bound: by our controllers, our scheduler and a real kubectl, with real mounts and devices.

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use berth_tests::{Node, cluster::Component, identity::run};
use nix::mount::{MsFlags, mount};
use rustix::fs::statvfs;
use serde_json::{Value, json};

use crate::{
    figures::summary,
    member::{Member, NODE},
};

/// They need not wait for one that was killed.
const ALONE: &[&str] = &["--leader-elect=false"];
/// Bound where their pod goes.
const CLASS: &str = "local";

/// A node whose claims are bound.
struct Scene {
    member: Member,
    _parts: [Component; 2],
}

impl Scene {
    async fn start(node: &Node) -> Result<Self> {
        let member = Member::start(node).await?;
        let parts = [
            Component::start(&member.server, "controllers", ALONE)?,
            Component::start(&member.server, "scheduler", ALONE)?,
        ];
        let scene = Self {
            member,
            _parts: parts,
        };
        scene.apply(json!({
            "apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": {"name": CLASS},
            "provisioner": "kubernetes.io/no-provisioner", "volumeBindingMode": "WaitForFirstConsumer",
        }))?;
        Ok(scene)
    }

    fn apply(&self, object: Value) -> Result<()> {
        let server = &self.member.server;
        server.kubectl_with(&["apply", "-f", "-"], &object.to_string())?;
        Ok(())
    }

    /// A volume of what `source` says, with more fields of its spec.
    fn volume(&self, name: &str, source: Value, more: Value) -> Result<()> {
        let mut spec = json!({
            "capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"], "persistentVolumeReclaimPolicy": "Retain",
            "storageClassName": "",
        });
        for (key, value) in object(&source).chain(object(&more)) {
            spec[key] = value.clone();
        }
        self.apply(json!({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": name}, "spec": spec}))
    }

    /// A local one, which is on this node.
    fn local(&self, name: &str, path: &Path, more: Value) -> Result<()> {
        let mut spec = json!({"nodeAffinity": on(NODE)});
        for (key, value) in object(&more) {
            spec[key] = value.clone();
        }
        self.volume(name, json!({"local": {"path": path}}), spec)
    }

    /// A claim of this volume alone.
    fn claim(&self, name: &str, more: Value) -> Result<()> {
        let mut spec = json!({
            "accessModes": ["ReadWriteOnce"], "storageClassName": "", "volumeName": name,
            "resources": {"requests": {"storage": "1Gi"}},
        });
        for (key, value) in object(&more) {
            spec[key] = value.clone();
        }
        self.apply(json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name}, "spec": spec}))
    }

    /// A pod on this node, past the scheduler; `line` is a shell's, `more` fields of its spec beside its volume `v`.
    fn pod(&self, name: &str, claim: &str, line: &str, more: Value) -> Result<()> {
        let mut spec = json!({
            "nodeName": NODE, "terminationGracePeriodSeconds": 1,
            "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": claim}}],
            "containers": [{
                "name": "a", "image": "busybox", "command": ["sh", "-c", line],
                "volumeMounts": [{"name": "v", "mountPath": "/v"}],
            }],
        });
        for (key, value) in object(&more) {
            spec[key] = value.clone();
        }
        self.apply(
            json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}),
        )
    }

    fn exec(&self, pod: &str, line: &str) -> Result<String> {
        let server = &self.member.server;
        server.kubectl(&["exec", pod, "--", "sh", "-c", line])
    }

    fn delete(&self, what: &str, name: &str) -> Result<()> {
        self.member
            .server
            .kubectl(&["delete", what, name])
            .map(drop)
    }

    fn uid(&self, pod: &str) -> Result<String> {
        let pod = self.member.server.json(&["get", "pod", pod])?;
        let uid = pod["metadata"]["uid"].as_str();
        Ok(uid.context("a pod without a uid")?.to_owned())
    }

    /// Waits until the pod was told this of its volumes.
    async fn told(&self, pod: &str, words: &str) -> Result<()> {
        let about = format!("involvedObject.name={pod},reason=FailedMount");
        let mut last = Vec::new();
        let what = format!("{pod} is told: {words}");
        let told = self.member.until(&what, || {
            let events = self
                .member
                .server
                .json(&["get", "events", "--field-selector", &about])?;
            let all = events["items"].as_array().cloned().unwrap_or_default();
            last = all.iter().map(|one| one["message"].to_string()).collect();
            let mut messages = all.iter().filter_map(|one| one["message"].as_str());
            Ok(messages.any(|message| message.contains(words)))
        });
        let told = told.await;
        told.with_context(|| format!("{last:#?}"))
    }

    async fn bound(&self, claim: &str) -> Result<Value> {
        self.member
            .wait("pvc", claim, "bound", |it| it["status"]["phase"] == "Bound")
            .await
    }

    /// Ends with nothing mounted, and no place of a mount left.
    fn end(self) -> Result<()> {
        let kubelet = self.member.kubelet.pods_dir();
        let kubelet = kubelet.parent().context("a directory without one")?;
        let left = mounts()?
            .into_iter()
            .filter(|path| path.starts_with(kubelet));
        let left: Vec<_> = left.collect();
        ensure!(left.is_empty(), "still mounted: {left:#?}");
        let devices = kubelet.join("plugins/kubernetes.io/local-volume/mounts");
        let left = fs::read_dir(devices).into_iter().flatten().count();
        ensure!(left == 0, "{left} places of devices are left");
        let Self { member, _parts } = self;
        drop(_parts);
        member.end()
    }
}

fn object(value: &Value) -> impl Iterator<Item = (&String, &Value)> {
    value.as_object().into_iter().flatten()
}

fn on(host: &str) -> Value {
    json!({"required": {"nodeSelectorTerms": [
        {"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": [host]}]},
    ]}})
}

/// Where something is mounted in this test's machine.
fn mounts() -> Result<Vec<PathBuf>> {
    let table = fs::read_to_string("/proc/thread-self/mountinfo")?;
    let paths = table.lines().filter_map(|line| line.split(' ').nth(4));
    Ok(paths.map(PathBuf::from).collect())
}

const SLEEPS: &str = "sleep 1000";

/// VO-03, VM-03, VM-04, SCL-01, SCL-02, too: by a class that waits for the first consumer, on the node where the volume is.
#[test]
fn a_claim_of_a_stateful_set_outlives_its_pod_and_the_next_finds_its_files_pv_01() -> Result<()> {
    Node::test(async |node| {
        let scene = Scene::start(node).await?;
        let server = &scene.member.server;
        let disk = node.volume("disk")?;
        // A disk of the node's own below it: it is nobody's to unmount.
        let below = disk.join("below");
        fs::create_dir(&below)?;
        mount(
            Some("t"),
            &below,
            Some("tmpfs"),
            MsFlags::empty(),
            None::<&str>,
        )?;
        let class = json!({"storageClassName": CLASS});
        scene.local(
            "elsewhere",
            &disk,
            json!({"storageClassName": CLASS, "nodeAffinity": on("n2")}),
        )?;
        scene.local("here", &disk, class)?;
        let line = "echo $(cat /data/count 2>/dev/null)x > /data/count; sleep 1000";
        scene.apply(json!({
            "apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": "db"},
            "spec": {
                "serviceName": "db", "replicas": 1, "selector": {"matchLabels": {"app": "db"}},
                "template": {
                    "metadata": {"labels": {"app": "db"}},
                    "spec": {
                        "terminationGracePeriodSeconds": 1,
                        "containers": [{
                            "name": "a", "image": "busybox", "command": ["sh", "-c", line],
                            "readinessProbe": {"exec": {"command": ["test", "-s", "/data/count"]}, "periodSeconds": 1},
                            "volumeMounts": [{"name": "data", "mountPath": "/data"}, {"name": "data", "mountPath": "/part", "subPath": "part"}],
                        }],
                    },
                },
                "volumeClaimTemplates": [{"metadata": {"name": "data"}, "spec": {
                    "accessModes": ["ReadWriteOnce"], "storageClassName": CLASS, "resources": {"requests": {"storage": "1Gi"}},
                }}],
            },
        }))?;
        scene.member.wait_ready("db-0").await?;
        let claim = scene.bound("data-db-0").await?;
        ensure!(claim["spec"]["volumeName"] == "here", "{claim:#}");
        ensure!(fs::read_to_string(disk.join("count"))? == "x\n");
        let first = scene.uid("db-0")?;
        let place = |uid: &str| {
            let pod = scene.member.kubelet.pods_dir().join(uid);
            pod.join("volumes/kubernetes.io~local-volume/here")
        };
        ensure!(mounts()?.contains(&place(&first)), "{:#?}", mounts()?);
        scene.exec("db-0", "touch /part/file")?;
        // it is nothing that is attached
        let status = &server.json(&["get", "node", NODE])?["status"];
        ensure!(
            status["volumesInUse"].is_null() && status["volumesAttached"].is_null(),
            "{status:#}"
        );

        // a claim that is used stays until it isn't
        server.kubectl(&["delete", "pvc", "data-db-0", "--wait=false"])?;
        let claim = server.json(&["get", "pvc", "data-db-0"])?;
        ensure!(
            claim["metadata"]["finalizers"] == json!(["kubernetes.io/pvc-protection"])
                && server.json(&["get", "pod", "db-0"])?["status"]["phase"] == "Running",
            "{claim:#}"
        );
        server.kubectl(&["scale", "statefulset", "db", "--replicas=0"])?;
        scene
            .member
            .until("the claim goes with its last pod", || {
                Ok(!server.ask(&["get", "pvc", "data-db-0"], "")?.ok)
            })
            .await?;
        // which may be as soon as nothing of it runs
        scene
            .member
            .until("the first pod's place is gone", || {
                Ok(!place(&first).exists())
            })
            .await?;
        ensure!(
            fs::read_to_string(disk.join("count"))? == "x\n" && disk.join("part/file").exists(),
            "a file of the volume is lost"
        );
        ensure!(
            mounts()?.contains(&below),
            "the node's own disk was unmounted"
        );

        // Somebody gives the volume to whoever comes next.
        scene
            .member
            .wait("pv", "here", "released", |it| {
                it["status"]["phase"] == "Released"
            })
            .await?;
        server.kubectl(&[
            "patch",
            "pv",
            "here",
            "--type=json",
            "-p",
            r#"[{"op": "remove", "path": "/spec/claimRef"}]"#,
        ])?;
        server.kubectl(&["scale", "statefulset", "db", "--replicas=1"])?;
        scene
            .member
            .until("the next one counts on", || {
                Ok(fs::read_to_string(disk.join("count"))? == "xx\n")
            })
            .await?;
        scene.member.wait_ready("db-0").await?;
        // its claim stays, and the next pod of it finds the same
        scene.delete("pod", "db-0")?;
        scene
            .member
            .until("and the one after it", || {
                Ok(fs::read_to_string(disk.join("count"))? == "xxx\n")
            })
            .await?;
        scene.delete("statefulset", "db")?;
        scene
            .member
            .until("the set's pod is gone", || {
                Ok(!server.ask(&["get", "pod", "db-0"], "")?.ok)
            })
            .await?;
        ensure!(disk.join("part/file").exists() && mounts()?.contains(&below));
        nix::mount::umount(&below)?;
        scene.end()
    })
}

#[test]
fn a_pod_waits_for_what_its_claim_lacks_and_goes_on_by_itself_vo_03_scl_02() -> Result<()> {
    Node::test(async |node| {
        let scene = Scene::start(node).await?;
        let server = &scene.member.server;
        let disk = node.volume("disks")?;

        // one that comes piece by piece
        scene.pod("early", "late", SLEEPS, json!({}))?;
        scene
            .told("early", "failed to process volumes=[v]: error processing PVC default/late: failed to fetch PVC from API server")
            .await?;
        scene.claim("late", json!({}))?;
        scene
            .told(
                "early",
                "error processing PVC default/late: PVC is not bound",
            )
            .await?;
        scene.local("late", &disk.join("late"), json!({}))?;
        scene.bound("late").await?;
        let path = disk.join("late");
        scene
            .told("early", &format!("MountVolume.NewMounter initialization failed for volume \"late\" : path {path:?} does not exist"))
            .await?;
        let early = server.json(&["get", "pod", "early"])?;
        ensure!(early["status"]["phase"] == "Pending", "{early:#}");
        fs::create_dir(&path)?;
        scene.member.wait_ready("early").await?;

        // of other kinds, and elsewhere: told by name, and in nobody's way
        let nfs = json!({"nfs": {"server": "192.0.2.1", "path": "/"}});
        scene.volume("odd", nfs, json!({}))?;
        scene.local("away", &disk, json!({"nodeAffinity": on("n2")}))?;
        for (name, words) in [
            (
                "odd",
                "MountVolume.NewMounter initialization failed for volume \"odd\" : nfs is not built",
            ),
            (
                "away",
                "MountVolume.NodeAffinity check failed for volume \"away\" : no matching NodeSelectorTerms",
            ),
        ] {
            scene.claim(name, json!({}))?;
            scene.bound(name).await?;
            scene.pod(name, name, SLEEPS, json!({}))?;
            scene.told(name, words).await?;
        }

        // one of the pod's own, with which it goes
        fs::create_dir(disk.join("own"))?;
        scene.local("own", &disk.join("own"), json!({"storageClassName": CLASS}))?;
        let template = json!({"spec": {
            "accessModes": ["ReadWriteOnce"], "storageClassName": CLASS, "resources": {"requests": {"storage": "1Gi"}},
        }});
        let own = json!([{"name": "v", "ephemeral": {"volumeClaimTemplate": template}}]);
        scene.pod(
            "owner",
            "",
            "echo own > /v/file; sleep 1000",
            json!({"volumes": own, "nodeName": null}),
        )?;
        scene.member.wait_ready("owner").await?;
        // somebody else's of that name is not taken
        scene.local("other", &disk.join("own"), json!({}))?;
        scene.apply(json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "thief-v"}, "spec": {
            "accessModes": ["ReadWriteOnce"], "storageClassName": "", "volumeName": "other", "resources": {"requests": {"storage": "1Gi"}},
        }}))?;
        scene.pod("thief", "", SLEEPS, json!({"volumes": own}))?;
        scene
            .told(
                "thief",
                "PVC default/thief-v was not created for pod default/thief (pod is not owner)",
            )
            .await?;

        for name in ["early", "odd", "away", "owner", "thief"] {
            scene.delete("pod", name)?;
        }
        ensure!(fs::read_to_string(disk.join("own/file"))? == "own\n");
        scene
            .member
            .until("the pod's own claim goes with it", || {
                Ok(!server.ask(&["get", "pvc", "owner-v"], "")?.ok)
            })
            .await?;
        scene.end()
    })
}

#[test]
fn a_volume_is_mounted_as_its_pod_and_itself_say_pv_02() -> Result<()> {
    Node::test(async |node| {
        let scene = Scene::start(node).await?;
        let disk = node.volume("disk")?;
        fs::create_dir(disk.join("part"))?;
        fs::write(disk.join("part/file"), "within\n")?;
        fs::set_permissions(disk.join("part/file"), fs::Permissions::from_mode(0o600))?;
        scene.local(
            "disk",
            &disk,
            json!({"mountOptions": ["noexec"], "accessModes": ["ReadWriteMany"]}),
        )?;
        scene.claim("disk", json!({"accessModes": ["ReadWriteMany"]}))?;
        scene.bound("disk").await?;
        // with a group, and as nobody of importance
        let context = json!({"fsGroup": 4321, "runAsUser": 1234, "runAsGroup": 1234});
        let mounts = json!([
            {"name": "v", "mountPath": "/v"},
            {"name": "v", "mountPath": "/part", "subPath": "part", "readOnly": true},
        ]);
        let containers = json!([{"name": "a", "image": "busybox", "command": ["sh", "-c", SLEEPS], "volumeMounts": mounts}]);
        scene.pod(
            "group",
            "disk",
            "",
            json!({"securityContext": context, "containers": containers}),
        )?;
        scene.member.wait_ready("group").await?;
        let said = scene.exec(
            "group",
            "cat /part/file; echo more >> /v/part/file && cp /bin/busybox /v/prog && chmod +x /v/prog; /v/prog true 2>&1; touch /part/x 2>&1; true",
        )?;
        ensure!(
            said.starts_with("within\n")
                && said.contains("Permission denied")
                && said.contains("Read-only file system"),
            "{said}"
        );
        let file = fs::metadata(disk.join("part/file"))?;
        ensure!(
            (file.gid(), file.mode() & 0o777) == (4321, 0o660),
            "{file:?}"
        );
        // what is made in it is the group's
        ensure!(fs::metadata(disk.join("prog"))?.gid() == 4321);
        // another that only reads, at the same time
        let only = json!([{"name": "v", "persistentVolumeClaim": {"claimName": "disk", "readOnly": true}}]);
        scene.pod("reader", "disk", SLEEPS, json!({"volumes": only}))?;
        scene.member.wait_ready("reader").await?;
        let said = scene.exec("reader", "cat /v/part/file; touch /v/x 2>&1; true")?;
        ensure!(
            said.starts_with("within\nmore\n") && said.contains("Read-only file system"),
            "{said}"
        );

        // of one pod at a time: the second has it after the first, though that is still to be seen
        let once = json!({"accessModes": ["ReadWriteOncePod"]});
        scene.volume(
            "once",
            json!({"hostPath": {"path": disk, "type": "Directory"}}),
            once.clone(),
        )?;
        scene.claim("once", once)?;
        scene.bound("once").await?;
        let ends = json!({"restartPolicy": "Never"});
        scene.pod(
            "first",
            "once",
            "until [ -e /v/go ]; do sleep 0.1; done",
            ends,
        )?;
        scene.member.wait_ready("first").await?;
        scene.pod("second", "once", SLEEPS, json!({}))?;
        scene
            .told("second", "volume once uses the ReadWriteOncePod access mode and is already in use by another pod")
            .await?;
        fs::write(disk.join("go"), "")?;
        scene.member.wait_ready("second").await?;
        scene
            .member
            .wait("pod", "first", "done", |it| {
                it["status"]["phase"] == "Succeeded"
            })
            .await?;

        for name in ["group", "reader", "first", "second"] {
            scene.delete("pod", name)?;
        }
        ensure!(disk.join("prog").exists() && disk.join("part/file").exists());
        scene.end()
    })
}

#[test]
fn a_kubelet_that_is_killed_leaves_nothing_mounted_and_loses_no_file_of_a_volume_pv_01()
-> Result<()> {
    Node::test(async |node| {
        let mut scene = Scene::start(node).await?;
        let disk = node.volume("disk")?;
        scene.local("disk", &disk, json!({}))?;
        scene.claim("disk", json!({}))?;
        scene.bound("disk").await?;
        scene.pod(
            "writer",
            "disk",
            "echo kept > /v/file; sleep 1000",
            json!({}),
        )?;
        scene.pod("reader", "disk", SLEEPS, json!({}))?;
        for name in ["writer", "reader"] {
            scene.member.wait_ready(name).await?;
        }
        let before = scene.member.server.json(&["get", "pod", "reader"])?;
        let place = |uid: &str| {
            let pod = scene.member.kubelet.pods_dir().join(uid);
            pod.join("volumes/kubernetes.io~local-volume/disk")
        };
        let (writer, reader) = (place(&scene.uid("writer")?), place(&scene.uid("reader")?));
        scene.member.kubelet.kill_9();
        ensure!(mounts()?.contains(&writer) && mounts()?.contains(&reader));
        // One is deleted meanwhile; of the other somebody has unmounted the volume, and its container has ended.
        let server = &scene.member.server;
        server.kubectl(&["delete", "pod", "writer", "--wait=false"])?;
        nix::mount::umount2(&reader, nix::mount::MntFlags::MNT_DETACH)?;
        scene.member.kubelet.spawn()?;
        scene
            .member
            .until("the one is gone", || {
                Ok(!server.ask(&["get", "pod", "writer"], "")?.ok)
            })
            .await?;
        scene
            .member
            .until("nothing of it is left", || Ok(!writer.exists()))
            .await?;
        scene
            .member
            .until("the other's is mounted again", || {
                Ok(mounts()?.contains(&reader))
            })
            .await?;
        let after = server.json(&["get", "pod", "reader"])?;
        ensure!(
            after["status"]["containerStatuses"][0]["restartCount"] == 0
                && after["status"]["containerStatuses"][0]["containerID"]
                    == before["status"]["containerStatuses"][0]["containerID"],
            "{after:#}"
        );
        ensure!(fs::read_to_string(disk.join("file"))? == "kept\n");
        // In the midst of making and of taking away, wherever that is.
        for round in 0..3 {
            let name = format!("torn-{round}");
            scene.pod(
                &name,
                "disk",
                &format!("echo {round} > /v/{name}; sleep 1000"),
                json!({}),
            )?;
            scene.member.kubelet.kill_9();
            scene.member.kubelet.spawn()?;
            scene.member.wait_ready(&name).await?;
            scene
                .member
                .server
                .kubectl(&["delete", "pod", &name, "--wait=false"])?;
            scene.member.kubelet.kill_9();
            scene.member.kubelet.spawn()?;
            let server = &scene.member.server;
            scene
                .member
                .until("it is gone", || {
                    Ok(!server.ask(&["get", "pod", &name], "")?.ok)
                })
                .await?;
            ensure!(fs::read_to_string(disk.join(&name))? == format!("{round}\n"));
        }
        scene.delete("pod", "reader")?;
        scene
            .member
            .until("nothing of any is left", || {
                Ok(fs::read_dir(scene.member.kubelet.pods_dir())?
                    .next()
                    .is_none())
            })
            .await?;
        ensure!(fs::read_to_string(disk.join("file"))? == "kept\n");
        scene.end()
    })
}

/// A file as a device; let go when it is dropped.
struct Loop(PathBuf);

impl Loop {
    fn of(file: &Path) -> Result<Self> {
        fs::File::create(file)?.set_len(32 << 20)?;
        let shown = Command::new("losetup")
            .args(["--find", "--show"])
            .arg(file)
            .output()?;
        ensure!(
            shown.status.success(),
            "losetup (package mount): {}",
            String::from_utf8_lossy(&shown.stderr)
        );
        Ok(Self(String::from_utf8(shown.stdout)?.trim().into()))
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = run("losetup", &["--detach", &self.0.display().to_string()]);
    }
}

#[test]
fn a_device_is_formatted_if_blank_mounted_once_or_handed_in_as_it_is_vm_02() -> Result<()> {
    Node::test(async |node| {
        let scene = Scene::start(node).await?;
        let disk = node.volume("images")?;
        let (device, raw) = (Loop::of(&disk.join("disk"))?, Loop::of(&disk.join("raw"))?);
        scene.local("disk", &device.0, json!({"mountOptions": ["noatime"]}))?;
        scene.local("raw", &raw.0, json!({"volumeMode": "Block"}))?;
        scene.claim("disk", json!({}))?;
        scene.claim("raw", json!({"volumeMode": "Block"}))?;
        for name in ["disk", "raw"] {
            scene.bound(name).await?;
        }
        let context = json!({"securityContext": {"fsGroup": 4321}});
        scene.pod(
            "one",
            "disk",
            "echo kept > /v/file; sleep 1000",
            context.clone(),
        )?;
        scene.pod("two", "disk", SLEEPS, context)?;
        for name in ["one", "two"] {
            scene.member.wait_ready(name).await?;
        }
        let kubelet = scene.member.kubelet.pods_dir();
        let global = kubelet.with_file_name("plugins/kubernetes.io/local-volume/mounts/disk");
        ensure!(mounts()?.contains(&global), "{:#?}", mounts()?);
        scene
            .member
            .until("the one has written", || {
                Ok(scene.exec(
                    "two",
                    "cat /v/file 2>/dev/null; stat -c %g /v; stat -f -c %T /v",
                )? == "kept\n4321\next2/ext3\n")
            })
            .await?;
        scene.delete("pod", "one")?;
        ensure!(
            mounts()?.contains(&global),
            "it was unmounted under the other's feet"
        );
        scene.delete("pod", "two")?;
        scene
            .member
            .until("who was the last has unmounted it", || Ok(!global.exists()))
            .await?;
        // what is on it is not formatted again
        scene.pod("three", "disk", SLEEPS, json!({}))?;
        scene.member.wait_ready("three").await?;
        ensure!(scene.exec("three", "cat /v/file")? == "kept\n");
        // how full it is, is told by the claim's name, and is none of the pod's own use of the disk
        scene.exec("three", "head -c 4000000 /dev/zero > /v/large; sync")?;
        let fs = statvfs(&global)?;
        let mut last = Value::Null;
        let told = scene.member.until("the claim is told of", || {
            last = summary(&scene.member)?["pods"][0].take();
            let volumes = last["volume"].as_array().into_iter().flatten();
            let Some(volume) = volumes.into_iter().find(|it| it["name"] == "v") else {
                return Ok(false);
            };
            let used = (fs.f_blocks - fs.f_bfree) * fs.f_frsize;
            Ok(
                volume["pvcRef"] == json!({"name": "disk", "namespace": "default"})
                    && volume["capacityBytes"] == fs.f_blocks * fs.f_frsize
                    && volume["availableBytes"] == fs.f_bavail * fs.f_frsize
                    && volume["usedBytes"] == used
                    && volume["inodesFree"] == fs.f_ffree
                    && last["ephemeral-storage"]["usedBytes"].as_u64() < Some(used),
            )
        });
        let told = told.await;
        told.with_context(|| format!("{last:#}"))?;
        // nor is what is on another, which is told
        run("mkfs.ext4", &["-q", "-F", &raw.0.display().to_string()])?;
        scene.volume(
            "wrong",
            json!({"local": {"path": raw.0, "fsType": "xfs"}, "nodeAffinity": on(NODE)}),
            json!({}),
        )?;
        scene.claim("wrong", json!({}))?;
        scene.bound("wrong").await?;
        scene.pod("wrong", "wrong", SLEEPS, json!({}))?;
        scene
            .told("wrong", "MountVolume.MountDevice failed for volume \"wrong\" : failed to mount the volume as \"xfs\", it already contains ext4")
            .await?;

        // as it is
        let containers = json!([{
            "name": "a", "image": "busybox", "command": ["sh", "-c", SLEEPS],
            "volumeDevices": [{"name": "v", "devicePath": "/dev/disk"}],
        }]);
        scene.pod("raw", "raw", "", json!({"containers": containers}))?;
        scene.member.wait_ready("raw").await?;
        let said = scene.exec("raw", "[ -b /dev/disk ] && echo raw | dd of=/dev/disk bs=512 seek=9 conv=fsync 2>/dev/null && dd if=/dev/disk bs=512 skip=9 count=1 2>/dev/null | head -n 1")?;
        ensure!(said == "raw\n", "{said}");
        let read = fs::read(disk.join("raw"))?;
        ensure!(
            read[9 * 512..].starts_with(b"raw\n"),
            "it was written elsewhere"
        );
        let link = kubelet
            .join(scene.uid("raw")?)
            .join("volumeDevices/kubernetes.io~local-volume/raw");
        ensure!(fs::read_link(&link)? == raw.0, "{link:?}");
        // a device is no mount
        scene.pod("mounts", "raw", SLEEPS, json!({}))?;
        scene
            .told(
                "mounts",
                "volume v has volumeMode Block, but is specified in volumeMounts",
            )
            .await?;
        for name in ["three", "wrong", "raw", "mounts"] {
            scene.delete("pod", name)?;
        }
        scene
            .member
            .until("nothing of any is left", || {
                Ok(fs::read_dir(scene.member.kubelet.pods_dir())?
                    .next()
                    .is_none()
                    && !global.exists())
            })
            .await?;
        scene.end()
    })
}
