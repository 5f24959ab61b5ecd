//! A node, a client outside of it, and pods, each in a network namespace of its own. No route leads out,
//! and all of it goes away with the last file that names it:
//!
//! ```text
//! client ── node ── pods (all endpoints of the cluster)
//!             └──── marked pods
//! ```
//!
//! The marked pods tell a small segment size (MSS), so a client knows from the handshake alone that it
//! got one of them.

use std::{
    fs::{self, File},
    io::Write as _,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    os::fd::AsRawFd as _,
    path::PathBuf,
    process::{self, Command, Stdio},
    thread,
};

use anyhow::{Context as _, Result, anyhow, ensure};
use nix::sched::{CloneFlags, setns, unshare};

/// The node, as the client sees it.
pub(super) const NODE: Ipv4Addr = Ipv4Addr::new(10, 50, 1, 1);
/// In which the client is.
pub(super) const CLIENTS: &str = "10.50.1.0/24";
/// Every endpoint of the cluster is in it: those of `cluster::pod_ip`.
const PODS: &str = "10.128.0.0/10";
/// Marked endpoints are.
const MARKED: Ipv4Addr = Ipv4Addr::new(10, 112, 0, 0);
/// The MSS that they tell.
const MARK: u32 = 1000;
/// Of IPv4 and TCP: what of a packet is no part of the segment.
const HEADERS: u32 = 40;

/// A network namespace.
pub(super) struct Place(File);

impl Place {
    fn new() -> Result<Self> {
        let made = thread::spawn(|| -> Result<File> {
            unshare(CloneFlags::CLONE_NEWNET).context("cannot make a network namespace")?;
            Ok(File::open("/proc/thread-self/ns/net")?)
        });
        let place = Self(made.join().map_err(|_| anyhow!("the thread panicked"))??);
        place.ip("link set lo up")?;
        Ok(place)
    }

    /// Does something there. What it starts and opens stays there.
    pub(super) fn within<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let there = || {
            setns(&self.0, CloneFlags::CLONE_NEWNET)?;
            work()
        };
        thread::scope(|scope| scope.spawn(there).join().map_err(|_| anyhow!("it panicked"))?)
    }

    /// By which other processes find it, as long as this one lives.
    pub(super) fn path(&self) -> PathBuf {
        format!("/proc/{}/fd/{}", process::id(), self.0.as_raw_fd()).into()
    }

    /// Lines of `ip`.
    fn ip(&self, lines: &str) -> Result<()> {
        self.within(|| {
            let mut ip = Command::new("ip");
            let mut ip = ip.args(["-batch", "-"]).stdin(Stdio::piped()).spawn().context("`ip`")?;
            ip.stdin.take().context("stdin is piped")?.write_all(lines.as_bytes())?;
            ensure!(ip.wait()?.success(), "ip does not do this:\n{lines}");
            Ok(())
        })
    }
}

/// All of them.
pub(super) struct Network {
    pub(super) client: Place,
    pub(super) node: Place,
    pub(super) pods: Place,
    pub(super) marked: Place,
}

impl Network {
    pub(super) fn new() -> Result<Self> {
        let [client, node] = [Place::new()?, Place::new()?];
        let [pods, marked] = [Place::new()?, Place::new()?];
        for (name, other, net) in [("client", &client, "50.1"), ("pods", &pods, "60.1")] {
            join(&node, name, other, net)?;
        }
        join(&node, "marked", &marked, "60.2")?;
        client.ip("route add default via 10.50.1.1")?;
        // Every address of an endpoint is one of the namespace's own.
        pods.ip(&format!("route add default via 10.60.1.1\nroute add local {PODS} dev lo\n"))?;
        marked.ip(&format!(
            "link set node mtu {}\nroute add default via 10.60.2.1\nroute add local {MARKED}/16 dev lo\n",
            MARK + HEADERS
        ))?;
        node.ip(&format!("route add {PODS} via 10.60.1.2\nroute add {MARKED}/16 via 10.60.2.2\n"))?;
        node.within(|| {
            fs::write("/proc/sys/net/ipv4/ip_forward", "1").context("ip_forward")?;
            // Whoever asks for a Service that is not there yet is told so each time.
            fs::write("/proc/sys/net/ipv4/icmp_ratemask", "0").context("icmp_ratemask")?;
            // Connections of the measurements end by a reset, and there are many. Where connection
            // tracking is a module that is not loaded, its default remains.
            drop(fs::write("/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_close", "1"));
            Ok(())
        })?;
        Ok(Self { client, node, pods, marked })
    }
}

/// A wire between the node, which is 1 there, and another place, which is 2.
fn join(node: &Place, name: &str, other: &Place, net: &str) -> Result<()> {
    let there = other.path();
    node.ip(&format!(
        "link add {name} type veth peer name node netns {}\naddress add 10.{net}.1/24 dev {name}\nlink set \
         {name} up\n",
        there.display()
    ))?;
    other.ip(&format!("address add 10.{net}.2/24 dev node\nlink set node up\n"))
}

/// A marked endpoint.
pub(super) fn marked(n: u32) -> IpAddr {
    Ipv4Addr::from_bits(MARKED.to_bits() + 1 + n % 0xfffe).into()
}

/// Whether a connection with this MSS leads to a marked endpoint.
pub(super) const fn is_marked(mss: u32) -> bool {
    mss <= MARK
}

/// Of a program on the node.
pub(super) const fn on_the_node(port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port)
}
