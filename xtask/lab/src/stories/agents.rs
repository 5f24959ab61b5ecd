//! `agent-update`: agents come and go, and the pins serve. First the DaemonSet is updated as people
//! do it; then its pods are deleted all the time, while the Deployment changes too.

use std::{
    collections::BTreeSet,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, ensure};

use super::{
    Stage,
    load::{Load, web_that_stays},
    rolling::{PODS, names, only_last, order},
};
use crate::cluster::SOCKLB;

/// Between deletions, or more, where agents take longer to be ready.
const BETWEEN: Duration = Duration::from_secs(5);
/// For how many seconds a pod that goes still serves. Longer than a node is without an agent, which a
/// slow machine may be for many seconds: nobody tells it meanwhile that the pod goes.
const STAYS: u32 = 20;
const DELETIONS: Duration = Duration::from_secs(60);

pub(super) fn play(stage: &Stage<'_>) -> Result<()> {
    stage.apply(&web_that_stays(PODS, STAYS).to_string())?;
    stage.rolled_out("deployment/web")?;
    let load = Load::start(stage, &order("second"))?;
    update(stage)?;
    let end = Instant::now() + DELETIONS;
    thread::scope(|scope| {
        let deletions = scope.spawn(|| delete(stage, end));
        let changes = change(stage, end);
        let deletions = deletions.join().unwrap_or_else(|_| Err(anyhow!("a thread panicked")));
        changes.and(deletions)
    })?;
    stage.agents_ready()?;
    stage.note("all agents are ready");
    stage.kubectl(&["scale", "deployment/web", "--replicas=6"])?;
    stage.rolled_out("deployment/web")?;
    let before = names(stage)?;
    stage.kubectl(&["rollout", "restart", "deployment/web"])?;
    stage.rolled_out("deployment/web")?;
    stage.note("a rollout with agents that stay");
    only_last(stage)?;
    let after = names(stage)?;
    ensure!(before.is_disjoint(&after), "the rollout has replaced nothing");
    let summary = load.flawless()?;
    let answered: BTreeSet<_> = summary.spread().into_iter().map(|(name, _)| name).collect();
    let silent = after.iter().find(|name| !answered.contains(name.as_str()));
    ensure!(silent.is_none(), "the new pod {} has never answered", silent.map_or("", |it| it));
    Ok(())
}

fn update(stage: &Stage<'_>) -> Result<()> {
    let agents = agents(stage)?;
    stage.note("the DaemonSet is updated");
    let rollout = |words: &[&str]| {
        stage.kubectl_everywhere(&[&["-n", "kube-system", "rollout"], words].concat())
    };
    rollout(&["restart", SOCKLB])?;
    rollout(&["status", SOCKLB, "--timeout=300s"])?;
    stage.agents_ready()?;
    stage.note("it is updated");
    let left: Vec<_> = agents.intersection(&self::agents(stage)?).cloned().collect();
    ensure!(left.is_empty(), "agents that were not replaced: {}", left.join(", "));
    Ok(())
}

/// Deletes every agent's pod again and again, as soon as all are ready. Those that would be deleted
/// before could never tell their nodes of any change.
fn delete(stage: &Stage<'_>, end: Instant) -> Result<()> {
    let mut next = Instant::now();
    while next < end {
        stage.note("all agents are deleted");
        let of_socklb = "--selector=app.kubernetes.io/name=socklb";
        let words = ["-n", "kube-system", "delete", "pods", of_socklb, "--wait=false"];
        stage.kubectl_everywhere(&words).context("cannot delete the agents")?;
        next += BETWEEN;
        thread::sleep(next.saturating_duration_since(Instant::now()));
        stage.agents_ready()?;
        next = next.max(Instant::now());
    }
    Ok(())
}

/// Changes the Deployment, in every way, until then.
fn change(stage: &Stage<'_>, end: Instant) -> Result<()> {
    for replicas in ["9", "4", "6"].into_iter().cycle() {
        if Instant::now() > end {
            return Ok(());
        }
        stage.note(format!("scaled to {replicas}"));
        let replicas = format!("--replicas={replicas}");
        stage.kubectl(&["scale", "deployment/web", &replicas])?;
        stage.rolled_out("deployment/web")?;
        stage.note("rollout");
        stage.kubectl(&["rollout", "restart", "deployment/web"])?;
        stage.rolled_out("deployment/web")?;
    }
    Ok(())
}

fn agents(stage: &Stage<'_>) -> Result<BTreeSet<String>> {
    stage.cluster.nodes().iter().map(|node| stage.agent(node.name())).collect()
}
