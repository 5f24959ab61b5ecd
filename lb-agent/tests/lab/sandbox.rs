//! Namespaces for network and mounts, made for the calling thread and all it starts. Anonymous: the
//! kernel removes them, with every address and mount in them, when the last process in them ends,
//! even if the test was killed.

use std::{
    env, fs,
    marker::PhantomData,
    path::{Path, PathBuf},
    process::{self, Command},
};

use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, unshare},
    unistd::Uid,
};

/// Directories and cgroups of a test are called so, followed by its process id: whoever finds one
/// knows whether its owner is alive.
const PREFIX: &str = "socklb-apiserver-";

/// The namespaces, entered. Drop it after the processes in it; the thread stays inside.
pub(crate) struct Sandbox {
    directory: PathBuf,
    /// It is true of one thread only.
    _thread: PhantomData<*const ()>,
}

impl Sandbox {
    /// Moves the calling thread into new namespaces, where loopback is all there is; `addresses`
    /// (prefixes too) are put on it.
    pub(crate) fn enter(addresses: &[&str]) -> Self {
        assert!(
            Uid::effective().is_root(),
            "this test makes namespaces and loads BPF programs: run it as root"
        );
        remove_stale(&env::temp_dir());
        unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).expect("new namespaces");
        let nothing = None::<&str>;
        mount(nothing, "/", nothing, MsFlags::MS_REC | MsFlags::MS_PRIVATE, nothing)
            .expect("mounts that stay in this namespace");
        let directory = env::temp_dir().join(own_name());
        fs::create_dir(&directory).expect("a directory");
        mount(Some("tmpfs"), &directory, Some("tmpfs"), MsFlags::empty(), nothing)
            .expect("a tmpfs for what the test writes");
        ip(&["link", "set", "lo", "up"]);
        for address in addresses {
            ip(&["address", "add", address, "dev", "lo"]);
        }
        Self { directory, _thread: PhantomData }
    }

    /// In memory, and gone with the sandbox.
    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        let unmounted = umount2(&self.directory, MntFlags::MNT_DETACH);
        let removed = fs::remove_dir(&self.directory);
        if unmounted.is_err() || removed.is_err() {
            eprintln!("{} stays behind: {unmounted:?} {removed:?}", self.directory.display());
        }
    }
}

/// What this process calls what it makes.
pub(super) fn own_name() -> String {
    format!("{PREFIX}{}", process::id())
}

/// Removes the empty directories and cgroups in `parent` that earlier runs left when they were killed.
pub(super) fn remove_stale(parent: &Path) {
    for entry in fs::read_dir(parent).expect("a directory that can be read").flatten() {
        let name = entry.file_name();
        let Some(rest) = name.to_str().and_then(|name| name.strip_prefix(PREFIX)) else { continue };
        let owner = rest.split('-').next().unwrap_or(rest);
        if Path::new("/proc").join(owner).exists() {
            continue;
        }
        if let Err(error) = fs::remove_dir(entry.path()) {
            eprintln!("cannot remove {} of an earlier run: {error}", entry.path().display());
        }
    }
}

pub(super) fn ip(arguments: &[&str]) {
    let status = Command::new("ip").args(arguments).status().expect("`ip` of iproute2");
    assert!(status.success(), "ip {}: {status}", arguments.join(" "));
}
