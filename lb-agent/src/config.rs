//! Flags and environment of `lb-agent`, checked once.

use std::{path::PathBuf, str::FromStr};

use clap::{Parser, ValueEnum};

/// Socket-level load balancing for Kubernetes Services: connections from this node's sockets to a
/// Service address go straight to one backend.
#[derive(Clone, Debug, Parser)]
#[command(name = "lb-agent", version, max_term_width = 100)]
pub struct Config {
    /// Where Services and EndpointSlices come from: `kubernetes`, or `dir:PATH`, a directory of YAML
    /// and JSON files.
    #[arg(long, env = "SOCKLB_SOURCE", default_value = "kubernetes")]
    pub source: Source,
    /// Access to the API server [default: $KUBECONFIG, ~/.kube/config, or the pod's service account].
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// Context of the kubeconfig [default: its current one].
    #[arg(long, env = "SOCKLB_CONTEXT", value_name = "NAME")]
    pub context: Option<String>,
    /// Name of this node [default: its host name].
    #[arg(long, env = "NODE_NAME", value_name = "NAME")]
    pub node_name: Option<String>,
    /// Sockets of this cgroup and all below it are served [default: the root of cgroup2].
    #[arg(long, env = "SOCKLB_CGROUP", value_name = "DIR")]
    pub cgroup: Option<PathBuf>,
    /// Where programs and maps are pinned [default: the first bpf file system mounted].
    #[arg(long, env = "SOCKLB_BPFFS", value_name = "DIR")]
    pub bpffs: Option<PathBuf>,
    /// Most frontends (address, port, protocol). Another number at the next start resizes the maps.
    #[arg(long, env = "SOCKLB_MAX_SERVICES", default_value_t = 65_536, value_name = "N",
          value_parser = clap::value_parser!(u32).range(1..=1 << 24))]
    pub max_services: u32,
    /// Most backends, 32 bytes each, counted once for each backend set they are in. A set that
    /// changes needs room for its old and its new records.
    #[arg(long, env = "SOCKLB_MAX_BACKENDS", default_value_t = 262_144, value_name = "N",
          value_parser = clap::value_parser!(u32).range(1..=1 << 26))]
    pub max_backends: u32,
    /// Most clients of Services with session affinity: each pod counts once for each port of each such
    /// Service it uses. A client without room is served, but not always by the same backend.
    #[arg(long, env = "SOCKLB_MAX_AFFINITY", default_value_t = 262_144, value_name = "N",
          value_parser = clap::value_parser!(u32).range(1..=1 << 24))]
    pub max_affinity: u32,
    /// Print what would be written to the maps, and write nothing.
    #[arg(long)]
    pub dry_run: bool,
    /// Detach the programs, remove every pin, and exit.
    #[arg(long, conflicts_with = "dry_run")]
    pub cleanup: bool,
    /// How log lines look.
    #[arg(long, env = "SOCKLB_LOG_FORMAT", default_value = "text")]
    pub log_format: LogFormat,
    /// Which log lines are written: a level, or directives such as `info,lb_agent::sources=debug`.
    #[arg(long, env = "SOCKLB_LOG", default_value = "info", value_name = "FILTER")]
    pub log: String,
}

/// Where objects come from.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Source {
    /// The API server.
    Kubernetes,
    /// A directory of files.
    Dir(PathBuf),
}

impl FromStr for Source {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            None if text == "kubernetes" => Ok(Self::Kubernetes),
            Some(("dir", path)) if !path.is_empty() => Ok(Self::Dir(path.into())),
            _ => Err("use `kubernetes` or `dir:PATH`".to_owned()),
        }
    }
}

/// Form of the log.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

impl Config {
    /// What clap cannot check by itself.
    pub fn check(&self) -> Result<(), String> {
        if matches!(self.source, Source::Dir(_))
            && (self.kubeconfig.is_some() || self.context.is_some())
        {
            return Err("--kubeconfig and --context go with --source kubernetes only".to_owned());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_consistent() {
        use clap::CommandFactory as _;
        Config::command().debug_assert();
    }

    #[test]
    fn sources() {
        assert_eq!("kubernetes".parse(), Ok(Source::Kubernetes));
        assert_eq!("dir:/etc/socklb".parse(), Ok(Source::Dir("/etc/socklb".into())));
        assert_eq!("dir:a:b".parse(), Ok(Source::Dir("a:b".into())));
        for text in ["", "dir", "dir:", "file:x", "k8s"] {
            assert!(text.parse::<Source>().is_err(), "{text}");
        }
        let config = Config::parse_from(["lb-agent", "--source", "dir:/x", "--kubeconfig", "y"]);
        assert!(config.check().is_err());
    }
}
