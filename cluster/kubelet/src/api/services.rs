//! Services, as variables of the pods of their namespace: where each is. That of the API server itself is told to all pods (SA-02).

use k8s_openapi::api::core::v1::Service;

use crate::objects::Key;

/// Namespace and name of the API server's own.
const MASTER: (&str, &str) = ("default", "kubernetes");

/// A service's variables, in order.
pub(crate) type Variables = Vec<(String, String)>;

pub(crate) fn key(service: &Service) -> Key {
    let metadata = &service.metadata;
    (
        metadata.namespace.clone().unwrap_or_default(),
        metadata.name.clone().unwrap_or_default(),
    )
}

/// Whether a pod of `namespace` is told of it, and of more than the API server.
pub(crate) fn is_told(key: &Key, namespace: &str, links: bool) -> bool {
    (key.0.as_str(), key.1.as_str()) == MASTER || links && key.0 == namespace
}

/// Upstream's: those of Docker's links, and those of Kubernetes. None for one without an address.
pub(crate) fn variables(service: &Service) -> Variables {
    let Some(spec) = &service.spec else {
        return Variables::new();
    };
    let (Some(ip), Some(name)) = (&spec.cluster_ip, &service.metadata.name) else {
        return Variables::new();
    };
    let ports = spec.ports.as_deref().unwrap_or_default();
    let Some(first) = ports.first().filter(|_| !ip.is_empty() && ip != "None") else {
        return Variables::new();
    };
    let word = |text: &str| text.replace('-', "_").to_ascii_uppercase();
    let name = word(name);
    // an address of the sixth version stands in brackets before a port
    let host = match ip.contains(':') {
        true => format!("[{ip}]"),
        false => ip.clone(),
    };
    let mut all = vec![
        (format!("{name}_SERVICE_HOST"), ip.clone()),
        (format!("{name}_SERVICE_PORT"), first.port.to_string()),
    ];
    for port in ports {
        if let Some(of) = port.name.as_deref().filter(|of| !of.is_empty()) {
            let variable = format!("{name}_SERVICE_PORT_{}", word(of));
            all.push((variable, port.port.to_string()));
        }
    }
    for (index, port) in ports.iter().enumerate() {
        let protocol = port.protocol.as_deref().unwrap_or("TCP");
        let lower = protocol.to_ascii_lowercase();
        let number = port.port;
        let url = format!("{lower}://{host}:{number}");
        if index == 0 {
            all.push((format!("{name}_PORT"), url.clone()));
        }
        let prefix = format!("{name}_PORT_{number}_{}", protocol.to_ascii_uppercase());
        all.extend([
            (prefix.clone(), url),
            (format!("{prefix}_PROTO"), lower),
            (format!("{prefix}_PORT"), number.to_string()),
            (format!("{prefix}_ADDR"), ip.clone()),
        ]);
    }
    all
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn of(spec: serde_json::Value) -> String {
        let service = json!({"metadata": {"namespace": "x", "name": "my-web"}, "spec": spec});
        let all = variables(&serde_json::from_value(service).unwrap());
        let all: Vec<_> = all
            .iter()
            .map(|(name, value)| format!("{name}={value}"))
            .collect();
        all.join(" ")
    }

    #[test]
    fn a_service_is_told_as_upstream_tells_it() {
        assert_eq!(
            of(
                json!({"clusterIP": "10.0.0.9", "ports": [{"name": "http-alt", "port": 80, "protocol": "TCP"}, {"port": 53, "protocol": "UDP"}]})
            ),
            "MY_WEB_SERVICE_HOST=10.0.0.9 MY_WEB_SERVICE_PORT=80 MY_WEB_SERVICE_PORT_HTTP_ALT=80 MY_WEB_PORT=tcp://10.0.0.9:80 \
             MY_WEB_PORT_80_TCP=tcp://10.0.0.9:80 MY_WEB_PORT_80_TCP_PROTO=tcp MY_WEB_PORT_80_TCP_PORT=80 MY_WEB_PORT_80_TCP_ADDR=10.0.0.9 \
             MY_WEB_PORT_53_UDP=udp://10.0.0.9:53 MY_WEB_PORT_53_UDP_PROTO=udp MY_WEB_PORT_53_UDP_PORT=53 MY_WEB_PORT_53_UDP_ADDR=10.0.0.9"
        );
        for none in [
            json!({"clusterIP": "None", "ports": [{"port": 80}]}),
            json!({"type": "ExternalName"}),
            json!({"clusterIP": "10.0.0.9"}),
        ] {
            assert_eq!(of(none), "");
        }
    }

    #[test]
    fn a_pod_is_told_of_its_neighbours_and_of_the_api_server() {
        let key = |namespace: &str, name: &str| (namespace.to_owned(), name.to_owned());
        for (of, links, told) in [
            (key("default", "kubernetes"), false, true),
            (key("x", "web"), true, true),
            (key("x", "web"), false, false),
            (key("y", "web"), true, false),
            (key("default", "web"), true, false),
        ] {
            assert_eq!(is_told(&of, "x", links), told, "{of:?} {links}");
        }
    }
}
