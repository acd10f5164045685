//! grpc: `grpc.health.v1.Health/Check`, whose two messages have one field each.

use tonic::{Code, Request, client::Grpc, codegen::http::uri::PathAndQuery, transport::Endpoint};
use tonic_prost::ProstCodec;

use super::Outcome;

#[derive(Clone, PartialEq, prost::Message)]
struct CheckRequest {
    #[prost(string, tag = "1")]
    service: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct CheckResponse {
    /// 1 is SERVING.
    #[prost(int32, tag = "1")]
    status: i32,
}

const SERVING: i32 = 1;

pub(super) async fn ask(address: &str, service: &str) -> Outcome {
    let endpoint = match Endpoint::from_shared(format!("http://{address}")) {
        Ok(endpoint) => endpoint,
        Err(error) => return Outcome::Bad(error.to_string()),
    };
    let channel = match endpoint.connect().await {
        Ok(channel) => channel,
        Err(error) => return Outcome::Bad(format!("failed to connect to {address}: {error}")),
    };
    let mut client = Grpc::new(channel);
    if let Err(error) = client.ready().await {
        return Outcome::Bad(format!("failed to connect to {address}: {error}"));
    }
    let request = Request::new(CheckRequest {
        service: service.to_owned(),
    });
    let path = PathAndQuery::from_static("/grpc.health.v1.Health/Check");
    let codec: ProstCodec<CheckRequest, CheckResponse> = ProstCodec::default();
    match client.unary(request, path, codec).await {
        Ok(answer) if answer.get_ref().status == SERVING => Outcome::Good,
        Ok(answer) => Outcome::Bad(format!(
            "service unhealthy (responded with {})",
            answer.get_ref().status
        )),
        Err(status) if status.code() == Code::Unimplemented => Outcome::Bad(
            "this server does not implement the grpc health protocol (grpc.health.v1.Health)"
                .into(),
        ),
        Err(status) => Outcome::Bad(format!("health rpc failed: {}", status.message())),
    }
}
