//! Values that the captured events do not show: what Debezium gets wrong or drops, defaults that stay NULL, and that no text
//! whatever makes anything but JSON.

use proptest::prelude::*;

use super::facts::TypeFacts;
use super::filler::{filler_of, unavailable_of};
use super::form::{Form, Room, form_of, push_value};
use super::json::Fidelity;
use super::testing::settings;
use crate::config::KafkaSink;

fn base(oid: u32, kind: &str, name: &str, element: Option<TypeFacts>) -> TypeFacts {
    TypeFacts {
        oid,
        schema: "public".to_owned(),
        name: name.to_owned(),
        kind: kind.to_owned(),
        modifier: -1,
        labels: Vec::new(),
        element: element.map(Box::new),
    }
}

fn built_in(oid: u32) -> TypeFacts {
    base(oid, "b", "", None)
}

fn write(form: &Form, text: &[u8]) -> (String, Fidelity) {
    let mut out = Vec::new();
    let fidelity = push_value(form, text, &mut Room::default(), &mut out);
    (String::from_utf8(out).unwrap(), fidelity)
}

/// `atttypmod` of numeric.
fn numeric(precision: i32, scale: i32) -> i32 {
    ((precision << 16) | (scale & 0x7FF)) + 4
}

#[test]
fn what_debezium_gets_wrong_is_right_and_named() {
    let settings = settings("shop", "");
    let mood = base(20_000, "e", "mood", None);
    for (facts, modifier, text, expected) in [
        (built_in(1009), -1, "{{a,b},{c,NULL}}", r#"["{a,b}","{c,NULL}"]"#),
        (built_in(1007), -1, "{{1,2},{3,4}}", "[null,null]"),
        (built_in(1007), -1, "[0:1]={1,2}", "[1,2]"),
        (base(20_001, "b", "_mood", Some(mood)), -1, "{ok,NULL}", r#"["ok",null]"#),
        (built_in(19), -1, "name", r#""name""#),
        (built_in(1700), numeric(4, -2), "12300", r#""12300""#),
        (built_in(1700), numeric(10, 2), "NaN", "null"),
        (built_in(1562), -1, "10101", r#""FQ==""#),
    ] {
        let form = form_of(&facts, modifier, &settings).unwrap();
        assert_eq!(write(&form, text.as_bytes()), (expected.to_owned(), Fidelity::Lossy), "{text}");
    }
}

#[test]
fn what_debezium_knows_has_its_form() {
    let settings = settings("shop", "");
    let hstore = base(30_000, "b", "hstore", None);
    let spatial = |name| base(30_005, "b", "", Some(base(30_004, "b", name, None)));
    let places = "{0101:NULL:0102}";
    let wkb = r#"[{"wkb":"AQE=","srid":null,"extensions":null},null,{"wkb":"AQI=","srid":null,"extensions":null}]"#;
    for (facts, modifier, text, expected) in [
        (base(30_001, "b", "_hstore", Some(hstore)), -1, r#"{"\"k\"=>\"v\""}"#, r#"["{\"k\":\"v\"}"]"#),
        (base(30_002, "b", "vector", None), -1, "[1,2.5,3]", "[1.0,2.5,3.0]"),
        (spatial("geometry"), -1, places, wkb),
        (spatial("geography"), -1, places, wkb),
        (base(30_003, "e", "mood", None), -1, "ok", r#""ok""#),
        (built_in(774), -1, "08:00:2b:01:02:03:04:05", r#""08:00:2b:01:02:03:04:05""#),
        (built_in(1560), 1, "1", "true"),
        (built_in(1560), 16, "0000000100000000", r#""AAE=""#),
        (built_in(18), -1, "c", r#""c""#),
        (built_in(2951), -1, "{123e4567-e89b-12d3-a456-426614174000}", r#"["123e4567-e89b-12d3-a456-426614174000"]"#),
    ] {
        let form = form_of(&facts, modifier, &settings).unwrap();
        assert_eq!(write(&form, text.as_bytes()), (expected.to_owned(), Fidelity::Exact), "{text}");
    }
    let point = base(30_004, "b", "geometry", None);
    let (json, _) =
        write(&form_of(&point, -1, &settings).unwrap(), b"0101000020E610000000000000000000000000000000000000");
    assert!(json.contains("\"srid\":4326,\"extensions\":null"), "{json}");
}

#[test]
fn what_debezium_drops_has_no_form() {
    let settings = settings("shop", "");
    let multirange = [4451, 4532, 4533, 4534, 4535, 4536];
    for oid in multirange.into_iter().chain([28, 3220, 5038, 4072, 3615, 791, 1187, 143]) {
        assert_eq!(form_of(&built_in(oid), -1, &settings), None, "{oid}");
    }
    for kind in ["c", "r", "m"] {
        assert_eq!(form_of(&base(40_000, kind, "own", None), -1, &settings), None, "{kind}");
    }
}

/// Every form that any setting brings.
fn all_forms() -> Vec<(KafkaSink, TypeFacts, i32)> {
    let mut all = Vec::new();
    for lines in [
        "",
        "decimal = \"string\"\ninterval = \"string\"\ntime_precision = \"isostring\"\nbinary = \"hex\"",
        "decimal = \"double\"\ntime_precision = \"connect\"\nbinary = \"base64\"\nhstore = \"map\"",
        "time_precision = \"nanoseconds\"\nbinary = \"base64-url-safe\"",
    ] {
        let settings = settings("shop", lines);
        for oid in 16..4600 {
            for modifier in [-1, 1, 3, numeric(10, 2)] {
                all.push((settings.clone(), built_in(oid), modifier));
            }
        }
        for name in ["hstore", "citext", "geometry", "vector", "halfvec"] {
            all.push((settings.clone(), base(30_000, "b", name, None), -1));
            all.push((settings.clone(), base(30_001, "b", "", Some(base(30_000, "b", name, None))), -1));
        }
    }
    all.retain(|(settings, facts, modifier)| form_of(facts, *modifier, settings).is_some());
    all
}

#[test]
fn fillers_and_placeholders_are_json() {
    for (settings, facts, modifier) in all_forms() {
        let form = form_of(&facts, modifier, &settings).unwrap();
        for is_nullable in [true, false] {
            let placeholder = unavailable_of(&form, &facts, modifier, is_nullable, &settings);
            for json in [filler_of(&form, modifier), placeholder] {
                let value = serde_json::from_slice::<serde_json::Value>(&json);
                assert!(value.is_ok(), "{form:?}: {}", String::from_utf8_lossy(&json));
            }
        }
        assert_ne!(filler_of(&form, modifier), b"null", "{form:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Whatever stands in a value, what comes out is JSON.
    #[test]
    fn no_text_breaks_a_record(
        text in prop_oneof![
            proptest::collection::vec(any::<u8>(), 0..40),
            "[-+0-9:. eE{}\\[\\]()<>,\"\\\\=NULabtyBC]{0,40}".prop_map(String::into_bytes),
            "[0-9]{1,30}[-:.e][0-9]{1,20}[-:+ ][0-9]{1,20}".prop_map(String::into_bytes),
        ]
    ) {
        static FORMS: std::sync::LazyLock<Vec<Form>> = std::sync::LazyLock::new(|| {
            let mut forms: Vec<Form> = Vec::new();
            for (settings, facts, modifier) in all_forms() {
                let form = form_of(&facts, modifier, &settings).unwrap();
                if !forms.contains(&form) {
                    forms.push(form);
                }
            }
            forms
        });
        for form in FORMS.iter() {
            let (json, _) = write(form, &text);
            prop_assert!(serde_json::from_str::<serde_json::Value>(&json).is_ok(), "{form:?}: {json}");
        }
    }
}
