//! The layers of the test suite: one row each. To add a layer, add a row.

use std::path::PathBuf;

use anyhow::Result;
use tools::setup::Scope::{
    self, Agent, Clients, Cluster, Dns, Image, Kernels, Lint, Network, Pods, Programs,
};

use super::lint::{self, Check};
use crate::{kube, oracle};

pub(super) struct Layer {
    pub(super) name: &'static str,
    /// What a failure here would mean.
    pub(super) purpose: &'static str,
    /// What has to be installed.
    pub(super) needs: &'static [Scope],
    pub(super) work: Work,
    /// Whether what later layers need begins to be built beside it, or must be there.
    pub(super) ahead: Option<Turn>,
}

#[derive(Clone, Copy)]
pub(super) enum Turn {
    Begin,
    End,
}

pub(super) enum Work {
    /// Each counts as one test; none needs root.
    Checks(&'static [Check]),
    /// Every test of the workspace, documentation included, that no other row names; without root.
    Unclaimed,
    /// The integration test `lb-agent/tests/NAME.rs`, without root.
    User { target: &'static str, with: Option<Made> },
    /// The integration test `lb-agent/tests/NAME.rs`, as root: `at_once` processes with a part of its
    /// tests each, one test at a time. What a test moves, such as its cgroup, is its process's.
    Root { target: &'static str, with: Option<Made>, at_once: usize },
    /// `cargo xtask WORDS` as one test. It gets root by itself.
    Task(&'static [&'static str]),
    /// `cargo xtask WORDS`, which ends with a sum. If it needs root, it gets it by itself.
    Sum { words: &'static [&'static str], root: bool },
}

/// What a test finds in its environment: the variable that names a file or a directory, and what
/// makes that, which may take a while, unless the caller has set the variable.
pub(super) type Made = (&'static str, fn() -> Result<PathBuf>);

pub(super) const LAYERS: &[Layer] = &[
    Layer {
        name: "lint",
        purpose: "format, lints, documentation, licences",
        needs: &[Agent, Programs, Lint],
        work: Work::Checks(lint::CHECKS),
        ahead: None,
    },
    Layer {
        name: "unit",
        purpose: "every stage alone and the control plane on YAML, without a kernel",
        needs: &[Agent, Programs],
        work: Work::Unclaimed,
        ahead: None,
    },
    Layer {
        name: "oracle",
        purpose: "socklb's decisions beside those of kube-proxy's own code, on random clusters",
        needs: &[Agent, Programs],
        work: Work::User { target: "oracle", with: Some((oracle::PROGRAM, kube::oracle)) },
        ahead: None,
    },
    Layer {
        name: "kernel",
        purpose: "the BPF programs under real sockets, in a cgroup and namespace of their own",
        needs: &[Agent, Programs, Network, Clients],
        work: Work::Root {
            target: "kernel",
            with: Some(("SOCKLB_GO_CLIENT", kube::go_client)),
            // They compute a fifth of their time; else they wait, for namespaces to go and for what comes
            // a second later.
            at_once: 6,
        },
        ahead: Some(Turn::Begin),
    },
    Layer {
        name: "kernels",
        purpose: "the same programs in older kernels, booted in an emulated machine",
        needs: &[Agent, Programs, Kernels],
        // What the layer before has built: static programs would take minutes more.
        work: Work::Sum {
            words: &["kernels", "--quick", "--kernel=6.1", "--kernel=6.12"],
            root: false,
        },
        ahead: None,
    },
    Layer {
        name: "apiserver",
        purpose: "the agent against a real kube-apiserver, and beside a real kube-proxy",
        needs: &[Agent, Programs, Network, Clients],
        work: Work::Root {
            target: "apiserver",
            with: Some(("SOCKLB_KUBE_BIN", kube::binaries)),
            at_once: 1,
        },
        ahead: Some(Turn::End),
    },
    Layer {
        name: "dns",
        purpose: "CoreDNS behind a Service, asked by the resolvers that programs use",
        needs: &[Agent, Programs, Network, Dns],
        work: Work::Root {
            target: "dns",
            with: Some(("SOCKLB_COREDNS", kube::coredns)),
            at_once: 2,
        },
        ahead: Some(Turn::End),
    },
    Layer {
        name: "demo",
        purpose: "the demo shows what it promises",
        needs: &[Agent, Programs, Network],
        // Another suite beside this one may be at the same.
        work: Work::Task(&["demo", "--patience=600"]),
        ahead: None,
    },
    Layer {
        name: "cluster",
        purpose: "stories, and Kubernetes' own tests, in a cluster of this machine",
        needs: &[Agent, Programs, Network, Cluster, Image, Pods],
        work: Work::Sum {
            words: &["cluster", "test", "--all", "--api-away-seconds=60"],
            root: true,
        },
        ahead: Some(Turn::End),
    },
];

/// Is this integration test of lb-agent the business of a row of its own?
pub(super) fn is_claimed(test: &str) -> bool {
    LAYERS.iter().any(|layer| match layer.work {
        Work::User { target, .. } | Work::Root { target, .. } => target == test,
        Work::Checks(_) | Work::Unclaimed | Work::Task(_) | Work::Sum { .. } => false,
    })
}

/// The layers in one paragraph each, for `--help`.
pub(super) fn help() -> String {
    let rows = LAYERS.iter().map(|layer| {
        let root = if layer.work.needs_root() { " [root]" } else { "" };
        format!("  {:10} {}{root}", layer.name, layer.purpose)
    });
    format!("Layers:\n{}", rows.collect::<Vec<_>>().join("\n"))
}

impl Work {
    pub(super) fn needs_root(&self) -> bool {
        matches!(self, Self::Root { .. } | Self::Task(_) | Self::Sum { root: true, .. })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_in_the_help() {
        let help = help();
        for (i, layer) in LAYERS.iter().enumerate() {
            assert!(LAYERS[..i].iter().all(|other| other.name != layer.name));
            assert!(help.contains(layer.name));
        }
    }

    #[test]
    fn a_test_with_a_row_is_not_run_with_all_others() {
        assert!(is_claimed("kernel"));
        assert!(is_claimed("oracle"));
        assert!(!is_claimed("cases"));
    }
}
