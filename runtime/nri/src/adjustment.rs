//! What all plugins together want of a container that is to be made, and of others beside it.
//!
//! Each plugin is shown the container as those before it left it. What one of them set, no later one may set: that is a conflict, and fails
//! the container. To override on purpose a plugin takes it out first (a name with a leading `-`).

use std::collections::HashMap;

use protobuf::MessageField;

use crate::{
    Error,
    api::{self, Field},
    owners::{Owner, Owners},
    resources,
};

/// A name with a leading `-` is marked for removal.
pub fn removal(name: &str) -> Option<&str> {
    name.strip_prefix('-')
}

/// Entries of an adjustment that are named, and may be marked for removal by their name.
trait Named: Clone {
    const FIELD: Field;
    fn name(&self) -> &str;
}

macro_rules! named {
    ($($of:ty: $field:ident, $name:ident;)*) => {$(
        impl Named for $of {
            const FIELD: Field = Field::$field;
            fn name(&self) -> &str {
                &self.$name
            }
        }
    )*};
}

named! {
    api::Mount: Mounts, destination;
    api::LinuxDevice: Devices, path;
    api::KeyValue: Env, key;
    api::LinuxNamespace: Namespace, type_;
}

/// The collected wishes.
#[derive(Debug)]
pub struct Adjustments {
    /// The container as the next plugin is to see it.
    pub container: api::Container,
    pub adjust: api::ContainerAdjustment,
    pub updates: Updates,
    pub owners: Owners,
}

/// Other limits for containers that are there already, in the order in which they were first asked for.
#[derive(Debug, Default)]
pub struct Updates {
    pub list: Vec<api::ContainerUpdate>,
}

impl Updates {
    /// Takes the updates that a plugin asks for.
    pub fn take(
        &mut self,
        asked: Vec<api::ContainerUpdate>,
        owner: &Owner,
        owners: &mut Owners,
    ) -> Result<(), Error> {
        for update in asked {
            let id = update.container_id.clone();
            if id.is_empty() {
                return Err(Error::Senseless {
                    plugin: owner.name.clone(),
                    why: "an update names no container".into(),
                });
            }
            let ignore = update.ignore_failure;
            let place = self.list.iter().position(|other| other.container_id == id);
            let place = place.unwrap_or_else(|| {
                self.list.push(api::ContainerUpdate {
                    container_id: id.clone(),
                    ignore_failure: ignore,
                    ..Default::default()
                });
                self.list.len() - 1
            });
            let merged = &mut self.list[place];
            // Whoever insists, insists for all.
            merged.ignore_failure &= ignore;
            let Some(asked) = update.linux.resources.as_ref() else {
                continue;
            };
            let into = merged
                .linux
                .mut_or_insert_default()
                .resources
                .mut_or_insert_default();
            match resources::merge(&id, owner, owners, asked, &mut [into]) {
                Err(error) if ignore => tracing::warn!("{error}; it asks to go on"),
                other => other?,
            }
        }
        Ok(())
    }
}

impl Adjustments {
    pub fn new(container: api::Container) -> Self {
        Self {
            container,
            adjust: api::ContainerAdjustment::default(),
            updates: Updates::default(),
            owners: Owners::default(),
        }
    }

    /// Takes one plugin's answer.
    pub fn take(
        &mut self,
        answer: api::CreateContainerResponse,
        owner: &Owner,
    ) -> Result<(), Error> {
        if let Some(asked) = answer.adjust.into_option() {
            self.adjust(asked, owner)?;
        }
        let own = |update: &api::ContainerUpdate| update.container_id == self.container.id;
        if answer.update.iter().any(own) {
            return Err(Error::Senseless {
                plugin: owner.name.clone(),
                why: format!(
                    "an update of container {}, which is being made: that is an adjustment",
                    self.container.id
                ),
            });
        }
        for evict in &answer.evict {
            tracing::warn!(plugin = %owner.name, container_id = %evict.container_id.escape_debug(), "NRI plugin asks for an eviction: Berth ends no container for a plugin");
        }
        self.updates.take(answer.update, owner, &mut self.owners)
    }

    fn adjust(&mut self, asked: api::ContainerAdjustment, owner: &Owner) -> Result<(), Error> {
        let api::ContainerAdjustment {
            annotations,
            mounts,
            env,
            hooks,
            linux,
            rlimits,
            CDI_devices: cdi_devices,
            args,
            special_fields: _,
        } = asked;
        self.map(annotations, owner, Field::Annotations, |of| {
            (
                &mut of.adjust.annotations,
                Some(&mut of.container.annotations),
            )
        })?;
        self.list(mounts, owner, |of| {
            (&mut of.adjust.mounts, Some(&mut of.container.mounts))
        })?;
        self.env(env, owner)?;
        self.args(args, owner)?;
        if let Some(hooks) = hooks.into_option() {
            self.hooks(hooks, owner);
        }
        if let Some(linux) = linux.into_option() {
            self.linux(linux, owner)?;
        }
        for limit in rlimits {
            self.claim(Field::Rlimits, &limit.type_, owner)?;
            self.container.rlimits.retain(|l| l.type_ != limit.type_);
            self.container.rlimits.push(limit.clone());
            self.adjust.rlimits.push(limit);
        }
        for device in cdi_devices {
            self.claim(Field::CdiDevices, &device.name, owner)?;
            self.adjust.CDI_devices.push(device);
        }
        Ok(())
    }

    fn linux(&mut self, asked: api::LinuxContainerAdjustment, owner: &Owner) -> Result<(), Error> {
        let api::LinuxContainerAdjustment {
            devices,
            resources,
            cgroups_path,
            oom_score_adj,
            io_priority,
            seccomp_policy,
            namespaces,
            sysctl,
            net_devices,
            scheduler,
            rdt,
            memory_policy,
            special_fields: _,
        } = asked;
        self.list(devices, owner, |of| {
            (
                &mut adjusted(&mut of.adjust).devices,
                Some(&mut shown(&mut of.container).devices),
            )
        })?;
        if let Some(asked) = resources.as_ref() {
            let id = self.container.id.clone();
            let adjust = adjusted(&mut self.adjust).resources.mut_or_insert_default();
            let seen = shown(&mut self.container).resources.mut_or_insert_default();
            resources::merge(&id, owner, &mut self.owners, asked, &mut [adjust, seen])?;
        }
        if !cgroups_path.is_empty() {
            self.claim(Field::CgroupsPath, "", owner)?;
            adjusted(&mut self.adjust).cgroups_path = cgroups_path.clone();
            shown(&mut self.container).cgroups_path = cgroups_path;
        }
        macro_rules! whole {
            ($($field:ident: $claim:ident;)*) => {$(
                if $field.is_some() {
                    self.claim(Field::$claim, "", owner)?;
                    adjusted(&mut self.adjust).$field = $field.clone();
                    shown(&mut self.container).$field = $field;
                }
            )*};
        }
        whole! {
            oom_score_adj: OomScoreAdj;
            io_priority: IoPriority;
            seccomp_policy: SeccompPolicy;
            scheduler: LinuxSched;
        }
        if memory_policy.is_some() {
            self.claim(Field::MemoryPolicy, "", owner)?;
            adjusted(&mut self.adjust).memory_policy = memory_policy;
        }
        self.list(namespaces, owner, |of| {
            (
                &mut adjusted(&mut of.adjust).namespaces,
                Some(&mut shown(&mut of.container).namespaces),
            )
        })?;
        self.map(sysctl, owner, Field::Sysctl, |of| {
            (
                &mut adjusted(&mut of.adjust).sysctl,
                Some(&mut shown(&mut of.container).sysctl),
            )
        })?;
        self.map(net_devices, owner, Field::LinuxNetDevices, |of| {
            (
                &mut adjusted(&mut of.adjust).net_devices,
                Some(&mut shown(&mut of.container).net_devices),
            )
        })?;
        if let Some(rdt) = rdt.into_option() {
            self.rdt(rdt, owner)?;
        }
        Ok(())
    }

    fn claim(&mut self, field: Field, entry: &str, owner: &Owner) -> Result<(), Error> {
        self.owners.claim(&self.container.id, field, entry, owner)
    }

    /// Named entries: those to be removed first, then the new ones.
    fn list<T: Named>(
        &mut self,
        asked: Vec<T>,
        owner: &Owner,
        of: impl Fn(&mut Self) -> (&mut Vec<T>, Option<&mut Vec<T>>),
    ) -> Result<(), Error> {
        if asked.is_empty() {
            return Ok(());
        }
        let (removals, additions): (Vec<T>, Vec<T>) = asked
            .into_iter()
            .partition(|entry| removal(entry.name()).is_some());
        for entry in &removals {
            let name = removal(entry.name()).unwrap_or_default().to_owned();
            let anew = additions.iter().any(|other| other.name() == name);
            let (adjust, seen) = of(self);
            let before = adjust.len();
            adjust.retain(|other| other.name() != name);
            let was_set = adjust.len() < before;
            if !anew && !adjust.iter().any(|other| other.name() == entry.name()) {
                adjust.push(entry.clone());
            }
            if let Some(seen) = seen {
                seen.retain(|other| other.name() != name);
            }
            if was_set {
                self.owners
                    .clear(&self.container.id, T::FIELD, &name, owner);
            }
        }
        for entry in additions {
            let name = entry.name().to_owned();
            self.claim(T::FIELD, &name, owner)?;
            let (adjust, seen) = of(self);
            adjust.retain(|other| removal(other.name()) != Some(&name));
            adjust.push(entry.clone());
            if let Some(seen) = seen {
                seen.retain(|other| other.name() != name);
                seen.push(entry);
            }
        }
        Ok(())
    }

    fn map<V: Clone + Default>(
        &mut self,
        asked: HashMap<String, V>,
        owner: &Owner,
        field: Field,
        of: impl Fn(&mut Self) -> (&mut HashMap<String, V>, Option<&mut HashMap<String, V>>),
    ) -> Result<(), Error> {
        for key in asked.keys().filter_map(|key| removal(key)) {
            let (adjust, seen) = of(self);
            let was_set = adjust.remove(key).is_some();
            if !asked.contains_key(key) {
                adjust.insert(format!("-{key}"), V::default());
            }
            if let Some(seen) = seen {
                seen.remove(key);
            }
            if was_set {
                self.owners.clear(&self.container.id, field, key, owner);
            }
        }
        for (key, value) in asked {
            if removal(&key).is_some() {
                continue;
            }
            self.claim(field, &key, owner)?;
            let (adjust, seen) = of(self);
            adjust.remove(&format!("-{key}"));
            adjust.insert(key.clone(), value.clone());
            if let Some(seen) = seen {
                seen.insert(key, value);
            }
        }
        Ok(())
    }

    fn env(&mut self, asked: Vec<api::KeyValue>, owner: &Owner) -> Result<(), Error> {
        let names: Vec<String> = asked
            .iter()
            .map(|entry| removal(&entry.key).unwrap_or(&entry.key).to_owned())
            .collect();
        let added: Vec<String> = asked
            .iter()
            .filter(|entry| removal(&entry.key).is_none())
            .map(|entry| format!("{}={}", entry.key, entry.value))
            .collect();
        self.list(asked, owner, |of| (&mut of.adjust.env, None))?;
        let key = |entry: &str| entry.split('=').next().unwrap_or_default().to_owned();
        let seen = &mut self.container.env;
        seen.retain(|entry| !names.contains(&key(entry)));
        seen.extend(added);
        Ok(())
    }

    fn args(&mut self, mut asked: Vec<String>, owner: &Owner) -> Result<(), Error> {
        if asked.is_empty() {
            return Ok(());
        }
        if asked[0].is_empty() {
            self.owners
                .clear(&self.container.id, Field::Args, "", owner);
            asked.remove(0);
            if asked.is_empty() {
                self.adjust.args.clear();
                return Ok(());
            }
        }
        self.claim(Field::Args, "", owner)?;
        self.adjust.args.clone_from(&asked);
        self.container.args = asked;
        Ok(())
    }

    fn hooks(&mut self, asked: api::Hooks, owner: &Owner) {
        let mut any = false;
        let adjust = self.adjust.hooks.mut_or_insert_default();
        let seen = self.container.hooks.mut_or_insert_default();
        macro_rules! append {
            ($($kind:ident),*) => {$(
                any |= !asked.$kind.is_empty();
                adjust.$kind.extend(asked.$kind.iter().cloned());
                seen.$kind.extend(asked.$kind);
            )*};
        }
        append!(
            prestart,
            create_runtime,
            create_container,
            start_container,
            poststart,
            poststop
        );
        if any {
            self.owners
                .share(&self.container.id, Field::OciHooks, owner);
        }
    }

    fn rdt(&mut self, asked: api::LinuxRdt, owner: &Owner) -> Result<(), Error> {
        let fields = [
            (Field::RdtClosID, asked.clos_id.is_some()),
            (Field::RdtSchemata, asked.schemata.is_some()),
            (
                Field::RdtEnableMonitoring,
                asked.enable_monitoring.is_some(),
            ),
        ];
        if asked.remove {
            for (field, _) in fields {
                self.owners.clear(&self.container.id, field, "", owner);
            }
            adjusted(&mut self.adjust).rdt = MessageField::some(api::LinuxRdt {
                remove: true,
                ..Default::default()
            });
            shown(&mut self.container).rdt = MessageField::none();
        }
        for (field, is_set) in fields {
            if is_set {
                self.claim(field, "", owner)?;
            }
        }
        for rdt in [
            &mut adjusted(&mut self.adjust).rdt,
            &mut shown(&mut self.container).rdt,
        ] {
            macro_rules! take {
                ($($field:ident),*) => {$(
                    if asked.$field.is_some() {
                        rdt.mut_or_insert_default().$field = asked.$field.clone();
                    }
                )*};
            }
            take!(clos_id, schemata, enable_monitoring);
        }
        Ok(())
    }
}

fn adjusted(adjust: &mut api::ContainerAdjustment) -> &mut api::LinuxContainerAdjustment {
    adjust.linux.mut_or_insert_default()
}

fn shown(container: &mut api::Container) -> &mut api::LinuxContainer {
    container.linux.mut_or_insert_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner(number: u32) -> Owner {
        Owner {
            number,
            name: format!("0{number}-p{number}"),
        }
    }

    fn mount(destination: &str) -> api::Mount {
        api::Mount {
            destination: destination.into(),
            type_: "bind".into(),
            source: "/src".into(),
            ..Default::default()
        }
    }

    fn variable(key: &str, value: &str) -> api::KeyValue {
        api::KeyValue {
            key: key.into(),
            value: value.into(),
            ..Default::default()
        }
    }

    fn container() -> api::Container {
        api::Container {
            id: "c".into(),
            args: vec!["sleep".into()],
            env: vec!["PATH=/bin".into(), "HOME=/".into()],
            mounts: vec![mount("/base")],
            annotations: [("base".to_owned(), "1".to_owned())].into(),
            ..Default::default()
        }
    }

    type Wish = api::ContainerAdjustment;

    /// What comes of the wishes of plugins one after the other.
    fn outcome(wishes: Vec<Wish>) -> Result<Adjustments, Error> {
        let mut all = Adjustments::new(container());
        for (number, wish) in wishes.into_iter().enumerate() {
            let answer = api::CreateContainerResponse {
                adjust: MessageField::some(wish),
                ..Default::default()
            };
            all.take(answer, &owner(number as u32))?;
        }
        Ok(all)
    }

    fn linux(set: impl FnOnce(&mut api::LinuxContainerAdjustment)) -> Wish {
        let mut wish = Wish::default();
        set(adjusted(&mut wish));
        wish
    }

    fn optional(value: i64) -> MessageField<api::OptionalInt> {
        MessageField::some(api::OptionalInt {
            value,
            ..Default::default()
        })
    }

    #[test]
    fn the_same_thing_set_by_two_plugins_is_a_conflict_that_names_both() {
        let hook = || api::Hooks {
            prestart: vec![api::Hook::default()],
            ..Default::default()
        };
        type Case = (&'static str, fn() -> Wish);
        let table: Vec<Case> = vec![
            ("Annotations \"a\"", || Wish {
                annotations: [("a".to_owned(), "1".to_owned())].into(),
                ..Default::default()
            }),
            ("Mounts \"/m\"", || Wish {
                mounts: vec![mount("/m")],
                ..Default::default()
            }),
            ("Env \"E\"", || Wish {
                env: vec![variable("E", "1")],
                ..Default::default()
            }),
            ("Args", || Wish {
                args: vec!["x".into()],
                ..Default::default()
            }),
            ("Rlimits \"RLIMIT_NOFILE\"", || Wish {
                rlimits: vec![api::POSIXRlimit {
                    type_: "RLIMIT_NOFILE".into(),
                    ..Default::default()
                }],
                ..Default::default()
            }),
            ("CdiDevices \"v/c=d\"", || Wish {
                CDI_devices: vec![api::CDIDevice {
                    name: "v/c=d".into(),
                    ..Default::default()
                }],
                ..Default::default()
            }),
            ("Devices \"/dev/x\"", || {
                linux(|l| {
                    l.devices.push(api::LinuxDevice {
                        path: "/dev/x".into(),
                        ..Default::default()
                    })
                })
            }),
            ("PidsLimit", || {
                linux(|l| {
                    l.resources.mut_or_insert_default().pids =
                        MessageField::some(api::LinuxPids::default())
                })
            }),
            ("CgroupsPath", || linux(|l| l.cgroups_path = "/x".into())),
            ("OomScoreAdj", || linux(|l| l.oom_score_adj = optional(5))),
            ("IoPriority", || {
                linux(|l| l.io_priority = MessageField::some(Default::default()))
            }),
            ("SeccompPolicy", || {
                linux(|l| l.seccomp_policy = MessageField::some(Default::default()))
            }),
            ("Namespace \"network\"", || {
                linux(|l| {
                    l.namespaces.push(api::LinuxNamespace {
                        type_: "network".into(),
                        ..Default::default()
                    })
                })
            }),
            ("Sysctl \"net.x\"", || {
                linux(|l| drop(l.sysctl.insert("net.x".into(), "1".into())))
            }),
            ("LinuxNetDevices \"eth9\"", || {
                linux(|l| drop(l.net_devices.insert("eth9".into(), Default::default())))
            }),
            ("LinuxSched", || {
                linux(|l| l.scheduler = MessageField::some(Default::default()))
            }),
            ("RdtClosID", || {
                linux(|l| {
                    l.rdt.mut_or_insert_default().clos_id = MessageField::some(Default::default())
                })
            }),
            ("MemoryPolicy", || {
                linux(|l| l.memory_policy = MessageField::some(Default::default()))
            }),
        ];
        for (what, wish) in table {
            assert!(outcome(vec![wish()]).is_ok(), "{what}");
            let error = outcome(vec![wish(), wish()]).expect_err(what).to_string();
            for part in [what, "00-p0", "01-p1", "container c"] {
                assert!(error.contains(part), "{what}: {error}");
            }
        }
        // Hooks are added to.
        let with = || Wish {
            hooks: MessageField::some(hook()),
            ..Default::default()
        };
        let both = outcome(vec![with(), with()]).unwrap();
        assert_eq!(both.adjust.hooks.prestart.len(), 2);
    }

    #[test]
    fn what_was_taken_out_first_may_be_set_anew() {
        let set = |value: &str| Wish {
            annotations: [("a".to_owned(), value.to_owned())].into(),
            mounts: vec![mount("/m")],
            env: vec![variable("E", value)],
            args: vec![value.to_owned()],
            ..Default::default()
        };
        let mut instead = set("new");
        instead.annotations.insert("-a".into(), String::new());
        instead.mounts.insert(0, mount("-/m"));
        instead.env.insert(0, variable("-E", ""));
        instead.args.insert(0, String::new());
        let all = outcome(vec![set("old"), instead]).unwrap();
        assert_eq!(all.adjust.annotations, [("a".into(), "new".into())].into());
        assert_eq!(all.adjust.mounts, [mount("/m")]);
        assert_eq!(all.adjust.env, [variable("E", "new")]);
        assert_eq!(all.adjust.args, ["new"]);
        assert_eq!(
            all.container.env,
            ["PATH=/bin", "HOME=/", "E=new"].map(str::to_owned)
        );
    }

    #[test]
    fn removals_reach_the_runtime_and_the_plugins_that_follow() {
        let remove = Wish {
            annotations: [("-base".to_owned(), String::new())].into(),
            mounts: vec![mount("-/base")],
            env: vec![variable("-HOME", "")],
            ..Default::default()
        };
        let all = outcome(vec![remove]).unwrap();
        assert!(all.container.mounts.is_empty() && all.container.annotations.is_empty());
        assert_eq!(all.container.env, ["PATH=/bin"]);
        assert_eq!(all.adjust.mounts, [mount("-/base")]);
        assert_eq!(all.adjust.env, [variable("-HOME", "")]);
        assert!(all.adjust.annotations.contains_key("-base"));
    }

    #[test]
    fn who_takes_out_what_another_set_leaves_nothing_of_it_to_be_set() {
        let set = Wish {
            env: vec![variable("E", "1")],
            ..Default::default()
        };
        let remove = Wish {
            env: vec![variable("-E", "")],
            ..Default::default()
        };
        let all = outcome(vec![set.clone(), remove.clone()]).unwrap();
        assert_eq!(all.adjust.env, [variable("-E", "")]);
        // A third one would undo what the second did.
        outcome(vec![set.clone(), remove, set]).unwrap_err();
    }

    #[test]
    fn updates_of_others_are_merged_and_collide_field_by_field() {
        let update = |id: &str, limit: i64, ignore_failure| {
            let mut update = api::ContainerUpdate {
                container_id: id.into(),
                ignore_failure,
                ..Default::default()
            };
            let resources = update.linux.mut_or_insert_default();
            let resources = resources.resources.mut_or_insert_default();
            resources.pids = MessageField::some(api::LinuxPids {
                limit,
                ..Default::default()
            });
            update
        };
        let answer = |update| api::CreateContainerResponse {
            update: vec![update],
            ..Default::default()
        };
        let mut all = Adjustments::new(container());
        all.take(answer(update("x", 1, false)), &owner(0)).unwrap();
        all.take(answer(update("y", 2, true)), &owner(1)).unwrap();
        all.take(answer(update("x", 3, false)), &owner(1))
            .unwrap_err();
        all.take(answer(update("x", 3, true)), &owner(2)).unwrap();
        let told: Vec<_> = all
            .updates
            .list
            .iter()
            .map(|u| {
                let pids = u.linux.resources.pids.limit;
                (u.container_id.as_str(), pids, u.ignore_failure)
            })
            .collect();
        assert_eq!(told, [("x", 1, false), ("y", 2, true)]);
        for senseless in [update("c", 1, true), update("", 1, true)] {
            let error = all.take(answer(senseless), &owner(3)).unwrap_err();
            assert!(matches!(error, Error::Senseless { .. }), "{error}");
        }
    }
}
