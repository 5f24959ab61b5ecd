//! A node and a real Kubernetes control plane on this machine, out of reach of everything else on
//! it: in namespaces of their own, without a route out.
//!
//! | file | what it is |
//! |---|---|
//! | `sandbox` | the namespaces, and a directory that goes away with them |
//! | `process` | a child process that never outlives the test |
//! | `control_plane` | etcd, kube-apiserver and kube-controller-manager, to be killed at will |
//! | `api` | a client of that API server that does what `kubectl apply` and `delete` do |
//! | `objects` | the objects that tests create |
//! | `cgroup` | the sockets that a program is to see |
//! | `node` | a cgroup, a bpffs, the real `lb-agent` and `lbctl` |
//! | `kube_proxy` | the real kube-proxy, to compare with |
//! | `http` | a client that shows all of an answer |
//! | `metrics` | what a `/metrics` says |
//! | `sockets` | backends that say who they are, and clients that connect without a break |

#![expect(clippy::panic, reason = "a test that cannot go on says so and ends")]

pub(crate) mod api;
mod cgroup;
pub(crate) mod control_plane;
pub(crate) mod http;
pub(crate) mod kube_proxy;
pub(crate) mod metrics;
pub(crate) mod node;
pub(crate) mod objects;
pub(crate) mod process;
pub(crate) mod sandbox;
pub(crate) mod sockets;

use std::{
    thread,
    time::{Duration, Instant},
};

/// Repeats `check` until it is content, for `limit` at most; panics with the last complaint.
pub(crate) fn eventually<T>(limit: Duration, mut check: impl FnMut() -> Result<T, String>) -> T {
    let deadline = Instant::now() + limit;
    loop {
        match check() {
            Ok(value) => return value,
            Err(complaint) if Instant::now() > deadline => {
                panic!("still not so after {limit:?}: {complaint}")
            }
            Err(_) => thread::sleep(Duration::from_millis(20)),
        }
    }
}
