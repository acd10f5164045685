//! The suite again, asked of a berthd whose default handler is Debian's containerd-shim-runc-v2 with runc: what differs stands here, with
//! the reason.

use anyhow::{Result, ensure};
use berth_tests::{
    BUSYBOX, Node, Setup,
    conformance::{
        GROUPS, Request,
        report::{Verdict, Word},
    },
};

/// Cases that come out otherwise, with the reason.
const EXCEPTIONS: [(&str, &str); 1] = [(
    "StartContainer/a_command_that_is_not_there_is_told_by_its_name",
    "runc looks for the command when it creates: CreateContainer is refused, with the command's name",
)];

fn conforms(group: &str) -> Result<()> {
    let (_, cases) = GROUPS
        .iter()
        .find(|(name, _)| *name == group)
        .expect("every group has its test");
    let setup = Setup {
        config: "[runtime]\ndefault_handler = \"runc\"\n[runtime.handlers.berth]\n[runtime.handlers.runc]\nshim = \"io.containerd.runc.v2\"\n"
            .into(),
        ..Default::default()
    };
    Node::test_with(setup, async |node| {
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
        let excepted = |verdict: &&Verdict| {
            EXCEPTIONS
                .iter()
                .any(|(case, _)| verdict.case.contains(case))
        };
        let failed = |verdict: &&Verdict| matches!(verdict.verdict, Word::Failed | Word::Known);
        let bad: Vec<&str> = report
            .cases
            .iter()
            .filter(|verdict| failed(verdict) != excepted(verdict))
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
    };
}

// Images are the daemon's own, whatever the shim.
groups![
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
