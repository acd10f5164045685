//! Who may pull, and from where: credentials, tokens, redirects, mirrors.

mod support;

use berth_image::{Auth, ErrorKind};
use support::*;

#[tokio::test(flavor = "multi_thread")]
async fn credentials_open_a_registry_and_are_never_shown() {
    let registry = Registry::start_with(Some(PASSWORD)).await;
    let home = Home::new().await;
    registry.push("private", "1", &small("p")).await;
    let name = format!("{}/private:1", registry.host());
    let with = |password: &str| Auth {
        username: "bob".into(),
        password: password.into(),
        ..Auth::default()
    };
    let error = home.store.pull(&name, None, None).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unauthenticated, "{error}");
    let error = home
        .store
        .pull(&name, Some(with("wr0ng-s3cret")), None)
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unauthenticated, "{error}");
    assert!(!error.to_string().contains("s3cret") && !format!("{error:?}").contains("s3cret"));
    home.assert_empty();
    home.store
        .pull(&name, Some(with(PASSWORD)), None)
        .await
        .unwrap();
    // The image is here, and still not for everyone.
    assert_eq!(
        home.store.pull(&name, None, None).await.unwrap_err().kind(),
        ErrorKind::Unauthenticated
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn authorization_goes_to_the_registry_and_not_along_a_redirect_or_to_a_mirror() {
    // SEC-IMG-06
    let registry = Registry::start_with(Some(PASSWORD)).await;
    let open = Registry::start().await;
    let image = small("redirected");
    registry.push("r", "1", &image).await;
    open.push("r", "1", &image).await;
    let (front, thief) = (Proxy::start(registry.port), Proxy::start(open.port));
    let layer = digest(&image.layers[0].blob);
    let location = format!(
        "http://{}/v2/r/blobs/{layer}?signature=s3cret",
        thief.host()
    );
    front.set(Fault { suffix: layer.clone(), answer: Some(format!("HTTP/1.1 307 Temporary Redirect\r\nLocation: {location}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").into_bytes()), ..Fault::default() });
    let auth = Auth {
        username: "bob".into(),
        password: PASSWORD.into(),
        ..Auth::default()
    };
    let home = Home::new().await;
    home.store
        .pull(&format!("{}/r:1", front.host()), Some(auth.clone()), None)
        .await
        .unwrap();
    assert_eq!(thief.count(&layer), 1);
    let has_secret = |proxy: &Proxy| {
        proxy
            .requests
            .lock()
            .unwrap()
            .iter()
            .any(|head| head.to_ascii_lowercase().contains("authorization"))
    };
    assert!(has_secret(&front) && !has_secret(&thief));

    // A mirror that asks for them.
    let home = Home::new().await;
    thief.set(Fault { suffix: "/manifests/1".into(), answer: Some(b"HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Basic realm=\"x\"\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".to_vec()), ..Fault::default() });
    home.hosts(
        &registry.host(),
        &format!(
            "server = \"http://{}\"\n[host.\"http://{}\"]\n",
            registry.host(),
            thief.host()
        ),
    );
    home.store
        .pull(&format!("{}/r:1", registry.host()), Some(auth), None)
        .await
        .unwrap();
    assert!(thief.count("/manifests/1") >= 1);
    assert!(!has_secret(&thief));

    // A token service at a link-local address.
    let home = Home::new().await;
    thief.set(Fault { suffix: "/manifests/1".into(), answer: Some(b"HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Bearer realm=\"http://169.254.169.254/token\"\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".to_vec()), ..Fault::default() });
    let error = home
        .store
        .pull(&format!("{}/r:1", thief.host()), None, None)
        .await
        .unwrap_err();
    assert!(error.to_string().contains("link-local"), "{error}");
    // A redirect there.
    thief.set(Fault { suffix: "/manifests/1".into(), answer: Some(b"HTTP/1.1 307 Temporary Redirect\r\nLocation: http://169.254.169.254/x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".to_vec()), ..Fault::default() });
    let error = home
        .store
        .pull(&format!("{}/r:1", thief.host()), None, None)
        .await
        .unwrap_err();
    assert!(error.to_string().contains("link-local"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_fetched_with_the_credentials_and_used() {
    let registry = Registry::start().await;
    let image = small("token");
    registry.push("t", "1", &image).await;
    let front = Proxy::start(registry.port);
    // The registry itself asks for nothing: the proxy asks once, and answers as the token service too.
    let challenge = format!(
        "HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Bearer realm=\"http://{}/token\",service=\"svc\",scope=\"repository:t:pull\"\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
        front.host()
    );
    let home = Home::new().await;
    let body = "{\"access_token\":\"t0ken\"}";
    let answer = format!(
        "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )
    .into_bytes();
    *front.faults.lock().unwrap() = vec![
        Fault {
            suffix: "/manifests/1".into(),
            answer: Some(challenge.into_bytes()),
            unless: Some("Bearer t0ken".into()),
            ..Fault::default()
        },
        Fault {
            suffix: "/token".into(),
            answer: Some(answer),
            ..Fault::default()
        },
    ];
    let auth = Auth {
        username: "bob".into(),
        password: "pw".into(),
        ..Auth::default()
    };
    let pulled = home
        .store
        .pull(&format!("{}/t:1", front.host()), Some(auth), None)
        .await;
    let heads = front.requests.lock().unwrap().clone();
    assert_eq!(pulled.unwrap().id, image.id());
    let token: Vec<&String> = heads
        .iter()
        .filter(|head| head.contains("/token"))
        .collect();
    assert_eq!(token.len(), 1);
    assert!(
        token[0].contains("scope=repository%3At%3Apull")
            && token[0].contains("service=svc")
            && token[0]
                .to_ascii_lowercase()
                .contains("authorization: basic"),
        "{}",
        token[0]
    );
    assert!(
        heads
            .iter()
            .filter(|head| head.contains("/blobs/"))
            .all(|head| head.contains("Bearer t0ken"))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn mirrors_are_asked_first_and_the_registry_after_them() {
    let registry = Registry::start().await;
    let home = Home::new().await;
    let image = small("mirrored");
    registry.push("library/thing", "latest", &image).await;
    home.hosts("docker.io", &format!("server = \"http://127.0.0.1:1\"\n[host.\"http://127.0.0.1:2\"]\n[host.\"http://{}\"]\n capabilities = [\"pull\", \"resolve\"]\n", registry.host()));
    let pulled = home.store.pull("thing", None, None).await.unwrap();
    assert_eq!(pulled.repo_tags, ["docker.io/library/thing:latest"]);
    let error = home.store.pull("other", None, None).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(
        error.to_string().contains("127.0.0.1:2") && error.to_string().contains("127.0.0.1:1:"),
        "{error}"
    );

    home.hosts("bad.example", "\nserver = 5\n");
    let error = home
        .store
        .pull("bad.example/x", None, None)
        .await
        .unwrap_err();
    assert!(
        error.to_string().contains("bad.example/hosts.toml:2: "),
        "{error}"
    );
}
