//! `api-away`: without the API server nothing changes for clients; an agent that is started while it
//! is away serves what is pinned.

use std::{
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use tools::exec::say;

use super::{
    Stage,
    load::{Load, Order, web},
    rolling::names,
    stage::{AGENT, soon},
};
use crate::cluster::Container;

/// Between two looks at agents and load.
const LOOK: Duration = Duration::from_secs(10);
/// Most time until a killed agent is started again, or a change is taken up.
const SOON: Duration = Duration::from_secs(180);
/// How long the agent that was started without an API server is watched.
const WATCHED: Duration = Duration::from_secs(15);
/// An agent that has lost the API server says so, for each kind of objects. It may say what else goes
/// wrong meanwhile, but not over and over.
const LINES: usize = 20;

pub(super) fn play(stage: &Stage<'_>) -> Result<()> {
    stage.apply(&web(4).to_string())?;
    stage.rolled_out("deployment/web")?;
    let order = Order { name: "load", to: "http://web/", rate: 50, resolve: "request", node: "" };
    let load = Load::start(stage, &order)?;
    let service = format!("{}:80", stage.field("service/web", "{.spec.clusterIP}")?);
    let agents = agents(stage)?;

    stage.note("the API server goes away");
    let said: Vec<_> = agents.iter().map(lines).collect();
    let processes: Vec<_> = agents.iter().map(|agent| agent.processes(AGENT)).collect();
    stage.cluster.stop_apiserver()?;
    let back = Instant::now() + Duration::from_secs(stage.args.api_away_seconds);
    while Instant::now() < back {
        sleep(LOOK.min(back.saturating_duration_since(Instant::now())));
        goes_on(stage, &load)?;
    }
    for ((agent, said), before) in agents.iter().zip(said).zip(processes) {
        let node = &agent.node;
        let now = agent.processes(AGENT);
        ensure!(now == before, "the agent on {node} was started anew: {before:?}, now {now:?}");
        let more = lines(agent).saturating_sub(said);
        say!("   the agent on {node} has written {more} lines meanwhile");
        ensure!(more <= LINES, "the agent on {node} has written {more} lines:\n{}", end(agent));
    }

    let agent = agents.iter().find(|agent| agent.node == load.node());
    let agent = agent.context("the load runs where no agent is")?;
    start_anew(stage, agent)?;
    let until = Instant::now() + WATCHED;
    while Instant::now() < until {
        sleep(Duration::from_secs(5));
        goes_on(stage, &load)?;
    }
    let answer = agent.run(AGENT, &["/usr/bin/lbctl", "explain", &service])?;
    say!("   lbctl explain {service}, on {}:", agent.node);
    answer.lines().for_each(|line| say!("   | {line}"));

    stage.note("the API server comes back");
    stage.cluster.start_apiserver()?;
    stage.note("it is back");
    stage.agents_ready()?;
    stage.note("all agents are ready");
    goes_on(stage, &load)?;
    stage.kubectl(&["scale", "deployment/web", "--replicas=6"])?;
    stage.rolled_out("deployment/web")?;
    stage.note("scaled to 6");
    let names = names(stage)?;
    soon("the agent to know the new pods", SOON, || {
        let answer = agent.run(AGENT, &["/usr/bin/lbctl", "explain", &service]);
        let answer = answer.map_err(|error| format!("{error:#}"))?;
        let backends = answer.matches(":8080").count();
        if backends >= names.len() { Ok(()) } else { Err(answer) }
    })?;
    load.answered_by(&names)?;
    load.flawless().map(drop)
}

/// Kills an agent, and waits for the one that kubelet starts instead.
fn start_anew(stage: &Stage<'_>, agent: &Container) -> Result<()> {
    let before = agent.processes(AGENT);
    stage.note(format!("the agent on {} is killed", agent.node));
    agent.signal(AGENT, "KILL")?;
    soon("kubelet to start the agent again", SOON, || {
        let now = agent.processes(AGENT);
        let other = !now.is_empty() && now != before;
        if other { Ok(()) } else { Err(format!("processes: {now:?}, {before:?} before")) }
    })?;
    soon("the new agent to live", SOON, || {
        live(stage, &agent.node).map_err(|error| format!("{error:#}\n{}", end(agent)))
    })?;
    stage.note("another one runs, without an API server");
    Ok(())
}

/// All agents live, and no request has failed.
fn goes_on(stage: &Stage<'_>, load: &Load<'_>) -> Result<()> {
    stage.cluster.nodes().iter().try_for_each(|node| live(stage, node.name()))?;
    let (ok, failed) = load.counts()?;
    if failed > 0 {
        stage.note(format!("{failed} requests have failed, {ok} were answered"));
    }
    Ok(())
}

fn live(stage: &Stage<'_>, node: &str) -> Result<()> {
    let curl = ["curl", "--silent", "--show-error", "--fail", "--max-time", "5"];
    stage.on_node(node, &[&curl[..], &["http://127.0.0.1:10256/livez"]].concat()).map(drop)
}

fn agents(stage: &Stage<'_>) -> Result<Vec<Container>> {
    stage.cluster.nodes().iter().map(|node| stage.agent_container(node.name())).collect()
}

fn lines(agent: &Container) -> usize {
    agent.log().map_or(0, |log| log.lines().count())
}

fn end(agent: &Container) -> String {
    let log = agent.log().unwrap_or_else(|error| format!("{error:#}"));
    let lines: Vec<_> = log.lines().collect();
    lines[lines.len().saturating_sub(LINES)..].join("\n")
}
