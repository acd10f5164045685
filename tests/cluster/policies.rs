//! Rules in CEL: policies of admission, conditions of webhooks, rules of custom kinds.

use anyhow::{Result, ensure};
use berth_tests::{cluster::Server, webhook::Webhook};
use serde_json::{Value, json};

fn policy(spec: &Value) -> Value {
    let mut spec = spec.clone();
    if spec["matchConstraints"].is_null() {
        spec["matchConstraints"] = json!({"resourceRules": [{
            "operations": ["CREATE", "UPDATE"], "apiGroups": ["apps"], "apiVersions": ["v1"], "resources": ["deployments"],
        }]});
    }
    json!({
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingAdmissionPolicy",
        "metadata": {"name": "few.example.com"},
        "spec": spec,
    })
}

fn binding(spec: &Value) -> Value {
    let mut spec = spec.clone();
    spec["policyName"] = "few.example.com".into();
    json!({
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingAdmissionPolicyBinding",
        "metadata": {"name": "few-here"},
        "spec": spec,
    })
}

fn apply(server: &Server, objects: &[Value]) -> Result<()> {
    for object in objects {
        server.kubectl_with(&["apply", "-f", "-"], &object.to_string())?;
    }
    Ok(())
}

const REPLICAS: &str = "object.spec.replicas <= 5";

#[test]
fn a_policy_counts_where_it_is_bound_and_as_its_binding_says() -> Result<()> {
    let server = Server::start("memory")?;
    let few = policy(&json!({"validations": [{"expression": REPLICAS}]}));
    apply(&server, std::slice::from_ref(&few))?;
    let deployment = |name: &str, replicas: &str| {
        server.ask(
            &[
                "create",
                "deployment",
                name,
                "--image=i",
                "--replicas",
                replicas,
            ],
            "",
        )
    };
    ensure!(
        deployment("unbound", "6")?.ok,
        "a policy without a binding counts"
    );
    apply(&server, &[binding(&json!({"validationActions": ["Deny"]}))])?;
    let table = server.kubectl(&[
        "get",
        "validatingadmissionpolicies,validatingadmissionpolicybindings",
    ])?;
    for words in [
        "NAME VALIDATIONS PARAMKIND AGE",
        "validatingadmissionpolicy.admissionregistration.k8s.io/few.example.com 1 <unset>",
        "NAME POLICYNAME PARAMREF AGE",
        "validatingadmissionpolicybinding.admissionregistration.k8s.io/few-here few.example.com <unset>",
    ] {
        let plain: Vec<String> = table
            .lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
            .collect();
        ensure!(
            plain.iter().any(|line| line.starts_with(words)),
            "{words}: {table}"
        );
    }
    let said = deployment("many", "6")?;
    ensure!(
        !said.ok
            && said.stderr.contains("ValidatingAdmissionPolicy 'few.example.com' with binding 'few-here' denied request: failed expression: object.spec.replicas <= 5"),
        "{said:?}"
    );
    ensure!(deployment("few", "5")?.ok, "what holds is refused");
    for arguments in [
        ["scale", "deployment", "few", "--replicas=6"].as_slice(),
        &[
            "patch",
            "deployment",
            "few",
            "-p",
            "{\"spec\":{\"replicas\":6}}",
        ],
        &[
            "patch",
            "deployment",
            "few",
            "--type=json",
            "-p",
            "[{\"op\":\"replace\",\"path\":\"/spec/replicas\",\"value\":6}]",
        ],
    ] {
        // scale is another resource: the rule names deployments alone
        let refused = !server.ask(arguments, "")?.ok;
        ensure!(refused == (arguments[0] != "scale"), "{arguments:?}");
    }
    server.kubectl(&["scale", "deployment", "few", "--replicas=5"])?;
    // warned of and told the audit log, but done
    apply(
        &server,
        &[binding(&json!({"validationActions": ["Warn", "Audit"]}))],
    )?;
    let said = deployment("warned", "7")?;
    ensure!(
        said.ok && said.stderr.contains("Warning: Validation failed for ValidatingAdmissionPolicy 'few.example.com' with binding 'few-here': failed expression"),
        "{said:?}"
    );
    let audit = std::fs::read_to_string(server.data().join("apiserver/audit.log"))
        .or_else(|_| std::fs::read_to_string(server.data().join("audit.log")));
    if let Ok(audit) = audit {
        ensure!(
            audit.contains("validation.policy.admission.k8s.io/validation_failure"),
            "{audit}"
        );
    }
    // and where its binding does not reach, nobody is asked
    apply(
        &server,
        &[binding(&json!({
            "validationActions": ["Deny"],
            "matchResources": {"namespaceSelector": {"matchLabels": {"few": "yes"}}},
        }))],
    )?;
    ensure!(
        deployment("elsewhere", "9")?.ok,
        "a binding reaches further than it says"
    );
    server.kubectl(&["label", "namespace", "default", "few=yes"])?;
    ensure!(
        !deployment("here", "9")?.ok,
        "a binding does not reach where it should"
    );
    Ok(())
}

#[test]
fn a_policy_has_conditions_variables_parameters_and_words_of_its_own() -> Result<()> {
    let server = Server::start("memory")?;
    apply(
        &server,
        &[
            policy(&json!({
                "paramKind": {"apiVersion": "v1", "kind": "ConfigMap"},
                "matchConditions": [{"name": "not-free", "expression": "!has(object.metadata.labels) || !('free' in object.metadata.labels)"}],
                "variables": [
                    {"name": "most", "expression": "int(params.data.most)"},
                    {"name": "images", "expression": "object.spec.template.spec.containers.map(c, c.image)"},
                ],
                "validations": [
                    {"expression": "object.spec.replicas <= variables.most", "messageExpression": "'at most ' + string(variables.most) + ' in ' + namespaceObject.metadata.name"},
                    {"expression": "variables.images.all(i, i.startsWith('good/'))", "message": "images are good ones", "reason": "Forbidden"},
                    {"expression": "request.userInfo.username == 'kubernetes-admin' && (oldObject == null || oldObject.spec.replicas < 10)"},
                ],
            })),
            binding(&json!({
                "validationActions": ["Deny"],
                "paramRef": {"name": "limits", "namespace": "default", "parameterNotFoundAction": "Deny"},
            })),
        ],
    )?;
    let create = |name: &str, image: &str, replicas: &str| {
        server.ask(
            &[
                "create",
                "deployment",
                name,
                "--image",
                image,
                "--replicas",
                replicas,
            ],
            "",
        )
    };
    let said = create("a", "good/i", "1")?;
    ensure!(
        !said.ok && said.stderr.contains("no params found"),
        "{said:?}"
    );
    server.kubectl(&["create", "configmap", "limits", "--from-literal=most=3"])?;
    let said = create("a", "good/i", "4")?;
    ensure!(
        !said.ok && said.stderr.contains("denied request: at most 3 in default"),
        "{said:?}"
    );
    let said = create("a", "bad/i", "1")?;
    ensure!(
        !said.ok
            && said.stderr.contains("is forbidden")
            && said.stderr.contains("images are good ones"),
        "{said:?}"
    );
    ensure!(create("a", "good/i", "3")?.ok, "what holds is refused");
    let free = json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "free", "labels": {"free": "yes"}},
        "spec": {"replicas": 9, "selector": {"matchLabels": {"a": "b"}}, "template": {
            "metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "bad/i"}]}}},
    });
    apply(&server, &[free])?;
    // An expression that comes to nothing: the policy's failurePolicy says what that means.
    server.kubectl(&[
        "patch",
        "configmap",
        "limits",
        "-p",
        "{\"data\":{\"most\":\"many\"}}",
    ])?;
    let said = create("b", "good/i", "1")?;
    ensure!(
        !said.ok && said.stderr.contains("composited variable"),
        "{said:?}"
    );
    server.kubectl(&[
        "patch",
        "validatingadmissionpolicy",
        "few.example.com",
        "--type=merge",
        "-p",
        "{\"spec\":{\"failurePolicy\":\"Ignore\"}}",
    ])?;
    ensure!(
        create("b", "good/i", "1")?.ok,
        "a failure that is to be ignored is not"
    );
    Ok(())
}

#[test]
fn a_hostile_policy_holds_up_nobody_and_a_wrong_one_is_refused_by_name() -> Result<()> {
    let server = Server::start("memory")?;
    let ten = "[0,1,2,3,4,5,6,7,8,9]";
    let hostile = (0..9).fold("true".to_owned(), |body, at| {
        format!("{ten}.all(x{at}, {body})")
    });
    apply(
        &server,
        &[
            policy(&json!({"validations": [{"expression": hostile}]})),
            binding(&json!({"validationActions": ["Deny"]})),
        ],
    )?;
    let said = server.refused(&["create", "deployment", "a", "--image=i"], "")?;
    ensure!(said.contains("actual cost limit exceeded"), "{said}");
    server.kubectl(&["delete", "validatingadmissionpolicybindings", "--all"])?;
    server.kubectl(&["create", "deployment", "a", "--image=i"])?;
    for (spec, why) in [
        (json!({"validations": []}), "must contain at least one item"),
        (
            json!({"validations": [{"expression": "object.spec.nope("}]}),
            "Syntax error",
        ),
        (
            json!({"validations": [{"expression": "nope(object)"}]}),
            "undeclared reference to 'nope'",
        ),
        (
            json!({"validations": [{"expression": "1 + 1"}]}),
            "must evaluate to bool",
        ),
        (
            json!({"validations": [{"expression": "variables.x"}]}),
            "undefined field 'x'",
        ),
        (
            json!({"validations": [{"expression": "true", "reason": "Nope"}]}),
            "Unsupported value: \"Nope\"",
        ),
    ] {
        let said = server.refused(&["apply", "-f", "-"], &policy(&spec).to_string())?;
        ensure!(said.contains(why), "{spec}: {said}");
    }
    let said = server.refused(
        &["apply", "-f", "-"],
        &binding(&json!({"validationActions": ["Deny", "Warn"]})).to_string(),
    )?;
    ensure!(
        said.contains("must not contain both Deny and Warn"),
        "{said}"
    );
    Ok(())
}

#[test]
fn a_webhook_is_asked_where_its_conditions_hold() -> Result<()> {
    let server = Server::start("memory")?;
    let hook = Webhook::start(server.dir())?;
    let mut configuration = hook.configuration("ValidatingWebhookConfiguration", "deny", "Fail");
    configuration["webhooks"][0]["matchConditions"] = json!([
        {"name": "named", "expression": "object != null && object.metadata.name.startsWith('guarded')"},
    ]);
    apply(&server, &[configuration.clone()])?;
    server.kubectl(&["create", "configmap", "free"])?;
    server.refused(&["create", "configmap", "guarded"], "")?;
    // one that comes to nothing means what failurePolicy says
    configuration["webhooks"][0]["matchConditions"][0]["expression"] =
        "object.data.nope == 'x'".into();
    apply(&server, &[configuration.clone()])?;
    let said = server.refused(&["create", "configmap", "other"], "")?;
    ensure!(
        said.contains("match condition") && said.contains("no such key"),
        "{said}"
    );
    configuration["webhooks"][0]["failurePolicy"] = "Ignore".into();
    apply(&server, &[configuration])?;
    server.kubectl(&["create", "configmap", "other"])?;
    Ok(())
}

const DEFINITION: &str = r#"
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: ranges.example.com}
spec:
  group: example.com
  scope: Namespaced
  names: {plural: ranges, singular: range, kind: Range}
  versions:
  - name: v1
    served: true
    storage: true
    subresources: {status: {}}
    schema:
      openAPIV3Schema:
        type: object
        properties:
          spec:
            type: object
            properties:
              least: {type: integer}
              most: {type: integer}
              class: {type: string, x-kubernetes-validations: [{rule: self == oldSelf, message: class is immutable}]}
            x-kubernetes-validations:
            - {rule: self.least <= self.most, messageExpression: "'least is ' + string(self.least) + ' and most is ' + string(self.most)"}
          status:
            type: object
            properties:
              seen: {type: integer, x-kubernetes-validations: [{rule: self >= oldSelf, message: it grows}]}
"#;

#[test]
fn rules_of_a_custom_kind_hold_for_what_is_made_and_changed() -> Result<()> {
    let server = Server::start("memory")?;
    server.kubectl_with(&["create", "-f", "-"], DEFINITION)?;
    let range = |least: u32, most: u32| {
        json!({"apiVersion": "example.com/v1", "kind": "Range", "metadata": {"name": "r"}, "spec": {"least": least, "most": most, "class": "a"}}).to_string()
    };
    let said = server.refused(&["create", "-f", "-"], &range(3, 2))?;
    ensure!(
        said.contains(
            "The Range \"r\" is invalid: spec: Invalid value: \"object\": least is 3 and most is 2"
        ),
        "{said}"
    );
    server.kubectl_with(&["create", "-f", "-"], &range(1, 2))?;
    let patch = |arguments: &[&str], patch: &str| {
        let mut all = vec!["patch", "range", "r", "--type=merge", "-p", patch];
        all.extend(arguments);
        server.ask(&all, "")
    };
    let said = patch(&[], r#"{"spec":{"class":"b"}}"#)?;
    ensure!(
        !said.ok
            && said
                .stderr
                .contains("spec.class: Invalid value: \"string\": class is immutable"),
        "{said:?}"
    );
    ensure!(
        patch(&[], r#"{"spec":{"most":5}}"#)?.ok,
        "what holds is refused"
    );
    ensure!(
        patch(&["--subresource=status"], r#"{"status":{"seen":3}}"#)?.ok,
        "what is new is refused"
    );
    let said = patch(&["--subresource=status"], r#"{"status":{"seen":2}}"#)?;
    ensure!(!said.ok && said.stderr.contains("it grows"), "{said:?}");
    let wrong = DEFINITION.replace("self.least <= self.most", "self.lowest <= self.most");
    let said = server.refused(&["apply", "-f", "-"], &wrong)?;
    ensure!(said.contains("undefined field 'lowest'"), "{said}");
    Ok(())
}
