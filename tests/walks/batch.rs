//! Jobs and CronJobs.

use anyhow::{Result, ensure};
use berth_tests::nodes::Nodes;

use crate::{condition, items};

#[test]
fn a_job_of_eight_runs_two_at_a_time_jb_01_jb_05() -> Result<()> {
    Nodes::test(2, |nodes| {
        nodes.apply(
            r#"
apiVersion: batch/v1
kind: Job
metadata: {name: eight}
spec:
  completions: 8
  parallelism: 2
  template:
    spec:
      restartPolicy: Never
      containers:
      - name: c
        image: busybox
        imagePullPolicy: IfNotPresent
        command: [sh, -c, "sleep 0.5; echo done"]
"#,
        )?;
        let mut most = 0;
        let mut wrong = None;
        nodes.eventually("it is complete", || {
            let pods =
                nodes
                    .kubectl
                    .json(&["get", "pods", "-l", "batch.kubernetes.io/job-name=eight"])?;
            let active = items(&pods).filter(|pod| {
                matches!(pod["status"]["phase"].as_str(), Some("Pending" | "Running"))
            });
            most = most.max(active.count());
            let job = nodes.kubectl.json(&["get", "job", "eight"])?;
            if job["status"]["succeeded"].as_u64() > Some(8) {
                wrong = Some(job["status"].clone());
            }
            let complete = condition(&job, "Complete").is_some_and(|it| it["status"] == "True");
            Ok(complete.then_some(()))
        })?;
        ensure!(
            (1..=2).contains(&most) && wrong.is_none(),
            "{most} at once, {wrong:?}"
        );
        let job = nodes.kubectl.json(&["get", "job", "eight"])?;
        ensure!(job["status"]["succeeded"] == 8, "{}", job["status"]);
        let pods =
            nodes
                .kubectl
                .json(&["get", "pods", "-l", "batch.kubernetes.io/job-name=eight"])?;
        let good = items(&pods).filter(|pod| pod["status"]["phase"] == "Succeeded");
        ensure!(good.count() == 8 && items(&pods).count() == 8, "{pods:#}");
        let said = nodes.kubectl.kubectl(&["logs", "job/eight"])?;
        ensure!(said.contains("done"), "{said}");
        nodes.kubectl.kubectl(&["delete", "job", "eight"])?;
        nodes.until(&["pods"], "its pods go with it", |pods| {
            items(pods).next().is_none()
        })?;
        Ok(())
    })
}
