//! `kube-demo`: the demo in a real cluster in which socklb runs: Deployment, Service, a client, and
//! what happens when pods come and go. It needs kubectl and nothing else, so it is the same in kind, in
//! a cluster on this machine and in anybody's own.
//!
//! All of it is in one namespace, which is taken away in the end, and at the start if an earlier demo
//! was stopped half-way.

mod client;
mod kubectl;
mod spread;

use std::{
    collections::BTreeSet,
    ffi::OsString,
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

pub(crate) use self::kubectl::Kubectl;
use self::{client::Load, spread::Spread};
use crate::{
    exec::say,
    image::pods::AGNHOST,
    telling::{self, paragraph},
    wait::{Not, until},
};

/// Show the main job in a cluster in which socklb runs.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    choices: Choices,
    /// How to call kubectl: `-- kubectl --context mine` [default: kubectl].
    #[arg(last = true, value_name = "KUBECTL")]
    kubectl: Vec<OsString>,
}

/// What may differ from place to place.
#[derive(clap::Args)]
pub(crate) struct Choices {
    /// The image of backends and client: agnhost.
    #[arg(long, value_name = "IMAGE", default_value = AGNHOST)]
    agnhost: String,
    /// The namespace in which socklb was installed.
    #[arg(long, value_name = "NAME", default_value = AGENTS)]
    agents: String,
}

impl Default for Choices {
    fn default() -> Self {
        Self { agnhost: AGNHOST.to_owned(), agents: AGENTS.to_owned() }
    }
}

const AGENTS: &str = "kube-system";
const NAMESPACE: &str = "socklb-demo";
const OBJECTS: &str = include_str!("kube_demo/objects.yaml");
/// Most time that pods get to come or to go.
const PODS: Duration = Duration::from_secs(180);
/// Most time until what pods are there is what connections reach.
const SETTLED: Duration = Duration::from_secs(60);
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

struct Stage<'a> {
    kubectl: &'a Kubectl,
    choices: &'a Choices,
}

/// A pod of the Deployment that is ready and not about to go.
struct Pod {
    name: String,
    address: String,
    node: String,
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
        self.kubectl.apply(&objects)?;
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

    fn scale(&self, replicas: usize) -> Result<()> {
        self.shown(&["scale", "deployment/web", &format!("--replicas={replicas}")])?;
        self.rolled_out()?;
        until(&format!("{replicas} pods"), PODS, &[], || match self.pods()?.len() {
            count if count == replicas => Ok(()),
            count => Err(Not::Yet(format!("there are {count}"))),
        })
    }

    fn rolled_out(&self) -> Result<()> {
        let words = ["rollout", "status", "deployment/web", "--timeout=180s"];
        self.kubectl.answer(&within(&words)).map(drop)
    }

    /// Makes requests until those pods answer that are there, and nobody else, and shows them.
    fn settle(&self) -> Result<usize> {
        let names = self.names()?;
        self.settle_as(|spread| spread.is_over(&names)).map(|spread| spread.total())
    }

    fn settle_as(&self, is_so: impl Fn(&Spread) -> Result<(), String>) -> Result<Spread> {
        let spread = until("requests to go where they are to go", SETTLED, &[], || {
            let spread = client::requests(self.kubectl)?;
            match is_so(&spread) {
                Ok(()) => Ok(spread),
                Err(reason) => Err(Not::Yet(format!("{reason}\n{spread}"))),
            }
        })?;
        show_spread(&spread);
        Ok(spread)
    }

    fn names(&self) -> Result<BTreeSet<String>> {
        Ok(self.pods()?.into_iter().map(|pod| pod.name).collect())
    }

    fn pods(&self) -> Result<Vec<Pod>> {
        let list = self.kubectl.answer(&within(&["get", "pods", "-l", "app=web", "-o", "json"]))?;
        pods(&list)
    }

    fn show_pods(&self) -> Result<()> {
        for Pod { name, address, node } in self.pods()? {
            say!("   {name:28} {address:16} {node}");
        }
        Ok(())
    }

    fn text(&self, object: &str, path: &str) -> Result<String> {
        let output = format!("-o=jsonpath={path}");
        let text = self.kubectl.answer(&within(&["get", object, &output]))?;
        ensure!(!text.is_empty(), "{object} has no {path}");
        Ok(text)
    }

    /// Runs a command in the namespace, and shows it.
    fn shown(&self, words: &[&str]) -> Result<()> {
        say!("\n   $ kubectl {}", words.join(" "));
        self.kubectl.answer(&within(words)).map(drop)
    }

    fn explain(&self, node: &str, service: &str) -> Result<()> {
        let addresses = self.pods()?.into_iter().map(|pod| pod.address).collect::<Vec<_>>();
        let mentions: Vec<_> = addresses.iter().map(String::as_str).collect();
        self.lbctl(node, &["explain", service], 0, &mentions)
    }

    /// Shows what lbctl says on a node, with this exit code and these words in it.
    fn lbctl(&self, node: &str, words: &[&str], code: i32, mentions: &[&str]) -> Result<()> {
        let on_node = format!("--field-selector=spec.nodeName={node},status.phase=Running");
        let of_socklb = "app.kubernetes.io/name=socklb";
        let agents = self.choices.agents.as_str();
        let find = ["-n", agents, "get", "pods", "-l", of_socklb, &on_node, "-o", "name"];
        let found = self.kubectl.answer(&find)?;
        let agent = found.lines().next().with_context(|| {
            format!(
                "no pod with {of_socklb} runs on {node} in {agents}: is socklb installed there?"
            )
        })?;
        let (line, command) =
            (words.join(" "), [&["-n", agents, "exec", agent, "--", "lbctl"], words].concat());
        say!("\n   $ kubectl -n {agents} exec {agent} -- lbctl {line}");
        let output = self.kubectl.output(&command)?;
        telling::answer(&format!("lbctl {line}"), &output, code, mentions)
    }

    fn sweep(&self) -> Result<()> {
        let words = ["delete", "namespace", NAMESPACE, "--ignore-not-found", "--timeout=120s"];
        self.kubectl.answer(&words).map(drop)
    }

    /// The cluster may say why.
    fn show_troubles(&self) {
        let looks: [&[&str]; 2] =
            [&["get", "pods", "-o", "wide"], &["get", "events", "--field-selector=type!=Normal"]];
        for words in looks {
            let said = self.kubectl.answer(&within(words)).unwrap_or_default();
            for line in said.lines() {
                eprintln!("   | {line}");
            }
        }
    }
}

/// In the namespace of the demo.
fn within<'a>(words: &[&'a str]) -> Vec<&'a str> {
    [&["-n", NAMESPACE], words].concat()
}

fn pods(list: &str) -> Result<Vec<Pod>> {
    let list: Value = serde_json::from_str(list).context("kubectl printed no JSON")?;
    let items = list["items"].as_array().context("kubectl printed no list")?;
    let pod = |item: &Value| {
        let text = |pointer| item.pointer(pointer)?.as_str().map(str::to_owned);
        let ready = item
            .pointer("/status/conditions")?
            .as_array()?
            .iter()
            .any(|condition| condition["type"] == "Ready" && condition["status"] == "True");
        let stays = item.pointer("/metadata/deletionTimestamp").is_none();
        (ready && stays).then_some(Pod {
            name: text("/metadata/name")?,
            address: text("/status/podIP")?,
            node: text("/spec/nodeName")?,
        })
    };
    Ok(items.iter().filter_map(pod).collect())
}

/// The Service's address with its port, as lbctl takes it.
fn frontend(address: &str) -> String {
    if address.contains(':') { format!("[{address}]:80") } else { format!("{address}:80") }
}

fn show_spread(spread: &Spread) {
    telling::requests(spread.total(), "web", spread);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_that_go_or_are_not_ready_do_not_count() {
        let pod = |name: &str, ready: &str, more: &str| {
            format!(
                r#"{{"metadata":{{"name":"{name}"{more}}},"spec":{{"nodeName":"n1"}},"status":{{
                "podIP":"10.0.0.1","conditions":[{{"type":"Ready","status":"{ready}"}}]}}}}"#
            )
        };
        let list = format!(
            r#"{{"items":[{},{},{}]}}"#,
            pod("stays", "True", ""),
            pod("starts", "False", ""),
            pod("goes", "True", r#","deletionTimestamp":"2026-01-01T00:00:00Z""#)
        );
        let names: Vec<_> = pods(&list).unwrap().into_iter().map(|pod| pod.name).collect();
        assert_eq!(names, ["stays"]);
        assert!(pods("").is_err());
    }

    #[test]
    fn frontends_of_both_families() {
        assert_eq!(frontend("10.96.0.10"), "10.96.0.10:80");
        assert_eq!(frontend("fd00:96::a"), "[fd00:96::a]:80");
    }

    #[test]
    fn everything_is_in_the_namespace() {
        let documents = OBJECTS.split("\n---\n");
        for document in documents.skip(1) {
            assert!(document.contains("namespace: $NAMESPACE"), "{document}");
        }
    }
}
