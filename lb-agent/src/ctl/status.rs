//! `lbctl status`: what is attached where, how full the maps are, whether an agent runs.

mod agent;
mod others;
mod programs;
mod served;

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, Write},
    path::{Path, PathBuf},
};

use aya::maps::{MapError, MapInfo};
use lb_common::abi::{
    ADDRESSES, AFFINITY, BACKENDS, CLIENTS, HEARD, LAYOUT, NAMES, SERVICES, SOURCES,
};
use lb_core::{
    dump::API_VERSION,
    store::{Snapshot, max_names},
};
use serde::Serialize;

use self::{
    agent::AgentStatus,
    others::Other,
    programs::{ProgramStatus, State},
    served::ServedCgroup,
};
use super::{
    cli::{self, Form},
    failure::{self, Answer, Failure},
    get::counters,
    json,
    table::{NONE, TextTable, or_none},
};
use crate::{
    datapath::STORAGE,
    maps::{Exchanges, Pinned},
    pins::{Pins, shown},
};

/// A map fuller than this is a problem: sets that change need room for old and new records.
const FULL: f64 = 0.9;

/// `kind: Status`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Status {
    api_version: &'static str,
    kind: &'static str,
    healthy: bool,
    /// What the exit code says, too.
    #[serde(skip)]
    answer: Answer,
    /// Each thing that is wrong, in words.
    problems: Vec<String>,
    /// Version of the layout of the maps.
    layout: u32,
    /// Where everything is pinned.
    pins: PathBuf,
    /// Where the maps in use are pinned.
    live_maps: Option<PathBuf>,
    /// The layout of the programs, if it is another one: an agent before this one left them.
    #[serde(skip)]
    left: Option<String>,
    agent: AgentStatus,
    /// Whose sockets are served; null if nobody's are.
    cgroup: Option<ServedCgroup>,
    programs: Vec<ProgramStatus>,
    maps: Vec<Fill>,
    /// Programs of others at the same hooks.
    others: Vec<Other>,
    /// Links of a move to another cgroup that was interrupted.
    interrupted: Vec<String>,
    /// How often something failed, by name; without those that did not.
    counters: BTreeMap<&'static str, u64>,
}

/// How full a map is, in entries.
#[derive(Debug, Serialize)]
struct Fill {
    name: &'static str,
    used: usize,
    size: u32,
}

impl Fill {
    fn ratio(&self) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "a map has fewer than 2^32 entries")]
        let used = self.used as f64;
        used / f64::from(self.size.max(1))
    }
}

/// Whether both programs that translate are attached to a cgroup that is still there.
pub(super) fn is_attached(pins: &Pins) -> Result<bool, Failure> {
    let mut programs = programs::find(pins)?;
    if programs.iter().any(|program| program.state == State::Missing) {
        // If that cannot be known, it is missing.
        let _ = others::find(&mut programs, &ids(pins, pins.maps().ok().flatten().as_deref()));
    }
    programs.retain(|program| program.name.starts_with("connect"));
    let at_work = [State::Attached, State::Unpinned];
    Ok(programs.iter().all(|program| at_work.contains(&program.state)))
}

/// Without maps there is something to tell only if there is an agent that has still to make them, or
/// does not get on with them.
pub(super) fn run(
    status: cli::Status,
    pins: &Pins,
    opened: Result<(Pinned, Snapshot), Failure>,
    out: &mut dyn Write,
) -> Result<Answer, Failure> {
    let what = || format!("cannot read {}", shown(pins.root()).display());
    let agent = agent::find(pins).map_err(|error| failure::kernel(&what(), &error))?;
    let (opened, unopened) = match opened {
        Ok(opened) => (Some(opened), None),
        Err(Failure::Unreachable(why)) if agent.running => (None, Some(why)),
        Err(failure) => return Err(failure),
    };
    let live_maps = pins.maps().map_err(|error| failure::kernel(&what(), &error))?;
    let mut programs = programs::find(pins)?;
    let left = if live_maps.is_none() { left(pins) } else { None };
    let left = left.map(|(layout, theirs)| {
        programs = theirs;
        layout
    });
    let unpinned: Vec<_> =
        STORAGE.into_iter().filter(|name| !pins.storage(name).exists()).collect();
    let (mut fills, mut counts) = (Vec::new(), Vec::new());
    if let (Some((maps, snapshot)), Some(dir)) = (&opened, &live_maps) {
        counts = counters(pins)?;
        fills = self::fills(snapshot);
        fills.extend(more_fills(dir, maps, snapshot).map_err(|e| failure::unreadable(pins, &e))?);
        if !unpinned.contains(&HEARD) {
            let (used, size) = Exchanges::open(pins).map_err(|error| failure::open(&error))?.fill();
            fills.push(Fill { name: HEARD, used, size });
        }
    }
    let counters = counts.into_iter().filter(|(_, count)| *count > 0);
    let others = others::find(&mut programs, &ids(pins, live_maps.as_deref()))
        .map_err(|error| failure::cgroup(&error))?;
    let mut found = Status {
        others,
        interrupted: pins.interrupted_links().map_err(|e| failure::kernel(&what(), &e))?,
        counters: counters.map(|(counter, count)| (counter.name(), count)).collect(),
        api_version: API_VERSION,
        kind: "Status",
        healthy: true,
        answer: Answer::Yes,
        problems: Vec::new(),
        layout: LAYOUT,
        pins: shown(pins.root()),
        live_maps: live_maps.as_deref().map(shown),
        left,
        agent,
        cgroup: served::find(&programs),
        programs,
        maps: fills,
    };
    found.judge(unopened, &unpinned);
    match status.output {
        Some(Form::Json) => json(out, &found)?,
        None => found.write(out)?,
    }
    Ok(found.answer)
}

/// The programs of another layout, if they are at work: the agent that is to replace them waits for its
/// lists.
fn left(pins: &Pins) -> Option<(String, Vec<ProgramStatus>)> {
    pins.other_layouts().ok()?.iter().find_map(|layout| {
        let programs = programs::find(layout).ok()?;
        let is_at_work = programs.iter().any(|program| program.state == State::Attached);
        let name = layout.root().file_name()?.to_string_lossy().into_owned();
        is_at_work.then_some((name, programs))
    })
}

fn fills(snapshot: &Snapshot) -> Vec<Fill> {
    vec![
        Fill { name: SERVICES, used: snapshot.services.len(), size: snapshot.max_services },
        Fill {
            name: BACKENDS,
            used: snapshot.blocks.values().map(Vec::len).sum(),
            size: snapshot.max_backends,
        },
        // There are never more service ports than frontends.
        Fill { name: NAMES, used: snapshot.names.len(), size: max_names(snapshot.max_services) },
    ]
}

/// Those that are no part of what the agent plans, or have a size of their own.
fn more_fills(dir: &Path, maps: &Pinned, snapshot: &Snapshot) -> Result<Vec<Fill>, MapError> {
    let used = [
        (ADDRESSES, snapshot.addresses.len()),
        (SOURCES, snapshot.source_ranges.len()),
        (CLIENTS, maps.clients()?.len()),
        (AFFINITY, maps.bonds().count()),
    ];
    let fill = |(name, used)| {
        Ok(Fill { name, used, size: MapInfo::from_pin(dir.join(name))?.max_entries() })
    };
    used.into_iter().map(fill).collect()
}

/// The kernel's ids of maps that tell our programs from others: each uses one of these.
fn ids(pins: &Pins, maps: Option<&Path>) -> BTreeSet<u32> {
    let pins = maps.map(|maps| maps.join(SERVICES)).into_iter().chain([pins.sockets()]);
    pins.filter_map(|pin| MapInfo::from_pin(pin).ok()).map(|info| info.id()).collect()
}

/// The flag of `lb-agent` that makes a map larger; none if it has one size.
fn flag(map: &str) -> Option<&'static str> {
    match map {
        BACKENDS => Some("--max-backends"),
        AFFINITY => Some("--max-affinity"),
        CLIENTS | HEARD => None,
        _ => Some("--max-services"),
    }
}

impl Status {
    /// Says what is wrong. `unopened`: why there are no maps to look into.
    fn judge(&mut self, unopened: Option<String>, unpinned: &[&str]) {
        let mut problems = self.agent.problems();
        problems.extend(unopened.map(|why| match (&self.live_maps, &self.left) {
            (Some(_), _) => (Answer::No, why),
            (None, None) => {
                let none = "no maps are in force yet: the agent makes them once it knows all Services";
                (Answer::No, none.to_owned())
            }
            (None, Some(layout)) => {
                let theirs = format!(
                    "the programs at work are those of layout {layout}, with maps of their own: the \
                     agent replaces them once it knows all Services"
                );
                (Answer::NotReady, theirs)
            }
        }));
        let wrong = self.problems(unpinned).into_iter();
        problems.extend(wrong.map(|problem| (Answer::No, problem)));
        self.answer = problems.iter().map(|(answer, _)| *answer).max().unwrap_or(Answer::Yes);
        self.healthy = self.answer == Answer::Yes;
        self.problems = problems.into_iter().map(|(_, problem)| problem).collect();
    }

    /// What is wrong with what is pinned.
    fn problems(&self, unpinned: &[&str]) -> Vec<String> {
        let mut problems = Vec::new();
        let missing = self.in_state(State::Missing);
        // What another layout has not is nobody's to attach.
        if !missing.is_empty() && self.left.is_none() {
            let remedy = match self.agent.ready {
                _ if !self.agent.running => "start lb-agent, which attaches them",
                Some(true) => {
                    "the agent sees that within 30 s and attaches them: if not, see its log"
                }
                _ => "the agent attaches them once it knows all Services",
            };
            problems.push(format!("not attached: {}; {remedy}", missing.join(", ")));
        }
        let pinless = self.in_state(State::Unpinned);
        if !pinless.is_empty() {
            problems.push(format!(
                "at work, but the pin is gone of: {}; the agent pins them again within 30 s, see its log \
                 if it does not",
                pinless.join(", ")
            ));
        }
        let detached = self.in_state(State::CgroupGone);
        if !detached.is_empty() {
            problems.push(format!(
                "not attached any more, for their cgroup is gone: {}; restart lb-agent",
                detached.join(", ")
            ));
        }
        let cgroups: BTreeSet<_> = self.programs.iter().filter_map(|p| p.cgroup_id).collect();
        if cgroups.len() > 1 {
            problems
                .push("the programs are attached to different cgroups: restart lb-agent".into());
        }
        for name in unpinned {
            problems.push(format!("the map {name} is not pinned: restart lb-agent"));
        }
        for fill in self.maps.iter().filter(|fill| fill.ratio() > FULL) {
            let remedy = flag(fill.name).map_or_else(String::new, |flag| {
                format!(": restart lb-agent with a larger {flag}")
            });
            let (name, ratio) = (fill.name, percent(fill.ratio()));
            problems.push(format!("the map {name} is {ratio} full{remedy}"));
        }
        for other in self.others.iter().filter(|other| other.is_socklb()) {
            let Other { hook, name, program_id } = other;
            problems.push(format!(
                "another program on {hook}: {name} id {program_id}; a socklb of another bpf file \
                 system translates here too: end it with its `lb-agent --bpffs DIR --cleanup`"
            ));
        }
        if !self.interrupted.is_empty() {
            problems.push(format!(
                "a move to another cgroup was interrupted: {}; restart lb-agent",
                self.interrupted.join(", ")
            ));
        }
        problems
    }

    fn in_state(&self, state: State) -> Vec<&'static str> {
        self.programs.iter().filter(|p| p.state == state).map(|p| p.name).collect()
    }

    fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        let verdict = match self.answer {
            Answer::Yes => "healthy",
            Answer::Silent if !self.agent.hangs() => "unknown",
            _ => "degraded",
        };
        writeln!(out, "{verdict}")?;
        for problem in &self.problems {
            writeln!(out, "  {problem}")?;
        }
        writeln!(out)?;

        writeln!(out, "agent:   {}", self.agent)?;
        let live = self.live_maps.as_ref().and_then(|path| path.file_name());
        let live = live.map_or_else(|| NONE.into(), |name| name.to_string_lossy());
        writeln!(out, "pins:    {} (layout {}, {live})", self.pins.display(), self.layout)?;
        if let Some(cgroup) = &self.cgroup {
            writeln!(out, "cgroup:  {cgroup}")?;
        }
        writeln!(out)?;

        let mut table = TextTable::new(&["PROGRAM", "STATE", "CGROUP"]);
        for program in &self.programs {
            let state = program.state.to_string();
            table.push(vec![program.name.to_owned(), state, program.cgroup_text()]);
        }
        table.write(out, true)?;
        if !self.maps.is_empty() {
            writeln!(out)?;
            let mut table = TextTable::new(&["MAP", "USED", "SIZE", "FILL"]);
            for fill in &self.maps {
                let ratio = percent(fill.ratio());
                let numbers = [fill.used.to_string(), fill.size.to_string(), ratio];
                table.push([fill.name.to_owned()].into_iter().chain(numbers).collect());
            }
            table.write(out, true)?;
        }

        if !self.counters.is_empty() {
            writeln!(out)?;
            let mut table = TextTable::new(&["COUNTER", "COUNT"]);
            for (name, count) in &self.counters {
                table.push(vec![(*name).to_owned(), count.to_string()]);
            }
            table.write(out, true)?;
        }
        if !self.others.is_empty() {
            writeln!(out, "\nother programs at the same hooks:")?;
            for Other { hook, name, program_id } in &self.others {
                let name = or_none(name);
                writeln!(out, "  another program on {hook}: {name} id {program_id}")?;
            }
        }
        Ok(())
    }
}

fn percent(ratio: f64) -> String {
    format!("{:.1}%", ratio * 100.0)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{agent::Silence, *};
    use crate::admin::readiness::Reason;
    use lb_core::dump::sample;

    fn program(name: &'static str, cgroup_id: u64) -> ProgramStatus {
        ProgramStatus {
            name,
            state: State::Attached,
            cgroup: Some("/sys/fs/cgroup".into()),
            cgroup_id: Some(cgroup_id),
            program_id: Some(7),
            link_id: Some(8),
        }
    }

    fn status(programs: Vec<ProgramStatus>, agent: AgentStatus) -> Status {
        let mut status = Status {
            api_version: API_VERSION,
            kind: "Status",
            healthy: true,
            answer: Answer::Yes,
            problems: Vec::new(),
            layout: LAYOUT,
            pins: "/bpf/socklb/v1".into(),
            live_maps: Some("/bpf/socklb/v1/maps-1".into()),
            left: None,
            agent,
            cgroup: Some(ServedCgroup { path: Some("/".into()), is_node: Some(true), id: 1 }),
            programs,
            maps: fills(&sample::memory().snapshot()),
            others: Vec::new(),
            interrupted: Vec::new(),
            counters: BTreeMap::new(),
        };
        status.judge(None, &[]);
        status
    }

    fn text(status: &Status) -> String {
        let mut out = Vec::new();
        status.write(&mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    fn running() -> AgentStatus {
        let version = Some(env!("CARGO_PKG_VERSION").to_owned());
        AgentStatus {
            running: true,
            pid: Some(42),
            ready: Some(true),
            version,
            ..AgentStatus::default()
        }
    }

    #[test]
    fn healthy() {
        let status = status(vec![program("connect4", 1), program("connect6", 1)], running());
        assert_eq!(
            text(&status),
            "\
healthy

agent:   running (pid 42), ready
pins:    /bpf/socklb/v1 (layout 4, maps-1)
cgroup:  / (the node's root: all its sockets)

PROGRAM    STATE      CGROUP
connect4   attached   /sys/fs/cgroup
connect6   attached   /sys/fs/cgroup

MAP        USED   SIZE   FILL
services   5      16     31.2%
backends   5      64     7.8%
names      3      32     9.4%
"
        );
    }

    #[test]
    fn each_thing_that_is_wrong_is_named() {
        let mut programs = vec![program("connect4", 1), program("connect6", 2)];
        programs.push(ProgramStatus { state: State::CgroupGone, ..program("getpeername4", 1) });
        programs.push(ProgramStatus { state: State::Missing, ..program("getpeername6", 1) });
        let mut status = status(programs, AgentStatus::default());
        status.maps[1].used = 63;
        let other = |name: &str| Other { hook: "connect4", name: name.into(), program_id: 9 };
        status.others = vec![other("connect4"), other("cil_sock4_conne")];
        status.interrupted = vec!["connect4_new".into()];
        status.counters.insert("denied", 2);
        status.judge(None, &["sockets"]);
        let problems = &status.problems;
        for (problem, word) in problems.iter().zip([
            "no agent is running",
            "not attached: getpeername6;",
            "cgroup is gone: getpeername4;",
            "different cgroups",
            "sockets",
            "--max-backends",
            "another program on connect4: connect4 id 9; a socklb of another",
            "interrupted: connect4_new;",
        ]) {
            assert!(problem.contains(word), "{problem}");
        }
        assert_eq!(problems.len(), 8, "that of a stranger is only told");
        assert!(text(&status).ends_with(
            "COUNTER   COUNT\ndenied    2\n\nother programs at the same hooks:\n  \
             another program on connect4: connect4 id 9\n  \
             another program on connect4: cil_sock4_conne id 9\n"
        ));
        assert!(text(&status).starts_with("degraded\n  no agent is running"));
    }

    /// The words at the top and the exit code, by what is wrong.
    #[test]
    fn the_worst_of_several_things_is_the_answer() {
        let program = |state| ProgramStatus { state, ..program("connect4", 1) };
        let judged = |agent: &AgentStatus, state| {
            let status = status(vec![program(state)], agent.clone());
            let text = text(&status);
            let head = text.lines().next().unwrap_or_default().to_owned();
            (head, status.answer.code(), status.problems.len(), status.healthy)
        };
        let reason = |what: &str| Reason {
            what: what.to_owned(),
            since: "2026-11-29T01:40:00Z".to_owned(),
            remedy: "wait".to_owned(),
        };
        let reasons = vec![reason("not in sync yet"), reason("no memory")];
        let silent = |silence| AgentStatus { silence: Some(silence), ready: None, ..running() };
        let not_ready = AgentStatus { ready: Some(false), reasons, ..running() };
        for (agent, verdict, code, problems) in [
            (running(), "healthy", 0, 0),
            (AgentStatus::default(), "degraded", 6, 1),
            (silent(Silence::Stopped), "degraded", 7, 1),
            (silent(Silence::Hangs), "degraded", 7, 1),
            (silent(Silence::Absent), "unknown", 7, 1),
            (not_ready.clone(), "degraded", 8, 2),
        ] {
            let wanted = (verdict.to_owned(), code, problems, code == 0);
            assert_eq!(judged(&agent, State::Attached), wanted, "{agent}");
            let worse = ("degraded".to_owned(), 1, problems + 1, false);
            assert_eq!(judged(&agent, State::Missing), worse, "{agent}");
        }
        let status = status(vec![program(State::Attached)], not_ready);
        assert!(text(&status).starts_with(
            "degraded\n  the agent is not ready, since 2026-11-29T01:40:00Z: not in sync yet; wait\n  \
             the agent is not ready, since 2026-11-29T01:40:00Z: no memory; wait\n\n\
             agent:   running (pid 42), not ready\n"
        ));
    }

    #[test]
    fn the_schema() {
        let status = status(vec![program("connect4", 1)], running());
        assert_eq!(
            serde_json::to_value(&status).unwrap(),
            json!({
                "apiVersion": "socklb/v1", "kind": "Status", "healthy": true, "problems": [],
                "layout": 4, "pins": "/bpf/socklb/v1", "liveMaps": "/bpf/socklb/v1/maps-1",
                "agent": {
                    "running": true, "pid": 42, "version": env!("CARGO_PKG_VERSION"), "ready": true,
                    "reasons": [],
                },
                "cgroup": { "path": "/", "isNode": true },
                "programs": [{
                    "name": "connect4", "state": "attached", "cgroup": "/sys/fs/cgroup",
                    "cgroupId": 1, "programId": 7, "linkId": 8,
                }],
                "maps": [
                    { "name": "services", "used": 5, "size": 16 },
                    { "name": "backends", "used": 5, "size": 64 },
                    { "name": "names", "used": 3, "size": 32 },
                ],
                "others": [], "interrupted": [], "counters": {},
            })
        );
    }
}
