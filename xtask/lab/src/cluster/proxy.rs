//! Who serves Services: kube-proxy as a process on each node, or socklb as its users install it.

use std::time::Duration;

use anyhow::{Context as _, Result};

use super::{
    live::{Cluster, Node},
    machine::{PROGRAMS, answer, quietly},
    network::{API_PORT, CONTROL, DNS, PODS},
    plan::{Mode, Proxy, Supply},
};

pub(super) const KUBE_PROXY: &str = "kube-proxy";
pub(crate) const SOCKLB: &str = "daemonset/socklb";
const SERVES: Duration = Duration::from_secs(180);

impl Cluster {
    /// Starts what runs on each node for the proxy that was asked for.
    pub(super) fn start_proxy(&self, node: &Node) -> Result<()> {
        match self.proxy() {
            Proxy::KubeProxy(mode) => self.start_kube_proxy(node, mode),
            // Pods come back by themselves.
            Proxy::Socklb | Proxy::None => Ok(()),
        }
    }

    fn start_kube_proxy(&self, node: &Node, mode: Mode) -> Result<()> {
        let words = [
            format!("{PROGRAMS}/{KUBE_PROXY}"),
            "--kubeconfig=/var/lib/node/kube-proxy.kubeconfig".to_owned(),
            format!("--proxy-mode={}", mode.name()),
            format!("--cluster-cidr={PODS}"),
            format!("--hostname-override={}", node.name()),
            // A parameter of the whole machine.
            "--conntrack-max-per-core=0".to_owned(),
            "--v=2".to_owned(),
        ];
        node.machine().start(self.cgroups(), KUBE_PROXY, words)
    }

    /// Waits until a node leads to a resolver.
    pub(super) fn await_kube_proxy(&self, node: &Node, mode: Mode) -> Result<()> {
        // What is refused for want of endpoints has rules too, but not these.
        let (list, serving): (&[&str], &str) = match mode {
            Mode::Nftables => (&["nft", "list", "ruleset"], "goto service-"),
            Mode::Iptables => (&["iptables-save", "-t", "nat"], "-j KUBE-SVC-"),
        };
        let address = DNS.to_string();
        node.machine().await_service(self.cgroups(), KUBE_PROXY, SERVES, || {
            let rules = self.exec_in(node.name(), list).and_then(|mut list| answer(&mut list));
            let rules = rules.map_err(|error| format!("{error:#}"))?;
            let mut rules = rules.lines();
            let serves = rules.any(|rule| rule.contains(&address) && rule.contains(serving));
            serves.then_some(()).ok_or(format!("no rule that serves {address}"))
        })
    }

    /// Installs socklb out of its chart, as its users do. The image is on the nodes.
    pub(super) fn install_socklb(&self) -> Result<()> {
        let Supply { helm, chart, image, .. } = &self.plan().supply;
        let helm = helm.as_ref().context("no helm was given")?;
        let chart = chart.as_ref().context("no chart was given")?;
        let image = image.as_ref().context("no image was given")?;
        let mut install = self.in_control(helm)?;
        install.args(["upgrade", "--install", "socklb"]).arg(chart);
        install.args(["--namespace", "kube-system", "--timeout", "30s"]);
        for value in values(image) {
            install.args(["--set-string", &value]);
        }
        quietly(&mut install).context("cannot install socklb")
    }
}

/// What the chart has to be told of this cluster.
fn values(image: &str) -> Vec<String> {
    let (repository, tag) = image.rsplit_once(':').unwrap_or((image, "latest"));
    vec![
        format!("kubernetes.host={CONTROL}"),
        format!("kubernetes.port={API_PORT}"),
        format!("image.repository={repository}"),
        format!("image.tag={tag}"),
        // Without a kube-proxy, nobody else serves packets from outside.
        "packets=external".to_owned(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_chart_is_told_of_an_api_server_that_needs_no_service() {
        assert_eq!(
            values("socklb:0.1.0"),
            [
                "kubernetes.host=172.30.0.1",
                "kubernetes.port=6443",
                "image.repository=socklb",
                "image.tag=0.1.0",
                "packets=external"
            ]
        );
    }
}
