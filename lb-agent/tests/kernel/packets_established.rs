//! A stranger's connection that stands goes on, whatever becomes of its Service or of the agent.

use std::net::SocketAddr;

use super::{
    lane::{Answer, Held, Lane, SILENCE, Speech},
    packets::{Web, node_port, put, start, vip, web},
    world::{World, soon},
};

/// Where strangers come to.
fn all() -> [SocketAddr; 4] {
    [vip(true), node_port(true), vip(false), node_port(false)]
}

fn vips() -> [SocketAddr; 2] {
    [vip(true), vip(false)]
}

/// Who comes now gets this.
fn comes_to(lane: &Lane, to: &[SocketAddr], what: fn(&Answer) -> bool) -> bool {
    let all: Vec<_> = to.iter().map(|to| (Speech::Tcp, *to)).collect();
    soon(|| lane.ask_all(&all, 3 * SILENCE).iter().all(what))
}

fn are_alive(held: &[Held]) -> bool {
    held.iter().all(Held::is_alive)
}

/// Of connections that stood before, all go on when all new ones get something else.
fn outlive(before: &Web, after: &Web, to: &[SocketAddr], new: fn(&Answer) -> bool) {
    World::run(|world| {
        let lane = Lane::new();
        put(world, before);
        let _agent = start(world);
        let held: Vec<_> = to.iter().map(|to| lane.hold(*to)).collect();
        put(world, after);
        assert!(comes_to(&lane, to, new));
        assert!(are_alive(&held));
    });
}

#[test]
fn the_loss_of_all_endpoints() {
    outlive(&web(&[1, 3]), &web(&[]), &all(), |answer| *answer == Answer::Refused);
}

#[test]
fn ranges_without_the_client() {
    let ranges = |all: [&str; 2]| Web {
        ranges: all.map(|range| format!("'{range}'")).into(),
        ..web(&[1, 3])
    };
    let [before, after] =
        [["10.50.0.0/16", "fd50::/16"], ["10.99.0.0/16", "fd99::/16"]].map(ranges);
    outlive(&before, &after, &vips(), |answer| *answer == Answer::Silence);
}

#[test]
fn a_local_policy_where_there_is_no_endpoint() {
    let local = Web { local: true, ..web(&[3]) };
    outlive(&web(&[3]), &local, &all(), |answer| *answer == Answer::Silence);
}

#[test]
fn the_death_of_the_agent_and_its_return() {
    World::run(|world| {
        let lane = Lane::new();
        put(world, &web(&[1, 3]));
        let agent = start(world);
        let held: Vec<_> = all().iter().chain(&all()).map(|to| lane.hold(*to)).collect();
        agent.kill();
        assert!(are_alive(&held));
        let served = |answer: &Answer| matches!(answer, Answer::From { .. });
        assert!(comes_to(&lane, &all(), served));
        // What has changed meanwhile is none of theirs.
        put(world, &web(&[2]));
        let _agent = start(world);
        let is_2 =
            |answer: &Answer| matches!(answer, Answer::From { name, .. } if name == "endpoint-2");
        assert!(comes_to(&lane, &all(), is_2));
        assert!(are_alive(&held));
    });
}
