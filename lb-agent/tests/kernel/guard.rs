//! When the real `lb-agent` begins to look after its programs, and when it says that they are in force.

use std::{
    fs,
    path::PathBuf,
    process::{Command, Stdio},
};

use lb_agent::pins::PROGRAMS;

use super::{
    agent::{Agent, SIZES, command},
    connect::V4,
    control::pinned,
    flips::udp_backend,
    machine::{get, healthz, reaches, readyz},
    meddled::programs_before,
    restart::content,
    verify::detach,
    world::{World, backend4, soon, take_away},
    yaml,
};

const BROKEN: &str = "broken.yaml";

/// An agent that serves what is pinned, and never hears all that there is: a file cannot be read.
fn without_lists(world: &World, more: &[&str]) -> Agent {
    yaml::put(world, "web", "10.96.0.10", &[backend4(1)]);
    Agent::start_with(world, more).kill();
    fs::write(yaml::objects(world).join(BROKEN), "kind: [").unwrap();
    let agent = Agent::spawn(command(world, more));
    agent.wait_for_start("INFO attached");
    agent
}

/// It has done all that without a list; and with them it goes on.
fn had_no_lists(world: &World, agent: &Agent, before: &str) {
    assert!(!agent.log().contains("in sync"), "{}", agent.log());
    assert_eq!(content(&pinned(world)), before);
    for answer in [healthz(), readyz()] {
        assert!(answer.starts_with("503") && answer.contains("not in sync yet"), "{answer}");
    }
    fs::remove_file(yaml::objects(world).join(BROKEN)).unwrap();
    agent.wait_for("in sync");
    for answer in [healthz, readyz] {
        assert!(soon(|| answer().starts_with("200")), "{}", answer());
    }
}

/// A cgroup below that of the test, and how an agent is told of it.
fn below(world: &World) -> (PathBuf, String) {
    let below = world.cgroup().join("below");
    fs::create_dir(&below).unwrap();
    let named = format!("--cgroup={}", below.display());
    (below, named)
}

/// The same of one that is frozen, and the agent.
fn of_frozen(world: &World) -> (PathBuf, Command) {
    yaml::put(world, "web", "10.96.0.10", &[backend4(1)]);
    let (below, named) = below(world);
    fs::write(below.join("cgroup.freeze"), "1").unwrap();
    (below, command(world, &[SIZES[0], SIZES[1], &named]))
}

#[test]
fn links_detached_before_the_first_lists() {
    World::run(|world| {
        let _before = programs_before(world);
        let agent = without_lists(world, &SIZES);
        let maps = content(&pinned(world));
        for name in PROGRAMS {
            detach(&world.pins().link(name));
        }
        // It may look, and repair, while they are being detached.
        agent.wait_for(r#"was detached program="connect4""#);
        agent.wait_for("programs and maps are pinned and attached again");
        assert!(soon(|| udp_backend(V4).is_ok()));
        had_no_lists(world, &agent, &maps);
    });
}

#[test]
fn a_cgroup_removed_before_the_first_lists() {
    World::run(|world| {
        let (below, named) = below(world);
        let agent = without_lists(world, &[SIZES[0], SIZES[1], &named]);
        let maps = content(&pinned(world));
        assert!(reaches(&below));
        take_away(&below);
        agent.wait_for("was removed: nothing is translated");
        fs::create_dir(&below).unwrap();
        assert!(soon(|| reaches(&below)), "{}", agent.log());
        had_no_lists(world, &agent, &maps);
        drop(agent);
        take_away(&below);
    });
}

/// Whatever else is well: in a frozen cgroup it says nothing.
#[test]
fn not_ready_before_the_canary_has_been_back() {
    World::run(|world| {
        let (below, command) = of_frozen(world);
        let agent = Agent::spawn(command);
        let mut ready = Vec::new();
        let mut waits = |words: &[&str]| {
            soon(|| {
                let answers = [healthz(), readyz()];
                ready.extend(answers.iter().filter(|it| it.starts_with("200")).cloned());
                let is_said = |it: &String| words.iter().any(|words| it.contains(words));
                answers.iter().all(|it| is_said(it) && !it.contains("not in sync yet"))
            })
        };
        let cannot_tell = "cannot tell whether the programs are in force";
        // The first lasts for two seconds, in which nobody may have asked.
        let is_tried = waits(&["whether the programs are in force is being tried", cannot_tell]);
        let cannot_tell = waits(&[cannot_tell]);
        let (answer, metrics) = (readyz(), get("10249/metrics"));
        fs::write(below.join("cgroup.freeze"), "0").unwrap();
        assert_eq!(ready, <[String; 0]>::default());
        assert!(is_tried && cannot_tell, "{answer}\n{}", agent.log());
        assert!(answer.contains("timed out"), "{answer}");
        assert!(metrics.contains("\nsocklb_datapath_healthy 0\n"), "{metrics}");

        for answer in [healthz, readyz] {
            assert!(soon(|| answer().starts_with("200")), "{}", answer());
        }
        for words in ["in sync", "the programs are as they should be again"] {
            agent.wait_for(words);
        }
        assert!(reaches(&below));
        drop(agent);
        take_away(&below);
    });
}

/// It has the lock on the pins, and the ports.
#[test]
fn a_canary_in_a_frozen_cgroup_goes_with_its_agent() {
    World::run(|world| {
        let (below, mut command) = of_frozen(world);
        // What it says has no end while a canary may say something, too.
        let mut agent = command.stderr(Stdio::null()).spawn().unwrap();
        let is_out = || {
            let events = fs::read_to_string(below.join("cgroup.events")).unwrap();
            events.contains("populated 1")
        };
        let was_out = soon(is_out);
        agent.kill().unwrap();
        agent.wait().unwrap();
        let is_gone = soon(|| !is_out());
        fs::write(below.join("cgroup.freeze"), "0").unwrap();
        assert!(was_out);
        assert!(is_gone, "nobody else could end it");
        take_away(&below);
    });
}
