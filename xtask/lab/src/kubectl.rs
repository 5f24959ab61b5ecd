//! kubectl, however it has to be called.

use std::{
    ffi::OsString,
    process::{Command, Output, Stdio},
};

use anyhow::{Context as _, Result};
use tools::exec::{answer, feed, show};

/// The words before those that say what to do: `kubectl --context kind-socklb`.
pub(crate) struct Kubectl(Vec<OsString>);

impl Kubectl {
    pub(crate) fn new<W: Into<OsString>>(words: impl IntoIterator<Item = W>) -> Self {
        Self(words.into_iter().map(Into::into).collect())
    }

    /// As this command calls it.
    pub(crate) fn like(command: &Command) -> Self {
        let program = std::iter::once(command.get_program());
        Self::new(program.chain(command.get_args()))
    }

    /// The same in a namespace.
    pub(crate) fn within(&self, namespace: &str) -> Self {
        let mut words = self.0.clone();
        words.push(format!("--namespace={namespace}").into());
        Self(words)
    }

    /// The same, given up after so many seconds.
    pub(crate) fn at_most(&self, seconds: u32) -> Self {
        let limit = ["timeout".into(), "--foreground".into(), seconds.to_string().into()];
        Self(limit.into_iter().chain(self.0.iter().cloned()).collect())
    }

    pub(crate) fn command(&self, words: &[&str]) -> Command {
        let mut prefix = self.0.iter();
        let mut command =
            Command::new(prefix.next().map_or("kubectl".as_ref(), OsString::as_os_str));
        command.args(prefix).args(words);
        command
    }

    /// What it did, well or not.
    pub(crate) fn output(&self, words: &[&str]) -> Result<Output> {
        let mut command = self.command(words);
        command.stdin(Stdio::null());
        command.output().with_context(|| format!("cannot start `{}`", show(&command)))
    }

    /// What it says. Fails with its own words.
    pub(crate) fn answer(&self, words: &[&str]) -> Result<String> {
        answer(self.command(words).stdin(Stdio::null()))
    }

    pub(crate) fn apply(&self, yaml: &str) -> Result<()> {
        feed(&mut self.command(&["apply", "-f", "-"]), yaml)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_come_after_the_prefix() {
        let kubectl = Kubectl::new(["echo", "--context", "c"]);
        assert_eq!(kubectl.answer(&["get", "pods"]).unwrap(), "--context c get pods\n");
    }

    #[test]
    fn nothing_is_waited_for_for_ever() {
        let kubectl = Kubectl::new(["sleep"]).at_most(1);
        let error = kubectl.answer(&["60"]).unwrap_err().to_string();
        assert!(error.contains("exit status: 124"), "{error}");
        let kubectl = Kubectl::new(["echo"]).at_most(60);
        assert_eq!(kubectl.answer(&["pods"]).unwrap(), "pods\n");
    }

    #[test]
    fn a_failure_has_its_words() {
        let kubectl = Kubectl::new(["sh", "-c", "cat >&2; echo no >&2; exit 3"]);
        let error = kubectl.answer(&[]).unwrap_err().to_string();
        assert!(error.ends_with("exit status: 3: no"), "{error}");
        let error = kubectl.apply("yaml").unwrap_err().to_string();
        assert!(error.ends_with("yamlno"), "{error}");
        assert!(Kubectl::new(["no-such-program"]).answer(&[]).is_err());
    }
}
