//! The demo itself: what is done, what is said of it, and what must be so. Each act ends in a
//! check; the first that fails ends the demo.

use std::{
    env,
    fs::{self, File},
    net::SocketAddrV4,
    os::unix::process::CommandExt as _,
    path::PathBuf,
    process::{Child, Command, Stdio},
    slice::from_ref,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, bail, ensure};

use super::{
    client::Outcome,
    myself,
    network::{self, Pod},
    place::{self, Cgroups, HOME, Turn, home},
    quietly, say,
    services::{self, NODE_NAME, SERVICE, TARGET_PORT},
    spread::Spread,
};
use crate::exec::show;

/// What must be so, must be so by then. Usually it is at once; the machine may be busy.
const PATIENCE: Duration = Duration::from_secs(10);
/// With so many requests for each backend, one that is never chosen is not chosen by rule: for five
/// backends that would be bad luck of 1 in 10^47.
const REQUESTS: usize = 100;

const ECONNREFUSED: i32 = 111;
const ENETUNREACH: i32 = 101;

#[derive(clap::Args)]
pub(super) struct Args {
    #[arg(long)]
    agent: PathBuf,
    #[arg(long)]
    lbctl: PathBuf,
    #[arg(long)]
    keep: bool,
}

pub(super) fn run(args: &Args) -> Result<()> {
    let Some(_turn) = Turn::wait()? else {
        return Err(place::busy());
    };
    if place::sweep()? {
        say!("Removed what an earlier demo had left.");
    }
    let start = Instant::now();
    let mut play = Play::prepare(args)?;
    play.acts().inspect_err(|_| show_log())?;
    say!(
        "\nAll of it went as it should: {} requests, {:.1} s.",
        play.requests,
        start.elapsed().as_secs_f64()
    );
    if args.keep {
        play.keep();
    }
    Ok(())
}

/// The agent may have said why.
fn show_log() {
    let log = fs::read_to_string(log()).unwrap_or_default();
    let lines: Vec<_> = log.lines().collect();
    for line in &lines[lines.len().saturating_sub(15)..] {
        eprintln!("   | {line}");
    }
}

/// What the agent says, and whatever else stays in the background.
fn log() -> PathBuf {
    home("log")
}

struct Play<'a> {
    args: &'a Args,
    program: PathBuf,
    cgroup: PathBuf,
    agent: Option<Child>,
    /// Made so far, to Services and to backends.
    requests: usize,
}

impl<'a> Play<'a> {
    /// Cgroups, network, backends; no agent yet.
    fn prepare(args: &'a Args) -> Result<Self> {
        let cgroup = Cgroups::make()?.node();
        fs::create_dir(HOME).with_context(|| format!("cannot make {HOME}"))?;
        fs::create_dir(home("bpf"))?;
        quietly(Command::new("mount").args(["-t", "bpf", "socklb-demo"]).arg(home("bpf")))?;
        let backends = Pod::backends(5);
        let mut pods = backends.clone();
        pods.push(Pod::client());
        network::make(&pods, &cgroup)?;
        services::make()?;

        let mut play = Self { args, program: myself()?, cgroup, agent: None, requests: 0 };
        for Pod { name, .. } in &backends {
            let mut backend = network::inside(name, &play.program);
            backend.args(["demo", "backend", name]);
            background(&mut backend)?;
        }
        for backend in backends {
            let address = SocketAddrV4::new(backend.address, TARGET_PORT);
            play.settle(address, 1, |spread| spread.is_over(from_ref(&backend)))?;
        }
        Ok(play)
    }

    fn acts(&mut self) -> Result<()> {
        self.nobody_balances()?;
        self.three_backends()?;
        self.five_backends()?;
        self.one_backend()?;
        self.no_backend()?;
        self.agent_killed()?;
        self.agent_back()
    }

    fn nobody_balances(&mut self) -> Result<()> {
        say!("\nA node, in network namespaces with no way out:\n");
        say!("     {:7} {}", "client", Pod::client().address);
        for Pod { name, address } in Pod::backends(5) {
            say!("     {name:7} {address}:{TARGET_PORT}  an HTTP server, answers with its name");
        }
        say!("\n   The Service is to be http://{}/, which is nobody's address yet:", SERVICE.ip());
        let spread = self.settle(SERVICE, 1, |spread| spread.is_failure(ENETUNREACH))?;
        say!("\n{spread}");
        Ok(())
    }

    fn three_backends(&mut self) -> Result<()> {
        say!("1. Three backends\n");
        services::write_endpoints(&Pod::backends(3))?;
        self.start_agent()?;
        say!("   It reads a Service and an EndpointSlice of web-1, web-2, web-3 from files, and");
        say!("   attaches its programs to the cgroup of the node.");
        let spread = self.spread_over(3)?;
        let (name, reached) = spread.example().context("somebody answered")?;
        say!(
            "   No packet goes to {}. In connect() the socket gets the address of a",
            SERVICE.ip()
        );
        say!("   backend, once; then it is an ordinary connection: no NAT, nothing per packet.");
        say!("   {name} was reached at {reached}; the client's getpeername() says {SERVICE}.");
        self.lbctl("get services", 0, &["web", "10.96.0.10:80"])?;
        self.lbctl(&format!("explain {SERVICE}"), 0, &["10.244.7.11", "10.244.7.12", "10.244.7.13"])
    }

    fn five_backends(&mut self) -> Result<()> {
        change("2. Five backends", 5)?;
        self.spread_over(5)?;
        say!("   A Service has one set of backends at any moment: the old one, then the new one.");
        self.lbctl("get backends", 0, &["10.244.7.14", "10.244.7.15"])
    }

    fn one_backend(&mut self) -> Result<()> {
        change("3. One backend", 1)?;
        self.spread_over(1)?;
        self.lbctl(&format!("explain {SERVICE}"), 0, &["10.244.7.11"])
    }

    fn no_backend(&mut self) -> Result<()> {
        change("4. None", 0)?;
        let spread = self.settle(SERVICE, REQUESTS, |spread| spread.is_failure(ECONNREFUSED))?;
        show_spread(&spread);
        say!("   Refused in connect() itself, at once: nobody waits for a time-out.");
        self.lbctl(&format!("explain {SERVICE}"), 1, &["default/web"])
    }

    fn agent_killed(&mut self) -> Result<()> {
        change("5. Three again, and then: kill -9 of the agent", 3)?;
        self.settle(SERVICE, 3 * REQUESTS, |spread| spread.is_over(&Pod::backends(3)))?;
        let mut agent = self.agent.take().context("the agent runs")?;
        say!("\n   $ kill -9 {}", agent.id());
        agent.kill()?;
        agent.wait()?;
        self.spread_over(3)?;
        say!("   Programs and maps are pinned in the kernel; they do not need the agent.");
        self.lbctl("status", 1, &["connect4"])
    }

    fn agent_back(&mut self) -> Result<()> {
        say!("\n6. The agent comes back, and in the meantime there are five\n");
        services::write_endpoints(&Pod::backends(5))?;
        self.start_agent()?;
        say!("   It goes on from the maps that are there, and writes what has changed.");
        self.spread_over(5)?;
        self.lbctl("status", 0, &["connect4"])
    }

    fn start_agent(&mut self) -> Result<()> {
        let mut agent = network::inside(network::NODE, &self.args.agent);
        let source = format!("dir:{}", services::directory().display());
        agent.arg("--source").arg(source).arg("--bpffs").arg(home("bpf"));
        agent.arg("--cgroup").arg(&self.cgroup).arg("--node-name").arg(NODE_NAME);
        // The demo is the same whatever the caller has in store for other agents.
        for (name, _) in env::vars_os() {
            if name.to_string_lossy().starts_with("SOCKLB_") {
                agent.env_remove(name);
            }
        }
        let words: Vec<_> = agent.get_args().skip(3).map(|word| word.to_string_lossy()).collect();
        say!("   $ lb-agent {}", words.join(" "));
        self.agent = Some(background(&mut agent)?);
        Ok(())
    }

    /// Requests to the Service until each of the first `count` backends and nobody else answers.
    fn spread_over(&mut self, count: u8) -> Result<Spread> {
        let pods = Pod::backends(count);
        let requests = REQUESTS * usize::from(count);
        let spread = self.settle(SERVICE, requests, |spread| spread.is_over(&pods))?;
        show_spread(&spread);
        Ok(spread)
    }

    /// Makes batches of requests until one of them is as it should be; an error if none is in time.
    fn settle(
        &mut self,
        to: SocketAddrV4,
        requests: usize,
        check: impl Fn(&Spread) -> Result<(), String>,
    ) -> Result<Spread> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let spread = Spread::of(&self.request(to, requests)?, to.into());
            let Err(reason) = check(&spread) else { return Ok(spread) };
            if let Some(agent) = &mut self.agent {
                if let Some(status) = agent.try_wait()? {
                    bail!("lb-agent has ended: {status}");
                }
            }
            ensure!(
                Instant::now() < deadline,
                "requests to {to}, after {} s: {reason}\n{spread}",
                PATIENCE.as_secs()
            );
            sleep(Duration::from_millis(20));
        }
    }

    fn request(&mut self, to: SocketAddrV4, requests: usize) -> Result<Vec<Outcome>> {
        let mut client = network::inside(&Pod::client().name, &self.program);
        client.args(["demo", "client"]).arg(to.to_string());
        client.arg("--requests").arg(requests.to_string());
        let output = client.output().context("cannot start the client")?;
        if !output.status.success() {
            let reason = String::from_utf8_lossy(&output.stderr);
            return Err(anyhow!("the client, to {to}: {}", reason.trim()));
        }
        self.requests += requests;
        String::from_utf8_lossy(&output.stdout).lines().map(str::parse).collect()
    }

    /// Shows a command and its answer, which must have this exit code and these words in it.
    fn lbctl(&self, words: &str, code: i32, mentions: &[&str]) -> Result<()> {
        let mut lbctl = Command::new(&self.args.lbctl);
        lbctl.arg("--bpffs").arg(home("bpf")).args(words.split(' '));
        let output = lbctl.output().context("cannot start lbctl")?;
        let answer = String::from_utf8_lossy(&output.stdout);
        say!("\n   $ lbctl --bpffs {} {words}", home("bpf").display());
        for line in answer.lines() {
            say!("   {line}");
        }
        ensure!(
            output.status.code() == Some(code),
            "lbctl {words}: {}, and not {code}: {}",
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        );
        match mentions.iter().find(|word| !answer.contains(**word)) {
            Some(word) => bail!("lbctl {words} does not mention {word}"),
            None => Ok(()),
        }
    }

    fn keep(&self) {
        let sudo = if env::var_os("SUDO_USER").is_some() { "sudo " } else { "" };
        let endpoints = services::endpoints_file();
        let endpoints = endpoints.display();
        let mut lbctl = Command::new(&self.args.lbctl);
        lbctl.arg("--bpffs").arg(home("bpf")).args(["get", "backends"]);
        say!("It goes on running.\n");
        say!("Ten requests, as the client:");
        say!("   {sudo}sh {HOME}/in client curl -s 'http://{}/?[1-10]'", SERVICE.ip());
        say!(
            "Take an endpoint away, or edit the file as you like; it is as kubectl would show it:"
        );
        say!("   {sudo}sed -i /web-2/d {endpoints}");
        say!("What is in the maps:");
        say!("   {sudo}{}", show(&lbctl));
        say!("What the agent says:");
        say!("   {sudo}tail -f {}", log().display());
        say!("Remove all of it:");
        say!("   cargo xtask demo --remove");
    }
}

fn change(title: &str, backends: u8) -> Result<()> {
    let pods = Pod::backends(backends);
    services::write_endpoints(&pods)?;
    let names: Vec<_> = pods.iter().map(|pod| pod.name.as_str()).collect();
    let names = if names.is_empty() { "nobody".to_owned() } else { names.join(", ") };
    say!("\n{title}\n\n   {} names {names}.", services::endpoints_file().display());
    Ok(())
}

fn show_spread(spread: &Spread) {
    say!("\n   {} requests from the client to http://{}/:\n", spread.total(), SERVICE.ip());
    say!("{spread}");
}

/// Starts what stays. In a process group of its own, or it would be told of the end of the terminal
/// that the demo was started from.
fn background(command: &mut Command) -> Result<Child> {
    let log = File::options().create(true).append(true).open(log())?;
    let child =
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).process_group(0).spawn();
    child.with_context(|| format!("cannot start `{}`", show(command)))
}
