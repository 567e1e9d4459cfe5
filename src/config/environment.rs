//! What the process's environment says of the settings, read once. Nobody else reads those there.

use std::collections::BTreeMap;
use std::path::PathBuf;

/// The variables that matter; in tests, made by hand.
#[derive(Clone, Debug, Default)]
pub struct Environment {
    variables: BTreeMap<String, String>,
}

/// Before every variable that overrides a key.
pub(super) const PREFIX: &str = "WALRELAY__";

impl Environment {
    /// The process's own.
    pub fn of_process() -> Self {
        Self {
            variables: std::env::vars_os()
                .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
                .collect(),
        }
    }

    /// By hand.
    pub fn from_pairs<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        Self { variables: pairs.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect() }
    }

    /// A variable that is set and not empty.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.variables.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// The home directory.
    pub fn home(&self) -> Option<PathBuf> {
        self.get("HOME").map(PathBuf::from)
    }

    /// The operating system's user, as libpq takes it for a default role.
    pub fn user(&self) -> Option<&str> {
        self.get("USER").or_else(|| self.get("LOGNAME"))
    }

    /// systemd's state directory; the first, if there are several.
    pub fn state_directory(&self) -> Option<PathBuf> {
        self.get("STATE_DIRECTORY").and_then(|value| value.split(':').next()).map(PathBuf::from)
    }

    /// systemd's credentials.
    pub fn credentials_directory(&self) -> Option<PathBuf> {
        self.get("CREDENTIALS_DIRECTORY").map(PathBuf::from)
    }

    /// The overrides: the words between `__`, in lower case, and the value.
    pub(super) fn overrides(&self) -> impl Iterator<Item = (&str, Vec<String>, &str)> {
        self.variables.iter().filter_map(|(name, value)| {
            let words = name.strip_prefix(PREFIX)?.split("__").map(str::to_lowercase).collect();
            Some((name.as_str(), words, value.as_str()))
        })
    }
}
