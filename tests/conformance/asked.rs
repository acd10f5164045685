//! One group of the suite, asked of a daemon of the test's own.

use anyhow::{Result, ensure};
use berth_tests::{
    BUSYBOX, Node, Setup,
    conformance::{GROUPS, Request, report::Verdict},
};

/// Each case has to come out as `fine` says.
pub fn conforms(setup: Setup, group: &str, fine: impl Fn(&Verdict) -> bool) -> Result<()> {
    let (_, cases) = GROUPS
        .iter()
        .find(|(name, _)| *name == group)
        .expect("every group has its test");
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

/// A test for each group, by the function that asks; and the names of those that have one.
macro_rules! groups {
    ($conforms:ident: $($test:ident $group:literal),* $(,)?) => {
        $(#[test]
        fn $test() -> anyhow::Result<()> {
            $conforms($group)
        })*

        const TESTED: &[&str] = &[$($group),*];
    };
}

pub(crate) use groups;
