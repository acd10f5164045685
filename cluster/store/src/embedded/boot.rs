//! What a machine that lost its power leaves open: what was written relaxed ([`crate::Durability::Relaxed`]) and not synced yet is gone, and somebody has
//! seen it. Were its revisions given again, a watch that goes on after them would miss what has them now. So in another boot of the machine the store goes on
//! [`GAP`] later, compacted up to there: whoever asks for anything older lists anew. (What a process wrote before it was killed, the kernel still has.)

use crate::Revision;

/// More than can be written within the second after which all is synced.
pub(super) const GAP: Revision = 1 << 20;

/// Of the machine's boot; empty where the kernel does not tell: then each start is taken for another boot's.
pub(super) fn id() -> String {
    let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    id.trim().to_owned()
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use bytes::Bytes;
    use futures_util::StreamExt;

    use super::*;
    use crate::{Durability, Embedded, Error, Keys, Op, RangeRequest, Store, Txn, WatchRequest};

    fn open(directory: &Path, boot: &str) -> Embedded {
        Embedded::open_in(directory, boot.to_owned()).unwrap()
    }

    async fn put(store: &Embedded, key: &'static str, durability: Durability) -> Revision {
        let put = Op::Put {
            key: Bytes::from_static(key.as_bytes()),
            value: Bytes::from_static(b"value"),
            lease: 0,
        };
        let txn = Txn {
            then: vec![put],
            durability,
            ..Txn::default()
        };
        store.txn(txn).await.unwrap().revision
    }

    fn copy(from: &Path, to: &Path) {
        fs::create_dir_all(to).unwrap();
        for entry in fs::read_dir(from).unwrap() {
            let entry = entry.unwrap();
            let to = to.join(entry.file_name());
            match entry.file_type().unwrap().is_dir() {
                true => copy(&entry.path(), &to),
                false => drop(fs::copy(entry.path(), to).unwrap()),
            }
        }
    }

    async fn keys(store: &Embedded) -> Vec<Bytes> {
        let all = RangeRequest {
            keys: Keys::prefix("/"),
            revision: 0,
            limit: 0,
            keys_only: true,
            count_only: false,
        };
        let found = store.range(all).await.unwrap().kvs;
        found.into_iter().map(|one| one.key).collect()
    }

    #[tokio::test]
    async fn no_revision_is_given_twice_though_the_last_second_was_lost() {
        let (directory, cut) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let cut = cut.path().join("store");
        let store = open(directory.path(), "one");
        let kept = put(&store, "/kept", Durability::Synced).await;
        // what was synced by now is what there is after the power cut
        copy(directory.path(), &cut);
        let mut seen = 0;
        for _ in 0..20 {
            seen = put(&store, "/lost", Durability::Relaxed).await;
        }
        drop(store);

        let store = open(&cut, "two");
        assert_eq!(keys(&store).await, ["/kept"]);
        let watch = WatchRequest {
            keys: Keys::prefix("/"),
            from: kept + 5,
            previous: false,
        };
        let told = match store.watch(watch).await {
            Ok(mut watch) => watch.next().await.unwrap().map(drop),
            Err(error) => Err(error),
        };
        assert!(matches!(told, Err(Error::Compacted { .. })), "{told:?}");
        let next = put(&store, "/new", Durability::Synced).await;
        assert!(next > seen, "{next} was given before {seen}");
        drop(store);

        // within a boot all goes on as it was, and another one is another gap
        let store = open(&cut, "two");
        assert_eq!(store.revision().await.unwrap(), next);
        assert_eq!(put(&store, "/new", Durability::Synced).await, next + 1);
        drop(store);
        let store = open(&cut, "three");
        assert!(store.revision().await.unwrap() > next + 1);
        assert_eq!(keys(&store).await, ["/kept", "/new"]);
    }

    #[tokio::test]
    async fn a_machine_that_never_says_its_boot_has_a_store_all_the_same() {
        let directory = tempfile::tempdir().unwrap();
        let mut last = 0;
        for _ in 0..3 {
            let store = open(directory.path(), "");
            let next = put(&store, "/a", Durability::Relaxed).await;
            assert!(next > last);
            last = next;
        }
    }
}
