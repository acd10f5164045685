//! Keys: what is written, compared and found.

use berth_store::{
    Compare, Error, Is, KeyValue, Keys, MAX_OPS, MAX_REQUEST_BYTES, Op, OpAnswer, RangeRequest,
    Target, Txn,
};

use super::{Any, all, bytes, delete, get, leased, names, put, then, told, watch, write};

pub async fn an_empty_store_is_at_its_first_revision(store: Any) {
    let found = store.range(all()).await.unwrap();
    assert_eq!(found.revision, berth_store::FIRST_REVISION);
    assert_eq!((found.kvs.len(), found.count, found.more), (0, 0, false));
    assert_eq!(store.status().await.unwrap().revision, found.revision);
    assert_eq!(store.revision().await.unwrap(), found.revision);
    let nothing = write(&store, []).await;
    assert_eq!((nothing.succeeded, nothing.revision), (true, 1));
    let nothing = write(&store, [delete("/a")]).await;
    assert_eq!(nothing.revision, 1, "what changes nothing is no revision");
    assert_eq!(nothing.answers, [OpAnswer::Delete(vec![])]);
    assert_eq!(write(&store, [put("/a", "1")]).await.revision, 2);
}

pub async fn a_key_has_its_revisions_and_counts_its_puts(store: Any) {
    let first = write(&store, [put("/a", "one")]).await;
    assert_eq!(first.answers, [OpAnswer::Put(None)]);
    write(&store, [put("/b", "")]).await;
    let third = write(&store, [put("/a", "two")]).await;
    let was = KeyValue {
        key: bytes("/a"),
        value: bytes("one"),
        create_revision: first.revision,
        mod_revision: first.revision,
        version: 1,
        lease: 0,
    };
    assert_eq!(third.answers, [OpAnswer::Put(Some(was.clone()))]);
    let is = KeyValue {
        value: bytes("two"),
        mod_revision: third.revision,
        version: 2,
        ..was
    };
    assert_eq!(get(&store, "/a").await.unwrap(), is);
    assert_eq!(get(&store, "/b").await.unwrap().value, "");
    assert_eq!(get(&store, "/").await, None);
}

pub async fn a_deleted_key_begins_anew(store: Any) {
    write(&store, [put("/a", "one")]).await;
    let second = write(&store, [put("/a", "two")]).await;
    let gone = write(&store, [delete("/a")]).await;
    let [OpAnswer::Delete(deleted)] = &gone.answers[..] else {
        panic!("{gone:?}");
    };
    assert_eq!(deleted[0].value, "two");
    assert_eq!(get(&store, "/a").await, None);
    let again = write(&store, [put("/a", "three")]).await;
    let is = get(&store, "/a").await.unwrap();
    assert_eq!((is.create_revision, is.version), (again.revision, 1));
    let revision = second.revision;
    let past = store
        .range(RangeRequest { revision, ..all() })
        .await
        .unwrap();
    assert_eq!(past.kvs[0].value, "two");
    let revision = gone.revision;
    let past = store
        .range(RangeRequest { revision, ..all() })
        .await
        .unwrap();
    assert_eq!((past.kvs.len(), past.count), (0, 0));
}

pub async fn a_range_is_in_order_and_paged_at_one_revision(store: Any) {
    let keys: Vec<_> = (0..25).map(|n| format!("/pods/{n:02}")).collect();
    for key in keys.iter().rev() {
        write(&store, [put(key, "old")]).await;
    }
    let mut page = RangeRequest { limit: 10, ..all() };
    let mut seen = Vec::new();
    for (left, more) in [(25, true), (15, true), (5, false)] {
        let found = store.range(page.clone()).await.unwrap();
        assert_eq!((found.count, found.more), (left, more));
        assert!(found.kvs.iter().all(|kv| kv.value == "old"));
        seen.extend(names(&found));
        // What changes between two pages doesn't show.
        if page.revision == 0 {
            page.revision = found.revision;
        }
        write(&store, [put("/pods/zz", "new"), put("/pods/20", "new")]).await;
        write(&store, [delete("/pods/13")]).await;
        write(&store, [put("/pods/13", "new")]).await;
        let mut from = found.kvs.last().unwrap().key.to_vec();
        from.push(0);
        page.keys = Keys::Range {
            from: from.into(),
            to: bytes("0"),
        };
    }
    assert_eq!(seen, keys);
}

pub async fn ranges_of_every_form_find_what_they_should(store: Any) {
    for key in ["/a", "/a/b", "/a\u{0}", "/b", "/c\u{ff}", "z"] {
        write(&store, [put(key, key)]).await;
    }
    write(&store, [put([b'/', 0xff, 0xff], "high")]).await;
    let range = |from: &str, to: &str| Keys::Range {
        from: bytes(from),
        to: bytes(to),
    };
    let count = async |keys: Keys| {
        let found = store.range(RangeRequest { keys, ..all() }).await.unwrap();
        assert_eq!(found.kvs.len() as u64, found.count);
        found.count
    };
    assert_eq!(count(Keys::prefix("/")).await, 6);
    assert_eq!(count(Keys::prefix("/a")).await, 3);
    assert_eq!(count(Keys::prefix("/a/")).await, 1);
    assert_eq!(count(Keys::prefix([b'/', 0xff].to_vec())).await, 1);
    assert_eq!(count(Keys::prefix("")).await, 7);
    assert_eq!(count(range("/a", "/b")).await, 3);
    assert_eq!(count(range("/b", "")).await, 4);
    assert_eq!(count(range("/b", "/a")).await, 0);
    assert_eq!(count(range("/b", "/b")).await, 0);
    assert_eq!(count(Keys::One(bytes("/a"))).await, 1);
    let bare = store
        .range(RangeRequest {
            keys_only: true,
            ..all()
        })
        .await
        .unwrap();
    assert!(
        bare.kvs
            .iter()
            .all(|kv| kv.value.is_empty() && kv.version == 1)
    );
    let counted = store
        .range(RangeRequest {
            count_only: true,
            limit: 2,
            ..all()
        })
        .await
        .unwrap();
    assert_eq!(
        (counted.count, counted.kvs.len(), counted.more),
        (6, 0, false)
    );
    let revision = counted.revision + 1;
    match store.range(RangeRequest { revision, ..all() }).await {
        Err(Error::Future { asked, newest }) => {
            assert_eq!((asked, newest), (revision, counted.revision));
        }
        other => panic!("{other:?}"),
    }
}

pub async fn every_kind_of_compare_decides(store: Any) {
    let lease = store.lease_grant(600).await.unwrap().id;
    write(&store, [put("/a", "m")]).await;
    write(&store, [leased("/l", lease)]).await;
    write(&store, [put("/a", "m")]).await;
    // /a: made at 2, changed at 4, version 2.
    let a = |is, target| ("/a", is, target);
    let none = |is, target| ("/none", is, target);
    use Is::{Equal, Greater, Less, NotEqual};
    use Target::{CreateRevision, Lease, ModRevision, Value, Version};
    let table = [
        (a(Equal, CreateRevision(2)), true),
        (a(Equal, CreateRevision(4)), false),
        (a(NotEqual, CreateRevision(2)), false),
        (a(Greater, CreateRevision(1)), true),
        (a(Less, CreateRevision(2)), false),
        (a(Equal, ModRevision(4)), true),
        (a(NotEqual, ModRevision(2)), true),
        (a(Greater, ModRevision(4)), false),
        (a(Less, ModRevision(5)), true),
        (a(Equal, Version(2)), true),
        (a(Less, Version(2)), false),
        (a(Greater, Version(1)), true),
        (a(NotEqual, Version(2)), false),
        (a(Equal, Value(bytes("m"))), true),
        (a(NotEqual, Value(bytes("m"))), false),
        (a(Greater, Value(bytes("a"))), true),
        (a(Less, Value(bytes("mm"))), true),
        (a(Equal, Lease(0)), true),
        (("/l", Equal, Lease(lease)), true),
        (("/l", NotEqual, Lease(0)), true),
        (none(Equal, CreateRevision(0)), true),
        (none(Equal, ModRevision(0)), true),
        (none(Equal, Version(0)), true),
        (none(Greater, ModRevision(0)), false),
        (none(Less, Version(1)), true),
        (none(Equal, Lease(0)), true),
        (none(Equal, Value(bytes(""))), false),
        (none(NotEqual, Value(bytes("m"))), false),
    ];
    for ((key, is, target), holds) in table {
        let compare = Compare {
            key: bytes(key),
            is,
            target,
        };
        let txn = Txn {
            compares: vec![compare.clone()],
            then: vec![],
            otherwise: vec![Op::Range(all())],
            ..Txn::default()
        };
        let answer = store.txn(txn).await.unwrap();
        assert_eq!(answer.succeeded, holds, "{compare:?}");
        assert_eq!(answer.answers.len(), usize::from(!holds));
    }
    let both = Txn {
        compares: ["/a", "/none"]
            .map(|key| Compare {
                key: bytes(key),
                is: Is::Equal,
                target: Target::Version(0),
            })
            .to_vec(),
        ..Txn::default()
    };
    assert!(!store.txn(both).await.unwrap().succeeded, "all must hold");
}

pub async fn a_transaction_is_one_revision_and_all_or_nothing(store: Any) {
    write(&store, [put("/a", "1"), put("/b", "1"), put("/c", "1")]).await;
    let answer = write(
        &store,
        [
            put("/a", "2"),
            Op::Range(all()),
            Op::Delete(Keys::Range {
                from: bytes("/b"),
                to: bytes("/d"),
            }),
            put("/e", "2"),
        ],
    )
    .await;
    assert_eq!(answer.revision, 3);
    let [
        OpAnswer::Put(Some(_)),
        OpAnswer::Range(inside),
        OpAnswer::Delete(deleted),
        OpAnswer::Put(None),
    ] = &answer.answers[..]
    else {
        panic!("{answer:?}");
    };
    assert_eq!(
        inside.kvs[0].value, "2",
        "a range sees what was done before it"
    );
    assert_eq!(inside.count, 3);
    assert_eq!(deleted.len(), 2);
    let found = store.range(all()).await.unwrap();
    assert_eq!(names(&found), ["/a", "/e"]);
    assert!(found.kvs.iter().all(|kv| kv.mod_revision == 3));
    // A part that can't be answered undoes the rest.
    let revision = 1000;
    let refused = store
        .txn(then([
            put("/a", "3"),
            Op::Range(RangeRequest { revision, ..all() }),
        ]))
        .await;
    assert!(matches!(refused, Err(Error::Future { .. })), "{refused:?}");
    let after = store.range(all()).await.unwrap();
    assert_eq!((after.revision, after.kvs), (3, found.kvs));
}

pub async fn what_changes_a_key_twice_is_refused(store: Any) {
    let prefix = || Op::Delete(Keys::prefix("/a"));
    for ops in [
        vec![put("/a", "1"), put("/b", "1"), put("/a", "2")],
        vec![put("/ab", "1"), prefix()],
        vec![prefix(), put("/a", "1")],
    ] {
        let refused = store.txn(then(ops.clone())).await;
        assert!(
            matches!(refused, Err(Error::ChangedTwice { .. })),
            "{ops:?}"
        );
        let otherwise = Txn {
            otherwise: ops,
            ..Txn::default()
        };
        assert!(store.txn(otherwise).await.is_err());
    }
    assert_eq!(store.range(all()).await.unwrap().revision, 1);
    let either = Txn {
        then: vec![put("/a", "1")],
        otherwise: vec![put("/a", "2")],
        ..Txn::default()
    };
    assert!(store.txn(either).await.is_ok());
}

pub async fn what_is_too_large_is_refused(store: Any) {
    let many: Vec<_> = (0..=MAX_OPS).map(|n| put(format!("/{n}"), "")).collect();
    let refused = store.txn(then(many)).await;
    assert!(
        matches!(refused, Err(Error::Limit { is: 129, .. })),
        "{refused:?}"
    );
    let large = put("/a", vec![b'x'; MAX_REQUEST_BYTES]);
    let refused = store.txn(then([large])).await;
    assert!(matches!(refused, Err(Error::Limit { .. })), "{refused:?}");
    let refused = store.txn(then([put("", "x")])).await;
    assert!(matches!(refused, Err(Error::EmptyKey)), "{refused:?}");
    assert_eq!(store.range(all()).await.unwrap().revision, 1);
    // Almost as large, and of bytes that are no text.
    let value: Vec<u8> = (0..MAX_REQUEST_BYTES - 4096)
        .map(|n| (n * 7) as u8)
        .collect();
    write(&store, [put("/a", &value)]).await;
    assert!(get(&store, "/a").await.unwrap().value == value);
}

pub async fn writers_at_once_lose_nothing(store: Any) {
    const WRITERS: usize = 16;
    const EACH: usize = 20;
    let mut watch = watch(&store, 0).await;
    let writing: Vec<_> = (0..WRITERS)
        .map(|w| {
            let store = store.clone();
            tokio::spawn(async move {
                let mut revisions = Vec::new();
                for n in 0..EACH {
                    let key = format!("/{w}/{n}");
                    let revision = write(&store, [put(&key, "x")]).await.revision;
                    // Read your own writes.
                    assert_eq!(get(&store, &key).await.unwrap().mod_revision, revision);
                    revisions.push(revision);
                }
                revisions
            })
        })
        .collect();
    let mut revisions = Vec::new();
    for writer in writing {
        let of_one = writer.await.unwrap();
        assert!(of_one.is_sorted());
        revisions.extend(of_one);
    }
    revisions.sort_unstable();
    let expected: Vec<_> = (2..2 + (WRITERS * EACH) as u64).collect();
    assert_eq!(revisions, expected, "each write is a revision of its own");
    assert_eq!(
        store.range(all()).await.unwrap().count,
        (WRITERS * EACH) as u64
    );
    told(&mut watch, WRITERS * EACH).await;
}

pub async fn a_counter_that_is_compared_and_swapped_loses_no_turn(store: Any) {
    write(&store, [put("/n", "0")]).await;
    let turns: Vec<_> = (0..8)
        .map(|_| {
            let store = store.clone();
            tokio::spawn(async move {
                for _ in 0..10 {
                    loop {
                        let now = get(&store, "/n").await.unwrap();
                        let n: u64 = String::from_utf8_lossy(&now.value).parse().unwrap();
                        let txn = Txn {
                            compares: vec![Compare {
                                key: bytes("/n"),
                                is: Is::Equal,
                                target: Target::ModRevision(now.mod_revision),
                            }],
                            ..then([put("/n", (n + 1).to_string())])
                        };
                        if store.txn(txn).await.unwrap().succeeded {
                            break;
                        }
                    }
                }
            })
        })
        .collect();
    for turn in turns {
        turn.await.unwrap();
    }
    assert_eq!(get(&store, "/n").await.unwrap().value, "80");
}
