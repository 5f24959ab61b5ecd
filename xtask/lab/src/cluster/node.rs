//! A node: containerd and kubelet in a box, images, and pods on a bridge.

use std::{
    fs::{self, File},
    path::Path,
    thread::sleep,
    time::Duration,
};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use tools::wait::{Not, until};

use super::{
    live::{Cluster, Node},
    machine::{PROGRAMS, quietly},
    network::{Addresses, DNS},
    place::var,
    supply::PAUSE,
};

pub(super) const PARTS: &[&str] = &["containerd", "kubelet"];
const STARTS: Duration = Duration::from_secs(120);
/// How often kubelet is started, and the pause after its first end.
const MOST_STARTS: u32 = 5;
const RESTART: Duration = Duration::from_millis(500);
const HEALTHZ: &[&str] = &[
    "curl",
    "--silent",
    "--show-error",
    "--fail",
    "--max-time",
    "5",
    "http://127.0.0.1:10248/healthz",
];
const SOCKET: &str = "/run/containerd/containerd.sock";
/// Where a node has its configuration.
const OWN: &str = "/var/lib/node";

/// Writes the configuration of a node.
fn configure(node: &Node) -> Result<()> {
    let own = var(node.name()).join("lib/node");
    fs::create_dir_all(own.join("cni"))?;
    let write = |name: &str, text: String| {
        fs::write(own.join(name), text).with_context(|| format!("{}: {name}", own.display()))
    };
    write("containerd.toml", containerd())?;
    write("cni/10-bridge.conflist", cni(node.addresses()).to_string())?;
    write("kubelet.json", kubelet().to_string())
}

/// Snapshotters other than overlayfs would only be tried. By default containerd makes /opt/containerd,
/// which is the machine's.
fn containerd() -> String {
    format!(
        "version = 2\n\
         disabled_plugins = [\"io.containerd.snapshotter.v1.aufs\", \
         \"io.containerd.snapshotter.v1.btrfs\", \"io.containerd.snapshotter.v1.devmapper\", \
         \"io.containerd.snapshotter.v1.zfs\"]\n\
         [plugins.\"io.containerd.internal.v1.opt\"]\n\
         path = \"/var/lib/containerd/opt\"\n\
         [plugins.\"io.containerd.grpc.v1.cri\"]\n\
         sandbox_image = \"{PAUSE}\"\n\
         restrict_oom_score_adj = true\n\
         [plugins.\"io.containerd.grpc.v1.cri\".cni]\n\
         bin_dir = \"{PROGRAMS}/cni\"\n\
         conf_dir = \"{OWN}/cni\"\n"
    )
}

fn cni(node: Addresses) -> Value {
    json!({
        "cniVersion": "0.4.0",
        "name": "pods",
        "plugins": [
            {
                "type": "bridge",
                "bridge": "cni0",
                "isGateway": true,
                "ipMasq": false,
                "hairpinMode": true,
                "ipam": {
                    "type": "host-local",
                    // After a reboot no address is taken.
                    "dataDir": "/run/cni",
                    "ranges": [[{ "subnet": node.pods_v4() }], [{ "subnet": node.pods_v6() }]],
                    "routes": [{ "dst": "0.0.0.0/0" }, { "dst": "::/0" }],
                },
            },
            { "type": "portmap", "capabilities": { "portMappings": true } },
        ],
    })
}

fn kubelet() -> Value {
    json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        // Nobody but the cluster itself can reach it.
        "authentication": { "anonymous": { "enabled": true }, "webhook": { "enabled": false } },
        "authorization": { "mode": "AlwaysAllow" },
        "failCgroupV1": false,
        "cgroupDriver": "cgroupfs",
        "cgroupsPerQOS": true,
        "cgroupRoot": "/",
        "enforceNodeAllocatable": [],
        "failSwapOn": false,
        "containerRuntimeEndpoint": format!("unix://{SOCKET}"),
        "clusterDNS": [DNS.to_string()],
        "clusterDomain": "cluster.local",
        "resolvConf": "",
        "serializeImagePulls": false,
        "registryPullQPS": 0,
        "evictionHard": { "memory.available": "50Mi" },
        "imageGCHighThresholdPercent": 100,
        // By default it makes a directory below /usr, which is the machine's.
        "volumePluginDir": "/var/lib/kubelet/volumeplugins",
    })
}

impl Cluster {
    /// The box of a node. Without a network it has nothing to say to the others.
    pub(super) fn boot_node(&self, node: &Node) -> Result<()> {
        node.machine().boot(self.cgroups(), &self.plan().supply.programs)?;
        configure(node)
    }

    /// Starts containerd and waits for it.
    pub(super) fn start_containerd(&self, node: &Node) -> Result<()> {
        let (machine, cgroups) = (node.machine(), self.cgroups());
        let program = format!("{PROGRAMS}/containerd");
        machine.start(
            cgroups,
            "containerd",
            [&program, "--config", &format!("{OWN}/containerd.toml")],
        )?;
        machine.await_service(cgroups, "containerd", STARTS, || {
            let mut version =
                self.exec_in(node.name(), &["ctr", "version"]).map_err(|e| e.to_string())?;
            quietly(&mut version).map_err(|error| error.to_string())
        })
    }

    /// Gives a node the images of an archive.
    pub(super) fn import(&self, node: &Node, archive: &Path) -> Result<()> {
        let words = ["timeout", "300", "ctr", "-n", "k8s.io", "images", "import", "-"];
        let mut import = self.exec_in(node.name(), &words)?;
        let file = File::open(archive);
        import.stdin(file.with_context(|| format!("cannot read {}", archive.display()))?);
        quietly(&mut import)
            .with_context(|| format!("cannot import {} on {}", archive.display(), node.name()))
    }

    /// Gives every node the images of an archive.
    pub(crate) fn import_everywhere(&self, archive: &Path) -> Result<()> {
        self.nodes().iter().try_for_each(|node| self.import(node, archive))
    }

    /// Starts kubelet and waits for it. When it ends, it is started again, as systemd does on other
    /// nodes: it gives up if it is there before the CRI of a containerd that answers already.
    pub(super) fn start_kubelet(&self, node: &Node) -> Result<()> {
        let (machine, cgroups) = (node.machine(), self.cgroups());
        let (name, addresses) = (node.name(), node.addresses());
        let mut words = vec![
            format!("{PROGRAMS}/kubelet"),
            format!("--config={OWN}/kubelet.json"),
            format!("--kubeconfig={OWN}/kubelet.kubeconfig"),
            format!("--hostname-override={name}"),
            format!("--node-ip={},{}", addresses.v4(), addresses.v6()),
        ];
        if let Some(zone) = node.zone() {
            words.push(format!("--node-labels=topology.kubernetes.io/zone={zone}"));
        }
        let mut starts = 0;
        until(&format!("kubelet on {name}"), STARTS, &[&machine.log("kubelet")], || {
            if !machine.runs(cgroups, "kubelet") {
                if starts == MOST_STARTS {
                    return Err(Not::Ever(format!("it has ended {starts} times")));
                }
                sleep(RESTART * starts);
                starts += 1;
                machine.start(cgroups, "kubelet", &words)?;
            }
            quietly(&mut self.exec_in(name, HEALTHZ)?)
                .map_err(|error| Not::Yet(format!("{error:#}")))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_of_a_node_are_below_its_cgroup_and_in_its_network() {
        let kubelet = kubelet();
        assert_eq!(
            (&kubelet["cgroupRoot"], &kubelet["cgroupsPerQOS"]),
            (&json!("/"), &json!(true))
        );
        let cni = cni(Addresses::of(2));
        assert_eq!(
            cni.pointer("/plugins/0/ipam/ranges"),
            Some(&json!([[{ "subnet": "10.244.2.0/24" }], [{ "subnet": "fd00:244:2::/64" }]]))
        );
        assert!(containerd().contains("\nsandbox_image = \""));
    }
}
