//! One question to a container, by any of the four ways.

use std::{net::IpAddr, time::Duration};

use k8s_openapi::{
    api::core::v1::{Container, ExecAction, GRPCAction, HTTPGetAction, Probe, TCPSocketAction},
    apimachinery::pkg::util::intstr::IntOrString,
};
use tokio::net::TcpStream;

use super::{grpc, http};
use crate::runtime::Runtime;

/// What a probe's answer may have to say, as upstream.
const MAX_MESSAGE_BYTES: usize = 10 << 10;

#[derive(Debug, Clone)]
pub(crate) enum Check {
    Http(http::Get),
    Tcp {
        host: String,
        port: u16,
    },
    Exec {
        command: Vec<String>,
    },
    Grpc {
        host: String,
        port: u16,
        service: String,
    },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    Good,
    Bad(String),
    /// The question could not be put: that is nobody's fault in the container.
    Unknown(String),
}

impl Check {
    /// # Errors
    /// What can't be asked: a port that has no such name, no way at all.
    pub fn of(probe: &Probe, container: &Container, pod_ip: &str) -> Result<Self, String> {
        match probe {
            Probe {
                exec: Some(ExecAction { command }),
                ..
            } => Ok(Self::Exec {
                command: command.clone().unwrap_or_default(),
            }),
            Probe {
                http_get: Some(action),
                ..
            } => Self::http(action, container, pod_ip),
            Probe {
                tcp_socket: Some(TCPSocketAction { host, port: asked }),
                ..
            } => Ok(Self::Tcp {
                host: host
                    .clone()
                    .filter(|it| !it.is_empty())
                    .unwrap_or_else(|| pod_ip.to_owned()),
                port: port(asked, container)?,
            }),
            Probe {
                grpc:
                    Some(GRPCAction {
                        port: asked,
                        service,
                    }),
                ..
            } => Ok(Self::Grpc {
                host: pod_ip.to_owned(),
                port: number(i64::from(*asked))?,
                service: service.clone().unwrap_or_default(),
            }),
            _ => Err("the probe has no way to ask".into()),
        }
    }

    pub fn http(
        action: &HTTPGetAction,
        container: &Container,
        pod_ip: &str,
    ) -> Result<Self, String> {
        Ok(Self::Http(http::Get {
            host: action
                .host
                .clone()
                .filter(|it| !it.is_empty())
                .unwrap_or_else(|| pod_ip.to_owned()),
            port: port(&action.port, container)?,
            path: action.path.clone().unwrap_or_default(),
            tls: action.scheme.as_deref() == Some("HTTPS"),
            headers: action
                .http_headers
                .iter()
                .flatten()
                .map(|header| (header.name.clone(), header.value.clone()))
                .collect(),
        }))
    }

    /// Asks once. `within` bounds the whole of it.
    pub async fn ask(&self, runtime: &Runtime, container: &str, within: Duration) -> Outcome {
        if let Self::Exec { command } = self {
            // the runtime keeps the time, and kills what is late
            return exec(runtime, container, command, within).await;
        }
        let asked = async {
            match self {
                Self::Http(get) => http::ask(get).await,
                Self::Tcp { host, port } => match TcpStream::connect((bare(host), *port)).await {
                    Ok(_) => Outcome::Good,
                    Err(error) => {
                        Outcome::Bad(format!("dial tcp {}: {error}", joined(host, *port)))
                    }
                },
                Self::Grpc {
                    host,
                    port,
                    service,
                } => grpc::ask(&joined(host, *port), service).await,
                Self::Exec { .. } => Outcome::Unknown("asked before".into()),
            }
        };
        let outcome = tokio::time::timeout(within, asked).await;
        outcome.unwrap_or_else(|_| Outcome::Bad(format!("no answer within {}s", within.as_secs())))
    }
}

async fn exec(runtime: &Runtime, container: &str, command: &[String], within: Duration) -> Outcome {
    match runtime.exec_sync(container, command.to_vec(), within).await {
        Ok(answer) if answer.exit_code == 0 => Outcome::Good,
        Ok(answer) => {
            let mut said = answer.stdout.to_vec();
            said.extend_from_slice(&answer.stderr);
            said.truncate(MAX_MESSAGE_BYTES);
            let said = String::from_utf8_lossy(&said);
            Outcome::Bad(match said.trim() {
                "" => format!("the command ended with {}", answer.exit_code),
                said => said.to_owned(),
            })
        }
        Err(crate::Error::Rpc {
            code: tonic::Code::DeadlineExceeded,
            ..
        }) => Outcome::Bad(format!(
            "the command did not end within {}s",
            within.as_secs()
        )),
        Err(error) => Outcome::Unknown(error.to_string()),
    }
}

/// `[::1]:80`
pub(super) fn joined(host: &str, port: u16) -> String {
    match bare(host).parse::<IpAddr>() {
        Ok(IpAddr::V6(ip)) => format!("[{ip}]:{port}"),
        _ => format!("{host}:{port}"),
    }
}

/// Without the brackets that an address of IPv6 may have.
pub(super) fn bare(host: &str) -> &str {
    host.strip_prefix('[')
        .and_then(|it| it.strip_suffix(']'))
        .unwrap_or(host)
}

/// By number, or by the name of one of the container's ports.
pub(crate) fn port(asked: &IntOrString, container: &Container) -> Result<u16, String> {
    match asked {
        IntOrString::Int(it) => number(i64::from(*it)),
        IntOrString::String(name) => {
            let named = container
                .ports
                .iter()
                .flatten()
                .find(|port| port.name.as_deref() == Some(name));
            match (named, name.parse::<i64>()) {
                (Some(port), _) => number(i64::from(port.container_port)),
                (None, Ok(it)) => number(it),
                (None, Err(_)) => Err(format!("the container has no port {name:?}")),
            }
        }
    }
}

fn number(port: i64) -> Result<u16, String> {
    match u16::try_from(port) {
        Ok(port) if port > 0 => Ok(port),
        _ => Err(format!("{port} is no port")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_found_by_number_and_by_name() {
        let container: Container = serde_json::from_value(
            serde_json::json!({"name": "a", "ports": [{"name": "web", "containerPort": 8080}]}),
        )
        .unwrap();
        for (asked, found) in [
            (IntOrString::Int(80), Ok(80)),
            (IntOrString::String("web".into()), Ok(8080)),
            (IntOrString::String("81".into()), Ok(81)),
            (
                IntOrString::String("db".into()),
                Err("the container has no port \"db\"".to_owned()),
            ),
            (IntOrString::Int(0), Err("0 is no port".into())),
            (IntOrString::Int(70_000), Err("70000 is no port".into())),
        ] {
            assert_eq!(port(&asked, &container), found);
        }
        assert_eq!(
            (joined("fd00::1", 80), joined("[fd00::1]", 80)),
            ("[fd00::1]:80".into(), "[fd00::1]:80".into())
        );
    }
}
