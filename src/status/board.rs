//! The running pipelines' reports, by name. Pipelines come and go with a reload.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use crate::model::{PipelineName, PipelineReport};

/// All current reports.
#[derive(Debug, Default)]
pub struct Board {
    reports: Mutex<BTreeMap<PipelineName, watch::Receiver<PipelineReport>>>,
}

impl Board {
    fn locked(&self) -> MutexGuard<'_, BTreeMap<PipelineName, watch::Receiver<PipelineReport>>> {
        // A reader that panicked leaves the map whole.
        self.reports.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A pipeline runs.
    pub fn add(&self, report: watch::Receiver<PipelineReport>) {
        let name = report.borrow().name.clone();
        self.locked().insert(name, report);
    }

    /// A pipeline runs no longer.
    pub fn remove(&self, name: &PipelineName) {
        self.locked().remove(name);
    }

    /// What they say now, by name.
    pub fn reports(&self) -> Vec<PipelineReport> {
        self.locked().values().map(|report| report.borrow().clone()).collect()
    }
}
