//! Which headers go on, and which come back. The client's credentials are for this server, and end here.

use http::{HeaderMap, HeaderName, HeaderValue, header};

/// A token of the client's, as a browser can send it: a WebSocket protocol of this name.
pub const BEARER_PROTOCOL: &str = "base64url.bearer.authorization.k8s.io.";
pub const STREAM_PROTOCOL: HeaderName = HeaderName::from_static("x-stream-protocol-version");

/// Of one connection (RFC 9110, 7.6.1).
const HOP_BY_HOP: [&str; 9] = [
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// Who the client is, said in whatever way; and what it says of where it comes from, which only this server knows.
const OF_THE_CLIENT: [&str; 7] = [
    "authorization",
    "cookie",
    "forwarded",
    "host",
    "x-forwarded-host",
    "x-forwarded-proto",
    "x-forwarded-uri",
];

/// Whether the client wants another protocol on this connection.
pub fn asks_to_upgrade(headers: &HeaderMap) -> bool {
    named_by_connection(headers).any(|name| name.eq_ignore_ascii_case("upgrade"))
        && headers.contains_key(header::UPGRADE)
}

fn named_by_connection(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
}

/// What an upgrade needs, and nothing else of the client's.
pub fn of_upgrade(client: &HeaderMap) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    for name in [
        header::UPGRADE,
        header::SEC_WEBSOCKET_KEY,
        header::SEC_WEBSOCKET_VERSION,
        header::SEC_WEBSOCKET_EXTENSIONS,
        STREAM_PROTOCOL,
    ] {
        for value in client.get_all(&name) {
            headers.append(&name, value.clone());
        }
    }
    if let Some(protocols) = websocket_protocols(client) {
        headers.insert(header::SEC_WEBSOCKET_PROTOCOL, protocols);
    }
    headers
}

fn websocket_protocols(client: &HeaderMap) -> Option<HeaderValue> {
    let protocols: Vec<&str> = client
        .get_all(header::SEC_WEBSOCKET_PROTOCOL)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .filter(|protocol| !protocol.is_empty() && !protocol.starts_with(BEARER_PROTOCOL))
        .collect();
    HeaderValue::from_str(&protocols.join(", "))
        .ok()
        .filter(|value| !value.is_empty())
}

/// What goes on to whom a proxy leads to.
pub fn of_proxy(client: &HeaderMap) -> HeaderMap {
    let dropped: Vec<String> = named_by_connection(client)
        .map(str::to_ascii_lowercase)
        .collect();
    let mut headers = HeaderMap::new();
    for (name, value) in client {
        let text = name.as_str();
        let is_ours = HOP_BY_HOP.contains(&text)
            || OF_THE_CLIENT.contains(&text)
            || dropped.iter().any(|dropped| dropped == text)
            || text.starts_with("impersonate-")
            || text.starts_with("x-remote-")
            || text.starts_with("sec-websocket-")
            || *name == header::EXPECT;
        if !is_ours {
            headers.append(name, value.clone());
        }
    }
    if asks_to_upgrade(client) {
        headers.extend(of_upgrade(client));
    }
    headers
}

/// What comes back of an upgrade.
pub fn of_upgraded(answer: &HeaderMap) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    for name in [
        header::UPGRADE,
        header::SEC_WEBSOCKET_ACCEPT,
        header::SEC_WEBSOCKET_PROTOCOL,
        header::SEC_WEBSOCKET_EXTENSIONS,
        STREAM_PROTOCOL,
    ] {
        for value in answer.get_all(&name) {
            headers.append(&name, value.clone());
        }
    }
    headers
}

/// What comes back of anything else. Cookies would be shown to every other service behind this server, and what another origin may is ours to say.
pub fn of_answer(answer: &HeaderMap) -> HeaderMap {
    let dropped: Vec<String> = named_by_connection(answer)
        .map(str::to_ascii_lowercase)
        .collect();
    let mut headers = HeaderMap::new();
    for (name, value) in answer {
        let text = name.as_str();
        let stays = HOP_BY_HOP.contains(&text)
            || dropped.iter().any(|dropped| dropped == text)
            || text.starts_with("access-control-")
            || *name == header::SET_COOKIE;
        if !stays {
            headers.append(name, value.clone());
        }
    }
    headers
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(
                HeaderName::from_static(name),
                HeaderValue::from_static(value),
            );
        }
        headers
    }

    #[test]
    fn the_clients_credentials_end_here() {
        let client = map(&[
            ("authorization", "Bearer secret"),
            ("cookie", "session=secret"),
            ("impersonate-user", "secret"),
            ("x-remote-user", "secret"),
            ("proxy-authorization", "secret"),
            ("connection", "Upgrade, X-Secret"),
            ("x-secret", "secret"),
            ("upgrade", "websocket"),
            ("sec-websocket-key", "k"),
            ("sec-websocket-version", "13"),
            (
                "sec-websocket-protocol",
                "base64url.bearer.authorization.k8s.io.secret, v5.channel.k8s.io",
            ),
            ("accept", "text/html"),
        ]);
        for headers in [of_upgrade(&client), of_proxy(&client)] {
            assert!(!format!("{headers:?}").contains("secret"), "{headers:?}");
            assert_eq!(headers["sec-websocket-protocol"], "v5.channel.k8s.io");
            assert_eq!(headers["upgrade"], "websocket");
        }
        assert!(!of_upgrade(&client).contains_key("accept"));
        assert_eq!(of_proxy(&client)["accept"], "text/html");
    }

    #[test]
    fn every_stream_protocol_that_is_offered_goes_on() {
        let client = map(&[
            ("connection", "Upgrade"),
            ("upgrade", "SPDY/3.1"),
            ("x-stream-protocol-version", "v5.channel.k8s.io"),
            ("x-stream-protocol-version", "v4.channel.k8s.io"),
        ]);
        assert!(asks_to_upgrade(&client));
        let offered: Vec<_> = of_upgrade(&client)
            .get_all(STREAM_PROTOCOL)
            .iter()
            .cloned()
            .collect();
        assert_eq!(offered, ["v5.channel.k8s.io", "v4.channel.k8s.io"]);
        assert!(!asks_to_upgrade(&map(&[("upgrade", "websocket")])));
        assert!(!asks_to_upgrade(&map(&[("connection", "Upgrade")])));
    }

    #[test]
    fn what_comes_back_leaves_no_cookie() {
        let answer = of_answer(&map(&[
            ("set-cookie", "a=b"),
            ("access-control-allow-origin", "*"),
            ("transfer-encoding", "chunked"),
            ("content-type", "text/html"),
        ]));
        assert_eq!(answer.len(), 1);
    }
}
