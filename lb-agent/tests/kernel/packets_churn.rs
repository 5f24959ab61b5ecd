//! Packets from outside while all else changes: endpoints come and go under new connections, and agents
//! are killed while they write. By hand with a million connections and 200 kills:
//! `SOCKLB_CHURN_CONNECTIONS`, `SOCKLB_CHURN_KILLS`; `SOCKLB_CHURN_SEED` draws otherwise, and
//! `SOCKLB_CHURN_REPORT` names a file, from the root of this repository, to which the outcome is added.

mod connections;
mod endpoints;
mod journal;
mod kills;
mod monitor;
mod objects;

use std::{
    collections::BTreeSet,
    env, fmt,
    fs::OpenOptions,
    io::Write as _,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use lb_agent::packets::{self, Seen};

use super::world::soon;

/// A number from the environment, or this one.
fn number(variable: &str, default: u64) -> u64 {
    env::var(variable).map_or(default, |number| number.parse().expect(variable))
}

fn seed() -> u64 {
    number("SOCKLB_CHURN_SEED", 1)
}

/// splitmix64: the same numbers on every machine.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % limit
    }

    fn index(&mut self, len: usize) -> usize {
        usize::try_from(self.below(len as u64)).unwrap()
    }

    /// Once in so many times.
    fn once_in(&mut self, times: u64) -> bool {
        self.below(times) == 0
    }

    /// So many of these numbers.
    fn some(&mut self, of: impl IntoIterator<Item = u16>, count: usize) -> BTreeSet<u16> {
        let mut left: Vec<u16> = of.into_iter().collect();
        (0..count).map(|_| left.swap_remove(self.index(left.len()))).collect()
    }
}

/// What stands in the tables at one time.
fn look() -> Seen {
    let mut seen = Seen::default();
    assert!(soon(|| {
        seen = packets::look().unwrap().expect("there are no tables");
        seen.is_steady
    }));
    seen
}

/// What a run is to leave on paper.
struct Report {
    lines: Vec<String>,
    start: Instant,
}

impl Report {
    fn of(what: &str) -> Self {
        let mut report = Self { lines: Vec::new(), start: Instant::now() };
        report.say("run", &what);
        let told = |program: &str, words: &[&str]| {
            let mut command = Command::new(program);
            command.args(words).current_dir(env!("CARGO_MANIFEST_DIR"));
            command.output().ok().and_then(|output| String::from_utf8(output.stdout).ok())
        };
        for (name, program, words) in [
            ("date", "date", &["-u", "+%F"][..]),
            ("commit", "git", &["rev-parse", "--short=12", "HEAD"]),
            ("kernel", "uname", &["-r"]),
            ("load", "cut", &["-d ", "-f1", "/proc/loadavg"]),
        ] {
            report.say(name, &told(program, words).unwrap_or_default().trim());
        }
        report.say("seed", &seed());
        report
    }

    fn say(&mut self, name: &str, value: &dyn fmt::Display) {
        let line = format!("{name:<17} {value}");
        println!("report: {line}");
        self.lines.push(line);
    }

    fn end(mut self) {
        let took = Duration::from_secs(self.start.elapsed().as_secs());
        self.say("duration", &format!("{took:?}"));
        if let Some(file) = env::var_os("SOCKLB_CHURN_REPORT") {
            let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(file);
            let text = self.lines.join("\n") + "\n\n";
            let file = OpenOptions::new().create(true).append(true).open(file);
            file.and_then(|mut file| file.write_all(text.as_bytes())).unwrap();
        }
    }
}
