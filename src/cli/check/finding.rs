//! What the doctor found: level, place, message, remedy, and the statements that mend it.

use std::fmt::Write as _;

use serde_json::{Value, json};

use crate::cli::Exit;

/// How bad.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Level {
    /// Good to know.
    Info,
    /// It would run, but somebody may be surprised.
    Warning,
    /// It would not run.
    Error,
}

impl Level {
    fn word(self) -> &'static str {
        match self {
            Level::Info => "info",
            Level::Warning => "warning",
            Level::Error => "error",
        }
    }
}

/// One finding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Finding {
    pub(super) level: Level,
    /// `primary`, or the pipeline whose sink it is about.
    pub(super) place: String,
    pub(super) message: String,
    pub(super) remedy: String,
    /// To be run at the place, as a superuser.
    pub(super) sql: Vec<String>,
    /// What `check` ends with for it, if it is an error.
    pub(super) exit: Exit,
}

impl Finding {
    pub(super) fn new(level: Level, place: &str, message: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            level,
            place: place.to_owned(),
            message: message.into(),
            remedy: remedy.into(),
            sql: Vec::new(),
            exit: Exit::Refused,
        }
    }

    pub(super) fn error(place: &str, message: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::new(Level::Error, place, message, remedy)
    }

    pub(super) fn warning(place: &str, message: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::new(Level::Warning, place, message, remedy)
    }

    #[must_use]
    pub(super) fn with_sql(mut self, sql: impl IntoIterator<Item = String>) -> Self {
        self.sql.extend(sql);
        self
    }

    #[must_use]
    pub(super) fn with_exit(self, exit: Exit) -> Self {
        Self { exit, ..self }
    }
}

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Findings {
    all: Vec<Finding>,
}

impl Findings {
    pub(super) fn push(&mut self, finding: Finding) {
        // Two pipelines of one primary find the same there: once is enough.
        if !self.all.contains(&finding) {
            self.all.push(finding);
        }
    }

    fn is_ok(&self) -> bool {
        self.all.iter().all(|finding| finding.level != Level::Error)
    }

    pub(super) fn exit(&self) -> Exit {
        let has = |exit: &Exit| self.all.iter().any(|finding| finding.level == Level::Error && finding.exit == *exit);
        [Exit::Unreachable, Exit::Configuration, Exit::Refused].into_iter().find(has).unwrap_or(Exit::Done)
    }

    pub(super) fn to_json(&self) -> Value {
        let findings: Vec<Value> = self
            .all
            .iter()
            .map(|finding| {
                json!({
                    "level": finding.level.word(),
                    "place": finding.place,
                    "message": finding.message,
                    "remedy": finding.remedy,
                    "sql": finding.sql,
                })
            })
            .collect();
        json!({"ok": self.is_ok(), "findings": findings})
    }

    pub(super) fn to_text(&self) -> String {
        let mut text = String::new();
        let mut sorted: Vec<&Finding> = self.all.iter().collect();
        sorted.sort_by_key(|finding| std::cmp::Reverse(finding.level));
        for finding in sorted {
            let _ = writeln!(text, "{:<7} {}: {}", finding.level.word(), finding.place, finding.message);
            if !finding.remedy.is_empty() {
                let _ = writeln!(text, "        → {}", finding.remedy);
            }
            for sql in &finding.sql {
                let _ = writeln!(text, "          {sql};");
            }
        }
        let errors = self.all.iter().filter(|finding| finding.level == Level::Error).count();
        let verdict = if errors == 0 {
            "ok: walrelay would run".to_owned()
        } else {
            format!("{errors} to mend before walrelay would run")
        };
        let _ = writeln!(text, "{verdict}");
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_error_keeps_it_from_running() {
        let mut findings = Findings::default();
        findings.push(Finding::warning("primary", "old", "update"));
        findings.push(Finding::warning("primary", "old", "update"));
        assert_eq!((findings.exit(), findings.all.len()), (Exit::Done, 1));
        findings.push(Finding::error("a", "broken", "mend").with_sql(["SELECT 1".to_owned()]));
        assert_eq!(findings.exit(), Exit::Refused);
        assert_eq!(findings.to_json()["findings"][1]["sql"][0], "SELECT 1");
        assert!(findings.to_text().starts_with("error   a: broken\n"));
        findings.push(Finding::error("primary", "password", "").with_exit(Exit::Configuration));
        assert_eq!(findings.exit(), Exit::Configuration);
        findings.push(Finding::error("primary", "gone", "").with_exit(Exit::Unreachable));
        assert_eq!(findings.exit(), Exit::Unreachable);
    }
}
