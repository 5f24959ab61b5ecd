//! Machines in miniature: a cgroup that looks like the root of all, nodes below it, pods in them, each
//! with the namespaces and mounts that it has in the field, and the real `lb-agent` in one of them.
//!
//! Whatever lb-agent may take for the root, it is a directory of the test.

use std::{
    ffi::OsStr,
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
    path::{Path, PathBuf},
    process::Command,
};

use lb_agent::mounts;

use super::{
    agent::{Agent, SIZES, command},
    world::{World, backend4, soon},
    yaml,
};

/// What stands around the agent. Descriptor 9 is the node's directory, whatever is mounted.
const START: &str = r#"
lbctl() {
    (while sleep 0.2; do
        line=$("$LBCTL" --bpffs "$BPFFS" status 2>/dev/null | grep ^cgroup:) && echo "$1: $line" >&2
    done) &
}
export -f lbctl
echo 0 >$MACHINE/cgroup.procs
exec unshare --cgroup --mount --propagation private bash -ec "$OUTER" machine "$@""#;
const OUTER: &str = r#"
exec 9<$NODE
mount -t tmpfs tmpfs /sys/fs/cgroup
mkdir /sys/fs/cgroup/unified
mount -t cgroup2 cgroup2 /sys/fs/cgroup/unified
echo 0 >/proc/self/fd/9/cgroup.procs
exec unshare $NODE_NS --mount --pid --fork --kill-child --propagation private bash -ec "$INNER" node "$@""#;
const INNER: &str = r#"
mount -t proc proc /proc
join() { mkdir -p /proc/self/fd/9/$1; echo 0 >/proc/self/fd/9/$1/cgroup.procs; }
eval "$NODE_MOUNTS"
join pods/client
sleep 1000 &
join "$INIT"
(join "$PLACE"; exec $POD_NS bash -ec "$POD_MOUNTS"'; exec 9<&- "$@"' pod "$@") &
wait"#;

/// cgroup2 alone, as on most machines.
pub(crate) const CGROUP2: &str = "mount -t cgroup2 cgroup2 /sys/fs/cgroup";
/// cgroup2 beside version 1.
pub(crate) const HYBRID: &str = "mount -t tmpfs tmpfs /sys/fs/cgroup
    mkdir /sys/fs/cgroup/memory /sys/fs/cgroup/unified
    mount -t tmpfs memory /sys/fs/cgroup/memory
    mount -t cgroup2 cgroup2 /sys/fs/cgroup/unified";
/// Version 1 alone.
pub(crate) const VERSION1: &str = "mount -t tmpfs tmpfs /sys/fs/cgroup";
/// What a container runtime mounts for a container: its own corner.
pub(crate) const CORNER: &str = "mount -t tmpfs tmpfs /sys/fs/cgroup; mount -t cgroup2 cgroup2 /sys/fs/cgroup; \
     mount -o remount,bind,ro /sys/fs/cgroup";

/// A cgroup namespace of its own.
pub(crate) const PRIVATE: &str = "--cgroup";
/// A pod with `hostPID`.
pub(crate) const POD: &str = "unshare --cgroup --mount --propagation private";
/// A pod without.
pub(crate) const POD_ALONE: &str =
    "unshare --cgroup --mount --pid --fork --kill-child --mount-proc --propagation private";

/// Where lb-agent is started.
#[derive(Clone, Copy)]
pub(crate) struct Place {
    /// The node's namespaces, besides those that it has always.
    pub(crate) node: &'static str,
    /// Its mounts.
    pub(crate) mounts: &'static str,
    /// The cgroup of its first process, below the node's.
    pub(crate) init: &'static str,
    /// That of lb-agent.
    pub(crate) agent: &'static str,
    /// What makes its namespaces.
    pub(crate) pod: &'static str,
    /// Its mounts.
    pub(crate) pod_mounts: &'static str,
}

impl Place {
    /// A pod with `hostPID` that sees the node's mounts; PID 1 of the node is systemd.
    pub(crate) const POD: Self = Self {
        node: PRIVATE,
        mounts: CGROUP2,
        init: "init.scope",
        agent: "pods/agent",
        pod: POD,
        pod_mounts: ":",
    };
}

pub(crate) struct Machine {
    agent: Agent,
    root: PathBuf,
}

impl Machine {
    /// With lb-agent on its way; a Service waits for it.
    pub(crate) fn start(world: &World, place: Place) -> Self {
        let mounts = mounts::all("cgroup2").unwrap();
        assert!(mounts.iter().all(|mount| mount.path.starts_with("/sys/fs/cgroup")), "{mounts:?}");
        yaml::put(world, "web", "10.96.0.10", &[1, 2].map(backend4));
        let root = world.cgroup().join("machine");
        fs::create_dir_all(root.join("node")).unwrap();
        fs::create_dir_all(root.join("beside")).unwrap();
        Self { agent: Agent::spawn(started(world, &root, place)), root }
    }

    pub(crate) fn agent(&self) -> &Agent {
        &self.agent
    }

    /// A directory of the node.
    pub(crate) fn cgroup(&self, below: &str) -> PathBuf {
        self.root.join("node").join(below)
    }

    /// Sockets of the node are translated, in whichever cgroup they are, and no others.
    pub(crate) fn assert_served(&self) {
        self.agent.wait_for_start("in sync");
        assert!(soon(|| reaches(&self.cgroup("pods/client"))), "a pod");
        assert!(reaches(&self.cgroup("")), "the node itself");
        assert!(!reaches(&self.root.join("beside")), "a neighbour");
        assert!(!reaches(&self.root), "the machine");
        assert!(soon(|| healthz().starts_with("200")), "{}", healthz());
        assert!(readyz().starts_with("200"), "{}", readyz());
    }

    /// Everything ends; what it says when lb-agent did not start.
    pub(crate) fn refused(self, words: &[&str]) {
        for word in words {
            self.agent.wait_for_start(word);
        }
        assert!(!self.agent.log().contains("attached"), "{}", self.agent.log());
    }
}

fn started(world: &World, root: &Path, place: Place) -> Command {
    let agent = command(world, &[SIZES[0], SIZES[1], "--cgroup-is-left-out"]);
    let arguments = agent.get_args().filter(|argument| *argument != "--cgroup-is-left-out");
    let mut command = Command::new("bash");
    command.args(["-ec", START, "start"]).arg(agent.get_program()).args(arguments);
    let (node, bpffs) = (root.join("node"), world.bpffs());
    let variables: [(&str, &OsStr); 12] = [
        ("MACHINE", root.as_ref()),
        ("NODE", node.as_ref()),
        ("LBCTL", env!("CARGO_BIN_EXE_lbctl").as_ref()),
        ("BPFFS", bpffs.as_ref()),
        ("OUTER", OUTER.as_ref()),
        ("INNER", INNER.as_ref()),
        ("NODE_NS", place.node.as_ref()),
        ("NODE_MOUNTS", place.mounts.as_ref()),
        ("INIT", place.init.as_ref()),
        ("PLACE", place.agent.as_ref()),
        ("POD_NS", place.pod.as_ref()),
        ("POD_MOUNTS", place.pod_mounts.as_ref()),
    ];
    command.envs(variables);
    command
}

/// Whether a UDP socket that is made in the cgroup gets to a backend: no Service has a route.
pub(crate) fn reaches(cgroup: &Path) -> bool {
    let script = "echo 0 >$1/cgroup.procs && exec 3<>/dev/udp/10.96.0.10/80";
    let output = Command::new("bash").args(["-c", script, "client"]).arg(cgroup).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    let expected = output.status.success() || text.contains("unreachable");
    assert!(expected, "{text}");
    output.status.success()
}

/// Status, headers and body of `/healthz`.
pub(crate) fn healthz() -> String {
    get("10256/healthz")
}

/// The same of `/readyz`.
pub(crate) fn readyz() -> String {
    get("10256/readyz")
}

/// What is served at the port and path.
pub(crate) fn get(what: &str) -> String {
    let (port, path) = what.split_once('/').unwrap();
    let Ok(mut stream) = TcpStream::connect(format!("127.0.0.1:{port}")) else {
        return String::new();
    };
    write!(stream, "GET /{path} HTTP/1.0\r\nhost: test\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text.split_once(' ').map_or_else(String::new, |(_, rest)| rest.to_owned())
}
