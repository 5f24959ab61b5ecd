//! kube-proxy's own test tables as facts, under the names they have there (Kubernetes v1.36).
//!
//! Each packet of a pod or of the node becomes a connection; what kube-proxy drops is a prompt error
//! here, and is written DROP all the same. Packets from outside are not for sockets.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]
#![expect(clippy::panic, reason = "a table that makes no sense fails")]

#[path = "upstream/endpoints.rs"]
mod endpoints;
#[path = "upstream/flows.rs"]
mod flows;
#[path = "upstream/lab.rs"]
mod lab;
#[path = "upstream/nodes.rs"]
mod nodes;
#[path = "upstream/policies.rs"]
mod policies;
#[path = "upstream/services.rs"]
mod services;
