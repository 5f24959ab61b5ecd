//! Services, as the API server tells of them.

use std::{
    collections::BTreeMap,
    io::{BufRead as _, BufReader},
    process::Stdio,
    sync::mpsc::Sender,
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;
use tools::exec::{answer, say};

use super::{
    Kubectl,
    service::{Name, Service},
};

const SERVICES: &str = "/api/v1/services";
/// Before it is asked anew.
const PAUSE: Duration = Duration::from_secs(1);

#[derive(Debug, PartialEq, Eq)]
pub(super) enum News {
    /// There are these, and no others.
    All(BTreeMap<Name, Service>),
    One(Name, Service),
    Gone(Name),
}

/// Tells of all Services as long as somebody listens.
pub(super) fn follow(kubectl: Kubectl, tell: Sender<News>) {
    thread::spawn(move || {
        loop {
            match watch(&kubectl, &tell) {
                Ok(()) => return,
                Err(error) => say!("{error:#}"),
            }
            thread::sleep(PAUSE);
        }
    });
}

/// First all, then what changes. Returns when nobody listens any more.
fn watch(kubectl: &Kubectl, tell: &Sender<News>) -> Result<()> {
    let list = answer(kubectl.command().args(["get", "--raw", SERVICES]))?;
    let list: Value = serde_json::from_str(&list)?;
    let version =
        list["metadata"]["resourceVersion"].as_str().context("the list has no version")?;
    if tell.send(all(&list)).is_err() {
        return Ok(());
    }
    let changes = format!("{SERVICES}?watch=true&resourceVersion={version}");
    let mut command = kubectl.command();
    command.args(["get", "--raw", &changes]).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = command.spawn().context("cannot start kubectl")?;
    let stdout = child.stdout.take().context("stdout is piped")?;
    for line in BufReader::new(stdout).lines() {
        if tell.send(news(&serde_json::from_str(&line?)?)?).is_err() {
            child.kill()?;
            child.wait()?;
            return Ok(());
        }
    }
    bail!("the watch has ended: {}", child.wait()?)
}

fn all(list: &Value) -> News {
    News::All(list["items"].as_array().into_iter().flatten().filter_map(Service::of).collect())
}

/// What an event says.
fn news(event: &Value) -> Result<News> {
    let named = || Service::of(&event["object"]).context("this is no Service");
    match event["type"].as_str() {
        Some("ADDED" | "MODIFIED") => named().map(|(name, service)| News::One(name, service)),
        Some("DELETED") => named().map(|(name, _)| News::Gone(name)),
        _ => bail!("the API server says {event}"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_list_is_all_and_an_event_one() {
        let object = |name: &str, version: &str| {
            json!({
                "metadata": { "namespace": "a", "name": name, "resourceVersion": version },
                "spec": { "type": "ClusterIP" },
            })
        };
        let News::All(all) = all(&json!({ "items": [object("b", "1"), object("c", "2")] })) else {
            panic!("a list is told as something else");
        };
        assert_eq!(all.keys().map(ToString::to_string).collect::<Vec<_>>(), ["a/b", "a/c"]);
        let event = |kind: &str| news(&json!({ "type": kind, "object": object("b", "3") }));
        let News::One(name, service) = event("MODIFIED").unwrap() else {
            panic!("a change is told as something else");
        };
        assert_eq!((name.to_string(), service.version), ("a/b".to_owned(), 3));
        assert_eq!(event("DELETED").unwrap(), News::Gone(name));
        event("ERROR").unwrap_err();
    }
}
