//! A configuration is read whole or refused with one error that names everything.

use std::path::Path;
use std::time::Duration;

use super::keys::{HTTP, LOG, PIPELINE, POSTGRES_SINK, PRIMARY, TOP};
use super::*;

const SMALLEST: &str = r#"
[primary]
url = "postgres://walrelay@db.eu.example/shop"
[[pipeline]]
name = "standby1"
[pipeline.sink]
type = "postgres"
url = "postgres://walrelay@db.us.example/shop"
"#;

fn read_with(text: &str, variables: &[(&str, &str)]) -> Result<Config, ConfigError> {
    let mut pairs = vec![("USER", "me")];
    pairs.extend_from_slice(variables);
    read(Path::new("walrelay.toml"), text, &Environment::from_pairs(pairs))
}

#[test]
fn ten_lines_are_enough() {
    let config = read_with(SMALLEST, &[]).unwrap();
    let pipeline = &config.pipelines[0];
    assert_eq!(pipeline.slot_name().as_str(), "walrelay_standby1");
    assert_eq!(pipeline.publication_name(), "walrelay_standby1");
    assert!(pipeline.initial_copy && pipeline.copy_workers == 4 && pipeline.memory_limit_bytes == 64 << 20);
    assert_eq!(config.shutdown_timeout, Duration::from_secs(30));
    assert!(config.http.is_none());
    let Sink::Postgres(sink) = &pipeline.sink else { panic!("not a postgres sink") };
    assert!(
        sink.read_only && sink.url.ssl_mode == SslMode::Prefer && sink.url.connect_timeout == Duration::from_secs(10)
    );
}

#[test]
fn every_key_is_overridden_from_the_environment() {
    let config = read_with(
        SMALLEST,
        &[
            ("WALRELAY__PRIMARY__URL", "postgres://u@other:6000/d"),
            ("WALRELAY__HTTP__LISTEN", "127.0.0.1:9187"),
            ("WALRELAY__LOG__FORMAT", "json"),
            ("WALRELAY__PIPELINE__STANDBY1__TABLES", "public.*, sales.*"),
            ("WALRELAY__PIPELINE__STANDBY1__COPY_WORKERS", "2"),
            ("WALRELAY__PIPELINE__STANDBY1__INITIAL_COPY", "false"),
            ("WALRELAY__PIPELINE__STANDBY1__SINK__URL", "postgres://u@third/d"),
        ],
    )
    .unwrap();
    assert_eq!(config.primary.to_string(), "u@other:6000/d");
    assert_eq!(config.http.unwrap().port(), 9187);
    assert_eq!(config.log.format, LogFormat::Json);
    let pipeline = &config.pipelines[0];
    assert_eq!(pipeline.tables.include.len(), 2);
    assert!(pipeline.copy_workers == 2 && !pipeline.initial_copy);
}

/// Replaces `from` by `to` in the smallest file and looks for every part in the error's text.
fn check(from: &str, to: &str, variables: &[(&str, &str)], parts: &[&str]) {
    assert!(SMALLEST.contains(from), "{from}");
    let error = read_with(&SMALLEST.replace(from, to), variables).unwrap_err().to_string();
    for part in parts {
        assert!(error.contains(part), "\"{part}\" is not in: {error}");
    }
}

#[test]
fn one_error_names_place_key_value_rule_and_nearest_key() {
    let name = "name = \"standby1\"";
    let with = |line: &str| format!("{name}\n{line}");
    check(
        name,
        &with("memory_limt = \"1MB\""),
        &[],
        &["walrelay.toml", "pipeline.standby1.memory_limt", "did you mean \"memory_limit\"?"],
    );
    check(
        name,
        &with("memory_limit = \"64XB\""),
        &[],
        &["pipeline.standby1.memory_limit = \"64XB\"", "must be a size"],
    );
    check(name, &with("copy_workers = 0"), &[], &["copy_workers = 0", "from 1 to 64"]);
    check(name, &with("copy_workers = \"many\""), &[], &["copy_workers = \"many\""]);
    check(name, &with("initial_copy = 1"), &[], &["initial_copy = 1", "true or false"]);
    check(name, &with("tables = [\"orders\"]"), &[], &["tables = \"orders\"", "schema.table"]);
    check(name, &with("exclude = [1]"), &[], &["exclude = [1]", "list of texts"]);
    check(name, &with("tables = \"public.*\""), &[], &["tables = \"public.*\"", "list of texts"]);
    check(name, &with("copy_workers = \"2\""), &[], &["copy_workers = \"2\"", "whole number"]);
    check(name, &with("initial_copy = \"true\""), &[], &["true or false"]);
    check(name, &with("memory_limit = 0"), &[], &["memory_limit = 0", "at least 64 kB"]);
    check(name, &with("slot_name = \"a\""), &[], &["slot_name = \"a\"", "did you mean \"slot\"?", "line 6"]);
    check(name, &with("table.include.list = \"a\""), &[], &["pipeline.standby1.table:", "did you mean \"tables\"?"]);
    check(name, "nam = \"standby1\"", &[], &["pipeline[0].nam = \"standby1\"", "did you mean \"name\"?"]);
    check(name, &with("on_existing_rows = \"drop\""), &[], &["\"drop\"", "refuse"]);
    check(name, &with("slot = \"Bad\""), &[], &["slot = \"Bad\"", "[a-z0-9_]{1,63}"]);
    check(name, "name = \"Standby-1\"", &[], &["name = \"Standby-1\"", "[a-z0-9_]{1,54}"]);
    check(name, "", &[], &["pipeline[0].name", "is missing"]);
    check(
        "type = \"postgres\"",
        "type = \"kafka\"",
        &[],
        &["pipeline.standby1.sink.url", "not a key", "a sink of type kafka has"],
    );
    check("type = \"postgres\"", "type = \"stdout\"", &[], &["pipeline.standby1.sink.url", "not a key"]);
    check(
        "[primary]",
        "shutdown_timeout = \"30\"\n[primary]",
        &[],
        &["shutdown_timeout = \"30\"", "must be a duration"],
    );
    check("[primary]", "[http]\nlisten = \"9187\"\n[primary]", &[], &["http.listen = \"9187\""]);
    check("[primary]", "[primry]", &[], &["walrelay.toml line 2: primry:", "did you mean \"primary\"?"]);
    check("[[pipeline]]", "[[pipelines]]", &[], &["pipelines", "did you mean \"pipeline\"?"]);
    check("[primary]", "[primary]\nulr = \"x\"", &[], &["primary.ulr", "did you mean \"url\"?"]);
    check("type = \"postgres\"", "typ = \"postgres\"", &[], &["sink.typ = \"postgres\"", "did you mean \"type\"?"]);
    check("type = \"postgres\"", "", &[], &["pipeline.standby1.sink.type", "is missing"]);
    check("[primary]", "spool_dir = \"\"\n[primary]", &[], &["spool_dir = \"\"", "must be a path"]);
    check("[primary]", "shutdown_timeout = \"18446744073709551615s\"\n[primary]", &[], &["at most 24h"]);
    check("[primary]", "[log]\nlevel = \"inof\"\n[primary]", &[], &["log.level = \"inof\"", "did you mean \"info\"?"]);
    check("[primary]", "[log]\nlevel = \"debug,walrelay\"\n[primary]", &[], &["log.level"]);
    check(
        "[primary]",
        "[primary]",
        &[("WALRELAY__HTTP__LISTEN", "9187")],
        &["walrelay.toml overridden by WALRELAY__HTTP__LISTEN: http.listen = \"9187\""],
    );
    check(name, name, &[("WALRELAY__PIPELINE", "x")], &["there is no pipeline \"\""]);
    check(name, name, &[("WALRELAY__PIPELINE__STANDBY1__TABELS", "x")], &["WALRELAY__PIPELINE__STANDBY1__TABLES"]);
    check(name, "name = \"\"", &[("WALRELAY__PIPELINE", "x")], &["there is no pipeline"]);
    check(
        "url = \"postgres://walrelay@db.eu",
        "url = \"postgres//walrelay@db.eu",
        &[],
        &["primary.url", "must be a url like"],
    );
    check("[[pipeline]]", "[pipeline]", &[], &["pipeline", "[[pipeline]]"]);
    check("[[pipeline]]", "[[pipeline]", &[], &["not valid TOML", "line"]);
    check(
        name,
        name,
        &[("WALRELAY__PRIMARY__ULR", "x")],
        &["WALRELAY__PRIMARY__ULR", "did you mean \"WALRELAY__PRIMARY__URL\"?"],
    );
    check(name, name, &[("WALRELAY__PIPELINE__STANDBY2__SLOT", "x")], &["no pipeline \"standby2\"", "STANDBY1"]);
}

#[test]
fn two_pipelines_share_neither_name_nor_slot() {
    let second = "\n[[pipeline]]\nname = \"standby1\"\n[pipeline.sink]\ntype = \"stdout\"\n";
    let error = read_with(&format!("{SMALLEST}{second}"), &[]).unwrap_err().to_string();
    assert!(error.contains("stands twice"), "{error}");
    let second = "\n[[pipeline]]\nname = \"b\"\nslot = \"walrelay_standby1\"\n[pipeline.sink]\ntype = \"stdout\"\n";
    let error = read_with(&format!("{SMALLEST}{second}"), &[]).unwrap_err().to_string();
    assert!(error.contains("already the slot of the pipeline \"standby1\""), "{error}");
    let second =
        "\n[[pipeline]]\nname = \"b\"\npublication = \"walrelay_standby1\"\n[pipeline.sink]\ntype = \"stdout\"\n";
    let error = read_with(&format!("{SMALLEST}{second}"), &[]).unwrap_err().to_string();
    assert!(error.contains("pipeline.b.publication = \"walrelay_standby1\""), "{error}");
}

#[test]
fn a_name_with_two_underscores_is_found_in_the_environment() {
    let text = SMALLEST.replace("standby1", "eu__1");
    let config = read_with(&text, &[("WALRELAY__PIPELINE__EU__1__SLOT", "mine")]).unwrap();
    assert_eq!(config.pipelines[0].slot_name().as_str(), "mine");
}

/// Whatever is wrong, and wherever the password stands.
#[test]
fn a_password_is_never_part_of_an_error() {
    let url = "\"postgres://walrelay@db.eu.example/shop\"";
    for other in [
        "\"postgres://walrelay:s3cret@db.eu.example/shop?sslmod=require\"",
        "\"postgres://walrelay:s3cret@db.eu.example:x/shop\"",
        "\"postgres://walrelay:s3cret/s3cret@db.eu.example/shop\"",
        "\"postgres://walrelay:5/s3cret@db.eu.example/shop\"",
        "\"postgres://walrelay:s3cret?s3cret@db.eu.example/shop\"",
        "\"postgres://walrelay:a%s3cret@db.eu.example/shop\"",
        "\"postgres://walrelay@db.eu.example/shop?pasword=s3cret\"",
        "\"postgres://walrelay@db.eu.example/shop?password=s3cret&port=x\"",
        "\"postgres://walrelay@db.eu.example/shop?s3cret\"",
        "\"postgres//walrelay:s3cret@db.eu.example/shop\"",
        "\"host=db.eu.example password=s3cret\"",
        "[\"postgres://walrelay:s3cret@db.eu.example/shop\"]",
        "\"postgres://walrelay@db.eu.example/shop\"\npassword = \"s3cret\"",
        "\"postgres://walrelay@db.eu.example/shop\"\npasswrd = \"s3cret\"",
        "\"postgres://walrelay@db.eu.example/shop\"\ndsn = \"host=x password=s3cret\"",
        "\"postgres://walrelay:s3cret@db.eu.example/shop\" s3cret",
    ] {
        let error = read_with(&SMALLEST.replacen(url, other, 1), &[]).unwrap_err().to_string();
        assert!(!error.contains("s3cret"), "{other}: {error}");
    }
    let whole = SMALLEST.replace("[primary]\nurl", "primary");
    let error = read_with(&whole.replace("walrelay@", "walrelay:s3cret@"), &[]).unwrap_err().to_string();
    assert!(error.contains("primary = (not shown): must be a table") && !error.contains("s3cret"), "{error}");
    for (variable, value) in [
        ("WALRELAY__PRIMARY__PASSWORD", "s3cret"),
        ("WALRELAY__PRIMARY__URL", "postgres://u:s3cret/@h/d"),
        ("WALRELAY__PRIMARY", "postgres://u:s3cret@h/d"),
    ] {
        let error = read_with(SMALLEST, &[(variable, value)]).unwrap_err().to_string();
        assert!(error.contains(variable) && !error.contains("s3cret"), "{error}");
    }
}

#[test]
fn passwords_come_from_the_first_place_that_has_one() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("primary.password"), "from credential\n").unwrap();
    std::fs::write(folder.path().join("file"), "from file\n").unwrap();
    let file = folder.path().join("file").display().to_string();
    let directory = folder.path().display().to_string();
    let in_file = SMALLEST.replace("[[pipeline]]", &format!("password_file = \"{file}\"\n[[pipeline]]"));
    let in_url = in_file.replace("walrelay@db.eu", "walrelay:from%20url@db.eu");
    let variables = [("CREDENTIALS_DIRECTORY", directory.as_str()), ("PGPASSWORD", "from PGPASSWORD")];
    for (text, variables, expected) in [
        (in_url.as_str(), &variables[..], "from url"),
        (&in_file, &variables[..], "from file"),
        (SMALLEST, &variables[..], "from credential"),
        (SMALLEST, &variables[1..], "from PGPASSWORD"),
    ] {
        let config = read_with(text, variables).unwrap();
        assert_eq!(config.primary.password.unwrap().reveal(), expected);
    }
}

#[test]
fn the_annotated_example_holds_and_names_every_key() {
    let text = include_str!("../../config/walrelay.toml");
    let config = read_with(text, &[]).unwrap();
    assert_eq!(config.pipelines[0].name.as_str(), "standby1");
    let is_value = |key: &&str| !["log", "primary", "http", "pipeline", "sink"].contains(key);
    for key in [TOP, PRIMARY, HTTP, LOG, PIPELINE, POSTGRES_SINK].concat().into_iter().filter(is_value) {
        assert!(text.contains(&format!("{key} = ")), "{key} is not explained");
    }
}

/// The whole texts, as a person reads them.
#[test]
fn the_texts_of_errors() {
    let name = "name = \"standby1\"";
    let primary = "url = \"postgres://walrelay@db.eu.example/shop\"";
    type Variables = &'static [(&'static str, &'static str)];
    let cases: &[(&str, &str, Variables)] = &[
        (name, "name = \"Standby-1\"", &[]),
        (name, "name = \"standby1\"\nmemory_limt = \"1MB\"", &[]),
        (name, "name = \"standby1\"\nmemory_limit = \"64 elephants\"", &[]),
        (name, "name = \"standby1\"\ncopy_workers = 4.5", &[]),
        (name, "name = \"standby1\"\ntables = [\"orders\"]", &[]),
        (name, "name = \"standby1\"\non_existing_rows = \"drop\"", &[]),
        (name, "", &[]),
        ("type = \"postgres\"", "type = \"mysql\"", &[]),
        ("type = \"postgres\"", "type = \"stdout\"", &[]),
        ("type = \"postgres\"", "type = \"postgres\"\nbatch_delay = \"2min\"", &[]),
        ("type = \"postgres\"", "type = \"postgres\"\nbinary = true", &[]),
        ("type = \"postgres\"", "type = \"postgres\"\nbinray = false", &[]),
        ("[[pipeline]]", "[pipeline]", &[]),
        ("[primary]", "[primry]", &[]),
        ("[primary]", "[primary", &[]),
        ("[primary]", "shutdown_timeout = 30\n[primary]", &[]),
        ("[primary]", "[http]\nlisten = \"localhost\"\n[primary]", &[]),
        ("[primary]", "[log]\nlevel = \"verbose\"\n[primary]", &[]),
        (primary, "url = \"postgres://u:s3cret@db.eu.example/shop?sslmod=require\"", &[]),
        (primary, "url = \"postgres://u:s3/cret@db.eu.example/shop\"", &[]),
        (primary, "url = \"db.eu.example\"", &[]),
        (primary, "url = \"postgres://u@db.eu.example/shop\"\npassword = \"s3cret\"", &[]),
        (name, name, &[("WALRELAY__PIPELINE__STANDBY1__COPY_WORKERS", "lots")]),
        (name, name, &[("WALRELAY__PIPELINE__STANBY1__SLOT", "x")]),
        (name, name, &[("WALRELAY__HTP__LISTEN", "x")]),
    ];
    let mut texts = String::new();
    for (from, to, variables) in cases {
        assert!(SMALLEST.contains(from), "{from}");
        texts.push_str(&format!("{}\n\n", read_with(&SMALLEST.replace(from, to), variables).unwrap_err()));
    }
    insta::assert_snapshot!(texts);
}
