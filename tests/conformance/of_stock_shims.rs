//! The suite again, asked of a berthd whose default handler is Debian's containerd-shim-runc-v2 with runc: what differs stands here, with
//! the reason.

use anyhow::Result;
use berth_tests::{
    Setup,
    conformance::{
        GROUPS,
        report::{Verdict, Word},
    },
};

use crate::asked::{self, groups};

/// Cases that come out otherwise, with the reason.
const EXCEPTIONS: [(&str, &str); 1] = [(
    "StartContainer/a_command_that_is_not_there_is_told_by_its_name",
    "runc looks for the command when it creates: CreateContainer is refused, with the command's name",
)];

/// Of the daemon, whatever the shim.
const DAEMONS_OWN: &str = "images";

fn fine(verdict: &Verdict) -> bool {
    let failed = matches!(verdict.verdict, Word::Failed | Word::Known);
    let excepted = EXCEPTIONS
        .iter()
        .any(|(case, _)| verdict.case.contains(case));
    failed == excepted
}

fn conforms(group: &str) -> Result<()> {
    let setup = Setup {
        config: "[runtime]\ndefault_handler = \"runc\"\n[runtime.handlers.berth]\n[runtime.handlers.runc]\nshim = \"io.containerd.runc.v2\"\n"
            .into(),
        ..Default::default()
    };
    asked::conforms(setup, group, fine)
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
    resources_conform "resources",
    stats_conform "stats",
    lists_conform "lists",
    events_conform "events",
    bad_input_conforms "bad_input",
];

#[test]
fn every_group_that_is_not_the_daemons_own_has_a_test() {
    let groups = GROUPS.iter().map(|(name, _)| name);
    assert!(groups.filter(|name| **name != DAEMONS_OWN).eq(TESTED));
}
