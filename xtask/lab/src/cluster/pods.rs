//! Pods as their node has them: processes and logs. For who cannot ask the API server, or must not.

use std::{fs, path::PathBuf, process::Command};

use anyhow::{Context as _, Result, ensure};

use super::{
    live::Cluster,
    machine::{answer, quietly},
    place::{NAME, var},
};

/// A container of a pod on a node.
#[derive(Clone, Debug)]
pub(crate) struct Container {
    pub(crate) node: String,
    pub(crate) namespace: String,
    pub(crate) pod: String,
    pub(crate) uid: String,
    pub(crate) name: String,
}

impl Container {
    /// The processes of this program in the pod, as the machine counts them. Not those that they fork in
    /// passing.
    pub(crate) fn processes(&self, program: &str) -> Vec<u32> {
        let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
        let processes = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        let read = |process: u32, file| fs::read_to_string(format!("/proc/{process}/{file}"));
        let is_one = |process: &u32| {
            read(*process, "comm").is_ok_and(|comm| comm.trim() == program)
                && read(*process, "cgroup").is_ok_and(|cgroup| is_of_pod(&cgroup, &self.uid))
        };
        let all: Vec<_> = processes.filter(is_one).collect();
        let is_child = |process: &u32| {
            let parent = read(*process, "status").ok().and_then(|status| parent(&status));
            parent.is_some_and(|parent| all.contains(&parent))
        };
        all.iter().copied().filter(|process| !is_child(process)).collect()
    }

    /// Sends a signal to a program of the pod.
    pub(crate) fn signal(&self, program: &str, signal: &str) -> Result<()> {
        let processes = self.processes(program);
        ensure!(!processes.is_empty(), "{program} does not run in the pod {}", self.pod);
        let mut kill = Command::new("kill");
        kill.args(["-s", signal]).args(processes.iter().map(u32::to_string));
        quietly(&mut kill)
    }

    /// What a program of the image says, in the same namespaces as one that runs.
    pub(crate) fn run(&self, program: &str, words: &[&str]) -> Result<String> {
        let process = self.processes(program).first().map(u32::to_string);
        let process = process.with_context(|| format!("{program} does not run in {}", self.pod))?;
        let mut command = Command::new("nsenter");
        command
            .args(["--target", &process, "--mount", "--net", "--cgroup", "--pid", "--"])
            .args(words);
        answer(&mut command)
    }

    /// What the container has said, since it was last started.
    pub(crate) fn log(&self) -> Result<String> {
        let Self { node, namespace, pod, uid, name } = self;
        let directory = var(node).join(format!("log/pods/{namespace}_{pod}_{uid}/{name}"));
        let files = fs::read_dir(&directory)
            .with_context(|| format!("the pod {pod} has no log {}", directory.display()))?;
        let number = |path: &PathBuf| path.file_stem()?.to_str()?.parse::<u32>().ok();
        let logs = files.flatten().map(|file| file.path());
        let log = logs.filter(|path| number(path).is_some()).max_by_key(number);
        let log = log.with_context(|| format!("{} is empty", directory.display()))?;
        let text = fs::read(&log).with_context(|| format!("cannot read {}", log.display()))?;
        Ok(said(&String::from_utf8_lossy(&text)))
    }
}

impl Cluster {
    /// A container by the names of its node and pod. The API server must be there.
    pub(crate) fn container(&self, namespace: &str, pod: &str, name: &str) -> Result<Container> {
        let output = "--output=jsonpath={.metadata.uid} {.spec.nodeName}";
        let answer = self.ask(&["-n", namespace, "get", "pod", pod, output]);
        let answer = answer.map_err(anyhow::Error::msg)?;
        let (uid, node) = answer.split_once(' ').unwrap_or_default();
        ensure!(!node.is_empty(), "the pod {pod} has no node yet");
        let [node, namespace, pod, uid, name] = [node, namespace, pod, uid, name].map(String::from);
        Ok(Container { node, namespace, pod, uid, name })
    }
}

/// Who has started a process, by its /proc/PID/status.
fn parent(status: &str) -> Option<u32> {
    status.lines().find_map(|line| line.strip_prefix("PPid:"))?.trim().parse().ok()
}

/// Is this /proc/PID/cgroup of a process in a pod of the cluster?
fn is_of_pod(cgroup: &str, uid: &str) -> bool {
    let pod = format!("pod{uid}");
    let paths = cgroup.lines().filter_map(|line| line.splitn(3, ':').nth(2));
    paths.into_iter().any(|path| {
        path.split('/').nth(1) == Some(NAME) && path.split('/').any(|directory| directory == pod)
    })
}

/// The lines of a log such as kubelet keeps it: `TIME STREAM TAG TEXT`, where the tag P says that the
/// line goes on in the next one.
fn said(log: &str) -> String {
    let mut text = String::new();
    for line in log.lines() {
        let mut fields = line.splitn(4, ' ').skip(2);
        let (tag, part) = (fields.next().unwrap_or_default(), fields.next().unwrap_or_default());
        text.push_str(part);
        if tag != "P" {
            text.push('\n');
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_belongs_to_a_pod_by_its_cgroup() {
        let of = |cgroup: &str| is_of_pod(cgroup, "1-2");
        assert!(of("0::/socklb-cluster/n1/kubepods/besteffort/pod1-2/abc\n"));
        assert!(of("4:memory:/socklb-cluster/n1/kubepods/pod1-2/abc\n0::/\n"));
        assert!(!of("0::/socklb-cluster/n1/kubepods/pod1-23/abc\n"));
        assert!(!of("0::/kubepods/pod1-2/abc\n"));
    }

    #[test]
    fn a_process_has_a_parent() {
        assert_eq!(parent("Name:\tlb-agent\nPid:\t12\nPPid:\t7\n"), Some(7));
        assert_eq!(parent("Name:\tlb-agent\n"), None);
    }

    #[test]
    fn long_lines_come_in_parts() {
        let log = "T1 stdout F one\nT2 stdout P tw\nT3 stderr F o\nT4 stdout F \n";
        assert_eq!(said(log), "one\ntwo\n\n");
    }
}
