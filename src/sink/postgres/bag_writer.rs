//! Writes what changes of a table without a key: a few rows each by itself, where an index may lead to them; many in one scan.

use std::sync::Arc;

use crate::decode::{Tuple, Value};

use super::bag_statements::{KEY_SETTINGS, SCAN_SETTINGS};
use super::batch::Applier;
use super::change::{ApplyError, Purpose};
use super::columns::Columns;
use super::folding::Work;
use super::form::Old;
use super::net::Bag;
use super::set_statements::{SetForm, SetOperation};

/// With an index, fewer rows than these are looked for one by one.
const SCAN_ROWS: usize = 1000;

impl Applier {
    /// Deletes or changes the rows of a bag that were there before.
    pub(super) async fn change_bag(&mut self, work: &Work<'_, '_>, bag: &Bag<'_>) -> Result<(), ApplyError> {
        let rows = &work.carried;
        // What the standby alone knows of a row must stay with it: one by one, a row that has just been changed might be taken for the next.
        let is_one_by_one = work.target.shape.has_plain_index && work.target.extra.is_empty();
        let least = if is_one_by_one { SCAN_ROWS } else { 2 };
        if rows.len() >= least {
            self.change_in_one_scan(work, bag)?;
            return Ok(self.session.write_if_full().await?);
        }
        for row in rows {
            self.change_by_itself(work, bag, *row)?;
            self.session.write_if_full().await?;
        }
        Ok(())
    }

    fn change_by_itself(&mut self, work: &Work<'_, '_>, bag: &Bag<'_>, row: u32) -> Result<(), ApplyError> {
        let target = &work.target;
        let old: Vec<Value<'_>> = bag.origin(row).map(Tuple::iter).into_iter().flatten().collect();
        let new = bag.now(row).unwrap_or_default();
        if old.iter().chain(new).any(|value| matches!(value, Value::Binary(_))) && target.takes_binary.contains(&false)
        {
            return Err(work.unprovable("a binary value may mean another one here"));
        }
        match bag.now(row) {
            Some(new) => self.form.update(target, Old::Full(&old), new)?,
            None => self.form.delete(target, &old)?,
        }
        let plan = self.plans.get(&mut self.session, target, &self.form)?;
        let set = plan.form.set.iter().map(|at| new[usize::from(*at)]);
        let equal = plan.form.equal.iter().map(|at| old[usize::from(*at)]);
        Ok(self.session.execute(&plan.name, set.chain(equal), Purpose::Set(Arc::clone(target), None))?)
    }

    fn change_in_one_scan(&mut self, work: &Work<'_, '_>, bag: &Bag<'_>) -> Result<(), ApplyError> {
        let (target, rows) = (&work.target, &work.carried);
        let is_delete = rows.iter().all(|row| bag.now(*row).is_none());
        let operation = if is_delete { SetOperation::BagDelete } else { SetOperation::BagChange };
        let all: Vec<u16> = (0..target.columns.len() as u16).collect();
        let columns = Columns::of_relation(target, &all);
        let width = columns.count();
        let count = if is_delete { width + 2 } else { 2 * width + 3 };
        self.make_arrays(count);
        let (old, rest) = self.arrays[..count].split_at_mut(width);
        let (new, rest) = rest.split_at_mut(if is_delete { 0 } else { width });
        let (deleted, numbers) = rest.split_at_mut(usize::from(!is_delete));
        columns.start(old);
        columns.start(new);
        deleted.iter_mut().chain(numbers.iter_mut()).for_each(|array| array.start(',', 0));
        let nothing = vec![Value::Null; all.len()];
        let mut before_values = Vec::with_capacity(all.len());
        let (mut kind, mut number) = (0u64, 0u64);
        let mut before: Option<&[u8]> = None;
        for row in rows {
            let Some(origin) = bag.origin(*row) else { continue };
            number = if before == Some(origin.bytes()) { number + 1 } else { 1 };
            kind += u64::from(number == 1);
            before = Some(origin.bytes());
            let now = bag.now(*row);
            before_values.clear();
            before_values.extend(origin.iter());
            columns.push(old, &before_values).map_err(work.mixed())?;
            if let Some(array) = deleted.first_mut() {
                columns.push(new, now.unwrap_or(&nothing)).map_err(work.mixed())?;
                array.push(Value::Text(if now.is_none() { b"t" } else { b"f" })).map_err(work.mixed())?;
            }
            for (array, place) in numbers.iter_mut().zip([kind, number]) {
                array.push(Value::Text(place.to_string().as_bytes())).map_err(work.mixed())?;
            }
        }
        // The plan is made when it is first bound.
        self.session.execute_once(SCAN_SETTINGS)?;
        let form = SetForm { operation, ..SetForm::default() };
        let plan = self.plans.get_set(&mut self.session, target, &form)?;
        let groups: &[&Columns<'_>] = if is_delete { &[&columns] } else { &[&columns, &columns] };
        self.execute_set(&plan.name, work, groups, count, (Some(rows.len()), None))?;
        Ok(self.session.execute_once(KEY_SETTINGS)?)
    }
}
