//! How columns of many rows become parameters: an array each; those that come in binary form and that an array would be taken apart
//! of (arrays, composites) together as an array of the table's own rows, of which the rest is NULL. Pure.

use crate::decode::Value;

use super::arrays::{ArrayParameter, MixedForms};
use super::target::{RowSearch, Target};

/// Type of the arrays of what must be cast: text[].
pub(super) const TEXT_ARRAY: u32 = 1009;

/// A column, and where its value stands among those given.
#[derive(Clone, Copy, Debug)]
struct Placed {
    at: u16,
    place: usize,
}

/// Columns that travel together.
pub(super) struct Columns<'t> {
    target: &'t Target,
    plain: Vec<Placed>,
    /// For each column of the standby's table: the place of its value, if it travels in the row.
    row: Vec<Option<Placed>>,
    has_row: bool,
}

/// The key's columns, ascending: their parameters come first.
pub(super) fn key_columns(target: &Target) -> Vec<u16> {
    let RowSearch::Key(key) = &target.search else { return Vec::new() };
    let mut key: Vec<u16> = key.iter().map(|at| *at as u16).collect();
    key.sort_unstable();
    key
}

impl<'t> Columns<'t> {
    /// Of values that stand one behind the other.
    pub(super) fn in_turn(target: &'t Target, columns: &[u16]) -> Self {
        Self::new(target, columns.iter().enumerate().map(|(place, at)| Placed { at: *at, place }))
    }

    /// Of values that stand among all of the relation's.
    pub(super) fn of_relation(target: &'t Target, columns: &[u16]) -> Self {
        Self::new(target, columns.iter().map(|at| Placed { at: *at, place: usize::from(*at) }))
    }

    fn new(target: &'t Target, columns: impl Iterator<Item = Placed>) -> Self {
        let (in_row, plain): (Vec<Placed>, Vec<Placed>) = columns.partition(|column| target.travels_in_row(column.at));
        let placed = |name: &String| in_row.iter().find(|placed| target.column(placed.at).name == *name).copied();
        let row = target.shape.columns.iter().map(|column| placed(&column.name)).collect();
        Self { target, plain, row, has_row: !in_row.is_empty() }
    }

    /// Number of parameters.
    pub(super) fn count(&self) -> usize {
        self.plain.len() + usize::from(self.has_row)
    }

    /// Types of the parameters.
    pub(super) fn types(&self, types: &mut Vec<u32>) {
        types.extend(self.plain.iter().map(|column| match self.target.column(column.at).array_type_oid {
            0 => TEXT_ARRAY,
            oid => oid,
        }));
        types.extend(self.has_row.then_some(self.target.shape.row_array_type_oid));
    }

    /// Names of what the parameters are taken apart to: the prefix and the column's position; an `x` between where it is nothing.
    pub(super) fn names(&self, prefix: char, names: &mut Vec<String>) {
        names.extend(self.plain.iter().map(|column| format!("{prefix}{}", column.at)));
        if self.has_row {
            names.extend(self.row.iter().enumerate().map(|(at, placed)| match placed {
                Some(column) => format!("{prefix}{}", column.at),
                None => format!("{prefix}x{at}"),
            }));
        }
    }

    /// Begins the parameters anew.
    pub(super) fn start(&self, arrays: &mut [ArrayParameter]) {
        for (array, column) in arrays.iter_mut().zip(&self.plain) {
            let column = self.target.column(column.at);
            array.start(column.array_delimiter, column.base_type_oid);
        }
        if let (Some(array), true) = (arrays.get_mut(self.plain.len()), self.has_row) {
            array.start(',', self.target.shape.row_type_oid);
        }
    }

    /// Appends a row's values.
    pub(super) fn push(&self, arrays: &mut [ArrayParameter], values: &[Value<'_>]) -> Result<(), MixedForms> {
        for (array, column) in arrays.iter_mut().zip(&self.plain) {
            array.push(values[column.place])?;
        }
        if let (Some(array), true) = (arrays.get_mut(self.plain.len()), self.has_row) {
            let value = |placed: &Option<Placed>| placed.map_or(Value::Null, |placed| values[placed.place]);
            let columns = self.row.iter().zip(&self.target.shape.columns);
            array.push_row(columns.map(|(placed, column)| (column.type_oid, value(placed))))?;
        }
        Ok(())
    }

    /// Whether the finished parameters are what the statement takes: a cast reads text, and an array's elements must mean the same.
    pub(super) fn fit(&self, parameters: &[Value<'_>]) -> bool {
        let takes_binary =
            |at: u16| self.target.takes_binary[usize::from(at)] && self.target.column(at).array_type_oid != 0;
        let mut plain = self.plain.iter().zip(parameters);
        plain.all(|(column, parameter)| !matches!(parameter, Value::Binary(_)) || takes_binary(column.at))
    }
}
