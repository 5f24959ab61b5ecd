//! Which cgroup is the node's, and how to get there: a pure function of what a process sees.

use std::path::PathBuf;

use super::location::{Location, Way};
use crate::mounts::Mount;

/// What a process sees of the hierarchy.
#[derive(Clone, Debug)]
pub(super) struct Hierarchy {
    pub(super) pid: u32,
    /// Its own cgroup.
    pub(super) own: Location,
    /// That of PID 1; none if it was removed.
    pub(super) init: Option<Location>,
    /// Whether the process descends from PID 1.
    pub(super) descends: bool,
    /// Whether a hierarchy of version 1 has the two in different cgroups: no container is in two.
    pub(super) apart: bool,
    /// The mounts of cgroup2.
    pub(super) mounts: Vec<Mount>,
}

/// Where the node's cgroup is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct NodeLocation {
    pub(super) node: Location,
    /// Why that may be wrong.
    pub(super) doubt: Option<&'static str>,
    /// The directories to try, in this order.
    pub(super) ways: Vec<CgroupMount>,
}

/// How to get to the node's cgroup.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum CgroupMount {
    /// By a mount that is there.
    Visible(PathBuf),
    /// By one of our own, in the cgroup namespace of PID 1.
    OfInit,
    /// The same in our own cgroup namespace.
    Own,
}

impl Hierarchy {
    /// Whose first process PID 1 is: of a node, or only of the container that this one is in too.
    fn doubt(&self) -> Option<&'static str> {
        if self.pid == 1 {
            Some("lb-agent is PID 1 of its container, and sees no other process of the node")
        } else if !self.descends {
            Some("lb-agent does not descend from PID 1, which thus need not be the node's")
        } else if self.init.as_ref() == Some(&self.own) && !self.apart {
            Some("PID 1 and lb-agent are in one cgroup, as in a container")
        } else {
            None
        }
    }

    /// None if the cgroup of PID 1 is needed, and was removed.
    pub(super) fn choose(&self) -> Option<NodeLocation> {
        let mounts =
            || self.mounts.iter().filter_map(|mount| Some((Location::parse(&mount.root)?, mount)));
        let doubt = self.doubt();
        let node = if doubt.is_some() {
            // As high as can be seen.
            let above = mounts().filter(|(root, _)| self.own.from(root).is_some());
            let top = above
                .map(|(root, _)| root)
                .max_by_key(|root| (root.up, usize::MAX - root.down.len()));
            top.unwrap_or_default()
        } else {
            self.init.clone()?.of_machine()
        };
        let visible = |read_only| {
            let node = &node;
            mounts()
                .filter(move |(_, mount)| mount.read_only == read_only)
                .filter_map(move |(root, mount)| {
                    match node.from(&root)? {
                        // Without a slash at the end.
                        Way::Down(path) if path.as_os_str().is_empty() => Some(mount.path.clone()),
                        Way::Down(path) => Some(mount.path.join(path)),
                        Way::Nameless => None,
                    }
                })
                .map(CgroupMount::Visible)
        };
        let private = if doubt.is_none() {
            Some(CgroupMount::OfInit)
        } else {
            (node.up == 0 && node.down.is_empty()).then_some(CgroupMount::Own)
        };
        let ways = visible(false).chain(private).chain(visible(true)).collect();
        Some(NodeLocation { node, doubt, ways })
    }
}

#[cfg(test)]
mod tests;
