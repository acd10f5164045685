use std::process::ExitCode;

use berth_proto::shim::api::{Empty, ExecProcessRequest};
use clap::Args;
use protobuf::{MessageField, well_known_types::any::Any};
use serde_json::{Value, json};

use super::{
    bundle, life,
    place::{Place, check_id},
    run::{Process, Wanted, exit_code},
};
use crate::{error::Error, output};

/// What containerd calls an OCI process in an Any.
const PROCESS: &str = "types.containerd.io/opencontainers/runtime-spec/1/Process";

/// Run another process in a container
///
/// It has what the container's own process has, but for what is said here. Exits with its exit code.
#[derive(Debug, Args)]
pub struct Exec {
    /// The container
    id: String,
    #[command(flatten)]
    streams: Wanted,
    /// What the process is called; without it a name that is free
    #[arg(long)]
    exec_id: Option<String>,
    /// A directory in the container
    #[arg(long)]
    cwd: Option<String>,
    /// More of its environment
    #[arg(long, short, value_name = "NAME=VALUE")]
    env: Vec<String>,
    /// By numbers
    #[arg(long, short, value_name = "UID[:GID]")]
    user: Option<String>,
    /// Leave it running, and print its pid; `delete --exec-id` takes its exit code and forgets it
    #[arg(long, short)]
    detach: bool,
    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<String>,
}

impl Exec {
    pub async fn run(self, place: &Place) -> Result<ExitCode, Error> {
        let record = place.record(&self.id)?;
        let task = place.connect(&record).await?;
        let exec_id = match &self.exec_id {
            Some(exec_id) => exec_id.clone(),
            None => format!("exec-{}", std::process::id()),
        };
        check_id("exec id", &exec_id)?;
        let process = self.process(bundle::process(&record.dir)?)?;
        let tty = self.streams.tty;
        let (fifos, names) = self.streams.lay(&record, &exec_id, self.detach)?;
        let request = ExecProcessRequest {
            id: record.id.clone(),
            exec_id: exec_id.clone(),
            terminal: tty,
            stdin: names.stdin,
            stdout: names.stdout,
            stderr: names.stderr,
            spec: MessageField::some(Any {
                type_url: PROCESS.into(),
                value: process.to_string().into_bytes(),
                ..Default::default()
            }),
            ..Default::default()
        };
        task.call::<Empty>("Exec", &request).await?;
        let process = Process {
            task: &task,
            id: &record.id,
            exec_id: &exec_id,
        };
        let outcome = async {
            let pid = process.start().await?;
            if self.detach {
                return Ok(Err(pid));
            }
            process.attended(fifos, tty).await.map(Ok)
        }
        .await;
        match outcome {
            Ok(Ok(code)) => {
                life::delete(&task, &record.id, &exec_id).await?;
                Ok(exit_code(code))
            }
            Ok(Err(pid)) => {
                output::text_out(&format!("{pid}\n"))?;
                Ok(ExitCode::SUCCESS)
            }
            Err(error) if error.is_refusal() => {
                let deleted = life::delete(&task, &record.id, &exec_id).await;
                Err(life::undone(error, deleted.map(drop)))
            }
            // The shim is the container's, and `delete --force` is a person's to ask for.
            Err(error) => Err(error),
        }
    }

    fn process(&self, mut process: Value) -> Result<Value, Error> {
        process["args"] = json!(self.command);
        process["terminal"] = json!(self.streams.tty);
        if let Some(cwd) = &self.cwd {
            process["cwd"] = json!(cwd);
        }
        if !self.env.is_empty() {
            let mut env = process["env"].as_array().cloned().unwrap_or_default();
            env.extend(self.env.iter().map(|word| json!(word)));
            process["env"] = json!(env);
        }
        if let Some(user) = &self.user {
            process["user"] = parse_user(user)?;
        }
        Ok(process)
    }
}

fn parse_user(text: &str) -> Result<Value, Error> {
    let (uid, gid) = text.split_once(':').unwrap_or((text, "0"));
    match (uid.parse::<u32>(), gid.parse::<u32>()) {
        (Ok(uid), Ok(gid)) => Ok(json!({"uid": uid, "gid": gid})),
        _ => Err(Error::Invalid {
            what: format!("user {text:?}"),
            why: "it has to be UID or UID:GID, in numbers".into(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_numbers() {
        assert_eq!(parse_user("7").unwrap(), json!({"uid": 7, "gid": 0}));
        assert_eq!(parse_user("7:8").unwrap(), json!({"uid": 7, "gid": 8}));
        for text in ["", "root", "1:", "-1"] {
            assert!(parse_user(text).is_err(), "{text}");
        }
    }
}
