//! Reads `synchronous_standby_names`: asks the primary, and takes the value apart as `src/backend/replication/syncrep_gram.y`
//! does. Never changes it.

use postgres_protocol::escape::escape_identifier;

use crate::wire::sql::SqlClient;

use super::SourceError;

/// The setting's value, which every role may read.
pub async fn synchronous_standby_names(sql: &SqlClient) -> Result<String, SourceError> {
    let row = sql.query_one("SELECT pg_catalog.current_setting('synchronous_standby_names')", &[]).await;
    Ok(row.map_err(SourceError::sql("reading synchronous_standby_names"))?.get(0))
}

/// Whether the setting's value lists `name` (case does not count, as in `SyncRepGetStandbyPriority`) or the wildcard `*`.
pub fn lists_standby(setting: &str, name: &str) -> bool {
    standby_names(setting).iter().any(|listed| listed == "*" || listed.eq_ignore_ascii_case(name))
}

/// The setting's value without `name`: commits wait for as many of the others as before. `None` where that cannot be written simply,
/// because fewer would be left than are waited for, or the wildcard `*` stands for the name.
pub fn without_standby(setting: &str, name: &str) -> Option<String> {
    let (method, list) = parts(setting);
    let mut others = names_of_list(list);
    others.retain(|listed| !listed.eq_ignore_ascii_case(name));
    if others.is_empty() {
        return Some(String::new());
    }
    let waited_for = method.split_whitespace().next_back().map_or(Ok(1), str::parse::<usize>).ok()?;
    if others.len() < waited_for || others.iter().any(|listed| listed == "*") {
        return None;
    }
    let list = others.iter().map(|listed| escape_identifier(listed)).collect::<Vec<_>>().join(", ");
    Some(if method.is_empty() { list } else { format!("{method} ({list})") })
}

fn standby_names(setting: &str) -> Vec<String> {
    names_of_list(parts(setting).1)
}

/// Method and list: of `a, b` (no method), of `2 (a, b)`, of `FIRST 2 (a, b)` and of `ANY 2 (a, b)`.
fn parts(setting: &str) -> (&str, &str) {
    let text = setting.trim();
    match (text.find('('), text.ends_with(')')) {
        (Some(open), true) if !text.starts_with('"') => (text[..open].trim_end(), &text[open + 1..text.len() - 1]),
        _ => ("", text),
    }
}

/// Comma-separated names; a quoted one may hold anything, with `""` for a quote.
fn names_of_list(list: &str) -> Vec<String> {
    let mut names = Vec::new();
    let mut name = String::new();
    let mut is_quoted = false;
    let mut characters = list.chars().peekable();
    while let Some(character) = characters.next() {
        match character {
            '"' if is_quoted && characters.peek() == Some(&'"') => {
                name.push('"');
                characters.next();
            }
            '"' => is_quoted = !is_quoted,
            ',' if !is_quoted => names.push(std::mem::take(&mut name)),
            c if c.is_whitespace() && !is_quoted => {}
            c => name.push(c),
        }
    }
    names.push(name);
    names.retain(|name| !name.is_empty());
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_of_the_setting_is_read() {
        for (setting, name, expected) in [
            ("", "a", false),
            ("a", "a", true),
            ("A", "a", true),
            ("b, a", "a", true),
            ("ab", "a", false),
            ("*", "a", true),
            ("2 (b, a)", "a", true),
            ("FIRST 1 (b,c)", "a", false),
            ("ANY 1 (\"a\", b)", "a", true),
            ("any 2(b , a )", "a", true),
            ("\"odd,(name\", a", "a", true),
            ("\"odd\"\"a\"", "a", false),
        ] {
            assert_eq!(lists_standby(setting, name), expected, "{setting}");
        }
    }

    #[test]
    fn a_name_is_taken_out_where_the_others_are_waited_for_as_before() {
        for (setting, expected) in [
            ("a", Some("")),
            ("FIRST 2 (\"A\", a)", Some("")),
            ("b, a", Some("\"b\"")),
            ("FIRST 1 (a, b)", Some("FIRST 1 (\"b\")")),
            ("any 2(b , A, \"odd \"\"c\" )", Some("any 2 (\"b\", \"odd \"\"c\")")),
            ("2 (a, b)", None),
            ("*", None),
            ("FIRST 1 (a, *)", None),
        ] {
            assert_eq!(without_standby(setting, "a").as_deref(), expected, "{setting}");
        }
    }
}
