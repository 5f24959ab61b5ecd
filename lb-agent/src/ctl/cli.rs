//! Flags and arguments of `lbctl`.

use std::{net::IpAddr, num::NonZeroU64, path::PathBuf};

use clap::{Args, Parser, Subcommand, ValueEnum};

use super::{
    failure::codes,
    target::{Destination, Target},
};

/// Shows what socklb's datapath does on this node, from the maps it uses. The agent need not run.
#[derive(Clone, Debug, Parser)]
#[command(name = "lbctl", version, max_term_width = 80, after_help = codes(&[]))]
pub struct Cli {
    /// Where the agent's programs and maps are pinned [default: /sys/fs/bpf, or
    /// else the first bpf file system mounted].
    #[arg(long, env = "SOCKLB_BPFFS", value_name = "DIR", global = true)]
    pub bpffs: Option<PathBuf>,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// List the frontends of Services, their backends, and what else the maps say.
    ///
    /// `services` has a row for each frontend: an address with port and protocol, or a NodePort at the
    /// addresses of this node (own-node-ipv4:30080/tcp), at those of others (other-nodes-ipv4:30080/tcp), or
    /// at that of one other node, where it serves by endpoints of its own. BACKENDS is how many a connection
    /// may get there; 0: none, and it is refused; `<unreachable>`: the traffic policy allows none of them here.
    ///
    /// `backends` has a row for each endpoint of each service port, whatever the number of its frontends.
    /// FLOWS are the connections and datagrams that it gets: `all`, or `old`, when only UDP flows that are
    /// there already may stay. With -o wide, (old) stands at the frontends where that is so.
    ///
    /// `addresses` has one for each cluster IP and each node's address, `affinity` one for each client that
    /// stays with its backend, `clients` one for each source address that source ranges are asked about,
    /// `counters` one for each reason for which connections fail.
    Get(Get),
    /// Tell what a connection to an address would get, by the datapath's own lookup; and, with
    /// `--packets`, what a packet from elsewhere gets, by the kernel's tables.
    Explain(Explain),
    /// Tell whether the datapath works: what is attached where, how full the maps are, whether an
    /// agent runs, and whether it is ready.
    Status(Status),
}

/// `lbctl get`.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Examples:
  lbctl get services                       all of them
  lbctl get services web -o wide           those named web, with the backends' addresses
  lbctl get services 10.96.0.10:80         whose is this address?
  lbctl get backends default/web:http      where do connections to this port go?
  lbctl get backends 10.0.0.1              which Services use this pod?
  lbctl get affinity web                   which clients stay with which backend?
  lbctl get services -o json | jq -r '.items[] | select(.backends == []) | .name'")]
pub struct Get {
    /// What to list.
    pub what: What,
    /// Only these: NAME, NAMESPACE/NAME, either with :PORT; ADDR, ADDR:PORT, ADDR:PORT/tcp.
    #[arg(value_name = "NAME|ADDRESS")]
    pub targets: Vec<Target>,
    /// Only this namespace. There is no current one: without this flag, all.
    #[arg(short, long, value_name = "NAME")]
    pub namespace: Option<String>,
    /// All namespaces; so it is without this flag.
    #[arg(short = 'A', long, conflicts_with = "namespace")]
    pub all_namespaces: bool,
    /// In which form: with more columns, for programs, or only names.
    #[arg(short, long, value_name = "FORM")]
    pub output: Option<ListForm>,
    /// No line of titles.
    #[arg(long)]
    pub no_headers: bool,
}

/// What can be listed.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub enum What {
    /// The frontends; also `svc`.
    #[value(aliases = ["service", "svc"])]
    Services,
    /// The backends; also `ep`.
    #[value(aliases = ["backend", "endpoints", "ep"])]
    Backends,
    /// What addresses stand for, whatever the port.
    #[value(aliases = ["address", "addr"])]
    Addresses,
    /// The clients that stay with their backends.
    Affinity,
    /// From which addresses sockets of each network namespace connect: what `loadBalancerSourceRanges`
    /// are asked about. Empty while no Service has any.
    #[value(alias = "client")]
    Clients,
    /// How often connections failed, and why, since the maps were made.
    #[value(alias = "counter")]
    Counters,
}

/// Forms of a list.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub enum ListForm {
    /// More columns.
    Wide,
    /// One document, its schema named by `apiVersion` and `kind`.
    Json,
    /// NAMESPACE/NAME of each Service, ADDR:PORT of each backend, and so on; each once.
    Name,
}

/// `lbctl explain`.
#[derive(Clone, Copy, Debug, Args)]
#[command(after_help = "\
Exit code 0 if a connection would be sent to a backend; 1 if the address is no Service's, the
Service has no endpoints here, or the client may not connect.

Examples:
  lbctl explain 10.96.0.10:80
  lbctl explain 10.96.0.10:53/udp
  lbctl explain 192.0.2.1:30080            a NodePort
  lbctl explain 203.0.113.1:80 --from 10.0.0.7
  lbctl explain 10.96.0.10:80 --pid 1234   for this process: where does it stay?
  lbctl explain '[fd00::a]:80' -o json")]
pub struct Explain {
    /// ADDR:PORT, ADDR:PORT/tcp or ADDR:PORT/udp; IPv6 as `[ADDR]:PORT`. TCP if nothing is said.
    #[arg(value_name = "ADDR:PORT")]
    pub destination: Destination,
    /// Who connects: a client with this address. Without a client, all that clients may get is shown.
    #[arg(long, value_name = "ADDR")]
    pub from: Option<IpAddr>,
    /// Who connects: the network namespace with this cookie, as `get affinity` shows it.
    #[arg(long, value_name = "COOKIE", conflicts_with = "from")]
    pub netns: Option<NonZeroU64>,
    /// Who connects: this process.
    #[arg(long, value_name = "PID", conflicts_with_all = ["from", "netns"])]
    pub pid: Option<u32>,
    /// In which form.
    #[arg(short, long, value_name = "FORM")]
    pub output: Option<Form>,
}

/// `lbctl status`.
#[derive(Clone, Copy, Debug, Args)]
#[command(
    after_help = codes(&[0, 1, 3, 4, 6, 7, 8]) + "\n\n\
Each thing that is wrong is named, with what helps. If there are several, the
exit code is the first one of 1, 6, 7, 8. Whether it is ready is what the agent
says itself, as at its /readyz, wherever that is served, or nowhere."
)]
pub struct Status {
    /// In which form.
    #[arg(short, long, value_name = "FORM")]
    pub output: Option<Form>,
}

/// Forms of an answer that is no list.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub enum Form {
    /// One document, its schema named by `apiVersion` and `kind`.
    Json,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    fn get(words: &str) -> Get {
        match Cli::parse_from(words.split(' ')).command {
            Command::Get(get) => get,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn flags_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn as_kubectl_has_it() {
        assert_eq!(get("lbctl get svc").what, What::Services);
        assert_eq!(get("lbctl get ep -A").what, What::Backends);
        let get = get("lbctl get services web -n shop -owide --no-headers --bpffs /x");
        assert_eq!(get.namespace.as_deref(), Some("shop"));
        assert_eq!(get.output, Some(ListForm::Wide));
        assert!(get.no_headers);
    }

    #[test]
    fn what_makes_no_sense_is_a_usage_error() {
        for words in [
            "lbctl",
            "lbctl get",
            "lbctl get pods",
            "lbctl get services -A -n x",
            "lbctl get services -o yaml",
            "lbctl explain",
            "lbctl explain default/web",
            "lbctl explain 10.0.0.1",
            "lbctl explain 10.0.0.1:80 --from 10.0.0.2 --pid 1",
            "lbctl explain 10.0.0.1:80 --netns 0",
            "lbctl status -o wide",
        ] {
            let error = Cli::try_parse_from(words.split(' ')).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{words}");
        }
    }
}
