//! CustomResourceDefinitions (CP-10): their kinds are served as the built-in ones are.

use anyhow::{Result, ensure};
use berth_tests::cluster::Server;

const DEFINITION: &str = r#"
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: crontabs.stable.example.com}
spec:
  group: stable.example.com
  scope: Namespaced
  names: {plural: crontabs, singular: crontab, kind: CronTab, shortNames: [ct]}
  versions:
  - name: v1
    served: true
    storage: true
    schema:
      openAPIV3Schema:
        type: object
        properties:
          spec:
            type: object
            required: [cronSpec]
            properties:
              cronSpec: {type: string, pattern: '^(\d+|\*)(/\d+)?(\s+(\d+|\*)(/\d+)?){4}$'}
              image: {type: string, default: busybox}
              replicas: {type: integer, minimum: 1, maximum: 10}
          status:
            type: object
            properties:
              replicas: {type: integer}
              labelSelector: {type: string}
    additionalPrinterColumns:
    - {name: Spec, type: string, jsonPath: .spec.cronSpec}
    - {name: Replicas, type: integer, jsonPath: .spec.replicas}
    - {name: Age, type: date, jsonPath: .metadata.creationTimestamp}
    subresources:
      status: {}
      scale:
        specReplicasPath: .spec.replicas
        statusReplicasPath: .status.replicas
        labelSelectorPath: .status.labelSelector
"#;

fn tab(name: &str, spec: &str) -> String {
    format!(
        "apiVersion: stable.example.com/v1\nkind: CronTab\nmetadata: {{name: {name}}}\nspec: {spec}\n"
    )
}

#[test]
fn a_custom_kind_is_served_at_once_defaulted_pruned_validated_and_scaled() -> Result<()> {
    let server = Server::start("memory")?;
    let create = |object: &str| server.kubectl_with(&["create", "-f", "-"], object);
    create(DEFINITION)?;
    server.kubectl(&[
        "wait",
        "--for=condition=Established",
        "crd/crontabs.stable.example.com",
        "--timeout=10s",
    ])?;
    create(&tab("a", "{cronSpec: '* * * * */5', replicas: 3}"))?;
    let table = server.kubectl(&["get", "ct"])?;
    let words: Vec<Vec<&str>> = table
        .lines()
        .map(|line| {
            line.split("  ")
                .map(str::trim)
                .filter(|word| !word.is_empty())
                .collect()
        })
        .collect();
    ensure!(words[0] == ["NAME", "SPEC", "REPLICAS", "AGE"], "{table}");
    ensure!(words[1][..3] == ["a", "* * * * */5", "3"], "{table}");
    let object = server.json(&["get", "crontab", "a"])?;
    ensure!(object["spec"]["image"] == "busybox", "{object}");
    ensure!(object["metadata"]["generation"] == 1, "{object}");

    let wrong = server.refused(
        &["create", "-f", "-"],
        &tab("b", "{cronSpec: '* * * *', replicas: 15}"),
    )?;
    for part in [
        "The CronTab \"b\" is invalid",
        "spec.cronSpec: Invalid value",
        "spec.replicas: Invalid value: 15: spec.replicas in body should be less than or equal to 10",
    ] {
        ensure!(wrong.contains(part), "{part}: {wrong}");
    }
    let unknown = server.refused(
        &["create", "-f", "-"],
        &tab("b", "{cronSpec: '* * * * *', replicass: 1}"),
    )?;
    ensure!(
        unknown.contains("unknown field \"spec.replicass\""),
        "{unknown}"
    );
    let path = "/apis/stable.example.com/v1/namespaces/default/crontabs";
    let pruned = server.proxy()?.request(
        "POST",
        path,
        "application/yaml",
        tab("b", "{cronSpec: '* * * * *', replicass: 1}").as_bytes(),
    )?;
    ensure!(pruned.code == 201, "{pruned:?}");
    ensure!(!pruned.body.contains("\"replicass\":1"), "{pruned:?}");

    ensure!(
        server.kubectl(&["scale", "crontab", "a", "--replicas=5"])?
            == "crontab.stable.example.com/a scaled\n"
    );
    server.kubectl(&[
        "patch",
        "crontab",
        "a",
        "--subresource=status",
        "--type=merge",
        "-p",
        "{\"status\":{\"replicas\":5},\"spec\":{\"replicas\":9}}",
    ])?;
    let object = server.json(&["get", "crontab", "a"])?;
    ensure!(object["spec"]["replicas"] == 5, "{object}");
    ensure!(object["status"]["replicas"] == 5, "{object}");
    ensure!(object["metadata"]["generation"] == 2, "{object}");
    let explained = server.kubectl(&["explain", "crontab.spec.replicas"])?;
    ensure!(explained.contains("<integer>"), "{explained}");
    ensure!(
        server.kubectl_with(&["apply", "-f", "-"], &tab("c", "{cronSpec: '* * * * *'}"))?
            == "crontab.stable.example.com/c created\n"
    );

    // it takes its objects with it
    server.kubectl(&[
        "delete",
        "crd",
        "crontabs.stable.example.com",
        "--timeout=20s",
    ])?;
    let gone = server.refused(&["get", "crontabs.stable.example.com"], "")?;
    ensure!(
        gone.contains("the server doesn't have a resource type"),
        "{gone}"
    );
    Ok(())
}

#[test]
fn a_schema_that_is_not_structural_is_refused() -> Result<()> {
    let server = Server::start("memory")?;
    let wrong = DEFINITION.replace("image: {type: string, default: busybox}", "image: {}");
    let said = server.refused(&["create", "-f", "-"], &wrong)?;
    ensure!(
        said.contains("spec.versions[0].schema.openAPIV3Schema.properties[spec].properties[image].type: Required value"),
        "{said}"
    );
    Ok(())
}
