//! A Go that is new enough to build Kubernetes: the machine's own, or one that an older Go (Debian
//! 12 has 1.19) fetches as the module `golang.org/toolchain`, which is how Go brings itself.

use std::{
    env::consts::ARCH,
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail, ensure};
use tools::{
    exec::{announce, ask, exec},
    root::{as_root, require_root},
};

/// What Kubernetes asks for.
const AT_LEAST: (u32, u32) = (1, 26);
/// What is fetched when the machine has none, or an older one.
const FETCHED: &str = "1.26.8";

/// How to start Go.
pub(super) struct Go {
    program: PathBuf,
    /// Where our own Go keeps what it downloads and builds, so that it goes away with the cache.
    /// The machine's Go keeps it where it always does.
    own: Option<PathBuf>,
}

impl Go {
    /// `go`, with nothing else said.
    pub(super) fn command(&self) -> Command {
        let mut go = Command::new(&self.program);
        // This Go, whatever a go.mod would rather have.
        go.env("GOTOOLCHAIN", "local").env("GOWORK", "off");
        if let Some(own) = &self.own {
            go.env("GOPATH", own.join("path")).env("GOCACHE", own.join("build"));
            go.env_remove("GOMODCACHE").env_remove("GOROOT");
            // Without it, modules could not be removed by a plain `rm -r`, nor moved by us.
            go.env("GOFLAGS", "-modcacherw");
        }
        go
    }
}

/// Go 1.26 or later; fetched into `cache` unless the machine has it.
pub(super) fn toolchain(cache: &Path) -> Result<Go> {
    let machine = machine();
    if machine >= Some(AT_LEAST) {
        return Ok(Go { program: "go".into(), own: None });
    }
    let go = Go {
        program: cache.join(format!("go-{FETCHED}/bin/go")),
        own: Some(cache.join(format!("go-{FETCHED}-cache"))),
    };
    if !go.program.exists() {
        if machine.is_none() {
            install()?;
        }
        fetch(&go, &cache.join(format!("go-{FETCHED}")))?;
    }
    Ok(go)
}

/// The version of the machine's own Go, if there is one.
fn machine() -> Option<(u32, u32)> {
    version(&ask(Command::new("go").arg("version").env("GOTOOLCHAIN", "local"))?)
}

/// `go version go1.26.8 linux/amd64`
fn version(answer: &str) -> Option<(u32, u32)> {
    let mut numbers = answer.split_whitespace().nth(2)?.strip_prefix("go")?.split('.');
    let major = numbers.next()?.parse().ok()?;
    // A release candidate is called 1.27rc1.
    let minor = numbers.next()?.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()?;
    Some((major, minor))
}

/// The distribution's Go, of whatever age.
fn install() -> Result<()> {
    let (major, minor) = AT_LEAST;
    let remedy = format!("Go {major}.{minor} or later is missing: put `go` on the PATH");
    if ask(Command::new("apt-get").arg("--version")).is_none() {
        bail!(remedy);
    }
    eprintln!("Installing the distribution's Go (golang-go), which fetches Go {FETCHED}.");
    require_root().with_context(|| remedy.clone())?;
    let mut update = Command::new("apt-get");
    update.args(["update", "--quiet"]);
    let mut install = Command::new("apt-get");
    install.env("DEBIAN_FRONTEND", "noninteractive");
    install.args(["install", "--quiet", "--yes", "--no-install-recommends", "golang-go"]);
    for command in [update, install] {
        exec(&mut as_root(command)).with_context(|| remedy.clone())?;
    }
    Ok(())
}

/// Lets the machine's Go fetch the newer one, and makes a tree that can be used out of what it got.
fn fetch(go: &Go, to: &Path) -> Result<()> {
    let arch = match ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => bail!("Go {FETCHED} for {other} has to be put on the PATH by hand"),
    };
    let module = format!("golang.org/toolchain@v0.0.1-go{FETCHED}.linux-{arch}");
    let parent = to.parent().context("the cache is a directory below another")?;
    fs::create_dir_all(parent)?;
    let mut download = Go { program: "go".into(), own: go.own.clone() }.command();
    // Not inside of some module.
    download.current_dir(parent).args(["mod", "download", "-json", &module]);
    let line = announce(&download);
    let output = download.output().with_context(|| format!("cannot start `{line}`"))?;
    let answer = String::from_utf8_lossy(&output.stdout);
    let complaint = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "`{line}`: {}\n{complaint}{answer}\nor put Go {FETCHED} on the PATH",
        output.status
    );
    let tree: serde_json::Value = serde_json::from_str(&answer)?;
    let tree = tree.get("Dir").and_then(|dir| dir.as_str());
    let tree = Path::new(tree.with_context(|| format!("`{line}` names no directory: {answer}"))?);
    unpack(tree).with_context(|| format!("cannot make {} usable", tree.display()))?;
    fs::rename(tree, to).with_context(|| format!("cannot move {} away", tree.display()))
}

/// Undoes what a module cannot hold: files that can be started, and a go.mod below its root, which
/// is called `_go.mod` there. The same as Go itself does, in cmd/go/internal/toolchain/select.go.
fn unpack(tree: &Path) -> Result<()> {
    for programs in ["bin", "pkg/tool"] {
        walk(&tree.join(programs), &mut |file| {
            Ok(fs::set_permissions(file, fs::Permissions::from_mode(0o755))?)
        })?;
    }
    walk(&tree.join("src"), &mut |file| {
        if file.file_name().is_some_and(|name| name == "_go.mod") {
            fs::rename(file, file.with_file_name("go.mod"))?;
        }
        Ok(())
    })
}

fn walk(directory: &Path, visit: &mut impl FnMut(&Path) -> Result<()>) -> Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            walk(&entry.path(), visit)?;
        } else {
            visit(&entry.path())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_compared_as_numbers() {
        assert_eq!(version("go version go1.26.8 linux/amd64\n"), Some((1, 26)));
        assert_eq!(version("go version go1.27rc1 linux/arm64"), Some((1, 27)));
        assert!(version("go version go1.9 linux/amd64") < Some(AT_LEAST));
        assert_eq!(version("go version devel"), None);
        assert!(None < Some(AT_LEAST));
    }
}
