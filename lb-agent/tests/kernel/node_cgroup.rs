//! The real `lb-agent` finds the node's cgroup from wherever it is started, or says that it did not.

use std::{fs, process::Command};

use super::{
    machine::{
        CGROUP2, CORNER, HYBRID, Machine, POD_ALONE, Place, VERSION1, get, healthz, reaches, readyz,
    },
    world::{World, soon},
};

const PLAIN: Place = Place { agent: "system.slice/socklb.service", pod: "", ..Place::POD };

fn is_served_from(place: Place, says: &[&str]) {
    World::run(|world| {
        let machine = Machine::start(world, place);
        for words in says {
            machine.agent().wait_for_start(words);
        }
        machine.assert_served();
        assert!(!machine.agent().log().contains("ERROR"), "{}", machine.agent().log());
        let is_sure = !machine.agent().log().contains("cannot know");
        assert_eq!(is_sure, !says.iter().any(|words| words.contains("cannot know")));
    });
}

#[test]
fn a_process_on_the_machine() {
    is_served_from(PLAIN, &["attached cgroup=/sys/fs/cgroup\n"]);
}

#[test]
fn a_process_on_a_hybrid_machine() {
    is_served_from(
        Place { mounts: HYBRID, ..PLAIN },
        &["attached cgroup=/sys/fs/cgroup/unified\n"],
    );
}

#[test]
fn a_pod() {
    is_served_from(Place::POD, &["attached cgroup=/sys/fs/cgroup (/../.. seen from here)"]);
}

#[test]
fn a_pod_on_a_hybrid_machine() {
    let place = Place { mounts: HYBRID, ..Place::POD };
    is_served_from(place, &["attached cgroup=/sys/fs/cgroup/unified (/../.. seen from here)"]);
}

/// The node's first process is where k3d and Talos have it.
#[test]
fn a_pod_of_k3d() {
    is_served_from(Place { init: "init", ..Place::POD }, &["attached cgroup=/sys/fs/cgroup"]);
}

/// Nothing of the node is mounted in the pod: only its own corner, or version 1.
#[test]
fn a_pod_that_mounts_nothing() {
    for pod_mounts in [CORNER, VERSION1] {
        let place = Place { pod_mounts, ..Place::POD };
        is_served_from(place, &["attached cgroup=/../.. (seen from here, by a mount of our own)"]);
    }
}

/// Of two mounts the one that leads to the node counts.
#[test]
fn a_pod_with_its_corner_and_the_node() {
    let pod_mounts = "mount -t tmpfs tmpfs /mnt; mkdir /mnt/node; \
                      mount --move /sys/fs/cgroup /mnt/node; mount -t cgroup2 cgroup2 /sys/fs/cgroup";
    let place = Place { pod_mounts, ..Place::POD };
    is_served_from(place, &["attached cgroup=/mnt/node (/../.. seen from here)"]);
}

/// A read-only mount would do for the programs, but not for the canary.
#[test]
fn a_pod_that_mounts_the_node_s_read_only() {
    let pod_mounts = "mount -o remount,bind,ro /sys/fs/cgroup";
    let place = Place { pod_mounts, ..Place::POD };
    is_served_from(place, &["attached cgroup=/../.. (seen from here, by a mount of our own)"]);
}

/// kind on a hybrid machine: the node is a cgroup of the machine's namespace, and no cgroup2 is
/// mounted in it.
#[test]
fn a_node_without_cgroup2() {
    let place = Place { node: "", mounts: VERSION1, init: ".", pod: "", ..Place::POD };
    is_served_from(place, &["attached cgroup=/node (seen from here, by a mount of our own)"]);
    // With a namespace of its own, and with pods that have theirs.
    let place = Place { mounts: VERSION1, init: ".", ..Place::POD };
    is_served_from(place, &["attached cgroup=/../.. (seen from here, by a mount of our own)"]);
}

/// A node that sees the whole machine takes only what is its own.
#[test]
fn a_node_in_the_machine_s_namespace() {
    let place = Place { node: "", mounts: HYBRID, pod: "", ..Place::POD };
    is_served_from(place, &["attached cgroup=/sys/fs/cgroup/unified/node\n"]);
    let place = Place { node: "", mounts: ":", init: ".", ..Place::POD };
    is_served_from(place, &["attached cgroup=/../.. (seen from here, by a mount of our own)"]);
}

/// The machine's mount in a node with a namespace of its own: nobody tells the names of the way down.
#[test]
fn a_node_with_the_machine_s_mount() {
    let place = Place { mounts: ":", ..Place::POD };
    is_served_from(place, &["attached cgroup=/../.. (seen from here, by a mount of our own)"]);
}

/// The topmost cgroup in sight, and a warning.
#[test]
fn a_pod_without_the_node_s_processes() {
    let place = Place { pod: POD_ALONE, ..Place::POD };
    is_served_from(
        place,
        &["cannot know that this is the node's cgroup: lb-agent is PID 1", "hostPID"],
    );
}

#[test]
fn a_pod_that_sees_nothing_of_the_node() {
    for pod_mounts in [CORNER, VERSION1] {
        World::run(|world| {
            let place = Place { pod: POD_ALONE, pod_mounts, ..Place::POD };
            let words = ["this container sees no other cgroup than its own", "hostPID", "--cgroup"];
            Machine::start(world, place).refused(&words);
        });
    }
}

/// A mount of what was there before under the same name, as a container sees it whose node was
/// restarted.
#[test]
fn a_mount_of_a_removed_cgroup() {
    let mounts =
        "mount -t tmpfs tmpfs /sys/fs/cgroup; mount -t tmpfs tmpfs /mnt; mkdir /mnt/all /mnt/old
        mount -t cgroup2 cgroup2 /mnt/all; mkdir /mnt/all/odd; mount --bind /mnt/all/odd /mnt/old
        rmdir /mnt/all/odd; umount /mnt/all";
    let place = Place { mounts, init: "odd", agent: "odd/agent", pod: "", ..Place::POD };
    World::run(|world| {
        let machine = Machine::start(world, place);
        machine
            .agent()
            .wait_for_start("attached cgroup=/odd (seen from here, by a mount of our own)");
    });
    let pod_mounts = "set -- setpriv --bounding-set=-sys_admin \"$@\"";
    World::run(|world| {
        let words = ["the cgroup /mnt/old was removed", "which takes CAP_SYS_ADMIN", "hostPID"];
        Machine::start(world, Place { pod_mounts, ..place }).refused(&words);
    });
}

/// On the node and in the pod, by the paths of the node.
#[test]
fn lbctl_says_whose_sockets_are_served() {
    let (node, pod) = ("lbctl node", "lbctl pod");
    for (to, wanted) in [
        ("/sys/fs/cgroup", "cgroup:  / (the node's root: all its sockets)"),
        ("/sys/fs/cgroup/pods", "cgroup:  /pods (below the node's root: only sockets in there)"),
    ] {
        for mounts in [CGROUP2, VERSION1] {
            if mounts == VERSION1 && to.ends_with("pods") {
                continue;
            }
            let named = if to.ends_with("pods") {
                "set -- \"$@\" --cgroup=/sys/fs/cgroup/pods;"
            } else {
                ""
            };
            let mounts = format!("{mounts}; {node}");
            let place = Place {
                mounts: mounts.leak(),
                pod_mounts: format!("{named} {pod}").leak(),
                ..Place::POD
            };
            World::run(|world| {
                let machine = Machine::start(world, place);
                for from in ["node", "pod"] {
                    machine.agent().wait_for_start(&format!("{from}: {wanted}"));
                }
            });
        }
    }
}

/// PID 1 is in a cgroup of which nobody knows that it is not the node's.
#[test]
fn a_wrong_root_is_not_ready() {
    World::run(|world| {
        let place = Place { init: "odd", ..Place::POD };
        let machine = Machine::start(world, place);
        machine.agent().wait_for_start("in sync");
        assert!(!reaches(&machine.cgroup("pods/client")));
        let log = machine.agent().log();
        let log = log.lines().find(|line| line.contains("not ready")).unwrap();
        for words in [
            "processes of this node are outside of",
            "/sys/fs/cgroup/odd (/../../odd seen from here), which is not the node's",
            "name the cgroup by --cgroup",
        ] {
            assert!(log.contains(words), "{words}: {log}");
            for answer in [healthz(), readyz()] {
                assert!(answer.starts_with("503"), "{answer}");
                assert!(answer.contains(words), "{words}: {answer}");
                // Who they are is nobody else's business.
                for words in ["client", "sleep", "lb-agent", "in the cgroup"] {
                    assert!(!answer.contains(words), "{words}: {answer}");
                }
            }
        }
        let (_, example) = log.split_once(" example=process ").unwrap();
        let mut of = ["in the cgroup /../client", "in the cgroup /"].iter();
        assert!(of.any(|cgroup| example.ends_with(cgroup)), "{log}");
        // Once the tools that look for a kube-proxy have ended.
        let count = "\nsocklb_processes_outside 2\n";
        assert!(soon(|| get("10249/metrics").contains(count)), "{}", get("10249/metrics"));
        assert!(get("10256/livez").starts_with("200"), "a restart does not help");

        // They come home.
        for pod in ["pods/client", "pods/agent"] {
            let left = || {
                let pids = fs::read_to_string(machine.cgroup(pod).join("cgroup.procs")).unwrap();
                for pid in pids.lines() {
                    // A canary may be on its way, or back.
                    let _ = fs::write(machine.cgroup("odd/cgroup.procs"), pid);
                }
                pids
            };
            assert!(soon(|| left().is_empty()), "{}", left());
        }
        machine.agent().wait_for("all processes of the node are in the cgroup now");
        assert!(soon(|| healthz().starts_with("200")), "{}", healthz());
        assert!(readyz().starts_with("200"), "{}", readyz());
        assert_eq!(machine.agent().log().matches("not ready").count(), 1);
    });
}

/// The node's cgroup is removed, and is another one then.
#[test]
fn a_cgroup_that_is_removed_is_looked_for_again() {
    World::run(|world| {
        let place = Place { init: "odd", agent: "odd/agent", ..Place::POD };
        let machine = Machine::start(world, place);
        machine.agent().wait_for_start("in sync");
        // lb-agent starts tools of its own meanwhile.
        let script = "cd $1; mkdir even; for try in {1..50}; do \
                      for cgroup in odd odd/agent pods/client; do \
                      while read -r pid; do echo $pid >even/cgroup.procs || true; done \
                      <$cgroup/cgroup.procs || true; done; \
                      rmdir odd/agent odd && exit; sleep 0.1; done; exit 1";
        let mut bash = Command::new("bash");
        bash.args(["-ec", script, "move"]).arg(machine.cgroup(""));
        assert!(bash.status().unwrap().success());
        machine
            .agent()
            .wait_for("the cgroup /.. (seen from here, by a mount of our own) was removed");
        assert!(soon(|| reaches(&machine.cgroup("even"))));
        assert!(soon(|| healthz().starts_with("200")), "{}", healthz());
    });
}

/// The user's own choice: served, ready, and said.
#[test]
fn a_cgroup_that_is_named() {
    World::run(|world| {
        let place =
            Place { pod_mounts: "set -- \"$@\" --cgroup=/sys/fs/cgroup/pods", ..Place::POD };
        let machine = Machine::start(world, place);
        machine.agent().wait_for_start("in sync");
        machine.agent().wait_for("only sockets of this cgroup are served, as --cgroup says");
        assert!(reaches(&machine.cgroup("pods/client")));
        assert!(!reaches(&machine.cgroup("")));
        assert!(soon(|| healthz().starts_with("200")), "{}", healthz());
    });
}
