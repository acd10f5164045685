//! The stock kubelet, where it is on PATH, over our API server and our runtime: it begins with a token, and everything of it that speaks to an API server is used.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use berth_tests::{
    Node, cgroup,
    cluster::{Kubectl, Server},
    identity::run,
    machine::patient,
    stock,
    stock::Stock,
};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde_json::{Value, json};

use crate::{
    member::{ADDRESS, LINK, NODE, PORT, cluster, condition},
    scene::container,
};

/// How long anything may take that is not told to take longer. It looks at volumes every 5 s here, and a container that fails waits 10 s.
const LIMIT: Duration = Duration::from_secs(90);
/// What it sets, unless it finds it so: these are the machine's, so it finds files of the test's.
const SYSCTLS: [(&str, &str); 6] = [
    ("vm/overcommit_memory", "1"),
    ("vm/panic_on_oom", "0"),
    ("kernel/panic", "10"),
    ("kernel/panic_on_oops", "1"),
    ("kernel/keys/root_maxkeys", "1000000"),
    ("kernel/keys/root_maxbytes", "25000000"),
];
/// Directories that it makes wherever its own are: for plugins of devices, for links to logs.
const COVERED: [&str; 2] = ["/var/lib", "/var/log"];
/// Of the bootstrap token.
const TOKEN: (&str, &str) = ("abcdef", "0123456789abcdef");

/// Mounts of the test's; taken away on drop.
struct Covers(Vec<PathBuf>);

impl Covers {
    fn make(dir: &Path) -> Result<Self> {
        let mut covers = Self(Vec::new());
        for path in COVERED {
            let tmpfs = Some("tmpfs");
            mount(tmpfs, path, tmpfs, MsFlags::empty(), None::<&str>).context(path)?;
            covers.0.push(path.into());
        }
        for (name, value) in SYSCTLS {
            let file = dir.join(name.replace('/', "."));
            fs::write(&file, value)?;
            let over = Path::new("/proc/sys").join(name);
            let none = None::<&str>;
            mount(Some(&file), &over, none, MsFlags::MS_BIND, none).context(name)?;
            covers.0.push(over);
        }
        Ok(covers)
    }
}

impl Drop for Covers {
    fn drop(&mut self) {
        for path in self.0.iter().rev() {
            let _ = umount2(path, MntFlags::MNT_DETACH);
        }
    }
}

/// Its pods' cgroup, with what it leaves below.
struct Cgroup(String);

impl Cgroup {
    /// The kubelet wants its root to be there.
    fn make(path: String) -> Result<Self> {
        for root in cgroup::roots() {
            let dir = root.join(path.trim_start_matches('/'));
            fs::create_dir_all(&dir).with_context(|| dir.display().to_string())?;
        }
        Ok(Self(path))
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let until = Instant::now() + Duration::from_secs(3);
        while cgroup::remove(&self.0).is_err() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

struct Cluster {
    kubelet: Stock,
    server: Server,
    manifests: PathBuf,
    cgroup: Cgroup,
    _covers: Covers,
}

impl Cluster {
    /// A node that came with a token, is ready, and whose server's certificate was approved.
    async fn start(node: &Node) -> Result<Self> {
        let server = cluster()?;
        let dir = node.dir.join("stock");
        let at = |name: &str| dir.join(name);
        fs::create_dir_all(at("manifests"))?;
        let covers = Covers::make(&dir)?;
        let cgroup = Cgroup::make(node.own_cgroup_parent("stock"))?;
        let config = json!({
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "address": ADDRESS,
            "port": PORT,
            "healthzPort": 0,
            "authentication": {
                "anonymous": {"enabled": false},
                "webhook": {"enabled": true},
                "x509": {"clientCAFile": server.data().join("pki/ca.crt")},
            },
            "authorization": {"mode": "Webhook"},
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": cgroup.0,
            "failCgroupV1": false,
            "failSwapOn": false,
            "protectKernelDefaults": true,
            "makeIPTablesUtilChains": false,
            "containerRuntimeEndpoint": format!("unix://{}", node.daemon.socket().display()),
            "staticPodPath": at("manifests"),
            "podLogsDir": at("logs"),
            "volumePluginDir": at("plugins"),
            "rotateCertificates": true,
            "serverTLSBootstrap": true,
            "syncFrequency": "5s",
            "nodeStatusUpdateFrequency": "2s",
            // how full the machine's disk is, is no test's affair
            "imageGCHighThresholdPercent": 100,
            "evictionHard": {
                "memory.available": "1Mi", "nodefs.available": "0%", "nodefs.inodesFree": "0%", "imagefs.available": "0%",
                "imagefs.inodesFree": "0%",
            },
        });
        fs::write(at("config.yaml"), config.to_string())?;
        #[rustfmt::skip]
        server.kubectl(&[
            "-n", "kube-system", "create", "secret", "generic", &format!("bootstrap-token-{}", TOKEN.0), "--type", "bootstrap.kubernetes.io/token",
            &format!("--from-literal=token-id={}", TOKEN.0), &format!("--from-literal=token-secret={}", TOKEN.1),
            "--from-literal=usage-bootstrap-authentication=true",
            "--from-literal=auth-extra-groups=system:bootstrappers:kubeadm:default-node-token",
        ])?;
        let token = json!({"token": format!("{}.{}", TOKEN.0, TOKEN.1)});
        server.write_kubeconfig(&at("bootstrap.kubeconfig"), &token)?;
        let flag = |name: &str, value: &dyn std::fmt::Display| format!("--{name}={value}");
        let path = |name: &str| at(name).display().to_string();
        let kubelet = Stock::start(
            "kubelet",
            &[
                flag("config", &path("config.yaml")),
                flag("bootstrap-kubeconfig", &path("bootstrap.kubeconfig")),
                flag("kubeconfig", &path("kubeconfig")),
                flag("cert-dir", &path("pki")),
                flag("root-dir", &path("kubelet")),
                flag("hostname-override", &NODE),
                flag("node-ip", &ADDRESS),
                flag("node-labels", &"disk=fast"),
                flag("v", &2),
            ],
            &node.dir,
        )?;
        let cluster = Self {
            kubelet,
            server,
            manifests: at("manifests"),
            cgroup,
            _covers: covers,
        };
        let ready = |it: &Value| condition(it, "Ready") == "True";
        cluster.wait("node", NODE, "ready", ready).await?;
        cluster.approve_serving().await?;
        Ok(cluster)
    }

    async fn approve_serving(&self) -> Result<()> {
        let mut approved = false;
        self.until("its server's certificate is signed", || {
            let all = self.server.json(&["get", "csr"])?;
            let all = all["items"].as_array().into_iter().flatten();
            let mut asked =
                all.filter(|one| one["spec"]["signerName"] == "kubernetes.io/kubelet-serving");
            let Some(one) = asked.next() else {
                return Ok(false);
            };
            let name = one["metadata"]["name"].as_str().context("no name")?;
            if !approved {
                self.server.kubectl(&["certificate", "approve", name])?;
                approved = true;
            }
            Ok(one["status"]["certificate"].is_string())
        })
        .await?;
        let healthz = format!("/api/v1/nodes/{NODE}/proxy/healthz");
        self.until("it is shown", || {
            let said = self.server.ask(&["get", "--raw", &healthz], "")?;
            Ok(said.stdout == "ok")
        })
        .await
    }

    async fn until(&self, what: &str, mut is: impl FnMut() -> Result<bool>) -> Result<()> {
        let deadline = Instant::now() + patient(LIMIT);
        while !is()? {
            if Instant::now() > deadline {
                bail!(
                    "in vain waited until {what}\n{}\n---- the server\n{}",
                    self.kubelet.last_words(),
                    self.server.log()
                );
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        Ok(())
    }

    async fn wait(
        &self,
        kind: &str,
        name: &str,
        what: &str,
        is: impl Fn(&Value) -> bool,
    ) -> Result<Value> {
        let mut last = Value::Null;
        let found = self
            .until(&format!("{kind} {name} is {what}"), || {
                let said = self.server.ask(&["get", kind, name, "-o", "json"], "")?;
                last = serde_json::from_str(&said.stdout).unwrap_or_default();
                Ok(said.ok && is(&last))
            })
            .await;
        found.with_context(|| format!("{last:#}"))?;
        Ok(last)
    }

    async fn wait_ready(&self, pod: &str) -> Result<Value> {
        self.wait("pod", pod, "ready", |it| condition(it, "Ready") == "True")
            .await
    }

    fn apply(&self, name: &str, spec: &str) -> Result<()> {
        let pod = format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  nodeName: {NODE}\n  terminationGracePeriodSeconds: 1\n{spec}\n"
        );
        self.server
            .kubectl_with(&["apply", "-f", "-"], &pod)
            .map(drop)
    }

    async fn logs(&self, pod: &str, is: &str) -> Result<()> {
        self.until(&format!("{pod} has said {is:?}"), || {
            Ok(self.server.ask(&["logs", pod], "")?.stdout == is)
        })
        .await
    }

    /// Until all pods are gone by themselves.
    async fn until_empty(&self) -> Result<()> {
        let all = ["get", "pods", "-A", "-o", "name"];
        self.until("all pods are gone", || {
            Ok(self.server.kubectl(&all)?.is_empty())
        })
        .await
    }

    /// All pods are gone, and what the kubelet made for them; nothing of it was the server's fault.
    async fn end(mut self, node: &Node) -> Result<()> {
        self.server.kubectl(&["delete", "pods", "--all", "-A"])?;
        let mut left = usize::MAX;
        let deadline = Instant::now() + patient(LIMIT);
        while left > 0 && Instant::now() < deadline {
            left = node.cri.pods(None).await?.len();
            // Its own, which is not the runtime's to remove.
            let pods = cgroup::tree(&self.cgroup.0);
            let named = |dir: &&PathBuf| {
                dir.file_name()
                    .is_some_and(|name| name.to_string_lossy().starts_with("pod"))
            };
            left += pods.iter().filter(named).count();
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        ensure!(
            left == 0,
            "{left} pods or cgroups are left\n{}",
            self.kubelet.last_words()
        );
        self.kubelet.kill_9();
        let content = self.kubelet.is_content_but(&[]);
        drop(self);
        run("ip", &["link", "delete", LINK])?;
        content
    }
}

#[test]
fn a_stock_kubelet_joins_by_a_token_and_runs_pods() -> Result<()> {
    if !stock::has(&["kubelet"]) {
        return Ok(());
    }
    Node::test(async |node| {
        let cluster = Cluster::start(node).await?;
        let server = &cluster.server;

        let it = server.json(&["get", "node", NODE])?;
        ensure!(
            it["metadata"]["labels"]["disk"] == "fast"
                && it["status"]["addresses"][0]["address"] == ADDRESS
                && it["status"]["daemonEndpoints"]["kubeletEndpoint"]["Port"] == PORT,
            "{it:#}"
        );
        let lease = [
            "-n",
            "kube-node-lease",
            "get",
            "lease",
            NODE,
            "--ignore-not-found",
        ];
        let lease = [&lease[..], &["-o", "jsonpath={.spec.holderIdentity}"]].concat();
        cluster
            .until("the lease is the node's", || {
                Ok(server.kubectl(&lease)? == NODE)
            })
            .await?;

        server.kubectl(&[
            "create",
            "configmap",
            "words",
            "--from-literal=greeting=hello",
        ])?;
        server.kubectl(&[
            "create",
            "secret",
            "generic",
            "keys",
            "--from-literal=password=opensesame",
        ])?;
        cluster.apply(
            "web",
            "  containers:\n  - name: a\n    image: busybox\n    stdin: true\n    command: [sh, -c, 'echo $GREETING $(cat /keys/password); echo served > /tmp/index.html; httpd -p 8080 -h /tmp; while read word; do echo heard $word; done; sleep 1000']\n    \
             env: [{name: GREETING, valueFrom: {configMapKeyRef: {name: words, key: greeting}}}]\n    \
             volumeMounts: [{name: keys, mountPath: /keys}, {name: words, mountPath: /words}]\n    \
             readinessProbe: {httpGet: {path: /index.html, port: 8080}, periodSeconds: 1}\n  \
             volumes: [{name: keys, secret: {secretName: keys}}, {name: words, configMap: {name: words}}]",
        )?;
        // what it names comes later, and it begins by itself
        cluster.apply(
            "later",
            "  containers: [{name: a, image: busybox, command: [sleep, '1000'], envFrom: [{configMapRef: {name: late}}]}]",
        )?;
        cluster.apply("once", "  restartPolicy: Never\n  containers: [{name: a, image: busybox, command: [sh, -c, 'exit 3']}]")?;
        let web = cluster.wait_ready("web").await?;
        ensure!(
            web["status"]["phase"] == "Running"
                && web["status"]["podIP"].is_string()
                && web["status"]["hostIP"] == ADDRESS,
            "{web:#}"
        );
        cluster.logs("web", "hello opensesame\n").await?;

        let exec = |command: &[&str]| server.kubectl(&[&["exec", "web", "--"], command].concat());
        let token = exec(&["cat", "/var/run/secrets/kubernetes.io/serviceaccount/token"])?;
        let path = node.dir.join("pod.kubeconfig");
        server.write_kubeconfig(&path, &json!({"token": token.trim()}))?;
        let its = Kubectl {
            kubeconfig: path,
            ..server.client()
        };
        let who = its.kubectl(&["auth", "whoami", "-o", "json"])?;
        let who: Value = serde_json::from_str(&who)?;
        let info = &who["status"]["userInfo"];
        ensure!(
            info["username"] == "system:serviceaccount:default:default"
                && info["extra"]["authentication.kubernetes.io/pod-name"][0] == "web"
                && info["extra"]["authentication.kubernetes.io/node-name"][0] == NODE,
            "{who:#}"
        );
        let host = exec(&["sh", "-c", "echo $KUBERNETES_SERVICE_HOST"])?;
        let service = server.json(&["get", "service", "kubernetes"])?;
        ensure!(service["spec"]["clusterIP"] == host.trim(), "{host}");
        let failed = server.ask(&["exec", "web", "--", "sh", "-c", "exit 7"], "")?;
        ensure!(failed.stderr.contains("exit code 7"), "{}", failed.stderr);
        attach(server)?;
        forward(server)?;

        let late = server.json(&["get", "pod", "later"])?;
        ensure!(
            container(&late["status"], "a")["state"]["waiting"]["reason"]
                == "CreateContainerConfigError",
            "{late:#}"
        );
        server.kubectl(&["create", "configmap", "late", "--from-literal=x=y"])?;
        cluster.wait_ready("later").await?;
        let is_over = |it: &Value| {
            it["status"]["phase"] == "Failed"
                && container(&it["status"], "a")["state"]["terminated"]["exitCode"] == 3
        };
        cluster.wait("pod", "once", "over", is_over).await?;

        // a map that it watches comes anew into the volume
        server.kubectl(&[
            "patch",
            "configmap",
            "words",
            "-p",
            "{\"data\":{\"greeting\":\"goodbye\"}}",
        ])?;
        cluster
            .until("the volume has the new word", || {
                Ok(exec(&["cat", "/words/greeting"])? == "goodbye")
            })
            .await?;

        server.kubectl(&[
            "debug",
            "web",
            "--image=busybox",
            "-c",
            "guest",
            "--",
            "sleep",
            "1000",
        ])?;
        let guest_runs = |it: &Value| {
            it["status"]["ephemeralContainerStatuses"][0]["state"]["running"].is_object()
        };
        cluster.wait("pod", "web", "visited", guest_runs).await?;

        let summary = server.kubectl(&[
            "get",
            "--raw",
            &format!("/api/v1/nodes/{NODE}/proxy/stats/summary"),
        ])?;
        let summary: Value = serde_json::from_str(&summary)?;
        ensure!(summary["node"]["nodeName"] == NODE, "{summary:#}");
        let described = server.kubectl(&["describe", "pod", "web"])?;
        for word in ["Pulled", "Started"] {
            ensure!(described.contains(word), "{described}");
        }

        fs::write(
            cluster.manifests.join("still.yaml"),
            crate::scene::pod(
                "still",
                "  containers: [{name: a, image: busybox, command: [sleep, '1000']}]",
            ),
        )?;
        let mirror = format!("still-{NODE}");
        let first = cluster.wait_ready(&mirror).await?;
        ensure!(
            first["metadata"]["ownerReferences"][0]["name"] == NODE,
            "{first:#}"
        );
        server.kubectl(&["delete", "pod", &mirror])?;
        let another = |it: &Value| {
            it["metadata"]["uid"] != first["metadata"]["uid"] && condition(it, "Ready") == "True"
        };
        cluster.wait("pod", &mirror, "there again", another).await?;
        fs::remove_file(cluster.manifests.join("still.yaml"))?;
        let gone = ["get", "pod", &mirror, "--ignore-not-found", "-o", "name"];
        cluster
            .until("the mirror is gone", || {
                Ok(server.kubectl(&gone)?.is_empty())
            })
            .await?;
        cluster.end(node).await
    })
}

/// All of Kubernetes' components, at our API server and over our runtime.
#[test]
fn a_cluster_of_stock_components_runs_workloads() -> Result<()> {
    let [controllers, scheduler] = stock::CONTROL_PLANE;
    if !stock::has(&["kubelet", controllers, scheduler]) {
        return Ok(());
    }
    Node::test(async |node| {
        let cluster = Cluster::start(node).await?;
        let server = &cluster.server;
        let deciders = stock::control_plane(server)?;
        let told = || -> String { deciders.iter().map(Stock::last_words).collect() };
        workloads(&cluster).await.with_context(told)?;
        cluster.until_empty().await.with_context(told)?;
        for decider in &deciders {
            decider.is_content_but(&[])?;
        }
        drop(deciders);
        cluster.end(node).await
    })
}

async fn workloads(cluster: &Cluster) -> Result<()> {
    let server = &cluster.server;
    let pod = |command: &str| {
        json!({
            "terminationGracePeriodSeconds": 1,
            "containers": [{
                "name": "c", "image": "busybox", "command": ["sh", "-c", command],
                "env": [{"name": "ZONE", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['topology.kubernetes.io/zone']"}}}],
            }],
        })
    };
    server.kubectl(&["label", "node", NODE, "topology.kubernetes.io/zone=a"])?;
    let mut web = pod("echo in $ZONE; echo served > /tmp/index.html; httpd -f -p 8080 -h /tmp");
    web["containers"][0]["readinessProbe"] =
        json!({"httpGet": {"path": "/index.html", "port": 8080}, "periodSeconds": 1});
    let labels = json!({"app": "web"});
    let deployment = json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"},
        "spec": {"replicas": 2, "selector": {"matchLabels": labels}, "template": {"metadata": {"labels": labels}, "spec": web}},
    });
    server.kubectl_with(&["apply", "-f", "-"], &deployment.to_string())?;
    server.kubectl(&[
        "expose",
        "deployment",
        "web",
        "--port=80",
        "--target-port=8080",
    ])?;
    let available = |it: &Value| {
        it["status"]["availableReplicas"] == 2
            && it["status"]["updatedReplicas"] == 2
            && it["status"]["replicas"] == 2
    };
    cluster
        .wait("deployment", "web", "available", available)
        .await?;
    let of_web = [
        "get",
        "endpointslices",
        "-l",
        "kubernetes.io/service-name=web",
    ];
    cluster
        .until("the service has both", || {
            let slices = server.json(&of_web)?;
            let endpoints = slices["items"][0]["endpoints"]
                .as_array()
                .cloned()
                .unwrap_or_default();
            Ok(
                endpoints.len() == 2
                    && endpoints.iter().all(|it| it["conditions"]["ready"] == true),
            )
        })
        .await?;
    // a node of one zone: the pod was told by its label when it was bound
    cluster
        .logs("deployment/web", "in a\n")
        .await
        .context("the zone")?;

    server.kubectl(&["set", "env", "deployment/web", "ROUND=2"])?;
    cluster
        .wait("deployment", "web", "rolled out", |it| {
            it["status"]["observedGeneration"] == it["metadata"]["generation"] && available(it)
        })
        .await?;
    let of_pods = ["get", "pods", "-l", "app=web", "-o", "name"];
    cluster
        .until("the old ones are gone", || {
            Ok(server.kubectl(&of_pods)?.lines().count() == 2)
        })
        .await?;

    let mut once = pod("echo done");
    once["restartPolicy"] = "Never".into();
    let job = json!({
        "apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "once"},
        "spec": {"completions": 2, "parallelism": 2, "template": {"spec": once}},
    });
    server.kubectl_with(&["apply", "-f", "-"], &job.to_string())?;
    cluster
        .wait("job", "once", "complete", |it| {
            condition(it, "Complete") == "True"
        })
        .await?;
    cluster.logs("job/once", "done\n").await?;

    // a drain evicts what a budget allows, and what comes instead finds no node
    server.kubectl(&[
        "create",
        "pdb",
        "web",
        "--selector=app=web",
        "--max-unavailable=1",
    ])?;
    cluster
        .wait("pdb", "web", "looked at", |it| {
            it["status"]["disruptionsAllowed"] == 1
        })
        .await?;
    server.kubectl(&["cordon", NODE])?;
    let evicted = server.kubectl(&of_pods)?;
    let evicted = evicted
        .lines()
        .next()
        .context("no pod")?
        .trim_start_matches("pod/")
        .to_owned();
    let eviction =
        json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": evicted}});
    let path = format!("/api/v1/namespaces/default/pods/{evicted}/eviction");
    server.kubectl_with(
        &["create", "--raw", &path, "-f", "-"],
        &eviction.to_string(),
    )?;
    cluster
        .until("the next one waits", || {
            let pods = server.json(&["get", "pods", "-l", "app=web"])?;
            let pods = pods["items"].as_array().into_iter().flatten();
            let mut pending = pods.filter(|pod| condition(pod, "PodScheduled") == "False");
            Ok(pending.any(|pod| {
                pod["status"]["conditions"]
                    .to_string()
                    .contains("unschedulable")
            }))
        })
        .await?;
    server.kubectl(&["uncordon", NODE])?;
    cluster
        .wait("deployment", "web", "available again", available)
        .await?;
    let all = ["deployment/web", "job/once", "service/web", "pdb/web"];
    let delete = ["delete", "--cascade=foreground", "--wait=false"];
    server.kubectl(&[&delete[..], &all].concat()).map(drop)
}

fn attach(server: &Server) -> Result<()> {
    let mut child = server
        .command(&["attach", "-i", "web"])?
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut stdin = child.stdin.take().context("no stdin")?;
    let mut says = BufReader::new(child.stdout.take().context("no stdout")?);
    stdin.write_all(b"word\n")?;
    let mut line = String::new();
    let read = says.read_line(&mut line);
    child.kill()?;
    child.wait()?;
    read?;
    ensure!(line == "heard word\n", "{line:?}");
    Ok(())
}

fn forward(server: &Server) -> Result<()> {
    let mut forwards = server
        .command(&["port-forward", "pod/web", ":8080"])?
        .stdout(Stdio::piped())
        .spawn()?;
    let mut line = String::new();
    // it goes on to speak of each connection, and must be heard
    let mut says = BufReader::new(forwards.stdout.take().context("no stdout")?);
    says.read_line(&mut line)?;
    let port = line
        .split(" -> ")
        .next()
        .and_then(|it| it.rsplit(':').next());
    let got = (|| -> Result<String> {
        let port = port.with_context(|| line.clone())?.parse()?;
        let mut stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_read_timeout(Some(Duration::from_secs(20)))?;
        stream.write_all(b"GET /index.html HTTP/1.0\r\n\r\n")?;
        let mut got = String::new();
        stream.read_to_string(&mut got)?;
        Ok(got)
    })();
    forwards.kill()?;
    forwards.wait()?;
    let got = got?;
    ensure!(got.ends_with("served\n"), "{got}");
    Ok(())
}
