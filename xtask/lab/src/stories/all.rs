//! `cluster test --all`: from nothing to nothing. A kube-proxy's cluster and socklb's, one after the
//! other; in the latter all stories and, of Kubernetes' own tests, those that every cluster must pass,
//! and the quick ones of load balancers.
//!
//! Both are known as the tests' own, so that the next run takes away what an interrupted one has left,
//! and nothing that somebody has made.

use std::{env, process::Command};

use anyhow::Result;
use tools::exec::exec;

use crate::{
    cluster::tests_turn,
    test::{Tally, last_count},
};

/// Which of Kubernetes' own tests.
const E2E: &str =
    r"\[Conformance\]|LoadBalancers.*(=LoadBalancer|all nodes|pods|affinity|UDP traffic)";

/// `cargo xtask …`, as this very program. It ends with us, if we are root: what was to be done in a
/// cluster of ours is not to be done in the next one.
fn task(words: &[&str]) -> Result<Command> {
    let mut task = Command::new("setpriv");
    task.args(["--pdeathsig", "KILL"]).arg(env::current_exe()?).args(words);
    Ok(task)
}

pub(super) fn run(api_away_seconds: u64) -> Result<Tally> {
    let _turn = tests_turn()?;
    exec(&mut task(&["cluster", "down", "--of-tests"])?)?;
    let seconds = format!("--api-away-seconds={api_away_seconds}");
    let mut total = in_cluster("kube-proxy:nftables", &[&["cluster", "test", "proxy", "outside"]])?;
    total += in_cluster("socklb", &[&["cluster", "test", &seconds], &["e2e", "--focus", E2E]])?;
    Ok(total)
}

/// Makes a cluster, does this in it, and takes it away. Each of both counts as a test.
fn in_cluster(proxy: &str, tasks: &[&[&str]]) -> Result<Tally> {
    let mut sum = Tally::default();
    let up = counted(&["cluster", "up", "--of-tests", "--proxy", proxy])?;
    sum += up;
    if up == Tally::PASS {
        for words in tasks {
            // The cluster goes in any case.
            sum += task(words).and_then(|mut task| last_count(&mut task)).unwrap_or_else(|error| {
                println!("test {} ... FAILED: {error:#}", words.join(" "));
                Tally::FAIL
            });
        }
    }
    sum += counted(&["cluster", "down"])?;
    Ok(sum)
}

fn counted(words: &[&str]) -> Result<Tally> {
    let name = words.join(" ");
    Ok(match exec(&mut task(words)?) {
        Ok(()) => {
            println!("test {name} ... ok");
            Tally::PASS
        }
        Err(error) => {
            println!("test {name} ... FAILED: {error:#}");
            Tally::FAIL
        }
    })
}
