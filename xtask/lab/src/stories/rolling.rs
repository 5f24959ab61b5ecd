//! `rolling`: a Deployment is replaced again and again under load, and nobody notices.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};

use super::{
    Stage,
    load::{Load, Order, web},
    stage::{self, soon},
};

const ROUNDS: usize = 10;
pub(super) const PODS: u32 = 6;
pub(super) const RATE: u64 = 500;

pub(super) fn play(stage: &Stage<'_>) -> Result<()> {
    stage.apply(&web(PODS).to_string())?;
    stage.rolled_out("deployment/web")?;
    let mut all = names(stage)?;
    let load = Load::start(stage, &order("second"))?;
    for round in 1..=ROUNDS {
        stage.note(format!("rollout {round}"));
        stage.kubectl(&["rollout", "restart", "deployment/web"])?;
        stage.rolled_out("deployment/web")?;
        let now = names(stage)?;
        all.extend(now);
    }
    only_last(stage)?;
    let summary = load.flawless()?;
    let answered: BTreeSet<_> = summary.spread().into_iter().map(|(name, _)| name).collect();
    let silent = all.iter().filter(|name| !answered.contains(name.as_str())).count();
    // The last pod of a rollout may be replaced before it has got a request.
    ensure!(silent <= ROUNDS, "{silent} of {} pods have never answered", all.len());
    Ok(())
}

/// Waits until those that go are gone: they have heard it, and are asked no more.
pub(super) fn only_last(stage: &Stage<'_>) -> Result<()> {
    soon("the old pods to be gone", stage::PODS, || {
        let pods = stage.kubectl(&["get", "pods", "--selector=app=web", "--output=name"]);
        let pods = pods.map_err(|error| format!("{error:#}"))?;
        if pods.lines().count() == PODS as usize { Ok(()) } else { Err(pods) }
    })?;
    stage.note("only the last are left");
    Ok(())
}

pub(super) fn order(resolve: &str) -> Order<'_> {
    Order { name: "load", to: "http://web/", rate: RATE, resolve, node: "" }
}

/// The names of the pods that are not about to go.
pub(super) fn names(stage: &Stage<'_>) -> Result<BTreeSet<String>> {
    let go = "{range .items[*]}{.metadata.name} {.metadata.deletionTimestamp}{\"\\n\"}{end}";
    let output = format!("--output=jsonpath={go}");
    let lines = stage.kubectl(&["get", "pods", "--selector=app=web", &output])?;
    let pods = lines.lines().filter_map(|line| line.split_once(' '));
    Ok(pods.filter(|(_, goes)| goes.is_empty()).map(|(name, _)| name.to_owned()).collect())
}
