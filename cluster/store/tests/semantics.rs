//! One suite for every store: what etcd's API v3 promises. Each case runs on the store in memory, on the embedded one and on a real etcd
//! (Debian's etcd-server).

#[path = "suite/cases.rs"]
mod cases;
#[path = "suite/etcd.rs"]
mod etcd;
#[path = "suite/history.rs"]
mod history;

macro_rules! suite {
    ($($case:ident)*) => {
        mod memory {
            $(#[tokio::test]
            async fn $case() {
                super::cases::$case(std::sync::Arc::new(berth_store::Memory::new())).await;
            })*
        }

        mod embedded {
            $(#[tokio::test]
            async fn $case() {
                let directory = tempfile::tempdir().unwrap();
                let store = berth_store::Embedded::open(&directory.path().join("store")).unwrap();
                super::cases::$case(std::sync::Arc::new(store)).await;
            })*
        }

        mod etcd_server {
            $(#[tokio::test]
            async fn $case() {
                let server = super::etcd::Server::start().await;
                super::cases::$case(server.store()).await;
            })*
        }
    };
}

suite! {
    an_empty_store_is_at_its_first_revision
    a_key_has_its_revisions_and_counts_its_puts
    a_deleted_key_begins_anew
    a_range_is_in_order_and_paged_at_one_revision
    ranges_of_every_form_find_what_they_should
    every_kind_of_compare_decides
    a_transaction_is_one_revision_and_all_or_nothing
    what_changes_a_key_twice_is_refused
    what_is_too_large_is_refused
    a_watch_tells_what_comes_and_nothing_else
    a_watch_from_the_past_is_gap_free_into_the_present
    a_watch_says_what_was_there_before
    a_blind_put_is_not_told_what_it_replaces_and_watches_are
    a_compaction_forgets_the_past_only
    a_compaction_up_to_no_revision_is_refused
    a_watch_from_before_the_compaction_is_refused
    a_lease_takes_its_keys_along_when_it_is_revoked
    a_lease_that_is_not_renewed_expires
    a_lease_that_is_not_there_is_refused
    a_watch_that_is_not_read_is_told_that_it_is_too_slow
    writers_at_once_lose_nothing
    a_counter_that_is_compared_and_swapped_loses_no_turn
}
