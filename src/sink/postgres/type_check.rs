//! Makes sure, in the batch's own transaction, that a binary COPY filled columns of the types that were known: its bytes carry none,
//! and a column of another type of the same width would take them for something else. Looks at nothing but the catalog.

use std::sync::Arc;

use crate::decode::Value;

use super::batch::Applier;
use super::change::{ApplyError, Purpose};
use super::folding::Work;

/// Behind the COPY, whose lock keeps the table as it is until the commit. Fails in the server unless the table `$1` has the columns
/// `$2` with the types `$3`.
const SAME_COLUMNS: &str = "SELECT CASE WHEN c.found = pg_catalog.cardinality($2) THEN 1 \
    ELSE ('walrelay knew other columns of ' || $1)::int4 END FROM (\
    SELECT pg_catalog.count(*) AS found FROM unnest($2, $3) AS w(name, type) JOIN pg_catalog.pg_attribute a \
    ON a.attrelid = pg_catalog.to_regclass($1) AND a.attname = w.name AND a.atttypid = w.type AND NOT a.attisdropped) c";
/// text, name[], oid[].
const SAME_COLUMNS_TYPES: &[u32] = &[25, 1003, 1028];

impl Applier {
    /// Puts the check into the pipeline.
    pub(super) fn check_types(&mut self, work: &Work<'_, '_>) -> Result<(), ApplyError> {
        let target = &work.target;
        self.make_arrays(2);
        let [names, types, ..] = &mut self.arrays[..] else { return Ok(()) };
        names.start(',', 0);
        types.start(',', 0);
        for column in &target.columns {
            names.push(Value::Text(column.name.as_bytes())).map_err(work.mixed())?;
            types.push(Value::Text(column.type_oid.to_string().as_bytes())).map_err(work.mixed())?;
        }
        let name = target.shape.qualified_name().sql();
        self.session.parse("", SAME_COLUMNS, SAME_COLUMNS_TYPES)?;
        let values = [Value::Text(name.as_bytes()), names.finish(), types.finish()];
        Ok(self.session.execute("", values.into_iter(), Purpose::Set(Arc::clone(target), None))?)
    }
}
