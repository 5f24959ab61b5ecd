//! `walkthrough`: what the usual tutorials do to teach Services, with nothing but kubectl and curl, and
//! a page that is made of it.
//!
//! `walkthrough/script.md` is both: the page's text, and the commands with what must come of them.
//! Played, each command gets its answer; with `--page FILE` that is written down.

mod page;
mod script;
mod shell;

use std::{
    fs,
    os::unix::fs::{MetadataExt as _, chown},
    path::Path,
};

use anyhow::{Context as _, Result, ensure};
use tools::exec::say;

use self::{script::Part, shell::Shell};
use super::{Stage, stage::PODS};
use crate::cluster::Proxy;

const SCRIPT: &str = include_str!("walkthrough/script.md");

pub(super) fn play(stage: &Stage<'_>) -> Result<()> {
    let other = format!("{}-other", stage.namespace);
    let text = script_in(&stage.namespace, &other);
    let parts = script::parse(&text)?;
    let socklb = stage.cluster.proxy() == Proxy::Socklb;
    ensure!(
        socklb || stage.args.page.is_none(),
        "the page is about socklb, and the cluster has {}",
        stage.cluster.proxy()
    );
    sweep(stage, &other)?;
    let played = perform(stage, &parts, socklb);
    let swept = sweep(stage, &other);
    let page = played?;
    swept?;
    if let Some(file) = &stage.args.page {
        let page = page.replace("{head}", &page::head(stage));
        write(file, &page)?;
        say!("   Written: {}", file.display());
    }
    Ok(())
}

fn script_in(namespace: &str, other: &str) -> String {
    SCRIPT.replace("{namespace}", namespace).replace("{other}", other)
}

/// The text with the answers in it.
fn perform(stage: &Stage<'_>, parts: &[Part<'_>], socklb: bool) -> Result<String> {
    let mut shell = Shell::new(stage)?;
    let mut page = String::new();
    for part in parts {
        match part {
            Part::Text(line) => {
                if let Some(title) = line.strip_prefix("## ") {
                    stage.note(title);
                }
                page::text(&mut page, line);
            }
            Part::File { name, lines } => {
                shell.write(name, lines)?;
                page::file(&mut page, name, lines);
            }
            Part::Steps { socklb_only: true, .. } if !socklb => {}
            Part::Steps { steps, .. } => {
                let mut answered = Vec::new();
                for step in steps {
                    let answer = shell.run(step).with_context(|| {
                        format!("line {} of the script: `{}`", step.line, step.command)
                    })?;
                    answered.push((step, answer));
                }
                page::steps(&mut page, &answered);
            }
        }
    }
    Ok(page)
}

/// The second namespace; the first one is the stage's.
fn sweep(stage: &Stage<'_>, namespace: &str) -> Result<()> {
    let limit = format!("--timeout={}s", PODS.as_secs());
    let words = ["delete", "namespace", namespace, "--ignore-not-found", &limit];
    stage.kubectl_everywhere(&words).map(drop)
}

/// For whom the directory belongs to: we may be root, in somebody's work tree.
fn write(file: &Path, page: &str) -> Result<()> {
    fs::write(file, page).with_context(|| format!("cannot write {}", file.display()))?;
    let directory = file.parent().filter(|directory| !directory.as_os_str().is_empty());
    let owner = fs::metadata(directory.unwrap_or(Path::new(".")))?;
    chown(file, Some(owner.uid()), Some(owner.gid()))
        .with_context(|| format!("cannot give {} away", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tools::cargo::workspace;

    #[test]
    fn the_page_is_made_of_this_script() {
        let text = script_in("story-walkthrough", "story-walkthrough-other");
        let parts = script::parse(&text).unwrap();
        let page = fs::read_to_string(workspace().join("docs/walkthrough.md")).unwrap();
        let mut lines = page.lines();
        let mut expect = |wanted: &str| {
            let again = "`cargo xtask cluster test walkthrough --page docs/walkthrough.md`";
            assert!(lines.any(|line| line == wanted), "not there: {wanted}\nOnce more: {again}");
        };
        for part in &parts {
            match part {
                Part::Text(line) if line.contains("{head}") => {}
                Part::Text(line) => expect(line),
                Part::File { lines, .. } => lines.iter().copied().for_each(&mut expect),
                Part::Steps { steps, .. } => {
                    for step in steps.iter().filter(|step| !step.hidden) {
                        format!("{}{}", step.prompt(), step.command).lines().for_each(&mut expect);
                    }
                }
            }
        }
    }
}
