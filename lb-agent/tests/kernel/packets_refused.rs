//! What an agent says while netfilter takes nothing from it: packets are served as they were, sockets as
//! they are to be, and it goes on when the kernel does.

use super::{
    agent::Agent,
    lane::{Answer, Lane, SILENCE, Speech, endpoint},
    lbctl,
    machine::readyz,
    packets::{command, put, vip, web},
    said::{Calls, Kernel, filtered},
    world::{PORT, World, soon},
};

/// An agent that serves packets; its calls wait for a [`Kernel`].
fn spawn(world: &World, calls: Calls) -> Agent {
    Agent::spawn(filtered(command(world, &[]), calls))
}

/// The endpoint that answers a client of elsewhere.
fn answers(lane: &Lane, n: u8) -> bool {
    let answer = lane.ask_all(&[(Speech::Tcp, vip(true))], SILENCE).remove(0);
    matches!(answer, Answer::From { name, .. } if name == format!("endpoint-{n}"))
}

/// The endpoint that sockets get.
fn is_in_maps(world: &World, n: u8) -> bool {
    let (code, rows, _) = lbctl::ask(world, &format!("get backends {}", vip(true)));
    code == 0 && rows.contains(&format!("{}:{PORT}/tcp", endpoint(n, true)))
}

#[test]
fn each_error_is_named_and_nothing_else_suffers() {
    World::run(|world| {
        let lane = Lane::new();
        put(world, &web(&[1]));
        let agent = spawn(world, Calls::Netfilter);
        let kernel = Kernel::between(&agent, Calls::Netfilter);
        agent.wait_for_start("in sync");
        assert!(soon(|| answers(&lane, 1)), "{}", agent.log());
        assert!(soon(|| readyz().starts_with("200")), "{}", readyz());

        for (errno, words) in [
            (
                libc::ENOMEM,
                "Cannot allocate memory (os error 12): give the agent's cgroup more memory",
            ),
            (libc::ENOBUFS, "No buffer space available (os error 105): it is tried again"),
            (libc::EPERM, "Operation not permitted (os error 1): give the agent CAP_NET_ADMIN"),
            (libc::EINTR, "Interrupted system call (os error 4)"),
        ] {
            kernel.says(errno);
            put(world, &web(&[2]));
            agent.wait_for(words);
            assert!(
                soon(|| readyz().starts_with("503") && readyz().contains(words)),
                "{}",
                readyz()
            );
            let (code, status, _) = lbctl::ask(world, "status");
            assert_eq!(code, 8, "{status}");
            assert!(status.contains(words), "{status}");
            assert!(
                soon(|| is_in_maps(world, 2)),
                "sockets have the new endpoint: {}",
                agent.log()
            );
            assert!(answers(&lane, 1), "what was there for packets stays: {}", agent.log());

            kernel.says(0);
            assert!(soon(|| answers(&lane, 2)), "{}", agent.log());
            assert!(soon(|| readyz().starts_with("200")), "{}", readyz());
            put(world, &web(&[1]));
            assert!(soon(|| answers(&lane, 1)), "{}", agent.log());
        }
    });
}

#[test]
fn without_netfilter_sockets_are_served() {
    World::run(|world| {
        let _lane = Lane::new();
        put(world, &web(&[1]));
        let agent = spawn(world, Calls::NetfilterSockets);
        let _kernel = Kernel::saying(&agent, Calls::NetfilterSockets, libc::EPROTONOSUPPORT);
        agent.wait_for_start("in sync");
        agent.wait_for("packets of IPv4 are not served, sockets are: cannot speak with nfnetlink");
        agent.wait_for("load the module nfnetlink, then restart the agent");
        assert!(
            soon(|| readyz().starts_with("503") && readyz().contains("nfnetlink")),
            "{}",
            readyz()
        );
        assert!(is_in_maps(world, 1));
    });
}
