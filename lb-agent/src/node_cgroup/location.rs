//! A place in the hierarchy of cgroups, by the path that the kernel gives it.
//!
//! The kernel counts from the root of the reader's cgroup namespace: `/../../a` is two steps up from
//! there, then down to `a`. The names of what lies above are not told.

use std::{fmt, path::PathBuf};

/// Where systemd, Talos, k3d and Docker in Docker put PID 1 of a machine, below the cgroup of the
/// machine.
const OF_INIT: [&str; 2] = ["init.scope", "init"];

/// So many steps up, then down.
#[derive(Clone, Debug, Default, Eq, Hash, PartialEq)]
pub(super) struct Location {
    pub(super) up: usize,
    pub(super) down: Vec<String>,
}

/// How to get from a cgroup to one below it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Way {
    /// By this path; empty if it is the same one.
    Down(PathBuf),
    /// By names that are not told.
    Nameless,
}

impl Location {
    /// None if it is no path of a cgroup.
    pub(super) fn parse(path: &str) -> Option<Self> {
        let mut names =
            path.strip_prefix('/')?.split('/').filter(|name| !name.is_empty()).peekable();
        let mut up = 0;
        while names.next_if_eq(&"..").is_some() {
            up += 1;
        }
        let down: Vec<_> = names.map(str::to_owned).collect();
        (!down.iter().any(|name| name == "..")).then_some(Self { up, down })
    }

    /// The cgroup of a process, by its `/proc/PID/cgroup`: none if cgroup2 is in no use, or the cgroup
    /// was removed.
    pub(super) fn of_process(text: &str) -> Option<Self> {
        let path = text.lines().find_map(|line| line.strip_prefix("0::"))?;
        if path.ends_with(" (deleted)") { None } else { Self::parse(path) }
    }

    /// The cgroup of a machine, whose first process is in this one.
    pub(super) fn of_machine(mut self) -> Self {
        if self.down.last().is_some_and(|name| OF_INIT.contains(&name.as_str())) {
            self.down.pop();
        }
        self
    }

    /// The way to this cgroup from one above it, or from itself; none if it lies elsewhere.
    pub(super) fn from(&self, above: &Self) -> Option<Way> {
        if above.up > self.up && above.down.is_empty() {
            return Some(Way::Nameless);
        }
        let same = above.up == self.up;
        same.then(|| self.down.strip_prefix(above.down.as_slice()))
            .flatten()
            .map(|names| Way::Down(names.iter().collect()))
    }

    pub(super) fn join(mut self, path: &std::path::Path) -> Self {
        self.down.extend(path.iter().map(|name| name.to_string_lossy().into_owned()));
        self
    }
}

/// Whether one of the other hierarchies, those of version 1, has two processes in different cgroups, by
/// their `/proc/PID/cgroup`.
pub(super) fn apart(one: &str, other: &str) -> bool {
    let of_version_1 = |line: &&str| !line.starts_with("0::");
    one.lines().filter(of_version_1).ne(other.lines().filter(of_version_1))
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.up == 0 && self.down.is_empty() {
            return f.write_str("/");
        }
        for name in std::iter::repeat_n("..", self.up).chain(self.down.iter().map(String::as_str)) {
            write!(f, "/{name}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(path: &str) -> Location {
        Location::parse(path).unwrap()
    }

    #[test]
    fn what_the_kernel_writes() {
        for path in ["/", "/..", "/../..", "/a/b", "/../a b/c"] {
            assert_eq!(at(path).to_string(), path);
        }
        assert_eq!(at("/../../a"), Location { up: 2, down: vec!["a".into()] });
        for path in ["", "a", "/a/../b"] {
            assert_eq!(Location::parse(path), None, "{path}");
        }
        let of = Location::of_process;
        assert_eq!(of("9:name=systemd:/x\n0::/a/b\n"), Some(at("/a/b")));
        assert_eq!(of("1:cpu:/\n"), None, "cgroup2 is in no use");
        assert_eq!(of("0::/a (deleted)\n"), None);
    }

    #[test]
    fn first_processes() {
        for (init, machine) in [
            ("/", "/"),
            ("/init.scope", "/"),
            ("/init", "/"),
            ("/../../init.scope", "/../.."),
            ("/docker/0af3/init.scope", "/docker/0af3"),
            ("/docker/0af3", "/docker/0af3"),
            ("/system.slice", "/system.slice"),
        ] {
            assert_eq!(at(init).of_machine(), at(machine), "{init}");
        }
    }

    #[test]
    fn ways() {
        let way = |from: &str, to: &str| at(to).from(&at(from));
        let down = |path: &str| Some(Way::Down(path.into()));
        assert_eq!(way("/", "/"), down(""));
        assert_eq!(way("/", "/a/b"), down("a/b"));
        assert_eq!(way("/a", "/a/b"), down("b"));
        assert_eq!(way("/..", "/.."), down(""));
        assert_eq!(way("/..", "/../a"), down("a"));
        assert_eq!(way("/..", "/a"), Some(Way::Nameless));
        assert_eq!(way("/../..", "/.."), Some(Way::Nameless));
        for (from, to) in [
            ("/a", "/"),
            ("/a", "/ab"),
            ("/a", "/b/a"),
            ("/", "/.."),
            ("/../a", "/"),
            ("/../a", "/.."),
        ] {
            assert_eq!(way(from, to), None, "{from} {to}");
        }
    }
}
