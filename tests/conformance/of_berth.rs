//! The suite, asked of a berthd of the test's own: each group of cases a test.

use anyhow::Result;
use berth_tests::{
    Setup,
    conformance::{
        GROUPS,
        report::{Verdict, Word},
    },
};

use crate::asked::{self, groups};

/// Reasons that a case may be skipped for on a machine that the tests run on.
const SKIPPABLE: [&str; 1] = ["criu does not work here"];

fn fine(verdict: &Verdict) -> bool {
    match verdict.verdict {
        Word::Passed => true,
        Word::Failed | Word::Known | Word::Unimplemented => false,
        Word::Skipped => SKIPPABLE
            .iter()
            .any(|reason| verdict.reason.contains(reason)),
    }
}

fn conforms(group: &str) -> Result<()> {
    asked::conforms(Setup::default(), group, fine)
}

groups![conforms:
    version_and_status_conform "runtime",
    pods_conform "pods",
    containers_conform "containers",
    stops_conform "stop",
    execs_conform "exec",
    streams_conform "streaming",
    logs_conform "logs",
    what_containers_find_themselves_in_conforms "linux",
    limits_conform "resources",
    statistics_conform "stats",
    lists_in_parts_conform "lists",
    events_conform "events",
    images_conform "images",
    answers_to_bad_input_conform "bad_input",
];

#[test]
fn every_group_of_the_suite_has_a_test() {
    assert!(GROUPS.iter().map(|(name, _)| name).eq(TESTED));
}
