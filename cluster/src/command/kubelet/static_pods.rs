//! Where static pods come from.

use std::{path::PathBuf, sync::Arc, time::Duration};

use berth_kubelet::{Config, Desired, Directory, UrlConfig, UrlHeader, UrlSource, both, duration};
use clap::Args;
use tokio::{sync::watch, task::JoinSet};

use crate::error::Error;

#[derive(Debug, Args)]
pub struct StaticPods {
    /// The directory of manifests
    #[arg(long, value_name = "DIR", alias = "pod-manifest-path")]
    manifests: Option<PathBuf>,
    /// A URL (http or https) of a Pod, or of a PodList
    #[arg(long, value_name = "URL")]
    manifest_url: Option<String>,
    /// A header that is sent there (may be given several times)
    #[arg(
        long = "manifest-url-header",
        value_name = "NAME:VALUE",
        requires = "manifest_url"
    )]
    manifest_url_headers: Vec<UrlHeader>,
    /// By which CA the URL's server is known (PEM); by default those of the system
    #[arg(long, value_name = "FILE", requires = "manifest_url")]
    manifest_url_ca_file: Option<PathBuf>,
    /// Between two questions at the URL
    #[arg(long, value_name = "DURATION", default_value = "20s", value_parser = often)]
    http_check_frequency: Duration,
}

fn often(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        Duration::ZERO => Err("it can't be asked all the time".into()),
        every => Ok(every),
    }
}

pub type Pods = Option<Vec<Arc<Desired>>>;

impl StaticPods {
    /// All static pods from now on; sources that there are not know of none. The sender keeps them open.
    ///
    /// # Errors
    /// The URL can't be used.
    pub fn watch(
        self,
        config: &Config,
        tasks: &mut JoinSet<()>,
    ) -> Result<(watch::Sender<Pods>, watch::Receiver<Pods>), Error> {
        let (to_all, all) = watch::channel(None);
        let node = config.node.name.clone();
        let url = match self.manifest_url {
            Some(url) => Some(UrlSource::new(UrlConfig {
                url,
                headers: self.manifest_url_headers,
                every: self.http_check_frequency,
                ca: self.manifest_url_ca_file,
                node: node.clone(),
                kubelet_dir: config.kubelet_dir.clone(),
            })?),
            None => None,
        };
        let directory = self.manifests.map(|dir| Directory::new(dir, node));
        match (directory, url) {
            (None, None) => {
                to_all.send_replace(Some(Vec::new()));
            }
            (Some(directory), None) => {
                tasks.spawn(directory.run(to_all.clone()));
            }
            (None, Some(url)) => {
                tasks.spawn(url.run(to_all.clone()));
            }
            (Some(directory), Some(url)) => {
                let (to_files, files) = watch::channel(None);
                let (to_urls, urls) = watch::channel(None);
                tasks.spawn(directory.run(to_files));
                tasks.spawn(url.run(to_urls));
                tasks.spawn(both(files, urls, to_all.clone()));
            }
        }
        Ok((to_all, all))
    }
}
