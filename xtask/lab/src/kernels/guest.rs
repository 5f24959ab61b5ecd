//! What a kernel finds when it boots: process 1, programs, modules, and the tests with all that they
//! look for at the paths where they look for it.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result};
use tools::{cargo::workspace, exec::exec};

use super::supply::Kernel;
use crate::image::tree::Tree;

const INIT: &str = include_str!("init.sh");

/// Directories of modules, and modules, below `kernel`: with these come the ones that they need.
const MODULES: &[&str] = &[
    // Of 6.1, for the sums that conntrack and nftables make; nothing says that they need it.
    "crypto/crc32c_generic.",
    "drivers/net/dummy.",
    "drivers/net/veth.",
    "net/bridge/",
    "net/ipv4/",
    "net/ipv6/",
    "net/mptcp/",
    "net/netfilter/",
    "net/sctp/",
    "net/unix/",
];
/// Those that nothing loads by itself in time, or whose lack is to be told.
const LOADED: &[&str] = &[
    "inet_diag",
    "tcp_diag",
    "udp_diag",
    "mptcp_diag",
    "nf_tables",
    "nf_conntrack",
    "veth",
    "bridge",
];

/// The programs that are tried.
pub(super) struct Subject {
    /// The test program.
    pub(super) test: PathBuf,
    /// All of them, which find each other by their paths; each with the file that has it.
    pub(super) programs: Vec<(PathBuf, PathBuf)>,
    /// What they load when they start, unless they are static.
    pub(super) libraries: BTreeSet<PathBuf>,
}

impl Subject {
    /// Of programs by their names, one of which is the test `kernel`.
    pub(super) fn of(
        programs: Vec<(String, PathBuf)>,
        libraries: BTreeSet<PathBuf>,
    ) -> Result<Self> {
        let test = programs.iter().find(|(name, _)| name == "kernel");
        let test = test.context("cargo built no test kernel")?.1.clone();
        let programs = programs.into_iter().map(|(_, path)| (path.clone(), path)).collect();
        Ok(Self { test, programs, libraries })
    }

    /// Without what debuggers read, which is most of a plain build and more than the memory of a guest.
    /// The files are put below `place`.
    pub(super) fn strip(&mut self, place: &Path) -> Result<()> {
        fs::create_dir_all(place)?;
        for (number, (_, file)) in self.programs.iter_mut().enumerate() {
            let stripped = place.join(format!("program-{number}"));
            exec(Command::new("strip").arg("--strip-debug").arg("-o").arg(&stripped).arg(&*file))?;
            *file = stripped;
        }
        Ok(())
    }
}

/// Which tests.
pub(super) enum Tests {
    /// By their full names.
    Named(Vec<String>),
    /// All of the test program but those whose names begin so.
    AllBut(Vec<String>),
}

/// Files for a kernel: `tests` are run in it, each for so long at most.
pub(super) fn files(
    kernel: &Kernel,
    programs: &Path,
    subject: &Subject,
    tests: &Tests,
    limit: Duration,
) -> Result<Tree> {
    let mut tree = Tree::default();
    tree.copy("", programs, &|_| false)?;
    for name in ["proc", "sys", "dev", "run", "tmp", "root"] {
        tree.directory(name, 0o755);
    }
    modules(&mut tree, kernel)?;
    let libraries = subject.libraries.iter().map(|library| (library, library));
    for (path, file) in subject.programs.iter().map(|(path, file)| (path, file)).chain(libraries) {
        tree.program(path.to_str().context("not UTF-8")?, file)?;
    }
    let package = workspace().join("lb-agent");
    let package = package.to_str().context("not UTF-8")?;
    let clients = "tests/kernel/languages";
    tree.copy(
        &format!("{package}/{clients}"),
        &workspace().join("lb-agent").join(clients),
        &|_| false,
    )?;
    tree.script("init", INIT);
    tree.file("modules", LOADED.join("\n") + "\n");
    let test = subject.test.display();
    tree.file("where", format!("export CARGO_MANIFEST_DIR='{package}'\nTEST='{test}'\n"));
    tree.file("limit", format!("{}\n", limit.as_secs()));
    let (name, lines) = match tests {
        Tests::Named(names) => ("tests", names.join("\n") + "\n"),
        // Names are of letters, `_` and `:`, so each is a regular expression.
        Tests::AllBut(starts) => ("left-out", format!("^{}\n", starts.join("\n^"))),
    };
    tree.file(name, lines);
    Ok(tree)
}

fn modules(tree: &mut Tree, kernel: &Kernel) -> Result<()> {
    let from = kernel.modules();
    let to = format!("lib/modules/{}", kernel.release);
    let dependencies = fs::read_to_string(from.join("modules.dep"))
        .with_context(|| format!("depmod made no list of modules in {}", from.display()))?;
    for module in closure(&dependencies) {
        let content = fs::read(from.join(module))?;
        tree.file(&format!("{to}/{module}"), content);
    }
    for entry in fs::read_dir(&from)? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if name.starts_with("modules.") {
            tree.file(&format!("{to}/{name}"), fs::read(&path)?);
        }
    }
    Ok(())
}

/// The wanted modules, and those that they need: a line of depmod has all of them.
fn closure(dependencies: &str) -> BTreeSet<&str> {
    let lines = dependencies.lines().filter_map(|line| line.split_once(':'));
    let wanted = lines.filter(|(module, _)| {
        let below = module.strip_prefix("kernel/").unwrap_or(module);
        MODULES.iter().any(|wanted| below.starts_with(wanted))
    });
    wanted.flat_map(|(module, needs)| needs.split_whitespace().chain([module])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_comes_with_what_it_needs() {
        let list = "kernel/net/ipv4/udp_diag.ko: kernel/net/ipv4/inet_diag.ko\n\
                    kernel/drivers/net/veth.ko.xz:\n\
                    kernel/drivers/net/vethx/a.ko:\n\
                    kernel/net/bridge/bridge.ko: kernel/net/802/stp.ko kernel/net/llc/llc.ko\n\
                    kernel/fs/xfs/xfs.ko: kernel/lib/libcrc32c.ko\n";
        let wanted = [
            "kernel/drivers/net/veth.ko.xz",
            "kernel/net/802/stp.ko",
            "kernel/net/bridge/bridge.ko",
            "kernel/net/ipv4/inet_diag.ko",
            "kernel/net/ipv4/udp_diag.ko",
            "kernel/net/llc/llc.ko",
        ];
        assert_eq!(closure(list).into_iter().collect::<Vec<_>>(), wanted);
    }
}
