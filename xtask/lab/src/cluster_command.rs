//! `cluster`: the command.

use std::{
    env, fs,
    process::{Command, ExitCode},
};

use anyhow::{Result, bail};
use tools::{
    exec::{become_it, myself, say},
    root::{become_root, is_root, require_root},
    setup::{self, Scope},
};

use crate::{
    cluster::{
        API, Balance, CONTROL, Cluster, Plan, READY, Shape, balance, bring, status, sweep, turn,
        turn_within, up, var,
    },
    kube_demo,
    kubectl::Kubectl,
    stories,
};

/// A real Kubernetes on this machine: boxes of namespaces with no way out.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(clap::Subcommand)]
enum What {
    /// Make a cluster, and wait until it works.
    Up {
        #[command(flatten)]
        shape: Shape,
        /// For `test --all`.
        #[arg(long, hide = true)]
        of_tests: bool,
    },
    /// Take it away, and prove that nothing is left.
    Down {
        /// Only what an interrupted `test --all` has left.
        #[arg(long, hide = true)]
        of_tests: bool,
    },
    /// Show boxes, nodes, pods, and what is left if a part died; fails unless all is well.
    Status,
    /// Show the main job in it.
    Demo(kube_demo::Choices),
    /// Run kubectl as a user who may do everything.
    Kubectl {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        words: Vec<String>,
    },
    /// Run a command on a node, or in a box beside them: `control`, or `outside` of the cluster.
    In {
        machine: String,
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
        words: Vec<String>,
    },
    /// Show what a part says: of a node kubelet, containerd or kube-proxy; of `control` etcd,
    /// kube-apiserver, kube-controller-manager, kube-scheduler or load-balancer.
    Logs {
        machine: String,
        /// By default kubelet, and of `control` kube-apiserver.
        part: Option<String>,
        /// Go on with what it says next.
        #[arg(long, short)]
        follow: bool,
    },
    Test(stories::Args),
    /// `test`, as root, of what is there.
    #[command(hide = true)]
    Play(stories::Args),
    /// Run a program of this machine outside of the cluster, as a user who may do everything.
    #[command(hide = true)]
    Outside {
        program: std::path::PathBuf,
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        words: Vec<String>,
    },
    #[command(hide = true)]
    Balance(Balance),
    /// What cluster is up, in the words of `up`.
    #[command(hide = true)]
    Shape,
    /// Break something, or mend it.
    #[command(hide = true, subcommand)]
    Fault(Fault),
    /// `up`, as root, of what is there.
    #[command(hide = true)]
    Make(Plan),
}

#[derive(clap::Subcommand)]
enum Fault {
    KillNode { node: String },
    StartNode { node: String },
    StopApiserver,
    StartApiserver,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    if let What::Up { shape, of_tests } = &args.what {
        require_root()?;
        setup::ensure(&[Scope::Network, Scope::Cluster])?;
        let supply = bring(shape)?;
        let plan = Plan { shape: shape.clone(), supply, of_tests: *of_tests };
        let mut make = Command::new(myself()?);
        make.args(["cluster", "make"]).args(plan.arguments());
        return become_root(make);
    }
    if let What::Test(args) = &args.what {
        return stories::run(args);
    }
    if !is_root() {
        require_root()?;
        let mut again = Command::new(myself()?);
        again.args(env::args_os().skip(1));
        return become_root(again);
    }
    match &args.what {
        What::Up { .. } | What::Test(_) => bail!("this is not for here"),
        What::Make(plan) => up(plan)?,
        What::Down { of_tests: false } => down()?,
        What::Down { of_tests: true } => down_if_of_tests()?,
        What::Play(args) => return stories::play(args),
        What::Status => {
            return Ok(if status()? { ExitCode::SUCCESS } else { ExitCode::FAILURE });
        }
        What::Demo(choices) => {
            return kube_demo::play(&Kubectl::like(&Cluster::open()?.kubectl()?), choices);
        }
        What::Kubectl { words } => {
            return become_it(Cluster::open()?.kubectl()?.args(words));
        }
        What::Outside { program, words } => {
            return become_it(Cluster::open()?.in_outside(program)?.args(words));
        }
        What::Balance(args) => balance(args)?,
        What::Shape => println!("{}", Cluster::open()?.plan().shape),
        What::In { machine, words } => {
            let words: Vec<_> = words.iter().map(String::as_str).collect();
            return become_it(&mut Cluster::open()?.exec_in(machine, &words)?);
        }
        What::Fault(fault) => {
            let cluster = Cluster::open()?;
            match fault {
                Fault::KillNode { node } => cluster.kill_node(node)?,
                Fault::StartNode { node } => cluster.start_node(node)?,
                Fault::StopApiserver => cluster.stop_apiserver()?,
                Fault::StartApiserver => cluster.start_apiserver()?,
            }
        }
        What::Logs { machine, part, follow } => return logs(machine, part.as_deref(), *follow),
    }
    Ok(ExitCode::SUCCESS)
}

fn down() -> Result<()> {
    let _turn = turn()?;
    if sweep()? {
        say!("Removed: processes, namespaces, mounts, cgroups, files.");
    } else {
        say!("Nothing to remove.");
    }
    Ok(())
}

/// Somebody's own cluster is an error.
fn down_if_of_tests() -> Result<()> {
    if !is_left_by_tests(Plan::load()?.as_ref())? {
        return Ok(());
    }
    // Whoever made it may have outlived the tests, and still be at work.
    let _turn = turn_within(READY)?;
    if is_left_by_tests(Plan::load()?.as_ref())? && sweep()? {
        say!("Removed the cluster that interrupted tests had left.");
    }
    Ok(())
}

fn is_left_by_tests(there: Option<&Plan>) -> Result<bool> {
    if there.is_some_and(|plan| !plan.of_tests) {
        bail!("a cluster is up, which this would take away: `cargo xtask cluster down` first");
    }
    Ok(there.is_some())
}

fn logs(machine: &str, part: Option<&str>, follow: bool) -> Result<ExitCode> {
    let cluster = Cluster::open()?;
    let main = if machine == CONTROL { API } else { "kubelet" };
    let log = cluster.machine(machine)?.log(part.unwrap_or(main));
    if !log.exists() {
        let logs = fs::read_dir(var(machine).join("log")).into_iter().flatten().flatten();
        let names = logs.filter_map(|log| Some(log.path().file_stem()?.to_str()?.to_owned()));
        let mut names: Vec<_> =
            names.filter(|name| name != "pods" && name != "containers").collect();
        names.sort();
        bail!("there is no log {}; {machine} has {}", log.display(), names.join(", "));
    }
    let mut tail = Command::new("tail");
    tail.args(["-n", "+1"]);
    if follow {
        tail.arg("-F");
    }
    become_it(tail.arg(log))
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[derive(clap::Parser)]
    struct Words {
        #[command(flatten)]
        args: Args,
    }

    #[test]
    fn a_cluster_of_tests_is_told_from_one_that_somebody_made() {
        let plan = |of_tests: &[&str]| {
            let words = ["xtask", "make", "--programs=/programs"].iter().chain(of_tests);
            match Words::try_parse_from(words).unwrap().args.what {
                What::Make(plan) => plan,
                _ => unreachable!("it is `make`"),
            }
        };
        assert!(!is_left_by_tests(None).unwrap());
        assert!(is_left_by_tests(Some(&plan(&["--of-tests"]))).unwrap());
        let somebodys = is_left_by_tests(Some(&plan(&[]))).unwrap_err().to_string();
        assert!(somebodys.contains("`cargo xtask cluster down` first"), "{somebodys}");
    }
}
