//! `lbctl status`: what is attached where, how full the maps are, whether an agent runs.

mod agent;
mod fills;
mod judgement;
mod others;
mod programs;
mod served;
mod text;

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Write,
    path::{Path, PathBuf},
};

use aya::maps::MapInfo;
use lb_common::abi::{HEARD, LAYOUT, SERVICES};
use lb_core::{dump::API_VERSION, store::Snapshot};
use serde::Serialize;

use self::{
    agent::AgentStatus,
    fills::Fill,
    others::Other,
    programs::{ProgramStatus, State},
    served::ServedCgroup,
};
use super::{
    cli::{self, Form},
    failure::{self, Answer, Failure},
    get::counters,
    json,
    packets::{self, PacketsFill},
};
use crate::{
    datapath::STORAGE,
    maps::{Exchanges, Pinned},
    pins::{Pins, shown},
};

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
    /// What is served of packets; null if nothing is.
    packets: Option<PacketsFill>,
    /// Why that cannot be said; missing if it can.
    #[serde(skip_serializing_if = "Option::is_none")]
    packets_unread: Option<String>,
    programs: Vec<ProgramStatus>,
    maps: Vec<Fill>,
    /// Programs of others at the same hooks.
    others: Vec<Other>,
    /// Links of a move to another cgroup that was interrupted.
    interrupted: Vec<String>,
    /// How often something failed, by name; without those that did not.
    counters: BTreeMap<&'static str, u64>,
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
    let (mut all, mut counts) = (Vec::new(), Vec::new());
    if let (Some((maps, snapshot)), Some(dir)) = (&opened, &live_maps) {
        counts = counters(pins)?;
        all = fills::planned(snapshot);
        all.extend(fills::beside(dir, maps, snapshot).map_err(|e| failure::unreadable(pins, &e))?);
        if !unpinned.contains(&HEARD) {
            let (used, size) = Exchanges::open(pins).map_err(|error| failure::open(&error))?.fill();
            all.push(Fill { name: HEARD, used, size });
        }
    }
    let counters = counts.into_iter().filter(|(_, count)| *count > 0);
    let others = others::find(&mut programs, &ids(pins, live_maps.as_deref()))
        .map_err(|error| failure::cgroup(&error))?;
    let packets = packets::fill(pins);
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
        packets_unread: packets.as_ref().err().cloned(),
        packets: packets.ok().flatten(),
        programs,
        maps: all,
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

/// The kernel's ids of maps that tell our programs from others: each uses one of these.
fn ids(pins: &Pins, maps: Option<&Path>) -> BTreeSet<u32> {
    let pins = maps.map(|maps| maps.join(SERVICES)).into_iter().chain([pins.sockets()]);
    pins.filter_map(|pin| MapInfo::from_pin(pin).ok()).map(|info| info.id()).collect()
}

#[cfg(test)]
mod tests;
