//! One node: its runtime and its kubelet.

use std::{
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;

use super::{
    failed, file, make_dir, network,
    program::{Program, Told},
    write,
};
use crate::{
    command::pod,
    error::Error,
    node::{Address, Node as Runtime},
};

/// A runtime that was started answers within it.
const ANSWERS: Duration = Duration::from_secs(20);
const STANDARD_STATE: &str = "/run/berth";
const STANDARD_ROOT: &str = "/var/lib/berth";
const RECORD: &str = "node.json";
const RUNTIME_CONFIG: &str = "berthd.toml";
pub const BOOTSTRAP: &str = "bootstrap.kubeconfig";
pub const KUBECONFIG: &str = "kubelet.kubeconfig";

/// What is known of a node on disk: enough to take it away.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    pub name: String,
    /// The runtime's.
    pub socket: PathBuf,
    /// Where ours has root and state; none: it was there before us, and isn't ours.
    pub runtime: Option<OwnRuntime>,
    /// Of several nodes on a machine, counted from 1; none: it is this machine.
    pub number: Option<u8>,
    pub cgroup_root: String,
}

impl Record {
    fn address(&self) -> Address {
        match self.socket.display().to_string().parse() {
            Ok(address) => address,
            Err(never) => match never {},
        }
    }

    /// In front of a program that is to run in the node's network.
    fn inside(&self) -> Vec<OsString> {
        match self.number {
            None => Vec::new(),
            Some(_) => vec![
                "nsenter".into(),
                format!("--net={}", network::namespace(&self.name).display()).into(),
                "--".into(),
            ],
        }
    }

    /// None: it is not ours.
    fn runtime_program(&self, dir: &Path) -> Result<Option<Program>, Error> {
        let Some(own) = &self.runtime else {
            return Ok(None);
        };
        make_dir(&own.state)?;
        let mut command = self.inside();
        command.push(beside("berthd")?.into());
        let config = dir.join(RUNTIME_CONFIG);
        if config.exists() {
            command.extend(["--config".into(), config.into()]);
        }
        command.extend(["--root".into(), own.root.clone().into()]);
        command.extend(["--state".into(), own.state.clone().into()]);
        command.extend(["--listen".into(), self.address().to_string().into()]);
        Ok(Some(Program {
            name: "berthd",
            command,
            dir: dir.to_owned(),
            told: Some(Told {
                file: "berthd".into(),
                argument: own.root.clone(),
            }),
        }))
    }

    /// Until it answers, or `ends`.
    async fn wait_runtime(&self, program: &Program, ends: &CancellationToken) -> Result<(), Error> {
        let until = Instant::now() + ANSWERS;
        while !answers(&self.address()).await && !ends.is_cancelled() {
            if Instant::now() > until {
                let limit = ANSWERS.as_secs();
                let what = format!(
                    "berthd does not answer at {} within {limit} s",
                    self.address()
                );
                return Err(failed(what, program.last_words()));
            }
            sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnRuntime {
    pub root: PathBuf,
    pub state: PathBuf,
}

/// What the caller wants of a node.
#[derive(Debug, Clone)]
pub struct Wish {
    pub name: String,
    /// Of how many; none: it is this machine.
    pub number: Option<(u8, u8)>,
    /// Of a node that is this machine: its runtime is there, or is started there.
    pub endpoint: Address,
    pub cgroup_root: Option<String>,
    /// Registries' mirrors, for a runtime of ours.
    pub hosts_dir: Option<PathBuf>,
    /// More arguments of its kubelet.
    pub kubelet: Vec<String>,
}

impl Wish {
    /// Before anything is made of it.
    ///
    /// # Errors
    /// No node can have its name.
    pub fn check(&self) -> Result<(), Error> {
        let wrong = berth_kinds::dns_subdomain(&self.name);
        if wrong.is_empty() {
            return Ok(());
        }
        let what = format!("no node can have the name {:?}", self.name);
        let why = wrong.join("; ");
        Err(failed(what, format!("{why}; --node-name gives it another")))
    }
}

/// The cluster that it joins.
#[derive(Debug, Clone)]
pub struct Joins {
    /// A kubeconfig's cluster: server and CA.
    pub cluster: Value,
    /// A bootstrap token.
    pub token: String,
}

impl Joins {
    /// By which the node asks for its certificate.
    pub fn kubeconfig(&self) -> Value {
        json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "default",
            "clusters": [{"name": "default", "cluster": self.cluster}],
            "users": [{"name": "default", "user": {"token": self.token}}],
            "contexts": [{"name": "default", "context": {"cluster": "default", "user": "default"}}],
        })
    }
}

#[derive(Debug)]
pub struct Node {
    pub record: Record,
    dir: PathBuf,
    count: Option<u8>,
    /// More arguments.
    kubelet: Vec<String>,
}

/// `berthd` beside this program, or else on PATH.
fn beside(name: &str) -> Result<PathBuf, Error> {
    let own = std::env::current_exe().map_err(|error| failed("cannot find myself", error))?;
    // replaced while it runs
    let own = own.to_string_lossy().replace(" (deleted)", "");
    let beside = Path::new(&own).with_file_name(name);
    Ok(if beside.exists() {
        beside
    } else {
        PathBuf::from(name)
    })
}

async fn answers(address: &Address) -> bool {
    Runtime::connect(address).await.is_ok()
}

impl Node {
    /// Written down in `nodes`, and nothing made yet.
    ///
    /// # Errors
    /// No node can have its name; the record can't be written.
    pub async fn plan(nodes: &Path, wish: Wish) -> Result<Self, Error> {
        wish.check()?;
        let dir = nodes.join(&wish.name);
        make_dir(&dir)?;
        let before = record_of(&dir);
        let record = match wish.number {
            Some((number, _)) => {
                let state = Path::new(network::STATE).join(&wish.name);
                Record {
                    name: wish.name.clone(),
                    socket: state.join("berth.sock"),
                    runtime: Some(OwnRuntime {
                        root: dir.join("lib"),
                        state,
                    }),
                    number: Some(number),
                    cgroup_root: format!("/berth-{}", wish.name),
                }
            }
            None => {
                let socket = wish.endpoint.path().to_owned();
                // one that we started before is ours still, and so is one that nobody has started
                let ours = before.and_then(|before| before.runtime);
                let runtime = match ours {
                    Some(ours) => Some(ours),
                    None if answers(&wish.endpoint).await => None,
                    None => Some(own_runtime(&socket, &dir)?),
                };
                Record {
                    name: wish.name.clone(),
                    socket,
                    runtime,
                    number: None,
                    cgroup_root: wish.cgroup_root.clone().unwrap_or_else(|| "/".into()),
                }
            }
        };
        let node = Self {
            record,
            dir,
            count: wish.number.map(|(_, count)| count),
            kubelet: wish.kubelet,
        };
        node.write_runtime_config(wish.hosts_dir.as_deref())?;
        let text = serde_json::to_vec_pretty(&node.record)
            .map_err(|error| failed("cannot write a node's record", error))?;
        write(&node.dir.join(RECORD), &text)?;
        Ok(node)
    }

    /// What its runtime has that the machine's has not.
    fn write_runtime_config(&self, hosts_dir: Option<&Path>) -> Result<(), Error> {
        let quoted = |path: &Path| Value::from(path.display().to_string()).to_string();
        let mut text = String::new();
        if let Some(dir) = hosts_dir {
            text += &format!("[image]\nhosts_dir = {}\n", quoted(dir));
        }
        if let Some(number) = self.record.number {
            text += &format!(
                "[network]\ncni_conf_dir = {}\nsubnet = \"{}\"\n[cgroup]\nparent = \"{}\"\n[nri]\nsocket = {}\n",
                quoted(&self.dir.join("cni")),
                network::pods(number),
                self.record.cgroup_root,
                quoted(&self.record.socket.with_file_name("nri.sock")),
            );
        }
        let path = self.dir.join(RUNTIME_CONFIG);
        if text.is_empty() {
            // of another time
            let _ = fs::remove_file(path);
            return Ok(());
        }
        write(&path, text.as_bytes())
    }

    fn kubelet_program(&self) -> Result<Program, Error> {
        let own = std::env::current_exe().map_err(|error| failed("cannot find myself", error))?;
        let flag = |name: &str, value: String| [OsString::from(name), value.into()];
        let path = |name: &str| self.dir.join(name).display().to_string();
        let mut command = self.record.inside();
        command.push(own.into());
        command.extend(flag(
            "--endpoint",
            format!("unix://{}", self.record.socket.display()),
        ));
        command.push("kubelet".into());
        command.extend(flag("--node-name", self.record.name.clone()));
        command.extend(flag("--kubeconfig", path(KUBECONFIG)));
        command.extend(flag("--bootstrap-kubeconfig", path(BOOTSTRAP)));
        command.extend(flag("--kubelet-dir", path("kubelet")));
        command.extend(flag("--logs-dir", path("logs")));
        command.extend(flag("--cgroup-root", self.record.cgroup_root.clone()));
        command.push("--rotate-server-certificates".into());
        if let Some(number) = self.record.number {
            command.extend(flag("--node-ip", network::address(number).to_string()));
        }
        command.extend(self.kubelet.iter().map(Into::into));
        Ok(Program {
            name: "kubelet",
            command,
            dir: self.dir.clone(),
            told: kubelet_told(&self.dir),
        })
    }

    fn write_bootstrap(&self, joins: &Joins) -> Result<(), Error> {
        // JSON is YAML
        let config = joins.kubeconfig().to_string();
        write(&self.dir.join(BOOTSTRAP), config.as_bytes())
    }

    /// By which its kubelet is known, once the cluster knows it.
    pub fn kubeconfig(&self) -> PathBuf {
        self.dir.join(KUBECONFIG)
    }

    /// Starts what it takes, in `tasks`; the runtime answers then. `ends` ends it, and no pod; what it comes before is not begun.
    ///
    /// # Errors
    /// A program can't be started, or the runtime does not answer.
    pub async fn begin(
        &self,
        joins: &Joins,
        tasks: &mut JoinSet<Result<(), Error>>,
        ends: &CancellationToken,
    ) -> Result<(), Error> {
        if let (Some(number), Some(count)) = (self.record.number, self.count) {
            network::make_bridge().await?;
            network::make(&self.record.name, number, count).await?;
        }
        self.write_bootstrap(joins)?;
        if let Some(program) = self.record.runtime_program(&self.dir)? {
            // one that was killed leaves its socket, at which nobody answers
            keep(&program, tasks, ends).await?;
            self.record.wait_runtime(&program, ends).await?;
        }
        if ends.is_cancelled() {
            return Ok(());
        }
        keep(&self.kubelet_program()?, tasks, ends).await
    }
}

async fn keep(
    program: &Program,
    tasks: &mut JoinSet<Result<(), Error>>,
    ends: &CancellationToken,
) -> Result<(), Error> {
    let child = program.start().await?;
    let kept = program.clone().keep(child, ends.clone());
    tasks.spawn(async {
        kept.await;
        Ok(())
    });
    Ok(())
}

fn record_of(dir: &Path) -> Option<Record> {
    serde_json::from_slice(&fs::read(dir.join(RECORD)).ok()?).ok()
}

/// All that are written down in `nodes`, by their names.
pub fn known(nodes: &Path) -> Vec<(PathBuf, Record)> {
    let entries = fs::read_dir(nodes).into_iter().flatten().flatten();
    let mut known: Vec<(PathBuf, Record)> = entries
        .filter_map(|entry| Some((entry.path(), record_of(&entry.path())?)))
        .collect();
    known.sort_by(|(_, one), (_, other)| one.name.cmp(&other.name));
    known
}

/// Whether `nodes` are written down of which each has a network of its own.
pub fn has_numbered(nodes: &Path) -> bool {
    known(nodes)
        .iter()
        .any(|(_, record)| record.number.is_some())
}

fn own_runtime(socket: &Path, dir: &Path) -> Result<OwnRuntime, Error> {
    let state = socket
        .parent()
        .filter(|state| state.is_absolute())
        .ok_or_else(|| failed("--endpoint", "it is an absolute path of a socket"))?;
    let root = if state == Path::new(STANDARD_STATE) {
        PathBuf::from(STANDARD_ROOT)
    } else {
        dir.join("lib")
    };
    Ok(OwnRuntime {
        root,
        state: state.to_owned(),
    })
}

/// This machine's, on which it is the only one; as kubelets have it.
pub fn name_of_this_machine() -> String {
    berth_kubelet::NodeFacts::of_this_machine().name
}

fn kubelet_told(dir: &Path) -> Option<Told> {
    let own = std::env::current_exe().ok()?;
    Some(Told {
        file: own.file_name()?.to_owned(),
        argument: dir.join("kubelet"),
    })
}

/// Takes a node away: its pods, its programs, its network. What of it can't be taken is told, and the rest is taken all the same.
///
/// # Errors
/// Its pods could not be removed; then its runtime goes on, if it runs, and so does what is written down of it.
pub async fn take_away(dir: &Path, record: &Record) -> Result<(), Error> {
    let kubelet = Program {
        name: "kubelet",
        command: Vec::new(),
        dir: dir.to_owned(),
        told: kubelet_told(dir),
    };
    // it would start them again
    kubelet.end().await;
    let runtime = record.runtime_program(dir)?;
    let ends = CancellationToken::new();
    let mut tasks = JoinSet::new();
    if let Some(program) = &runtime
        && !answers(&record.address()).await
    {
        if let Some(number) = record.number {
            network::make_bridge().await?;
            network::make(&record.name, number, number).await?;
        }
        keep(program, &mut tasks, &ends).await?;
        record.wait_runtime(program, &ends).await?;
    }
    remove_pods(dir, record).await?;
    ends.cancel();
    while tasks.join_next().await.is_some() {}
    if let Some(program) = &runtime {
        program.end().await;
    }
    if let Some(number) = record.number {
        network::remove(&record.name, number).await;
        if let Some(own) = &record.runtime {
            // sockets and empty directories, now that it has no pods: somebody may still hold one
            let _ = fs::remove_dir_all(&own.state);
        }
    }
    remove_cgroups(&record.cgroup_root);
    let path = dir.join(RECORD);
    fs::remove_file(&path).map_err(file("remove", &path))
}

/// Those that its kubelet has made: of a runtime of ours all there are.
async fn remove_pods(dir: &Path, record: &Record) -> Result<(), Error> {
    let runtime = Runtime::connect(&record.address()).await?;
    let pods = dir.join("kubelet/pods");
    for one in pod::all(&runtime).await? {
        if record.runtime.is_some() || pods.join(&one.uid).is_dir() {
            pod::stop(&runtime, &one.id, &one.name).await?;
            pod::remove(&runtime, &one.id, &one.name).await?;
        }
    }
    for entry in fs::read_dir(&pods).into_iter().flatten().flatten() {
        berth_kubelet::remove_kubelet_dir(&entry.path())?;
    }
    Ok(())
}

/// The kubelet's, now that nothing is in them; one in which something is stays.
fn remove_cgroups(root: &str) {
    let hierarchies = fs::read_dir("/sys/fs/cgroup")
        .into_iter()
        .flatten()
        .flatten();
    let hierarchies = hierarchies
        .map(|entry| entry.path())
        .filter(|path| path.is_dir());
    for hierarchy in hierarchies.chain([PathBuf::from("/sys/fs/cgroup")]) {
        let below = hierarchy.join(root.trim_start_matches('/'));
        remove_empty(&below.join("kubepods"));
        if root != "/" {
            let _ = fs::remove_dir(below);
        }
    }
}

fn remove_empty(cgroup: &Path) {
    for entry in fs::read_dir(cgroup).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|it| it.is_dir()) {
            remove_empty(&entry.path());
        }
    }
    let _ = fs::remove_dir(cgroup);
}
