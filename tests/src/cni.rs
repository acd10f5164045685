//! A CNI plugin that a test tells what to do.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use anyhow::Result;
use serde_json::{Value, json};

use crate::Node;

/// Writes a file as an installer does: whole or not at all.
pub fn put(path: &Path, text: &str) -> Result<()> {
    let temporary = path.with_extension("tmp");
    fs::write(&temporary, text)?;
    fs::rename(&temporary, path)?;
    Ok(())
}

/// Where the configuration of [`fake`] is, below the test's directory.
pub const CONF: &str = "cni/10-fake.conflist";

/// A plugin that does as the files beside it say: `on-ADD`, `on-DEL`, … are shell scripts that it reads where they are there. It writes down
/// its calls, and keeps a lease a pod.
const PLUGIN: &str = r#"#!/bin/sh
here=$(dirname "$0")
cat > "$here/stdin.$CNI_COMMAND"
[ "$CNI_COMMAND" = VERSION ] || echo "$CNI_COMMAND $CNI_CONTAINERID $CNI_IFNAME [$CNI_NETNS]" >> "$here/calls"
env > "$here/env.$CNI_COMMAND"
[ -e "$here/on-$CNI_COMMAND" ] && . "$here/on-$CNI_COMMAND"
case $CNI_COMMAND in
VERSION) echo '{"cniVersion":"1.1.0","supportedVersions":["0.3.1","0.4.0","1.0.0","1.1.0"]}' ;;
ADD)
  mkdir -p "$here/lease"
  n=2
  while ! mkdir "$here/lease/10.203.0.$n" 2>/dev/null; do n=$((n+1)); done
  touch "$here/lease/10.203.0.$n/$CNI_CONTAINERID.$CNI_IFNAME"
  [ -e "$here/after-ADD" ] && . "$here/after-ADD"
  echo "{\"cniVersion\":\"1.1.0\",\"interfaces\":[{\"name\":\"$CNI_IFNAME\",\"sandbox\":\"$CNI_NETNS\"}],\"ips\":[{\"address\":\"10.203.0.$n/24\",\"interface\":0}]}" ;;
DEL) for f in "$here"/lease/*/"$CNI_CONTAINERID.$CNI_IFNAME"; do [ -e "$f" ] && rm -r "$(dirname "$f")"; done ;;
esac
exit 0
"#;

/// The plugin, and `conf` as the node's configuration.
pub fn fake_with(dir: &Path, conf: &Value) -> Result<()> {
    let bin = dir.join("plugins");
    fs::create_dir_all(&bin)?;
    fs::write(bin.join("fake"), PLUGIN)?;
    fs::set_permissions(bin.join("fake"), fs::Permissions::from_mode(0o755))?;
    put(&dir.join(CONF), &conf.to_string())
}

/// The plugin as the node's network. What its configuration says is a secret.
pub fn fake(dir: &Path) -> Result<()> {
    let conf = json!({"cniVersion": "1.1.0", "name": "fake", "plugins": [{"type": "fake", "token": "secret-7"}]});
    fake_with(dir, &conf)
}

/// What the test tells its plugin and learns of it.
#[derive(Debug)]
pub struct Fake(pub PathBuf);

impl Fake {
    pub fn of(node: &Node) -> Self {
        Self(node.dir.join("plugins"))
    }

    pub fn on(&self, command: &str, script: &str) -> Result<()> {
        Ok(fs::write(self.0.join(format!("on-{command}")), script)?)
    }

    pub fn well(&self) -> Result<()> {
        for entry in fs::read_dir(&self.0)?.flatten() {
            let name = entry.file_name().display().to_string();
            if name.starts_with("on-") || name.starts_with("after-") {
                fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    }

    pub fn calls(&self) -> Vec<String> {
        let text = fs::read_to_string(self.0.join("calls")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    pub fn forget_calls(&self) {
        let _ = fs::remove_file(self.0.join("calls"));
    }

    pub fn count(&self, word: &str) -> usize {
        self.calls()
            .iter()
            .filter(|call| call.contains(word))
            .count()
    }

    pub fn told(&self, command: &str) -> Result<Value> {
        let text = fs::read(self.0.join(format!("stdin.{command}")))?;
        Ok(serde_json::from_slice(&text)?)
    }

    pub fn leases(&self) -> usize {
        fs::read_dir(self.0.join("lease")).map_or(0, |dir| dir.count())
    }
}
