//! Kubernetes Events (kube-proxy K4, M8): what a person finds with `kubectl describe`.
//!
//! Events are a courtesy: whoever reports one never waits for it and never learns that it failed.

use std::time::Duration;

use k8s_openapi::api::core::v1::ObjectReference;
use kube::{
    Client,
    runtime::events::{Event, EventType, Recorder, Reporter},
};
use lb_core::{model::ObjectRef, printable::Printable};
use tokio::{sync::mpsc, time::timeout};

/// How Events call us.
const CONTROLLER: &str = "socklb";
/// What we were doing: starting.
const START: &str = "StartSocklb";
/// How many Events may wait. More are dropped.
const WAITING: usize = 64;
/// How long the API server may take for one.
const PATIENCE: Duration = Duration::from_secs(10);
/// Longest text of an Event that the API server takes, in bytes.
const MAX_NOTE: usize = 1024;

/// Where Events are reported; nowhere, with [`Events::none`].
#[derive(Clone, Debug, Default)]
pub struct Events {
    node: String,
    queue: Option<mpsc::Sender<QueuedEvent>>,
}

/// An Event and what it is about.
struct QueuedEvent {
    regarding: ObjectReference,
    event: Event,
}

impl Events {
    /// There is no API server.
    pub fn none() -> Self {
        Self::default()
    }

    /// Events of this node's agent, sent by a task of the current runtime.
    pub fn start(client: Client, node: &str) -> Self {
        let (events, reports) = Self::queue(node);
        let reporter =
            Reporter { controller: CONTROLLER.to_owned(), instance: Some(node.to_owned()) };
        tokio::spawn(send(Recorder::new(client, reporter), reports));
        events
    }

    fn queue(node: &str) -> (Self, mpsc::Receiver<QueuedEvent>) {
        let (queue, reports) = mpsc::channel(WAITING);
        (Self { node: node.to_owned(), queue: Some(queue) }, reports)
    }

    /// The agent has started: `Starting`, on the Node (M8).
    pub fn starting(&self) {
        self.report(self.node_reference(), EventType::Normal, "Starting", START, String::new());
    }

    /// The health server cannot listen, and must: `FailedToStartProxierHealthcheck`, on the Node.
    pub fn health_server_failed(&self, error: &dyn std::error::Error) {
        let (reason, note) = ("FailedToStartProxierHealthcheck", error.to_string());
        self.report(self.node_reference(), EventType::Warning, reason, START, note);
    }

    /// The metrics server cannot listen, and must: `FailedToStartMetricServer`, on the Node.
    pub fn metrics_server_failed(&self, error: &dyn std::error::Error) {
        let (reason, note) = ("FailedToStartMetricServer", error.to_string());
        self.report(self.node_reference(), EventType::Warning, reason, START, note);
    }

    /// A `healthCheckNodePort` cannot be opened: `FailedToStartServiceHealthcheck`, on the Service
    /// (K4).
    pub fn service_health_check_failed(&self, service: &ObjectRef, port: u16, error: &str) {
        let regarding = ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Service".to_owned()),
            namespace: Some(service.namespace.to_string()),
            name: Some(service.name.to_string()),
            ..ObjectReference::default()
        };
        let note = format!(
            "node {} failed to start healthcheck \"{service}\" on port {port}: {error}",
            self.node
        );
        let reason = "FailedToStartServiceHealthcheck";
        self.report(regarding, EventType::Warning, reason, "Listen", note);
    }

    fn node_reference(&self) -> ObjectReference {
        ObjectReference {
            kind: Some("Node".to_owned()),
            name: Some(self.node.clone()),
            // By this uid, which is none, `kubectl describe node` finds the Events of a node.
            uid: Some(self.node.clone()),
            ..ObjectReference::default()
        }
    }

    fn report(
        &self,
        regarding: ObjectReference,
        type_: EventType,
        reason: &str,
        action: &str,
        mut note: String,
    ) {
        let Some(queue) = &self.queue else { return };
        note = Printable(note).to_string();
        note.truncate(note.floor_char_boundary(MAX_NOTE));
        let event = Event {
            type_,
            reason: reason.to_owned(),
            note: (!note.is_empty()).then_some(note),
            action: action.to_owned(),
            secondary: None,
        };
        if let Err(error) = queue.try_send(QueuedEvent { regarding, event }) {
            tracing::debug!(reason, "an Event is dropped: {error}");
        }
    }
}

async fn send(recorder: Recorder, mut reports: mpsc::Receiver<QueuedEvent>) {
    while let Some(QueuedEvent { regarding, event }) = reports.recv().await {
        let reason = &event.reason;
        match timeout(PATIENCE, recorder.publish(&event, &regarding)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(reason, "an Event was not taken: {error}"),
            Err(_) => tracing::debug!(reason, "an Event was not taken in time"),
        }
    }
}

#[cfg(test)]
mod tests;
