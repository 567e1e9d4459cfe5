//! What is to be measured, and at which size: read from the environment once. Measures nothing.

/// Every case, in the order in which they run. `a` stands for a1 to a8.
pub const CASES: &[&str] = &[
    "r", "a1", "a2", "a3", "a4", "a5", "a6", "a7", "a8", "p", "b", "c", "d", "k", "k2", "drain", "commit", "idle",
    "large",
];
/// A quick run divides the sizes by this.
const QUICK_PART: u64 = 40;

/// The size of the run.
pub struct Plan {
    /// The servers' major version.
    pub major: u32,
    /// How often each contestant has its turn.
    pub rounds: usize,
    /// Whether it is only to be seen that everything works.
    pub is_quick: bool,
    /// The scale of pgbench's tables.
    pub scale: u64,
    /// Rows of a table to copy, and of the backlogs of `drain`.
    pub rows: u64,
    /// Commits of one turn of `commit`.
    pub commits: usize,
    /// How long idleness is watched.
    pub idle_seconds: u64,
    /// Rows of the one large transaction.
    pub big_rows: u64,
    /// How long one live measurement (`b`) and one cell (`c`) take.
    pub live_seconds: u64,
    /// The same for `c`.
    pub cell_seconds: u64,
    /// A drain that takes longer is cut off and shown as such.
    pub limit_seconds: u64,
    /// More lines for the pipeline under test, e.g. `apply_connections = 2`; `\n` parts them.
    pub lines: String,
    /// The same for its sink.
    pub sink_lines: String,
    wanted: Vec<String>,
}

/// A number or word from `WALRELAY_BENCH_NAME`.
pub fn setting<T: std::str::FromStr>(name: &str, default: T) -> T {
    let Ok(text) = std::env::var(format!("WALRELAY_BENCH_{name}")) else { return default };
    text.parse().unwrap_or_else(|_| panic!("WALRELAY_BENCH_{name} is \"{text}\": not of the kind that belongs there"))
}

impl Plan {
    /// From the environment.
    pub fn of_environment() -> Self {
        let is_quick = setting("QUICK", 0) != 0;
        let or = |full: u64, quick: u64| if is_quick { quick } else { full };
        let text = std::env::var("WALRELAY_BENCH").unwrap_or_else(|_| CASES.join(" "));
        let mut wanted: Vec<String> = text.split_whitespace().map(str::to_lowercase).collect();
        if wanted.iter().any(|word| word == "a") {
            wanted.extend(CASES.iter().filter(|case| case.starts_with('a')).map(|case| (*case).to_owned()));
            wanted.retain(|word| word != "a");
        }
        for word in &wanted {
            assert!(
                CASES.contains(&word.as_str()),
                "WALRELAY_BENCH names \"{word}\"; the cases are {}",
                CASES.join(" ")
            );
        }
        Self {
            major: setting("VERSION", 18),
            rounds: setting("ROUNDS", or(5, 1) as usize),
            is_quick,
            scale: setting("SCALE", or(10, 4)),
            rows: setting("ROWS", or(1_000_000, 40_000)),
            commits: setting("COMMITS", or(400, 50) as usize),
            idle_seconds: setting("IDLE_SECONDS", or(30, 2)),
            big_rows: setting("BIG_ROWS", or(3_000_000, 60_000)),
            live_seconds: setting("LIVE_SECONDS", or(20, 2)),
            cell_seconds: setting("CELL_SECONDS", or(20, 1)),
            limit_seconds: setting("LIMIT_SECONDS", or(1800, 60)),
            lines: setting("LINES", String::new()).replace("\\n", "\n"),
            sink_lines: setting("SINK_LINES", String::new()).replace("\\n", "\n"),
            wanted,
        }
    }

    /// Whether this case is to be run.
    pub fn wants(&self, case: &str) -> bool {
        self.wanted.iter().any(|word| word == case)
    }

    /// A size of a backlog: `WALRELAY_BENCH_NAME`, else the full one, or a part of it in a quick run.
    pub fn size(&self, name: &str, full: u64) -> u64 {
        // A multiple of eight, because so many clients may share it.
        setting(name, if self.is_quick { (full / QUICK_PART).next_multiple_of(8) } else { full })
    }
}
