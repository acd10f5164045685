//! Watches and compactions: the past, and what comes.

use std::time::Duration;

use berth_store::{
    Durability, Error, Event, EventKind, Keys, MAX_OPS, MAX_WAITING_EVENTS, OpAnswer, RangeRequest,
    Txn, WatchRequest,
};

use super::{Any, all, bytes, delete, get, next, put, then, told, watch, write};

pub async fn a_watch_tells_what_comes_and_nothing_else(store: Any) {
    write(&store, [put("/before", "1")]).await;
    let mut watch = watch(&store, 0).await;
    write(&store, [put("elsewhere", "1")]).await;
    write(&store, [put("/a", "1"), put("x", "1"), delete("/before")]).await;
    write(&store, [delete("/none")]).await;
    write(&store, [put("/a", "2")]).await;
    let seen = told(&mut watch, 3).await;
    let event =
        |kind, key: &str, value: &str, revision| (kind, key.to_owned(), value.to_owned(), revision);
    assert_eq!(
        seen,
        [
            event(EventKind::Put, "/a", "1", 4),
            event(EventKind::Delete, "/before", "", 4),
            event(EventKind::Put, "/a", "2", 5),
        ]
    );
}

pub async fn a_watch_from_the_past_is_gap_free_into_the_present(store: Any) {
    const BEFORE: usize = 600;
    const AFTER: usize = 200;
    for n in 0..BEFORE / 2 {
        write(
            &store,
            [put("/n", format!("{n}")), put(format!("/{}", n % 7), "x")],
        )
        .await;
    }
    let mut early = watch(&store, 2).await;
    let from = 2 + BEFORE as u64 / 4;
    let mut late = watch(&store, from).await;
    let writing = {
        let store = store.clone();
        tokio::spawn(async move {
            for n in 0..AFTER {
                write(&store, [put("/n", format!("after {n}"))]).await;
            }
        })
    };
    let seen = told(&mut early, BEFORE + AFTER).await;
    let mut expected: Vec<_> = (0..BEFORE / 2).map(|n| n.to_string()).collect();
    expected.extend((0..AFTER).map(|n| format!("after {n}")));
    let n: Vec<_> = seen
        .iter()
        .filter(|event| event.1 == "/n")
        .map(|event| event.2.clone())
        .collect();
    assert_eq!(n, expected);
    let tail: Vec<_> = seen.into_iter().filter(|event| event.3 >= from).collect();
    assert_eq!(told(&mut late, tail.len()).await, tail);
    writing.await.unwrap();
}

pub async fn a_blind_put_is_not_told_what_it_replaces_and_watches_are(store: Any) {
    let blind = |value| Txn {
        blind: true,
        ..then([put("/a", value)])
    };
    write(&store, [put("/a", "1")]).await;
    let mut watch = store
        .watch(WatchRequest {
            keys: Keys::prefix("/"),
            from: 0,
            previous: true,
        })
        .await
        .unwrap();
    for value in ["2", "3"] {
        let answer = store.txn(blind(value)).await.unwrap();
        assert_eq!(answer.answers, [OpAnswer::Put(None)]);
    }
    let mut before = Vec::new();
    while before.len() < 2 {
        let batch = next(&mut watch).await.unwrap().unwrap();
        before.extend(batch.events.into_iter().map(|event| event.previous));
    }
    let before: Vec<_> = before
        .into_iter()
        .flatten()
        .map(|kv| (kv.value, kv.version))
        .collect();
    assert_eq!(before, [(bytes("1"), 1), (bytes("2"), 2)]);
    let seeing = write(&store, [put("/a", "4")]).await;
    let [OpAnswer::Put(Some(was))] = &seeing.answers[..] else {
        panic!("{:?}", seeing.answers);
    };
    assert_eq!((was.value.clone(), was.version), (bytes("3"), 3));
}

pub async fn a_watch_says_what_was_there_before(store: Any) {
    write(&store, [put("/a", "1")]).await;
    for from in [0, 3] {
        let mut watch = store
            .watch(WatchRequest {
                keys: Keys::prefix("/"),
                from,
                previous: true,
            })
            .await
            .unwrap();
        if from == 0 {
            write(&store, [put("/a", "2")]).await;
            write(&store, [delete("/a")]).await;
            write(&store, [put("/a", "3")]).await;
        }
        let mut events: Vec<Event> = Vec::new();
        while events.len() < 3 {
            events.extend(next(&mut watch).await.unwrap().unwrap().events);
        }
        let before: Vec<_> = events
            .iter()
            .map(|event| {
                event
                    .previous
                    .as_ref()
                    .map(|kv| (kv.value.clone(), kv.version))
            })
            .collect();
        assert_eq!(
            before,
            [Some((bytes("1"), 1)), Some((bytes("2"), 2)), None],
            "from {from}"
        );
        assert_eq!(events[1].kv.mod_revision, 4);
        assert!(events[1].kv.value.is_empty());
    }
}

pub async fn a_compaction_up_to_no_revision_is_refused(store: Any) {
    for _ in 0..2 {
        let refused = store.compact(0).await;
        let as_compacted = matches!(
            refused,
            Err(Error::Compacted {
                asked: 0,
                compacted: 0
            })
        );
        assert!(as_compacted, "{refused:?}");
    }
    write(&store, [put("/a", "1")]).await;
    store.compact(1).await.unwrap();
    let refused = store.compact(0).await;
    assert!(
        matches!(
            refused,
            Err(Error::Compacted {
                asked: 0,
                compacted: 1
            })
        ),
        "{refused:?}"
    );
}

pub async fn a_compaction_forgets_the_past_only(store: Any) {
    write(&store, [put("/a", "1"), put("/gone", "1")]).await;
    write(&store, [put("/a", "2")]).await;
    write(&store, [delete("/gone")]).await;
    write(&store, [put("/kept", "1")]).await;
    let before = store.range(all()).await.unwrap();
    store.compact(4).await.unwrap();
    for _ in 0..2 {
        // Before and after what is forgotten is gone from the disk too.
        assert_eq!(store.range(all()).await.unwrap(), before);
        for revision in [4, 5] {
            let past = store
                .range(RangeRequest { revision, ..all() })
                .await
                .unwrap();
            assert_eq!(past.kvs[0].value, "2", "at {revision}");
            assert_eq!(past.count, revision - 3);
        }
        for revision in [1, 2, 3] {
            match store.range(RangeRequest { revision, ..all() }).await {
                Err(Error::Compacted { asked, compacted }) => {
                    assert_eq!((asked, compacted), (revision, 4));
                }
                other => panic!("{other:?}"),
            }
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    let again = store.compact(4).await;
    assert!(matches!(again, Err(Error::Compacted { .. })), "{again:?}");
    let ahead = store.compact(100).await;
    assert!(
        matches!(ahead, Err(Error::Future { newest: 5, .. })),
        "{ahead:?}"
    );
    assert_eq!(store.status().await.unwrap().compacted, 4);
    write(&store, [put("/a", "3")]).await;
    store.compact(6).await.unwrap();
    assert_eq!(get(&store, "/a").await.unwrap().version, 3);
}

pub async fn a_watch_from_before_the_compaction_is_refused(store: Any) {
    for n in 0..10 {
        write(&store, [put("/a", n.to_string())]).await;
    }
    store.compact(8).await.unwrap();
    let refused = match store
        .watch(WatchRequest {
            keys: Keys::prefix("/"),
            from: 5,
            previous: false,
        })
        .await
    {
        Ok(mut watch) => next(&mut watch).await.unwrap().unwrap_err(),
        Err(e) => e,
    };
    assert!(
        matches!(refused, Error::Compacted { compacted: 8, .. }),
        "{refused:?}"
    );
    let mut watch = watch(&store, 9).await;
    let seen = told(&mut watch, 3).await;
    assert_eq!(seen[0].2, "7");
}

pub async fn a_watch_that_is_not_read_is_told_that_it_is_too_slow(store: Any) {
    let mut slow = watch(&store, 0).await;
    let mut read = watch(&store, 0).await;
    let reading = tokio::spawn(async move {
        let mut seen = 0;
        while seen <= MAX_WAITING_EVENTS {
            seen += next(&mut read).await.unwrap().unwrap().events.len();
        }
    });
    let mut written = 0;
    while written <= MAX_WAITING_EVENTS {
        let ops: Vec<_> = (0..MAX_OPS).map(|n| put(format!("/{n}"), "x")).collect();
        let txn = Txn {
            durability: Durability::Relaxed,
            ..then(ops)
        };
        store.txn(txn).await.unwrap();
        // A store in memory never waits: the reader would not get its turn.
        tokio::task::yield_now().await;
        written += MAX_OPS;
    }
    reading.await.unwrap();
    // It may still be told something first, but never goes on after a gap.
    let mut upto = 0;
    let error = loop {
        match next(&mut slow).await.expect("it ended without a word") {
            Ok(batch) => {
                assert!(
                    batch
                        .events
                        .iter()
                        .all(|event| event.kv.mod_revision > upto)
                );
                upto = batch.revision;
            }
            Err(e) => break e,
        }
    };
    assert!(
        matches!(error, Error::Slow { waiting } if waiting > MAX_WAITING_EVENTS),
        "{error:?}"
    );
    assert!(next(&mut slow).await.is_none());
}
