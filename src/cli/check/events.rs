//! The doctor on a Kafka pipeline's events: what the primary's catalog and the settings say about keys, masks and topics. Asks the
//! primary only.

use crate::config::{KafkaSink, Pipeline};
use crate::model::QualifiedName;
use crate::sink::kafka::encode::{catalog_query, read_facts, review};

use super::finding::{Finding, Findings};
use super::primary::Primary;

/// Examines the tables that the pipeline would send.
pub(super) async fn examine(
    primary: &Primary,
    pipeline: &Pipeline,
    sink: &KafkaSink,
    tables: &[QualifiedName],
    findings: &mut Findings,
) {
    let place = pipeline.name.as_str();
    let answer = primary.sql.query(&catalog_query(tables), &[]).await.map_err(|error| error.to_string());
    let facts = answer.and_then(|rows| {
        let texts: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
        read_facts(texts.iter().map(String::as_str)).map_err(|error| error.to_string())
    });
    match facts {
        Ok(facts) => {
            for remark in review(sink, &facts) {
                findings.push(match remark.is_error {
                    true => Finding::error(place, remark.message, remark.remedy),
                    false => Finding::warning(place, remark.message, remark.remedy),
                });
            }
        }
        Err(error) => {
            let message = format!("the tables' columns and keys cannot be read from the primary: {error}");
            findings.push(Finding::error(place, message, "run check again"));
        }
    }
}
