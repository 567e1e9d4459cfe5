//! The prepared statements of the session: one for each table and form, named once, found again without building any text.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;

use crate::wire::WireError;

use super::form::Form;
use super::session::Pipelined;
use super::set_statements::{SetForm, set_statement};
use super::statements::{Statement, statement};
use super::target::Target;

/// Prepared statements kept on the server: each costs it some ten kilobytes. At the limit all are forgotten.
const STATEMENT_LIMIT: usize = 2000;

/// A prepared statement.
#[derive(Debug)]
pub(super) struct Plan<F> {
    /// Its name on the server.
    pub(super) name: String,
    /// The form that it serves.
    pub(super) form: F,
}

/// The plans of one table for one kind of form.
#[derive(Debug)]
struct FormPlans<F> {
    /// The plan used last: bulk work repeats it.
    last: Option<Arc<Plan<F>>>,
    all: HashMap<F, Arc<Plan<F>>>,
}

impl<F> Default for FormPlans<F> {
    fn default() -> Self {
        Self { last: None, all: HashMap::new() }
    }
}

impl<F: Clone + Eq + Hash> FormPlans<F> {
    fn get(&mut self, form: &F) -> Option<Arc<Plan<F>>> {
        if let Some(last) = self.last.as_ref().filter(|plan| plan.form == *form) {
            return Some(Arc::clone(last));
        }
        self.last = self.all.get(form).cloned();
        self.last.clone()
    }

    fn keep(&mut self, plan: &Arc<Plan<F>>) {
        self.last = Some(Arc::clone(plan));
        self.all.insert(plan.form.clone(), Arc::clone(plan));
    }
}

/// The plans of one table.
#[derive(Debug, Default)]
struct TablePlans {
    rows: FormPlans<Form>,
    sets: FormPlans<SetForm>,
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
    /// The plan for a change of one row; prepares it in the pipeline if it is new.
    pub(super) fn get(
        &mut self,
        session: &mut Pipelined,
        target: &Target,
        form: &Form,
    ) -> Result<Arc<Plan<Form>>, WireError> {
        if let Some(plan) = self.by_relation.get_mut(&target.relation.oid).and_then(|plans| plans.rows.get(form)) {
            return Ok(plan);
        }
        let name = self.prepare(session, &statement(target, form))?;
        let plan = Arc::new(Plan { name, form: form.clone() });
        self.by_relation.entry(target.relation.oid).or_default().rows.keep(&plan);
        Ok(plan)
    }

    /// The plan for many rows; prepares it in the pipeline if it is new.
    pub(super) fn get_set(
        &mut self,
        session: &mut Pipelined,
        target: &Target,
        form: &SetForm,
    ) -> Result<Arc<Plan<SetForm>>, WireError> {
        if let Some(plan) = self.by_relation.get_mut(&target.relation.oid).and_then(|plans| plans.sets.get(form)) {
            return Ok(plan);
        }
        let name = self.prepare(session, &set_statement(target, form))?;
        let plan = Arc::new(Plan { name, form: form.clone() });
        self.by_relation.entry(target.relation.oid).or_default().sets.keep(&plan);
        Ok(plan)
    }

    fn prepare(&mut self, session: &mut Pipelined, statement: &Statement) -> Result<String, WireError> {
        if self.prepared >= STATEMENT_LIMIT {
            self.close_all(session)?;
        }
        let name = format!("w{}", self.next_name);
        session.parse(&name, &statement.sql, &statement.types)?;
        self.next_name += 1;
        self.prepared += 1;
        Ok(name)
    }

    /// Forgets the plans of a relation whose description changed.
    pub(super) fn forget(&mut self, session: &mut Pipelined, relation_oid: u32) -> Result<(), WireError> {
        let Some(plans) = self.by_relation.remove(&relation_oid) else { return Ok(()) };
        let rows = plans.rows.all.values().map(|plan| &plan.name);
        for name in rows.chain(plans.sets.all.values().map(|plan| &plan.name)) {
            session.close(name)?;
            self.prepared -= 1;
        }
        Ok(())
    }

    /// Forgets all plans; the server has forgotten them already.
    pub(super) fn clear(&mut self) {
        self.by_relation.clear();
        self.prepared = 0;
    }

    /// Forgets all plans, here and on the server.
    pub(super) fn close_all(&mut self, session: &mut Pipelined) -> Result<(), WireError> {
        let relations: Vec<u32> = self.by_relation.keys().copied().collect();
        relations.into_iter().try_for_each(|oid| self.forget(session, oid))
    }
}
