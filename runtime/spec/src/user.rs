//! Whom a container's process runs as: from the CRI's security context, else from the image's `User`.

use berth_proto::cri;
use oci_spec::runtime::{User, UserBuilder};

use crate::{
    accounts::{Account, Accounts, ID_LIMIT},
    error::{Error, quoted},
    userns,
};

/// Supplementary groups of one process: the kernel's NGROUPS_MAX.
const GROUPS_LIMIT: usize = 65_536;

/// Bytes of a user or group name: the longest that Linux tools make is 32, images of other worlds bring longer ones.
const NAME_LIMIT: usize = 256;

/// A user or group as it is written: digits are an id, whatever accounts of that name a passwd file may hold.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Who {
    Id(u32),
    Name(String),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Identity {
    pub uid: u32,
    pub gid: u32,
    /// With the primary gid first.
    pub groups: Vec<u32>,
    /// From passwd; `/` for those who have none.
    pub home: String,
}

impl Identity {
    /// In a user namespace there are no others than those it maps.
    pub fn check_mapped(&self, userns: &cri::UserNamespace) -> Result<(), Error> {
        let wrong = |what: &str, id: u32| {
            Err(Error::User {
                user: format!("{}:{}", self.uid, self.gid),
                why: format!("{what} {id} is not mapped in the pod's user namespace"),
            })
        };
        if !userns::maps(&userns.uids, self.uid) {
            return wrong("user", self.uid);
        }
        match self
            .groups
            .iter()
            .find(|gid| !userns::maps(&userns.gids, **gid))
        {
            Some(gid) => wrong("group", *gid),
            None => Ok(()),
        }
    }

    pub fn to_oci(&self) -> Result<User, Error> {
        Ok(UserBuilder::default()
            .uid(self.uid)
            .gid(self.gid)
            .additional_gids(self.groups.clone())
            .build()?)
    }
}

/// The part of the check that needs no image.
pub(crate) fn check(security: &cri::LinuxContainerSecurityContext) -> Result<(), Error> {
    requested(security).map(drop)?;
    supplemental(security).map(drop)
}

pub(crate) fn resolve(
    security: &cri::LinuxContainerSecurityContext,
    image_user: &str,
    accounts: &Accounts,
) -> Result<Identity, Error> {
    let (user, group) = match requested(security)? {
        Some(requested) => requested,
        None => parse_image_user(image_user)?,
    };
    let account = match &user {
        Who::Id(uid) => accounts.by_uid(*uid),
        Who::Name(name) => Some(accounts.by_name(name).ok_or_else(|| Error::User {
            user: quoted(name),
            why: "the image's /etc/passwd has no such account".into(),
        })?),
    };
    let uid = match (&user, account) {
        (Who::Id(uid), _) => *uid,
        (Who::Name(_), Some(account)) => account.uid,
        (Who::Name(_), None) => unreachable!("a name without an account was refused above"),
    };
    let gid = match group {
        Some(Who::Id(gid)) => gid,
        Some(Who::Name(name)) => {
            accounts
                .group(&name)
                .ok_or_else(|| Error::User {
                    user: quoted(image_user),
                    why: format!("the image's /etc/group has no group {}", quoted(&name)),
                })?
                .gid
        }
        None => account.map_or(0, |account| account.gid),
    };

    let mut groups = vec![gid];
    let merge = security.supplemental_groups_policy == cri::SupplementalGroupsPolicy::Merge as i32;
    let of_image = account
        .filter(|_| merge)
        .into_iter()
        .flat_map(|account| accounts.groups_of(&account.name));
    for group in supplemental(security)?.into_iter().chain(of_image) {
        if !groups.contains(&group) {
            groups.push(group);
        }
        if groups.len() > GROUPS_LIMIT {
            return Err(Error::User {
                user: format!("uid {uid}"),
                why: format!("is in more than {GROUPS_LIMIT} groups"),
            });
        }
    }
    Ok(Identity {
        uid,
        gid,
        groups,
        home: home(account),
    })
}

fn requested(
    security: &cri::LinuxContainerSecurityContext,
) -> Result<Option<(Who, Option<Who>)>, Error> {
    let group = match &security.run_as_group {
        Some(gid) => Some(Who::Id(checked("run_as_group", gid.value)?)),
        None => None,
    };
    match (&security.run_as_user, security.run_as_username.as_str()) {
        (Some(_), name) if !name.is_empty() => Err(Error::invalid(
            "run_as_username",
            "only one of run_as_user and run_as_username can be given",
        )),
        (Some(uid), _) => Ok(Some((Who::Id(checked("run_as_user", uid.value)?), group))),
        (None, "") if group.is_some() => Err(Error::invalid(
            "run_as_group",
            "is only allowed together with run_as_user or run_as_username",
        )),
        (None, "") => Ok(None),
        (None, name) => {
            let user = parse_who(name).map_err(|why| {
                Error::invalid("run_as_username", format!("{}: {why}", quoted(name)))
            })?;
            Ok(Some((user, group)))
        }
    }
}

/// The pause runs as the shim makes it, whoever is asked for: what is no user is refused all the same, before the pod is there.
pub fn check_sandbox(security: &cri::LinuxSandboxSecurityContext) -> Result<(), Error> {
    if let Some(uid) = &security.run_as_user {
        checked("run_as_user", uid.value)?;
    }
    if let Some(gid) = &security.run_as_group {
        checked("run_as_group", gid.value)?;
    }
    for gid in &security.supplemental_groups {
        checked("supplemental_groups", *gid)?;
    }
    Ok(())
}

fn supplemental(security: &cri::LinuxContainerSecurityContext) -> Result<Vec<u32>, Error> {
    if cri::SupplementalGroupsPolicy::try_from(security.supplemental_groups_policy).is_err() {
        return Err(Error::invalid(
            "supplemental_groups_policy",
            format!(
                "{} is neither Merge (0) nor Strict (1)",
                security.supplemental_groups_policy
            ),
        ));
    }
    security
        .supplemental_groups
        .iter()
        .map(|gid| checked("supplemental_groups", *gid))
        .collect()
}

fn checked(field: &str, id: i64) -> Result<u32, Error> {
    u32::try_from(id)
        .ok()
        .filter(|id| *id <= ID_LIMIT)
        .ok_or_else(|| Error::invalid(field, format!("{id} is not between 0 and {ID_LIMIT}")))
}

/// `user`, `uid`, `user:group`, `uid:gid`, `uid:group`, `user:gid`; nothing at all is root.
fn parse_image_user(text: &str) -> Result<(Who, Option<Who>), Error> {
    if text.is_empty() {
        return Ok((Who::Id(0), None));
    }
    let wrong = |why: String| Error::User {
        user: quoted(text),
        why: format!("the image's User {why}"),
    };
    let (user, group) = match text.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (text, None),
    };
    let user = parse_who(user).map_err(|why| wrong(format!("names a user that {why}")))?;
    let group = group
        .map(parse_who)
        .transpose()
        .map_err(|why| wrong(format!("names a group that {why}")))?;
    Ok((user, group))
}

fn parse_who(text: &str) -> Result<Who, String> {
    if text.is_empty() {
        return Err("is empty".into());
    }
    if text.bytes().all(|byte| byte.is_ascii_digit()) {
        return match text.parse::<u32>() {
            Ok(id) if id <= ID_LIMIT => Ok(Who::Id(id)),
            _ => Err(format!("is an id above {ID_LIMIT}")),
        };
    }
    if text.len() > NAME_LIMIT {
        return Err(format!("is longer than {NAME_LIMIT} bytes"));
    }
    // `-1`, `+0` and ` root` are mistakes, not names; a colon or a line's end can't stand in passwd.
    if text.starts_with(['-', '+'])
        || text
            .chars()
            .any(|c| c.is_whitespace() || c.is_control() || c == ':' || c == '/')
    {
        return Err("is neither a number nor a name".into());
    }
    Ok(Who::Name(text.into()))
}

/// What passwd says is the image author's word: it becomes `HOME` only if it is a plain absolute path (CVE-2022-4318).
fn home(account: Option<&Account>) -> String {
    account
        .and_then(|account| std::str::from_utf8(&account.home).ok())
        .filter(|home| home.starts_with('/') && !home.chars().any(char::is_control))
        .unwrap_or("/")
        .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{accounts::Group, error::Kind};

    fn accounts() -> Accounts {
        let user = |name: &str, uid, gid, home: &str| Account {
            name: name.into(),
            uid,
            gid,
            home: home.into(),
        };
        let group = |name: &str, gid, members: &[&str]| Group {
            name: name.into(),
            gid,
            members: members
                .iter()
                .map(|member| member.as_bytes().to_vec())
                .collect(),
        };
        Accounts {
            users: vec![
                user("root", 0, 0, "/root"),
                user("app", 1000, 1001, "/home/app"),
                user("1234", 0, 0, "/root"),
                user("0x0", 1500, 1500, "relative"),
                user("evil", 1600, 1600, "/a\nroot:x:0:0"),
            ],
            groups: vec![
                group("root", 0, &["root"]),
                group("wheel", 10, &["root", "app"]),
                group("app", 1001, &[]),
                group("data", 50_000, &["app"]),
            ],
        }
    }

    fn security() -> cri::LinuxContainerSecurityContext {
        cri::LinuxContainerSecurityContext::default()
    }

    fn id(value: i64) -> Option<cri::Int64Value> {
        Some(cri::Int64Value { value })
    }

    // SEC-ENG-15
    #[test]
    fn every_form_of_the_image_user_is_resolved_as_id_shows_it() {
        let cases: [(&str, u32, u32, &[u32], &str); 11] = [
            ("", 0, 0, &[0, 10], "/root"),
            ("root", 0, 0, &[0, 10], "/root"),
            ("0", 0, 0, &[0, 10], "/root"),
            ("app", 1000, 1001, &[1001, 10, 50_000], "/home/app"),
            ("1000", 1000, 1001, &[1001, 10, 50_000], "/home/app"),
            ("app:wheel", 1000, 10, &[10, 50_000], "/home/app"),
            ("1000:7", 1000, 7, &[7, 10, 50_000], "/home/app"),
            ("1000:data", 1000, 50_000, &[50_000, 10], "/home/app"),
            ("4000", 4000, 0, &[0], "/"),
            ("4000:4001", 4000, 4001, &[4001], "/"),
            // digits are an id, even where an account is named so (and has uid 0)
            ("1234", 1234, 0, &[0], "/"),
        ];
        for (user, uid, gid, groups, home) in cases {
            let identity = resolve(&security(), user, &accounts()).unwrap();
            assert_eq!(
                (
                    identity.uid,
                    identity.gid,
                    &*identity.groups,
                    &*identity.home
                ),
                (uid, gid, groups, home),
                "{user:?}"
            );
        }
    }

    // SEC-IMG-10
    #[test]
    fn an_image_user_that_makes_no_sense_is_an_error_and_never_root() {
        for user in [
            "2147483648",
            "4294967296",
            "4294967295",
            "18446744073709551616",
            "-1",
            "+0",
            "0x00",
            " root",
            "root ",
            "ro ot",
            "\t0",
            ":0",
            ":",
            "app:",
            "app:-1",
            "1000:4294967296",
            "1000: 0",
            "nobody-here",
            "1000:nogroup",
            "root\n",
            "app:root:x",
            "a/b",
        ] {
            let err = resolve(&security(), user, &accounts()).unwrap_err();
            assert_eq!(err.kind(), Kind::Precondition, "{user:?}: {err}");
        }
        // a name may look like a number, if the image has such an account
        assert_eq!(resolve(&security(), "0x0", &accounts()).unwrap().uid, 1500);
        assert_eq!(
            resolve(&security(), &"9".repeat(5000), &accounts())
                .unwrap_err()
                .kind(),
            Kind::Precondition
        );
    }

    #[test]
    fn the_callers_user_replaces_the_images() {
        let mut by_uid = security();
        by_uid.run_as_user = id(1000);
        assert_eq!(
            resolve(&by_uid, "root:root", &accounts()).unwrap().gid,
            1001
        );
        by_uid.run_as_group = id(3000);
        assert_eq!(
            resolve(&by_uid, "root", &accounts()).unwrap().groups,
            [3000, 10, 50_000]
        );

        let mut by_name = security();
        by_name.run_as_username = "app".into();
        assert_eq!(resolve(&by_name, "", &accounts()).unwrap().uid, 1000);
        by_name.run_as_username = "1000".into();
        assert_eq!(resolve(&by_name, "", &accounts()).unwrap().uid, 1000);
        by_name.run_as_username = "missing".into();
        assert_eq!(
            resolve(&by_name, "", &accounts()).unwrap_err().kind(),
            Kind::Precondition
        );
    }

    // SEC-ENG-15
    #[test]
    fn strict_takes_only_the_groups_that_were_asked_for() {
        let mut strict = security();
        strict.run_as_user = id(1000);
        strict.supplemental_groups = vec![1234, 1234, 1001];
        assert_eq!(
            resolve(&strict, "", &accounts()).unwrap().groups,
            [1001, 1234, 10, 50_000]
        );
        strict.supplemental_groups_policy = cri::SupplementalGroupsPolicy::Strict as i32;
        assert_eq!(
            resolve(&strict, "", &accounts()).unwrap().groups,
            [1001, 1234]
        );
    }

    #[test]
    fn ids_of_the_caller_are_bounded() {
        let over = i64::from(ID_LIMIT) + 1;
        type Change = Box<dyn Fn(&mut cri::LinuxContainerSecurityContext)>;
        let table: Vec<Change> = vec![
            Box::new(|s| s.run_as_user = id(-1)),
            Box::new(move |s| s.run_as_user = id(over)),
            Box::new(|s| s.run_as_user = id(i64::MIN)),
            Box::new(|s| (s.run_as_user, s.run_as_group) = (id(1), id(-1))),
            Box::new(|s| (s.run_as_user, s.run_as_group) = (id(1), id(1 << 32))),
            Box::new(|s| s.run_as_group = id(1)),
            Box::new(|s| (s.run_as_user, s.run_as_username) = (id(1), "app".into())),
            Box::new(|s| s.run_as_username = "app:root".into()),
            Box::new(|s| s.run_as_username = " ".into()),
            Box::new(|s| s.supplemental_groups = vec![-5]),
            Box::new(|s| s.supplemental_groups = vec![1 << 40]),
            Box::new(|s| s.supplemental_groups_policy = 7),
        ];
        for (row, change) in table.iter().enumerate() {
            let mut security = security();
            change(&mut security);
            assert_eq!(
                check(&security).unwrap_err().kind(),
                Kind::Invalid,
                "row {row}"
            );
        }
        assert!(check(&security()).is_ok());
    }

    #[test]
    fn a_home_that_is_no_plain_path_is_not_taken() {
        for user in ["0x0", "evil"] {
            assert_eq!(
                resolve(&security(), user, &accounts()).unwrap().home,
                "/",
                "{user}"
            );
        }
    }
}
