//! The demo itself: what is done, what is said of it, and what must be so. The first thing that is
//! not as it should be ends it.

use std::{
    env, fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use tools::{
    exec::{say, show},
    telling::{self, paragraph},
    turn::{self, Turn},
};

use super::{
    network::{self, NEIGHBOUR_ADDRESS, NODE_ADDRESS, Pod},
    node::{self, AT_NODE, Node, REQUESTS},
    place::{self, HOME, home},
    services::{self, NODE_PORT, SERVICE, TARGET_PORT},
    spread::Spread,
};

const ENETUNREACH: i32 = 101;
/// The exit code of `lbctl status` where no agent runs.
const NO_AGENT: i32 = 6;
const ECONNREFUSED: i32 = 111;

#[derive(clap::Args)]
pub(super) struct Args {
    #[arg(long)]
    agent: PathBuf,
    #[arg(long)]
    lbctl: PathBuf,
    #[arg(long)]
    keep: bool,
    /// Seconds to wait for the end of another demo.
    #[arg(long, default_value_t = 0)]
    patience: u64,
}

pub(super) fn run(args: &Args) -> Result<()> {
    let patience = Duration::from_secs(args.patience);
    let turn = if patience.is_zero() {
        Turn::wait(place::NAME, turn::MOMENT)?
    } else {
        Turn::wait_long(place::NAME, patience, "another demo")?
    };
    let Some(_turn) = turn else {
        return Err(place::busy());
    };
    if place::sweep()? {
        say!("\nRemoved what an earlier demo had left.");
    }
    let start = Instant::now();
    let node = acts(args).inspect_err(|_| show_log())?;
    let (requests, seconds) = (node.requests(), start.elapsed().as_secs_f64());
    say!("\nEverything was as it should be: {requests} requests, {seconds:.1} s.");
    if args.keep {
        show_ways(&node);
    }
    Ok(())
}

fn acts(args: &Args) -> Result<Node> {
    let mut node = Node::make(args.agent.clone(), args.lbctl.clone())?;
    nobody_balances(&mut node)?;
    three_backends(&mut node)?;
    five_backends(&mut node)?;
    one_backend(&mut node)?;
    no_backend(&mut node)?;
    agent_killed(&mut node)?;
    agent_back(&mut node)?;
    from_outside(&mut node)?;
    Ok(node)
}

fn nobody_balances(node: &mut Node) -> Result<()> {
    let client = Pod::client().address;
    say!("\nsocklb: a connection to a Service goes straight to one of its backends.");
    paragraph(&[
        "Here is a node, made of network namespaces with no way out. On it are a client",
        &format!("({client}) and five HTTP servers that answer with their name: web-1 to"),
        &format!("web-5, 10.244.7.11 to 10.244.7.15, port {TARGET_PORT}. Their Service is to be"),
        &format!("{SERVICE}. Without socklb that is nobody's address:"),
    ]);
    let spread = node.settle(SERVICE, 1, |spread| spread.is_failure(ENETUNREACH))?;
    show_spread(&spread);
    Ok(())
}

fn three_backends(node: &mut Node) -> Result<()> {
    say!("\n1. Three backends");
    edit(3)?;
    start_agent(node)?;
    paragraph(&[
        "The agent reads the Service and its EndpointSlice from files, and attaches its",
        "programs to the cgroup of the node.",
    ]);
    let spread = node.spread_over(3)?;
    show_spread(&spread);
    let (name, reached) = spread.example().context("nobody answered")?;
    paragraph(&[
        &format!("No packet goes to {}. In connect() the socket gets the address of", SERVICE.ip()),
        "one backend, once; then it is an ordinary connection to that backend: no NAT,",
        &format!("nothing per packet. {name} was reached at {reached}, while"),
        &format!("getpeername() tells the client {SERVICE}, each time."),
    ]);
    lbctl(node, "get services", 0, &["web", "10.96.0.10:80"])?;
    explain(node, 0, &["10.244.7.11", "10.244.7.12", "10.244.7.13"])
}

fn five_backends(node: &mut Node) -> Result<()> {
    say!("\n2. Five backends");
    edit(5)?;
    show_spread(&node.spread_smoothly_over(5)?);
    paragraph(&[
        "The new set is complete before the Service is pointed at it: no request failed",
        "on the way.",
    ]);
    lbctl(node, "get backends", 0, &["10.244.7.14", "10.244.7.15"])
}

fn one_backend(node: &mut Node) -> Result<()> {
    say!("\n3. One backend");
    edit(1)?;
    show_spread(&node.spread_smoothly_over(1)?);
    explain(node, 0, &["10.244.7.11"])
}

fn no_backend(node: &mut Node) -> Result<()> {
    say!("\n4. No backend");
    edit(0)?;
    show_spread(&node.settle(SERVICE, REQUESTS, |spread| spread.is_failure(ECONNREFUSED))?);
    paragraph(&["Refused by connect() itself, at once: nobody waits for a time-out."]);
    explain(node, 1, &["default/web", "ECONNREFUSED"])
}

fn agent_killed(node: &mut Node) -> Result<()> {
    say!("\n5. Three backends again, and the agent is killed");
    edit(3)?;
    node.spread_over(3)?;
    say!("\n   $ kill -9 {}", node.kill_agent()?);
    show_spread(&node.spread_smoothly_over(3)?);
    paragraph(&["Programs and maps are pinned in the kernel. They do not need the agent."]);
    lbctl(node, "status", NO_AGENT, &["connect4"])
}

fn agent_back(node: &mut Node) -> Result<()> {
    say!("\n6. Five backends, and the agent comes back");
    edit(5)?;
    start_agent(node)?;
    show_spread(&node.spread_smoothly_over(5)?);
    paragraph(&[
        "It goes on from the maps that are there and writes what has changed: no request",
        "failed on the way.",
    ]);
    node.until_healthy()?;
    lbctl(node, "status", 0, &["connect4"])
}

fn from_outside(node: &mut Node) -> Result<()> {
    say!("\n7. A client that is not on the node");
    paragraph(&[
        &format!("The Service has a node port, {NODE_PORT}, and the node an address outside,"),
        &format!("{NODE_ADDRESS}. A neighbour ({NEIGHBOUR_ADDRESS}) asks for the Service there:"),
    ]);
    let spread = node.spread_from_outside_over(5)?;
    telling::requests(spread.total(), "the neighbour", AT_NODE, &spread);
    paragraph(&[
        "Its connections begin where no program of socklb sees them. They arrive as packets,",
        "which nftables rules send to a backend: the agent keeps them, since it was started",
        "with --packets external. Ten thousand Services need no more rules than one.",
    ]);
    let words = format!("explain {AT_NODE} --from {NEIGHBOUR_ADDRESS}");
    lbctl(node, &words, 0, &["a packet from elsewhere goes to", "10.244.7.15"])
}

/// Changes the file, and says so.
fn edit(count: u8) -> Result<()> {
    let pods = Pod::backends(count);
    services::write_endpoints(&pods)?;
    let names: Vec<_> = pods.iter().map(|pod| pod.name.as_str()).collect();
    let names = if names.is_empty() { "no endpoint".to_owned() } else { names.join(", ") };
    paragraph(&[&format!("{} now has {names}.", services::endpoints_file().display())]);
    Ok(())
}

fn start_agent(node: &mut Node) -> Result<()> {
    let [first, second] = node.start_agent()?;
    say!("\n   $ {first} \\\n       {second}");
    Ok(())
}

fn explain(node: &Node, code: i32, mentions: &[&str]) -> Result<()> {
    lbctl(node, &format!("explain {SERVICE}"), code, mentions)
}

/// Shows a command and its answer, which must have this exit code and these words in it.
fn lbctl(node: &Node, words: &str, code: i32, mentions: &[&str]) -> Result<()> {
    let output = node.lbctl().args(words.split(' ')).output().context("cannot start lbctl")?;
    say!("\n   $ lbctl --bpffs {} {words}", home("bpf").display());
    telling::answer(&format!("lbctl {words}"), &output, code, mentions)
}

fn show_spread(spread: &Spread) {
    telling::requests(spread.total(), "the client", SERVICE.ip(), spread);
}

/// The agent may have said why.
fn show_log() {
    let log = fs::read_to_string(node::log()).unwrap_or_default();
    let lines: Vec<_> = log.lines().collect();
    for line in &lines[lines.len().saturating_sub(15)..] {
        eprintln!("   | {line}");
    }
}

/// What to do with a node that goes on running.
fn show_ways(node: &Node) {
    let sudo = if env::var_os("SUDO_USER").is_some() { "sudo " } else { "" };
    let endpoints = services::endpoints_file();
    say!("\nIt goes on running. To play with it:\n");
    say!("   # ten requests, as the client");
    say!("   {sudo}sh {HOME}/in client curl -s 'http://{}/?[1-10]'", SERVICE.ip());
    say!("   # and as the node's neighbour");
    say!(
        "   {sudo}{}",
        show(network::outside(Path::new("curl")).arg(format!("http://{AT_NODE}/")))
    );
    say!("   # take an endpoint away, or edit the file in any way");
    say!("   {sudo}sed -i /web-2/d {}", endpoints.display());
    say!("   # what the agent says, and what is in the maps");
    say!("   {sudo}tail {}", node::log().display());
    say!("   {sudo}{}", show(node.lbctl().args(["get", "backends"])));
    say!("   # remove all of it");
    say!("   cargo xtask demo --remove");
}
