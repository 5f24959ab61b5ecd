//! Whose sockets are served, as the node knows its cgroups: in a container their paths are others.

use std::{fmt, path::Path};

use serde::Serialize;

use super::programs::{ProgramStatus, State, is_cgroup, search};
use crate::node_cgroup::Cgroup;

/// The cgroup that the programs are attached to.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ServedCgroup {
    /// Its path below the node's own cgroup, or what looks like that; null if it is not there.
    pub(super) path: Option<String>,
    /// Whether it is the node's own cgroup; null if that is not known for sure.
    pub(super) is_node: Option<bool>,
    #[serde(skip)]
    pub(super) id: u64,
}

impl fmt::Display for ServedCgroup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.path, self.is_node) {
            (Some(path), Some(true)) => write!(f, "{path} (the node's root: all its sockets)"),
            (Some(path), Some(false)) => {
                write!(f, "{path} (below the node's root: only sockets in there)")
            }
            (Some(path), None) if path == "/" => write!(f, "{path} (the topmost cgroup seen here)"),
            (Some(path), None) => write!(f, "{path} (below the topmost cgroup seen here)"),
            (None, Some(_)) => write!(f, "id {} (not below the node's root)", self.id),
            (None, None) => write!(f, "id {} (not seen here)", self.id),
        }
    }
}

/// None if the programs are attached to none, or not to the same.
pub(super) fn find(programs: &[ProgramStatus]) -> Option<ServedCgroup> {
    let mut ids: Vec<u64> = programs
        .iter()
        .filter(|program| [State::Attached, State::Unpinned].contains(&program.state))
        .filter_map(|program| program.cgroup_id)
        .collect();
    ids.dedup();
    let [id] = *ids else { return None };
    let node = Cgroup::of_node().ok();
    let place = node.as_ref().and_then(|node| Some((node.path(), node.id().ok()?)));
    let found = served(id, place);
    let is_sure = node.is_some_and(|node| node.doubt().is_none());
    Some(ServedCgroup { is_node: found.is_node.filter(|_| is_sure), ..found })
}

fn served(id: u64, node: Option<(&Path, u64)>) -> ServedCgroup {
    let Some((node, of_node)) = node else { return ServedCgroup { path: None, is_node: None, id } };
    let below =
        |path: std::path::PathBuf| Some(format!("/{}", path.strip_prefix(node).ok()?.display()));
    ServedCgroup {
        path: search(node, &is_cgroup(id)).and_then(below),
        is_node: Some(id == of_node),
        id,
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::MetadataExt as _};

    use super::*;

    #[test]
    fn a_cgroup_as_the_node_knows_it() {
        let root = tempfile::tempdir().unwrap();
        let (node, pod) = (root.path().join("node"), root.path().join("node/kubepods/pod"));
        fs::create_dir_all(&pod).unwrap();
        let id = |path: &Path| fs::metadata(path).unwrap().ino();
        let seen = |path: &Path| served(id(path), Some((&node, id(&node)))).to_string();
        assert_eq!(seen(&node), "/ (the node's root: all its sockets)");
        assert_eq!(seen(&pod), "/kubepods/pod (below the node's root: only sockets in there)");
        assert!(seen(root.path()).ends_with("(not below the node's root)"));
        let unknown = served(7, None);
        assert_eq!(unknown.to_string(), "id 7 (not seen here)");
        let unsure = ServedCgroup { is_node: None, ..served(id(&pod), Some((&node, id(&node)))) };
        assert_eq!(unsure.to_string(), "/kubepods/pod (below the topmost cgroup seen here)");
        assert_eq!(
            serde_json::to_value(unknown).unwrap(),
            serde_json::json!({ "path": null, "isNode": null })
        );
    }
}
