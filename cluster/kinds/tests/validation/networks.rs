use serde_json::{Value, json};

use super::{create, refused, updated, with};

#[test]
fn a_network_policy_is_refused_as_upstream_refuses_it() {
    let policy = json!({"metadata": {"name": "n"}, "spec": {"podSelector": {}, "ingress": [{"ports": [{"port": 80}]}]}});
    let port = "/spec/ingress/0/ports/0";
    let from = |block: Value| ("/spec/ingress/0/from", json!([{"ipBlock": block}]));
    refused(
        ("networking.k8s.io", "v1", "NetworkPolicy"),
        &policy,
        &[
            (
                &[(port, json!({"protocol": "ICMP", "port": 80}))],
                &[
                    "spec.ingress[0].ports[0].protocol: Unsupported value: \"ICMP\": supported values: \"TCP\", \"UDP\", \"SCTP\"",
                ],
            ),
            (
                &[(port, json!({"endPort": 80}))],
                &[
                    "spec.ingress[0].ports[0].endPort: Invalid value: 80: may not be specified when `port` is not specified",
                ],
            ),
            (
                &[(port, json!({"port": "web", "endPort": 80}))],
                &[
                    "spec.ingress[0].ports[0].endPort: Invalid value: 80: may not be specified when `port` is non-numeric",
                ],
            ),
            (
                &[(port, json!({"port": 80, "endPort": 79}))],
                &[
                    "spec.ingress[0].ports[0].endPort: Invalid value: 80: must be greater than or equal to `port`",
                ],
            ),
            (
                &[(port, json!({"port": 80, "endPort": 70_000}))],
                &[
                    "spec.ingress[0].ports[0].endPort: Invalid value: 70000: must be between 1 and 65535, inclusive",
                ],
            ),
            (
                &[("/spec/policyTypes", json!(["Ingress", "Outgress"]))],
                &[
                    "spec.policyTypes[1]: Unsupported value: \"Outgress\": supported values: \"Ingress\", \"Egress\"",
                ],
            ),
            (
                &[("/spec/policyTypes", json!(["a", "b", "c"]))],
                &[
                    "spec.policyTypes: Invalid value: [\"a\",\"b\",\"c\"]: may not specify more than two policyTypes",
                ],
            ),
            (
                &[from(json!({"except": ["10.0.0.0/24"]}))],
                &["spec.ingress[0].from[0].ipBlock.cidr: Required value"],
            ),
            (
                &[from(
                    json!({"cidr": "10.0.0.0/8", "except": ["10.0.0.0/8", "x"]}),
                )],
                &[
                    "spec.ingress[0].from[0].ipBlock.except[0]: Invalid value: \"10.0.0.0/8\": must be a strict subset of `cidr`",
                    "spec.ingress[0].from[0].ipBlock.except[1]: Invalid value: \"x\": must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)",
                ],
            ),
            (
                &[(
                    "/spec/ingress/0/from",
                    json!([{"podSelector": {}, "ipBlock": {"cidr": "10.0.0.0/8"}}]),
                )],
                &[
                    "spec.ingress[0].from[0]: Forbidden: may not specify both ipBlock and another peer",
                ],
            ),
        ],
    );
}

#[test]
fn an_ingress_is_refused_as_upstream_refuses_it() {
    let backend = json!({"service": {"name": "1s", "port": {"number": 80}}});
    let ingress = json!({"metadata": {"name": "i", "annotations": {"kubernetes.io/ingress.class": "a"}}, "spec": {
        "ingressClassName": "a",
        "rules": [{"http": {"paths": [{"path": "/", "pathType": "Prefix", "backend": backend}]}}],
    }});
    let first = "/spec/rules/0/http/paths/0";
    let port = "/spec/rules/0/http/paths/0/backend/service/port";
    refused(
        ("networking.k8s.io", "v1", "Ingress"),
        &ingress,
        &[
            (
                &[("/spec/rules", json!(null))],
                &[
                    "spec: Invalid value: null: either `defaultBackend` or `rules` must be specified",
                ],
            ),
            (
                &[("/spec/ingressClassName", json!("b"))],
                &[
                    "annotations.kubernetes.io/ingress.class: Invalid value: \"a\": must match `ingressClassName` when both are specified",
                ],
            ),
            (
                &[("/spec/rules/0/http/paths/0/pathType", json!(null))],
                &[
                    "spec.rules[0].http.paths[0].pathType: Required value: pathType must be specified",
                ],
            ),
            (
                &[("/spec/rules/0/http/paths/0/path", json!("a//b/.."))],
                &[
                    "spec.rules[0].http.paths[0].path: Invalid value: \"a//b/..\": must be an absolute path",
                    "spec.rules[0].http.paths[0].path: Invalid value: \"a//b/..\": must not contain '//'",
                    "spec.rules[0].http.paths[0].path: Invalid value: \"a//b/..\": cannot end with '/..'",
                ],
            ),
            (
                &[(port, json!({}))],
                &[
                    "spec.rules[0].http.paths[0].backend: Required value: port name or number is required",
                ],
            ),
            (
                &[(port, json!({"name": "web", "number": 80}))],
                &[
                    "spec.rules[0].http.paths[0].backend: Invalid value: \"\": cannot set both port name & port number",
                ],
            ),
            (
                &[(port, json!({"number": 65_536}))],
                &[
                    "spec.rules[0].http.paths[0].backend.service.port.number: Invalid value: 65536: must be between 1 and 65535, inclusive",
                ],
            ),
            (
                &[(
                    first,
                    json!({"pathType": "Exact", "path": "/", "backend": {"service": {"port": {"number": 1}}, "resource": {}}}),
                )],
                &[
                    "spec.rules[0].http.paths[0].backend: Invalid value: \"\": cannot set both resource and service backends",
                ],
            ),
            (
                &[(
                    "/spec/defaultBackend",
                    json!({"resource": {"apiGroup": "_", "kind": "a/b"}}),
                )],
                &[
                    "spec.defaultBackend.resource.apiGroup: Invalid value: \"_\": a lowercase RFC 1123 subdomain must consist of lower case alphanumeric \
                     characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is \
                     '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')",
                    "spec.defaultBackend.resource.kind: Invalid value: \"a/b\": may not contain '/'",
                    "spec.defaultBackend.resource.name: Required value",
                ],
            ),
        ],
    );
}

#[test]
fn an_ingress_class_is_refused_as_upstream_refuses_it() {
    let class = json!({"metadata": {"name": "c"}, "spec": {
        "controller": "example.com/c", "parameters": {"kind": "K", "name": "n", "scope": "Namespace", "namespace": "n"},
    }});
    refused(
        ("networking.k8s.io", "v1", "IngressClass"),
        &class,
        &[
            (
                &[("/spec/controller", json!("c"))],
                &[
                    "spec.controller: Invalid value: \"c\": must be a domain-prefixed path (such as \"acme.io/foo\")",
                ],
            ),
            (
                &[("/spec/parameters/namespace", json!(null))],
                &[
                    "spec.parameters.namespace: Required value: `parameters.scope` is set to 'Namespace'",
                ],
            ),
            (
                &[("/spec/parameters/scope", json!("Cluster"))],
                &["spec.parameters.namespace: Forbidden: `parameters.scope` is set to 'Cluster'"],
            ),
            (
                &[("/spec/parameters/kind", json!("a/b"))],
                &["spec.parameters.kind: Invalid value: \"a/b\": may not contain '/'"],
            ),
        ],
    );
}

#[test]
fn a_service_is_refused_as_upstream_refuses_it() {
    let service = json!({"metadata": {"name": "s"}, "spec": {"ports": [{"port": 80}]}});
    let balancer = ("/spec/type", json!("LoadBalancer"));
    refused(
        ("", "v1", "Service"),
        &service,
        &[
            (
                &[("/spec/loadBalancerSourceRanges", json!(["10.0.0.0/8"]))],
                &[
                    "spec.LoadBalancerSourceRanges: Forbidden: may only be used when `type` is 'LoadBalancer'",
                ],
            ),
            (
                &[
                    balancer.clone(),
                    (
                        "/spec/loadBalancerSourceRanges",
                        json!([" 10.0.0.0/8", "x"]),
                    ),
                    ("/spec/loadBalancerClass", json!("a b")),
                ],
                &[
                    "spec.LoadBalancerSourceRanges[1]: Invalid value: \"x\": must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)",
                    "spec.loadBalancerClass: Invalid value: \"a b\": name part must consist of alphanumeric characters, '-', '_' or '.', and must start and \
                     end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is \
                     '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')",
                ],
            ),
            (
                &[("/spec/clusterIPs", json!(["10.0.0.1", "10.0.0.2"]))],
                &[
                    "spec.clusterIPs: Invalid value: [\"10.0.0.1\",\"10.0.0.2\"]: may specify no more than one IP for each IP family",
                ],
            ),
            (
                &[
                    ("/spec/clusterIP", json!("fd00::1")),
                    ("/spec/ipFamilies", json!(["IPv4"])),
                ],
                &[
                    "spec.clusterIPs[0]: Invalid value: \"fd00::1\": expected an IPv4 value as indicated by `ipFamilies[0]`",
                ],
            ),
            (
                &[(
                    "/spec/externalIPs",
                    json!(["224.0.0.1", "239.0.0.1", "0.0.0.0"]),
                )],
                &[
                    "spec.externalIPs[0]: Invalid value: \"224.0.0.1\": may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)",
                    "spec.externalIPs[2]: Invalid value: \"0.0.0.0\": may not be unspecified (0.0.0.0)",
                ],
            ),
            (
                &[
                    ("/spec/type", json!("ExternalName")),
                    ("/spec/externalName", json!("a.example")),
                    ("/spec/ipFamilies", json!(["IPv4"])),
                    ("/spec/ipFamilyPolicy", json!("SingleStack")),
                ],
                &[
                    "spec.ipFamilies: Forbidden: may not be set for ExternalName services",
                    "spec.ipFamilyPolicy: Forbidden: may not be set for ExternalName services",
                ],
            ),
        ],
    );
}

#[test]
fn an_endpoint_slice_is_refused_as_upstream_refuses_it() {
    let slice = json!({"metadata": {"name": "e"}, "addressType": "IPv4", "endpoints": [{"addresses": ["10.0.0.1"]}]});
    let one = "/endpoints/0";
    let nine: Vec<Value> = (0..9).map(|at| json!({"name": format!("z{at}")})).collect();
    refused(
        ("discovery.k8s.io", "v1", "EndpointSlice"),
        &slice,
        &[
            (
                &[(one, json!({"addresses": ["x"]}))],
                &[
                    "endpoints[0].addresses[0]: Invalid value: \"x\": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
                ],
            ),
            (
                &[(one, json!({"addresses": ["169.254.0.1"]}))],
                &[
                    "endpoints[0].addresses[0]: Invalid value: \"169.254.0.1\": may not be in the link-local range (169.254.0.0/16, fe80::/10)",
                ],
            ),
            (
                &[(
                    "/endpoints/0/hints",
                    json!({"forZones": [{"name": "a"}, {"name": "a"}]}),
                )],
                &["endpoints[0].hints.forZones[1].name: Duplicate value: \"a\""],
            ),
            (
                &[("/endpoints/0/hints", json!({"forZones": nine}))],
                &["endpoints[0].hints.forZones: Too many: 9: must have at most 8 items"],
            ),
        ],
    );
}

#[test]
fn services_and_their_like_are_checked() {
    let service = json!({"metadata": {"name": "s"}, "spec": {"ports": [{"port": 80}]}});
    for (changes, expected) in [
        (vec![], vec![]),
        (
            vec![("/spec/ports", json!(null))],
            vec!["spec.ports: Required value"],
        ),
        (
            vec![("/spec/ports/0/port", json!(0))],
            vec![
                "spec.ports[0].port: Invalid value: 0: must be between 1 and 65535, inclusive",
                "spec.ports[0].targetPort: Invalid value: 0: must be between 1 and 65535, inclusive",
            ],
        ),
        (
            vec![(
                "/spec/ports",
                json!([{"port": 80}, {"port": 81, "name": "b"}]),
            )],
            vec!["spec.ports[0].name: Required value"],
        ),
        (
            vec![("/spec/ports/0/nodePort", json!(30000))],
            vec!["spec.ports[0].nodePort: Forbidden: may not be used when `type` is 'ClusterIP'"],
        ),
        (
            vec![("/spec/type", json!("Public"))],
            vec![
                "spec.type: Unsupported value: \"Public\": supported values: \"ClusterIP\", \"ExternalName\", \"LoadBalancer\", \"NodePort\"",
            ],
        ),
        (
            vec![
                ("/spec/type", json!("ExternalName")),
                ("/spec/ports", json!(null)),
            ],
            vec!["spec.externalName: Required value"],
        ),
        (
            vec![("/spec/clusterIP", json!("nonsense"))],
            vec![
                "spec.clusterIPs[0]: Invalid value: \"nonsense\": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
            ],
        ),
        (
            vec![("/spec/externalIPs", json!(["127.0.0.1"]))],
            vec![
                "spec.externalIPs[0]: Invalid value: \"127.0.0.1\": may not be in the loopback range (127.0.0.0/8, ::1/128)",
            ],
        ),
        (vec![("/metadata/name", json!("1s"))], vec![]),
        (
            vec![("/metadata/name", json!("s.t"))],
            vec![
                "metadata.name: Invalid value: \"s.t\": a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', \
                 and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is \
                 '[a-z0-9]([-a-z0-9]*[a-z0-9])?')",
            ],
        ),
    ] {
        assert_eq!(
            create("", "v1", "Service", with(&service, &changes)),
            expected,
            "{changes:?}"
        );
    }
    let known = with(&service, &[("/spec/clusterIP", json!("10.0.0.1"))]);
    assert_eq!(
        updated(
            "",
            "Service",
            known,
            &[
                ("/spec/clusterIP", json!("10.0.0.2")),
                ("/spec/clusterIPs", json!(["10.0.0.2"]))
            ]
        ),
        ["spec.clusterIPs[0]: Invalid value: \"10.0.0.2\": may not change once set"]
    );
}
