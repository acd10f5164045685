//! Where Services lead.

use std::collections::BTreeSet;

use anyhow::{Context, Result, bail, ensure};
use berth_tests::cluster::Server;
use serde_json::{Value, json};

use super::{Hollow, QUICK, controllers, eventually};

/// Ready, serving, terminating.
type Says = (bool, bool, bool);
const READY: Says = (true, true, false);
const UNREADY: Says = (false, false, false);
const ENDS: Says = (false, true, true);
/// Whatever its pod says.
const TAKEN_AS_READY: Says = (true, false, false);

fn slices(server: &Server, service: &str) -> Result<Vec<Value>> {
    let label = format!("kubernetes.io/service-name={service}");
    let slices = server.json(&["get", "endpointslices", "-l", &label])?;
    Ok(slices["items"].as_array().cloned().unwrap_or_default())
}

/// Of each address.
fn told(slices: &[Value]) -> BTreeSet<(String, Says)> {
    let is = |one: &Value, name: &str| one["conditions"][name] == true;
    slices
        .iter()
        .flat_map(|slice| slice["endpoints"].as_array().cloned().unwrap_or_default())
        .map(|one| {
            let address = one["addresses"][0].as_str().unwrap_or_default().to_owned();
            let [ready, serving, ends] =
                ["ready", "serving", "terminating"].map(|name| is(&one, name));
            (address, (ready, serving, ends))
        })
        .collect()
}

fn tells(server: &Server, service: &str, wanted: &[(&str, Says)]) -> Result<Vec<Value>> {
    let wanted: BTreeSet<(String, Says)> = wanted
        .iter()
        .map(|(address, says)| ((*address).to_owned(), *says))
        .collect();
    eventually(&format!("{service} has {wanted:?}"), || {
        let slices = slices(server, service)?;
        Ok((told(&slices) == wanted).then_some(slices))
    })
}

/// PO-10, K8-02
#[test]
fn endpoints_follow_what_pods_say() -> Result<()> {
    let server = Server::start("memory")?;
    let hollow = Hollow::start(&server)?;
    hollow.join("n1", "a")?;
    let _controllers = controllers(&server, QUICK)?;
    for at in 1..=3 {
        hollow.pod(
            &format!("web-{at}"),
            "n1",
            &format!("10.0.0.{at}"),
            &json!({}),
        )?;
    }
    let service = |name: &str, spec: &Value| -> Result<()> {
        let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "labels": {"tier": "front"}}, "spec": spec});
        server
            .kubectl_with(&["apply", "-f", "-"], &service.to_string())
            .map(drop)
    };
    let ports = json!([{"name": "web", "port": 80, "targetPort": "http"}]);
    service("web", &json!({"selector": {"app": "web"}, "ports": ports}))?;
    let all = tells(
        &server,
        "web",
        &[
            ("10.0.0.1", READY),
            ("10.0.0.2", READY),
            ("10.0.0.3", READY),
        ],
    )?;
    let [slice] = all.as_slice() else {
        bail!("one is enough: {all:?}");
    };
    let labels = &slice["metadata"]["labels"];
    ensure!(
        labels["endpointslice.kubernetes.io/managed-by"] == "endpointslice-controller.k8s.io"
            && labels["tier"] == "front",
        "{labels}"
    );
    ensure!(
        slice["ports"] == json!([{"name": "web", "port": 8080, "protocol": "TCP"}]),
        "{slice}"
    );
    let first = &slice["endpoints"][0];
    ensure!(
        first["nodeName"] == "n1" && first["zone"] == "a" && first["targetRef"]["kind"] == "Pod",
        "{first}"
    );
    ensure!(
        !slice["metadata"]["annotations"]["endpoints.kubernetes.io/last-change-trigger-time"]
            .is_null()
    );
    let described = eventually("kubectl describes them", || {
        let described = server.kubectl(&["describe", "service", "web"])?;
        Ok(described
            .contains("10.0.0.1:8080,10.0.0.2:8080,10.0.0.3:8080")
            .then_some(described))
    });
    described?;
    let old = eventually("the old form has them, too", || {
        let said = server.ask(&["get", "endpoints", "web", "-o", "json"], "")?;
        Ok(said.ok.then(|| serde_json::from_str::<Value>(&said.stdout)))
    })??;
    ensure!(
        old["subsets"][0]["addresses"]
            .as_array()
            .is_some_and(|all| all.len() == 3),
        "{old}"
    );

    // readiness, the end of a pod, and a pod that is gone
    hollow.says("web-2", "10.0.0.2", false)?;
    server.kubectl(&["delete", "pod", "web-3", "--wait=false"])?;
    tells(
        &server,
        "web",
        &[
            ("10.0.0.1", READY),
            ("10.0.0.2", UNREADY),
            ("10.0.0.3", ENDS),
        ],
    )?;
    eventually("the old form tells them apart", || {
        let old = server.json(&["get", "endpoints", "web"])?;
        let subset = &old["subsets"][0];
        let ips = |name: &str| {
            subset[name]
                .as_array()
                .map(|all| all.iter().map(|one| one["ip"].clone()).collect::<Vec<_>>())
        };
        let right = ips("addresses") == Some(vec!["10.0.0.1".into()])
            && ips("notReadyAddresses") == Some(vec!["10.0.0.2".into()]);
        Ok(right.then_some(()))
    })?;
    server.kubectl(&["delete", "pod", "web-3", "--grace-period=0", "--force"])?;
    hollow.says("web-2", "10.0.0.2", true)?;
    let before = tells(&server, "web", &[("10.0.0.1", READY), ("10.0.0.2", READY)])?;

    // what no endpoint tells is no reason to write
    server.kubectl(&["annotate", "pod", "web-1", "seen=yes"])?;
    let published =
        json!({"selector": {"app": "web"}, "clusterIP": "None", "publishNotReadyAddresses": true});
    service("headless", &published)?;
    tells(
        &server,
        "headless",
        &[("10.0.0.1", READY), ("10.0.0.2", READY)],
    )?;
    let after = slices(&server, "web")?;
    ensure!(after[0]["metadata"]["resourceVersion"] == before[0]["metadata"]["resourceVersion"]);
    hollow.pod("named", "n1", "10.0.0.9", &json!({"hostname": "first", "subdomain": "headless", "metadata": {"labels": {"app": "web", "own": "yes"}}}))?;
    hollow.says("named", "10.0.0.9", false)?;
    let headless = tells(
        &server,
        "headless",
        &[
            ("10.0.0.1", READY),
            ("10.0.0.2", READY),
            ("10.0.0.9", TAKEN_AS_READY),
        ],
    )?;
    let named = headless[0]["endpoints"].as_array().context("endpoints")?;
    ensure!(
        named.iter().any(|one| one["hostname"] == "first"),
        "{named:?}"
    );
    ensure!(headless[0]["metadata"]["labels"]["service.kubernetes.io/headless"] == "");
    server.kubectl(&["label", "pod", "named", "app=other", "--overwrite"])?;
    let after = tells(&server, "web", &[("10.0.0.1", READY), ("10.0.0.2", READY)])?;
    ensure!(after.len() == 1 && after[0]["metadata"]["uid"] == before[0]["metadata"]["uid"]);

    // nothing, and then the service is gone with all that was its
    server.kubectl(&["delete", "pod", "--all", "--grace-period=0", "--force"])?;
    let none = tells(&server, "web", &[])?;
    ensure!(none.len() == 1, "{none:?}");
    server.kubectl(&["delete", "service", "web"])?;
    eventually("its endpoints are gone", || {
        let old = server.ask(&["get", "endpoints", "web"], "")?;
        Ok((!old.ok && slices(&server, "web")?.is_empty()).then_some(()))
    })
}

#[test]
fn a_change_of_one_endpoint_of_many_is_one_small_write() -> Result<()> {
    let server = Server::start("memory")?;
    let hollow = Hollow::start(&server)?;
    hollow.join("n1", "a")?;
    let _controllers = controllers(&server, QUICK)?;
    let spec = json!({"selector": {"app": "web"}, "ports": [{"port": 80}]});
    let service =
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"}, "spec": spec});
    server.kubectl_with(&["apply", "-f", "-"], &service.to_string())?;
    const COUNT: usize = 130;
    for at in 0..COUNT {
        hollow.pod(
            &format!("web-{at}"),
            "n1",
            &format!("10.0.0.{at}"),
            &json!({}),
        )?;
    }
    let sizes = |slices: &[Value]| -> Vec<usize> {
        slices
            .iter()
            .map(|slice| slice["endpoints"].as_array().map_or(0, Vec::len))
            .collect()
    };
    let before = eventually("all are told of", || {
        let slices = slices(&server, "web")?;
        let ready = told(&slices)
            .iter()
            .filter(|(_, (ready, ..))| *ready)
            .count();
        Ok((ready == COUNT).then_some(slices))
    })?;
    ensure!(
        sizes(&before).iter().all(|size| *size <= 100) && before.len() == 2,
        "{:?}",
        sizes(&before)
    );
    hollow.says("web-7", "10.0.0.7", false)?;
    let after = eventually("one isn't ready", || {
        let slices = slices(&server, "web")?;
        let ready = told(&slices)
            .iter()
            .filter(|(_, (ready, ..))| *ready)
            .count();
        Ok((ready == COUNT - 1).then_some(slices))
    })?;
    let versions = |slices: &[Value]| -> BTreeSet<String> {
        slices
            .iter()
            .map(|slice| slice["metadata"]["resourceVersion"].to_string())
            .collect()
    };
    ensure!(
        versions(&before).intersection(&versions(&after)).count() == 1,
        "the other is as it was"
    );

    // who writes Endpoints by hand, for a service without a selector, has slices for them
    let by_hand = json!({"apiVersion": "v1", "kind": "List", "items": [
        {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "outside"}, "spec": {"ports": [{"port": 5432}]}},
        {
            "apiVersion": "v1", "kind": "Endpoints", "metadata": {"name": "outside", "labels": {"from": "hand"}},
            "subsets": [{"addresses": [{"ip": "192.168.7.1"}], "notReadyAddresses": [{"ip": "192.168.7.2"}], "ports": [{"port": 5432}]}],
        },
    ]});
    server.kubectl_with(&["apply", "-f", "-"], &by_hand.to_string())?;
    let mirrored = tells(
        &server,
        "outside",
        &[("192.168.7.1", TAKEN_AS_READY), ("192.168.7.2", UNREADY)],
    )?;
    ensure!(
        mirrored[0]["metadata"]["labels"]["endpointslice.kubernetes.io/managed-by"]
            == "endpointslicemirroring-controller.k8s.io"
            && mirrored[0]["metadata"]["labels"]["from"] == "hand"
    );
    server.kubectl(&["delete", "endpoints", "outside"])?;
    tells(&server, "outside", &[])?;
    ensure!(!server.json(&["get", "endpoints", "web"])?["subsets"].is_null());
    Ok(())
}
