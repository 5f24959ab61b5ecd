//! `kind`: a cluster in Docker with socklb in place of kube-proxy, for a machine that has Docker and
//! kind. What it shows is [`crate::kube_demo`].
//!
//! Nothing is fetched but kind's node image and the demo's agnhost. socklb is installed by its own
//! chart, out of an image that is made here.

use std::{
    path::PathBuf,
    process::{Command, ExitCode},
};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;
use tools::{
    cargo::workspace,
    exec::{ask, exec, myself},
};

use crate::{
    image, kube,
    kube_demo::{self, Choices},
    kubectl::Kubectl,
    manifest,
};

const NAME: &str = "socklb";
const CONTEXT: &str = "kind-socklb";
const CONFIG: &str = "deploy/kind/kind.yaml";
const AGENT: &str = "daemonset/socklb";
/// What mounts the BPF file system of a node.
const BPFFS: &str = "deploy/kind/bpffs.service";

/// A cluster in Docker, with socklb in place of kube-proxy.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(clap::Subcommand)]
enum Action {
    /// Make the cluster, unless it is there, and install socklb as it is now.
    Up {
        /// kind's node image, of one's own or of another version [default: kind's].
        #[arg(long)]
        image: Option<String>,
        /// Archives of images for the nodes, where they cannot fetch any: that of agnhost for the
        /// demo.
        #[arg(long, value_name = "ARCHIVE")]
        load: Vec<PathBuf>,
    },
    /// Show the main job in it.
    Demo(Choices),
    /// Delete the cluster.
    Down,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    match &args.action {
        Action::Up { image, load } => up(image.as_deref(), load),
        Action::Demo(choices) => return demo(choices),
        Action::Down => down(),
    }
    .map(|()| ExitCode::SUCCESS)
}

/// What this needs, how to ask whether it is there, and what to do if it is not.
struct Tool {
    ask: &'static [&'static str],
    remedy: &'static str,
}

const DOCKER: Tool = Tool {
    ask: &["docker", "--version"],
    remedy: "docker is missing: install Docker, or use `cargo xtask cluster`, which needs none",
};
const DOCKER_RUNS: Tool = Tool {
    ask: &["docker", "info"],
    remedy: "Docker does not answer: start it (`docker info` says more), or join the group docker",
};
const KIND: Tool = Tool {
    ask: &["kind", "version"],
    remedy: "kind is missing: `go install sigs.k8s.io/kind@latest` makes it, below ~/go/bin; put that \
             on the PATH",
};
const KUBECTL: Tool = Tool {
    ask: &["kubectl", "version", "--client"],
    remedy: "kubectl is missing: put that of any recent Kubernetes on the PATH; `cargo xtask kube \
             cluster` builds one, and prints where it is",
};

fn require(tools: &[Tool]) -> Result<()> {
    for Tool { ask: words, remedy } in tools {
        if ask(Command::new(words[0]).args(&words[1..])).is_none() {
            bail!("{remedy}");
        }
    }
    Ok(())
}

fn up(image: Option<&str>, load: &[PathBuf]) -> Result<()> {
    require(&[DOCKER, DOCKER_RUNS, KIND, KUBECTL])?;
    let helm = kube::helm()?;
    let archive = make_image()?;
    if is_there()? {
        eprintln!("The cluster {NAME} is there already: only socklb is brought up to date.");
    } else {
        let mut create = kind(&["create", "cluster", "--config", CONFIG]);
        if let Some(image) = image {
            create.args(["--image", image]);
        }
        exec(create.current_dir(workspace()))
            .context("kind made no cluster; `cargo xtask kind down` removes what there is of it")?;
    }
    mount_bpffs()?;
    for archive in [&archive].into_iter().chain(load) {
        exec(kind(&["load", "image-archive"]).arg(archive))?;
    }
    install(helm)?;
    for what in [AGENT, "deployment/coredns"] {
        let wait = ["-n", "kube-system", "rollout", "status", what, "--timeout=180s"];
        exec(kubectl().args(wait)).with_context(why)?;
    }
    println!(
        "\nsocklb serves all Services of the cluster {NAME}. `cargo xtask kind demo` shows it,"
    );
    println!("`kubectl --context {CONTEXT}` is yours, `cargo xtask kind down` deletes it.");
    Ok(())
}

fn demo(choices: &Choices) -> Result<ExitCode> {
    require(&[KUBECTL])?;
    kube_demo::play(&Kubectl::new(["kubectl", "--context", CONTEXT]), choices)
        .context("is the cluster there? `cargo xtask kind up` makes it")
}

fn down() -> Result<()> {
    require(&[DOCKER, DOCKER_RUNS, KIND])?;
    exec(&mut kind(&["delete", "cluster"]))
}

/// Why not everything is ready: in the words of the agents, or of who starts them.
fn why() -> String {
    let wanted =
        ["-n", "kube-system", "get", "pods", "-l=app.kubernetes.io/name=socklb", "-o=json"];
    let pods = ask(kubectl().args(wanted));
    let unready = pods.and_then(|pods| Some(unready(&serde_json::from_str(&pods).ok()?)));
    unready.filter(|unready| !unready.is_empty()).unwrap_or_else(|| {
        format!("`kubectl --context {CONTEXT} -n kube-system describe pods` may say why")
    })
}

/// A line for each agent that is not ready.
fn unready(pods: &Value) -> String {
    let pods = pods["items"].as_array().into_iter().flatten();
    let unready = pods.filter_map(|pod| {
        let (name, node) = (pod["metadata"]["name"].as_str()?, pod["spec"]["nodeName"].as_str());
        let agent = &pod["status"]["containerStatuses"][0];
        if agent["ready"] == true {
            return None;
        }
        // How it ended says more than that it is waited for.
        let said = ["/lastState/terminated", "/state/terminated", "/state/waiting"]
            .iter()
            .filter_map(|state| agent.pointer(state))
            .find_map(|state| state["message"].as_str().or_else(|| state["reason"].as_str()));
        let said = said.map_or_else(
            || format!("`kubectl --context {CONTEXT} -n kube-system logs {name}` may say why"),
            |said| said.trim().to_owned(),
        );
        Some(format!("{name} on {} is not ready: {said}", node.unwrap_or("no node")))
    });
    unready.collect::<Vec<_>>().join("\n")
}

fn is_there() -> Result<bool> {
    let clusters = ask(Command::new("kind").args(["get", "clusters"]));
    Ok(clusters.context("`kind get clusters` failed")?.lines().any(|name| name == NAME))
}

fn make_image() -> Result<PathBuf> {
    let archive = workspace().join("target/socklb-image.tar");
    exec(Command::new(myself()?).args(["image", "--output"]).arg(&archive))?;
    Ok(archive)
}

/// systemd mounts it on a machine, but not in a container. Each node gets one of its own, and gets it
/// again when it is started again.
fn mount_bpffs() -> Result<()> {
    let nodes = ask(&mut kind(&["get", "nodes"])).context("`kind get nodes` failed")?;
    for node in nodes.lines() {
        let to = format!("{node}:/etc/systemd/system/bpffs.service");
        exec(Command::new("docker").current_dir(workspace()).args(["cp", BPFFS, &to]))?;
        for words in [&["daemon-reload"][..], &["enable", "--quiet", "--now", "bpffs"]] {
            exec(Command::new("docker").args(["exec", node, "systemctl"]).args(words))
                .with_context(|| format!("`docker start {node}` helps if it was stopped"))?;
        }
    }
    Ok(())
}

fn install(helm: PathBuf) -> Result<()> {
    let control = format!("node/{NAME}-control-plane");
    let address = "-o=jsonpath={.status.addresses[?(@.type==\"InternalIP\")].address}";
    let addresses = ask(kubectl().args(["get", &control, address]));
    let addresses = addresses.with_context(|| format!("kubectl tells no address of {control}"))?;
    let host = addresses.split(' ').next().context("the control plane has no address")?;
    let name = image::socklb::name();
    let (repository, tag) = name.split_once(':').unwrap_or((&name, ""));
    let mut helm = Command::new(helm);
    helm.current_dir(workspace()).args(["upgrade", "--install", NAME, manifest::CHART]);
    helm.args(["--kube-context", CONTEXT, "--namespace", "kube-system"]);
    for (value, is) in [
        ("kubernetes.host", host),
        ("image.repository", repository),
        ("image.tag", tag),
        // It was loaded into the nodes, and there is nowhere to pull it from.
        ("image.pullPolicy", "Never"),
        // Another build of the same version is another pod.
        ("podAnnotations.built", &built()),
    ] {
        helm.args(["--set-string", &format!("{value}={is}")]);
    }
    exec(&mut helm)
}

/// When the image was made.
fn built() -> String {
    let archive = workspace().join("target/socklb-image.tar");
    let modified = archive.metadata().and_then(|metadata| metadata.modified()).ok();
    let since = modified.and_then(|time| time.duration_since(std::time::UNIX_EPOCH).ok());
    since.map_or(0, |since| since.as_secs()).to_string()
}

fn kind(words: &[&str]) -> Command {
    let mut kind = Command::new("kind");
    kind.args(words).args(["--name", NAME]);
    kind
}

fn kubectl() -> Command {
    let mut kubectl = Command::new("kubectl");
    kubectl.args(["--context", CONTEXT]);
    kubectl
}

#[cfg(test)]
mod tests {
    use std::fs;

    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_missing_is_named_with_a_remedy() {
        let absent = Tool { ask: &["no-such-program"], remedy: "get it" };
        assert_eq!(require(&[absent]).unwrap_err().to_string(), "get it");
        require(&[Tool { ask: &["true"], remedy: "" }]).unwrap();
        for Tool { ask, remedy } in [DOCKER, KIND, KUBECTL] {
            assert!(remedy.starts_with(&format!("{} is missing: ", ask[0])), "{remedy}");
        }
    }

    #[test]
    fn of_agents_that_are_not_ready_the_reason_is_told() {
        let pod = |name: &str, agent: Value| {
            json!({
                "metadata": { "name": name },
                "spec": { "nodeName": "worker" },
                "status": { "containerStatuses": [agent] },
            })
        };
        let waits = json!({ "waiting": { "reason": "CrashLoopBackOff", "message": "back-off" } });
        let pods = json!({ "items": [
            pod("a", json!({ "ready": true, "state": {} })),
            pod("b", json!({
                "ready": false,
                "state": waits,
                "lastState": { "terminated": { "message": "error: no bpffs\n" } },
            })),
            pod("c", json!({ "ready": false, "state": waits })),
            pod("d", json!({ "ready": false, "state": { "running": {} } })),
        ] });
        assert_eq!(
            unready(&pods),
            "b on worker is not ready: error: no bpffs\n\
             c on worker is not ready: back-off\n\
             d on worker is not ready: `kubectl --context kind-socklb -n kube-system logs d` may say \
             why"
        );
        assert_eq!(unready(&json!({ "items": [] })), "");
    }

    #[test]
    fn nodes_mount_their_bpffs_where_the_chart_expects_it() {
        let unit = fs::read_to_string(workspace().join(BPFFS)).unwrap();
        let values =
            fs::read_to_string(workspace().join(manifest::CHART).join("values.yaml")).unwrap();
        let path =
            unit.lines().find_map(|line| Some(line.split_once("mount -t bpf bpf ")?.1)).unwrap();
        let path = path.trim_end_matches('"');
        assert!(values.contains(&format!("\nbpffs: {path}\n")));
        assert_eq!(unit.matches(path).count(), 2);
    }

    #[test]
    fn the_cluster_has_no_kube_proxy_and_two_workers() {
        let config = fs::read_to_string(workspace().join(CONFIG)).unwrap();
        assert!(config.contains("\n  kubeProxyMode: none\n"));
        assert_eq!(config.matches("\n  - role: worker").count(), 2);
        assert!(!config.contains("extraMounts"), "two nodes would share their pins");
    }
}
