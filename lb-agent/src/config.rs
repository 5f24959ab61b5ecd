//! Flags and environment of `lb-agent`, checked once.

use std::{path::PathBuf, str::FromStr};

use clap::{
    ArgAction, CommandFactory as _, Parser, ValueEnum,
    builder::{PossibleValuesParser, TypedValueParser as _},
    error::ErrorKind,
};
use lb_core::{
    model::{Families, NodePortAddresses, Settings},
    socket_engine::UnknownPorts,
};

use crate::{
    admin::server::{self, BindAddress},
    log,
};

/// Socket-level load balancing for Kubernetes Services: connections from this node's sockets to a
/// Service address go straight to one backend.
#[derive(Clone, Debug, Parser)]
#[command(name = "lb-agent", version, max_term_width = 80)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of its own")]
pub struct Config {
    /// Where Services, EndpointSlices and Nodes come from: `kubernetes`, or `dir:PATH`, a directory of YAML
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
    /// Serve only Services that are labelled with `service.kubernetes.io/service-proxy-name=NAME`, say
    /// to try one Service beside a running kube-proxy [default: those without that label].
    #[arg(long, env = "SOCKLB_SERVICE_PROXY_NAME", value_name = "NAME", value_parser = label_value)]
    pub service_proxy_name: Option<String>,
    /// Serve `spec.externalIPs`. With `false`, nobody who may create Services can draw traffic for
    /// addresses that are not his to himself (CVE-2020-8554).
    #[arg(long, env = "SOCKLB_EXTERNAL_IPS", default_value_t = true, action = ArgAction::Set,
          value_name = "BOOL")]
    pub external_ips: bool,
    /// The node addresses at which NodePorts are served: ranges, as in `192.0.2.0/24,2001:db8::/32`,
    /// or `primary`, the first address of each family in the Node's status [default: all].
    #[arg(
        long,
        env = "SOCKLB_NODEPORT_ADDRESSES",
        default_value = "",
        hide_default_value = true,
        value_name = "LIST|primary"
    )]
    pub nodeport_addresses: NodePortAddresses,
    /// Serve NodePorts at loopback addresses (127.0.0.0/8 and ::1) too, for sockets of the host's network
    /// namespace.
    #[arg(long, env = "SOCKLB_LOCALHOST_NODEPORTS")]
    pub localhost_nodeports: bool,
    /// Sockets of this cgroup and all below it are served [default: the node's].
    #[arg(long, env = "SOCKLB_CGROUP", value_name = "DIR")]
    pub cgroup: Option<PathBuf>,
    /// Where programs and maps are pinned [default: /sys/fs/bpf, or else
    /// the first bpf file system mounted].
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
    /// Service it uses. The processes of one cgroup may have a sixteenth of it, and 1,024 in any case. A
    /// client without room is served, but not always by the same backend. With --packets, as many source
    /// addresses again for each IP version: these are shared by all Services, and who can forge source
    /// addresses can fill them.
    #[arg(long, env = "SOCKLB_MAX_AFFINITY", default_value_t = 262_144, value_name = "N",
          value_parser = clap::value_parser!(u32).range(1..=1 << 24))]
    pub max_affinity: u32,
    /// What happens at a port that a cluster IP lacks: `refuse` (ECONNREFUSED at once), or `pass`: the
    /// packets leave as they are.
    #[arg(long, env = "SOCKLB_UNKNOWN_PORT", default_value = "refuse", value_name = "WHAT",
          value_parser = PossibleValuesParser::new(UnknownPorts::NAMES).try_map(|name| name.parse::<UnknownPorts>()))]
    pub unknown_port: UnknownPorts,
    /// Which established TCP connections are ended: `never`, or `deleted`: those to endpoints that are
    /// in no EndpointSlice any more.
    #[arg(long, env = "SOCKLB_TERMINATE_TCP", default_value = "never", value_name = "WHICH")]
    pub terminate_tcp: TerminateTcp,
    /// Serve packets that come from outside of the node to NodePorts, load-balancer and external
    /// addresses, with nftables: `external`, or `off` (another proxy must). `auto` is `external`, but `off`
    /// with --service-proxy-name, and as long as a kube-proxy runs on the node or has left rules: the agent
    /// looks when it starts.
    #[arg(long, env = "SOCKLB_PACKETS", default_value = "auto", value_name = "WHICH")]
    pub packets: Packets,
    /// Where `/healthz`, `/readyz` and `/livez` are served; empty: nowhere.
    #[arg(long, env = "SOCKLB_HEALTHZ_BIND_ADDRESS", default_value = "0.0.0.0:10256",
          value_name = "IP:PORT", value_parser = health_address)]
    pub healthz_bind_address: BindAddress,
    /// Where `/metrics` and `/proxyMode` are served; empty: nowhere.
    #[arg(long, env = "SOCKLB_METRICS_BIND_ADDRESS", default_value = "127.0.0.1:10249",
          value_name = "IP:PORT", value_parser = metrics_address)]
    pub metrics_bind_address: BindAddress,
    /// Exit if one of these addresses is taken, rather than try again.
    #[arg(long, env = "SOCKLB_BIND_ADDRESS_HARD_FAIL")]
    pub bind_address_hard_fail: bool,
    /// Print what would be written to the maps, and write nothing. Tables for packets are not shown.
    #[arg(long)]
    pub dry_run: bool,
    /// Detach the programs, remove every pin and the agent's own tables of nftables (`ip socklb`,
    /// `ip6 socklb`), and exit.
    #[arg(long, conflicts_with = "dry_run")]
    pub cleanup: bool,
    /// After --cleanup wait for a signal rather than exit, for a DaemonSet, which starts again what
    /// exits.
    #[arg(long, requires = "cleanup")]
    pub stay: bool,
    /// Remove what a kube-proxy left on this node, in nftables, iptables and IPVS, by the tools of
    /// these names, and exit. Not while kube-proxy runs.
    #[arg(long, conflicts_with_all = ["dry_run", "cleanup"])]
    pub cleanup_kube_proxy: bool,
    /// Give connection tracking the room and the timeouts that kube-proxy gives it.
    #[arg(long, env = "SOCKLB_CONNTRACK_SYSCTLS", default_value_t = true, action = ArgAction::Set,
          value_name = "BOOL")]
    pub conntrack_sysctls: bool,
    /// Have connection tracking take TCP segments outside of a connection's window for a part of it
    /// (`net.netfilter.nf_conntrack_tcp_be_liberal`), with `--packets`. Without, an endpoint's packets
    /// that belong to no connection are dropped.
    #[arg(long, env = "SOCKLB_CONNTRACK_TCP_BE_LIBERAL", default_value_t = false,
          action = ArgAction::Set, num_args = 0..=1, require_equals = true,
          default_missing_value = "true", value_name = "BOOL")]
    pub conntrack_tcp_be_liberal: bool,
    /// How log lines look.
    #[arg(long, env = "SOCKLB_LOG_FORMAT", default_value = "text")]
    pub log_format: log::Format,
    /// Which log lines are written: a level (`off`, `error`, `warn`, `info`, `debug`, `trace`), and
    /// levels of parts, as in `info,lb_agent::sources=debug`.
    #[arg(long, env = "SOCKLB_LOG", default_value = "info", value_name = "FILTER")]
    pub log: log::Filter,
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

/// Which packets are served.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub enum Packets {
    /// Those of `External`, unless they may be another proxy's.
    Auto,
    /// None: sockets only.
    Off,
    /// Those to addresses that are known outside of the cluster.
    External,
}

/// Which TCP connections are ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub enum TerminateTcp {
    /// None: what changes for a Service does not concern connections that are there (E7).
    Never,
    /// Those to endpoints that are in no EndpointSlice any more.
    Deleted,
}

fn health_address(text: &str) -> Result<BindAddress, String> {
    BindAddress::parse(text, server::HEALTH_PORT)
}

fn metrics_address(text: &str) -> Result<BindAddress, String> {
    BindAddress::parse(text, server::METRICS_PORT)
}

/// What a label may be worth.
fn label_value(text: &str) -> Result<String, String> {
    let inner = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let is_edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    let valid = text.len() <= 63
        && text.chars().all(inner)
        && is_edge(text.chars().next())
        && is_edge(text.chars().next_back());
    let rule = "use at most 63 letters, digits, `-`, `_` and `.`, a letter or digit at both ends";
    if valid { Ok(text.to_owned()) } else { Err(rule.to_owned()) }
}

impl Config {
    /// What the flags and the machine say of this node. `outside`: packets from outside are served.
    pub fn settings(&self, node_name: &str, families: Families, outside: bool) -> Settings {
        Settings {
            node_name: node_name.into(),
            external_ips: self.external_ips,
            nodeport_addresses: self.nodeport_addresses.clone(),
            localhost_nodeports: self.localhost_nodeports,
            families,
            outside,
            started: std::time::SystemTime::now(),
        }
    }

    /// What clap cannot check by itself.
    pub fn check(&self) -> Result<(), clap::Error> {
        if matches!(self.source, Source::Dir(_))
            && (self.kubeconfig.is_some() || self.context.is_some())
        {
            let what =
                "--kubeconfig and --context go with --source kubernetes only: give one of them";
            return Err(Self::command().error(ErrorKind::ArgumentConflict, what));
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
    fn what_is_served() {
        let settings = |args: &[&str]| {
            let config = Config::try_parse_from([&["lb-agent"], args].concat())?;
            Ok::<_, clap::Error>(config.settings("a", Families::default(), false))
        };
        let given = settings(&[]).unwrap();
        let ours = Settings {
            node_name: "a".into(),
            outside: false,
            started: given.started,
            ..Settings::default()
        };
        assert_eq!(given, ours);
        let given = settings(&["--external-ips=false", "--localhost-nodeports"]).unwrap();
        assert!(!given.external_ips && given.localhost_nodeports);
        let of = |list: &str| settings(&["--nodeport-addresses", list]);
        assert_eq!(of("primary").unwrap().nodeport_addresses, NodePortAddresses::Primary);
        let given = of("192.0.2.1/24, 2001:db8::/32").unwrap().nodeport_addresses;
        assert_eq!(given.to_string(), "192.0.2.0/24,2001:db8::/32");
        for (list, wanted) in [
            ("primary,192.0.2.0/24", "`primary` stands alone"),
            ("192.0.2.1", "\"192.0.2.1\" is no range"),
            ("10.0.0.0/33", "\"10.0.0.0/33\" is no range"),
            ("eth0", "\"eth0\" is no range"),
        ] {
            let error = of(list).unwrap_err().to_string();
            assert!(error.contains(wanted), "{error}");
        }
        for name in ["", "-a", "a/b", "a b", &"a".repeat(64)] {
            assert!(settings(&[&format!("--service-proxy-name={name}")]).is_err(), "{name}");
        }
        let config = Config::parse_from(["lb-agent", "--service-proxy-name", "socklb"]);
        assert_eq!(config.service_proxy_name.as_deref(), Some("socklb"));
    }

    #[test]
    fn who_stays_has_cleaned_up() {
        assert!(Config::try_parse_from(["lb-agent", "--stay"]).is_err());
        assert!(Config::parse_from(["lb-agent", "--cleanup", "--stay"]).stay);
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
        assert_eq!(config.check().unwrap_err().exit_code(), 2, "as of any other usage error");
    }
}
