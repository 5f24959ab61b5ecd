//! What a cluster is to be, and what it is made of. The state keeps it as the arguments that say
//! it.

use std::{fmt, fs, path::PathBuf, str::FromStr};

use anyhow::{Context as _, Result};
use clap::Parser as _;

use super::{
    network::MOST_NODES,
    place::{HOME, home},
};

const SPEC: &str = "spec";
const COMPLETE: &str = "complete";

/// What one asks for.
#[derive(clap::Args, Clone, Debug, PartialEq, Eq)]
// What it is flattened into has arguments of other kinds, and a group `Args` of its own.
#[group(skip)]
pub(crate) struct Shape {
    /// How many nodes.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=i64::from(MOST_NODES)))]
    pub(crate) nodes: u8,
    /// Who serves Services: socklb, kube-proxy, kube-proxy:nftables, kube-proxy:iptables, none.
    #[arg(long, default_value = "socklb")]
    pub(crate) proxy: Proxy,
    /// Three zones, z1 to z3: the nodes are in one after the other.
    #[arg(long)]
    pub(crate) zones: bool,
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let zones = if self.zones { " --zones" } else { "" };
        write!(f, "--nodes {} --proxy {}{zones}", self.nodes, self.proxy)
    }
}

/// Who serves Services.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::enum_variant_names, reason = "kube-proxy is what it is called")]
pub(crate) enum Proxy {
    Socklb,
    KubeProxy(Mode),
    None,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    Nftables,
    Iptables,
}

impl Mode {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Nftables => "nftables",
            Self::Iptables => "iptables",
        }
    }
}

impl FromStr for Proxy {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Ok(match text {
            "socklb" => Self::Socklb,
            "kube-proxy" | "kube-proxy:nftables" => Self::KubeProxy(Mode::Nftables),
            "kube-proxy:iptables" => Self::KubeProxy(Mode::Iptables),
            "none" => Self::None,
            _ => return Err("one of socklb, kube-proxy[:nftables|:iptables], none".to_owned()),
        })
    }
}

impl fmt::Display for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Socklb => write!(f, "socklb"),
            Self::KubeProxy(mode) => write!(f, "kube-proxy:{}", mode.name()),
            Self::None => write!(f, "none"),
        }
    }
}

/// What it is made of. Whoever calls has these; root's own cache may be empty.
#[derive(clap::Args, Clone, Debug, PartialEq, Eq)]
#[group(skip)]
pub(crate) struct Supply {
    /// The programs of the cluster.
    #[arg(long)]
    pub(crate) programs: PathBuf,
    /// Archives of images that a node needs before it has a pod.
    #[arg(long)]
    pub(crate) first: Vec<PathBuf>,
    /// Those that it gets while it starts.
    #[arg(long = "archive")]
    pub(crate) archives: Vec<PathBuf>,
    /// Helm, for socklb.
    #[arg(long)]
    pub(crate) helm: Option<PathBuf>,
    /// The chart of socklb.
    #[arg(long)]
    pub(crate) chart: Option<PathBuf>,
    /// The name of socklb's image.
    #[arg(long)]
    pub(crate) image: Option<String>,
}

#[derive(clap::Args, Clone, Debug, PartialEq, Eq)]
#[group(skip)]
pub(crate) struct Plan {
    #[command(flatten)]
    pub(crate) shape: Shape,
    #[command(flatten)]
    pub(crate) supply: Supply,
    /// Made by `cluster test --all`, which takes away what an earlier one had left.
    #[arg(long)]
    pub(crate) of_tests: bool,
}

#[derive(clap::Parser)]
#[command(no_binary_name = true)]
struct Saved {
    #[command(flatten)]
    plan: Plan,
}

impl Plan {
    /// The arguments that say it.
    pub(crate) fn arguments(&self) -> Vec<String> {
        let Self { shape, supply, of_tests } = self;
        let mut words =
            vec![format!("--nodes={}", shape.nodes), format!("--proxy={}", shape.proxy)];
        if shape.zones {
            words.push("--zones".to_owned());
        }
        if *of_tests {
            words.push("--of-tests".to_owned());
        }
        words.push(format!("--programs={}", supply.programs.display()));
        for (name, archives) in [("first", &supply.first), ("archive", &supply.archives)] {
            words.extend(archives.iter().map(|archive| format!("--{name}={}", archive.display())));
        }
        let mut optional = |name, value: Option<String>| {
            words.extend(value.map(|value| format!("--{name}={value}")));
        };
        let text = |path: &PathBuf| path.display().to_string();
        optional("helm", supply.helm.as_ref().map(text));
        optional("chart", supply.chart.as_ref().map(text));
        optional("image", supply.image.clone());
        words
    }

    fn parse(text: &str) -> Result<Self> {
        Ok(Saved::try_parse_from(text.lines())?.plan)
    }

    /// The first thing that is written of a cluster.
    pub(super) fn save(&self) -> Result<()> {
        let text = self.arguments().join("\n");
        fs::write(home(SPEC), text).with_context(|| format!("cannot write {HOME}/{SPEC}"))
    }

    /// None: there is no cluster.
    pub(crate) fn load() -> Result<Option<Self>> {
        let Ok(text) = fs::read_to_string(home(SPEC)) else { return Ok(None) };
        let plan = Self::parse(&text).with_context(|| {
            format!("{HOME}/{SPEC} is of another version: `cargo xtask cluster down`")
        })?;
        Ok(Some(plan))
    }

    /// Remembers that `up` came to its end.
    pub(super) fn complete() -> Result<()> {
        fs::write(home(COMPLETE), "").with_context(|| format!("cannot write {HOME}/{COMPLETE}"))
    }

    pub(super) fn is_complete() -> bool {
        home(COMPLETE).exists()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_asked_for_is_found_again() {
        let plan = Plan {
            shape: Shape { nodes: 3, proxy: Proxy::KubeProxy(Mode::Iptables), zones: true },
            supply: Supply {
                programs: "/a directory/programs".into(),
                first: vec!["/pause.tar".into()],
                archives: vec!["/a.tar".into(), "/b.tar".into()],
                helm: None,
                chart: Some("/chart".into()),
                image: Some("socklb:0.1.0".to_owned()),
            },
            of_tests: true,
        };
        assert_eq!(Plan::parse(&plan.arguments().join("\n")).unwrap(), plan);
        let somebodys = Plan { of_tests: false, ..plan.clone() };
        assert_eq!(Plan::parse(&somebodys.arguments().join("\n")).unwrap(), somebodys);
        assert_eq!(plan.shape.to_string(), "--nodes 3 --proxy kube-proxy:iptables --zones");
        Plan::parse("--nodes=0\n--programs=/a").unwrap_err();
    }

    #[test]
    fn a_kube_proxy_has_the_mode_that_is_its_future_unless_it_is_told() {
        for (text, name) in [
            ("socklb", "socklb"),
            ("kube-proxy", "kube-proxy:nftables"),
            ("kube-proxy:iptables", "kube-proxy:iptables"),
            ("none", "none"),
        ] {
            assert_eq!(text.parse::<Proxy>().unwrap().to_string(), name);
        }
        "kube-proxy:ipvs".parse::<Proxy>().unwrap_err();
    }
}
