//! Users and groups by name, as the image's own files have them. Pure.

use std::collections::BTreeSet;

use shoal_runtime::User;

/// The texts of `/etc/passwd` and `/etc/group`; empty when an image has none.
#[derive(Debug, Clone, Default)]
pub(crate) struct Accounts {
    pub(crate) passwd: String,
    pub(crate) group: String,
}

/// A user with its home.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Account {
    pub(crate) user: User,
    pub(crate) home: String,
}

impl Accounts {
    /// Resolves `user[:group]`, each a name or a number. Without a group: the user's own and those it is a member of.
    pub(crate) fn account(&self, text: &str) -> Result<Account, String> {
        let (user, group) = text.split_once(':').map_or((text, None), |(user, group)| (user, Some(group)));
        let entry = self.passwd_entry(user);
        let uid = match (&entry, user.parse()) {
            (Some(entry), _) => entry.uid,
            (None, Ok(number)) => number,
            (None, Err(_)) => return Err(format!("user {user:?} is not in the image's /etc/passwd")),
        };
        let home = entry.as_ref().map_or("/", |entry| entry.home).to_owned();
        let user = match group.filter(|group| !group.is_empty()) {
            Some(group) => User { uid, gid: self.gid(group)?, groups: Vec::new() },
            None => {
                let gid = entry.as_ref().map_or(0, |entry| entry.gid);
                let groups = entry.as_ref().map_or_else(Vec::new, |entry| self.groups_of(entry.name, gid));
                User { uid, gid, groups }
            }
        };
        Ok(Account { user, home })
    }

    /// Resolves `--chown`: without a group, the group has the number of the user.
    pub(crate) fn owner(&self, text: &str) -> Result<(u32, u32), String> {
        let (user, group) = text.split_once(':').map_or((text, None), |(user, group)| (user, Some(group)));
        let account = self.account(user)?;
        match group {
            Some(group) => Ok((account.user.uid, self.gid(group)?)),
            None => Ok((account.user.uid, account.user.uid)),
        }
    }

    fn gid(&self, text: &str) -> Result<u32, String> {
        let named = fields(&self.group).find(|fields| fields.first() == Some(&text)).and_then(|fields| fields.get(2)?.parse().ok());
        named.or_else(|| text.parse().ok()).ok_or_else(|| format!("group {text:?} is not in the image's /etc/group"))
    }

    fn passwd_entry(&self, text: &str) -> Option<PasswdEntry<'_>> {
        let entries = || fields(&self.passwd).filter_map(|fields| PasswdEntry::of(&fields));
        entries().find(|entry| entry.name == text).or_else(|| {
            let number: u32 = text.parse().ok()?;
            entries().find(|entry| entry.uid == number)
        })
    }

    fn groups_of(&self, name: &str, main: u32) -> Vec<u32> {
        let member = |fields: &Vec<&str>| fields.get(3).is_some_and(|members| members.split(',').any(|member| member == name));
        let groups: BTreeSet<u32> = fields(&self.group).filter(member).filter_map(|fields| fields.get(2)?.parse().ok()).collect();
        groups.into_iter().filter(|group| *group != main).collect()
    }
}

struct PasswdEntry<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

impl<'a> PasswdEntry<'a> {
    fn of(fields: &[&'a str]) -> Option<Self> {
        let [name, _, uid, gid, _, home, ..] = fields else { return None };
        Some(Self { name, uid: uid.parse().ok()?, gid: gid.parse().ok()?, home })
    }
}

fn fields(text: &str) -> impl Iterator<Item = Vec<&str>> {
    text.lines().map(|line| line.trim_end().split(':').collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accounts() -> Accounts {
        Accounts {
            passwd: "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1001::/home/app:/bin/sh\n".to_owned(),
            group: "root:x:0:\napp:x:1001:\naudio:x:29:app,other\nvideo:x:44:app\n".to_owned(),
        }
    }

    #[test]
    fn names_numbers_and_groups() {
        let user = |text: &str| accounts().account(text).map(|it| (it.user.uid, it.user.gid, it.user.groups, it.home));
        assert_eq!(user("app").unwrap(), (1000, 1001, vec![29, 44], "/home/app".to_owned()));
        assert_eq!(user("1000").unwrap(), (1000, 1001, vec![29, 44], "/home/app".to_owned()));
        assert_eq!(user("app:video").unwrap(), (1000, 44, vec![], "/home/app".to_owned()));
        assert_eq!(user("7:8").unwrap(), (7, 8, vec![], "/".to_owned()));
        assert_eq!(user("7").unwrap(), (7, 0, vec![], "/".to_owned()));
        assert_eq!(user("ghost").unwrap_err(), "user \"ghost\" is not in the image's /etc/passwd");
        assert_eq!(user("app:ghosts").unwrap_err(), "group \"ghosts\" is not in the image's /etc/group");
        assert_eq!(accounts().owner("app"), Ok((1000, 1000)));
        assert_eq!(accounts().owner("5:video"), Ok((5, 44)));
    }
}
