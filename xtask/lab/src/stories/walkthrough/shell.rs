//! The shells in which a script is played: one where kubectl is, and one on each node.

use std::{
    collections::BTreeMap,
    fs,
    io::Write as _,
    os::unix::process::CommandExt as _,
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow};
use tools::{
    cache::Scratch,
    wait::{Not, until},
};

use super::script::Step;
use crate::{
    cluster::{Cluster, HOME},
    stories::Stage,
};

/// For how long what does not pass its tests is repeated.
const SOON: Duration = Duration::from_secs(90);
/// Seconds that a command may take, and one in the background.
const LIMIT: &str = "200";
const BACKGROUND: &str = "600";

pub(super) struct Shell<'a> {
    cluster: &'a Cluster,
    /// Files of the script are here, and the shell is.
    directory: Scratch,
    variables: BTreeMap<String, String>,
    background: Vec<Child>,
}

struct Answer {
    text: String,
    /// As shells have it.
    code: i32,
}

impl<'a> Shell<'a> {
    pub(super) fn new(stage: &Stage<'a>) -> Result<Self> {
        let cluster = stage.cluster;
        // Not in /tmp: there are the rights of an administrator in it, and others could be there first.
        let directory = Scratch::new(Path::new(HOME))?;
        // A copy, in which a script may choose its namespace.
        let config = stage.kubectl_everywhere(&["config", "view", "--raw", "--flatten"])?;
        let file = directory.0.join("kubeconfig");
        fs::write(&file, config).with_context(|| format!("cannot write {}", file.display()))?;
        let proxy = cluster.proxy().to_string();
        let variables = BTreeMap::from([("PROXY".to_owned(), proxy)]);
        Ok(Self { cluster, directory, variables, background: Vec::new() })
    }

    pub(super) fn write(&self, name: &str, lines: &[&str]) -> Result<()> {
        fs::write(self.directory.0.join(name), lines.join("\n"))
            .with_context(|| format!("cannot write {name}"))
    }

    /// What it answered when it passed its tests.
    pub(super) fn run(&mut self, step: &Step<'_>) -> Result<String> {
        if let Some(line) = step.background() {
            let mut command = self.command(step, &["timeout", "--foreground", BACKGROUND], line)?;
            command.stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
            self.background.push(command.spawn()?);
            return Ok(String::new());
        }
        let limit = if step.tests.is_empty() { Duration::ZERO } else { SOON };
        let text = until("success", limit, &[], || {
            let answer = self.answer(step)?;
            match self.judge(step, &answer) {
                Ok(()) => Ok(answer.text),
                Err(reason) => Err(Not::Yet(format!("{reason}: {}", answer.text))),
            }
        })?;
        Ok(self.keep(step, text))
    }

    fn answer(&self, step: &Step<'_>) -> Result<Answer> {
        let mut line = format!("exec 2>&1; {}", step.command);
        if let Some(name) = step.variable() {
            line = format!("{line} && printf %s \"${name}\"");
        }
        let output = self.command(step, &["timeout", LIMIT], &line)?.output()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let code = output.status.code().with_context(|| anyhow!("{}: {text}", output.status))?;
        Ok(Answer { text, code })
    }

    /// A shell with this line.
    fn command(&self, step: &Step<'_>, limit: &[&str], line: &str) -> Result<Command> {
        let words = [limit, &["sh", "-c", line]].concat();
        let mut command = if let Some(node) = step.node {
            self.cluster.exec_in(node, &words)?
        } else {
            let mut command = self.cluster.in_control(Path::new(words[0]))?;
            command.args(&words[1..]).env("KUBECONFIG", self.directory.0.join("kubeconfig"));
            command
        };
        command.envs(&self.variables).current_dir(&self.directory.0).stdin(Stdio::null());
        Ok(command)
    }

    fn judge(&self, step: &Step<'_>, answer: &Answer) -> Result<(), String> {
        let code = answer.code;
        if code != 0 && !step.tests.iter().any(|test| test.contains("$code")) {
            return Err(format!("exit code {code}"));
        }
        if step.variable().is_some() && answer.text.is_empty() {
            return Err("the variable is empty".to_owned());
        }
        for test in &step.tests {
            let passes = self.passes(test, answer).map_err(|error| format!("{error:#}"))?;
            if !passes {
                return Err(format!("exit code {code}; not so is `{test}`"));
            }
        }
        Ok(())
    }

    fn passes(&self, test: &str, answer: &Answer) -> Result<bool> {
        let mut command = Command::new("sh");
        command.args(["-c", test]).envs(&self.variables).env("code", answer.code.to_string());
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            // It need not read to the end.
            drop(stdin.write_all(format!("{}\n", answer.text.trim_end()).as_bytes()));
        }
        Ok(child.wait()?.success())
    }

    fn keep(&mut self, step: &Step<'_>, text: String) -> String {
        match step.variable() {
            Some(name) => {
                self.variables.insert(name.to_owned(), text);
                String::new()
            }
            None => text,
        }
    }
}

impl Drop for Shell<'_> {
    fn drop(&mut self) {
        for child in &mut self.background {
            let group = format!("-{}", child.id());
            let _ = Command::new("kill").args(["-KILL", "--", &group]).status();
            let _ = child.wait();
        }
    }
}
