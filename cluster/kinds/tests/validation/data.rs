use serde_json::json;

use super::{create, updated, with};

#[test]
fn data_is_bounded_and_what_is_immutable_stays() {
    // CM-04, SC-04
    let map = json!({"metadata": {"name": "m"}, "data": {"a": "b"}});
    let most = "x".repeat(1 << 20);
    assert_eq!(
        create(
            "",
            "v1",
            "ConfigMap",
            with(&map, &[("/data/a", json!(most))])
        ),
        Vec::<String>::new()
    );
    assert_eq!(
        create(
            "",
            "v1",
            "ConfigMap",
            with(&map, &[("/data/a", json!(format!("{most}x")))])
        ),
        ["[]: Too long: may not be more than 1048576 bytes"]
    );
    assert_eq!(
        create(
            "",
            "v1",
            "ConfigMap",
            with(&map, &[("/data/a~1b", json!("c"))])
        )
        .len(),
        1
    );
    let secret = json!({"metadata": {"name": "s"}, "stringData": {"a": format!("{most}x")}});
    assert_eq!(
        create("", "v1", "Secret", secret),
        ["data: Too long: may not be more than 1048576 bytes"]
    );
    let broken = json!({"metadata": {"name": "s"}, "data": {"a": "no base64!"}});
    assert_eq!(create("", "v1", "Secret", broken).len(), 1);
    let tls =
        json!({"metadata": {"name": "s"}, "type": "kubernetes.io/tls", "data": {"tls.crt": ""}});
    assert_eq!(
        create("", "v1", "Secret", tls),
        ["data[tls.key]: Required value"]
    );
    let docker = json!({"metadata": {"name": "s"}, "type": "kubernetes.io/dockerconfigjson", "stringData": {".dockerconfigjson": "hunter2"}});
    let said = create("", "v1", "Secret", docker);
    assert_eq!(said.len(), 1);
    assert!(
        !said[0].contains("hunter2") && !said[0].contains("aHVudGVyMg"),
        "{said:?}"
    );

    let frozen = with(&map, &[("/immutable", json!(true))]);
    assert_eq!(
        updated("", "ConfigMap", frozen.clone(), &[("/data/a", json!("c"))]),
        ["data: Forbidden: field is immutable when `immutable` is set"]
    );
    assert_eq!(
        updated("", "ConfigMap", frozen, &[("/immutable", json!(null))]),
        ["immutable: Forbidden: field is immutable when `immutable` is set"]
    );
    let secret = json!({"metadata": {"name": "s"}, "data": {}});
    assert_eq!(
        updated("", "Secret", secret, &[("/type", json!("other"))]),
        ["type: Invalid value: \"other\": field is immutable"]
    );
}
