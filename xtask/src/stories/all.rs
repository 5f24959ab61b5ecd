//! `cluster test --all`: from nothing to nothing. A kube-proxy's cluster and socklb's, one after the
//! other; in the latter all stories and Kubernetes' own tests that every cluster must pass.

use std::{env, process::Command};

use anyhow::{Result, bail};

use crate::{
    exec::{ask, exec},
    root::as_root,
    test::{Failures, Tally, last_count},
};

/// `cargo xtask …`, as this very program.
fn task(words: &[&str]) -> Result<Command> {
    let mut task = Command::new(env::current_exe()?);
    task.args(words);
    Ok(task)
}

pub(super) fn run(api_away_seconds: u64) -> Result<Tally> {
    if ask(&mut as_root(task(&["cluster", "shape"])?)).is_some() {
        bail!("a cluster is up, which this would take away: `cargo xtask cluster down` first");
    }
    let seconds = format!("--api-away-seconds={api_away_seconds}");
    let mut total = in_cluster("kube-proxy:nftables", &[&["cluster", "test", "proxy"]])?;
    total += in_cluster(
        "socklb",
        &[&["cluster", "test", &seconds], &["e2e", "--focus", r"\[Conformance\]"]],
    )?;
    Ok(total)
}

/// Makes a cluster, does this in it, and takes it away. Each of both counts as a test.
fn in_cluster(proxy: &str, tasks: &[&[&str]]) -> Result<Tally> {
    let mut sum = Tally::default();
    let up = counted(&["cluster", "up", "--proxy", proxy])?;
    sum += up;
    if up == Tally::PASS {
        for words in tasks {
            // The cluster goes in any case.
            let mut failures = Failures::default();
            let count = |mut task| last_count(&mut task, &mut failures);
            sum += task(words).and_then(count).unwrap_or_else(|error| {
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
