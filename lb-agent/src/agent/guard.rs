//! Whether the programs are in force, and what is done if they are not (M6).

use std::time::Duration;

use super::task::Task;
use crate::{
    admin::Admin,
    canary::{self, CanaryError},
    datapath::{Datapath, Finding},
    node_cgroup::{self, Cgroup, Outside},
};

/// How often it is looked.
const PERIOD: Duration = Duration::from_secs(30);
/// The same while something is wrong.
const PERIOD_OF_TROUBLE: Duration = Duration::from_secs(2);

pub(super) struct Guard {
    cgroup: Cgroup,
    /// The programs are attached, and the maps refuse the canary's addresses.
    is_on_duty: bool,
    look: Task<Sighting>,
    /// What is wrong, as it was told.
    told: Option<String>,
    /// Why it could not be repaired, as it was told.
    unrepaired: Option<String>,
    /// What the canary has found wrong, when it could tell; at first that it has not been sent yet.
    not_in_force: Option<String>,
    is_proved: bool,
    /// Whether the maps were suspected, since the canary came back last.
    is_suspected: bool,
    /// The processes elsewhere, as they were seen last. That there are any is told once: their number
    /// may change each time.
    outside: Option<Outside>,
}

/// What a look at the cgroup has seen.
pub(super) struct Sighting {
    canary: Result<(), CanaryError>,
    outside: Option<Outside>,
    /// The cgroup was removed. What is to be served in its place, or why nothing is.
    next: Option<Result<Cgroup, String>>,
}

/// What came of it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Repair {
    /// Nothing was to be done, or could be.
    Nothing,
    /// Nothing is wrong with the programs, but they are not in force: what is wrong may be in the maps.
    Elsewhere,
    /// Programs and maps are as they were.
    Done,
    /// The programs are attached to another cgroup.
    Moved,
}

impl Sighting {
    fn look(cgroup: &Cgroup) -> Self {
        if cgroup.is_gone() {
            let next = cgroup.again().map_err(|error| format!("{error:#}"));
            return Self { canary: Ok(()), outside: None, next: Some(next) };
        }
        Self { canary: canary::check(cgroup.path()), outside: cgroup.outside(), next: None }
    }
}

impl Guard {
    pub(super) fn new(cgroup: Cgroup) -> Self {
        Self {
            cgroup,
            is_on_duty: false,
            look: Task::new(),
            told: None,
            unrepaired: None,
            not_in_force: None,
            is_proved: false,
            is_suspected: false,
            outside: None,
        }
    }

    /// The cgroup that the programs belong to.
    pub(super) const fn cgroup(&self) -> &Cgroup {
        &self.cgroup
    }

    /// Nobody is told that all is well, before it was looked whether this is the right cgroup.
    pub(super) fn begin(&mut self, admin: &Admin) {
        self.tell_outside(self.cgroup.outside(), admin);
        if self.outside.is_some() {
            admin.datapath_checked(self.verdict());
        }
    }

    /// The programs are attached, and the maps refuse the canary's addresses, as an agent before us
    /// left them.
    pub(super) const fn adopt(&mut self) {
        self.is_on_duty = true;
    }

    /// The programs are attached, and the maps complete. Nobody is told that all is well before the
    /// canary has been back.
    pub(super) fn launch(&mut self, datapath: &Datapath, admin: &Admin) {
        self.is_on_duty = true;
        if !self.is_proved {
            let tried = || "whether the programs are in force is being tried".to_owned();
            self.not_in_force.get_or_insert_with(tried);
            admin.datapath_checked(self.verdict());
        }
        self.tick(datapath);
    }

    /// Looks, if it is time.
    pub(super) fn tick(&mut self, datapath: &Datapath) {
        if !self.is_on_duty {
            return;
        }
        let period = if self.told.is_some() || self.outside.is_some() || self.cgroup.is_gone() {
            PERIOD_OF_TROUBLE
        } else if datapath.pins().is_in_place() {
            PERIOD
        } else {
            // The lock went with the pins: another agent could start.
            Duration::ZERO
        };
        if self.look.is_due(period) {
            let cgroup = self.cgroup.clone();
            self.look.begin(move || Sighting::look(&cgroup));
        }
    }

    /// What the canary has seen. To be dropped and called again at will.
    pub(super) async fn seen(&mut self) -> Sighting {
        let seen = self.look.result().await;
        seen.unwrap_or_else(|| {
            let died = CanaryError::Unknown("the canary has died".to_owned());
            // Nobody has looked: they are where they were.
            Sighting { canary: Err(died), outside: self.outside.clone(), next: None }
        })
    }

    /// Compares that with what the kernel says of programs and maps, repairs what can be repaired, and
    /// tells.
    pub(super) fn judge(
        &mut self,
        seen: Sighting,
        datapath: &mut Datapath,
        admin: &Admin,
    ) -> Repair {
        let Sighting { canary, outside, next } = seen;
        if let Some(next) = next {
            return self.replace(next, datapath, admin);
        }
        let findings = datapath.verify(self.cgroup.path());
        let mut wrong: Vec<String> = match &findings {
            Ok(findings) => findings.iter().map(ToString::to_string).collect(),
            Err(error) => vec![format!("{error:#}")],
        };
        self.tell_outside(outside, admin);
        let is_silent = matches!(canary, Err(CanaryError::NotInForce(_)));
        match canary {
            Ok(()) => {
                (self.not_in_force, self.is_proved) = (None, true);
                self.is_suspected = false;
            }
            Err(CanaryError::NotInForce(what)) => {
                wrong.push(what.clone());
                self.not_in_force = Some(what);
            }
            // What was found wrong before is not known to be right, nor what was never found right.
            Err(unknown @ CanaryError::Unknown(_)) => {
                wrong.push(unknown.to_string());
                if !self.is_proved {
                    self.not_in_force = Some(unknown.to_string());
                }
            }
        }
        admin.datapath_checked(self.verdict());
        self.tell((!wrong.is_empty()).then(|| wrong.join("; ")));
        let is_repairable =
            |found: &Vec<_>| found.iter().any(|finding: &Finding| finding.problem.is_repairable());
        if !findings.as_ref().is_ok_and(is_repairable) {
            let is_news = is_silent && !std::mem::replace(&mut self.is_suspected, is_silent);
            return if is_news { Repair::Elsewhere } else { Repair::Nothing };
        }
        match datapath.repair(self.cgroup.path()) {
            Ok(()) => {
                self.unrepaired = None;
                tracing::info!("programs and maps are pinned and attached again");
                Repair::Done
            }
            Err(error) => {
                let error = format!("{error:#}");
                if self.unrepaired.as_ref() != Some(&error) {
                    tracing::error!("cannot repair that, trying again: {error}");
                    self.unrepaired = Some(error);
                }
                Repair::Nothing
            }
        }
    }

    /// The cgroup was removed, and the programs with it.
    fn replace(
        &mut self,
        next: Result<Cgroup, String>,
        datapath: &mut Datapath,
        admin: &Admin,
    ) -> Repair {
        let gone = format!("the cgroup {} was removed: nothing is translated", self.cgroup);
        let attached = next.and_then(|next| {
            datapath.repair(next.path()).map_err(|error| format!("{error:#}"))?;
            Ok(next)
        });
        match attached {
            Ok(next) => {
                self.tell(Some(gone));
                tracing::info!(cgroup = %next, "attached");
                self.cgroup = next;
                Repair::Moved
            }
            Err(error) => {
                let wrong = format!("{gone}, and no other one is found: {error}");
                admin.datapath_checked(Err(wrong.clone()));
                self.tell(Some(wrong));
                Repair::Nothing
            }
        }
    }

    /// Tells what is wrong, if that is news.
    fn tell(&mut self, wrong: Option<String>) {
        if wrong != self.told {
            if let Some(wrong) = &wrong {
                tracing::error!("the programs are not as they should be: {wrong}");
            } else {
                tracing::info!("the programs are as they should be again");
            }
            self.told = wrong;
        }
    }

    /// Tells that there are processes of the node outside of the cgroup, or no longer, if that is
    /// news.
    fn tell_outside(&mut self, outside: Option<Outside>, admin: &Admin) {
        admin.metrics().processes_outside(outside.as_ref().map_or(0, |outside| outside.count));
        match &outside {
            Some(outside) if self.outside.is_none() => {
                let what = node_cgroup::explain(&self.cgroup, outside);
                tracing::error!(example = %outside.example, "not ready: {what}");
            }
            None if self.outside.is_some() => {
                tracing::info!(cgroup = %self.cgroup, "all processes of the node are in the cgroup now");
            }
            _ => {}
        }
        self.outside = outside;
    }

    /// All that is known to be wrong with what the programs reach.
    fn verdict(&self) -> Result<(), String> {
        let outside =
            self.outside.as_ref().map(|outside| node_cgroup::explain(&self.cgroup, outside));
        let faults: Vec<String> = self.not_in_force.iter().cloned().chain(outside).collect();
        if faults.is_empty() { Ok(()) } else { Err(faults.join("; ")) }
    }
}
