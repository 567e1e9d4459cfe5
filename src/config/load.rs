//! From the file and the environment to a validated `Config`. Connects nowhere.

use std::path::{Path, PathBuf};
use std::time::Duration;

use toml::{Table, Value};

use super::environment::Environment;
use super::error::{ConfigError, nearest};
use super::kafka_read::{KAFKA_SINK, kafka, refuse_other_names};
use super::keys::{HTTP, LOG, PIPELINE, POSTGRES_SINK, PRIMARY, STDOUT_SINK, TOP};
use super::origin::Origin;
use super::overrides::override_from;
use super::section::{Section, shown};
use super::{
    APPLY_CONNECTIONS_LIMIT, APPLY_DEPTH, APPLY_DEPTH_LIMIT, BATCH_DELAY, Config, Log, LogFormat, OnExistingRows,
    PREFETCH_CONNECTIONS_LIMIT, Pipeline, PostgresSink, ServerUrl, Sink, TablePattern, TableSet,
    default_prefetch_connections, libpq, password, text_file,
};
use crate::model::{PipelineName, SlotName};

/// Looked for in this order where `--config` names none.
pub const DEFAULT_PATHS: &[&str] = &["walrelay.toml", "/etc/walrelay/walrelay.toml"];

const DEFAULT_MEMORY_LIMIT_BYTES: u64 = 64 << 20;
/// Less than this holds not even one read of the socket.
const LEAST_MEMORY_LIMIT_BYTES: u64 = 64 << 10;
const DEFAULT_SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(30);

/// A longer one is surely a mistake: keepalives are answered no sooner.
const LONGEST_BATCH_DELAY: Duration = Duration::from_secs(1);

/// Reads, overrides, validates.
pub fn load(path: Option<&Path>, environment: &Environment) -> Result<Config, ConfigError> {
    let looked_for = path.map_or_else(|| format!(" (looked for {})", DEFAULT_PATHS.join(" and ")), |_| String::new());
    let path = path.map_or_else(default_path, Path::to_path_buf);
    let text = text_file::read(&path)
        .map_err(|error| ConfigError::Unreadable { path: path.clone(), reason: format!("{error}{looked_for}") })?;
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
    let mut origin = Origin::new(path.display().to_string(), text);
    override_from(&mut table, environment, &mut origin)?;
    let mut top = Section::new(&origin, "", table);
    top.only(TOP, "the top level")?;
    Ok(Config {
        spool_dir: top.path("spool_dir")?.or_else(|| environment.state_directory().map(|folder| folder.join("spool"))),
        shutdown_timeout: top.duration("shutdown_timeout")?.unwrap_or(DEFAULT_SHUTDOWN_TIMEOUT),
        log: log(&mut top)?,
        primary: primary(&mut top, environment)?,
        http: http(&mut top)?,
        pipelines: pipelines(&mut top, environment)?,
    })
}

fn place_in(text: &str, span: Option<std::ops::Range<usize>>) -> String {
    let before = span.and_then(|span| text.get(..span.start)).unwrap_or("");
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().map_or(0, |last| last.chars().count()) + 1;
    format!("line {line}, column {column}")
}

fn log(top: &mut Section<'_>) -> Result<Log, ConfigError> {
    let mut log = Log { level: "info".to_owned(), format: LogFormat::Text };
    if let Some(mut section) = top.section("log", LOG)? {
        if let Some(level) = section.string("level")? {
            check_level(&section, &level)?;
            log.level = level;
        }
        log.format = match section.string("format")?.as_deref() {
            None | Some("text") => LogFormat::Text,
            Some("json") => LogFormat::Json,
            Some(other) => {
                return Err(section.error("format", Some(format!("\"{other}\"")), "must be \"text\" or \"json\""));
            }
        };
    }
    Ok(log)
}

/// A level, or `target=level` pairs between commas. A lone word that is no level would be taken as a target, and silence the
/// rest.
fn check_level(section: &Section<'_>, level: &str) -> Result<(), ConfigError> {
    const LEVELS: &[&str] = &["error", "warn", "info", "debug", "trace", "off"];
    for directive in level.split(',') {
        let word = directive.rsplit('=').next().unwrap_or("").trim().to_lowercase();
        if !LEVELS.contains(&word.as_str()) {
            let rule = "must be error, warn, info, debug, trace or off, or pairs target=level between commas";
            return Err(section.error_near(
                "level",
                format!("\"{level}\""),
                rule,
                nearest(&word, LEVELS.iter().copied()).filter(|level| strsim::jaro_winkler(&word, level) > 0.75),
            ));
        }
    }
    Ok(())
}

fn primary(top: &mut Section<'_>, environment: &Environment) -> Result<ServerUrl, ConfigError> {
    let Some(mut section) = top.section("primary", PRIMARY)? else {
        return Err(top.error(
            "primary",
            None,
            "is missing: add [primary] with url = \"postgres://user@host:5432/database\"",
        ));
    };
    server_url(&mut section, "primary.password", environment)
}

fn server_url(
    section: &mut Section<'_>,
    credential: &str,
    environment: &Environment,
) -> Result<ServerUrl, ConfigError> {
    let text = section.required_string("url", "a url like postgres://user@host:5432/database")?;
    let password_file = section.path("password_file")?;
    let mut url = libpq::parse(&text, environment)
        .map_err(|rule| section.error("url", Some(format!("\"{}\"", libpq::without_password(&text))), rule))?;
    password::resolve(&mut url, password_file.as_deref(), credential, environment)
        .map_err(|rule| section.error("password_file", None, rule))?;
    Ok(url)
}

fn http(top: &mut Section<'_>) -> Result<Option<std::net::SocketAddr>, ConfigError> {
    let Some(mut section) = top.section("http", HTTP)? else { return Ok(None) };
    let text = section.required_string("listen", "an address and a port, e.g. \"127.0.0.1:9187\"")?;
    let address = text.parse().map_err(|_| {
        section.error("listen", Some(format!("\"{text}\"")), "must be an address and a port, e.g. \"127.0.0.1:9187\"")
    })?;
    Ok(Some(address))
}

fn pipelines(top: &mut Section<'_>, environment: &Environment) -> Result<Vec<Pipeline>, ConfigError> {
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
        let mut section = top.element("pipeline", index, table);
        let pipeline = pipeline(&mut section, environment)?;
        refuse_collision(&section, &pipelines, &pipeline)?;
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
    let shares = |other: &&Pipeline| {
        // One that stands by itself may be read by many; a managed one changes and goes with its pipeline.
        other.publication_name() == pipeline.publication_name()
            && (other.publication.is_none() || pipeline.publication.is_none())
    };
    if let Some(other) = others.iter().find(shares) {
        let rule =
            format!("is the publication that is managed for one of \"{}\" and \"{}\" alone", other.name, pipeline.name);
        return Err(section.error("publication", quoted(&pipeline.publication_name()), rule));
    }
    Ok(())
}

fn pipeline(section: &mut Section<'_>, environment: &Environment) -> Result<Pipeline, ConfigError> {
    if let Some(name) = section.peek("name").and_then(|name| PipelineName::new(name).ok()) {
        section.rename(format!("pipeline.{name}"));
    }
    if section.peek_inside("sink", "type") == Some("kafka") {
        refuse_other_names(section, PIPELINE)?;
    }
    section.only(PIPELINE, "[[pipeline]]")?;
    let name = section.required_string("name", "it is the application_name that the primary lists")?;
    let name = PipelineName::new(&name)
        .map_err(|error| section.error("name", Some(format!("\"{name}\"")), error.to_string()))?;
    let tables =
        TableSet { include: patterns(section, "tables", &["*.*"])?, exclude: patterns(section, "exclude", &[])? };
    let has_rows_rule = section.has("on_existing_rows");
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
    let initial_copy = section.boolean("initial_copy")?.unwrap_or(true);
    let sink = sink(section, &name, initial_copy, environment)?;
    if has_rows_rule && matches!(sink, Sink::Kafka(_)) {
        let rule = "belongs to a sink of type postgres: topics keep what they hold";
        return Err(section.error("on_existing_rows", None, rule));
    }
    Ok(Pipeline {
        tables,
        initial_copy,
        copy_workers: section.integer("copy_workers", 1, 64)?.unwrap_or(4) as usize,
        on_existing_rows,
        memory_limit_bytes: section
            .size("memory_limit", LEAST_MEMORY_LIMIT_BYTES)?
            .unwrap_or(DEFAULT_MEMORY_LIMIT_BYTES),
        publication,
        slot,
        sink,
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

fn sink(
    section: &mut Section<'_>,
    pipeline: &PipelineName,
    initial_copy: bool,
    environment: &Environment,
) -> Result<Sink, ConfigError> {
    let missing = "is missing: add [pipeline.sink] with type = \"postgres\" and a url";
    if section.peek_inside("sink", "type") == Some("kafka") {
        let sink = section.open_section("sink", KAFKA_SINK)?;
        let mut sink = sink.ok_or_else(|| section.error("sink", None, missing))?;
        return Ok(Sink::Kafka(Box::new(kafka(&mut sink, pipeline, initial_copy, environment)?)));
    }
    let Some(mut sink) = section.section("sink", POSTGRES_SINK)? else {
        return Err(section.error("sink", None, missing));
    };
    let kind = sink.required_string("type", "\"postgres\", \"kafka\" or \"stdout\"")?;
    let found = match kind.as_str() {
        "postgres" => Sink::Postgres(PostgresSink {
            url: server_url(&mut sink, &format!("{pipeline}.password"), environment)?,
            read_only: sink.boolean("read_only")?.unwrap_or(true),
            batch_delay: batch_delay(&mut sink)?,
            apply_depth: sink
                .integer("apply_depth", 1, APPLY_DEPTH_LIMIT as u64)?
                .map_or(APPLY_DEPTH, |depth| depth as usize),
            apply_connections: sink
                .integer("apply_connections", 1, APPLY_CONNECTIONS_LIMIT as u64)?
                .map_or(1, |connections| connections as usize),
            prefetch_connections: sink
                .integer("prefetch_connections", 0, PREFETCH_CONNECTIONS_LIMIT as u64)?
                .map_or_else(default_prefetch_connections, |connections| connections as usize),
            allow_fsync_off: sink.boolean("allow_fsync_off")?.unwrap_or(false),
            may_be_binary: may_be_binary(&mut sink)?,
        }),
        "stdout" => {
            sink.only(STDOUT_SINK, "a sink of type stdout")?;
            Sink::Stdout
        }
        other => {
            let rule = "must be \"postgres\", \"kafka\" or \"stdout\"";
            return Err(sink.error("type", Some(format!("\"{other}\"")), rule));
        }
    };
    Ok(found)
}

/// `"auto"` or `false`; nothing forces a form that the other side would misread.
fn may_be_binary(sink: &mut Section<'_>) -> Result<bool, ConfigError> {
    let rule = "must be \"auto\" (binary values where both servers agree on all types) or false (text)";
    match sink.take("binary") {
        None => Ok(true),
        Some(Value::Boolean(false)) => Ok(false),
        Some(Value::String(text)) if text == "auto" => Ok(true),
        Some(Value::String(text)) if text == "false" && sink.is_overridden("binary") => Ok(false),
        Some(other) => Err(sink.error("binary", Some(shown(&other)), rule)),
    }
}

fn batch_delay(sink: &mut Section<'_>) -> Result<Duration, ConfigError> {
    match sink.duration("batch_delay")? {
        None => Ok(BATCH_DELAY),
        Some(delay) if delay <= LONGEST_BATCH_DELAY => Ok(delay),
        Some(delay) => {
            let rule = "must be at most \"1s\": for so long every change waits while nobody waits for the standby";
            Err(sink.error("batch_delay", Some(format!("{delay:?}")), rule))
        }
    }
}
