//! What `lbctl status` says of an agent: what that says itself, or that it says nothing.

use std::{
    fs,
    io::Read as _,
    os::{linux::net::SocketAddrExt as _, unix::process::CommandExt as _},
    process::{Command, Stdio},
};

use lb_agent::{admin::readiness, pins::Pins};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::{
    agent::{Agent, SIZES, command},
    connect::V4,
    flips::udp_backend,
    lbctl::{NOBODY, ask, lbctl},
    world::{World, backend4, soon},
    yaml,
};

/// Exit code and answer.
fn status(world: &World) -> (i32, String) {
    let (code, out, notes) = ask(world, "status");
    (code, out + &notes)
}

/// The same from other namespaces.
fn from(world: &World, namespaces: &[&str]) -> (i32, String) {
    let lbctl = lbctl(world, "status");
    let mut command = Command::new("unshare");
    command.args(namespaces).arg(lbctl.get_program()).args(lbctl.get_args());
    let output = command.output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    (output.status.code().unwrap(), text + &String::from_utf8(output.stderr).unwrap())
}

fn signal(agent: &Agent, signal: Signal) {
    kill(Pid::from_raw(agent.pid().try_into().unwrap()), signal).unwrap();
}

const OTHER_PIDS: [&str; 3] = ["--pid", "--fork", "--mount-proc"];
/// Wherever its servers are, or nowhere.
const NO_SERVERS: [&str; 4] =
    [SIZES[0], SIZES[1], "--healthz-bind-address=", "--metrics-bind-address="];

#[test]
fn an_agent_is_asked_itself() {
    World::run(|world| {
        yaml::put(world, "web", "10.96.0.10", &[backend4(1)]);
        let agent = Agent::start_with(world, &NO_SERVERS);
        assert!(soon(|| status(world).0 == 0), "{}", status(world).1);
        let (_, text) = status(world);
        let running = format!("agent:   running (pid {}), ready\n", agent.pid());
        assert!(text.starts_with("healthy\n") && text.contains(&running), "{text}");
        // Its process leads into its network namespace; without one, it must be here.
        for (namespaces, expected) in [
            (&["--net"][..], 0),
            (&OTHER_PIDS, 0),
            (&["--net", "--pid", "--fork", "--mount-proc"], 7),
        ] {
            let (code, text) = from(world, namespaces);
            assert_eq!(code, expected, "{namespaces:?}: {text}");
            assert_eq!(text.starts_with("unknown\n"), code == 7, "{text}");
            assert_eq!(text.contains("run lbctl where the agent runs"), code == 7, "{text}");
        }

        signal(&agent, Signal::SIGSTOP);
        let pid = agent.pid();
        let is_stopped = || {
            let (code, text) = status(world);
            code == 7 && text.contains(&format!("`kill -CONT {pid}`"))
        };
        assert!(soon(is_stopped), "{}", status(world).1);
        let (code, text) = from(world, &OTHER_PIDS);
        assert!(code == 7 && text.contains("has not answered for 5 s"), "{code} {text}");
        assert!(text.starts_with("degraded\n"), "{text}");
        signal(&agent, Signal::SIGCONT);
        assert!(soon(|| status(world).0 == 0), "{}", status(world).1);

        agent.kill();
        let (code, text) = status(world);
        assert!(code == 6 && text.contains("no agent is running"), "{code} {text}");
        assert!(udp_backend(V4).is_ok());
    });
}

#[test]
fn a_file_that_was_never_read_is_named() {
    World::run(|world| {
        yaml::put(world, "web", "10.96.0.10", &[backend4(1)]);
        Agent::start(world).kill();
        let broken = yaml::objects(world).join("broken.yaml");
        fs::write(&broken, "kind: [").unwrap();
        let agent = Agent::spawn(command(world, &SIZES));
        agent.wait_for_start("nothing is done before all files were read");
        assert!(soon(|| status(world).0 == 8), "{}", status(world).1);
        let (_, text) = status(world);
        for words in [
            "degraded\n  the agent is not ready, since 20",
            "Z: not in sync yet, without files: [\"broken.yaml\"] cannot be read, and never were; ",
            "correct or remove them\n",
            "not ready\n",
        ] {
            assert!(text.contains(words), "{words}: {text}");
        }
        fs::remove_file(broken).unwrap();
        assert!(soon(|| status(world).0 == 0), "{}", status(world).1);
    });
}

/// An agent that waits for an API server which refuses.
fn start_waiting(world: &World) -> Agent {
    let kubeconfig = world.dir().join("kubeconfig");
    let text = "
apiVersion: v1
kind: Config
clusters: [{name: c, cluster: {server: 'http://127.0.0.1:1'}}]
users: [{name: u, user: {}}]
contexts: [{name: c, context: {cluster: c, user: u}}]
current-context: c
";
    fs::write(&kubeconfig, text).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_lb-agent"));
    command.arg("--kubeconfig").arg(&kubeconfig).arg("--bpffs").arg(world.bpffs());
    command.args(SIZES).arg("--node-name=test").arg("--cgroup").arg(world.cgroup());
    Agent::spawn(command)
}

/// Whether `lbctl status` says what such an agent waits for.
fn is_told(world: &World) -> bool {
    let (_, text) = status(world);
    text.contains("not in sync yet, without EndpointSlice, Node, Service: ")
        && text.contains("Connection refused")
        && text.contains("trying again")
}

#[test]
fn an_api_server_that_refuses() {
    World::run(|world| {
        // There is nothing that serves.
        let agent = start_waiting(world);
        assert!(soon(|| is_told(world)), "{}", status(world).1);
        let (code, text) = status(world);
        assert_eq!(code, 1, "{text}");
        assert!(text.contains("\n  no maps are in force yet"), "{text}");
        assert!(text.contains("\n  not attached: connect4,"), "{text}");
        let (code, _, notes) = ask(world, "get services");
        assert!(code == 4 && notes.contains("`lbctl status` says what it waits for"), "{notes}");
        agent.kill();

        // What another agent left goes on.
        yaml::put(world, "web", "10.96.0.10", &[backend4(1)]);
        Agent::start(world).kill();
        let _agent = start_waiting(world);
        assert!(soon(|| is_told(world)), "{}", status(world).1);
        assert_eq!(status(world).0, 8, "{}", status(world).1);
        assert!(udp_backend(V4).is_ok());
    });
}

/// While the new agent knows nothing yet, what the old one left serves.
#[test]
fn an_update_to_another_layout() {
    World::run(|world| {
        yaml::put(world, "web", "10.96.0.10", &[backend4(1)]);
        Agent::start(world).kill();
        let pins = world.pins();
        fs::rename(pins.root(), pins.home().join("v0")).unwrap();
        let _agent = start_waiting(world);
        assert!(soon(|| is_told(world)), "{}", status(world).1);
        assert!(udp_backend(V4).is_ok());
        let (code, text) = status(world);
        assert_eq!(code, 8, "{text}");
        assert!(text.contains("\n  the programs at work are those of layout v0"), "{text}");
        assert!(text.contains("\nconnect4       attached   "), "{text}");
        for wrong in ["no maps are in force", "not attached", "missing"] {
            assert!(!text.contains(wrong), "{wrong}: {text}");
        }
    });
}

/// Any local user can take the name of a socket, but cannot speak for the agent.
#[test]
fn somebody_else_in_the_place_of_the_agent() {
    World::run(|world| {
        drop(Pins::take(&world.bpffs()).unwrap());
        let address = readiness::address(world.pins().home()).unwrap();
        let name = String::from_utf8(address.as_abstract_name().unwrap().to_vec()).unwrap();
        let script = "import socket, sys, time\n\
                      s = socket.socket(socket.AF_UNIX)\n\
                      s.bind('\\0' + sys.argv[1])\n\
                      s.listen()\n\
                      print('taken', flush=True)\n\
                      time.sleep(1000)";
        let mut other = Command::new("python3")
            .args(["-c", script, &name])
            .uid(NOBODY)
            .gid(NOBODY)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        other.stdout.as_mut().unwrap().read_exact(&mut [0; 5]).unwrap();
        let agent = Agent::start(world);
        agent.wait_for("`lbctl status` cannot ask this agent, which tries again");
        let (code, text) = status(world);
        other.kill().unwrap();
        other.wait().unwrap();
        let words = format!("the process {} of the user {NOBODY} answers in its place", other.id());
        assert!(code == 7 && text.contains(&words), "{code} {text}");
        assert!(soon(|| status(world).0 == 0), "{}", status(world).1);
    });
}

/// The pins are made anew, in another directory.
#[test]
fn an_agent_whose_pins_were_removed_is_found_again() {
    World::run(|world| {
        yaml::put(world, "web", "10.96.0.10", &[backend4(1)]);
        let _agent = Agent::start(world);
        assert!(soon(|| status(world).0 == 0), "{}", status(world).1);
        fs::remove_dir_all(world.pins().home()).unwrap();
        assert!(soon(|| status(world).0 == 0), "{}", status(world).1);
    });
}
