//! The datapath outlives the agent, and the next agent goes on from it.

use std::{net::SocketAddr, sync::atomic::Ordering, thread, time::Duration};

use lb_agent::pins::{PROGRAMS, open_link};
use lb_core::store::Snapshot;

use super::{
    agent::Agent,
    connect::V4,
    control::pinned,
    flips::{Load, udp_backend},
    raw::{dial, udp_socket},
    world::{World, backend4, soon},
    yaml,
};

/// Link and program behind each pin.
pub(crate) fn links(world: &World) -> Vec<(u32, u32)> {
    PROGRAMS
        .iter()
        .map(|name| {
            let info = open_link(&world.pins().link(name)).unwrap().0.info().unwrap();
            (info.id(), info.program_id())
        })
        .collect()
}

/// All that the maps say: ids, blocks and generations too.
pub(crate) fn content(snapshot: &Snapshot) -> String {
    format!("{:#?}\n{:#?}\n{:#?}", snapshot.names, snapshot.services, snapshot.blocks)
}

/// Connects to the Service web all the time while `work` is done; each must reach one of its
/// backends, 1 to 4.
pub(crate) fn under_load<T>(work: impl FnOnce(&Load) -> T) -> T {
    let allowed = [1, 2, 3, 4].map(backend4);
    let load = Load::default();
    let result = thread::scope(|scope| {
        scope.spawn(|| load.run(u32::MAX, &allowed, || udp_backend(V4)));
        let _stop = Stop(&load);
        work(&load)
    });
    println!("{} connects meanwhile", load.done.load(Ordering::Relaxed));
    load.verdict();
    result
}

/// Ends the load also if the work panics.
pub(crate) struct Stop<'a>(pub(crate) &'a Load);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.stop.store(true, Ordering::Relaxed);
    }
}

/// Lets some connects happen.
pub(crate) fn a_while(load: &Load) {
    let before = load.done.load(Ordering::Relaxed);
    assert!(soon(|| load.done.load(Ordering::Relaxed) > before + 500));
}

#[test]
fn nothing_is_written_and_nothing_is_missed() {
    World::run(|world| {
        yaml::put(world, "web", "10.96.0.10", &[1, 2].map(backend4));
        yaml::put(world, "empty", "10.96.0.11", &[]);
        let mut agent = Agent::start(world);
        let (maps, mut links_before) = (content(&pinned(world)), links(world));
        let agent = under_load(|load| {
            for kill in [true, false, true] {
                a_while(load);
                if kill {
                    agent.kill();
                } else {
                    let status = agent.terminate();
                    assert!(status.success(), "SIGTERM is no failure: {status}");
                }
                assert_eq!(links(world), links_before, "nothing changes when an agent goes");
                a_while(load);
                agent = Agent::start(world);
                a_while(load);

                let log = agent.log();
                assert!(log.contains("going on from the pinned maps"), "{log}");
                assert!(log.lines().any(|l| l.contains("in sync") && l.contains("ops=0")), "{log}");
                assert_eq!(content(&pinned(world)), maps);
                let now = links(world);
                for ((link, program), (link_before, program_before)) in
                    now.iter().zip(&links_before)
                {
                    assert_eq!(link, link_before, "the link stays");
                    assert_ne!(program, program_before, "the program is the new agent's");
                }
                links_before = now;
            }
            agent
        });
        // The last agent is not only there, it works.
        yaml::put(world, "web", "10.96.0.10", &[backend4(3)]);
        let third = |addr: SocketAddr| addr.ip() == backend4(3);
        assert!(soon(|| udp_backend(V4).is_ok_and(third)), "{}", agent.log());
    });
}

/// Endpoints went and came while nobody looked.
#[test]
fn what_changed_meanwhile_is_made_up_for() {
    World::run(|world| {
        yaml::put(world, "web", "10.96.0.10", &[1, 2].map(backend4));
        yaml::put(world, "gone", "10.96.0.11", &[backend4(1)]);
        let agent = Agent::start(world);
        assert!(udp_backend("10.96.0.11:80").is_ok());
        under_load(|load| {
            a_while(load);
            agent.kill();
            yaml::put(world, "web", "10.96.0.10", &[3, 4].map(backend4));
            std::fs::remove_file(yaml::objects(world).join("gone.yaml")).unwrap();
            a_while(load);
            let _agent = Agent::start(world);
            for _ in 0..100 {
                let ip = udp_backend(V4).unwrap().ip();
                assert!([3, 4].map(backend4).contains(&ip), "{ip}");
            }
            a_while(load);
        });
        let gone = udp_backend("10.96.0.11:80").unwrap_err();
        assert_eq!(gone.raw_os_error(), Some(libc::ENETUNREACH));
    });
}

/// A socket that the programs of one agent translated is known to those of the next.
#[test]
fn a_socket_keeps_its_name() {
    World::run(|world| {
        yaml::put(world, "web", "10.96.0.10", &[backend4(1)]);
        let agent = Agent::start(world);
        let socket = udp_socket(true);
        dial(&socket, V4.parse().unwrap()).unwrap();
        agent.kill();
        assert_eq!(socket.peer_addr().unwrap().to_string(), V4);
        let _agent = Agent::start_with(world, &["--max-services=100", "--max-backends=300"]);
        thread::sleep(Duration::from_millis(50));
        assert_eq!(socket.peer_addr().unwrap().to_string(), V4);
    });
}
