//! The real kube-proxy, on a machine of its own: a network namespace with a wire to this one.

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    path::Path,
    process::Command,
    time::Duration,
};

use super::{eventually, process::Process, sandbox::ip};

/// Its machine's addresses.
pub(crate) const ADDRESSES: [&str; 2] = ["172.31.254.2", "fd00:31::2"];

/// It, at work. Start it before there is a node for this process, so that no socket of it is served.
pub(crate) struct KubeProxy {
    process: Process,
    // Takes the namespace along.
    _holder: Process,
}

impl KubeProxy {
    /// Its health and metrics servers, and its health check node ports, are on all of [`ADDRESSES`].
    pub(crate) fn start(
        program: &Path,
        directory: &Path,
        kubeconfig: &Path,
        node_name: &str,
    ) -> Self {
        let directory = directory.join("kube-proxy");
        fs::create_dir(&directory).expect("a directory");
        let holder = Process::start(
            "namespace",
            &directory,
            Command::new("unshare").args(["--net", "sleep", "1d"]),
        );
        let pid = holder.id().to_string();
        let namespace = |of: &str| fs::read_link(format!("/proc/{of}/ns/net")).ok();
        eventually(Duration::from_secs(30), || {
            let there =
                namespace(&pid).filter(|there| Some(there) != namespace("thread-self").as_ref());
            there.ok_or_else(|| "no new network namespace".to_owned())
        });
        ip(&["link", "add", "wire", "type", "veth", "peer", "name", "wire", "netns", &pid]);
        ip(&["link", "set", "wire", "up"]);
        ip(&["address", "add", "172.31.254.1/30", "dev", "wire"]);
        ip(&["address", "add", "fd00:31::1/64", "dev", "wire", "nodad"]);
        let there = |arguments: &[&str]| {
            let mut command = Command::new("nsenter");
            command.args(["--net", "--target", &pid, "ip"]).args(arguments);
            let status = command.status().expect("`nsenter` of util-linux");
            assert!(status.success(), "ip {}: {status}", arguments.join(" "));
        };
        for device in ["lo", "wire"] {
            there(&["link", "set", device, "up"]);
        }
        there(&["address", "add", "172.31.254.2/30", "dev", "wire"]);
        there(&["address", "add", "fd00:31::2/64", "dev", "wire", "nodad"]);
        there(&["route", "add", "default", "via", "172.31.254.1"]);

        let mut command = Command::new("nsenter");
        command.args(["--net", "--target", &pid]).arg(program);
        command.arg("--kubeconfig").arg(kubeconfig).arg("--hostname-override").arg(node_name);
        command.args(["--proxy-mode=nftables", "--nodeport-addresses=0.0.0.0/0,::/0"]);
        command.args(["--healthz-bind-address=0.0.0.0:10256"]);
        command.args(["--metrics-bind-address=0.0.0.0:10249"]);
        // What is the machine's stays as it is.
        command.args(["--conntrack-max-per-core=0", "--conntrack-min=0"]);
        command.args(["--conntrack-tcp-timeout-established=0s"]);
        command.args(["--conntrack-tcp-timeout-close-wait=0s"]);
        let process = Process::start("kube-proxy", &directory, &mut command);
        Self { process, _holder: holder }
    }

    /// A port of it.
    #[expect(clippy::unused_self, reason = "nobody is there without it")]
    pub(crate) fn at(&self, port: u16, ipv4: bool) -> SocketAddr {
        let ip: IpAddr = ADDRESSES[usize::from(!ipv4)].parse().expect("an address");
        (ip, port).into()
    }

    pub(crate) fn log(&self) -> String {
        self.process.log()
    }
}

impl Drop for KubeProxy {
    fn drop(&mut self) {
        // The other end goes with it.
        ip(&["link", "delete", "wire"]);
    }
}
