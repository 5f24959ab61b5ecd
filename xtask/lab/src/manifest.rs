//! `manifest`: deploy/socklb.yaml, which is the Helm chart rendered with its defaults, for those who
//! do not use Helm. The chart is the source; a check compares the two, and tries the chart's schema.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode, Output},
};

use anyhow::{Context as _, Result, bail, ensure};
use tools::{cargo::workspace, exec::show};

use crate::kube;

/// Write deploy/socklb.yaml anew from the Helm chart.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Change nothing: fail if the file is not what the chart makes, or the chart is wrong.
    #[arg(long)]
    check: bool,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let chart = Chart { helm: kube::helm()? };
    let (file, text) = (manifest(), chart.manifest()?);
    if !args.check {
        fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))?;
        return Ok(ExitCode::SUCCESS);
    }
    has_our_version()?;
    chart.passes_lint()?;
    chart.takes_what_is_right()?;
    chart.refuses_what_is_wrong()?;
    let present = fs::read_to_string(&file).unwrap_or_default();
    if let Some((number, line)) = first_difference(&present, &text) {
        bail!(
            "deploy/socklb.yaml is not what the chart makes: its line {number} should be\n{line}\n\
             write it anew: `cargo xtask manifest`"
        );
    }
    Ok(ExitCode::SUCCESS)
}

/// The chart, below the work tree: relative, so that nothing rendered depends on where that is.
pub(crate) const CHART: &str = "deploy/helm/socklb";

const HEADER: &str = "\
# socklb on every Linux node. Made from deploy/helm/socklb by `cargo xtask manifest`: change that.
#
#   kubectl apply -f socklb.yaml
#
# Two things are for you to say. Where the nodes find the image:
#
#   kubectl -n kube-system set image daemonset/socklb agent=REGISTRY/socklb:VERSION
#
# And, where no kube-proxy is left, an address of the API server that works without any Service:
#
#   kubectl -n kube-system set env daemonset/socklb \\
#     KUBERNETES_SERVICE_HOST=ADDRESS KUBERNETES_SERVICE_PORT=6443
#
# `kubectl delete` takes the agents away, and leaves programs and maps in the kernel: connections go
# on. To take those away too, on each node, after that:
#
#   kubectl debug node/NAME --profile=sysadmin --image=REGISTRY/socklb:VERSION -- \\
#     /usr/bin/lb-agent --cleanup --bpffs=/host/sys/fs/bpf
";

fn manifest() -> PathBuf {
    workspace().join("deploy/socklb.yaml")
}

/// The chart with a helm to render it.
struct Chart {
    helm: PathBuf,
}

/// Values, in the words of `helm --set`; what must then be there, and what must not.
struct Render {
    set: &'static str,
    with: &'static [&'static str],
    without: &'static [&'static str],
}

const RIGHT: &[Render] = &[
    Render {
        set: "kubernetes.host=fd00:30::1,kubernetes.port=443",
        with: &["value: \"fd00:30::1\"", "value: \"443\""],
        without: &[],
    },
    Render {
        set: "podSockets=true",
        with: &["- NET_ADMIN", "- SYS_ADMIN", "- SYS_PTRACE", "hostPID: true"],
        without: &["- BPF", "- PERFMON"],
    },
    Render {
        set: "podSockets=false",
        with: &["- PERFMON", "hostPID: true"],
        without: &["SYS_ADMIN", "SYS_PTRACE"],
    },
    Render {
        set: "podSockets=false,cgroup=/sys/fs/cgroup/unified",
        with: &["--cgroup=/sys/fs/cgroup/unified"],
        without: &["SYS_ADMIN", "hostPID"],
    },
    Render {
        set: "serviceProxyName=socklb",
        with: &[
            "--service-proxy-name=socklb",
            "--healthz-bind-address=0.0.0.0:10356",
            "--metrics-bind-address=127.0.0.1:10349",
            "containerPort: 10356",
        ],
        without: &["10256", "10249"],
    },
    Render {
        set: "healthzBindAddress=[fd00::1]:10300,metricsBindAddress=",
        with: &[
            "--healthz-bind-address=[fd00::1]:10300",
            "host: \"fd00::1\"",
            "--metrics-bind-address=\n",
        ],
        without: &["name: metrics"],
    },
    Render {
        set: "healthzBindAddress=",
        with: &["--healthz-bind-address=\n", "name: metrics"],
        without: &["Probe", "name: healthz"],
    },
    Render {
        set: "nodePortAddresses={10.0.0.0/8,fd00::/8},localhostNodePorts=true,externalIPs=false",
        with: &[
            "--nodeport-addresses=10.0.0.0/8,fd00::/8\n",
            "--localhost-nodeports\n",
            "--external-ips=false",
        ],
        without: &[],
    },
    Render {
        set: "maxServices=16777216,extraArgs={--context=x},updateStrategy.maxUnavailable=10%",
        with: &["--max-services=16777216\n", "- --context=x\n", "maxUnavailable: 10%"],
        without: &[],
    },
    // What the chart says itself is not said twice: a key that is there twice makes no YAML.
    Render {
        set: "nodeSelector.kubernetes\\.io/os=linux,podLabels.app\\.kubernetes\\.io/name=x,podLabels.a=b",
        with: &["nodeSelector:\n        kubernetes.io/os: linux\n      toler", "        a: b\n"],
        without: &["app.kubernetes.io/name: x"],
    },
    Render { set: "nodeSelector=null,podLabels=null,podAnnotations=null", with: &[], without: &[] },
    Render {
        set: "updateStrategy.type=OnDelete",
        with: &["type: OnDelete"],
        without: &["rollingUpdate"],
    },
    Render {
        set: "cleanup=true",
        with: &["- --cleanup\n", "- --stay\n", "maxUnavailable: 100%"],
        without: &["Probe", "--log"],
    },
    Render {
        set: "cleanup=true,updateStrategy.type=OnDelete",
        with: &["type: RollingUpdate", "maxUnavailable: 100%"],
        without: &["OnDelete"],
    },
    Render {
        set: "podMonitor.enabled=true,metricsBindAddress=0.0.0.0:10249",
        with: &["kind: PodMonitor", "port: metrics"],
        without: &[],
    },
    Render {
        set: "serviceAccount.create=false,serviceAccount.name=other,rbac.create=false",
        with: &["serviceAccountName: other"],
        without: &["kind: ClusterRole", "kind: ServiceAccount"],
    },
    Render {
        set: "image.repository=registry.example/a/socklb,image.tag=v1,image.digest=sha256:\
              0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
        with: &["image: \"registry.example/a/socklb:v1@sha256:0123456789abcdef"],
        without: &[],
    },
];

/// Values, and the field that the refusal must name.
const WRONG: &[(&str, &str)] = &[
    ("unknownPort=drop", "'/unknownPort'"),
    ("terminateTcp=all", "'/terminateTcp'"),
    ("logFormat=xml", "'/logFormat'"),
    ("log=warning", "'/log'"),
    ("kubernetes.host=https://10.0.0.1:6443", "'/kubernetes/host'"),
    ("kubernetes.port=0", "'/kubernetes/port'"),
    ("maxServices=0", "'/maxServices'"),
    ("maxBackends=many", "'/maxBackends'"),
    ("nodePortAddresses={eth0}", "'/nodePortAddresses/0'"),
    ("healthzBindAddress=10256", "'/healthzBindAddress'"),
    ("metricsBindAddress=localhost:10249", "'/metricsBindAddress'"),
    ("serviceProxyName=a/b", "'/serviceProxyName'"),
    ("cgroup=/sys/fs/bpf", "'/cgroup'"),
    ("updateStrategy.maxUnavailable=0", "'/updateStrategy/maxUnavailable'"),
    ("extraArgs={--log=debug,loud}", "'/extraArgs/1'"),
    ("image.tga=1", "'tga'"),
    ("unknownport=pass", "'unknownport'"),
    ("podMonitor.enabled=true", "metricsBindAddress"),
];

impl Chart {
    fn manifest(&self) -> Result<String> {
        Ok(format!("{HEADER}{}", without_helms_own(&self.render(&[])?)))
    }

    fn render(&self, set: &[&str]) -> Result<String> {
        let mut helm = self.template(set);
        let output = run_quietly(&mut helm)?;
        let error = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "`{}`: {}", show(&helm), error.trim());
        String::from_utf8(output.stdout).context("helm's output is no text")
    }

    fn template(&self, set: &[&str]) -> Command {
        let mut helm = Command::new(&self.helm);
        helm.current_dir(workspace()).args(["template", "socklb", CHART]);
        helm.args(["--namespace", "kube-system", "--kube-version", kube::VERSION]);
        for set in set {
            helm.args(["--set", set]);
        }
        helm
    }

    fn passes_lint(&self) -> Result<()> {
        let mut lint = Command::new(&self.helm);
        lint.current_dir(workspace()).args(["lint", "--strict", "--quiet", CHART]);
        lint.args(["--kube-version", kube::VERSION]);
        let output = run_quietly(&mut lint)?;
        let said = String::from_utf8_lossy(&output.stdout);
        ensure!(output.status.success(), "`{}`: {}", show(&lint), said.trim());
        Ok(())
    }

    fn takes_what_is_right(&self) -> Result<()> {
        for Render { set, with, without } in RIGHT {
            let text = self.render(&[set])?;
            for wanted in *with {
                ensure!(text.contains(wanted), "--set {set}: there is no {wanted:?} in\n{text}");
            }
            for unwanted in *without {
                ensure!(!text.contains(unwanted), "--set {set}: there is {unwanted:?} in\n{text}");
            }
        }
        Ok(())
    }

    fn refuses_what_is_wrong(&self) -> Result<()> {
        for (set, field) in WRONG {
            let output = run_quietly(&mut self.template(&[set]))?;
            let said = String::from_utf8_lossy(&output.stderr);
            ensure!(!output.status.success(), "--set {set}: the chart takes it");
            ensure!(said.contains(field), "--set {set}: helm does not name {field}:\n{said}");
        }
        Ok(())
    }
}

fn run_quietly(command: &mut Command) -> Result<Output> {
    command.output().with_context(|| format!("cannot start `{}`", show(command)))
}

/// Without the labels that say that Helm looks after an object, and where in the chart it stands.
fn without_helms_own(rendered: &str) -> String {
    let own = ["app.kubernetes.io/managed-by:", "helm.sh/chart:", "# Source:"];
    let lines = rendered.lines().filter(|line| {
        let line = line.trim_start();
        !own.iter().any(|own| line.starts_with(own))
    });
    lines.flat_map(|line| [line, "\n"]).collect()
}

/// The first line of `right` that `left` does not have there, with its number.
fn first_difference<'a>(left: &str, right: &'a str) -> Option<(usize, &'a str)> {
    let mut left = left.lines();
    let differs = |(_, line): &(usize, &str)| left.next() != Some(line);
    let found = right.lines().enumerate().find(differs).map(|(index, line)| (index + 1, line));
    found.or_else(|| left.next().map(|_| (right.lines().count() + 1, "the end of the file")))
}

/// The chart and the image are of one version: the workspace's.
fn has_our_version() -> Result<()> {
    let chart = fs::read_to_string(workspace().join(CHART).join("Chart.yaml"))?;
    let ours = env!("CARGO_PKG_VERSION");
    for field in ["version", "appVersion"] {
        let value =
            field_of(&chart, field).with_context(|| format!("Chart.yaml has no {field}"))?;
        ensure!(value == ours, "Chart.yaml: {field} is {value}, and Cargo.toml says {ours}");
    }
    Ok(())
}

fn field_of<'a>(yaml: &'a str, field: &str) -> Option<&'a str> {
    yaml.lines().find_map(|line| Some(line.strip_prefix(field)?.strip_prefix(':')?.trim()))
}

/// The check of the `lint` layer: this program with `manifest --check`.
pub(crate) fn check(program: &Path) -> Command {
    let mut check = Command::new(program);
    check.args(["manifest", "--check"]);
    check
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_chart_has_our_version() {
        has_our_version().unwrap();
        assert_eq!(field_of("apiVersion: v2\nversion: 1\n", "version"), Some("1"));
    }

    #[test]
    fn the_first_difference_is_named() {
        assert_eq!(first_difference("a\nb\n", "a\nb\n"), None);
        assert_eq!(first_difference("a\nb\n", "a\nc\n"), Some((2, "c")));
        assert_eq!(first_difference("", "a\n"), Some((1, "a")));
        assert_eq!(first_difference("a\nb\n", "a\n"), Some((2, "the end of the file")));
    }

    #[test]
    fn what_only_helm_says_of_itself_is_left_out() {
        let rendered = "---\n# Source: socklb/x.yaml\nkind: A\n    helm.sh/chart: b\n";
        assert_eq!(without_helms_own(rendered), "---\nkind: A\n");
    }
}
