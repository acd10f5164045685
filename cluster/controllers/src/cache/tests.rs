use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::ConfigMap,
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference},
};
use proptest::prelude::*;

use super::*;

fn object(name: &str, uid: &str, revision: u64, controller: Option<&str>) -> ConfigMap {
    let owner = |uid: &str| OwnerReference {
        uid: uid.to_owned(),
        controller: Some(true),
        ..OwnerReference::default()
    };
    ConfigMap {
        metadata: ObjectMeta {
            namespace: Some("default".into()),
            name: Some(name.to_owned()),
            uid: Some(uid.to_owned()),
            resource_version: Some(revision.to_string()),
            owner_references: controller.map(|uid| vec![owner(uid)]),
            ..ObjectMeta::default()
        },
        ..ConfigMap::default()
    }
}

/// What handlers were told: `+name@revision`, `-name`.
fn told(cache: &Cache<ConfigMap>) -> Arc<Mutex<Vec<String>>> {
    let told = Arc::new(Mutex::new(Vec::new()));
    let hears = told.clone();
    cache.on_change(move |old, new| {
        let line = match (old, new) {
            (_, Some(new)) => format!("+{}@{}", new.name_any(), revision(&**new)),
            (Some(old), None) => format!("-{}", old.name_any()),
            (None, None) => "nothing".into(),
        };
        hears.lock().unwrap().push(line);
    });
    told
}

fn listed(cache: &Cache<ConfigMap>, objects: Vec<ConfigMap>) {
    cache.hear(watcher::Event::Init);
    for object in objects {
        cache.hear(watcher::Event::InitApply(object));
    }
    cache.hear(watcher::Event::InitDone);
}

#[test]
fn what_was_written_is_there_at_once_and_told_once() {
    let cache = Cache::new("");
    let told = told(&cache);
    listed(&cache, vec![object("a", "1", 5, None)]);
    cache.wrote(object("b", "2", 7, None));
    cache.wrote(object("b", "2", 9, None));
    // the watch, later
    for revision in [7, 9] {
        cache.hear(watcher::Event::Apply(object("b", "2", revision, None)));
    }
    cache.hear(watcher::Event::Apply(object("b", "2", 11, None)));
    assert_eq!(*told.lock().unwrap(), ["+a@5", "+b@7", "+b@9", "+b@11"]);
}

#[test]
fn an_answer_that_comes_after_the_watch_told_more_brings_nothing_back() {
    let cache = Cache::new("");
    listed(&cache, vec![]);
    // made by us at 7, ended by another at 8: the answer comes last
    cache.hear(watcher::Event::Apply(object("b", "2", 7, None)));
    cache.hear(watcher::Event::Delete(object("b", "2", 8, None)));
    cache.wrote(object("b", "2", 7, None));
    assert!(cache.all().is_empty());
}

#[test]
fn what_was_removed_stays_so_though_the_watch_is_behind() {
    let cache = Cache::new("");
    let told = told(&cache);
    listed(&cache, vec![object("a", "1", 5, None)]);
    cache.removed(&object("a", "1", 5, None));
    cache.hear(watcher::Event::Apply(object("a", "1", 6, None)));
    assert!(cache.all().is_empty());
    // made anew under the name before the watch is there
    cache.wrote(object("a", "2", 9, None));
    cache.hear(watcher::Event::Delete(object("a", "1", 8, None)));
    cache.hear(watcher::Event::Apply(object("a", "2", 9, None)));
    assert_eq!(cache.all().len(), 1);
    assert_eq!(*told.lock().unwrap(), ["+a@5", "-a", "+a@9"]);
    assert!(cache.state().removed.is_empty());
}

#[test]
fn a_list_tells_who_has_gone_and_forgets_nothing_written_meanwhile_cp_02() {
    let cache = Cache::new("");
    listed(
        &cache,
        vec![object("a", "1", 5, None), object("b", "2", 6, None)],
    );
    let told = told(&cache);
    cache.hear(watcher::Event::Init);
    cache.wrote(object("c", "3", 20, None));
    cache.hear(watcher::Event::InitApply(object("b", "2", 6, None)));
    cache.hear(watcher::Event::InitDone);
    assert_eq!(
        *told.lock().unwrap(),
        ["+a@5", "+b@6", "+c@20", "-a"],
        "b is not told twice"
    );
    // nobody has told of it since, and newer things were told of
    cache.hear(watcher::Event::Apply(object("b", "2", 30, None)));
    let late = Instant::now() + UNSEEN * 2;
    cache.step(|state| state.doubtful(late));
    assert_eq!(told.lock().unwrap().last().unwrap(), "-c");
}

#[test]
fn owners_and_namespaces_are_indexed_and_change_cp_05() {
    let cache = Cache::new("");
    listed(&cache, vec![object("a", "1", 1, Some("x"))]);
    cache.hear(watcher::Event::Apply(object("b", "2", 2, Some("x"))));
    assert_eq!(cache.controlled_by("x").len(), 2);
    cache.hear(watcher::Event::Apply(object("a", "1", 3, Some("y"))));
    assert_eq!(cache.controlled_by("x").len(), 1);
    assert_eq!(cache.controlled_by("y").len(), 1);
    cache.hear(watcher::Event::Apply(object("a", "1", 4, None)));
    cache.hear(watcher::Event::Delete(object("b", "2", 5, Some("x"))));
    assert!(cache.state().by_controller.is_empty());
    assert_eq!(cache.in_namespace("default").len(), 1);
    assert!(cache.in_namespace("defaul").is_empty() && cache.in_namespace("default0").is_empty());
}

#[derive(Debug, Clone)]
enum Act {
    /// Of an object by its number: another writer's, or our own.
    Write(u8, bool),
    Remove(u8, bool),
    /// So many events of the watch arrive.
    Hear(u8),
    /// The watch broke: a list, during which nothing else happens.
    List,
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let act = prop_oneof![
        4 => (0..4_u8, any::<bool>()).prop_map(|(which, own)| Act::Write(which, own)),
        2 => (0..4_u8, any::<bool>()).prop_map(|(which, own)| Act::Remove(which, own)),
        4 => (0..5_u8).prop_map(Act::Hear),
        1 => Just(Act::List),
    ];
    proptest::collection::vec(act, 0..60)
}

proptest! {
    /// However far the watch is behind: our own writes are seen at once, what others did when it was told of, and at the end all is as at the server. Each handler
    /// could follow: what it was told makes the cache (CP-04).
    #[test]
    fn a_cache_follows_its_server_and_never_goes_back(acts in acts()) {
        let cache = Cache::<ConfigMap>::new("");
        let followed = Arc::new(Mutex::new(BTreeMap::<String, u64>::new()));
        let follows = followed.clone();
        cache.on_change(move |old, new| {
            let mut followed = follows.lock().unwrap();
            let before = old.map(|old| revision(&**old));
            let name = new.or(old).unwrap().name_any();
            assert_eq!(followed.get(&name).copied(), before, "what was told before");
            match new {
                Some(new) => {
                    assert!(before.is_none_or(|before| before < revision(&**new)), "{name} went back");
                    followed.insert(name, revision(&**new));
                }
                None => {
                    followed.remove(&name);
                }
            }
        });
        listed(&cache, vec![]);
        let mut server: BTreeMap<String, ConfigMap> = BTreeMap::new();
        let mut events = std::collections::VecDeque::new();
        let mut revision_now = 0;
        for act in acts {
            match act {
                Act::Write(which, own) => {
                    revision_now += 1;
                    let name = format!("o{which}");
                    let uid = server.get(&name).map_or(format!("u{revision_now}"), |there| uid(there).to_owned());
                    let object = object(&name, &uid, revision_now, None);
                    server.insert(name.clone(), object.clone());
                    events.push_back(watcher::Event::Apply(object.clone()));
                    if own {
                        cache.wrote(object.clone());
                        prop_assert_eq!(cache.get(&Key::of(&object)).map(|seen| revision(&*seen)), Some(revision_now));
                    }
                }
                Act::Remove(which, own) => {
                    let name = format!("o{which}");
                    // what this process has not seen it does not remove
                    let seen = cache.get(&Key::new("default", &name));
                    let Some(there) = server.get(&name).cloned() else { continue };
                    if own && seen.as_ref().is_none_or(|seen| uid(&**seen) != uid(&there)) {
                        continue;
                    }
                    revision_now += 1;
                    server.remove(&name);
                    let mut gone = there.clone();
                    gone.metadata.resource_version = Some(revision_now.to_string());
                    events.push_back(watcher::Event::Delete(gone));
                    if own {
                        cache.removed(&there);
                        prop_assert!(cache.get(&Key::of(&there)).is_none());
                    }
                }
                Act::Hear(some) => {
                    for event in (0..some).filter_map(|_| events.pop_front()).collect::<Vec<_>>() {
                        cache.hear(event);
                    }
                }
                Act::List => {
                    events.clear();
                    listed(&cache, server.values().cloned().collect());
                }
            }
        }
        for event in events {
            cache.hear(event);
        }
        let expected: BTreeMap<String, u64> = server.iter().map(|(name, object)| (name.clone(), revision(object))).collect();
        prop_assert_eq!(&*followed.lock().unwrap(), &expected);
        let all: BTreeMap<String, u64> = cache.all().iter().map(|object| (object.name_any(), revision(&**object))).collect();
        prop_assert_eq!(all, expected);
        prop_assert!(cache.state().removed.is_empty());
    }
}
