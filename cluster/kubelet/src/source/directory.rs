//! A directory of manifests, one pod a file: static pods.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Read},
    mem::MaybeUninit,
    os::{fd::OwnedFd, unix::fs::OpenOptionsExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use rustix::{
    fs::{
        OFlags,
        inotify::{self, CreateFlags, Reader, WatchFlags},
    },
    io::Errno,
};
use tokio::{io::unix::AsyncFd, sync::watch};

use crate::{
    Desired, Error, Problem,
    manifest::{MAX_BYTES, Origin, read_pod},
    problem::list,
};

/// Should the kernel ever not have told of a change; upstream's, too.
const LOOK_AGAIN: Duration = Duration::from_secs(20);
/// Who writes a file in pieces, or several, is given this long to be done.
const SETTLE: Duration = Duration::from_millis(50);
/// Files that are read: a node has room for fewer pods.
const MAX_FILES: usize = 2000;

const SOURCE: &str = "file";

/// What is known of a file.
#[derive(Debug, Clone)]
struct Known {
    text: String,
    /// The last pod that it had; of a file that has gone bad, the one before.
    pod: Option<Arc<Desired>>,
}

#[derive(Debug)]
pub struct Directory {
    path: PathBuf,
    /// The node's name, which is in the names of its static pods.
    node: String,
    files: BTreeMap<PathBuf, Known>,
}

impl Directory {
    pub fn new(path: PathBuf, node: String) -> Self {
        Self {
            path,
            node,
            files: BTreeMap::new(),
        }
    }

    /// Tells all good pods at each change, for as long as somebody listens. A bad file stops no other, and a pod whose file has gone bad goes on
    /// as it was.
    pub async fn run(mut self, desired: watch::Sender<Option<Vec<Arc<Desired>>>>) {
        let mut watch = None;
        while !desired.is_closed() {
            if watch.is_none() {
                watch = match Changes::watch(&self.path) {
                    Ok(changes) => Some(changes),
                    Err(error) => {
                        tracing::warn!(directory = %self.path.display(), %error, "the directory of manifests can't be watched: it is looked at now and then");
                        None
                    }
                };
            }
            match self.look() {
                Ok(pods) => {
                    desired.send_if_modified(|before| {
                        let is_new = !before.as_deref().is_some_and(|before| same(before, &pods));
                        if is_new {
                            *before = Some(pods);
                        }
                        is_new
                    });
                }
                // What can't be read says nothing of what should run.
                Err(error) => {
                    tracing::error!(directory = %self.path.display(), %error, "the directory of manifests can't be read: pods go on as they are")
                }
            }
            let changed = async {
                match &mut watch {
                    Some(changes) => changes.next().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                changed = changed => match changed {
                    Ok(()) => tokio::time::sleep(SETTLE).await,
                    Err(_) => watch = None,
                },
                () = tokio::time::sleep(LOOK_AGAIN) => {}
                () = desired.closed() => return,
            }
        }
    }

    /// Reads what is new. A directory that is not there has no pods.
    fn look(&mut self) -> io::Result<Vec<Arc<Desired>>> {
        let mut there = Vec::new();
        match fs::read_dir(&self.path) {
            Ok(entries) => {
                for entry in entries {
                    let entry = entry?;
                    // hidden ones are an editor's
                    let is_hidden = entry.file_name().as_encoded_bytes().starts_with(b".");
                    if !is_hidden && !entry.file_type()?.is_dir() {
                        there.push(entry.path());
                    }
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        there.sort();
        if there.len() > MAX_FILES {
            tracing::error!(
                files = there.len(),
                "more than {MAX_FILES} files in the directory of manifests: the first are read"
            );
            there.truncate(MAX_FILES);
        }
        self.files.retain(|path, _| there.contains(path));
        for path in there {
            let text = match read(&path) {
                Ok(text) => text,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => {
                    tracing::error!(file = %path.display(), %error, "a manifest can't be read");
                    continue;
                }
            };
            if self
                .files
                .get(&path)
                .is_some_and(|known| known.text == text)
            {
                continue;
            }
            let pod = match self.pod(&path, &text) {
                Ok(pod) => Some(Arc::new(pod)),
                Err(problems) => {
                    let error = Error::Manifest {
                        file: path.display().to_string(),
                        problems,
                    };
                    tracing::error!("{error}");
                    self.files.get(&path).and_then(|known| known.pod.clone())
                }
            };
            self.files.insert(path, Known { text, pod });
        }
        Ok(self.each_once())
    }

    fn pod(&self, path: &Path, text: &str) -> Result<Desired, Vec<Problem>> {
        let file = path.display().to_string();
        let origin = Origin::Static {
            node: &self.node,
            file: &file,
        };
        let pod = read_pod(text, origin)?;
        Desired::new(pod, SOURCE).map_err(|problem| vec![problem])
    }

    /// Of two files with the same pod the first counts.
    fn each_once(&self) -> Vec<Arc<Desired>> {
        let mut pods: Vec<Arc<Desired>> = Vec::new();
        for (path, known) in &self.files {
            let Some(pod) = &known.pod else {
                continue;
            };
            match pods
                .iter()
                .any(|other| other.full_name() == pod.full_name())
            {
                false => pods.push(pod.clone()),
                true => {
                    let what = Problem::new(
                        "metadata.name",
                        format!("{} is in another file, too", pod.full_name()),
                    );
                    tracing::error!("{}:{}", path.display(), list(&[what]));
                }
            }
        }
        pods
    }
}

fn same(before: &[Arc<Desired>], now: &[Arc<Desired>]) -> bool {
    before.len() == now.len()
        && before
            .iter()
            .zip(now)
            .all(|(one, other)| Arc::ptr_eq(one, other))
}

/// A file alone is read, and no more of it than a manifest may have.
fn read(path: &Path) -> io::Result<String> {
    let file = File::options()
        .read(true)
        .custom_flags(OFlags::NONBLOCK.bits().cast_signed())
        .open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is no file"));
    }
    let mut text = String::new();
    file.take(MAX_BYTES + 1).read_to_string(&mut text)?;
    match text.len() as u64 > MAX_BYTES {
        true => Err(io::Error::other(format!(
            "it has more than {MAX_BYTES} bytes"
        ))),
        false => Ok(text),
    }
}

struct Changes(AsyncFd<OwnedFd>);

impl Changes {
    fn watch(path: &Path) -> io::Result<Self> {
        let inotify = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        let flags = WatchFlags::CLOSE_WRITE
            | WatchFlags::MOVED_TO
            | WatchFlags::MOVED_FROM
            | WatchFlags::DELETE
            | WatchFlags::CREATE
            | WatchFlags::DELETE_SELF
            | WatchFlags::MOVE_SELF
            | WatchFlags::ONLYDIR;
        inotify::add_watch(&inotify, path, flags)?;
        // What makes it deprecated is that a descriptor might be closed meanwhile: this one is ours alone.
        #[expect(deprecated, reason = "what it became is an unsafe function")]
        let ready = AsyncFd::new(inotify)?;
        Ok(Self(ready))
    }

    /// # Errors
    /// The directory is gone, and with it what could be told of.
    async fn next(&mut self) -> io::Result<()> {
        loop {
            let mut ready = self.0.readable().await?;
            let mut buffer = [MaybeUninit::uninit(); 4096];
            let mut reader = Reader::new(ready.get_inner(), &mut buffer);
            let mut has_changed = false;
            loop {
                match reader.next() {
                    Ok(event) => {
                        has_changed = true;
                        if event.events().contains(inotify::ReadFlags::IGNORED) {
                            return Err(io::Error::other("the directory is gone"));
                        }
                    }
                    Err(Errno::WOULDBLOCK) => break,
                    Err(errno) => return Err(errno.into()),
                }
            }
            ready.clear_ready();
            if has_changed {
                return Ok(());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest(name: &str, image: &str) -> String {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  containers: [{{name: a, image: {image}}}]\n"
        )
    }

    fn names(pods: &[Arc<Desired>]) -> Vec<String> {
        pods.iter()
            .map(|pod| format!("{} {}", pod.name, pod.containers[0].image()))
            .collect()
    }

    #[test]
    fn one_bad_file_stops_no_other_and_takes_nothing_away() {
        let dir = tempfile::tempdir().unwrap();
        let put = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
        let mut source = Directory::new(dir.path().to_owned(), "n".into());
        assert!(source.look().unwrap().is_empty());
        put("a.yaml", &manifest("a", "x:1"));
        put("b.yaml", "kind: [");
        put(
            "c.json",
            r#"{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "c"}, "spec": {"containers": [{"name": "a", "image": "y"}]}}"#,
        );
        put(".hidden.yaml", &manifest("h", "x"));
        put("z.yaml", &manifest("a", "other"));
        fs::create_dir(dir.path().join("sub")).unwrap();
        std::os::unix::fs::symlink("/nonexistent", dir.path().join("broken.yaml")).unwrap();
        rustix::fs::mkfifoat(
            rustix::fs::CWD,
            dir.path().join("fifo.yaml"),
            rustix::fs::Mode::RWXU,
        )
        .unwrap();
        let first = source.look().unwrap();
        assert_eq!(names(&first), ["a-n x:1", "c-n y"]);
        assert!(same(&first, &source.look().unwrap()), "nothing is new");
        // a file that goes bad leaves its pod as it was, and one that is mended is taken
        put("a.yaml", &manifest("a", "x:1").replace("spec:", "spec: {"));
        put("b.yaml", &manifest("b", "x:2"));
        assert_eq!(
            names(&source.look().unwrap()),
            ["a-n x:1", "b-n x:2", "c-n y"]
        );
        put("a.yaml", &manifest("a", "x:3"));
        fs::remove_file(dir.path().join("c.json")).unwrap();
        assert_eq!(names(&source.look().unwrap()), ["a-n x:3", "b-n x:2"]);
    }

    #[tokio::test]
    async fn changes_are_told_of_as_they_come() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("later");
        let (sender, mut receiver) = watch::channel(None);
        fs::create_dir(&path).unwrap();
        let task = tokio::spawn(Directory::new(path.clone(), "n".into()).run(sender));
        let mut told = async |expected: &[&str]| {
            let told =
                receiver.wait_for(|pods| pods.as_ref().is_some_and(|pods| names(pods) == expected));
            let _ = tokio::time::timeout(Duration::from_secs(10), told)
                .await
                .expect("told in time")
                .expect("told");
        };
        told(&[]).await;
        fs::write(path.join(".new"), manifest("a", "x")).unwrap();
        fs::rename(path.join(".new"), path.join("a.yaml")).unwrap();
        told(&["a-n x"]).await;
        fs::write(path.join("a.yaml"), manifest("a", "z")).unwrap();
        told(&["a-n z"]).await;
        fs::remove_file(path.join("a.yaml")).unwrap();
        told(&[]).await;
        drop(receiver);
        tokio::time::timeout(Duration::from_secs(10), task)
            .await
            .expect("it ends")
            .unwrap();
    }
}
