//! Leases.

use std::time::Duration;

use berth_store::{Error, EventKind};

use super::{Any, all, get, leased, names, put, then, told, watch, write};

pub async fn a_lease_takes_its_keys_along_when_it_is_revoked(store: Any) {
    let lease = store.lease_grant(600).await.unwrap();
    assert_eq!((lease.ttl, lease.left), (600, 600));
    write(&store, [leased("/a", lease.id), leased("/b", lease.id)]).await;
    write(&store, [leased("/moved", lease.id), put("/stays", "")]).await;
    write(&store, [put("/moved", "free")]).await;
    assert_eq!(get(&store, "/a").await.unwrap().lease, lease.id);
    let mut watch = watch(&store, 0).await;
    let kept = store.lease_keep_alive(lease.id).await.unwrap();
    assert_eq!((kept.id, kept.ttl), (lease.id, 600));
    store.lease_revoke(lease.id).await.unwrap();
    let seen = told(&mut watch, 2).await;
    assert!(seen.iter().all(|event| event.0 == EventKind::Delete));
    let left = store.range(all()).await.unwrap();
    assert_eq!(names(&left), ["/moved", "/stays"]);
    for gone in [
        store.lease_revoke(lease.id).await.unwrap_err(),
        store.lease_keep_alive(lease.id).await.unwrap_err(),
    ] {
        assert!(matches!(gone, Error::NoLease { .. }), "{gone:?}");
    }
}

pub async fn a_lease_that_is_not_renewed_expires(store: Any) {
    let short = store.lease_grant(2).await.unwrap();
    let renewed = store.lease_grant(2).await.unwrap();
    write(
        &store,
        [leased("/short", short.id), leased("/renewed", renewed.id)],
    )
    .await;
    let mut watch = watch(&store, 0).await;
    let keeping = {
        let store = store.clone();
        tokio::spawn(async move {
            loop {
                store.lease_keep_alive(renewed.id).await.unwrap();
                tokio::time::sleep(Duration::from_millis(400)).await;
            }
        })
    };
    let seen = told(&mut watch, 1).await;
    assert_eq!(
        (seen[0].0, seen[0].1.as_str()),
        (EventKind::Delete, "/short")
    );
    assert!(get(&store, "/renewed").await.is_some());
    keeping.abort();
    let seen = told(&mut watch, 1).await;
    assert_eq!(seen[0].1, "/renewed");
}

pub async fn a_lease_that_is_not_there_is_refused(store: Any) {
    let refused = store.txn(then([put("/a", "1"), leased("/b", 12345)])).await;
    assert!(
        matches!(refused, Err(Error::NoLease { id: 12345 })),
        "{refused:?}"
    );
    assert_eq!(store.range(all()).await.unwrap().count, 0);
}
