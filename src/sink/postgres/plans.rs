//! The prepared statements of the session: one for each table and form, named once, found again without building any text.

use std::collections::HashMap;
use std::sync::Arc;

use crate::wire::WireError;

use super::form::Form;
use super::session::Pipelined;
use super::statements::statement;
use super::target::Target;

/// Prepared statements kept on the server: each costs it some ten kilobytes. At the limit all are forgotten.
const STATEMENT_LIMIT: usize = 2000;

/// A prepared statement.
#[derive(Debug)]
pub(super) struct Plan {
    /// Its name on the server.
    pub(super) name: String,
    /// The form that it serves.
    pub(super) form: Form,
}

/// The plans of one table.
#[derive(Debug, Default)]
struct TablePlans {
    /// The plan used last: bulk work repeats it.
    last: Option<Arc<Plan>>,
    all: HashMap<Form, Arc<Plan>>,
}

/// All prepared statements.
#[derive(Debug, Default)]
pub(super) struct Plans {
    by_relation: HashMap<u32, TablePlans>,
    prepared: usize,
    /// Never reset, so that a name is never used twice in a session.
    next_name: u64,
}

impl Plans {
    /// The plan for a form; prepares it in the pipeline if it is new.
    pub(super) fn get(
        &mut self,
        session: &mut Pipelined,
        target: &Target,
        form: &Form,
    ) -> Result<Arc<Plan>, WireError> {
        if let Some(plans) = self.by_relation.get_mut(&target.relation.oid) {
            if let Some(last) = plans.last.as_ref().filter(|plan| plan.form == *form) {
                return Ok(Arc::clone(last));
            }
            if let Some(plan) = plans.all.get(form) {
                plans.last = Some(Arc::clone(plan));
                return Ok(Arc::clone(plan));
            }
        }
        if self.prepared >= STATEMENT_LIMIT {
            self.forget_all(session)?;
        }
        let plan = Arc::new(Plan { name: format!("w{}", self.next_name), form: form.clone() });
        let made = statement(target, form);
        session.parse(&plan.name, &made.sql, &made.types)?;
        self.next_name += 1;
        self.prepared += 1;
        let plans = self.by_relation.entry(target.relation.oid).or_default();
        plans.last = Some(Arc::clone(&plan));
        plans.all.insert(form.clone(), Arc::clone(&plan));
        Ok(plan)
    }

    /// Forgets the plans of a relation whose description changed.
    pub(super) fn forget(&mut self, session: &mut Pipelined, relation_oid: u32) -> Result<(), WireError> {
        for plan in self.by_relation.remove(&relation_oid).into_iter().flat_map(|plans| plans.all.into_values()) {
            session.close(&plan.name)?;
            self.prepared -= 1;
        }
        Ok(())
    }

    fn forget_all(&mut self, session: &mut Pipelined) -> Result<(), WireError> {
        let relations: Vec<u32> = self.by_relation.keys().copied().collect();
        relations.into_iter().try_for_each(|oid| self.forget(session, oid))
    }
}
