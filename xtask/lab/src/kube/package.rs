//! Programs that are not built: found on the machine, or taken out of the distribution's packages.
//! Those are unpacked, not installed: a service would start on the machine, and unpacking needs no
//! root.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};
use tools::{
    exec::{ask, exec},
    path,
    root::as_root,
};

/// Programs that come together, all from one place.
pub(crate) struct Package {
    /// Its name in Debian.
    debian: &'static str,
    /// The programs by the names that they get here, and where the package has them.
    pub(crate) programs: &'static [(&'static str, &'static str)],
    /// Where they are, apart from the directories of the PATH.
    elsewhere: &'static [&'static str],
    /// What to do without Debian's packages.
    remedy: &'static str,
}

pub(crate) const ETCD: Package = Package {
    debian: "etcd-server",
    programs: &[("etcd", "usr/bin/etcd")],
    elsewhere: &[],
    remedy: "etcd is missing: put the program `etcd` (3.4 or later) on the PATH",
};

pub(crate) const CONTAINERD: Package = Package {
    debian: "containerd",
    programs: &[
        ("containerd", "usr/bin/containerd"),
        ("containerd-shim-runc-v2", "usr/bin/containerd-shim-runc-v2"),
        ("ctr", "usr/bin/ctr"),
    ],
    elsewhere: &[],
    remedy: "containerd is missing: put `containerd`, `containerd-shim-runc-v2` and `ctr` (1.6 or \
        later) on the PATH",
};

pub(crate) const RUNC: Package = Package {
    debian: "runc",
    programs: &[("runc", "usr/sbin/runc")],
    elsewhere: &[],
    remedy: "runc is missing: put the program `runc` (1.1 or later) on the PATH",
};

pub(crate) const CNI: Package = Package {
    debian: "containernetworking-plugins",
    programs: &[
        ("cni/bridge", "usr/lib/cni/bridge"),
        ("cni/host-local", "usr/lib/cni/host-local"),
        ("cni/loopback", "usr/lib/cni/loopback"),
        ("cni/portmap", "usr/lib/cni/portmap"),
    ],
    elsewhere: &["/opt/cni/bin", "/usr/lib/cni", "/usr/libexec/cni"],
    remedy: "the CNI plugins are missing: put `bridge`, `host-local`, `loopback` and `portmap` \
        into /opt/cni/bin",
};

/// Static, so that it runs in any image.
pub(crate) const BUSYBOX: Package = Package {
    debian: "busybox-static",
    programs: &[("busybox", "bin/busybox")],
    elsewhere: &[],
    remedy: "busybox is missing: put the program `busybox` on the PATH",
};

/// Puts the programs of a package into `into`: as links, if the machine has all of them.
pub(crate) fn bring(package: &Package, into: &Path) -> Result<()> {
    let found = package.programs.iter().map(|(name, _)| Some((*name, find(package, name)?)));
    if let Some(found) = found.collect::<Option<Vec<_>>>() {
        for (name, program) in found {
            symlink(&program, place(into, name)?)
                .with_context(|| format!("cannot link {}", program.display()))?;
        }
        return Ok(());
    }
    let tree = unpack(package, into)?;
    for (name, path) in package.programs {
        fs::rename(tree.join(path), place(into, name)?)
            .with_context(|| format!("the package {} has no {path}", package.debian))?;
    }
    Ok(())
}

fn find(package: &Package, name: &str) -> Option<PathBuf> {
    // Any program may be called `bridge`, and iproute2's is.
    let found = if name.contains('/') { None } else { path::find(name) };
    let program = Path::new(name).file_name()?.to_str()?;
    found.or_else(|| path::find_in(package.elsewhere.iter().map(PathBuf::from), program))
}

fn place(into: &Path, name: &str) -> Result<PathBuf> {
    let place = into.join(name);
    if let Some(parent) = place.parent() {
        fs::create_dir_all(parent)?;
    }
    Ok(place)
}

/// The files of a package, in a directory below `into`.
fn unpack(package: &Package, into: &Path) -> Result<PathBuf> {
    let Package { debian, remedy, .. } = *package;
    if ask(Command::new("apt-get").arg("--version")).is_none() {
        bail!(remedy);
    }
    eprintln!("Unpacking the distribution's package {debian}; nothing is installed.");
    if ask(Command::new("apt-cache").args(["show", debian])).is_none() {
        update().context(remedy)?;
    }
    // A program may be called like its package.
    let tree = into.join(format!("{debian}.unpacked"));
    fs::create_dir_all(&tree)?;
    let mut download = Command::new("apt-get");
    // As root apt would download as another user, who may not write here.
    download.args(["download", "--quiet", "-o", "APT::Sandbox::User=root", debian]);
    // Lists that are old name what is no longer there.
    if exec(download.current_dir(&tree)).is_err() {
        update().and_then(|()| exec(&mut download)).context(remedy)?;
    }
    let is_package = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "deb");
    let mut files = fs::read_dir(&tree)?.filter_map(|entry| Some(entry.ok()?.path()));
    let archive = files.find(is_package).context("apt-get downloaded no package")?;
    exec(Command::new("dpkg-deb").arg("--extract").arg(&archive).arg(&tree)).context(remedy)?;
    Ok(tree)
}

fn update() -> Result<()> {
    let mut update = Command::new("apt-get");
    update.args(["update", "--quiet"]);
    exec(&mut as_root(update))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_found_by_its_own_name_only_where_it_may_be() {
        const SHELL: Package =
            Package { debian: "dash", programs: &[], elsewhere: &[], remedy: "none" };
        assert!(find(&SHELL, "sh").is_some_and(|path| path.ends_with("sh")));
        assert_eq!(find(&SHELL, "no-such-program"), None);
        assert_eq!(find(&SHELL, "cni/sh"), None);
        let there = Package { elsewhere: &["/bin"], ..SHELL };
        assert_eq!(find(&there, "cni/sh"), Some("/bin/sh".into()));
    }

    #[test]
    fn programs_of_the_machine_are_linked() {
        const SHELL: Package = Package {
            debian: "dash",
            programs: &[("below/sh", "bin/sh"), ("below/cat", "bin/cat")],
            elsewhere: &["/bin"],
            remedy: "none",
        };
        let scratch = tools::cache::Scratch::new(&std::env::temp_dir()).unwrap();
        bring(&SHELL, &scratch.0).unwrap();
        assert_eq!(fs::read_link(scratch.0.join("below/cat")).unwrap(), Path::new("/bin/cat"));
    }
}
