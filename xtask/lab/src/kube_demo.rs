//! `kube-demo`: the demo in a real cluster in which socklb runs: Deployment, Service, a client, and
//! what happens when pods come and go. It needs kubectl and nothing else, so it is the same in kind, in
//! a cluster on this machine and in anybody's own.
//!
//! All of it is in one namespace, which is taken away in the end, and at the start if an earlier demo
//! was stopped half-way.

mod client;
mod place;
mod spread;
mod stage;

use std::{ffi::OsString, process::ExitCode, time::Instant};

use anyhow::{Context as _, Result, ensure};
use tools::{exec::say, telling::paragraph};

pub(crate) use self::place::Choices;
use self::{
    client::Load,
    place::{NAMESPACE, within},
    stage::{PODS, Stage, frontend, show_spread},
};
use crate::kubectl::Kubectl;

/// Show the main job in a cluster in which socklb runs.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    choices: Choices,
    /// How to call kubectl: `-- kubectl --context mine` [default: kubectl].
    #[arg(last = true, value_name = "KUBECTL")]
    kubectl: Vec<OsString>,
}

const OBJECTS: &str = include_str!("kube_demo/objects.yaml");
/// How curl calls a refused connection.
const REFUSED: u8 = 7;

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let kubectl = match &args.kubectl[..] {
        [] => Kubectl::new(["kubectl"]),
        words => Kubectl::new(words),
    };
    play(&kubectl, &args.choices)
}

/// Shows it, by this kubectl.
pub(crate) fn play(kubectl: &Kubectl, choices: &Choices) -> Result<ExitCode> {
    let stage = Stage { kubectl, choices };
    stage.sweep().context("cannot remove what an earlier demo had left")?;
    let start = Instant::now();
    let played = stage.acts();
    if played.is_err() {
        stage.show_troubles();
    }
    let swept = stage.sweep().context("cannot remove the namespace of the demo");
    let requests = played?;
    swept?;
    let seconds = start.elapsed().as_secs();
    say!(
        "\nEverything was as it should be: {requests} requests, {seconds} s. Removed the namespace."
    );
    Ok(ExitCode::SUCCESS)
}

impl Stage<'_> {
    fn acts(&self) -> Result<usize> {
        let mut requests = 0;
        let (client, service) = self.two_pods(&mut requests)?;
        self.five_pods(&client, &mut requests)?;
        self.rolling_update(&client, &mut requests)?;
        self.one_pod(&client, &service, &mut requests)?;
        self.no_pod(&client, &service, &mut requests)?;
        self.lbctl(&client, &["status"], 0, &["connect4"])?;
        Ok(requests)
    }

    fn two_pods(&self, requests: &mut usize) -> Result<(String, String)> {
        say!("\nsocklb in a cluster: a connection to a Service goes straight to one of its pods.");
        say!("\n1. Two pods");
        say!("\n   $ kubectl apply -f demo.yaml      # in the namespace {NAMESPACE}\n");
        let objects =
            OBJECTS.replace("$NAMESPACE", NAMESPACE).replace("$IMAGE", &self.choices.agnhost);
        let (namespace, rest) = objects.split_once("\n---\n").context("more than one object")?;
        self.kubectl.apply(namespace)?;
        self.await_account()?;
        self.kubectl.apply(rest)?;
        self.rolled_out()?;
        self.kubectl.answer(&within(&[
            "wait",
            "--for=condition=Ready",
            "pod/client",
            "--timeout=180s",
        ]))?;
        let client = self.text("pod/client", "{.spec.nodeName}")?;
        let address = self.text("service/web", "{.spec.clusterIP}")?;
        self.show_pods()?;
        paragraph(&[
            &format!(
                "A client on {client} asks http://web/: the resolver, itself behind a Service,"
            ),
            &format!(
                "makes {address} of it, and no packet ever goes there. In connect() the socket"
            ),
            "gets the address of one pod, once; then it is an ordinary connection to that pod.",
        ]);
        *requests += self.settle()?;
        let service = frontend(&address);
        self.lbctl(&client, &["get", "services", "web", "-n", NAMESPACE], 0, &["web", &address])?;
        self.explain(&client, &service)?;
        Ok((client, service))
    }

    fn five_pods(&self, client: &str, requests: &mut usize) -> Result<()> {
        say!("\n2. Five pods");
        self.scale(5)?;
        *requests += self.settle()?;
        let addresses = self.pods()?.into_iter().map(|pod| pod.address).collect::<Vec<_>>();
        let mentions: Vec<_> = addresses.iter().map(String::as_str).collect();
        self.lbctl(client, &["get", "backends", "web", "-n", NAMESPACE], 0, &mentions)
    }

    fn rolling_update(&self, client: &str, requests: &mut usize) -> Result<()> {
        say!("\n3. A rolling update, while the client makes requests all the time");
        let before = self.names()?;
        let load = Load::start(self.kubectl)?;
        load.await_requests(PODS)?;
        self.shown(&["rollout", "restart", "deployment/web"])?;
        self.shown(&["rollout", "status", "deployment/web", "--timeout=180s"])?;
        let after = self.names()?;
        let spread = load.stop(self.kubectl)?;
        show_spread(&spread);
        spread.all_answered().map_err(anyhow::Error::msg)?;
        ensure!(
            before.is_disjoint(&after),
            "a pod is there before and after: {before:?}, {after:?}"
        );
        for (names, when) in [(&before, "before"), (&after, "after")] {
            let answered = names.iter().any(|name| spread.answered(name));
            ensure!(answered, "of the pods that were there {when}, none answered: {names:?}");
        }
        *requests += spread.total();
        paragraph(&["Each pod was replaced, and no request failed."]);
        *requests += self.settle()?;
        self.lbctl(client, &["get", "backends", "web", "-n", NAMESPACE], 0, &["web"])
    }

    fn one_pod(&self, client: &str, service: &str, requests: &mut usize) -> Result<()> {
        say!("\n4. One pod");
        self.scale(1)?;
        *requests += self.settle()?;
        self.explain(client, service)
    }

    fn no_pod(&self, client: &str, service: &str, requests: &mut usize) -> Result<()> {
        say!("\n5. No pod");
        self.scale(0)?;
        let spread = self.settle_as(|spread| spread.is_failure(REFUSED))?;
        *requests += spread.total();
        paragraph(&["Refused by connect() itself, at once: nobody waits for a time-out."]);
        self.lbctl(client, &["explain", service], 1, &["ECONNREFUSED"])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_is_in_the_namespace() {
        let documents = OBJECTS.split("\n---\n");
        for document in documents.skip(1) {
            assert!(document.contains("namespace: $NAMESPACE"), "{document}");
        }
    }
}
