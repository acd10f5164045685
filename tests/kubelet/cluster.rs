//! The node in a cluster: pods of the API, by a real kubectl.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use berth_tests::Node;
use serde_json::Value;

use crate::{
    member::{ADDRESS, Member, NODE, condition},
    scene::{container, pod},
};

const SLEEPER: &str = "  containers: [{name: a, image: busybox, command: [sleep, '1000']}]";

/// The runtime's pods of this name.
async fn sandboxes(node: &Node, name: &str) -> Result<usize> {
    let pods = node.cri.pods(None).await?;
    let named = pods
        .iter()
        .filter(|pod| pod.metadata.as_ref().is_some_and(|it| it.name == name));
    Ok(named.count())
}

#[test]
fn a_pod_of_the_api_runs_is_told_of_and_goes_po_12_kl_02_kl_04() -> Result<()> {
    Node::test(async |node| {
        let member = Member::start(node).await?;
        let server = &member.server;

        let it = server.json(&["get", "node", NODE])?;
        let status = &it["status"];
        ensure!(
            it["metadata"]["labels"]["disk"] == "fast"
                && it["metadata"]["labels"]["kubernetes.io/hostname"] == NODE,
            "{it:#}"
        );
        ensure!(
            status["nodeInfo"]["containerRuntimeVersion"]
                .as_str()
                .is_some_and(|it| it.starts_with("berth://"))
                && status["daemonEndpoints"]["kubeletEndpoint"]["Port"] == 10250
                && status["capacity"]["pods"] == "110"
                && status["addresses"][0]["address"] == ADDRESS,
            "{status:#}"
        );
        for kind in ["MemoryPressure", "DiskPressure", "PIDPressure"] {
            ensure!(condition(&it, kind) == "False", "{kind}: {status:#}");
        }
        // it comes after the node
        member
            .until("the lease is the node's", || {
                let lease = [
                    "-n",
                    "kube-node-lease",
                    "get",
                    "lease",
                    NODE,
                    "--ignore-not-found",
                    "-o",
                    "jsonpath={.spec.holderIdentity}",
                ];
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
        // CM-06: what it names comes later, and it begins by itself
        member.apply(
            "later",
            "  containers: [{name: a, image: busybox, command: [sleep, '1000'], envFrom: [{configMapRef: {name: late}}]}]",
        )?;
        member.apply(
            "web",
            "  containers:\n  - name: a\n    image: busybox\n    command: [sh, -c, 'echo $GREETING $(cat /keys/password); trap \"exit 0\" TERM; while :; do sleep 0.1; done']\n    \
             env: [{name: GREETING, valueFrom: {configMapKeyRef: {name: words, key: greeting}}}]\n    \
             volumeMounts: [{name: keys, mountPath: /keys}]\n  volumes: [{name: keys, secret: {secretName: keys}}]",
        )?;
        let web = member.wait_ready("web").await?;
        ensure!(
            web["status"]["phase"] == "Running"
                && web["status"]["podIP"].is_string()
                && web["status"]["hostIP"] == ADDRESS
                && web["status"]["qosClass"] == "BestEffort"
                && container(&web["status"], "a")["restartCount"] == 0,
            "{web:#}"
        );
        member
            .until("it has spoken", || {
                Ok(server.kubectl(&["logs", "web"])? == "hello opensesame\n")
            })
            .await?;
        // SA-01, SA-02: a token that the API server knows
        let token = server.kubectl(&[
            "exec",
            "web",
            "--",
            "cat",
            "/var/run/secrets/kubernetes.io/serviceaccount/token",
        ])?;
        let who = Command::new("curl")
            .args([
                "-sk",
                "--max-time",
                "20",
                "-H",
                &format!("Authorization: Bearer {token}"),
            ])
            .args(["-H", "Content-Type: application/json", "-d"])
            .arg(r#"{"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}"#)
            .arg(format!(
                "https://{}/apis/authentication.k8s.io/v1/selfsubjectreviews",
                server.address
            ))
            .output()?;
        let who: Value = serde_json::from_slice(&who.stdout)?;
        let info = &who["status"]["userInfo"];
        ensure!(
            info["username"] == "system:serviceaccount:default:default"
                && info["extra"]["authentication.kubernetes.io/pod-name"][0] == "web",
            "{who:#}"
        );
        let service = server.json(&["get", "service", "kubernetes"])?;
        let host = server.kubectl(&[
            "exec",
            "web",
            "--",
            "sh",
            "-c",
            "echo $KUBERNETES_SERVICE_HOST",
        ])?;
        ensure!(
            service["spec"]["clusterIP"] == host.trim(),
            "{host} {service:#}"
        );
        let described = server.kubectl(&["describe", "pod", "web"])?;
        for word in ["Started", "Pulled", "spec.containers{a}"] {
            ensure!(
                described.contains(word) || word.starts_with("spec"),
                "{described}"
            );
        }

        let later = server.json(&["get", "pod", "later"])?;
        ensure!(
            container(&later["status"], "a")["state"]["waiting"]["reason"]
                == "CreateContainerConfigError",
            "{later:#}"
        );
        server.kubectl(&["create", "configmap", "late", "--from-literal=x=y"])?;
        member.wait_ready("later").await?;

        // what is not built is answered by name
        server.kubectl_with(
            &["apply", "-f", "-"],
            &format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: odd}}\nspec: {{nodeName: {NODE}, containers: [{{name: a, image: busybox}}], volumes: [{{name: v, nfs: {{server: localhost, path: /}}}}]}}"),
        )?;
        let odd = member
            .wait("pod", "odd", "refused", |it| {
                it["status"]["phase"] == "Failed"
            })
            .await?;
        ensure!(
            odd["status"]["message"]
                .as_str()
                .is_some_and(|it| it.contains("spec.volumes[0].nfs")),
            "{odd:#}"
        );

        // It waits until the object is gone, and then nothing is left here either.
        server.kubectl(&["delete", "pod", "web", "later", "odd"])?;
        for name in ["web", "later", "odd"] {
            ensure!(sandboxes(node, name).await? == 0, "{name} is still there");
        }
        ensure!(
            fs::read_dir(member.kubelet.pods_dir())?.next().is_none(),
            "directories of pods are left"
        );
        member.end()
    })
}

#[test]
fn pods_that_end_are_told_of_and_stay_ended_po_08() -> Result<()> {
    Node::test(async |node| {
        let mut member = Member::start(node).await?;
        member.apply(
            "good",
            "  restartPolicy: Never\n  containers: [{name: a, image: busybox, command: ['true']}]",
        )?;
        member.apply(
            "bad",
            "  restartPolicy: Never\n  containers: [{name: a, image: busybox, command: [sh, -c, 'exit 3']}]",
        )?;
        for (name, phase) in [("good", "Succeeded"), ("bad", "Failed")] {
            member
                .wait("pod", name, phase, |it| it["status"]["phase"] == phase)
                .await?;
        }
        member.kubelet.kill_9();
        member.kubelet.spawn()?;
        member.apply("next", SLEEPER)?;
        member.wait_ready("next").await?;
        for (name, code) in [("good", 0), ("bad", 3)] {
            let it = member.server.json(&["get", "pod", name])?;
            let status = container(&it["status"], "a");
            ensure!(
                status["restartCount"] == 0 && status["state"]["terminated"]["exitCode"] == code,
                "{it:#}"
            );
        }
        member
            .server
            .kubectl(&["delete", "pod", "good", "bad", "next"])?;
        member.end()
    })
}

#[test]
fn logs_exec_attach_and_port_forward_go_through_the_kubelet() -> Result<()> {
    Node::test(async |node| {
        let member = Member::start(node).await?;
        let server = &member.server;
        member.apply(
            "web",
            "  containers:\n  - {name: a, image: busybox, stdin: true, command: [sh, -c, 'i=0; while [ $i -lt 5 ]; do echo line $i; i=$((i+1)); done; while read word; do echo heard $word; done; sleep 1000']}\n  \
             - {name: http, image: busybox, command: [sh, -c, 'echo served > /tmp/index.html; httpd -f -p 8080 -h /tmp']}\n  \
             - {name: dies, image: busybox, command: [sh, -c, 'echo last words; sleep 1; exit 1']}",
        )?;
        member
            .wait("pod", "web", "up and one of it restarted", |it| {
                let status = &it["status"];
                container(status, "a")["ready"] == true
                    && container(status, "http")["ready"] == true
                    && container(status, "dies")["lastState"]["terminated"].is_object()
            })
            .await?;
        let logs = |more: &[&str]| {
            let all = ["logs", "web"].into_iter().chain(more.iter().copied());
            server.kubectl(&all.collect::<Vec<_>>())
        };
        ensure!(logs(&["-c", "a", "--tail=2"])? == "line 3\nline 4\n");
        ensure!(logs(&["-c", "a", "--limit-bytes=8"])? == "line 0\nl");
        let stamped = logs(&["-c", "a", "--timestamps", "--tail=1"])?;
        ensure!(
            stamped.starts_with("20") && stamped.ends_with(" line 4\n"),
            "{stamped}"
        );
        ensure!(logs(&["-c", "a", "--since=1h"])?.starts_with("line 0\n"));
        ensure!(logs(&["-c", "dies", "--previous"])? == "last words\n");

        // exec: streams, input, and how it ended
        let said = server.ask(
            &[
                "exec",
                "-i",
                "web",
                "-c",
                "a",
                "--",
                "sh",
                "-c",
                "cat; echo err >&2; exit 7",
            ],
            "input",
        )?;
        ensure!(
            !said.ok
                && said.stdout == "input"
                && said.stderr.contains("err")
                && said.stderr.contains("exit code 7"),
            "{said:?}"
        );

        // a log that is followed while somebody speaks to the container
        let mut follows = server
            .command(&["logs", "-f", "web", "-c", "a", "--tail=1"])?
            .stdout(Stdio::piped())
            .spawn()?;
        let mut lines = BufReader::new(follows.stdout.take().context("no stdout")?).lines();
        ensure!(lines.next().context("no line")?? == "line 4");
        let mut attach = server
            .command(&["attach", "-i", "web", "-c", "a"])?
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()?;
        let mut speaks = attach.stdin.take().context("no stdin")?;
        speaks.write_all(b"you\n")?;
        ensure!(lines.next().context("no line")?? == "heard you");
        for child in [&mut follows, &mut attach] {
            child.kill()?;
            child.wait()?;
        }

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
            .and_then(|it| it.rsplit(':').next())
            .context(line.clone())?;
        let mut got = String::new();
        let mut stream = TcpStream::connect(("127.0.0.1", port.parse()?))?;
        stream.set_read_timeout(Some(Duration::from_secs(20)))?;
        stream.write_all(b"GET /index.html HTTP/1.0\r\n\r\n")?;
        let read = stream.read_to_string(&mut got);
        forwards.kill()?;
        forwards.wait()?;
        read?;
        ensure!(got.ends_with("served\n"), "{got}");

        let summary = server.kubectl(&[
            "get",
            "--raw",
            &format!("/api/v1/nodes/{NODE}/proxy/stats/summary"),
        ])?;
        let summary: Value = serde_json::from_str(&summary)?;
        ensure!(
            summary["node"]["memory"]["workingSetBytes"].as_u64() > Some(0)
                && summary["pods"][0]["podRef"]["name"] == "web"
                && summary["node"]["cpu"]["usageNanoCores"].is_u64()
                && summary["pods"][0]["startTime"].is_string()
                && summary["pods"][0]["containers"][0]["startTime"].is_string()
                && summary["pods"][0]["containers"][0]["memory"]["workingSetBytes"].is_u64(),
            "{summary:#}"
        );
        let metrics = server.kubectl(&[
            "get",
            "--raw",
            &format!("/api/v1/nodes/{NODE}/proxy/metrics/resource"),
        ])?;
        let of_container = "{container=\"http\",namespace=\"default\",pod=\"web\"}";
        let of_pod = "{namespace=\"default\",pod=\"web\"}";
        for (name, labels) in [
            ("node_cpu_usage_seconds_total", ""),
            ("node_memory_working_set_bytes", ""),
            ("pod_cpu_usage_seconds_total", of_pod),
            ("pod_memory_working_set_bytes", of_pod),
            ("container_cpu_usage_seconds_total", of_container),
            ("container_memory_working_set_bytes", of_container),
            ("container_start_time_seconds", of_container),
        ] {
            let begins = format!("{name}{labels} ");
            let line = metrics.lines().find_map(|line| line.strip_prefix(&begins));
            let numbers: Vec<f64> = line
                .into_iter()
                .flat_map(|line| line.split(' ').filter_map(|it| it.parse().ok()))
                .collect();
            // the value, and when it was so
            ensure!(
                numbers.len() == 2 && numbers[0] >= 0.0 && numbers[1] > 1e12,
                "{begins}: {metrics}"
            );
        }
        server.kubectl(&["delete", "pod", "web"])?;
        member.end()
    })
}

/// One request of curl's to the kubelet; the HTTP status.
fn curl(arguments: &[&str], path: &str) -> Result<String> {
    let output = Command::new("curl")
        .args([
            "-sk",
            "-o",
            "/dev/null",
            "-w",
            "%{http_code}",
            "--max-time",
            "20",
        ])
        .args(arguments)
        .arg(format!("https://{ADDRESS}:10250{path}"))
        .output()?;
    Ok(String::from_utf8(output.stdout)?)
}

#[test]
fn nobody_is_answered_who_has_not_said_who_they_are_and_may_sec_kub_02_sec_kub_03() -> Result<()> {
    Node::test(async |node| {
        let member = Member::start(node).await?;
        let server = &member.server;
        member.apply("web", SLEEPER)?;
        member.wait_ready("web").await?;
        let token = |account: &str| -> Result<String> {
            server.kubectl(&["create", "serviceaccount", account])?;
            Ok(server
                .kubectl(&["create", "token", account])?
                .trim()
                .to_owned())
        };
        let (tenant, reader, operator) = (token("tenant")?, token("reader")?, token("operator")?);
        for (account, verbs) in [("reader", "get"), ("operator", "get,create")] {
            server.kubectl(&[
                "create",
                "clusterrole",
                account,
                &format!("--verb={verbs}"),
                "--resource=nodes/proxy,nodes/stats,nodes/metrics",
            ])?;
            server.kubectl(&[
                "create",
                "clusterrolebinding",
                account,
                &format!("--clusterrole={account}"),
                &format!("--serviceaccount=default:{account}"),
            ])?;
        }
        let paths = [
            "/pods",
            "/runningpods/",
            "/metrics",
            "/metrics/cadvisor",
            "/metrics/resource",
            "/stats/summary",
            "/containerLogs/default/web/a",
            "/exec/default/web/a?command=id&output=1",
            "/attach/default/web/a?output=1",
            "/portForward/default/web",
            "/run/default/web/a?cmd=id",
            "/checkpoint/default/web/a",
            "/logs/",
            "/debug/pprof/",
            "/debug/flags/v",
            "/configz",
            "/spec/",
            "/",
            "/healthz/ping",
        ];
        let bearer = |token: &str| format!("Authorization: Bearer {token}");
        for path in paths {
            let nobody = curl(&[], path)?;
            let wrong = curl(&["-H", &bearer("wrong")], path)?;
            let other = curl(&["-H", &bearer(&tenant)], path)?;
            ensure!(
                (nobody.as_str(), wrong.as_str(), other.as_str()) == ("401", "401", "403"),
                "{path}: {nobody} {wrong} {other}"
            );
        }
        // a certificate that no CA of ours has signed does not come as far as HTTP
        let at = |name: &str| server.dir().join(name).display().to_string();
        berth_tests::identity::run(
            "openssl",
            &[
                "req",
                "-x509",
                "-new",
                "-newkey",
                "ec",
                "-pkeyopt",
                "ec_paramgen_curve:P-256",
                "-nodes",
                "-days",
                "1",
                "-keyout",
                &at("foreign.key"),
                "-out",
                &at("foreign.crt"),
                "-subj",
                "/O=system:masters/CN=admin",
            ],
        )?;
        ensure!(
            curl(
                &["--cert", &at("foreign.crt"), "--key", &at("foreign.key")],
                "/pods"
            )? == "000"
        );
        ensure!(curl(&[], "/healthz")? == "200");

        let upgrade = [
            "-H",
            "Connection: Upgrade",
            "-H",
            "Upgrade: websocket",
            "-H",
            "Sec-WebSocket-Version: 13",
            "-H",
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
            "-H",
            "Sec-WebSocket-Protocol: v5.channel.k8s.io",
        ];
        let read = bearer(&reader);
        ensure!(curl(&["-H", &read], "/pods")? == "200");
        ensure!(curl(&["-H", &read], "/stats/summary")? == "200");
        ensure!(curl(&["-H", &read], "/containerLogs/default/web/a")? == "200");
        ensure!(curl(&["-H", &read], "/containerLogs/default/web/a?tailLines=x")? == "422");
        ensure!(
            curl(&["-H", &read], "/containerLogs/default/web/..")? == "400"
                || curl(&["-H", &read], "/containerLogs/default/web/..")? == "404"
        );
        for path in [
            "/exec/default/web/a?command=id&output=1",
            "/attach/default/web/a?output=1",
            "/portForward/default/web",
        ] {
            let with = |who: &str| -> Result<String> {
                let mut all = upgrade.to_vec();
                all.extend(["-H", who]);
                curl(&all, path)
            };
            ensure!(
                with(&read)? == "403",
                "{path}: who may only read opens a stream"
            );
            ensure!(curl(&["-X", "POST", "-H", &read], path)? == "403", "{path}");
            ensure!(
                curl(&["-X", "POST", "-H", &bearer(&operator)], path)? == "400",
                "{path}"
            );
        }
        let ports = Command::new("curl")
            .args([
                "-s",
                "--max-time",
                "5",
                &format!("http://{ADDRESS}:10255/pods"),
            ])
            .status()?;
        ensure!(!ports.success(), "the read-only port is open");
        server.kubectl(&["delete", "pod", "web"])?;
        member.end()
    })
}

#[test]
fn static_pods_have_mirrors_that_follow_their_files_kl_02() -> Result<()> {
    Node::test(async |node| {
        let member = Member::start(node).await?;
        let server = &member.server;
        let text = |words: &str| {
            pod(
                "own",
                &format!(
                    "  terminationGracePeriodSeconds: 0\n  containers: [{{name: a, image: busybox, command: [sh, -c, 'echo {words}; sleep 1000']}}]"
                ),
            )
        };
        member.kubelet.put("own.yaml", &text("first"))?;
        let name = format!("own-{NODE}");
        let first = member.wait_ready(&name).await?;
        ensure!(
            first["metadata"]["annotations"]["kubernetes.io/config.source"] == "file"
                && first["metadata"]["ownerReferences"][0]["kind"] == "Node",
            "{first:#}"
        );
        ensure!(server.kubectl(&["logs", &name])? == "first\n");
        let id = container(&first["status"], "a")["containerID"].clone();
        // deleting the mirror deletes nothing but the mirror
        server.kubectl(&["delete", "pod", &name, "--wait=false"])?;
        let again = member
            .wait("pod", &name, "mirrored anew", |it| {
                it["metadata"]["uid"] != first["metadata"]["uid"]
                    && condition(it, "Ready") == "True"
            })
            .await?;
        ensure!(
            container(&again["status"], "a")["containerID"] == id,
            "{again:#}"
        );
        member.kubelet.put("own.yaml", &text("second"))?;
        member
            .until("the second speaks", || {
                Ok(server.ask(&["logs", &name], "")?.stdout == "second\n")
            })
            .await?;
        member.kubelet.take("own.yaml")?;
        member
            .until("the mirror is gone", || {
                Ok(!server.ask(&["get", "pod", &name], "")?.ok)
            })
            .await?;
        member.kubelet.wait_gone(node, "own").await?;
        member.end()
    })
}

fn restarts(it: &Value) -> (Value, Value) {
    let status = container(&it["status"], "a");
    (
        status["containerID"].clone(),
        status["restartCount"].clone(),
    )
}

#[test]
fn the_end_of_the_kubelet_or_of_the_server_ends_no_pod_bo_15() -> Result<()> {
    Node::test(async |node| {
        let mut member = Member::start(node).await?;
        for name in ["stays", "goes", "dies"] {
            member.apply(name, SLEEPER)?;
        }
        for name in ["stays", "goes", "dies"] {
            member.wait_ready(name).await?;
        }
        let before = restarts(&member.wait_ready("stays").await?);
        // deleted while the kubelet is down (REL-23)
        member.kubelet.kill_9();
        member
            .server
            .kubectl(&["delete", "pod", "goes", "--wait=false"])?;
        member.kubelet.spawn()?;
        member
            .until("the deleted one is gone", || {
                Ok(!member.server.ask(&["get", "pod", "goes"], "")?.ok)
            })
            .await?;
        ensure!(sandboxes(node, "goes").await? == 0);
        ensure!(
            restarts(&member.wait_ready("stays").await?) == before,
            "it was restarted"
        );

        // The server goes away; what ends meanwhile is begun again, and told later.
        member.server.kill_9()?;
        let dies = node.cri.containers(None).await?;
        let dies = dies
            .iter()
            .find(|it| {
                it.labels
                    .get("io.kubernetes.pod.name")
                    .is_some_and(|name| name == "dies")
            })
            .context("no container of dies")?;
        node.cri.stop(&dies.id, 0).await?;
        let begun = Instant::now();
        loop {
            let all = node.cri.containers(None).await?;
            let mut again = all.iter().filter(|it| {
                it.labels
                    .get("io.kubernetes.pod.name")
                    .is_some_and(|name| name == "dies")
                    && it.metadata.as_ref().is_some_and(|it| it.attempt == 1)
            });
            if again.next().is_some() {
                break;
            }
            ensure!(
                begun.elapsed() < Duration::from_secs(60),
                "{}",
                member.kubelet.log()
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        // and the kubelet is begun without it
        member.kubelet.kill_9();
        member.kubelet.spawn()?;
        member
            .until("it goes on with the pods that it knows", || {
                Ok(member
                    .kubelet
                    .log()
                    .contains("the pods that were known last are kept"))
            })
            .await?;
        member.server.start_again_there()?;
        member
            .wait("pod", "dies", "told of", |it| {
                container(&it["status"], "a")["restartCount"] == 1
                    && condition(it, "Ready") == "True"
            })
            .await?;
        ensure!(
            restarts(&member.wait_ready("stays").await?) == before,
            "it was restarted"
        );
        member.server.kubectl(&["delete", "pod", "stays", "dies"])?;
        member.end()
    })
}

#[test]
fn after_a_reboot_without_a_server_the_last_known_pods_are_begun() -> Result<()> {
    Node::test(async |node| {
        let mut member = Member::start(node).await?;
        member.server.kubectl(&[
            "create",
            "configmap",
            "words",
            "--from-literal=greeting=hello",
        ])?;
        member.apply(
            "web",
            "  containers: [{name: a, image: busybox, command: [sh, -c, 'cat /words/greeting && sleep 1000'], volumeMounts: [{name: words, mountPath: /words}]}]\n  \
             volumes: [{name: words, configMap: {name: words}}]",
        )?;
        let before = member.wait_ready("web").await?;
        member.server.kill_9()?;
        member.kubelet.kill_9();
        // What a reboot takes: all that ran, and what was in memory.
        for pod in node.cri.pods(None).await? {
            node.cri.stop_pod(&pod.id).await?;
            node.cri.remove_pod(&pod.id).await?;
        }
        let volumes = member
            .kubelet
            .pods_dir()
            .join(before["metadata"]["uid"].as_str().context("no uid")?)
            .join("volumes");
        let mounted = Command::new("findmnt").args(["-rno", "TARGET"]).output()?;
        for target in String::from_utf8(mounted.stdout)?.lines() {
            if target.starts_with(&volumes.display().to_string()) {
                berth_tests::identity::run("umount", &[target])?;
            }
        }
        fs::remove_dir_all(&volumes)?;
        member.kubelet.spawn()?;
        let begun = Instant::now();
        while sandboxes(node, "web").await? == 0 {
            ensure!(
                begun.elapsed() < Duration::from_secs(60),
                "{}",
                member.kubelet.log()
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        member.server.start_again_there()?;
        let after = member
            .wait("pod", "web", "up again, by another container", |it| {
                condition(it, "Ready") == "True" && restarts(it).0 != restarts(&before).0
            })
            .await?;
        ensure!(after["metadata"]["uid"] == before["metadata"]["uid"]);
        ensure!(member.server.kubectl(&["logs", "web"])? == "hello");
        // its token has come with the server
        member
            .until("the token is there", || {
                let path = "/var/run/secrets/kubernetes.io/serviceaccount/token";
                Ok(member
                    .server
                    .ask(&["exec", "web", "--", "test", "-s", path], "")?
                    .ok)
            })
            .await?;
        member.server.kubectl(&["delete", "pod", "web"])?;
        member.end()
    })
}

#[test]
fn a_node_that_runs_short_evicts_who_uses_more_than_it_asked_for() -> Result<()> {
    Node::test(async |node| {
        let mut member = Member::start(node).await?;
        member.apply("greedy", SLEEPER)?;
        member.apply(
            "modest",
            "  containers: [{name: a, image: busybox, command: [sleep, '1000'], resources: {requests: {memory: 1Gi}}}]",
        )?;
        for name in ["greedy", "modest"] {
            member.wait_ready(name).await?;
        }
        // more than any machine has
        member.kubelet.kill_9();
        for flag in [
            "--eviction-soft=memory.available<1Pi",
            "--eviction-soft-grace-period=memory.available=0s",
        ] {
            member.kubelet.with_flag(flag);
        }
        member.kubelet.spawn()?;
        let first = member
            .wait("pod", "greedy", "evicted", |it| {
                it["status"]["reason"] == "Evicted"
            })
            .await?;
        ensure!(
            first["status"]["phase"] == "Failed"
                && first["status"]["message"]
                    .as_str()
                    .is_some_and(|it| it.contains("low on resource: memory")),
            "{first:#}"
        );
        let modest = member.server.json(&["get", "pod", "modest"])?;
        ensure!(modest["status"]["phase"] == "Running", "{modest:#}");
        member
            .wait("node", NODE, "under pressure", |it| {
                condition(it, "MemoryPressure") == "True"
            })
            .await?;
        // what the node's own disk asks for stays
        member.kubelet.put("own.yaml", &pod("own", SLEEPER))?;
        member
            .wait("pod", "modest", "evicted", |it| {
                it["status"]["reason"] == "Evicted"
            })
            .await?;
        ensure!(
            sandboxes(node, "greedy").await? == 0,
            "it is evicted and still there"
        );
        member.wait_ready(&format!("own-{NODE}")).await?;
        member.kubelet.take("own.yaml")?;
        member.kubelet.wait_gone(node, "own").await?;
        member
            .server
            .kubectl(&["delete", "pod", "greedy", "modest"])?;
        member.end()
    })
}
