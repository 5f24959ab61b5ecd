//! The distribution's packages, of any of its architectures: fetched and unpacked, never installed.
//!
//! apt is given lists and a state of its own, in the user's cache. So the machine's own state stays
//! as it is, no root is needed, and a package of another architecture is found as one of this.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, Result, ensure};
use tools::{
    cache::Scratch,
    exec::{answer, exec},
    turn::Turn,
};

use super::arch::Arch;

/// After this time the lists are fetched anew.
const FRESH: Duration = Duration::from_secs(24 * 60 * 60);
/// How long another run that fetches is waited for.
const PATIENCE: Duration = Duration::from_secs(600);

/// The right to change what is kept of packages: another run may be about to bring the same.
pub(super) fn turn() -> Result<Turn> {
    let turn = Turn::wait("socklb-kernels", PATIENCE)?;
    turn.with_context(|| {
        format!("another run has been fetching packages for {} s", PATIENCE.as_secs())
    })
}

pub(super) struct Apt {
    arch: &'static Arch,
    state: PathBuf,
}

impl Apt {
    /// With its state in `directory`. Fetches the lists if they are old.
    pub(super) fn new(arch: &'static Arch, directory: &Path) -> Result<Self> {
        let state = directory.join(format!("apt-{}", arch.debian));
        fs::create_dir_all(state.join("lists/partial"))
            .with_context(|| format!("cannot make {}", state.display()))?;
        // As if nothing were installed, so that all dependencies are fetched.
        fs::write(state.join("status"), "")?;
        let apt = Self { arch, state };
        let _turn = turn()?;
        if !apt.is_fresh() {
            // One unreachable archive among several makes an error; what is needed may be in another.
            if let Err(error) = apt.update() {
                eprintln!("{error:#}; going on with the lists that are there");
            }
        }
        Ok(apt)
    }

    fn stamp(&self) -> PathBuf {
        self.state.join("updated")
    }

    fn is_fresh(&self) -> bool {
        let updated = fs::metadata(self.stamp()).and_then(|stamp| stamp.modified());
        updated.is_ok_and(|at| SystemTime::now().duration_since(at).is_ok_and(|age| age < FRESH))
    }

    fn update(&self) -> Result<()> {
        // Without it, apt takes a name that cannot be looked up for a mere warning.
        let strict = ["-o", "APT::Update::Error-Mode=any"];
        exec(self.command("apt-get").args(strict).args(["update", "--quiet=2"]))?;
        Ok(fs::write(self.stamp(), "")?)
    }

    /// The names of all packages that begin so.
    pub(super) fn names(&self, prefix: &str) -> Result<Vec<String>> {
        let names = answer(self.command("apt-cache").args(["pkgnames", prefix]))?;
        Ok(names.lines().map(ToOwned::to_owned).collect())
    }

    /// Unpacks a package.
    pub(super) fn unpack(&self, package: &str, into: &Path) -> Result<()> {
        self.fetch(&["download", "--quiet=2", package], into)
    }

    /// Unpacks packages and all that they depend on.
    pub(super) fn unpack_all(&self, packages: &[&str], into: &Path) -> Result<()> {
        let mut words =
            vec!["install", "--quiet=2", "--yes", "--download-only", "--no-install-recommends"];
        words.extend(packages);
        self.fetch(&words, into)
    }

    fn fetch(&self, words: &[&str], into: &Path) -> Result<()> {
        let scratch = Scratch::new(&self.state)?;
        let archives = scratch.0.join("archives");
        fs::create_dir_all(archives.join("partial"))?;
        let fetch = || {
            let mut fetch = self.command("apt-get");
            fetch.arg("-o").arg(format!("Dir::Cache={}", scratch.0.display())).args(words);
            exec(fetch.current_dir(&archives))
        };
        // Lists that are old name what is no longer there.
        if fetch().is_err() {
            self.update()?;
            fetch()?;
        }
        let mut found = false;
        for entry in fs::read_dir(&archives)? {
            let archive = entry?.path();
            if archive.extension().is_some_and(|extension| extension == "deb") {
                exec(Command::new("dpkg-deb").arg("--extract").arg(&archive).arg(into))?;
                found = true;
            }
        }
        ensure!(found, "`apt-get {}` brought no package", words.join(" "));
        Ok(())
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        let state = self.state.display();
        for option in [
            format!("APT::Architecture={}", self.arch.debian),
            format!("APT::Architectures::={}", self.arch.debian),
            format!("Dir::State={state}"),
            format!("Dir::State::status={state}/status"),
            format!("Dir::Cache={state}"),
            // As root apt would fetch as another user, who may not write here.
            "APT::Sandbox::User=root".to_owned(),
        ] {
            command.arg("-o").arg(option);
        }
        command
    }
}
