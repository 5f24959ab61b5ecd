//! Where the API server is, and who we are there.

use std::{env, error::Error, fmt, io, path::PathBuf, time::Duration};

use anyhow::{Context as _, Result, anyhow, bail};
use kube::{
    Client, Config,
    client::AuthError,
    config::{ExecConfig, KubeConfigOptions, Kubeconfig},
};

/// How long a connection to the API server may take.
const CONNECT: Duration = Duration::from_secs(10);
/// How long the API server may be silent in the middle of an answer. On a watch it sends a bookmark
/// every minute; a peer that vanished without a word is given up after this.
const SILENCE: Duration = Duration::from_secs(150);

/// Where the API server is.
#[derive(Clone, Debug, Default)]
pub struct ApiAccess {
    /// A kubeconfig file; none: `$KUBECONFIG` or `~/.kube/config`, or the pod's service account.
    pub kubeconfig: Option<PathBuf>,
    /// A context of that file; none: its current one.
    pub context: Option<String>,
}

/// An API server that may be asked.
#[derive(Clone)]
pub struct ApiServer {
    /// What asks it.
    pub client: Client,
    pub(super) plugin: Option<Plugin>,
}

impl ApiAccess {
    /// The API server. Says nothing about whether it answers.
    pub async fn server(&self) -> Result<ApiServer> {
        let options =
            KubeConfigOptions { context: self.context.clone(), ..KubeConfigOptions::default() };
        let mut config = match &self.kubeconfig {
            Some(path) => {
                let file = Kubeconfig::read_from(path)
                    .with_context(|| format!("cannot use the kubeconfig {}", path.display()))?;
                Config::from_custom_kubeconfig(file, &options)
                    .await
                    .with_context(|| format!("cannot use the kubeconfig {}", path.display()))?
            }
            None if self.context.is_some() => Config::from_kubeconfig(&options)
                .await
                .context("cannot use the kubeconfig that --context refers to")?,
            // The error says each of its causes twice.
            None => Config::infer().await.map_err(|error| {
                anyhow!(
                    "no access to an API server: give --kubeconfig, set KUBECONFIG, or run in a pod \
                     with a service account ({error})"
                )
            })?,
        };
        config.connect_timeout = Some(CONNECT);
        config.read_timeout = Some(SILENCE);
        config.reset_reader_on_write = true;
        tracing::info!(server = %config.cluster_url, "API server");
        let plugin = config.auth_info.exec.clone().map(|exec| self.plugin(exec));
        match (Client::try_from(config), plugin) {
            (Ok(client), plugin) => Ok(ApiServer { client, plugin }),
            (Err(kube::Error::Auth(error)), Some(plugin)) => {
                let cause = plugin.explain(&error);
                bail!("{cause}; {}", cause.remedy)
            }
            (Err(error), _) => Err(error).context("cannot make a client of the API access"),
        }
    }

    fn plugin(&self, exec: ExecConfig) -> Plugin {
        let (file, read) = match &self.kubeconfig {
            Some(path) => (path.display().to_string(), Kubeconfig::read_from(path)),
            None => (
                env::var("KUBECONFIG").unwrap_or_else(|_| "~/.kube/config".to_owned()),
                Kubeconfig::read(),
            ),
        };
        let user = read.ok().and_then(|file| {
            let name = self.context.as_ref().or(file.current_context.as_ref())?;
            let named = file.contexts.iter().find(|context| context.name == *name)?;
            named.context.as_ref()?.user.clone()
        });
        Plugin { exec, file, user: user.unwrap_or_default() }
    }
}

/// Why the API server cannot be asked, or does not answer.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Cause {
    /// What went wrong: the same words, as long as it is the same.
    pub(super) what: String,
    /// What a program said of it, which may be other words each time.
    pub(super) said: String,
    /// What to do about it.
    pub(super) remedy: String,
}

impl Cause {
    pub(super) const fn new(what: String, remedy: String) -> Self {
        Self { what, said: String::new(), remedy }
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)?;
        if self.said.is_empty() { Ok(()) } else { write!(f, ": {}", self.said) }
    }
}

/// A program that gets us our credentials.
#[derive(Clone, Debug)]
pub(super) struct Plugin {
    exec: ExecConfig,
    /// The kubeconfig that names it.
    file: String,
    /// The user in that.
    user: String,
}

impl Plugin {
    /// What is wrong with it, if that is the cause of the error.
    pub(super) fn blamed(&self, error: &(dyn Error + 'static)) -> Option<Cause> {
        let mut cause = Some(error);
        while let Some(error) = cause {
            if let Some(error) = error.downcast_ref() {
                return Some(self.explain(error));
            }
            cause = error.source();
        }
        None
    }

    /// What is wrong with it, and the remedy.
    fn explain(&self, error: &AuthError) -> Cause {
        let Self { exec, file, user } = self;
        let command = exec.command.as_deref().unwrap_or_default();
        let words: Vec<&str> =
            [command].into_iter().chain(exec.args.iter().flatten().map(String::as_str)).collect();
        let field = format!("users[{user}].user.exec of the kubeconfig {file}");
        let plugin = format!("the credential plugin `{}` ({field})", words.join(" "));
        let by_hand = "run it by hand to see what it lacks".to_owned();
        match error {
            AuthError::AuthExecStart(error) => {
                let remedy = match error.kind() {
                    io::ErrorKind::NotFound if command.contains('/') => {
                        format!("install it there, or correct {field}")
                    }
                    io::ErrorKind::NotFound => format!(
                        "install it in one of the directories of PATH ({}), or give its whole path in \
                         {field}",
                        env::var("PATH").unwrap_or_default()
                    ),
                    _ => format!("make it a program that may be run, or correct {field}"),
                };
                let hint = exec.install_hint.as_deref().map_or_else(String::new, |hint| {
                    format!(". The kubeconfig says: {}", hint.trim())
                });
                Cause::new(format!("cannot run {plugin}: {error}"), remedy + &hint)
            }
            AuthError::AuthExecRun { out, .. } => {
                let cause = Cause::new(format!("{plugin} failed ({})", out.status), by_hand);
                Cause { said: String::from_utf8_lossy(&out.stderr).trim().to_owned(), ..cause }
            }
            other => Cause::new(format!("{plugin} gave no credentials: {other}"), by_hand),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        os::unix::process::ExitStatusExt as _,
        process::{ExitStatus, Output},
        time::Instant,
    };

    use super::*;
    use crate::sources::lasting::Lasting;

    /// Many write the time in front of what they say.
    #[test]
    fn a_plugin_that_says_something_else_each_time_is_told_once() {
        let exec = serde_json::json!({ "command": "plugin", "args": ["get", "token"] });
        let plugin = Plugin {
            exec: serde_json::from_value(exec).unwrap(),
            file: "/config".to_owned(),
            user: "ops".to_owned(),
        };
        let start = Instant::now();
        let mut trouble = Lasting::default();
        let mut told = |second: u64, code: i32| {
            let stderr = format!("12:00:{second:02} no session\n").into_bytes();
            let status = ExitStatus::from_raw(code << 8);
            let out = Box::new(Output { status, stdout: vec![], stderr });
            let error = AuthError::AuthExecRun { cmd: "plugin".to_owned(), out };
            let cause = plugin.blamed(&error).unwrap();
            let now = start + Duration::from_secs(second);
            trouble.is_due(&cause.what, now).then(|| cause.to_string())
        };
        let text = |time: &str, code: i32| {
            format!(
                "the credential plugin `plugin get token` (users[ops].user.exec of the kubeconfig \
                 /config) failed (exit status: {code}): {time} no session"
            )
        };
        assert_eq!(told(0, 1), Some(text("12:00:00", 1)));
        assert_eq!(told(1, 1), None);
        assert_eq!(told(2, 2), Some(text("12:00:02", 2)), "it ends otherwise");
        assert_eq!(told(3, 2), None);
    }
}
