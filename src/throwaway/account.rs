//! The account that runs the servers: ours, or an unprivileged one when we are root.

use std::ffi::CString;
use std::path::Path;
use std::process::Command;

use std::os::unix::process::CommandExt;

use super::ThrowawayError;

/// Who runs the servers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Account {
    /// Ourselves.
    Own,
    /// Another account, because we are root.
    Other {
        /// Its name.
        name: String,
        /// Its user id.
        user_id: u32,
        /// Its group id.
        group_id: u32,
    },
}

impl Account {
    /// `postgres`, else `nobody`, when we are root.
    pub fn choose() -> Result<Self, ThrowawayError> {
        // SAFETY: geteuid has no preconditions.
        if unsafe { libc::geteuid() } != 0 {
            return Ok(Account::Own);
        }
        ["postgres", "nobody"].into_iter().find_map(look_up).ok_or(ThrowawayError::NoAccount)
    }

    /// Runs the command as this account.
    pub fn apply(&self, command: &mut Command) {
        if let Account::Other { user_id, group_id, .. } = self {
            // Without our own supplementary groups: std clears them when the uid is set as root.
            command.gid(*group_id).uid(*user_id);
        }
    }

    /// Gives a folder to this account.
    pub fn own(&self, path: &Path) -> std::io::Result<()> {
        match self {
            Account::Own => Ok(()),
            Account::Other { user_id, group_id, .. } => std::os::unix::fs::chown(path, Some(*user_id), Some(*group_id)),
        }
    }

    /// Its name, for messages.
    pub fn name(&self) -> &str {
        match self {
            Account::Own => "the current user",
            Account::Other { name, .. } => name,
        }
    }
}

fn look_up(name: &str) -> Option<Account> {
    let text = CString::new(name).ok()?;
    // SAFETY: the pointer is to a NUL-terminated string; the answer points to static storage that is read before any other call.
    let entry = unsafe { libc::getpwnam(text.as_ptr()).as_ref() }?;
    Some(Account::Other { name: name.to_owned(), user_id: entry.pw_uid, group_id: entry.pw_gid })
}
