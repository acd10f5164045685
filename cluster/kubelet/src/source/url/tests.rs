use std::sync::Mutex;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

use super::*;

/// A server that answers each question with the next of `answers`; the heads of what it was asked.
async fn serve(answers: Vec<String>) -> (String, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/pods?x=1", listener.local_addr().unwrap());
    let asked = Arc::new(Mutex::new(Vec::new()));
    let heads = asked.clone();
    tokio::spawn(async move {
        for answer in answers {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(stream.read_u8().await.unwrap());
            }
            heads.lock().unwrap().push(String::from_utf8(head).unwrap());
            // who has read enough closes
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    });
    (url, asked)
}

fn answer(status: &str, headers: &str, body: &str) -> String {
    format!(
        "HTTP/1.1 {status}\r\n{headers}Content-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

fn source(url: &str, dir: &Path) -> UrlSource {
    UrlSource::new(UrlConfig {
        url: url.into(),
        headers: vec!["X-Who: n1".parse().unwrap()],
        every: Duration::from_secs(20),
        ca: None,
        node: "n1".into(),
        kubelet_dir: dir.into(),
    })
    .unwrap()
}

const POD: &str =
    "apiVersion: v1\nkind: Pod\nmetadata: {name: web}\nspec: {containers: [{name: a, image: x}]}\n";
const LIST: &str = r#"{"apiVersion": "v1", "kind": "PodList", "items": [
    {"metadata": {"name": "web"}, "spec": {"containers": [{"name": "a", "image": "x"}]}},
    {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "db"}, "spec": {"containers": [{"name": "a", "image": "x"}]}}]}"#;

#[tokio::test]
async fn one_pod_or_a_list_and_nothing_is_sent_twice_that_has_a_tag_kl_02() {
    let (url, asked) = serve(vec![
        answer("200 OK", "ETag: \"1\"\r\n", POD),
        answer("304 Not Modified", "", ""),
        answer("200 OK", "ETag: \"2\"\r\n", LIST),
        answer("200 OK", "", LIST),
        answer(
            "200 OK",
            "",
            r#"{"apiVersion": "v1", "kind": "PodList", "items": []}"#,
        ),
    ])
    .await;
    let dir = tempfile::tempdir().unwrap();
    let mut source = source(&url, dir.path());
    let names = |pods: Option<Vec<Arc<Desired>>>| -> Option<Vec<String>> {
        pods.map(|pods| pods.iter().map(|pod| pod.full_name()).collect())
    };
    let one = Some(vec!["default/web-n1".to_owned()]);
    assert_eq!(names(source.look().await.unwrap()), one);
    assert_eq!(names(source.look().await.unwrap()), None);
    let two = Some(vec![
        "default/web-n1".to_owned(),
        "default/db-n1".to_owned(),
    ]);
    assert_eq!(names(source.look().await.unwrap()), two);
    assert_eq!(names(source.look().await.unwrap()), None);
    assert_eq!(names(source.look().await.unwrap()), Some(Vec::new()));
    let asked = asked.lock().unwrap().clone();
    assert!(
        asked[0].starts_with("GET /pods?x=1 HTTP/1.1\r\n"),
        "{asked:?}"
    );
    let sent = |index: usize, line: &str| asked[index].to_lowercase().contains(line);
    assert!(
        sent(0, "x-who: n1\r\n") && !sent(0, "if-none-match"),
        "{asked:?}"
    );
    assert!(sent(1, "if-none-match: \"1\"\r\n"), "{asked:?}");
    assert!(sent(2, "if-none-match: \"1\"\r\n"), "{asked:?}");
    assert!(sent(3, "if-none-match: \"2\"\r\n"), "{asked:?}");
    assert!(!sent(4, "if-none-match"), "{asked:?}");
}

#[tokio::test]
async fn what_is_not_good_as_a_whole_is_an_error_that_says_why() {
    let bad_list = LIST.replacen("\"image\": \"x\"", "\"image\": 7", 1);
    let twice = LIST.replace("\"db\"", "\"web\"");
    let long = "x".repeat(usize::try_from(MAX_BYTES).unwrap() + 1);
    for (answer, words) in [
        (answer("404 Not Found", "", "no"), "404"),
        (
            answer("302 Found", "Location: http://x/y\r\n", ""),
            "http://x/y",
        ),
        // nobody asked whether it has changed
        (answer("304 Not Modified", "", ""), "304"),
        (answer("200 OK", "", ""), "empty"),
        (answer("200 OK", "", "hello"), "no Kubernetes manifest"),
        (
            answer("200 OK", "", &bad_list),
            "items[0].spec.containers[0].image",
        ),
        (answer("200 OK", "", &twice), "more than once"),
        (answer("200 OK", "", &long), "bytes"),
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nx".into(),
            "breaks off",
        ),
        ("nonsense\r\n\r\n".into(), ""),
    ] {
        let (url, _) = serve(vec![answer]).await;
        let dir = tempfile::tempdir().unwrap();
        let error = source(&url, dir.path()).look().await.unwrap_err();
        assert!(error.contains(words), "{words:?} is not in {error:?}");
    }
}

#[tokio::test]
async fn without_an_answer_the_pods_are_those_of_before() {
    let dir = tempfile::tempdir().unwrap();
    for (uid, from) in [("u1", "http"), ("u2", "file"), ("u3", "api")] {
        let kept = serde_json::json!({"source": from, "pod": {
            "metadata": {"name": from, "namespace": "default", "uid": uid},
            "spec": {"containers": [{"name": "a", "image": "x"}]},
        }});
        let place = dir.path().join("pods").join(uid);
        std::fs::create_dir_all(&place).unwrap();
        std::fs::write(place.join("pod.json"), kept.to_string()).unwrap();
    }
    // nobody listens at a port that was given back
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    drop(listener);
    let (told, mut heard) = watch::channel(None);
    let running = tokio::spawn(source(&url, dir.path()).run(told));
    let pods = heard.wait_for(Option::is_some).await.unwrap().clone();
    let names: Vec<_> = pods.unwrap().iter().map(|pod| pod.full_name()).collect();
    assert_eq!(names, ["default/http"]);
    drop(heard);
    running.await.unwrap();
}

#[test]
fn a_url_or_a_header_that_can_not_be_used_is_refused() {
    for (url, words) in [
        ("ftp://x/y", "neither http nor https"),
        ("nonsense", "relative URL"),
        ("http://me:secret@x/", "--manifest-url-header"),
    ] {
        let error = UrlSource::new(UrlConfig {
            url: url.into(),
            headers: Vec::new(),
            every: Duration::from_secs(1),
            ca: None,
            node: "n".into(),
            kubelet_dir: "/nonexistent".into(),
        })
        .unwrap_err()
        .to_string();
        assert!(error.contains(words), "{error}");
    }
    for bad in ["name", "a b:c", ":x"] {
        assert!(bad.parse::<UrlHeader>().is_err(), "{bad}");
    }
}
