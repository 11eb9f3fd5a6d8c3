//! Whom a server runs as: oneself, except that root lends an unprivileged user.

use std::fs;

/// A user of this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    name: String,
    uid: u32,
    gid: u32,
}

/// We are root, and the machine has no user for servers.
#[derive(Debug, thiserror::Error)]
#[error("running as root, and /etc/passwd names neither `postgres` nor `nobody` for the server to run as")]
pub struct NoUser;

impl User {
    /// The user for a server that refuses to run as root: `None` (oneself) unless we are root, then
    /// `postgres`, else `nobody`.
    ///
    /// Only named users are considered: `initdb` looks its own user up and fails for a number without a name.
    pub fn unprivileged() -> Result<Option<User>, NoUser> {
        if !rustix::process::geteuid().is_root() {
            return Ok(None);
        }
        let users = fs::read_to_string("/etc/passwd").unwrap_or_default();
        ["postgres", "nobody"].iter().find_map(|name| named(&users, name)).map(Some).ok_or(NoUser)
    }

    /// The name in the password file.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The user's number.
    pub fn uid(&self) -> u32 {
        self.uid
    }

    /// The number of the user's group.
    pub fn gid(&self) -> u32 {
        self.gid
    }
}

fn named(users: &str, name: &str) -> Option<User> {
    users.lines().find_map(|line| {
        let mut fields = line.split(':');
        if fields.next() != Some(name) {
            return None;
        }
        let uid = number(fields.nth(1)?)?;
        let gid = number(fields.next()?)?;
        Some(User { name: name.to_owned(), uid, gid })
    })
}

/// macOS writes `nobody` as -2.
fn number(field: &str) -> Option<u32> {
    field.parse().ok().or_else(|| field.parse::<i32>().ok().map(i32::cast_unsigned))
}

#[cfg(test)]
mod tests {
    use super::named;

    #[test]
    fn a_user_is_found_by_its_whole_name() {
        let users = "postgres2:x:7:7::/:/bin/sh\npostgres:x:101:104:,,,:/var/lib/postgresql:/bin/bash\n";
        let user = named(users, "postgres").unwrap();
        assert_eq!((user.uid(), user.gid()), (101, 104));
        assert_eq!(named(users, "nobody"), None);
    }

    #[test]
    fn a_negative_number_is_the_same_bits() {
        assert_eq!(named("nobody:*:-2:-2::/:/usr/bin/false", "nobody").unwrap().uid(), u32::MAX - 1);
    }
}
