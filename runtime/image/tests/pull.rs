//! Pulls from a real registry: the ways that work, and the ways that must fail cleanly.

mod support;

use std::{
    fs,
    os::unix::fs::{FileTypeExt, PermissionsExt},
};

use berth_image::ErrorKind;
use serde_json::json;
use support::*;

#[tokio::test(flavor = "multi_thread")]
async fn an_image_of_gzip_and_zstd_layers_is_pulled_listed_resolved_and_removed() {
    let registry = Registry::start().await;
    let home = Home::new().await;
    let image = TestImage::new(
        vec![
            TestLayer::gzip(busybox()),
            TestLayer::zstd(tar_of(&[
                ("etc/", b""),
                ("etc/.wh.motd", b""),
                ("etc/new", b"x"),
            ])),
        ],
        "two",
    );
    let manifest = registry.push("test/two", "1", &image).await;
    let name = format!("{}/test/two:1", registry.host());
    let (watcher, progress) = tokio::sync::watch::channel(Vec::new());

    let pulled = home.store.pull(&name, None, Some(watcher)).await.unwrap();
    assert_eq!(pulled.id, image.id());
    assert_eq!(pulled.repo_tags, [name.as_str()]);
    let by_digest = format!("{}/test/two@{manifest}", registry.host());
    assert_eq!(pulled.repo_digests, [by_digest.as_str()]);
    assert!(pulled.size_bytes > 1 << 20);
    let layers = progress.borrow().clone();
    assert!(
        layers.len() == 2
            && layers
                .iter()
                .all(|l| l.stage == "done" && l.done_bytes == l.total_bytes),
        "{layers:?}"
    );

    let short = &pulled.id[7..20];
    for reference in [
        name.as_str(),
        &by_digest,
        &pulled.id,
        &pulled.id[7..],
        short,
        &format!("sha256:{short}"),
    ] {
        assert_eq!(
            home.store.resolve(reference).unwrap().expect(reference).id,
            pulled.id
        );
    }
    assert!(home.store.resolve("nginx").unwrap().is_none());
    assert_eq!(
        home.store.resolve("../x").unwrap_err().kind(),
        ErrorKind::InvalidArgument
    );

    let snapshot = home.store.prepare("c1", &pulled).unwrap();
    assert_eq!(snapshot.lowerdirs.len(), 2);
    assert!(
        fs::metadata(snapshot.lowerdirs[0].join("etc/motd"))
            .unwrap()
            .file_type()
            .is_char_device()
    );
    assert_eq!(
        fs::read(snapshot.lowerdirs[1].join("etc/motd")).unwrap(),
        b"hello"
    );
    assert_eq!(
        fs::metadata(&snapshot.upperdir)
            .unwrap()
            .permissions()
            .mode()
            & 0o7777,
        0o755
    );

    // As overlayfs shows it.
    let target = home.dir.join("merged");
    fs::create_dir(&target).unwrap();
    let lower: Vec<String> = snapshot
        .lowerdirs
        .iter()
        .map(|d| d.display().to_string())
        .collect();
    let options = format!(
        "lowerdir={},upperdir={},workdir={}",
        lower.join(":"),
        snapshot.upperdir.display(),
        snapshot.workdir.display()
    );
    nix::mount::mount(
        Some("overlay"),
        &target,
        Some("overlay"),
        nix::mount::MsFlags::empty(),
        Some(options.as_str()),
    )
    .unwrap();
    let shown = (
        target.join("etc/motd").exists(),
        fs::read(target.join("etc/new")),
        target.join("bin/busybox").exists(),
    );
    fs::write(target.join("written"), vec![0u8; 50_000]).unwrap();
    nix::mount::umount(&target).unwrap();
    assert!(matches!(shown, (false, Ok(new), true) if new == b"x"));
    assert!(home.store.snapshot_usage("c1").unwrap().bytes >= 50_000);

    // The image goes, what the container needs stays.
    home.store.remove(&name).await.unwrap();
    assert!(home.store.resolve(&pulled.id).unwrap().is_none());
    assert_eq!(home.count("l"), 2);
    home.store.remove_snapshot("c1").unwrap();
    home.store.remove_snapshot("c1").unwrap();
    home.assert_empty();
    home.store.remove(&name).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_with_arm64_first_gives_this_machine_its_image() {
    let registry = Registry::start().await;
    let home = Home::new().await;
    let ours = small("ours");
    let other = TestImage::for_architecture(
        vec![TestLayer::gzip(tar_of(&[("x", b"y")]))],
        "other",
        "s390x",
    );
    let mut descriptors = Vec::new();
    for (image, architecture) in [
        (&other, "s390x"),
        (
            &ours,
            if cfg!(target_arch = "aarch64") {
                "arm64"
            } else {
                "amd64"
            },
        ),
    ] {
        let digest = registry.push("multi", architecture, image).await;
        descriptors.push(json!({"mediaType": OCI_MANIFEST, "digest": digest, "size": image.manifest().len(), "platform": {"os": "linux", "architecture": architecture}}));
    }
    let index =
        json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": descriptors}).to_string();
    let index_digest = registry
        .push_manifest("multi", "latest", OCI_INDEX, index.as_bytes())
        .await;
    let pulled = home
        .store
        .pull(&format!("{}/multi", registry.host()), None, None)
        .await
        .unwrap();
    assert_eq!(pulled.id, ours.id());
    assert_eq!(
        pulled.repo_tags,
        [format!("{}/multi:latest", registry.host())]
    );
    assert_eq!(
        pulled.repo_digests,
        [format!("{}/multi@{index_digest}", registry.host())]
    );

    let foreign =
        json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [descriptors[0]]})
            .to_string();
    registry
        .push_manifest("multi", "foreign", OCI_INDEX, foreign.as_bytes())
        .await;
    let error = home
        .store
        .pull(&format!("{}/multi:foreign", registry.host()), None, None)
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
    assert!(error.to_string().contains("linux/s390x"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_schema_2_is_pulled_by_tag_and_by_digest() {
    let registry = Registry::start().await;
    let home = Home::new().await;
    let image = TestImage {
        is_docker: true,
        ..small("docker")
    };
    let digest = registry.push("d", "1", &image).await;
    let by_digest = format!("{}/d@{digest}", registry.host());
    let pulled = home.store.pull(&by_digest, None, None).await.unwrap();
    assert_eq!(
        (pulled.repo_tags.len(), &pulled.repo_digests[..]),
        (0, &[by_digest.clone()][..])
    );
    let pulled = home
        .store
        .pull(&format!("{}/d:1", registry.host()), None, None)
        .await
        .unwrap();
    assert_eq!(
        (pulled.repo_tags.len(), &pulled.repo_digests[..]),
        (1, &[by_digest][..])
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_pull_is_one_request_and_a_moved_tag_leaves_the_old_image_by_digest() {
    let registry = Registry::start().await;
    let proxy = Proxy::start(registry.port);
    let home = Home::new().await;
    let (old, new) = (small("old"), small("new"));
    let old_digest = registry.push("move", "1", &old).await;
    let name = format!("{}/move:1", proxy.host());
    home.store.pull(&name, None, None).await.unwrap();
    let before = proxy.requests.lock().unwrap().len();
    let again = home.store.pull(&name, None, None).await.unwrap();
    assert_eq!(proxy.requests.lock().unwrap().len(), before + 1);
    assert_eq!(again.id, old.id());

    registry.push("move", "1", &new).await;
    let moved = home.store.pull(&name, None, None).await.unwrap();
    assert_eq!(
        (
            moved.id.clone(),
            home.store.resolve(&name).unwrap().unwrap().id.clone()
        ),
        (new.id(), new.id())
    );
    let left = home.store.resolve(&old.id()).unwrap().unwrap();
    assert!(left.repo_tags.is_empty());
    assert_eq!(
        left.repo_digests,
        [format!("{}/move@{old_digest}", proxy.host())]
    );

    // All of it is there after a restart too.
    let dir = home.dir.clone();
    let again = Home::at(&dir).await;
    assert_eq!(again.store.list().len(), 2);
    assert_eq!(again.store.resolve(&name).unwrap().unwrap().id, new.id());
}

#[tokio::test(flavor = "multi_thread")]
async fn three_tags_of_one_image_are_one_image_and_go_together() {
    let registry = Registry::start().await;
    let home = Home::new().await;
    let image = small("same");
    let mut names = Vec::new();
    for tag in ["1", "2", "3"] {
        registry.push("same", tag, &image).await;
        names.push(format!("{}/same:{tag}", registry.host()));
        home.store
            .pull(names.last().unwrap(), None, None)
            .await
            .unwrap();
    }
    let listed = home.store.list();
    assert_eq!(listed.len(), 1);
    assert_eq!(listed[0].repo_tags, names);
    home.store.remove(&names[0]).await.unwrap();
    for name in &names {
        assert!(home.store.resolve(name).unwrap().is_none());
    }
    home.assert_empty();
}

#[tokio::test(flavor = "multi_thread")]
async fn pulls_of_one_image_join_and_layers_are_fetched_once() {
    let registry = Registry::start().await;
    let proxy = Proxy::start(registry.port);
    let home = Home::new().await;
    let shared = TestLayer::gzip(tar_of(&[("big", &noise(3 << 20, 7))]));
    let a = TestImage::new(vec![shared.clone()], "a");
    let b = TestImage::new(
        vec![shared.clone(), TestLayer::gzip(tar_of(&[("b", b"b")]))],
        "b",
    );
    registry.push("join/a", "1", &a).await;
    registry.push("join/b", "1", &b).await;
    let mut pulls = Vec::new();
    for at in 0..10 {
        let store = home.store.clone();
        let name = format!(
            "{}/join/{}:1",
            proxy.host(),
            if at % 2 == 0 { "a" } else { "b" }
        );
        pulls.push(tokio::spawn(
            async move { store.pull(&name, None, None).await },
        ));
    }
    for pull in pulls {
        pull.await.unwrap().unwrap();
    }
    assert_eq!(proxy.count(&digest(&shared.blob)), 1);
    assert_eq!(proxy.count("/manifests/"), 2);
    assert_eq!(home.store.list().len(), 2);
    // Removing one leaves the layer to the other.
    home.store.remove(&a.id()).await.unwrap();
    assert_eq!(home.count("l"), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_connection_is_resumed_where_it_was_cut() {
    let registry = Registry::start().await;
    let proxy = Proxy::start(registry.port);
    for (at, is_without_range) in [false, true].into_iter().enumerate() {
        let home = Home::new().await;
        let data = noise(2 << 20, 3 + at as u64);
        let image = TestImage::new(vec![TestLayer::gzip(tar_of(&[("big", &data)]))], "cut");
        let repository = format!("cut{at}");
        registry.push(&repository, "1", &image).await;
        proxy.set(Fault {
            suffix: digest(&image.layers[0].blob),
            cut: Some((700_000, 2 * (at + 1))),
            is_without_range,
            ..Fault::default()
        });
        let pulled = home
            .store
            .pull(&format!("{}/{repository}:1", proxy.host()), None, None)
            .await
            .unwrap();
        let snapshot = home.store.prepare("c", &pulled).unwrap();
        assert!(fs::read(snapshot.lowerdirs[0].join("big")).unwrap() == data);
        assert!(proxy.count(&digest(&image.layers[0].blob)) >= 2);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_bytes_fail_the_pull_and_leave_nothing() {
    // SEC-IMG-04
    let registry = Registry::start().await;
    let proxy = Proxy::start(registry.port);
    let image = TestImage::new(
        vec![
            TestLayer::gzip(tar_of(&[("a", b"fine")])),
            TestLayer::gzip(tar_of(&[("big", &noise(1 << 20, 9))])),
        ],
        "wrong",
    );
    registry.push("wrong", "1", &image).await;
    let name = format!("{}/wrong:1", proxy.host());
    let (layer, config) = (digest(&image.layers[1].blob), image.id());
    let length = image.layers[1].blob.len();
    let broken = |suffix: &str| Fault {
        suffix: suffix.to_owned(),
        ..Fault::default()
    };
    let cases = [
        (
            "a flipped bit in a layer",
            Fault {
                flip: Some(length / 2),
                ..broken(&layer)
            },
            ErrorKind::DataLoss,
            &layer,
        ),
        (
            "a flipped bit in the gzip header",
            Fault {
                flip: Some(0),
                ..broken(&layer)
            },
            ErrorKind::DataLoss,
            &layer,
        ),
        (
            "a layer that ends early",
            Fault {
                truncate: Some(length / 2),
                ..broken(&layer)
            },
            ErrorKind::DataLoss,
            &layer,
        ),
        (
            "a layer that is cut again and again",
            Fault {
                cut: Some((0, 1000)),
                ..broken(&layer)
            },
            ErrorKind::Unavailable,
            &layer,
        ),
        (
            "a layer that stalls",
            Fault {
                stall: Some(100_000),
                ..broken(&layer)
            },
            ErrorKind::Unavailable,
            &layer,
        ),
        (
            "a flipped bit in the configuration",
            Fault {
                flip: Some(5),
                ..broken(&config)
            },
            ErrorKind::DataLoss,
            &config,
        ),
        (
            "a flipped bit in the manifest",
            Fault {
                flip: Some(5),
                ..broken("/manifests/1")
            },
            ErrorKind::DataLoss,
            &"sha256".to_owned(),
        ),
    ];
    for (what, fault, kind, named) in cases {
        proxy.set(fault);
        let home = Home::new().await;
        let error = home.store.pull(&name, None, None).await.expect_err(what);
        assert_eq!(error.kind(), kind, "{what}: {error}");
        assert!(
            error.to_string().contains(named.as_str()),
            "{what}: {error}"
        );
        home.assert_empty();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_diff_id_that_lies_fails_the_pull() {
    // SEC-IMG-04
    let registry = Registry::start().await;
    let home = Home::new().await;
    let mut image = small("honest");
    image.config = image
        .config
        .replace(&digest(&image.layers[0].tar), &digest(b"something else"));
    registry.push("lie", "1", &image).await;
    let error = home
        .store
        .pull(&format!("{}/lie:1", registry.host()), None, None)
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::DataLoss, "{error}");
    assert!(error.to_string().contains("unpacked"), "{error}");
    home.assert_empty();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_there_is_not_found_and_an_unreachable_host_is_unavailable() {
    let registry = Registry::start().await;
    let home = Home::new().await;
    registry.push("there", "1", &small("x")).await;
    for (name, kind, part) in [
        (
            format!("{}/there:2", registry.host()),
            ErrorKind::NotFound,
            "there:2",
        ),
        (
            format!("{}/missing:1", registry.host()),
            ErrorKind::NotFound,
            "404",
        ),
        (
            format!("{}/there@{}", registry.host(), digest(b"no")),
            ErrorKind::NotFound,
            "manifest",
        ),
        (
            "127.0.0.1:1/x:1".to_owned(),
            ErrorKind::Unavailable,
            "connect",
        ),
        ("x y".to_owned(), ErrorKind::InvalidArgument, "reference"),
    ] {
        let error = home.store.pull(&name, None, None).await.unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.to_string().contains(part), "{error}");
    }
    home.assert_empty();
}
