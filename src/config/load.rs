//! From the file and the environment to a validated `Config`. Connects nowhere.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use toml::{Table, Value};

use super::environment::{Environment, PREFIX};
use super::error::{ConfigError, KeyError, nearest};
use super::section::Section;
use super::{
    Config, Log, LogFormat, OnExistingRows, Pipeline, PostgresSink, ServerUrl, Sink, TablePattern, TableSet, libpq,
    password,
};
use crate::model::{PipelineName, SlotName};

/// Looked for in this order where `--config` names none.
pub const DEFAULT_PATHS: &[&str] = &["walrelay.toml", "/etc/walrelay/walrelay.toml"];

const DEFAULT_MEMORY_LIMIT_BYTES: u64 = 64 << 20;
const DEFAULT_SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(30);

/// Reads, overrides, validates.
pub fn load(path: Option<&Path>, environment: &Environment) -> Result<Config, ConfigError> {
    let path = path.map_or_else(default_path, Path::to_path_buf);
    let text = fs::read_to_string(&path)
        .map_err(|error| ConfigError::Unreadable { path: path.clone(), reason: error.to_string() })?;
    read(&path, &text, environment)
}

fn default_path() -> PathBuf {
    let found = DEFAULT_PATHS.iter().map(PathBuf::from).find(|path| path.exists());
    found.unwrap_or_else(|| PathBuf::from(DEFAULT_PATHS[0]))
}

/// The same from a text; `path` is only named in errors.
pub fn read(path: &Path, text: &str, environment: &Environment) -> Result<Config, ConfigError> {
    let mut table: Table = toml::from_str(text).map_err(|error: toml::de::Error| ConfigError::Syntax {
        path: path.to_path_buf(),
        // Without the line itself, which may hold a password.
        reason: format!("{} ({})", error.message(), place_in(text, error.span())),
    })?;
    override_from(&mut table, environment)?;
    let place = path.display().to_string();
    let mut top = Section::new(&place, "", table);
    let config = Config {
        spool_dir: top
            .string("spool_dir")?
            .map(PathBuf::from)
            .or_else(|| environment.state_directory().map(|folder| folder.join("spool"))),
        shutdown_timeout: top.duration("shutdown_timeout")?.unwrap_or(DEFAULT_SHUTDOWN_TIMEOUT),
        log: log(&mut top)?,
        primary: primary(&mut top, environment)?,
        http: http(&mut top)?,
        pipelines: pipelines(&mut top, &place, environment)?,
    };
    top.finish()?;
    Ok(config)
}

fn place_in(text: &str, span: Option<std::ops::Range<usize>>) -> String {
    let before = span.and_then(|span| text.get(..span.start)).unwrap_or("");
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().map_or(0, |last| last.chars().count()) + 1;
    format!("line {line}, column {column}")
}

fn log(top: &mut Section<'_>) -> Result<Log, ConfigError> {
    let mut log = Log { level: "info".to_owned(), format: LogFormat::Text };
    if let Some(mut section) = top.section("log")? {
        log.level = section.string("level")?.unwrap_or(log.level);
        log.format = match section.string("format")?.as_deref() {
            None | Some("text") => LogFormat::Text,
            Some("json") => LogFormat::Json,
            Some(other) => {
                return Err(section.error("format", Some(format!("\"{other}\"")), "must be \"text\" or \"json\""));
            }
        };
        section.finish()?;
    }
    Ok(log)
}

fn primary(top: &mut Section<'_>, environment: &Environment) -> Result<ServerUrl, ConfigError> {
    let Some(mut section) = top.section("primary")? else {
        return Err(top.error(
            "primary",
            None,
            "is missing: add [primary] with url = \"postgres://user@host:5432/database\"",
        ));
    };
    let url = server_url(&mut section, "primary.password", environment)?;
    section.finish()?;
    Ok(url)
}

fn server_url(
    section: &mut Section<'_>,
    credential: &str,
    environment: &Environment,
) -> Result<ServerUrl, ConfigError> {
    let text = section.required_string("url", "a url like postgres://user@host:5432/database")?;
    let password_file = section.string("password_file")?.map(PathBuf::from);
    let mut url = libpq::parse(&text, environment)
        .map_err(|rule| section.error("url", Some(format!("\"{}\"", libpq::without_password(&text))), rule))?;
    url.password = password::resolve(&url, password_file.as_deref(), credential, environment)
        .map_err(|rule| section.error("password_file", None, rule))?;
    Ok(url)
}

fn http(top: &mut Section<'_>) -> Result<Option<std::net::SocketAddr>, ConfigError> {
    let Some(mut section) = top.section("http")? else { return Ok(None) };
    let text = section.required_string("listen", "an address and a port, e.g. \"127.0.0.1:9187\"")?;
    let address = text.parse().map_err(|_| {
        section.error("listen", Some(format!("\"{text}\"")), "must be an address and a port, e.g. \"127.0.0.1:9187\"")
    })?;
    section.finish()?;
    Ok(Some(address))
}

fn pipelines(top: &mut Section<'_>, place: &str, environment: &Environment) -> Result<Vec<Pipeline>, ConfigError> {
    let tables = match top.take("pipeline") {
        Some(Value::Array(tables)) if !tables.is_empty() => tables,
        None => {
            return Err(top.error(
                "pipeline",
                None,
                "is missing: add at least one [[pipeline]] with a name and a [pipeline.sink]",
            ));
        }
        Some(_) => return Err(top.error("pipeline", None, "must be written [[pipeline]], once for each pipeline")),
    };
    let mut pipelines: Vec<Pipeline> = Vec::new();
    for (index, value) in tables.into_iter().enumerate() {
        let Value::Table(table) = value else {
            return Err(top.error("pipeline", None, "must be written [[pipeline]], once for each pipeline"));
        };
        let mut section = Section::new(place, format!("pipeline[{index}]"), table);
        let pipeline = pipeline(&mut section, environment)?;
        refuse_collision(&section, &pipelines, &pipeline)?;
        section.finish()?;
        pipelines.push(pipeline);
    }
    Ok(pipelines)
}

fn refuse_collision(section: &Section<'_>, others: &[Pipeline], pipeline: &Pipeline) -> Result<(), ConfigError> {
    let quoted = |text: &str| Some(format!("\"{text}\""));
    if others.iter().any(|other| other.name == pipeline.name) {
        let rule = "stands twice: each pipeline needs a name of its own, which the primary lists";
        return Err(section.error("name", quoted(pipeline.name.as_str()), rule));
    }
    let slot = pipeline.slot_name();
    if let Some(other) = others.iter().find(|other| other.slot_name() == slot) {
        let rule = format!("is already the slot of the pipeline \"{}\": a slot feeds one pipeline only", other.name);
        return Err(section.error("slot", quoted(slot.as_str()), rule));
    }
    Ok(())
}

fn pipeline(section: &mut Section<'_>, environment: &Environment) -> Result<Pipeline, ConfigError> {
    let name = section.required_string("name", "it is the application_name that the primary lists")?;
    let name = PipelineName::new(&name)
        .map_err(|error| section.error("name", Some(format!("\"{name}\"")), error.to_string()))?;
    section.rename(format!("pipeline.{name}"));
    let tables =
        TableSet { include: patterns(section, "tables", &["*.*"])?, exclude: patterns(section, "exclude", &[])? };
    let on_existing_rows = match section.string("on_existing_rows")?.as_deref() {
        None | Some("refuse") => OnExistingRows::Refuse,
        Some("truncate") => OnExistingRows::Truncate,
        Some("keep") => OnExistingRows::Keep,
        Some(other) => {
            return Err(section.error(
                "on_existing_rows",
                Some(format!("\"{other}\"")),
                "must be \"refuse\", \"truncate\" or \"keep\"",
            ));
        }
    };
    let slot = match section.string("slot")? {
        Some(text) => Some(
            SlotName::new(&text)
                .map_err(|error| section.error("slot", Some(format!("\"{text}\"")), error.to_string()))?,
        ),
        None => None,
    };
    let publication = section.string("publication")?;
    if publication.as_deref().is_some_and(|text| text.is_empty() || text.len() > 63) {
        return Err(section.error(
            "publication",
            publication.map(|text| format!("\"{text}\"")),
            "must be a name of 1 to 63 bytes",
        ));
    }
    Ok(Pipeline {
        tables,
        initial_copy: section.boolean("initial_copy")?.unwrap_or(true),
        copy_workers: section.integer("copy_workers", 1, 64)?.unwrap_or(4) as usize,
        on_existing_rows,
        memory_limit_bytes: section.size("memory_limit")?.unwrap_or(DEFAULT_MEMORY_LIMIT_BYTES),
        publication,
        slot,
        sink: sink(section, &name, environment)?,
        name,
    })
}

fn patterns(section: &mut Section<'_>, key: &'static str, default: &[&str]) -> Result<Vec<TablePattern>, ConfigError> {
    let texts = section.strings(key)?.unwrap_or_else(|| default.iter().map(|text| (*text).to_owned()).collect());
    if texts.is_empty() && !default.is_empty() {
        return Err(section.error(
            key,
            Some("[]".to_owned()),
            "must name at least one pattern, e.g. [\"public.*\"]; leave it out for all tables",
        ));
    }
    texts
        .iter()
        .map(|text| {
            TablePattern::new(text).map_err(|error| section.error(key, Some(format!("\"{text}\"")), error.to_string()))
        })
        .collect()
}

fn sink(section: &mut Section<'_>, pipeline: &PipelineName, environment: &Environment) -> Result<Sink, ConfigError> {
    let Some(mut sink) = section.section("sink")? else {
        return Err(section.error("sink", None, "is missing: add [pipeline.sink] with type = \"postgres\" and a url"));
    };
    let kind = sink.required_string("type", "\"postgres\" or \"stdout\"")?;
    let found = match kind.as_str() {
        "postgres" => Sink::Postgres(PostgresSink {
            url: server_url(&mut sink, &format!("{pipeline}.password"), environment)?,
            read_only: sink.boolean("read_only")?.unwrap_or(true),
        }),
        "stdout" => Sink::Stdout,
        other => {
            let rule = if other == "kafka" {
                "this version of walrelay has no Kafka sink yet; it must be \"postgres\" or \"stdout\""
            } else {
                "must be \"postgres\" or \"stdout\""
            };
            return Err(sink.error("type", Some(format!("\"{other}\"")), rule));
        }
    };
    sink.finish()?;
    Ok(found)
}

/// Puts the values of `WALRELAY__…` variables into the table; a pipeline is named by its name.
fn override_from(table: &mut Table, environment: &Environment) -> Result<(), ConfigError> {
    let mut names: BTreeMap<String, usize> = BTreeMap::new();
    if let Some(Value::Array(pipelines)) = table.get("pipeline") {
        for (index, pipeline) in pipelines.iter().enumerate() {
            names.extend(pipeline.get("name").and_then(Value::as_str).map(|name| (name.to_lowercase(), index)));
        }
    }
    for (variable, words, value) in environment.overrides() {
        let unknown = |rule: String, nearest: Option<String>| KeyError {
            place: "environment".into(),
            key: variable.to_owned(),
            value: None,
            rule,
            nearest,
        };
        let (target, path) = match words.split_first() {
            Some((first, rest)) if first == "pipeline" => {
                let name = rest.first().cloned().unwrap_or_default();
                let Some(index) = names.get(&name) else {
                    let nearest = nearest(&name, names.keys().map(String::as_str))
                        .map(|name| format!("{PREFIX}PIPELINE__{}__…", name.to_uppercase()));
                    return Err(unknown(format!("there is no pipeline \"{name}\" in the file"), nearest).into());
                };
                let Some(Value::Array(pipelines)) = table.get_mut("pipeline") else { continue };
                (&mut pipelines[*index], &rest[1..])
            }
            _ => {
                check_words(variable, &words)?;
                set(table, &words, value);
                continue;
            }
        };
        check_pipeline_words(variable, path)?;
        if let Value::Table(pipeline) = target {
            set(pipeline, path, value);
        }
    }
    Ok(())
}

const TOP_KEYS: &[&str] = &[
    "spool_dir",
    "shutdown_timeout",
    "primary.url",
    "primary.password_file",
    "http.listen",
    "log.level",
    "log.format",
];
const PIPELINE_KEYS: &[&str] = &[
    "tables",
    "exclude",
    "initial_copy",
    "copy_workers",
    "on_existing_rows",
    "memory_limit",
    "publication",
    "slot",
    "sink.type",
    "sink.url",
    "sink.password_file",
    "sink.read_only",
];

fn check_words(variable: &str, words: &[String]) -> Result<(), ConfigError> {
    check_among(variable, &words.join("."), TOP_KEYS, "")
}

fn check_pipeline_words(variable: &str, words: &[String]) -> Result<(), ConfigError> {
    check_among(variable, &words.join("."), PIPELINE_KEYS, "PIPELINE__NAME__")
}

fn check_among(variable: &str, key: &str, known: &[&str], between: &str) -> Result<(), ConfigError> {
    if known.contains(&key) {
        return Ok(());
    }
    let nearest = nearest(key, known.iter().copied())
        .map(|key| format!("{PREFIX}{between}{}", key.replace('.', "__").to_uppercase()));
    let rule = "overrides no key of walrelay".to_owned();
    Err(KeyError { place: "environment".into(), key: variable.to_owned(), value: None, rule, nearest }.into())
}

fn set(table: &mut Table, words: &[String], value: &str) {
    match words {
        [] => {}
        [last] => {
            table.insert(last.clone(), Value::String(value.to_owned()));
        }
        [first, rest @ ..] => {
            let entry = table.entry(first.clone()).or_insert_with(|| Value::Table(Table::new()));
            if let Value::Table(inner) = entry {
                set(inner, rest, value);
            }
        }
    }
}
