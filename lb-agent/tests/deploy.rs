//! What is in `deploy/` and what the agent is: flags, rights and objects.
//!
//! `deploy/socklb.yaml` is what the Helm chart renders; `cargo xtask test lint` sees to that. Here
//! it is read with the types of the API server, and compared with the agent's own flags and calls.
#![expect(clippy::unwrap_used, clippy::panic, reason = "this is all test code")]

use std::{collections::BTreeSet, fs, path::PathBuf};

use clap::{CommandFactory as _, Parser as _};
use k8s_openapi::api::{
    apps::v1::DaemonSet,
    core::v1::{Container, PodSpec, ServiceAccount},
    rbac::v1::{ClusterRole, ClusterRoleBinding},
};
use lb_agent::config::Config;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

fn deploy(path: &str) -> String {
    let file = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../deploy").join(path);
    fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()))
}

fn documents() -> Vec<Value> {
    let text = deploy("socklb.yaml");
    let documents = text.split("\n---\n").skip(1);
    documents.map(|document| serde_saphyr::from_str(document).unwrap()).collect()
}

/// The only object of this type. A field that the type does not know, or knows otherwise, is lost
/// on the way there and back.
fn only<K: Serialize + DeserializeOwned>(kind: &str) -> K {
    let all: Vec<_> = documents().into_iter().filter(|document| document["kind"] == kind).collect();
    let [document] = &all[..] else { panic!("{} of {kind}", all.len()) };
    let object: K = serde_json::from_value(document.clone()).unwrap();
    assert_eq!(serde_json::to_value(&object).unwrap(), *document, "{kind}");
    object
}

fn pod() -> PodSpec {
    only::<DaemonSet>("DaemonSet").spec.unwrap().template.spec.unwrap()
}

fn agent() -> Container {
    let [agent] = <[Container; 1]>::try_from(pod().containers).unwrap();
    agent
}

#[test]
fn all_objects_are_of_their_types() {
    let account: ServiceAccount = only("ServiceAccount");
    let role: ClusterRole = only("ClusterRole");
    let binding: ClusterRoleBinding = only("ClusterRoleBinding");
    let set: DaemonSet = only("DaemonSet");
    assert_eq!(documents().len(), 4);

    let [subject] = &binding.subjects.unwrap()[..] else { panic!("one subject") };
    assert_eq!(Some(&subject.name), account.metadata.name.as_ref());
    assert_eq!(subject.namespace, account.metadata.namespace);
    assert_eq!(Some(binding.role_ref.name), role.metadata.name);
    let spec = set.spec.unwrap();
    let labels = spec.template.metadata.unwrap().labels.unwrap();
    for (label, value) in spec.selector.match_labels.unwrap() {
        assert_eq!(labels.get(&label), Some(&value), "{label}");
    }
    assert_eq!(spec.template.spec.unwrap().service_account_name.as_deref(), Some(&*subject.name));
}

/// `sources::kubernetes` lists and watches, `admin::events` creates and patches. Nothing gets,
/// updates or deletes.
#[test]
fn the_role_allows_what_the_agent_asks_and_no_more() {
    let role: ClusterRole = only("ClusterRole");
    let mut allowed = BTreeSet::new();
    for rule in role.rules.unwrap() {
        for group in rule.api_groups.unwrap() {
            for resource in rule.resources.iter().flatten() {
                for verb in &rule.verbs {
                    allowed.insert(format!("{verb} {resource}.{group}"));
                }
            }
        }
    }
    let mut asked = BTreeSet::from([
        "create events.events.k8s.io".to_owned(),
        "patch events.events.k8s.io".to_owned(),
    ]);
    for kind in ["services.", "nodes.", "endpointslices.discovery.k8s.io"] {
        asked.extend(["list", "watch"].map(|verb| format!("{verb} {kind}")));
    }
    assert_eq!(allowed, asked);
}

#[test]
fn the_flags_are_the_agents_and_say_what_it_does_without_them() {
    let args = agent().args.unwrap();
    let with = Config::try_parse_from([&["lb-agent".to_owned()], &args[..]].concat()).unwrap();
    // A container cannot write to /proc/sys.
    let without = Config::parse_from(["lb-agent", "--conntrack-sysctls=false"]);
    assert_eq!(format!("{with:?}"), format!("{without:?}"));
}

#[test]
fn every_flag_is_a_value_of_the_chart() {
    let template = deploy("helm/socklb/templates/daemonset.yaml");
    // What has no meaning in a pod, is for people, or is given in the environment.
    let others = [
        "source",
        "kubeconfig",
        "context",
        "dry-run",
        "cleanup-kube-proxy",
        "node-name",
        "bpffs",
        "help",
        "version",
    ];
    let command = Config::command();
    for flag in command.get_arguments().filter_map(clap::Arg::get_long) {
        let is_there = template.contains(&format!("- --{flag}\n"))
            || template.contains(&format!("- --{flag}={{{{"));
        assert_eq!(is_there, !others.contains(&flag), "--{flag}");
    }
}

#[test]
fn the_pod_has_no_more_than_it_needs() {
    let pod = pod();
    assert_eq!((pod.host_network, pod.host_pid, pod.host_ipc), (Some(true), Some(true), None));
    assert_eq!(pod.priority_class_name.as_deref(), Some("system-node-critical"));
    let paths: Vec<_> =
        pod.volumes.unwrap().into_iter().map(|volume| volume.host_path.unwrap().path).collect();
    assert_eq!(paths, ["/sys/fs/bpf", "/sys/fs/cgroup"]);
    let agent = agent();
    for mount in agent.volume_mounts.unwrap() {
        assert!(paths.contains(&mount.mount_path), "{}", mount.mount_path);
    }
    let context = agent.security_context.unwrap();
    assert_eq!(context.privileged, Some(false));
    assert_eq!(context.allow_privilege_escalation, Some(false));
    assert_eq!(context.read_only_root_filesystem, Some(true));
    let capabilities = context.capabilities.unwrap();
    assert_eq!(capabilities.drop.unwrap(), ["ALL"]);
    // SYS_ADMIN stands for BPF and PERFMON, which not every node can give.
    assert_eq!(capabilities.add.unwrap(), ["NET_ADMIN", "SYS_ADMIN", "SYS_PTRACE"]);
}

#[test]
fn the_probes_ask_where_the_agent_answers() {
    let agent = agent();
    let port = |name: &str| {
        let ports = agent.ports.as_ref().unwrap();
        ports.iter().find(|port| port.name.as_deref() == Some(name)).unwrap().container_port
    };
    let config = Config::parse_from(["lb-agent"]);
    assert_eq!(i32::from(config.healthz_bind_address.0.unwrap().port()), port("healthz"));
    assert_eq!(i32::from(config.metrics_bind_address.0.unwrap().port()), port("metrics"));
    for (probe, path) in [(&agent.liveness_probe, "/livez"), (&agent.readiness_probe, "/readyz")] {
        let asks = probe.as_ref().unwrap().http_get.as_ref().unwrap();
        assert_eq!(asks.path.as_deref(), Some(path));
        assert_eq!(serde_json::to_value(&asks.port).unwrap(), "healthz");
    }
}
