//! The image of socklb: two static programs and the papers, nothing else. No shell, no libc, nothing
//! that can be written to.

use std::{
    collections::BTreeMap,
    env::{self, consts::ARCH},
    fs::{self, File},
    io::BufWriter,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};
use serde_json::Value;
use tools::{
    cache::Scratch,
    cargo::{cargo, executables, workspace},
    exec::ask,
    pins,
    setup::{self, Scope},
};

use super::{
    archive::{Image, write},
    sbom,
    tree::Tree,
};

/// The client and server of tests with pods, `socklb-load`.
pub(crate) const LOAD: &str = "localhost/socklb-load:1";

/// What the image of socklb is called: it has the version of the packages.
pub(crate) fn name() -> String {
    // One version for the workspace.
    format!("socklb:{}", env!("CARGO_PKG_VERSION"))
}

/// Builds the image for `arch`, and says where its archive is.
pub(crate) fn socklb(arch: &str, output: Option<&Path>) -> Result<PathBuf> {
    let target = Target::new(arch)?;
    let version = env!("CARGO_PKG_VERSION");
    let mut tree = Tree::default();
    for (name, program) in target.build(&["--bins"])? {
        tree.program(&format!("usr/bin/{name}"), &program)?;
    }
    let crates = sbom::crates(&target.metadata, &["lb-agent", "lb-ebpf"])?;
    let share = "usr/share/socklb";
    tree.file(&format!("{share}/sbom.cdx.json"), sbom::cyclonedx("socklb", version, &crates));
    tree.file(&format!("{share}/licences.txt"), sbom::licences(&crates)?);
    for licence in ["LICENSE-APACHE", "LICENSE-MIT"] {
        let text = fs::read(workspace().join(licence)).with_context(|| format!("no {licence}"))?;
        tree.file(&format!("{share}/{licence}"), text);
    }
    tree.file(&format!("{share}/rust-std.html"), copyright()?);
    let label = |key: &str, value: &str| (format!("org.opencontainers.image.{key}"), value.into());
    let image = Image {
        names: vec![name()],
        entrypoint: vec!["/usr/bin/lb-agent".to_owned()],
        // A node's bpffs, where the maps are pinned, is writable for uid 0 only. What the agent may
        // do is a matter of the capabilities that the pod gives it.
        user: Some("0:0"),
        labels: BTreeMap::from([
            label("title", "socklb"),
            label("description", "Kubernetes Services at the socket, in place of kube-proxy"),
            label("licenses", "MIT OR Apache-2.0"),
            label("version", version),
        ]),
        ..Image::default()
    };
    target.archive("socklb", version, &tree, &image, output)
}

/// Builds the image of `socklb-load`.
pub(crate) fn load(arch: &str, output: Option<&Path>) -> Result<PathBuf> {
    let target = Target::new(arch)?;
    let mut tree = Tree::default();
    for (name, program) in target.build(&["--example", "socklb-load"])? {
        tree.program(&format!("usr/bin/{name}"), &program)?;
    }
    let image = Image {
        names: vec![LOAD.to_owned()],
        entrypoint: vec!["/usr/bin/socklb-load".to_owned()],
        ..Image::default()
    };
    target.archive("socklb-load", "1", &tree, &image, output)
}

/// What the programs are built for.
pub(crate) struct Target {
    arch: String,
    /// As rustc calls it.
    triple: String,
    metadata: Value,
}

impl Target {
    pub(crate) fn new(arch: &str) -> Result<Self> {
        setup::ensure(&[Scope::Agent, Scope::Programs, Scope::Image])?;
        if arch != ARCH {
            setup::ensure(&[Scope::Cross])?;
        }
        let triple = format!("{arch}-unknown-linux-musl");
        let metadata = sbom::metadata(&triple)?;
        Ok(Self { arch: arch.to_owned(), triple, metadata })
    }

    /// Names and files of programs of lb-agent.
    pub(crate) fn build(&self, what: &[&str]) -> Result<Vec<(String, PathBuf)>> {
        let mut build = cargo();
        build.args(["build", "--release", "--locked", "--package", "lb-agent"]).args(what);
        build.args(["--target", &self.triple]);
        // The same flags everywhere, so that the programs are the same bytes everywhere.
        for name in ["RUSTFLAGS", "CARGO_BUILD_RUSTFLAGS", "CARGO_INCREMENTAL", "CFLAGS"] {
            build.env_remove(name);
        }
        build.env("CARGO_ENCODED_RUSTFLAGS", self.flags().join("\u{1f}"));
        // A panic still names functions; where in a function, the image would grow for.
        build.env("CARGO_PROFILE_RELEASE_DEBUG", "none");
        build.env("CARGO_PROFILE_RELEASE_STRIP", "debuginfo");
        if self.arch != ARCH {
            let underscored = self.triple.replace('-', "_");
            let linker = format!("CARGO_TARGET_{}_LINKER", underscored.to_ascii_uppercase());
            // rustc brings musl for the target.
            build.env(format!("CC_{underscored}"), "clang").env(linker, "rust-lld");
        }
        let programs = executables(&mut build)?;
        Ok(programs.into_iter().map(|program| (program.name, program.path)).collect())
    }

    /// Paths of this machine do not get into the programs.
    fn flags(&self) -> Vec<String> {
        let home = env::var_os("HOME").map(PathBuf::from).unwrap_or_default();
        let or = |name, below| env::var_os(name).map_or_else(|| home.join(below), PathBuf::from);
        let built = self.metadata["target_directory"].as_str().unwrap_or_default();
        // The last that fits is taken.
        let remap = [
            (or("RUSTUP_HOME", ".rustup"), "/rustup"),
            (or("CARGO_HOME", ".cargo"), "/cargo"),
            (workspace().to_owned(), "/socklb"),
            (built.into(), "/socklb/target"),
        ];
        let flag =
            |(path, to): &(PathBuf, _)| format!("--remap-path-prefix={}={to}", path.display());
        remap.iter().map(flag).collect()
    }

    /// Writes the archive, into the target directory unless it is said where.
    fn archive(
        &self,
        name: &str,
        version: &str,
        tree: &Tree,
        image: &Image,
        output: Option<&Path>,
    ) -> Result<PathBuf> {
        let built = self.metadata["target_directory"].as_str().context("cargo names no target")?;
        let usual =
            || Path::new(built).join("image").join(format!("{name}-{version}-{}.tar", self.arch));
        let output = output.map_or_else(usual, Path::to_owned);
        let file = output.file_name().and_then(|name| name.to_str());
        let file = file.with_context(|| format!("{} names no file", output.display()))?;
        let directory = match output.parent() {
            Some(parent) if parent != Path::new("") => parent,
            _ => Path::new("."),
        };
        let scratch = Scratch::new(directory)?;
        let archive = BufWriter::new(File::create(scratch.0.join(file))?);
        write(archive, &self.arch, tree, std::slice::from_ref(image))
            .with_context(|| format!("cannot write {}", output.display()))?;
        scratch.deliver(file, directory)?;
        Ok(output)
    }
}

/// Who has written what of Rust's library.
fn copyright() -> Result<Vec<u8>> {
    let mut sysroot = Command::new("rustup");
    sysroot.args(["run", pins::STABLE, "rustc", "--print", "sysroot"]);
    let sysroot = ask(&mut sysroot).context("rustc does not say where it is")?;
    let path = Path::new(sysroot.trim()).join("share/doc/rust/COPYRIGHT-library.html");
    fs::read(&path).with_context(|| format!("no {}", path.display()))
}
