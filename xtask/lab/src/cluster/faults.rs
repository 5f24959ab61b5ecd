//! A node that dies, and comes back.

use anyhow::Result;

use super::live::Cluster;

impl Cluster {
    /// Pulls the plug of a node: processes, cgroups, BPF programs and pins are gone at once.
    pub(crate) fn kill_node(&self, name: &str) -> Result<()> {
        self.node(name)?.machine().kill(self.cgroups())
    }

    /// Starts a node that was killed: it finds its disk as it was. Does not wait until it is Ready.
    pub(crate) fn start_node(&self, name: &str) -> Result<()> {
        let node = self.node(name)?;
        self.boot_node(node)?;
        self.connect(node)?;
        self.start_containerd(node)?;
        self.start_kubelet(node)?;
        self.start_proxy(node)
    }
}
