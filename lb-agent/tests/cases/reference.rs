//! What the maps should say in the end, however they came to it.

use std::collections::BTreeSet;

use lb_agent::sources::dir::Listing;
use lb_core::{
    dump,
    memory::Memory,
    model::Change,
    pipeline::{Pipeline, SyncReport},
};

use super::case::Case;

/// The dump without what depends on the order of events.
pub(crate) fn meaning(maps: &Memory) -> String {
    let line = |line: &str| {
        let words = line.split(' ').filter(|word| !word.starts_with("id="));
        words.collect::<Vec<_>>().join(" ") + "\n"
    };
    dump::text(&maps.snapshot()).lines().map(line).collect()
}

/// What the maps should say, by a plain run of the case.
pub(crate) struct Reference {
    plain: Pipeline<Memory>,
    failed: usize,
    /// With room for everything; only for cases in which it matters what fits.
    roomy: Option<Pipeline<Memory>>,
    /// All lines that its dump ever had.
    ever: BTreeSet<String>,
    steps: usize,
}

impl Reference {
    pub(crate) fn new(case: &Case) -> Self {
        let new = |memory: Memory| {
            let snapshot = memory.snapshot();
            case.pipeline(memory, &snapshot)
        };
        let any = case.header("fits") == Some("any");
        Self {
            plain: new(case.maps()),
            failed: 0,
            roomy: any.then(|| new(Memory::new(1024, 1024))),
            ever: BTreeSet::new(),
            steps: 0,
        }
    }

    pub(crate) fn step(&mut self, listing: Listing) -> [Change; 3] {
        let changes = listing.changes();
        for change in changes.clone() {
            self.plain.change(change);
        }
        self.failed = self.plain.sync().sockets.failed.len();
        if let Some(roomy) = &mut self.roomy {
            for change in changes.clone() {
                roomy.change(change);
            }
            roomy.sync();
            self.ever.extend(meaning(roomy.store()).lines().map(ToOwned::to_owned));
        }
        self.steps += 1;
        changes
    }

    pub(crate) fn compare(&self, found: &Memory, report: &SyncReport) -> Result<(), String> {
        let found = meaning(found);
        let wanted = meaning(self.roomy.as_ref().unwrap_or(&self.plain).store());
        let same = match self.roomy {
            None => found == wanted && report.sockets.failed.len() == self.failed,
            Some(_) if report.sockets.failed.is_empty() => found == wanted,
            // What is there is some whole set of a Service that is still there; a Service without
            // a slice is one of those.
            Some(_) => found.lines().all(|line| match line.split_once(" -> ") {
                Some((frontend, set)) => {
                    let of =
                        |line: &str| line.split_once(" -> ").is_some_and(|(f, _)| f == frontend);
                    wanted.lines().any(of) && (self.ever.contains(line) || set == "refuse")
                }
                None => wanted.lines().any(|wanted| wanted == line),
            }),
        };
        if same {
            return Ok(());
        }
        let failed: Vec<_> = report.sockets.failed.values().map(ToString::to_string).collect();
        Err(format!("step {}: failed: {failed:?}\n{}", self.steps, diff(&wanted, &found)))
    }
}

/// Line by line: `-` is wanted, `+` is found.
pub(crate) fn diff(wanted: &str, found: &str) -> String {
    let (a, b): (Vec<_>, Vec<_>) = (wanted.lines().collect(), found.lines().collect());
    // Lengths of the longest common rest of each pair of rests.
    let mut common = vec![vec![0usize; b.len() + 1]; a.len() + 1];
    for i in (0..a.len()).rev() {
        for j in (0..b.len()).rev() {
            common[i][j] = if a[i] == b[j] {
                common[i + 1][j + 1] + 1
            } else {
                common[i + 1][j].max(common[i][j + 1])
            };
        }
    }
    let (mut i, mut j, mut text) = (0, 0, String::new());
    while i < a.len() || j < b.len() {
        let (sign, line) = if i < a.len() && j < b.len() && a[i] == b[j] {
            (i, j) = (i + 1, j + 1);
            (' ', a[i - 1])
        } else if j == b.len() || (i < a.len() && common[i + 1][j] >= common[i][j + 1]) {
            i += 1;
            ('-', a[i - 1])
        } else {
            j += 1;
            ('+', b[j - 1])
        };
        text += &format!("{sign} {line}\n");
    }
    text
}
