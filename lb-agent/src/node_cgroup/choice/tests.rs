//! What is seen on each kind of machine, in the words of the kernel; shortened to what counts.

use super::*;
use crate::{mounts, node_cgroup::location};

struct Layout {
    pid: u32,
    own: &'static str,
    init: &'static str,
    descends: bool,
    mountinfo: &'static str,
}

impl Layout {
    /// As `lb-agent` in a pod with `hostPID`.
    const fn pod(own: &'static str, init: &'static str, mountinfo: &'static str) -> Self {
        Self { pid: 4711, own, init, descends: true, mountinfo }
    }

    fn seen(&self) -> Hierarchy {
        let mut mounts = mounts::parse(self.mountinfo);
        mounts.retain(|mount| mount.kind == "cgroup2");
        Hierarchy {
            pid: self.pid,
            own: Location::of_process(self.own).unwrap(),
            init: Location::of_process(self.init),
            descends: self.descends,
            apart: location::apart(self.own, self.init),
            mounts,
        }
    }

    /// The node's cgroup, and how to get there.
    fn finds(&self, node: &str, ways: &[CgroupMount]) -> NodeLocation {
        let choice = self.seen().choose().unwrap();
        assert_eq!(choice.node.to_string(), node);
        assert_eq!(choice.ways, ways);
        choice
    }
}

fn at(path: &str) -> CgroupMount {
    CgroupMount::Visible(path.into())
}

#[test]
fn a_machine_with_cgroup2_only() {
    let machine = Layout::pod(
        "0::/system.slice/socklb.service\n",
        "0::/init.scope\n",
        "35 24 0:30 / /sys/fs/cgroup rw,nosuid,nodev,noexec,relatime shared:9 - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot\n",
    );
    let choice = machine.finds("/", &[at("/sys/fs/cgroup"), CgroupMount::OfInit]);
    assert_eq!(choice.doubt, None);
    let by_hand = Layout { own: "0::/user.slice/user-1000.slice/session-3.scope\n", ..machine };
    by_hand.finds("/", &[at("/sys/fs/cgroup"), CgroupMount::OfInit]);
}

#[test]
fn a_hybrid_machine() {
    let mountinfo = "\
31 23 0:28 / /sys/fs/cgroup ro,nosuid shared:5 - tmpfs tmpfs ro,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime shared:6 - cgroup cgroup rw,cpu
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime shared:7 - cgroup2 cgroup2 rw,nsdelegate
";
    let of = |path: &str| format!("9:name=systemd:{path}\n4:memory:/x\n0::{path}\n");
    let (own, init) = (of("/system.slice/socklb.service"), of("/init.scope"));
    let machine = Layout::pod(own.leak(), init.leak(), mountinfo);
    machine.finds("/", &[at("/sys/fs/cgroup/unified"), CgroupMount::OfInit]);
}

/// BusyBox and OpenRC leave PID 1 in the root, and all that is started by hand too.
#[test]
fn a_machine_without_systemd() {
    let mountinfo = "35 24 0:30 / /sys/fs/cgroup rw - cgroup2 none rw,nsdelegate\n";
    let service = Layout::pod("0::/openrc.socklb\n", "0::/\n", mountinfo);
    assert_eq!(service.finds("/", &[at("/sys/fs/cgroup"), CgroupMount::OfInit]).doubt, None);
    let by_hand = Layout { own: "0::/\n", ..service };
    // Which proves right when it is the root of all.
    assert!(by_hand.finds("/", &[at("/sys/fs/cgroup"), CgroupMount::Own]).doubt.is_some());
}

const POD: &str = "0::/\n";

/// With `hostPID` and the host's `/sys/fs/cgroup` in place of the container's own.
#[test]
fn a_pod() {
    let pod = Layout::pod(
        POD,
        "0::/../../../../init.scope\n",
        "1201 1100 0:30 /../../../.. /sys/fs/cgroup rw,nosuid,nodev,noexec,relatime master:9 - cgroup2 cgroup2 rw,nsdelegate\n",
    );
    assert_eq!(pod.finds("/../../../..", &[at("/sys/fs/cgroup"), CgroupMount::OfInit]).doubt, None);
}

/// The host's elsewhere, and the container's own corner where the node's is looked for at first.
#[test]
fn a_pod_with_two_mounts() {
    let pod = Layout::pod(
        POD,
        "0::/../../../init.scope\n",
        "1200 1100 0:30 / /sys/fs/cgroup ro,nosuid - cgroup2 cgroup rw\n\
         1201 1100 0:30 /../../.. /host/sys/fs/cgroup rw,nosuid master:9 - cgroup2 cgroup2 rw\n",
    );
    pod.finds("/../../..", &[at("/host/sys/fs/cgroup"), CgroupMount::OfInit]);
    let read_only = Layout {
        mountinfo: "1201 1100 0:30 /../../.. /sys/fs/cgroup ro - cgroup2 cgroup2 rw\n",
        ..pod
    };
    read_only.finds("/../../..", &[CgroupMount::OfInit, at("/sys/fs/cgroup")]);
}

/// Nothing of the host: the container's own corner is not an answer.
#[test]
fn a_pod_that_mounts_nothing() {
    let pod = Layout::pod(
        POD,
        "0::/../../../init.scope\n",
        "1200 1100 0:30 / /sys/fs/cgroup ro,nosuid - cgroup2 cgroup rw\n",
    );
    pod.finds("/../../..", &[CgroupMount::OfInit]);
}

/// kind where there is cgroup2 only: a node is a container with a cgroup namespace, and so is a pod.
#[test]
fn a_pod_of_kind() {
    let pod = Layout::pod(
        POD,
        "0::/../../../../init.scope\n",
        "2201 2100 0:30 /../../../.. /sys/fs/cgroup rw,nosuid master:9 - cgroup2 cgroup rw\n",
    );
    pod.finds("/../../../..", &[at("/sys/fs/cgroup"), CgroupMount::OfInit]);
    // The node shares the machine's cgroup namespace, and its mount.
    let shared = Layout::pod(
        "0::/docker/0af3/kubelet.slice/kubepods.slice/pod7/c1\n",
        "0::/docker/0af3/init.scope\n",
        "2201 2100 0:30 / /sys/fs/cgroup rw,nosuid master:9 - cgroup2 cgroup rw\n",
    );
    shared.finds("/docker/0af3", &[at("/sys/fs/cgroup/docker/0af3"), CgroupMount::OfInit]);
    // The machine's mount in a node with a namespace of its own: the way down has no names.
    let nameless = Layout::pod(
        POD,
        "0::/../..\n",
        "2201 2100 0:30 /../../../.. /sys/fs/cgroup rw,nosuid master:9 - cgroup2 cgroup rw\n",
    );
    nameless.finds("/../..", &[CgroupMount::OfInit]);
}

/// kind on a hybrid machine: only version 1 is mounted inside, and pods share the machine's cgroup
/// namespace.
#[test]
fn a_pod_of_kind_on_a_hybrid_machine() {
    let pod = Layout::pod(
        "4:memory:/docker/0af3/kubelet.slice/pod7/c1\n0::/docker/0af3/kubelet.slice/pod7/c1\n",
        "4:memory:/docker/0af3\n0::/docker/0af3\n",
        "31 23 0:28 / /sys/fs/cgroup ro,nosuid - tmpfs tmpfs ro,mode=755\n\
         32 31 0:29 /docker/0af3 /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n",
    );
    pod.finds("/docker/0af3", &[CgroupMount::OfInit]);
}

/// The same where systemd and Docker leave version 2 alone: the node has one cgroup of it, and only
/// version 1 tells a pod from PID 1.
#[test]
fn a_pod_of_kind_whose_systemd_uses_version_1() {
    let mountinfo = "\
31 23 0:28 / /sys/fs/cgroup ro,nosuid - tmpfs tmpfs ro,mode=755
32 31 0:29 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
";
    let pod = Layout::pod(
        "9:name=systemd:/kubelet.slice/pod7/c1\n3:cpuset:/\n0::/\n",
        "9:name=systemd:/init.scope\n3:cpuset:/\n0::/\n",
        mountinfo,
    );
    assert_eq!(pod.finds("/", &[CgroupMount::OfInit]).doubt, None);
    // An init of the container's own is where the container is.
    let tini = Layout { init: pod.own, ..pod };
    assert!(tini.finds("/", &[CgroupMount::Own]).doubt.unwrap().contains("are in one cgroup"));
}

/// k3d, Talos: PID 1 is in `/init` of the node.
#[test]
fn nodes_with_another_name_for_the_first_cgroup() {
    let pod = Layout::pod(
        POD,
        "0::/../../../init\n",
        "1201 1100 0:30 /../../.. /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate\n",
    );
    pod.finds("/../../..", &[at("/sys/fs/cgroup"), CgroupMount::OfInit]);
}

#[test]
fn without_the_processes_of_the_node() {
    let mount = "1201 1100 0:30 /../../.. /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
    let pod = Layout { pid: 1, own: POD, init: POD, descends: true, mountinfo: mount };
    // The topmost directory in sight.
    let choice = pod.finds("/../../..", &[at("/sys/fs/cgroup")]);
    assert!(choice.doubt.unwrap().contains("is PID 1 of its container"));
    // An init of the container's own; a pod whose containers share their processes.
    let tini = Layout { pid: 7, ..pod };
    let choice = tini.finds("/../../..", &[at("/sys/fs/cgroup")]);
    assert!(choice.doubt.unwrap().contains("are in one cgroup"));
    let pause = Layout { init: "0::/../pause\n", descends: false, ..tini };
    let choice = pause.finds("/../../..", &[at("/sys/fs/cgroup")]);
    assert!(choice.doubt.unwrap().contains("does not descend from PID 1"));
    // Nothing but the own corner, or not even that. That of another pod is no answer.
    let corner = Layout { mountinfo: "7 6 0:30 / /sys/fs/cgroup ro - cgroup2 cgroup rw\n", ..tini };
    corner.finds("/", &[CgroupMount::Own, at("/sys/fs/cgroup")]);
    let blind = Layout { mountinfo: "7 6 0:30 /../other /mnt rw - cgroup2 cgroup rw\n", ..tini };
    blind.finds("/", &[CgroupMount::Own]);
}

#[test]
fn a_first_process_whose_cgroup_is_gone() {
    let mountinfo = "35 24 0:30 / /sys/fs/cgroup rw - cgroup2 none rw\n";
    let layout = Layout::pod("0::/a\n", "0::/b (deleted)\n", mountinfo);
    assert_eq!(layout.seen().choose(), None);
}
