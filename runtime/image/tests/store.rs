//! What the store keeps, and what becomes of it on a full disk, after a crash and after a power cut.

mod support;

use std::{fs, os::unix::fs::MetadataExt, sync::Arc};

use berth_image::ErrorKind;
use serde_json::json;
use support::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_that_nobody_waits_for_any_more_ends_and_leaves_nothing() {
    let registry = Registry::start().await;
    let proxy = Proxy::start(registry.port);
    let home = Home::new().await;
    let image = TestImage::new(
        vec![
            TestLayer::gzip(tar_of(&[("a", b"b")])),
            TestLayer::gzip(tar_of(&[("big", &noise(1 << 20, 5))])),
        ],
        "dropped",
    );
    registry.push("dropped", "1", &image).await;
    proxy.set(Fault {
        suffix: digest(&image.layers[1].blob),
        stall: Some(1000),
        ..Fault::default()
    });
    let name = format!("{}/dropped:1", proxy.host());
    let pull = home.store.pull(&name, None, None);
    assert!(
        tokio::time::timeout(std::time::Duration::from_millis(700), pull)
            .await
            .is_err()
    );
    for _ in 0..100 {
        if home.count("l") + home.count("ingest") == 0 && home.ledger.owners().unwrap().is_empty() {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    home.assert_empty();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_named_and_given_back() {
    // SEC-IMG-07, REL-13
    let registry = Registry::start().await;
    let image = TestImage::new(
        vec![TestLayer::gzip(tar_of(&[("zeros", &vec![0; 20 << 20])]))],
        "large",
    );
    let fits = small("fits");
    registry.push("large", "1", &image).await;
    registry.push("fits", "1", &fits).await;
    let dir = tempfile::tempdir().unwrap();
    struct Mounted<'a>(&'a std::path::Path);
    impl Drop for Mounted<'_> {
        fn drop(&mut self) {
            let _ = nix::mount::umount2(self.0, nix::mount::MntFlags::MNT_DETACH);
        }
    }
    nix::mount::mount(
        Some("berth-test"),
        dir.path(),
        Some("tmpfs"),
        nix::mount::MsFlags::empty(),
        Some("size=16m"),
    )
    .unwrap();
    let _mounted = Mounted(dir.path());
    let home = Home::at(dir.path()).await;
    let kept = home
        .store
        .pull(&format!("{}/fits:1", registry.host()), None, None)
        .await
        .unwrap();
    let error = home
        .store
        .pull(&format!("{}/large:1", registry.host()), None, None)
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ResourceExhausted, "{error}");
    assert!(
        error.to_string().contains(dir.path().to_str().unwrap()),
        "{error}"
    );
    assert_eq!(
        (
            home.count("l"),
            home.count("ingest"),
            home.store.list().len()
        ),
        (1, 0, 1)
    );
    let snapshot = home.store.prepare("c", &kept).unwrap();

    // Not one byte is left: everything can still go.
    let mut filler = fs::File::create(snapshot.upperdir.join("filler")).unwrap();
    while std::io::Write::write_all(&mut filler, &[1; 4096]).is_ok() {}
    drop(filler);
    assert!(home.store.prepare("c2", &kept).is_err());
    home.store.remove(&kept.id).await.unwrap();
    home.store.remove_snapshot("c2").unwrap();
    home.store.remove_snapshot("c").unwrap();
    home.assert_empty();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_crash_left_behind_goes_when_the_store_is_opened() {
    // REL-06, REL-12
    let registry = Registry::start().await;
    let home = Home::new().await;
    let (a, b) = (small("a"), small("b"));
    registry.push("a", "1", &a).await;
    registry.push("b", "1", &b).await;
    let first = home
        .store
        .pull(&format!("{}/a:1", registry.host()), None, None)
        .await
        .unwrap();
    home.store
        .pull(&format!("{}/b:1", registry.host()), None, None)
        .await
        .unwrap();
    let snapshot = home.store.prepare("kept", &first).unwrap();
    for _ in 0..1200 {
        let settled = fs::read_dir(home.dir.join("image/records/images"))
            .unwrap()
            .all(|e| {
                fs::read_to_string(e.unwrap().path())
                    .unwrap()
                    .contains("\"unsynced_boot\":null")
            });
        if settled {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    let image = home.dir.join("image");
    let ingest = image.join("ingest/unfinished");
    home.ledger
        .intend(
            "ingest-unfinished",
            &berth_state::Object::Ingest(ingest.clone()),
        )
        .unwrap();
    fs::create_dir(&ingest).unwrap();
    fs::write(ingest.join("half"), "x").unwrap();
    fs::create_dir_all(image.join("l/stray/dir")).unwrap();
    fs::create_dir_all(image.join("snapshots/stray/upper")).unwrap();
    // A damaged record costs that image only.
    let record = image.join(format!("records/images/{}.json", &b.id()[7..]));
    let mut bytes = fs::read(&record).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&record, bytes).unwrap();

    let again = Home::at(&home.dir).await;
    assert_eq!(
        again
            .store
            .list()
            .iter()
            .map(|i| i.id.clone())
            .collect::<Vec<_>>(),
        [a.id()]
    );
    assert_eq!(
        (
            again.count("l"),
            again.count("ingest"),
            again.count("snapshots")
        ),
        (1, 0, 1)
    );
    assert_eq!(again.ledger.owners().unwrap(), ["kept"]);
    assert_eq!(again.store.snapshots(), ["kept"]);
    assert_eq!(
        again.store.prepare("kept", &first).unwrap().lowerdirs,
        snapshot.lowerdirs
    );

    // A layer that is gone takes its image along; nothing is shown that can't run.
    let again = Arc::new(again);
    fs::remove_dir_all(&snapshot.lowerdirs[0]).unwrap();
    let last = Home::at(&home.dir).await;
    assert!(last.store.list().is_empty());
    last.store.remove_snapshot("kept").unwrap();
    drop(again);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_was_not_on_the_disk_at_a_power_cut_is_gone_after_it() {
    // REL-12: another boot finds a record that was good for the last one only.
    let registry = Registry::start().await;
    let home = Home::new().await;
    registry.push("p", "1", &small("p")).await;
    let image = home
        .store
        .pull(&format!("{}/p:1", registry.host()), None, None)
        .await
        .unwrap();
    let path = home
        .dir
        .join(format!("image/records/images/{}.json", &image.id[7..]));
    for _ in 0..1200 {
        if fs::read_to_string(&path)
            .unwrap()
            .contains("\"unsynced_boot\":null")
        {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    let mut record: serde_json::Value = berth_state::record::read(&path).unwrap().unwrap();
    assert!(
        record["unsynced_boot"].is_null(),
        "the image is on the disk in the end"
    );
    record["unsynced_boot"] = json!("another boot");
    berth_state::record::write(&path, &record, berth_state::record::Durability::PageCache).unwrap();
    let again = Home::at(&home.dir).await;
    again.assert_empty();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_that_a_layer_does_not_describe_keeps_the_mode_from_below() {
    let registry = Registry::start().await;
    let home = Home::new().await;
    let base = {
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(tar::EntryType::Directory);
        header.set_mode(0o1777);
        header.set_uid(7);
        header.set_size(0);
        builder.append_data(&mut header, "tmp", &[][..]).unwrap();
        builder.into_inner().unwrap()
    };
    let image = TestImage::new(
        vec![
            TestLayer::gzip(base),
            TestLayer::gzip(tar_of(&[("tmp/file", b"x")])),
        ],
        "implicit",
    );
    registry.push("implicit", "1", &image).await;
    let pulled = home
        .store
        .pull(&format!("{}/implicit:1", registry.host()), None, None)
        .await
        .unwrap();
    let snapshot = home.store.prepare("c", &pulled).unwrap();
    let top = fs::metadata(
        snapshot
            .lowerdirs
            .iter()
            .find(|d| d.join("tmp").exists())
            .unwrap()
            .join("tmp"),
    )
    .unwrap();
    assert_eq!((top.mode() & 0o7777, top.uid()), (0o1777, 7));
    assert_eq!(snapshot.lowerdirs.len(), 3);
    home.store.remove(&pulled.id).await.unwrap();
    home.store.remove_snapshot("c").unwrap();
    home.assert_empty();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_store_says_what_it_takes_on_the_disk() {
    let registry = Registry::start().await;
    let home = Home::new().await;
    let data = noise(3 << 20, 1);
    let image = TestImage::new(
        vec![TestLayer::zstd(tar_of(&[
            ("d/", b""),
            ("d/big", &data),
            ("small", b"x"),
        ]))],
        "size",
    );
    registry.push("size", "1", &image).await;
    let pulled = home
        .store
        .pull(&format!("{}/size:1", registry.host()), None, None)
        .await
        .unwrap();
    home.store.prepare("c", &pulled).unwrap();
    let ((path, images), (containers_path, containers)) = home.store.fs_info().unwrap();
    assert_eq!(
        (path, containers_path),
        (home.dir.join("image"), home.dir.join("image/snapshots"))
    );
    let du: u64 = String::from_utf8(
        std::process::Command::new("du")
            .args(["-s", "--block-size=1"])
            .arg(home.dir.join("image/l"))
            .output()
            .unwrap()
            .stdout,
    )
    .unwrap()
    .split_whitespace()
    .next()
    .unwrap()
    .parse()
    .unwrap();
    assert!(
        images.bytes.abs_diff(du) < 64 << 10,
        "{} {du}",
        images.bytes
    );
    assert!(images.inodes >= 4 && containers.inodes == 1 && containers.bytes <= 8192);
}

#[tokio::test(flavor = "multi_thread")]
async fn snapshot_keys_are_names_and_no_paths() {
    // SEC-CRI-09
    let registry = Registry::start().await;
    let home = Home::new().await;
    registry.push("k", "1", &small("k")).await;
    let image = home
        .store
        .pull(&format!("{}/k:1", registry.host()), None, None)
        .await
        .unwrap();
    for key in [
        "",
        ".",
        "..",
        "../x",
        "a/b",
        "a\0b",
        ".hidden",
        &"x".repeat(129),
        "é",
    ] {
        assert_eq!(
            home.store.prepare(key, &image).unwrap_err().kind(),
            ErrorKind::InvalidArgument,
            "{key:?}"
        );
        assert_eq!(
            home.store.remove_snapshot(key).unwrap_err().kind(),
            ErrorKind::InvalidArgument,
            "{key:?}"
        );
    }
    assert_eq!(
        home.store.snapshot_usage("none").unwrap_err().kind(),
        ErrorKind::NotFound
    );
    assert_eq!(home.count("snapshots"), 0);
}
