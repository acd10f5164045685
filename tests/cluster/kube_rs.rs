//! kube-rs, by which our own components are clients of an API server: typed objects, all patches, watches, and a reflector that loses its connection, and its place.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use berth_tests::cluster::Server;
use futures_util::{StreamExt, TryStreamExt};
use k8s_openapi::api::{apps::v1::Deployment, core::v1::ConfigMap};
use kube::{
    Api, Client, Config, Error, ResourceExt,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams, WatchEvent, WatchParams},
    config::{KubeConfigOptions, Kubeconfig},
    runtime::{WatchStreamExt, reflector, watcher},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use tokio::{net::TcpListener, net::TcpStream, sync::watch};

const WITHIN: Duration = Duration::from_secs(60);

/// A client of the admin's, that dials `address`.
async fn client(server: &Server, address: &str) -> Result<Client> {
    let mut kubeconfig = Kubeconfig::read_from(server.kubeconfig())?;
    for cluster in &mut kubeconfig.clusters {
        if let Some(cluster) = &mut cluster.cluster {
            cluster.server = Some(format!("https://{address}"));
        }
    }
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
    Ok(Client::try_from(config)?)
}

fn typed<K: DeserializeOwned>(value: Value) -> Result<K> {
    Ok(serde_json::from_value(value)?)
}

fn map(name: &str, value: &str) -> Result<ConfigMap> {
    typed(json!({"metadata": {"name": name, "labels": {"of": "kube-rs"}}, "data": {"a": value}}))
}

fn data(map: &ConfigMap) -> Value {
    json!(map.data)
}

/// The code and the reason of what was refused.
fn refused<T>(result: Result<T, Error>) -> Result<(u16, String)> {
    match result {
        Err(Error::Api(status)) => Ok((status.code, status.reason)),
        Err(error) => Err(error.into()),
        Ok(_) => bail!("it is not refused"),
    }
}

#[tokio::test]
async fn objects_of_kube_rs_are_made_read_changed_watched_and_deleted() -> Result<()> {
    let server = Server::start("memory")?;
    let maps: Api<ConfigMap> = Api::namespaced(client(&server, &server.address).await?, "default");
    let made = maps.create(&PostParams::default(), &map("m", "1")?).await?;
    ensure!(
        made.uid().is_some() && made.creation_timestamp().is_some(),
        "{made:?}"
    );
    let again = maps.create(&PostParams::default(), &map("m", "1")?).await;
    ensure!(refused(again)? == (409, "AlreadyExists".into()));
    let dry_run = PostParams {
        dry_run: true,
        ..PostParams::default()
    };
    maps.create(&dry_run, &map("dry", "1")?).await?;
    ensure!(maps.get_opt("dry").await?.is_none());
    ensure!(refused(maps.get("dry").await)? == (404, "NotFound".into()));
    ensure!(data(&maps.get("m").await?) == json!({"a": "1"}));
    let metadata = maps.get_metadata("m").await?;
    ensure!(metadata.uid() == made.uid(), "{metadata:?}");

    for n in 0..4 {
        maps.create(&PostParams::default(), &map(&format!("n{n}"), "1")?)
            .await?;
    }
    let ours = ListParams::default().labels("of=kube-rs").limit(3);
    let first = maps.list(&ours).await?;
    let token = first.metadata.continue_.clone().context("a second page")?;
    let second = maps.list(&ours.clone().continue_token(&token)).await?;
    let names: Vec<String> = first
        .iter()
        .chain(second.iter())
        .map(ResourceExt::name_any)
        .collect();
    ensure!(names == ["m", "n0", "n1", "n2", "n3"], "{names:?}");

    let version = made.resource_version().context("a resourceVersion")?;
    let of_one = WatchParams::default().fields("metadata.name=m").timeout(30);
    let mut watch = maps.watch(&of_one, &version).await?.boxed();
    let mut stale = maps.get("m").await?;
    let merged = json!({"data": {"a": "2", "b": "x"}});
    maps.patch("m", &PatchParams::default(), &Patch::Merge(&merged))
        .await?;
    stale.data = Some([("a".to_owned(), "3".to_owned())].into());
    let replaced = maps.replace("m", &PostParams::default(), &stale).await;
    ensure!(refused(replaced)? == (409, "Conflict".into()));
    stale.metadata.resource_version = maps.get("m").await?.resource_version();
    maps.replace("m", &PostParams::default(), &stale).await?;
    maps.delete("m", &DeleteParams::default()).await?;
    let gone = maps.delete("m", &DeleteParams::default()).await;
    ensure!(refused(gone)? == (404, "NotFound".into()));
    for expected in [
        ("modified", json!({"a": "2", "b": "x"})),
        ("modified", json!({"a": "3"})),
        ("deleted", json!({"a": "3"})),
    ] {
        let told = match watch.try_next().await?.context("an event")? {
            WatchEvent::Added(map) => ("added", data(&map)),
            WatchEvent::Modified(map) => ("modified", data(&map)),
            WatchEvent::Deleted(map) => ("deleted", data(&map)),
            other => bail!("{other:?}"),
        };
        ensure!(told == expected, "{told:?}, and not {expected:?}");
    }
    maps.delete_collection(&DeleteParams::default(), &ours.clone().limit(500))
        .await?;
    ensure!(
        maps.list(&ListParams::default().labels("of=kube-rs"))
            .await?
            .items
            .is_empty()
    );
    Ok(())
}

#[tokio::test]
async fn strategic_patches_applies_and_subresources_of_kube_rs_do_what_they_say() -> Result<()> {
    let server = Server::start("memory")?;
    let client = client(&server, &server.address).await?;
    let deployments: Api<Deployment> = Api::namespaced(client.clone(), "default");
    let container = |name: &str, image: &str| json!({"name": name, "image": image});
    let deployment = json!({
        "metadata": {"name": "d"},
        "spec": {
            "replicas": 1,
            "selector": {"matchLabels": {"app": "d"}},
            "template": {
                "metadata": {"labels": {"app": "d"}},
                "spec": {"containers": [container("a", "a:1"), container("b", "b:1")]},
            },
        },
    });
    deployments
        .create(&PostParams::default(), &typed(deployment)?)
        .await?;
    let images = |deployment: &Deployment| -> Vec<String> {
        let spec = deployment.spec.as_ref();
        let pod = spec.and_then(|spec| spec.template.spec.as_ref());
        pod.map(|pod| &pod.containers)
            .into_iter()
            .flatten()
            .filter_map(|container| container.image.clone())
            .collect()
    };
    let one = json!({"spec": {"template": {"spec": {"containers": [container("b", "b:2")]}}}});
    let patched = deployments
        .patch("d", &PatchParams::default(), &Patch::Strategic(&one))
        .await?;
    ensure!(images(&patched) == ["a:1", "b:2"], "{patched:?}");
    ensure!(patched.metadata.generation == Some(2), "{patched:?}");

    let scale = json!({"spec": {"replicas": 3}});
    deployments
        .patch_scale("d", &PatchParams::default(), &Patch::Merge(&scale))
        .await?;
    let scaled = deployments.get_scale("d").await?;
    ensure!(scaled.spec.and_then(|spec| spec.replicas) == Some(3));
    let status = json!({"status": {"replicas": 2}, "spec": {"replicas": 7}});
    let patched = deployments
        .patch_status("d", &PatchParams::default(), &Patch::Merge(&status))
        .await?;
    let replicas = |spec: Option<i32>, status: Option<i32>| (spec, status);
    let told = replicas(
        patched.spec.and_then(|spec| spec.replicas),
        patched.status.and_then(|status| status.replicas),
    );
    ensure!(told == (Some(3), Some(2)), "{told:?}");

    let maps: Api<ConfigMap> = Api::namespaced(client, "default");
    let applied = |value: &str| json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "m"}, "data": {"a": value}});
    let apply = async |manager: &str, value: &str, force: bool| {
        let params = PatchParams::apply(manager);
        let params = if force { params.force() } else { params };
        maps.patch("m", &params, &Patch::Apply(applied(value)))
            .await
    };
    let made = apply("one", "1", false).await?;
    let same = apply("one", "1", false).await?;
    ensure!(made.resource_version() == same.resource_version());
    ensure!(refused(apply("two", "2", false).await)? == (409, "Conflict".into()));
    ensure!(data(&apply("two", "2", true).await?) == json!({"a": "2"}));
    ensure!(refused(apply("one", "1", false).await)? == (409, "Conflict".into()));
    Ok(())
}

/// Between a client and the server: it can be closed, with all that goes through it, and opened again.
struct Relay {
    address: String,
    open: watch::Sender<bool>,
}

impl Relay {
    async fn to(target: &str) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?.to_string();
        let open = watch::Sender::new(true);
        let (target, state) = (target.to_owned(), open.subscribe());
        tokio::spawn(async move {
            while let Ok((mut near, _)) = listener.accept().await {
                if !*state.borrow() {
                    continue;
                }
                let (target, mut state) = (target.clone(), state.clone());
                tokio::spawn(async move {
                    let Ok(mut far) = TcpStream::connect(target).await else {
                        return;
                    };
                    tokio::select! {
                        _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
                        _ = state.wait_for(|open| !open) => {}
                    }
                });
            }
        });
        Ok(Self { address, open })
    }
}

async fn until(what: &str, mut is_so: impl FnMut() -> bool) -> Result<()> {
    let begun = Instant::now();
    while !is_so() {
        ensure!(begun.elapsed() < WITHIN, "{what}: not within {WITHIN:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

async fn merge<T: Serialize + std::fmt::Debug>(
    maps: &Api<ConfigMap>,
    name: &str,
    patch: T,
) -> Result<()> {
    maps.patch(name, &PatchParams::default(), &Patch::Merge(patch))
        .await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reflector_of_kube_rs_comes_through_a_cut_and_a_410() -> Result<()> {
    let server = Server::start("memory")?;
    let direct: Api<ConfigMap> =
        Api::namespaced(client(&server, &server.address).await?, "default");
    let relay = Relay::to(&server.address).await?;
    let relayed: Api<ConfigMap> =
        Api::namespaced(client(&server, &relay.address).await?, "default");

    let (lists, expired) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
    let (store, writer) = reflector::store();
    let (listed, gone) = (lists.clone(), expired.clone());
    let following = tokio::spawn(async move {
        let watcher = watcher(relayed, watcher::Config::default());
        let mut events = std::pin::pin!(reflector(writer, watcher).default_backoff());
        while let Some(event) = events.next().await {
            match event {
                Ok(watcher::Event::InitDone) => listed.fetch_add(1, Ordering::Relaxed),
                Err(watcher::Error::WatchError(status)) if status.code == 410 => {
                    gone.fetch_add(1, Ordering::Relaxed)
                }
                _ => 0,
            };
        }
    });
    let has = |name: &str| {
        store
            .find(|map: &ConfigMap| map.metadata.name.as_deref() == Some(name))
            .is_some()
    };
    let create = async |name: &str| {
        direct
            .create(&PostParams::default(), &map(name, "1")?)
            .await
            .context("create")
    };
    create("a").await?;
    until("what is made is in the store", || has("a")).await?;

    relay.open.send_replace(false);
    create("b").await?;
    direct.delete("a", &DeleteParams::default()).await?;
    relay.open.send_replace(true);
    until("the watch goes on", || has("b") && !has("a")).await?;
    ensure!(lists.load(Ordering::Relaxed) == 1, "it was listed again");

    relay.open.send_replace(false);
    create("big").await?;
    direct.delete("b", &DeleteParams::default()).await?;
    // More than the server remembers (16 MiB of what was before).
    for n in 0..24 {
        let data = format!("{n:02}").repeat(450_000);
        merge(&direct, "big", json!({"data": {"a": data}})).await?;
    }
    create("c").await?;
    relay.open.send_replace(true);
    until("it is listed anew", || has("c") && !has("b")).await?;
    ensure!(
        lists.load(Ordering::Relaxed) == 2,
        "it was not listed again"
    );
    ensure!(
        expired.load(Ordering::Relaxed) == 1,
        "it was not told that its place is gone"
    );
    following.abort();
    Ok(())
}
