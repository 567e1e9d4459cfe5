//! What is wrong with a configuration: one error that names the file, the key, the value, the rule and the nearest valid key.
//! Never shows a password.

use std::fmt;
use std::path::PathBuf;

/// Why a configuration cannot be used. Nothing was connected.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error(
        "the configuration file {path} cannot be read: {reason}. Name one with --config FILE; an annotated example is config/walrelay.toml"
    )]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// The system's words.
        reason: String,
    },
    /// The file is not TOML.
    #[error("{path}: not valid TOML: {reason}")]
    Syntax {
        /// Which.
        path: PathBuf,
        /// With line and column.
        reason: String,
    },
    /// A key or its value breaks a rule.
    #[error("{0}")]
    Key(Box<KeyError>),
}

/// One key that breaks a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyError {
    /// The file, or the environment variable that overrides it.
    pub place: String,
    /// The whole dotted key.
    pub key: String,
    /// The value as given, unless it is or may hold a secret.
    pub value: Option<String>,
    /// What must hold.
    pub rule: String,
    /// The valid key that is most like it, for an unknown one.
    pub nearest: Option<String>,
}

impl fmt::Display for KeyError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}: {}", self.place, self.key)?;
        if let Some(value) = &self.value {
            write!(formatter, " = {value}")?;
        }
        write!(formatter, ": {}", self.rule)?;
        if let Some(nearest) = &self.nearest {
            write!(formatter, " (did you mean \"{nearest}\"?)")?;
        }
        Ok(())
    }
}

impl From<KeyError> for ConfigError {
    fn from(error: KeyError) -> Self {
        ConfigError::Key(Box::new(error))
    }
}

/// The candidate most like `word`, if any is like it at all.
pub(super) fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<String> {
    // The second counts two letters that changed places as one fault: `ulr`.
    let likeness = |candidate: &str| {
        strsim::jaro_winkler(word, candidate).max(strsim::normalized_damerau_levenshtein(word, candidate))
    };
    let scored = candidates.into_iter().map(|candidate| (likeness(candidate), candidate));
    let best = scored.max_by(|one, other| one.0.total_cmp(&other.0))?;
    (best.0 > 0.66).then(|| best.1.to_owned())
}
