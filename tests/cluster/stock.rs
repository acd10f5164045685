//! Stock kube-controller-manager and kube-scheduler, where they are on PATH, as themselves at our API server, with all that they do by default. The node is
//! hollow: where a kubelet would say how a pod is, this does.

use std::{
    io::Write,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use berth_tests::{
    cluster::{Kubectl, Server},
    machine, stock,
    stock::Stock,
};
use serde_json::{Value, json};

const WITHIN: Duration = Duration::from_secs(100);
const NODE: &str = "n1";
/// The manager's own port, in a network of the test's.
const MANAGER: &str = "https://127.0.0.1:10257";
/// Pods of it end well.
const ENDS: &str = "example/ends:1";
/// What is asked for here.
const KNOWN: &[&str] = &["exceeded quota", "because it is being terminated"];

struct Cluster {
    programs: [Stock; 2],
    server: Server,
}

fn with_cluster(work: impl FnOnce(&Cluster) -> Result<()>) -> Result<()> {
    if !stock::has(&stock::CONTROL_PLANE) {
        return Ok(());
    }
    machine::isolate()?;
    let cluster = Cluster::start()?;
    work(&cluster).with_context(|| cluster.last_words())?;
    for program in &cluster.programs {
        program.is_content_but(KNOWN)?;
    }
    Ok(())
}

impl Cluster {
    fn start() -> Result<Self> {
        let server = Server::start("memory")?;
        let cluster = Self {
            programs: stock::control_plane(&server)?,
            server,
        };
        cluster.create(&json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE, "labels": {"kubernetes.io/hostname": NODE}}}))?;
        let room = json!({"cpu": "8", "memory": "16Gi", "pods": "110"});
        let status = json!({
            "capacity": room, "allocatable": room,
            "conditions": [{"type": "Ready", "status": "True", "reason": "Hollow", "lastHeartbeatTime": "2026-01-01T00:00:00Z", "lastTransitionTime": "2026-01-01T00:00:00Z"}],
        });
        cluster.say("default", "node", NODE, &status)?;
        for name in stock::CONTROL_PLANE {
            let lease = ["-n", "kube-system", "get", "lease", name];
            cluster.until(&format!("{name} leads"), &lease, |it| {
                it["spec"]["holderIdentity"].is_string()
            })?;
        }
        Ok(cluster)
    }

    fn last_words(&self) -> String {
        let words: Vec<String> = self.programs.iter().map(Stock::last_words).collect();
        format!(
            "{}\n---- the server\n{}",
            words.join("\n"),
            self.server.log()
        )
    }

    fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        self.server.kubectl(arguments)
    }

    fn create(&self, object: &Value) -> Result<()> {
        let object = object.to_string();
        self.server
            .kubectl_with(&["create", "-f", "-"], &object)
            .map(drop)
    }

    fn say(&self, namespace: &str, kind: &str, name: &str, status: &Value) -> Result<()> {
        let patch = json!({"status": status}).to_string();
        #[rustfmt::skip]
        let arguments = ["-n", namespace, "patch", kind, name, "--subresource=status", "--type=merge", "-p", &patch];
        self.kubectl(&arguments).map(drop)
    }

    /// What a kubelet does for pods that are bound.
    fn drive(&self) -> Result<()> {
        let pods = self.server.json(&["get", "pods", "--all-namespaces"])?;
        for (at, pod) in pods["items"].as_array().into_iter().flatten().enumerate() {
            let text = |path: &str| {
                pod.pointer(path)
                    .and_then(Value::as_str)
                    .unwrap_or_default()
            };
            let (namespace, name) = (text("/metadata/namespace"), text("/metadata/name"));
            if pod["metadata"]["deletionTimestamp"].is_string() {
                let args = [
                    "-n",
                    namespace,
                    "delete",
                    "pod",
                    name,
                    "--force",
                    "--grace-period=0",
                ];
                // it may be gone by now
                self.server.ask(
                    &[&args[..], &["--ignore-not-found", "--wait=false"]].concat(),
                    "",
                )?;
            } else if text("/spec/nodeName") == NODE && text("/status/phase") == "Pending" {
                let now = text("/metadata/creationTimestamp");
                let status = match text("/spec/containers/0/image") {
                    ENDS => json!({"phase": "Succeeded", "containerStatuses": [{
                        "name": "c", "image": ENDS, "imageID": "", "ready": false, "restartCount": 0,
                        "state": {"terminated": {"exitCode": 0, "finishedAt": now}},
                    }]}),
                    _ => {
                        let address = format!("10.244.0.{}", at + 2);
                        json!({
                            "phase": "Running", "podIP": address, "podIPs": [{"ip": address}],
                            "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": now}],
                        })
                    }
                };
                // so may this
                let patch = json!({"status": status}).to_string();
                #[rustfmt::skip]
                self.server.ask(&["-n", namespace, "patch", "pod", name, "--subresource=status", "--type=merge", "-p", &patch], "")?;
            }
        }
        Ok(())
    }

    /// Waits until what kubectl gets is as it is to be. `arguments` have no `-o`.
    fn until(&self, what: &str, arguments: &[&str], is: impl Fn(&Value) -> bool) -> Result<Value> {
        let until = Instant::now() + machine::patient(WITHIN);
        let all = [arguments, &["-o", "json"]].concat();
        loop {
            let said = self.server.ask(&all, "")?;
            let found: Value = serde_json::from_str(&said.stdout).unwrap_or_default();
            if said.ok && is(&found) {
                return Ok(found);
            }
            if Instant::now() > until {
                bail!("not within {WITHIN:?}: {what}: {}{found:#}", said.stderr);
            }
            self.drive()?;
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    fn until_gone(&self, arguments: &[&str]) -> Result<()> {
        let gone = [arguments, &["--ignore-not-found"]].concat();
        let until = Instant::now() + machine::patient(WITHIN);
        while !self.kubectl(&gone)?.is_empty() {
            ensure!(Instant::now() < until, "still there: {arguments:?}");
            self.drive()?;
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(())
    }

    /// The HTTP status of the manager's own server for whoever has `token`.
    fn manager(&self, path: &str, token: &str) -> Result<String> {
        let output = Command::new("curl")
            .args([
                "-sk",
                "--max-time",
                "20",
                "-o",
                "/dev/null",
                "-w",
                "%{http_code}",
            ])
            .args(["-H", &format!("Authorization: Bearer {token}")])
            .arg(format!("{MANAGER}{path}"))
            .output()?;
        Ok(String::from_utf8(output.stdout)?)
    }
}

fn decoded(base64: &str) -> Result<String> {
    let mut child = Command::new("base64")
        .arg("-d")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    child
        .stdin
        .take()
        .context("no stdin")?
        .write_all(base64.as_bytes())?;
    Ok(String::from_utf8(child.wait_with_output()?.stdout)?)
}

fn template(app: &str, image: &str) -> Value {
    json!({
        "metadata": {"labels": {"app": app}},
        "spec": {"terminationGracePeriodSeconds": 0, "containers": [{"name": "c", "image": image, "resources": {"requests": {"cpu": "10m"}}}]},
    })
}

fn workload(kind: &str, name: &str, replicas: Option<u32>) -> Value {
    let mut spec = json!({"selector": {"matchLabels": {"app": name}}, "template": template(name, "example/runs:1")});
    if let Some(replicas) = replicas {
        spec["replicas"] = replicas.into();
    }
    json!({"apiVersion": "apps/v1", "kind": kind, "metadata": {"name": name}, "spec": spec})
}

fn condition<'a>(object: &'a Value, kind: &str) -> &'a str {
    let all = object["status"]["conditions"].as_array();
    let one = all.into_iter().flatten().find(|one| one["type"] == kind);
    one.and_then(|one| one["status"].as_str()).unwrap_or("")
}

#[test]
fn stock_controllers_and_scheduler_keep_workloads() -> Result<()> {
    with_cluster(|cluster| {
        let node = cluster.until("the node has its network", &["get", "node", NODE], |it| {
            it["spec"]["podCIDR"].is_string()
        })?;
        ensure!(node["spec"]["taints"].is_null(), "{node:#}");

        cluster.create(&workload("Deployment", "web", Some(3)))?;
        cluster.kubectl(&[
            "expose",
            "deployment",
            "web",
            "--port=80",
            "--target-port=8080",
        ])?;
        let ready = |count: u64| {
            move |it: &Value| {
                it["status"]["availableReplicas"] == count
                    && it["status"]["updatedReplicas"] == count
            }
        };
        let deployment = ["get", "deployment", "web"];
        cluster.until("three are there", &deployment, ready(3))?;
        let of_web = ["-l", "kubernetes.io/service-name=web"];
        cluster.until(
            "the service has them",
            &[&["get", "endpointslices"], &of_web[..]].concat(),
            |it| {
                it["items"][0]["endpoints"]
                    .as_array()
                    .is_some_and(|all| all.len() == 3)
            },
        )?;
        cluster.until("… in both forms", &["get", "endpoints", "web"], |it| {
            it["subsets"][0]["addresses"]
                .as_array()
                .is_some_and(|all| all.len() == 3)
        })?;

        cluster.kubectl(&["set", "image", "deployment/web", "c=example/runs:2"])?;
        cluster.until("it is rolled out", &deployment, |it| {
            it["status"]["observedGeneration"] == it["metadata"]["generation"]
                && ready(3)(it)
                && it["status"]["replicas"] == 3
        })?;
        cluster.kubectl(&["rollout", "undo", "deployment/web"])?;
        cluster.until("… and back", &["get", "rs", "-l", "app=web"], |it| {
            let sets = it["items"].as_array().into_iter().flatten();
            let mut live = sets.filter(|set| set["spec"]["replicas"] != 0);
            live.next().is_some_and(|set| {
                set["spec"]["template"]["spec"]["containers"][0]["image"] == "example/runs:1"
                    && set["status"]["readyReplicas"] == 3
            }) && live.next().is_none()
        })?;

        // who may be evicted
        cluster.kubectl(&[
            "create",
            "pdb",
            "web",
            "--selector=app=web",
            "--min-available=3",
        ])?;
        cluster.until("none may be disrupted", &["get", "pdb", "web"], |it| {
            it["status"]["expectedPods"] == 3
                && it["status"]["currentHealthy"] == 3
                && it["status"]["disruptionsAllowed"] == 0
        })?;
        let pods = cluster.server.json(&[
            "get",
            "pods",
            "-l",
            "app=web",
            "--field-selector=status.phase=Running",
        ])?;
        let name = pods["items"][0]["metadata"]["name"]
            .as_str()
            .context("no pod")?;
        let eviction =
            json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name}});
        let path = format!("/api/v1/namespaces/default/pods/{name}/eviction");
        let said = cluster.server.refused(
            &["create", "--raw", &path, "-f", "-"],
            &eviction.to_string(),
        )?;
        ensure!(
            said.contains("Cannot evict pod as it would violate the pod's disruption budget"),
            "{said}"
        );

        cluster.kubectl(&[
            "autoscale",
            "deployment",
            "web",
            "--min=1",
            "--max=5",
            "--cpu=50%",
        ])?;
        cluster.until(
            "the autoscaler is looked at",
            &["get", "hpa", "web"],
            |it| condition(it, "AbleToScale") == "True",
        )?;
        cluster.kubectl(&["delete", "hpa", "web"])?;

        cluster.create(&workload("DaemonSet", "agent", None))?;
        cluster.until("the node has one", &["get", "ds", "agent"], |it| {
            it["status"]["numberReady"] == 1
        })?;

        cluster.create(&json!({
            "apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": "disk"},
            "spec": {"capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"], "hostPath": {"path": "/disk"}, "storageClassName": "by-hand"},
        }))?;
        let mut set = workload("StatefulSet", "db", Some(1));
        set["spec"]["serviceName"] = "db".into();
        set["spec"]["template"]["spec"]["containers"][0]["volumeMounts"] =
            json!([{"name": "data", "mountPath": "/data"}]);
        set["spec"]["volumeClaimTemplates"] = json!([{"metadata": {"name": "data"}, "spec": {
            "accessModes": ["ReadWriteOnce"], "storageClassName": "by-hand", "resources": {"requests": {"storage": "1Gi"}},
        }}]);
        cluster.create(&set)?;
        cluster.until("the first is ready", &["get", "sts", "db"], |it| {
            it["status"]["readyReplicas"] == 1
        })?;
        let claim = cluster.until("its claim is bound", &["get", "pvc", "data-db-0"], |it| {
            it["status"]["phase"] == "Bound"
        })?;
        ensure!(claim["spec"]["volumeName"] == "disk", "{claim:#}");

        // GC: what is owned goes with it, before it, or stays
        cluster.kubectl(&["delete", "sts", "db", "--cascade=orphan"])?;
        cluster.kubectl(&[
            "delete",
            "deployment",
            "web",
            "--cascade=foreground",
            "--wait=false",
        ])?;
        cluster.kubectl(&["delete", "ds", "agent", "--wait=false"])?;
        for gone in ["deployment/web", "ds/agent"] {
            cluster.until_gone(&["get", gone, "-o", "name"])?;
        }
        cluster.until_gone(&["get", "rs,pods", "-l", "app in (web, agent)", "-o", "name"])?;
        let orphan = cluster.server.json(&["get", "pod", "db-0"])?;
        ensure!(
            orphan["metadata"]["ownerReferences"].is_null(),
            "{orphan:#}"
        );
        Ok(())
    })
}

#[test]
fn stock_controllers_keep_jobs_namespaces_quotas_and_identities() -> Result<()> {
    with_cluster(|cluster| {
        let spec = json!({"restartPolicy": "Never", "containers": [{"name": "c", "image": ENDS}]});
        let job = json!({"backoffLimit": 1, "completions": 2, "template": {"spec": spec}});
        cluster.create(&json!({"apiVersion": "batch/v1", "kind": "CronJob", "metadata": {"name": "often"}, "spec": {"schedule": "* * * * *", "jobTemplate": {"spec": job}}}))?;
        let mut short = job.clone();
        short["ttlSecondsAfterFinished"] = 0.into();
        cluster.create(&json!({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "once"}, "spec": job}))?;
        cluster.create(&json!({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "short"}, "spec": short}))?;
        cluster.until("the job is done", &["get", "job", "once"], |it| {
            condition(it, "Complete") == "True" && it["status"]["succeeded"] == 2
        })?;
        cluster.until_gone(&["get", "job", "short", "-o", "name"])?;

        // what a namespace begins with, and how it ends
        cluster.kubectl(&["create", "namespace", "team"])?;
        cluster.until(
            "the account is there",
            &["-n", "team", "get", "sa", "default"],
            |_| true,
        )?;
        let roots = cluster.until(
            "so is the CA",
            &["-n", "team", "get", "cm", "kube-root-ca.crt"],
            |_| true,
        )?;
        ensure!(
            roots["data"]["ca.crt"]
                .as_str()
                .is_some_and(|pem| pem.contains("BEGIN CERTIFICATE")),
            "{roots}"
        );
        cluster.kubectl(&[
            "-n",
            "team",
            "create",
            "quota",
            "few",
            "--hard=pods=1,configmaps=5,count/deployments.apps=2",
        ])?;
        cluster.kubectl(&[
            "-n",
            "team",
            "create",
            "deployment",
            "two",
            "--image=example/runs:1",
            "--replicas=2",
        ])?;
        cluster.until(
            "one pod is allowed",
            &["-n", "team", "get", "quota", "few"],
            |it| {
                let used = &it["status"]["used"];
                used["pods"] == "1"
                    && used["configmaps"] == "1"
                    && used["count/deployments.apps"] == "1"
            },
        )?;
        cluster.until(
            "the other one isn't",
            &["-n", "team", "get", "deployment", "two"],
            |it| {
                condition(it, "ReplicaFailure") == "True" && it["status"]["availableReplicas"] == 1
            },
        )?;
        cluster.kubectl(&["delete", "namespace", "team", "--wait=false"])?;
        cluster.until_gone(&["get", "namespace", "team", "-o", "name"])?;

        // a custom kind is found by those who look for all kinds
        cluster.create(&json!({
            "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": "ships.example.com"},
            "spec": {"group": "example.com", "scope": "Namespaced", "names": {"plural": "ships", "singular": "ship", "kind": "Ship", "listKind": "ShipList"},
                "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}}]},
        }))?;
        cluster.until("it is served", &["get", "crd", "ships.example.com"], |it| {
            condition(it, "Established") == "True"
        })?;
        cluster.create(
            &json!({"apiVersion": "example.com/v1", "kind": "Ship", "metadata": {"name": "owner"}}),
        )?;
        let owner = cluster.server.json(&["get", "ship", "owner"])?;
        cluster.create(&json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "owned", "ownerReferences": [
            {"apiVersion": "example.com/v1", "kind": "Ship", "name": "owner", "uid": owner["metadata"]["uid"]},
        ]}}))?;
        cluster.kubectl(&["delete", "ship", "owner"])?;
        cluster.until_gone(&["get", "cm", "owned", "-o", "name"])?;

        // a Secret is given a token, which holds as long as the Secret is there
        cluster.create(&json!({
            "apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/service-account-token",
            "metadata": {"name": "kept", "annotations": {"kubernetes.io/service-account.name": "default"}},
        }))?;
        let kept = cluster.until("it has a token", &["get", "secret", "kept"], |it| {
            it["data"]["token"].is_string() && it["data"]["ca.crt"].is_string()
        })?;
        let token = kept["data"]["token"].as_str().unwrap_or_default();
        let path = cluster.server.dir().join("kept.kubeconfig");
        let token = decoded(token)?;
        cluster
            .server
            .write_kubeconfig(&path, &json!({"token": token}))?;
        let its = Kubectl {
            kubeconfig: path,
            ..cluster.server.client()
        };
        let who = its.kubectl(&[
            "auth",
            "whoami",
            "-o",
            "jsonpath={.status.userInfo.username}",
        ])?;
        ensure!(who == "system:serviceaccount:default:default", "{who}");
        cluster.kubectl(&["delete", "secret", "kept"])?;
        let refused = its.refused(&["auth", "whoami"], "")?;
        ensure!(refused.contains("Unauthorized"), "{refused}");

        // who asks the manager itself is known and judged by this server
        cluster.kubectl(&["create", "sa", "reader"])?;
        let token = cluster.kubectl(&["create", "token", "reader"])?;
        let configuration = |cluster: &Cluster| cluster.manager("/configz", token.trim());
        ensure!(cluster.manager("/healthz", token.trim())? == "200");
        ensure!(
            configuration(cluster)? == "403",
            "{}",
            configuration(cluster)?
        );
        cluster.kubectl(&[
            "create",
            "clusterrole",
            "configz",
            "--verb=get",
            "--non-resource-url=/configz,/metrics",
        ])?;
        cluster.kubectl(&[
            "create",
            "clusterrolebinding",
            "configz",
            "--clusterrole=configz",
            "--serviceaccount=default:reader",
        ])?;
        // a refusal is remembered for 10 s
        let until = Instant::now() + machine::patient(WITHIN);
        while configuration(cluster)? != "200" {
            ensure!(Instant::now() < until, "still {}", configuration(cluster)?);
            std::thread::sleep(Duration::from_millis(200));
        }

        cluster.until("the clock has made a job", &["get", "jobs"], |it| {
            let jobs = it["items"].as_array().into_iter().flatten();
            jobs.filter(|job| job["metadata"]["ownerReferences"][0]["kind"] == "CronJob")
                .any(|job| condition(job, "Complete") == "True")
        })?;
        Ok(())
    })
}

/// As kube-scheduler leaves a pod behind, and as upstream's server takes its binding.
#[test]
fn a_bound_pod_has_its_nodes_zone_and_no_hint_any_more() -> Result<()> {
    let server = Server::start("memory")?;
    let create = |object: Value| {
        let object = object.to_string();
        server
            .kubectl_with(&["create", "-f", "-"], &object)
            .map(drop)
    };
    let (zone, region) = (
        "topology.kubernetes.io/zone",
        "topology.kubernetes.io/region",
    );
    create(json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": NODE, "labels": {zone: "a", region: "r", "disk": "fast"}},
    }))?;
    let pod = |name: &str, node: Value| {
        json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {zone: "elsewhere", "app": "x"}},
            "spec": {"nodeName": node, "containers": [{"name": "c", "image": "example/c:1"}]},
        })
    };
    create(pod("made", NODE.into()))?;
    create(pod("bound", Value::Null))?;
    create(pod("nowhere", "not-yet-there".into()))?;
    #[rustfmt::skip]
    server.kubectl(&[
        "patch", "pod", "bound", "--subresource=status", "--type=merge", "-p", "{\"status\":{\"nominatedNodeName\":\"n2\"}}",
    ])?;
    let bind = |metadata: Value| {
        let binding = json!({"apiVersion": "v1", "kind": "Binding", "metadata": metadata, "target": {"kind": "Node", "name": NODE}});
        let path = "/api/v1/namespaces/default/pods/bound/binding";
        server.ask(&["create", "--raw", path, "-f", "-"], &binding.to_string())
    };
    let late = bind(json!({"name": "bound", "resourceVersion": "1"}))?;
    ensure!(
        !late.ok && late.stderr.contains("ResourceVersion in precondition: 1"),
        "{late:?}"
    );
    let said = bind(json!({"name": "bound", "labels": {"slot": "7"}}))?;
    ensure!(said.ok, "{said:?}");
    let of = |name: &str| server.json(&["get", "pod", name]);
    for (name, labels) in [
        ("made", json!({zone: "a", region: "r", "app": "x"})),
        (
            "bound",
            json!({zone: "a", region: "r", "app": "x", "slot": "7"}),
        ),
        ("nowhere", json!({zone: "elsewhere", "app": "x"})),
    ] {
        let pod = of(name)?;
        ensure!(pod["metadata"]["labels"] == labels, "{pod:#}");
    }
    let bound = of("bound")?;
    ensure!(
        bound["spec"]["nodeName"] == NODE && bound["status"]["nominatedNodeName"].is_null(),
        "{bound:#}"
    );
    Ok(())
}
