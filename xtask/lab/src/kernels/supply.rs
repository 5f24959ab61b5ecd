//! What is brought for a kernel, and kept in the user's cache: itself with its modules, by version;
//! and the programs that tests start, from the packages of the same architecture.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};
use sha2::{Digest as _, Sha256};
use tools::{
    cache::{Scratch, cache},
    exec::exec,
    path,
};

use super::{
    apt::{self, Apt},
    arch::Arch,
    choice,
};

/// What tests start. Process 1 is busybox, which also stands for the small tools.
const PROGRAMS: &[&str] =
    &["bash", "busybox-static", "ipset", "iproute2", "iptables", "kmod", "nftables", "python3"];
/// Of packages, what nobody reads in there.
const PAPERS: &[&str] = &["doc", "info", "lintian", "locale", "man", "perl5"];

/// A kernel that can be booted.
pub(super) struct Kernel {
    pub(super) arch: &'static Arch,
    /// What `uname -r` says in it.
    pub(super) release: String,
    directory: PathBuf,
}

impl Kernel {
    /// The file that is booted.
    pub(super) fn image(&self) -> PathBuf {
        self.directory.join(format!("boot/vmlinuz-{}", self.release))
    }

    /// Below `lib/modules`.
    pub(super) fn modules(&self) -> PathBuf {
        self.directory.join("lib/modules").join(&self.release)
    }
}

/// Where the supplies of one architecture come from.
pub(super) struct Supply {
    arch: &'static Arch,
    apt: Apt,
    directory: PathBuf,
}

impl Supply {
    pub(super) fn new(arch: &'static Arch) -> Result<Self> {
        let directory = cache()?.join("kernels");
        Ok(Self { arch, apt: Apt::new(arch, &directory)?, directory })
    }

    /// The release that a word stands for: the newest that apt's sources have, or else that the cache
    /// has.
    pub(super) fn release(&self, wanted: &str) -> Result<String> {
        let of_apt = self.apt.names(&choice::package(""))?;
        choice::choose(wanted, &of_apt, self.arch.debian).or_else(|error| {
            let cached = fs::read_dir(&self.directory)?
                .filter_map(|entry| entry.ok()?.file_name().into_string().ok());
            let cached: Vec<String> = cached.collect();
            choice::choose(wanted, &cached, self.arch.debian).map_err(|_| error)
        })
    }

    /// The kernel of that release.
    pub(super) fn kernel(&self, release: &str) -> Result<Kernel> {
        let package = choice::package(release);
        let directory = self.make(&package, |into| {
            self.apt.unpack(&package, into)?;
            // Packages leave it to the machine to find out which module needs which.
            // An ordinary user of Debian has no /usr/sbin in PATH.
            let mut depmod = Command::new(path::find("depmod").context("there is no depmod")?);
            exec(depmod.arg("--basedir").arg(into).arg(release))
        })?;
        Ok(Kernel { arch: self.arch, release: release.to_owned(), directory })
    }

    /// The directory that is the root of a guest's programs.
    pub(super) fn programs(&self) -> Result<PathBuf> {
        // Of other packages, another directory.
        let digest = Sha256::digest(PROGRAMS.join(" "));
        let key = u32::from_be_bytes([digest[0], digest[1], digest[2], digest[3]]);
        self.make(&format!("programs-{}-{key:08x}", self.arch.debian), |into| {
            self.apt.unpack_all(PROGRAMS, into)?;
            for papers in PAPERS {
                let papers = into.join("usr/share").join(papers);
                if papers.exists() {
                    fs::remove_dir_all(&papers)?;
                }
            }
            // Of a distribution that has put both into one, packages have only the one.
            for name in ["bin", "sbin", "lib", "lib64"] {
                let inside = Path::new("usr").join(name);
                if !into.join(name).exists() && into.join(&inside).exists() {
                    symlink(inside, into.join(name))?;
                }
            }
            Ok(())
        })
    }

    fn make(&self, name: &str, make: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
        let whole = self.directory.join(name);
        let _turn = apt::turn()?;
        if !whole.exists() {
            eprintln!("Fetching {name} for {} into the cache, once.", self.arch.name);
            let scratch = Scratch::new(&self.directory)?;
            let into = scratch.0.join(name);
            fs::create_dir(&into)?;
            make(&into).with_context(|| format!("cannot bring {name}"))?;
            scratch.deliver(name, &self.directory)?;
        }
        Ok(whole)
    }
}
