//! Exec, Attach and PortForward: checked here, served by the stream server at the URL that is answered.

use berth_proto::cri::{
    AttachRequest, AttachResponse, ExecRequest, ExecResponse, PortForwardRequest,
    PortForwardResponse,
};
use berth_stream::Request;

use super::{Service, containers::running};
use crate::error::Error;

pub fn exec(service: &Service, request: ExecRequest) -> Result<ExecResponse, Error> {
    let (pod, container) = service.registry.container_view(&request.container_id)?;
    running(&pod, &container, "exec in")?;
    let url = service
        .streams
        .register(Request::Exec(berth_stream::ExecRequest {
            container_id: container.record.id.clone(),
            cmd: request.cmd,
            tty: request.tty,
            stdin: request.stdin,
            stdout: request.stdout,
            stderr: request.stderr,
        }))?;
    Ok(ExecResponse { url })
}

pub fn attach(service: &Service, request: AttachRequest) -> Result<AttachResponse, Error> {
    let (pod, container) = service.registry.container_view(&request.container_id)?;
    running(&pod, &container, "attach to")?;
    if request.tty && request.stderr {
        return Err(Error::InvalidArgument(
            "a terminal has no stderr of its own: tty and stderr can't both be asked for".into(),
        ));
    }
    let config = &container.record.config;
    if request.stdin && !config.stdin {
        return Err(Error::FailedPrecondition(format!(
            "attach to container {}: it was created without stdin",
            container.record.id
        )));
    }
    let url = service
        .streams
        .register(Request::Attach(berth_stream::AttachRequest {
            container_id: container.record.id.clone(),
            // What the container has, whatever the client believes.
            tty: config.tty,
            stdin: request.stdin,
            stdout: request.stdout,
            stderr: request.stderr && !config.tty,
        }))?;
    Ok(AttachResponse { url })
}

pub fn port_forward(
    service: &Service,
    request: PortForwardRequest,
) -> Result<PortForwardResponse, Error> {
    let pod = service.registry.pod(&request.pod_sandbox_id)?.view();
    if !pod.ready {
        return Err(Error::FailedPrecondition(format!(
            "forward ports of pod {}: it is not ready",
            pod.pod.id
        )));
    }
    if let Some(port) = request.port.iter().find(|p| !(1..=65535).contains(*p)) {
        return Err(Error::InvalidArgument(format!(
            "{port} is no port: 1 to 65535 are"
        )));
    }
    let url = service
        .streams
        .register(Request::PortForward(berth_stream::PortForwardRequest {
            pod_sandbox_id: pod.pod.id.clone(),
            ports: request.port,
        }))?;
    Ok(PortForwardResponse { url })
}
