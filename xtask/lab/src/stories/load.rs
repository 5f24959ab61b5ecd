//! Requests by the clock, out of a pod, each on a connection of its own.

use std::{cmp::Reverse, collections::BTreeSet, time::Duration};

use anyhow::{Result, bail, ensure};
use serde_json::{Value, json};
use tools::exec::say;

use super::stage::{PODS, Stage, soon};
use crate::{cluster::Container, image::socklb::LOAD};

const PROGRAM: &str = "socklb-load";
/// Longer than any story: it is stopped.
const LONG: u64 = 3600;
/// Milliseconds after which a request counts as lost. What goes to a pod that is gone fails sooner.
const TIMEOUT: &str = "10000";
/// How many failures are shown one by one.
const SHOWN: usize = 12;

pub(crate) struct Order<'a> {
    pub(crate) name: &'a str,
    pub(crate) to: &'a str,
    pub(crate) rate: u64,
    /// `second` or `request`: how often the name is asked for.
    pub(crate) resolve: &'a str,
    /// On which node; any, if it is empty.
    pub(crate) node: &'a str,
}

/// A load that runs.
pub(crate) struct Load<'a> {
    stage: &'a Stage<'a>,
    rate: u64,
    container: Container,
}

impl<'a> Load<'a> {
    /// Starts it, and waits until requests are answered. From the first answer on each counts.
    pub(crate) fn start(stage: &'a Stage<'a>, order: &Order<'_>) -> Result<Self> {
        let Order { name, to, rate, resolve, node } = order;
        let mut spec = json!({
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 1,
            "enableServiceLinks": false,
            "containers": [{
                "name": "load",
                "image": LOAD,
                "imagePullPolicy": "IfNotPresent",
                "args": [
                    "load", "--to", to, "--rate", rate.to_string(), "--resolve", resolve,
                    "--seconds", LONG.to_string(), "--timeout", TIMEOUT,
                    "--wait", PODS.as_secs().to_string(),
                ],
            }],
        });
        if !node.is_empty() {
            spec["nodeName"] = json!(node);
        }
        let metadata = json!({ "name": name, "labels": { "app": name } });
        let pod = json!({ "apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec });
        stage.apply(&pod.to_string())?;
        stage.pod_ready(name)?;
        let container = stage.cluster.container(&stage.namespace, name, "load")?;
        let load = Self { stage, rate: *rate, container };
        soon("the load to be answered", PODS, || {
            let log = load.container.log().map_err(|error| format!("{error:#}"))?;
            let last = log.lines().last().unwrap_or("it says nothing yet");
            let answered = json_of(last)["ok"].as_u64().is_some_and(|count| count > 0);
            if answered { Ok(()) } else { Err(last.to_owned()) }
        })?;
        stage.note(format!("{rate} requests/s to {to}, from {}", load.container.node));
        Ok(load)
    }

    /// The node that it runs on.
    pub(crate) fn node(&self) -> &str {
        &self.container.node
    }

    /// What it has counted until now.
    fn progress(&self) -> Result<Summary> {
        let told = self.last_line(|line| line["sent"].is_u64())?;
        Ok(Summary(told.unwrap_or_default()))
    }

    /// The last such line of all that are whole.
    fn last_line(&self, is_such: impl Fn(&Value) -> bool) -> Result<Option<Value>> {
        Ok(self.container.log()?.lines().rev().map(json_of).find(is_such))
    }

    /// How many requests were answered until now, and how many failed.
    pub(crate) fn counts(&self) -> Result<(u64, u64)> {
        let progress = self.progress()?;
        Ok((progress.count("ok"), progress.count("failed")))
    }

    /// Waits until each of these pods has answered. Who serves a Service may learn of a pod a little
    /// later than of another one.
    pub(crate) fn answered_by(&self, pods: &BTreeSet<String>) -> Result<()> {
        soon("each pod to answer", PODS, || {
            let progress = self.progress().map_err(|error| format!("{error:#}"))?;
            let spread = progress.spread();
            match pods.iter().find(|pod| spread.iter().all(|(name, _)| name != pod)) {
                Some(silent) => Err(format!("the pod {silent} has never answered")),
                None => Ok(()),
            }
        })
    }

    /// Ends it, and fails if one request was not answered, or not made.
    pub(crate) fn flawless(self) -> Result<Summary> {
        // What just happened may still be felt.
        let made = || self.counts().map(|(ok, failed)| ok + failed);
        let enough = made()? + 2 * self.rate;
        soon("more requests to be made", PODS, || {
            let made = made().map_err(|error| format!("{error:#}"))?;
            if made >= enough { Ok(()) } else { Err(format!("{made} of {enough} were")) }
        })?;
        self.container.signal(PROGRAM, "TERM")?;
        let mut summary = None;
        soon("the load to end", Duration::from_secs(60), || {
            let last = self.last_line(|line| line["summary"] == true);
            summary = last.map_err(|error| format!("{error:#}"))?;
            summary.as_ref().map(drop).ok_or_else(|| "there is no summary".to_owned())
        })?;
        let summary = Summary(summary.unwrap_or_default());
        say!("   {}: {}", self.container.pod, summary.text());
        self.judge(&summary)?;
        Ok(summary)
    }

    fn judge(&self, summary: &Summary) -> Result<()> {
        let (sent, ok, failed) =
            (summary.count("sent"), summary.count("ok"), summary.count("failed"));
        if failed > 0 || ok < sent {
            for failure in summary.0["failures"].as_array().into_iter().flatten().take(SHOWN) {
                let time = failure["time"].as_f64().unwrap_or(0.0);
                let took = failure["took"].as_f64().unwrap_or(0.0);
                let before = self.stage.before(time - took);
                say!(
                    "   | {}: {} to {}, after {took:.3} s; {before}",
                    failure["phase"].as_str().unwrap_or("?"),
                    failure["error"].as_str().unwrap_or("?"),
                    failure["to"].as_str().unwrap_or("nobody"),
                );
            }
            bail!(
                "{failed} of {sent} requests failed, {ok} were answered: {}",
                summary.0["reasons"]
            );
        }
        let seconds = summary.0["seconds"].as_f64().unwrap_or(0.0);
        let due = self.rate * Duration::from_secs_f64(seconds).as_secs();
        // Those of the last second may not have been due. What is late is made all the same, and is in
        // the summary: a busy machine may have a few to catch up on.
        let wanted = due.saturating_sub(self.rate).min(due / 10 * 9);
        ensure!(sent >= wanted, "only {sent} of {due} requests were made: a busy machine?");
        Ok(())
    }
}

/// What came of it.
pub(crate) struct Summary(Value);

impl Summary {
    fn count(&self, name: &str) -> u64 {
        self.0[name].as_u64().unwrap_or(0)
    }

    /// Who answered, and how often; the busiest first.
    pub(crate) fn spread(&self) -> Vec<(&str, u64)> {
        let backends = self.0["backends"].as_object().into_iter().flatten();
        let counts = backends.map(|(name, count)| (name.as_str(), count.as_u64().unwrap_or(0)));
        let mut counts: Vec<_> = counts.collect();
        counts.sort_by_key(|(_, count)| Reverse(*count));
        counts
    }

    fn text(&self) -> String {
        let latency = |name: &str| self.0["latency_ms"][name].as_f64().unwrap_or(f64::NAN);
        let spread = self.spread();
        let most = spread.first().map_or(0, |(_, count)| *count);
        let least = spread.last().map_or(0, |(_, count)| *count);
        let again = match self.count("again") {
            0 => String::new(),
            again => format!(", {again} made again as the client stood still"),
        };
        format!(
            "{} requests in {:.0} s, {} failed{again}; p50 {:.1} ms, p99 {:.1} ms, max {:.1} ms; {} late, by \
             {:.0} ms at most; {} pods answered, from {least} to {most} each",
            self.count("sent"),
            self.0["seconds"].as_f64().unwrap_or(0.0),
            self.count("failed"),
            latency("p50"),
            latency("p99"),
            latency("max"),
            self.count("late"),
            self.0["latest_ms"].as_f64().unwrap_or(0.0),
            spread.len(),
        )
    }
}

fn json_of(line: &str) -> Value {
    serde_json::from_str(line).unwrap_or_default()
}

/// [`web_that_stays`] for 5 s.
pub(crate) fn web(replicas: u32) -> Value {
    web_that_stays(replicas, 5)
}

/// `serve` of the same program, with what people are told to give a Deployment so that a rolling
/// update is not felt: readiness, and time between the end of readiness and the end of the pod.
pub(crate) fn web_that_stays(replicas: u32, seconds: u32) -> Value {
    let labels = json!({ "app": "web" });
    let container = json!({
        "name": "web",
        "image": LOAD,
        "imagePullPolicy": "IfNotPresent",
        "args": ["serve", "--port", "8080"],
        "ports": [{ "name": "http", "containerPort": 8080 }],
        // A busy machine is not an unready pod.
        "readinessProbe": {
            "httpGet": { "path": "/healthz", "port": "http" }, "periodSeconds": 1, "timeoutSeconds": 5,
        },
        "lifecycle": { "preStop": { "sleep": { "seconds": seconds } } },
    });
    json!({ "apiVersion": "v1", "kind": "List", "items": [
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": { "name": "web" },
            "spec": {
                "replicas": replicas,
                "selector": { "matchLabels": labels },
                "template": {
                    "metadata": { "labels": labels },
                    "spec": {
                        "terminationGracePeriodSeconds": seconds + 25,
                        "enableServiceLinks": false,
                        "containers": [container],
                    },
                },
            },
        },
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": { "name": "web" },
            "spec": { "selector": labels, "ports": [{ "port": 80, "targetPort": "http" }] },
        },
    ]})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_summary_in_one_line() {
        let summary = Summary(json!({
            "summary": true, "seconds": 2.04, "sent": 30, "ok": 30, "failed": 0, "late": 2,
            "latest_ms": 12.0, "latency_ms": { "p50": 1.0, "p99": 2.0, "max": 3.0 },
            "backends": { "web-a": 10, "web-b": 20 },
        }));
        assert_eq!(summary.spread(), [("web-b", 20), ("web-a", 10)]);
        assert_eq!(
            summary.text(),
            "30 requests in 2 s, 0 failed; p50 1.0 ms, p99 2.0 ms, max 3.0 ms; 2 late, by 12 ms at \
             most; 2 pods answered, from 10 to 20 each"
        );
    }
}
