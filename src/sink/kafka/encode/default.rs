//! A column's default as JSON, as far as Debezium knows it: constants, and for what counts or takes the time the beginning of its
//! type. Evaluates nothing.

use super::facts::ColumnFacts;
use super::filler::filler_of;
use super::form::{Form, Room, push_value};
use super::json::Fidelity;
use super::temporal::Temporal;

/// `None` where Debezium has none either: bytea, arrays, domains, decimals without scale, expressions.
pub(super) fn default_json(facts: &ColumnFacts, form: &Form) -> Option<Vec<u8>> {
    if facts.is_counting {
        return facts.default.is_some().then(|| b"0".to_vec());
    }
    let is_domain = facts.type_oid != facts.base.oid;
    let has_none = matches!(form, Form::Binary(_) | Form::Array(_) | Form::VariableDecimal | Form::Differs(_));
    let expression = facts.default.as_deref().filter(|_| !is_domain && !has_none)?.trim();
    if is_time_function(expression) {
        return Some(match form {
            // With the digits of its precision, which a filler lacks.
            Form::Temporal(Temporal::TimestampTz(_)) => written(form, "1970-01-01 00:00:00+00").0,
            _ => filler_of(form, -1),
        });
    }
    let (out, fidelity) = written(form, &constant_of(expression)?);
    (fidelity == Fidelity::Exact && out != b"null").then_some(out)
}

fn written(form: &Form, text: &str) -> (Vec<u8>, Fidelity) {
    let mut out = Vec::new();
    let fidelity = push_value(form, text.as_bytes(), &mut Room::default(), &mut out);
    (out, fidelity)
}

fn is_time_function(expression: &str) -> bool {
    let word = expression.split(['(', ':', ' ']).find(|word| !word.is_empty()).unwrap_or("").to_ascii_lowercase();
    ["now", "current_timestamp", "current_date", "current_time", "localtimestamp", "localtime", "clock_timestamp"]
        .contains(&word.as_str())
        || ["statement_timestamp", "transaction_timestamp"].contains(&word.as_str())
}

/// The text of `'it''s'::text`, `(-1)`, `1.5`, `true`; `None` for what is no constant.
fn constant_of(expression: &str) -> Option<String> {
    if let Some(quoted) = expression.strip_prefix('\'') {
        let mut text = String::new();
        let mut characters = quoted.chars().peekable();
        while let Some(character) = characters.next() {
            match character {
                '\'' if characters.peek() == Some(&'\'') => {
                    characters.next();
                    text.push('\'');
                }
                '\'' => {
                    let rest: String = characters.collect();
                    return (rest.is_empty() || is_cast(&rest)).then_some(text);
                }
                other => text.push(other),
            }
        }
        return None;
    }
    let bare = expression.split("::").next().unwrap_or("").trim();
    let bare = bare.strip_prefix('(').and_then(|bare| bare.strip_suffix(')')).unwrap_or(bare);
    match bare {
        "true" => Some("t".to_owned()),
        "false" => Some("f".to_owned()),
        number if number.parse::<f64>().is_ok() && !number.contains(char::is_alphabetic) => Some(number.to_owned()),
        _ => None,
    }
}

/// `::character varying(20)` and nothing behind it.
fn is_cast(text: &str) -> bool {
    let is_of_type = |c: char| c.is_alphanumeric() || " _\".,()[]:".contains(c);
    text.starts_with("::") && text.chars().all(is_of_type)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_constant_is_read_out_of_its_expression() {
        for (expression, expected) in [
            ("'it''s'::text", Some("it's")),
            ("'x'", Some("x")),
            ("5", Some("5")),
            ("(-1)", Some("-1")),
            ("1.50", Some("1.50")),
            ("'-1'::integer", Some("-1")),
            ("true", Some("t")),
            ("NULL::text", None),
            ("gen_random_uuid()", None),
            ("'a'::text || 'b'::text", None),
            ("(1 + 2)", None),
        ] {
            assert_eq!(constant_of(expression).as_deref(), expected, "{expression}");
        }
    }
}
