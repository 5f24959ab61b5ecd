//! Whether the programs are in force, and what is done if they are not (M6).

use std::{path::PathBuf, time::Duration};

use super::task::Task;
use crate::{
    admin::Admin,
    canary::{self, Failure},
    datapath::{Datapath, Finding},
};

/// How often it is looked.
const PERIOD: Duration = Duration::from_secs(30);
/// The same while something is wrong.
const PERIOD_OF_TROUBLE: Duration = Duration::from_secs(2);

pub(super) struct Guard {
    cgroup: PathBuf,
    canary: Task<Result<(), Failure>>,
    /// What is wrong, as it was told.
    told: Option<String>,
}

impl Guard {
    pub(super) fn new(cgroup: PathBuf) -> Self {
        Self { cgroup, canary: Task::new(), told: None }
    }

    /// Sends the canary, if it is time. Only once the maps refuse its addresses.
    pub(super) fn tick(&mut self) {
        let period = if self.told.is_some() { PERIOD_OF_TROUBLE } else { PERIOD };
        if self.canary.is_due(period) {
            let cgroup = self.cgroup.clone();
            self.canary.begin(move || canary::check(&cgroup));
        }
    }

    /// What the canary has seen. To be dropped and called again at will.
    pub(super) async fn seen(&mut self) -> Result<(), Failure> {
        let seen = self.canary.result().await;
        seen.unwrap_or_else(|| Err(Failure::Unknown("the canary has died".to_owned())))
    }

    /// Compares that with what the kernel says of programs and maps, repairs what can be repaired, and
    /// tells. True if something was repaired.
    pub(super) fn judge(
        &mut self,
        seen: Result<(), Failure>,
        datapath: &mut Datapath,
        admin: &Admin,
    ) -> bool {
        let findings = datapath.verify(&self.cgroup);
        let mut wrong: Vec<String> = match &findings {
            Ok(findings) => findings.iter().map(ToString::to_string).collect(),
            Err(error) => vec![format!("{error:#}")],
        };
        let mut health = Ok(());
        match seen {
            Ok(()) => {}
            Err(Failure::NotInForce(what)) => {
                wrong.push(what.clone());
                health = Err(what);
            }
            Err(unknown @ Failure::Unknown(_)) => wrong.push(unknown.to_string()),
        }
        admin.datapath_checked(health);
        let wrong = (!wrong.is_empty()).then(|| wrong.join("; "));
        if wrong != self.told {
            if let Some(wrong) = &wrong {
                tracing::error!("the programs are not as they should be: {wrong}");
            } else {
                tracing::info!("the programs are as they should be again");
            }
            self.told = wrong;
        }
        let is_repairable =
            |found: &Vec<_>| found.iter().any(|finding: &Finding| finding.problem.is_repairable());
        if !findings.as_ref().is_ok_and(is_repairable) {
            return false;
        }
        match datapath.repair(&self.cgroup) {
            Ok(()) => {
                tracing::info!("programs and maps are pinned and attached again");
                true
            }
            Err(error) => {
                tracing::error!("cannot repair that, trying again: {error:#}");
                false
            }
        }
    }
}
