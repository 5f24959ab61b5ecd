//! The control plane: etcd, kube-apiserver, kube-controller-manager, kube-scheduler and the load
//! balancer in a box of their own, which no pod runs in.

use std::{fs, time::Duration};

use anyhow::{Context as _, Result};
use tools::exec::myself;

use super::{
    live::{CONTROL as BOX, Cluster},
    machine::PROGRAMS,
    network::{API_PORT, CONTROL, SERVICES},
    place::var,
    secrets::path,
};

pub(crate) const API: &str = "kube-apiserver";
const CONTROLLERS: &str = "kube-controller-manager";
const SCHEDULER: &str = "kube-scheduler";
const BALANCER: &str = "load-balancer";
pub(super) const PARTS: &[&str] = &["etcd", API, CONTROLLERS, SCHEDULER, BALANCER];
const STARTS: Duration = Duration::from_secs(180);

fn program(name: &str) -> String {
    format!("{PROGRAMS}/{name}")
}

fn etcd() -> Vec<String> {
    let (client, peer) = ("http://127.0.0.1:2379", "http://127.0.0.1:2380");
    vec![
        program("etcd"),
        "--data-dir=/var/lib/etcd".to_owned(),
        format!("--listen-client-urls={client}"),
        format!("--advertise-client-urls={client}"),
        format!("--listen-peer-urls={peer}"),
        // The machine going down takes the cluster with it anyway.
        "--unsafe-no-fsync".to_owned(),
    ]
}

fn apiserver() -> Vec<String> {
    vec![
        program(API),
        "--etcd-servers=http://127.0.0.1:2379".to_owned(),
        format!("--advertise-address={CONTROL}"),
        format!("--secure-port={API_PORT}"),
        format!("--tls-cert-file={}", path("apiserver.crt")),
        format!("--tls-private-key-file={}", path("apiserver.key")),
        format!("--service-cluster-ip-range={SERVICES}"),
        format!("--token-auth-file={}", path("tokens.csv")),
        "--authorization-mode=Node,RBAC".to_owned(),
        "--enable-admission-plugins=NodeRestriction".to_owned(),
        "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
        format!("--service-account-key-file={}", path("sa.pub")),
        format!("--service-account-signing-key-file={}", path("sa.key")),
        "--allow-privileged".to_owned(),
        // The names of the nodes resolve nowhere.
        "--kubelet-preferred-address-types=InternalIP".to_owned(),
        // Services are not translated in the control box.
        "--enable-aggregator-routing".to_owned(),
    ]
}

fn controllers() -> Vec<String> {
    vec![
        program(CONTROLLERS),
        format!("--kubeconfig={}", path("kube-controller-manager.kubeconfig")),
        format!("--service-account-private-key-file={}", path("sa.key")),
        format!("--root-ca-file={}", path("ca.crt")),
        "--use-service-account-credentials".to_owned(),
        "--leader-elect=false".to_owned(),
        "--bind-address=127.0.0.1".to_owned(),
        // A node that becomes Ready may be scheduled to at once; one that is lost is so as usual.
        "--node-monitor-period=1s".to_owned(),
        // With the usual limits it takes 5 s to start.
        "--kube-api-qps=1000".to_owned(),
        "--kube-api-burst=1000".to_owned(),
    ]
}

fn scheduler() -> Vec<String> {
    vec![
        program(SCHEDULER),
        format!("--kubeconfig={}", path("kube-scheduler.kubeconfig")),
        "--leader-elect=false".to_owned(),
        "--bind-address=127.0.0.1".to_owned(),
    ]
}

impl Cluster {
    pub(super) fn start_control_plane(&self) -> Result<()> {
        let (machine, cgroups) = (self.control(), self.cgroups());
        machine.start(cgroups, "etcd", etcd())?;
        // It waits for etcd by itself.
        machine.start(cgroups, API, apiserver())?;
        self.await_apiserver()?;
        self.start_leaders()?;
        self.start_balancer()
    }

    /// Starts this very program in the box, which does not see all of the machine's files.
    fn start_balancer(&self) -> Result<()> {
        let own = "lib/load-balancer";
        let directory = var(BOX).join(own);
        fs::create_dir_all(&directory)?;
        fs::copy(myself()?, directory.join("lab")).context("cannot copy this program")?;
        self.control().start(
            self.cgroups(),
            BALANCER,
            [
                format!("/var/{own}/lab"),
                "cluster".to_owned(),
                "balance".to_owned(),
                self.nodes().len().to_string(),
                program("kubectl"),
                path("load-balancer.kubeconfig"),
                format!("/var/{own}/cache"),
            ],
        )
    }

    /// Kills the API server as a crash would. Controllers and scheduler end with it: where several of
    /// them take turns they do so within 10 s, because the lease of who leads cannot be renewed.
    pub(crate) fn stop_apiserver(&self) -> Result<()> {
        [API, CONTROLLERS, SCHEDULER]
            .iter()
            .try_for_each(|part| self.control().kill_service(self.cgroups(), part))
    }

    /// Starts the API server and waits until it is ready.
    pub(crate) fn start_apiserver(&self) -> Result<()> {
        self.control().start(self.cgroups(), API, apiserver())?;
        self.await_apiserver()?;
        self.start_leaders()
    }

    /// With what they knew before a time without an API server, they would take every node for dead.
    pub(super) fn start_leaders(&self) -> Result<()> {
        let (machine, cgroups) = (self.control(), self.cgroups());
        [(CONTROLLERS, controllers()), (SCHEDULER, scheduler())]
            .into_iter()
            .filter(|(part, _)| !machine.runs(cgroups, part))
            .try_for_each(|(part, words)| machine.start(cgroups, part, words))
    }

    fn await_apiserver(&self) -> Result<()> {
        self.control().await_service(self.cgroups(), API, STARTS, || {
            self.ask(&["get", "--raw", "/readyz"]).map(drop)
        })
    }
}
