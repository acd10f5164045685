//! The suite, asked of a berthd of the test's own: each group of cases a test.

use anyhow::{Result, ensure};
use berth_tests::{
    BUSYBOX, Node,
    conformance::{
        GROUPS, Request,
        report::{Verdict, Word},
    },
};

/// Reasons that a case may be skipped for on a machine that the tests run on.
const SKIPPABLE: [&str; 1] = ["criu does not work here"];

fn conforms(group: &str) -> Result<()> {
    let (_, cases) = GROUPS
        .iter()
        .find(|(name, _)| *name == group)
        .expect("every group has its test");
    Node::test(async |node| {
        let dir = node.dir.join("volumes/suite");
        std::fs::create_dir_all(&dir)?;
        let request = Request {
            cri: node.cri.clone(),
            image: format!("docker.io/library/{BUSYBOX}:latest"),
            runtime_handler: String::new(),
            dir,
            host_network: false,
            jobs: 3,
        };
        let report = request
            .run(cases, &|verdict| eprintln!("{}", verdict.line()))
            .await?;
        let fine = |verdict: &Verdict| match verdict.verdict {
            Word::Passed => true,
            Word::Failed | Word::Known | Word::Unimplemented => false,
            Word::Skipped => SKIPPABLE
                .iter()
                .any(|reason| verdict.reason.contains(reason)),
        };
        let bad: Vec<&str> = report
            .cases
            .iter()
            .filter(|verdict| !fine(verdict))
            .map(|verdict| verdict.case.as_str())
            .collect();
        ensure!(bad.is_empty(), "{}: {bad:#?}", report.summary());
        ensure!(report.passed > 0, "nothing was asked");
        Ok(())
    })
}

macro_rules! groups {
    ($($test:ident $group:literal),* $(,)?) => {
        $(#[test]
        fn $test() -> Result<()> {
            conforms($group)
        })*

        #[test]
        fn every_group_of_the_suite_has_a_test() {
            let tested = [$($group),*];
            assert!(GROUPS.iter().map(|(name, _)| *name).eq(tested));
        }
    };
}

groups![
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
