//! What a pod is told by ConfigMaps, Secrets and of itself: variables, arguments and files.

use anyhow::{Result, ensure};
use berth_tests::Node;

use crate::member::Member;

/// The command writes what it was given, and stays.
const POD: &str = r#"  volumes:
  - name: all
    projected:
      sources:
      - configMap: {name: words, items: [{key: greeting, path: said/greeting}]}
      - secret: {name: keys}
      - downwardAPI: {items: [{path: labels, fieldRef: {fieldPath: metadata.labels}}]}
      - serviceAccountToken: {path: token, audience: somebody}
  - {name: map, configMap: {name: words, defaultMode: 0400}}
  - {name: none, configMap: {name: elsewhere, optional: true}}
  - {name: empty, emptyDir: {}}
  containers:
  - name: a
    image: busybox
    imagePullPolicy: IfNotPresent
    env:
    - {name: GREETING, valueFrom: {configMapKeyRef: {name: words, key: greeting}}}
    - {name: PASSWORD, valueFrom: {secretKeyRef: {name: keys, key: password}}}
    - {name: NOTHING, valueFrom: {configMapKeyRef: {name: elsewhere, key: x, optional: true}}}
    envFrom:
    - {prefix: ALL_, configMapRef: {name: words}}
    - {configMapRef: {name: elsewhere, optional: true}}
    command: [sh, -c]
    args:
    - 'echo "args $(GREETING)"; echo "password $PASSWORD"; tr "\\0" "\\n" </proc/1/environ | grep -c "^ALL_a.b=odd"; env | grep -c NOTHING;
      cat /all/said/greeting; echo; cat /all/password; echo; cat /all/labels; echo; cut -d. -f1 /all/token | wc -c | tr -dc 0-9 | grep -vc "^1$";
      stat -Lc %a /map/greeting; ls /none | wc -l; echo done; trap "exit 0" TERM; while :; do sleep 0.1; done'
    volumeMounts:
    - {name: all, mountPath: /all}
    - {name: map, mountPath: /map}
    - {name: none, mountPath: /none}
    - {name: empty, mountPath: /empty}"#;

/// CM-03, CM-05, CM-07, SC-02, VO-03: what is there is taken, of one's own namespace alone.
#[test]
fn a_pod_is_told_what_its_own_namespace_has_as_variables_arguments_and_files_cm_03_cm_05_cm_07_vo_03()
-> Result<()> {
    Node::test(async |node| {
        let member = Member::start(node).await?;
        let server = &member.server;
        for command in [
            vec![
                "create",
                "configmap",
                "words",
                "--from-literal=greeting=hello",
                "--from-literal=a.b=odd",
            ],
            vec![
                "create",
                "secret",
                "generic",
                "keys",
                "--from-literal=password=opensesame",
            ],
            vec!["create", "namespace", "other"],
            vec![
                "-n",
                "other",
                "create",
                "configmap",
                "elsewhere",
                "--from-literal=x=NOTHING",
            ],
        ] {
            server.kubectl(&command)?;
        }
        member.apply("told", POD)?;
        member.wait_ready("told").await?;
        let mut said = String::new();
        member
            .until("it has said all", || {
                said = server.kubectl(&["logs", "told"])?;
                Ok(said.ends_with("done\n"))
            })
            .await?;
        let expected = "args hello\npassword opensesame\n1\n0\nhello\nopensesame\napp=\"told\"\n1\n400\n0\ndone\n";
        ensure!(said == expected, "{said}");
        server.kubectl(&["delete", "pods", "--all"])?;
        member.end()
    })
}
