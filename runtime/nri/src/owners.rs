//! Who asked for what: the same thing may be set by one plugin only. Another one may take it out first, and is its owner then.

use std::collections::{BTreeMap, HashMap};

use crate::{
    Error,
    api::{self, Field},
};

/// A plugin, for as long as one container is worked on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    /// Two connections may bear one name.
    pub number: u32,
    pub name: String,
}

#[derive(Debug, Clone)]
enum Claim {
    Set(Owner),
    /// It took out what another one had set, and may set it anew.
    Cleared(Owner),
    /// Everyone may add: hooks.
    Shared(Vec<String>),
}

/// By container, field and, where a field has entries, the entry's name (else empty).
#[derive(Debug, Clone, Default)]
pub struct Owners(BTreeMap<String, BTreeMap<(i32, String), Claim>>);

/// Whether a field is owned entry by entry.
fn has_entries(field: Field) -> bool {
    matches!(
        field,
        Field::Annotations
            | Field::Mounts
            | Field::Devices
            | Field::CdiDevices
            | Field::Env
            | Field::HugepageLimits
            | Field::CgroupsUnified
            | Field::Rlimits
            | Field::Namespace
            | Field::Sysctl
            | Field::LinuxNetDevices
    )
}

impl Owners {
    /// `entry` is empty for a field without entries.
    pub fn claim(
        &mut self,
        container_id: &str,
        field: Field,
        entry: &str,
        owner: &Owner,
    ) -> Result<(), Error> {
        let claims = self.0.entry(container_id.to_owned()).or_default();
        let key = (field as i32, entry.to_owned());
        let first = match claims.get(&key) {
            Some(Claim::Cleared(by)) if by == owner => None,
            Some(Claim::Set(by) | Claim::Cleared(by)) => Some(by.name.clone()),
            Some(Claim::Shared(by)) => by.first().cloned(),
            None => None,
        };
        if let Some(first) = first {
            let what = match entry {
                "" => format!("{field:?}"),
                entry => format!("{field:?} {entry:.200?}"),
            };
            return Err(Error::Conflict {
                first,
                second: owner.name.clone(),
                what,
                container_id: container_id.to_owned(),
            });
        }
        claims.insert(key, Claim::Set(owner.clone()));
        Ok(())
    }

    pub fn clear(&mut self, container_id: &str, field: Field, entry: &str, owner: &Owner) {
        let claims = self.0.entry(container_id.to_owned()).or_default();
        let key = (field as i32, entry.to_owned());
        claims.insert(key, Claim::Cleared(owner.clone()));
    }

    pub fn share(&mut self, container_id: &str, field: Field, owner: &Owner) {
        let claims = self.0.entry(container_id.to_owned()).or_default();
        let key = (field as i32, String::new());
        match claims.get_mut(&key) {
            Some(Claim::Shared(by)) => by.push(owner.name.clone()),
            _ => drop(claims.insert(key, Claim::Shared(vec![owner.name.clone()]))),
        }
    }

    /// The names of those who set `field` of the container, each with its entry.
    pub fn of(&self, container_id: &str, field: Field) -> Vec<(String, String)> {
        let claims = self.0.get(container_id).into_iter().flatten();
        claims
            .filter(|((of, _), _)| *of == field as i32)
            .filter_map(|((_, entry), claim)| match claim {
                Claim::Set(by) => Some((entry.clone(), by.name.clone())),
                Claim::Shared(by) => Some((entry.clone(), by.join(","))),
                Claim::Cleared(_) => None,
            })
            .collect()
    }

    /// As validators get it.
    pub fn message(&self) -> api::OwningPlugins {
        let mut owners = HashMap::new();
        for (container_id, claims) in &self.0 {
            let of = owners
                .entry(container_id.clone())
                .or_insert_with(api::FieldOwners::default);
            for ((field, entry), claim) in claims {
                let name = match claim {
                    Claim::Set(by) => by.name.clone(),
                    Claim::Cleared(by) => format!("-{}", by.name),
                    Claim::Shared(by) => by.join(","),
                };
                let compound = protobuf::Enum::from_i32(*field).is_some_and(has_entries);
                if compound {
                    let entries = of.compound.entry(*field).or_default();
                    entries.owners.insert(entry.clone(), name);
                } else {
                    of.simple.insert(*field, name);
                }
            }
        }
        api::OwningPlugins {
            owners,
            ..Default::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner(number: u32, name: &str) -> Owner {
        Owner {
            number,
            name: name.into(),
        }
    }

    #[test]
    fn a_thing_is_set_once_and_anew_by_who_took_it_out() {
        let (a, b) = (owner(1, "00-a"), owner(2, "10-b"));
        let namesake = owner(3, "00-a");
        let mut owners = Owners::default();
        owners.claim("c", Field::Env, "X", &a).unwrap();
        owners.claim("c", Field::Env, "Y", &b).unwrap();
        owners.claim("d", Field::Env, "X", &b).unwrap();
        for other in [&a, &b, &namesake] {
            let error = owners.claim("c", Field::Env, "X", other).unwrap_err();
            let text = error.to_string();
            assert!(
                text.contains("00-a") && text.contains("Env \"X\""),
                "{text}"
            );
        }
        owners.clear("c", Field::Env, "X", &b);
        owners.claim("c", Field::Env, "X", &a).unwrap_err();
        owners.claim("c", Field::Env, "X", &b).unwrap();
        owners.claim("c", Field::Env, "X", &b).unwrap_err();
        assert_eq!(
            owners.of("c", Field::Env),
            [("X".into(), "10-b".into()), ("Y".into(), "10-b".into())]
        );
    }

    #[test]
    fn validators_get_owners_by_field_and_entry() {
        let (a, b) = (owner(1, "00-a"), owner(2, "10-b"));
        let mut owners = Owners::default();
        owners.claim("c", Field::MemLimit, "", &a).unwrap();
        owners.claim("c", Field::Sysctl, "net.x", &b).unwrap();
        owners.share("c", Field::OciHooks, &a);
        owners.share("c", Field::OciHooks, &b);
        let message = owners.message();
        let of = &message.owners["c"];
        assert_eq!(of.simple[&(Field::MemLimit as i32)], "00-a");
        assert_eq!(of.simple[&(Field::OciHooks as i32)], "00-a,10-b");
        let sysctls = &of.compound[&(Field::Sysctl as i32)];
        assert_eq!(sysctls.owners["net.x"], "10-b");
    }
}
