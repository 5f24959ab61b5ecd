//! What is wrong with what was found, and what helps.

use std::collections::BTreeSet;

use super::{Status, others::Other, programs::State, text::percent};
use crate::ctl::{failure::Answer, packets::PacketsFill};

/// A map fuller than this is a problem: sets that change need room for old and new records.
const FULL: f64 = 0.9;

impl Status {
    /// Says what is wrong. `unopened`: why there are no maps to look into.
    pub(super) fn judge(&mut self, unopened: Option<String>, unpinned: &[&str]) {
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
            let remedy = fill.flag().map_or_else(String::new, |flag| {
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
        problems.extend(self.packets.as_ref().and_then(PacketsFill::problem));
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
}
