//! What has to be on the machine, how to see that it is, and where it comes from: one table.

use std::{env, path::PathBuf, process::Command};

use crate::{
    cargo::{cargo, prebuilt_object},
    exec::ask,
    path, pins,
};

/// What a tool is needed for; a command asks for the scopes that it touches.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// User space.
    Agent,
    /// The BPF programs. Nothing, when a prebuilt object is embedded.
    Programs,
    /// Formatting, lints, licences.
    Lint,
    /// Network namespaces, for demo and tests.
    Network,
    /// Resolvers to try.
    Dns,
    /// Clients in other languages, and the tools of a kube-proxy.
    Clients,
    /// Boxes of namespaces, and what runs in them.
    Cluster,
    /// Static programs, for images.
    Image,
    /// The same for the other architecture.
    Cross,
    /// Other kernels, and machines for them.
    Kernels,
    /// What pods of a cluster on this machine run.
    Pods,
}

impl Scope {
    /// Every one of them: for the whole test suite.
    pub const ALL: &[Self] = &[
        Self::Agent,
        Self::Programs,
        Self::Lint,
        Self::Network,
        Self::Dns,
        Self::Clients,
        Self::Cluster,
        Self::Image,
        Self::Cross,
        Self::Kernels,
        Self::Pods,
    ];
}

pub(crate) struct Need {
    pub(crate) what: String,
    pub(crate) why: &'static str,
    scope: Scope,
    /// Is it there? If not: what was seen instead.
    probe: fn() -> Result<(), String>,
    pub(crate) source: Source,
}

impl Need {
    /// What is wrong, if anything is.
    pub(crate) fn missing(&self) -> Option<String> {
        (self.probe)().err()
    }
}

pub(crate) enum Source {
    /// The distribution: package names in Debian, and what to look for in another one.
    Packages { debian: &'static [&'static str], elsewhere: &'static str },
    /// A command that needs no root.
    Command(fn() -> Command),
    /// Nothing that we would run for somebody.
    ByHand(&'static str),
}

/// The needs of some scopes, in the order in which they can be installed.
pub(crate) fn of(scopes: &[Scope]) -> Vec<Need> {
    let mut needs = table();
    needs.retain(|need| {
        scopes.contains(&need.scope)
            && !(need.scope == Scope::Programs && prebuilt_object().is_some())
    });
    needs
}

const STABLE_COMPONENTS: &[&str] = &["rustfmt", "clippy"];
const NIGHTLY_COMPONENTS: &[&str] = &["rust-src", "clippy"];
/// Of the version `pins::LLVM`, as a test below makes sure.
const LLVM_PACKAGES: &[&str] = &["llvm-22-dev"];
const LLVM_ELSEWHERE: &str = "LLVM 22 with libLLVM.so (Fedora: dnf install llvm-devel, or \
    llvm22-devel once llvm is newer; Arch: pacman -S llvm, or llvm22; older Debian and Ubuntu: \
    llvm-22-dev from apt.llvm.org), and LLVM_PREFIX=DIR, the directory above its lib64 or lib. Or \
    none of it: SOCKLB_BPF_OBJECT=FILE embeds a prebuilt object";

/// What static programs are built for: this machine, and the other architecture.
const MUSL: [&str; 2] = if cfg!(target_arch = "aarch64") {
    ["aarch64-unknown-linux-musl", "x86_64-unknown-linux-musl"]
} else {
    ["x86_64-unknown-linux-musl", "aarch64-unknown-linux-musl"]
};

fn table() -> Vec<Need> {
    vec![
        Need {
            what: "C compiler".to_owned(),
            why: "links everything, and builds C parts of crates",
            scope: Scope::Agent,
            probe: || starts("cc", "--version"),
            source: Source::Packages {
                debian: &["gcc", "libc6-dev"],
                elsewhere: "`cc` (Fedora: dnf install gcc; Arch: pacman -S gcc)",
            },
        },
        Need {
            what: "ip".to_owned(),
            why: "makes the network namespaces of demo and tests",
            scope: Scope::Network,
            probe: || starts("ip", "-V"),
            source: Source::Packages {
                debian: &["iproute2"],
                elsewhere: "`ip` (Fedora: dnf install iproute; Arch: pacman -S iproute2)",
            },
        },
        Need {
            what: "python3".to_owned(),
            why: "is a client in the tests",
            scope: Scope::Clients,
            probe: || starts("python3", "--version"),
            source: Source::Packages {
                debian: &["python3"],
                elsewhere: "`python3` (Fedora: dnf install python3; Arch: pacman -S python)",
            },
        },
        musl(Scope::Dns, "the resolver of Alpine's programs is tested"),
        musl(Scope::Image, "builds C parts of crates for static programs"),
        Need {
            what: "dig".to_owned(),
            why: "asks a DNS server by UDP and by TCP",
            scope: Scope::Dns,
            probe: || starts("dig", "-v"),
            source: Source::Packages {
                debian: &["bind9-dnsutils"],
                elsewhere: "`dig` (Fedora: dnf install bind-utils; Arch: pacman -S bind)",
            },
        },
        leftovers(),
        openssl(),
        clang(),
        machines(),
        modules(),
        packet_filters(),
        processes(),
        pods(),
        libllvm(),
        Need {
            what: "rustup".to_owned(),
            why: "brings the pinned toolchains",
            scope: Scope::Agent,
            probe: || starts("rustup", "--version"),
            source: Source::ByHand("rustup, from https://rustup.rs or the distribution"),
        },
        Need {
            what: format!("Rust {} with {}", pins::STABLE, STABLE_COMPONENTS.join(", ")),
            why: "builds user space",
            scope: Scope::Agent,
            probe: || toolchain(pins::STABLE, STABLE_COMPONENTS),
            source: Source::Command(|| rustup(pins::STABLE, STABLE_COMPONENTS)),
        },
        own_target(),
        other_target(),
        Need {
            what: format!("Rust {} with {}", pins::NIGHTLY, NIGHTLY_COMPONENTS.join(", ")),
            why: "builds the BPF programs",
            scope: Scope::Programs,
            probe: || toolchain(pins::NIGHTLY, NIGHTLY_COMPONENTS),
            source: Source::Command(|| rustup(pins::NIGHTLY, NIGHTLY_COMPONENTS)),
        },
        Need {
            what: format!("bpf-linker {}", pins::BPF_LINKER),
            why: "links the BPF programs; a minute to build",
            scope: Scope::Programs,
            probe: linker,
            source: Source::Command(|| {
                let mut install = install("bpf-linker", pins::BPF_LINKER);
                install.args(["--no-default-features", "--features"]);
                install.arg(format!("llvm-{}", pins::LLVM)).env("LLVM_PREFIX", llvm_prefix());
                install
            }),
        },
        Need {
            what: format!("cargo-deny {}", pins::CARGO_DENY),
            why: "checks licences and sources of crates; some minutes to build",
            scope: Scope::Lint,
            probe: || says("cargo-deny", pins::CARGO_DENY),
            source: Source::Command(|| install("cargo-deny", pins::CARGO_DENY)),
        },
    ]
}

/// The library for static programs.
fn own_target() -> Need {
    Need {
        what: format!("Rust {} for {}", pins::STABLE, MUSL[0]),
        why: "builds static programs",
        scope: Scope::Image,
        probe: || has_target(MUSL[0]),
        source: Source::Command(|| add_target(MUSL[0])),
    }
}

fn other_target() -> Need {
    Need {
        what: format!("Rust {} for {}", pins::STABLE, MUSL[1]),
        why: "builds static programs for the other architecture",
        scope: Scope::Cross,
        probe: || has_target(MUSL[1]),
        source: Source::Command(|| add_target(MUSL[1])),
    }
}

fn has_target(triple: &str) -> Result<(), String> {
    let mut list = Command::new("rustup");
    list.args(["target", "list", "--installed", "--toolchain", pins::STABLE]);
    let list = ask(list.env("RUSTUP_AUTO_INSTALL", "0")).unwrap_or_default();
    let has = list.lines().any(|line| line == triple);
    if has { Ok(()) } else { Err("not installed".to_owned()) }
}

fn add_target(triple: &str) -> Command {
    let mut rustup = Command::new("rustup");
    rustup.args(["target", "add", "--toolchain", pins::STABLE, triple]);
    rustup
}

/// A C compiler that needs no headers of the other architecture for what is built.
fn clang() -> Need {
    Need {
        what: "clang".to_owned(),
        why: "builds C parts of crates for the other architecture",
        scope: Scope::Cross,
        probe: || starts("clang", "--version"),
        source: Source::Packages {
            debian: &["clang"],
            elsewhere: "`clang` (Fedora: dnf install clang; Arch: pacman -S clang)",
        },
    }
}

/// Two things need it.
fn musl(scope: Scope, why: &'static str) -> Need {
    Need {
        what: "musl-gcc".to_owned(),
        why,
        scope,
        probe: || starts("musl-gcc", "--version"),
        source: Source::Packages {
            debian: &["musl-tools"],
            elsewhere: "`musl-gcc` (Fedora: dnf install musl-gcc; Arch: pacman -S musl)",
        },
    }
}

fn libllvm() -> Need {
    Need {
        what: format!("LLVM {}", pins::LLVM),
        why: "bpf-linker is built against it",
        scope: Scope::Programs,
        probe: llvm,
        source: Source::Packages { debian: LLVM_PACKAGES, elsewhere: LLVM_ELSEWHERE },
    }
}

fn openssl() -> Need {
    Need {
        what: "openssl".to_owned(),
        why: "makes the keys of a cluster",
        scope: Scope::Cluster,
        probe: || starts("openssl", "version"),
        source: Source::Packages {
            debian: &["openssl"],
            elsewhere: "`openssl` 3 (Fedora: dnf install openssl; Arch: pacman -S openssl)",
        },
    }
}

fn packet_filters() -> Need {
    Need {
        what: "nft, iptables".to_owned(),
        why: "make what a kube-proxy and host ports of pods are, in a cluster",
        scope: Scope::Cluster,
        probe: || ["nft", "iptables"].iter().try_for_each(|tool| starts(tool, "--version")),
        source: Source::Packages {
            debian: &["nftables", "iptables"],
            elsewhere: "`nft` and `iptables` (Fedora: dnf install nftables iptables-nft; Arch: \
                pacman -S nftables iptables)",
        },
    }
}

fn machines() -> Need {
    Need {
        what: "qemu-system-x86_64, qemu-system-aarch64".to_owned(),
        why: "boot other kernels",
        scope: Scope::Kernels,
        probe: || {
            let machines = ["qemu-system-x86_64", "qemu-system-aarch64"];
            machines.iter().try_for_each(|machine| starts(machine, "--version"))
        },
        source: Source::Packages {
            debian: &["qemu-system-x86", "qemu-system-arm"],
            elsewhere: "`qemu-system-x86_64` and `qemu-system-aarch64` (Fedora: dnf install \
                qemu-system-x86-core qemu-system-aarch64-core; Arch: pacman -S qemu-system-x86 \
                qemu-system-aarch64)",
        },
    }
}

fn modules() -> Need {
    Need {
        what: "depmod".to_owned(),
        why: "finds out which modules of another kernel need which",
        scope: Scope::Kernels,
        probe: || starts("depmod", "--version"),
        source: Source::Packages {
            debian: &["kmod"],
            elsewhere: "`depmod` (Fedora: dnf install kmod; Arch: pacman -S kmod)",
        },
    }
}

fn processes() -> Need {
    Need {
        what: "kill, pgrep".to_owned(),
        why: "find and end processes, on the nodes of a cluster",
        scope: Scope::Cluster,
        // Not the shell's own.
        probe: || {
            starts("pgrep", "--version")?;
            starts("kill", "-l")
        },
        source: Source::Packages {
            debian: &["procps"],
            elsewhere: "`kill` and `pgrep` (Fedora: dnf install util-linux procps-ng; Arch: pacman \
                -S util-linux procps-ng)",
        },
    }
}

/// What makes what a kube-proxy leaves.
fn leftovers() -> Need {
    Need {
        what: "nft, iptables, ipset".to_owned(),
        why: "make what a kube-proxy leaves, for tests of its cleanup",
        scope: Scope::Clients,
        probe: || {
            let tools = ["nft", "iptables-nft-save", "iptables-legacy-save", "ipset"];
            tools.iter().try_for_each(|tool| starts(tool, "--version"))
        },
        source: Source::Packages {
            debian: &["nftables", "iptables", "ipset"],
            elsewhere: "`nft`, `iptables-nft`, `iptables-legacy` and `ipset` (Fedora: dnf install \
                nftables iptables-nft iptables-legacy ipset; Arch: pacman -S nftables \
                iptables-legacy ipset)",
        },
    }
}

/// What is copied into the image of the tests' pods.
fn pods() -> Need {
    Need {
        what: "bash, curl, dig, iperf3, nc, wget".to_owned(),
        why: "are what pods of a test cluster run",
        scope: Scope::Pods,
        probe: || {
            let tools = [("bash", "--version"), ("curl", "-V"), ("dig", "-v"), ("iperf3", "-v")];
            tools.iter().try_for_each(|(tool, version)| starts(tool, version))?;
            starts("nc.openbsd", "-h").or_else(|_| starts("nc", "-h"))?;
            starts("wget", "--version")
        },
        source: Source::Packages {
            debian: &["bash", "curl", "bind9-dnsutils", "iperf3", "netcat-openbsd", "wget"],
            elsewhere: "`bash`, `curl`, `dig`, `iperf3`, OpenBSD's `nc` and `wget` (Fedora: dnf \
                install bash curl bind-utils iperf3 netcat wget; Arch: pacman -S bash curl bind \
                iperf3 openbsd-netcat wget)",
        },
    }
}

/// A program that `cargo install` put into its directory, or else one of the machine. rustup
/// searches in the same order.
fn installed(program: &str) -> Command {
    let home = env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cargo")));
    let own = home.map(|home| home.join("bin").join(program)).filter(|path| path.exists());
    own.or_else(|| path::find(program)).map_or_else(|| Command::new(program), Command::new)
}

fn starts(program: &str, version: &str) -> Result<(), String> {
    let answer = ask(installed(program).arg(version));
    answer.map(drop).ok_or_else(|| format!("`{program} {version}` does not run"))
}

/// `PROGRAM --version` says exactly this version.
fn says(program: &str, version: &str) -> Result<(), String> {
    let Some(answer) = ask(installed(program).arg("--version")) else {
        return Err(format!("`{program} --version` does not run"));
    };
    match answer.split_whitespace().last() {
        Some(found) if found == version => Ok(()),
        found => Err(format!("{} would be replaced", found.unwrap_or("what is there"))),
    }
}

fn linker() -> Result<(), String> {
    says("bpf-linker", pins::BPF_LINKER)
}

/// All that the linker's build wants of LLVM is its shared library; a linker that runs has found it.
fn llvm() -> Result<(), String> {
    if linker().is_ok() {
        return Ok(());
    }
    let prefix = llvm_prefix();
    let find = |directory| prefix.join(directory).join("libLLVM.so").canonicalize().ok();
    // The order in which bpf-linker's build script looks.
    let Some(library) = ["lib64", "lib"].into_iter().find_map(find) else {
        return Err(format!("no libLLVM.so below LLVM_PREFIX={}", prefix.display()));
    };
    let name = library.file_name().unwrap_or_default().to_string_lossy();
    let version = name.trim_start_matches("libLLVM").trim_start_matches(['-', '.']);
    if version.trim_start_matches("so.").starts_with(pins::LLVM) {
        Ok(())
    } else {
        Err(format!("{} is of another version", library.display()))
    }
}

/// Where LLVM is; Debian's place, unless the caller knows another.
fn llvm_prefix() -> PathBuf {
    let prefix = env::var_os("LLVM_PREFIX").map(PathBuf::from);
    prefix.unwrap_or_else(|| format!("/usr/lib/llvm-{}", pins::LLVM).into())
}

fn toolchain(name: &str, components: &[&str]) -> Result<(), String> {
    let mut list = Command::new("rustup");
    list.args(["component", "list", "--installed", "--toolchain", name]);
    // A question must not be answered by installing.
    let Some(installed) = ask(list.env("RUSTUP_AUTO_INSTALL", "0")) else {
        return Err("not installed".to_owned());
    };
    // Most names carry the host behind them: clippy-x86_64-unknown-linux-gnu.
    let has = |component: &str| installed.lines().any(|line| line.starts_with(component));
    let lacks: Vec<_> = components.iter().copied().filter(|component| !has(component)).collect();
    if lacks.is_empty() { Ok(()) } else { Err(format!("without {}", lacks.join(", "))) }
}

fn rustup(toolchain: &str, components: &[&str]) -> Command {
    let mut rustup = Command::new("rustup");
    rustup.args(["toolchain", "install", toolchain, "--profile", "minimal", "--no-self-update"]);
    rustup.args(components.iter().flat_map(|component| ["--component", component]));
    rustup
}

fn install(name: &str, version: &str) -> Command {
    let mut install = cargo();
    install.args(["install", "--locked", name, "--version", version]);
    install
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn llvm_is_one_version_everywhere() {
        assert_eq!(LLVM_PACKAGES, [format!("llvm-{}-dev", pins::LLVM)]);
        assert!(LLVM_ELSEWHERE.starts_with(&format!("LLVM {} ", pins::LLVM)));
    }

    #[test]
    fn a_tool_of_another_version_is_not_the_tool() {
        assert_eq!(starts("true", "--version"), Ok(()));
        assert!(says("true", "0.0.1").unwrap_err().ends_with("would be replaced"));
        assert!(says("no-such-program", "0.0.1").unwrap_err().ends_with("does not run"));
    }

    #[test]
    fn an_absent_toolchain_is_not_installed_by_asking() {
        assert_eq!(toolchain("1.0.0", &[]), Err("not installed".to_owned()));
    }
}
