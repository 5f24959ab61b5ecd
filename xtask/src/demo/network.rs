//! The network: a namespace for the node with a bridge, one for each pod with a veth to it, and one for
//! a neighbour of the node. Pods reach each other and the node, and nothing else: no route leads out, and
//! no end of any of these links is in the machine's own namespace.

use std::{
    fmt::Write as _,
    fs::{self, File},
    net::Ipv4Addr,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};
use tools::exec::{answer, feed};

use super::place::{HOME, home};

/// The namespace of the node itself.
pub(super) const NODE: &str = "node";
/// The namespace of the neighbour.
const NEIGHBOUR: &str = "neighbour";
/// The node's address there.
pub(super) const NODE_ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
/// The neighbour's.
pub(super) const NEIGHBOUR_ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
const BRIDGE: Ipv4Addr = Ipv4Addr::new(10, 244, 7, 1);

/// Something with an address of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Pod {
    pub(super) name: String,
    pub(super) address: Ipv4Addr,
}

impl Pod {
    pub(super) fn client() -> Self {
        Self { name: "client".to_owned(), address: Ipv4Addr::new(10, 244, 7, 2) }
    }

    /// The backends web-1 to web-N.
    pub(super) fn backends(count: u8) -> Vec<Self> {
        let pod = |i| Self { name: format!("web-{i}"), address: Ipv4Addr::new(10, 244, 7, 10 + i) };
        (1..=count).map(pod).collect()
    }
}

/// Makes the network, and the script `in`.
pub(super) fn make(pods: &[Pod], cgroup: &Path) -> Result<()> {
    fs::create_dir(home("net"))?;
    namespace(NODE)?;
    ip(
        NODE,
        &format!(
            "link set lo up\nlink add pods type bridge\nlink set pods up\naddr add {BRIDGE}/24 dev pods\n"
        ),
    )?;
    let mut links = String::new();
    for Pod { name, .. } in pods {
        namespace(name)?;
        let peer = path(name);
        writeln!(links, "link add {name} type veth peer name eth0 netns {}", peer.display())?;
        writeln!(links, "link set {name} master pods up")?;
    }
    ip(NODE, &links)?;
    for Pod { name, address } in pods {
        ip(name, &format!("link set lo up\nlink set eth0 up\naddr add {address}/24 dev eth0\n"))?;
    }
    neighbour()?;
    let procs = cgroup.join("cgroup.procs");
    let script = format!(
        "# sh {HOME}/in POD COMMAND...: runs a command on the node, in the network of a pod\n\
         pod=$1; shift\n\
         echo $$ >{} && exec nsenter --net={HOME}/net/\"$pod\" -- \"$@\"\n",
        procs.display()
    );
    fs::write(home("in"), script).context("cannot write the script")
}

/// Makes the neighbour, and lets the node forward its packets to pods.
fn neighbour() -> Result<()> {
    namespace(NEIGHBOUR)?;
    let peer = path(NEIGHBOUR);
    ip(
        NODE,
        &format!(
            "link add {NEIGHBOUR} type veth peer name eth0 netns {}\nlink set {NEIGHBOUR} up\n\
             addr add {NODE_ADDRESS}/24 dev {NEIGHBOUR}\n",
            peer.display()
        ),
    )?;
    ip(
        NEIGHBOUR,
        &format!("link set lo up\nlink set eth0 up\naddr add {NEIGHBOUR_ADDRESS}/24 dev eth0\n"),
    )?;
    let mut forward = enter(NODE);
    answer(forward.args(["sh", "-c", "echo 1 >/proc/sys/net/ipv4/ip_forward"])).map(drop)
}

/// A command that runs in the network of the neighbour, and not in the cgroup of the node: for the node
/// its connections are packets.
pub(super) fn outside(program: &Path) -> Command {
    let mut command = enter(NEIGHBOUR);
    command.arg(program);
    command
}

/// A command in a namespace, still without its program.
fn enter(name: &str) -> Command {
    let mut command = Command::new("nsenter");
    command.arg(format!("--net={}", path(name).display()));
    command
}

/// A command that runs in the network of a pod and in the cgroup of the node. Not by `ip netns`: it
/// mounts another /sys, and the cgroups would be out of sight.
pub(super) fn inside(name: &str, program: &Path) -> Command {
    let mut command = Command::new("sh");
    command.arg(home("in")).arg(name).arg(program);
    command
}

fn path(name: &str) -> PathBuf {
    home("net").join(name)
}

/// A namespace lasts as long as its mount, whether or not a process is in it.
fn namespace(name: &str) -> Result<()> {
    let path = path(name);
    File::create_new(&path).with_context(|| format!("cannot make {}", path.display()))?;
    let mut option = std::ffi::OsString::from("--net=");
    option.push(&path);
    answer(Command::new("unshare").arg(option).arg("true")).map(drop)
}

/// Runs lines of `ip` in a namespace.
fn ip(name: &str, lines: &str) -> Result<()> {
    feed(enter(name).args(["ip", "-batch", "-"]), lines)
        .with_context(|| format!("ip does not do this:\n{lines}"))
}
