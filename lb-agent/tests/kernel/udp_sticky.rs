//! The datagrams of a flow, which is a socket and a Service, go to one backend as long as it serves.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
};

use lb_agent::datapath::Sizes;
use lb_core::model::{Change, Conditions};
use nix::errno::Errno;

use super::{
    connect::{MAPPED, V4, V6},
    control::{Control, ROOMY, object, service, slice},
    pods::{Pods, at, client, exchange, pod4},
    raw::errno,
    spread,
    world::{World, backend4, backend6},
};

const IPS: [&str; 2] = ["10.96.0.10", "fd00:96::a"];
const READY: Conditions = Conditions { ready: true, serving: true, terminating: false };
const LEAVING: Conditions = Conditions { ready: false, serving: true, terminating: true };
const GONE: Conditions = Conditions { ready: false, serving: false, terminating: true };

fn both(numbers: impl IntoIterator<Item = u8>) -> Vec<IpAddr> {
    numbers.into_iter().flat_map(|n| [backend4(n), backend6(n)]).collect()
}

/// The Service web with endpoints in these conditions.
fn put(control: &mut Control, endpoints: &[(IpAddr, Conditions)], internal_local: bool) {
    let ips: Vec<_> = endpoints.iter().map(|(ip, _)| *ip).collect();
    let mut slice = slice("web", &ips);
    for (endpoint, (_, conditions)) in slice.endpoints.iter_mut().zip(endpoints) {
        endpoint.conditions = *conditions;
    }
    let mut service = service(&IPS, 80);
    service.internal_local = internal_local;
    control.pipeline.change(Change::Slice(object("web"), Some(slice)));
    control.pipeline.change(Change::Service(object("web"), Some(service)));
    assert!(control.sync().sockets.failed.is_empty());
}

#[test]
fn a_thousand_datagrams_go_to_one_of_ten() {
    World::run(|world| {
        let mut control = Control::start(world);
        control.put("web", &IPS, 80, &both(1..=10));
        let pods = Pods::start(1..=10);
        for to in [V4, V6, MAPPED].map(at) {
            let client = client(to.is_ipv4());
            client.send_to(b"first", to).unwrap();
            let first = pods.take();
            for _ in 0..999 {
                client.send_to(b"more", to).unwrap();
                let letter = pods.take();
                assert_eq!((letter.pod, letter.from), (first.pod, first.from));
            }
        }
    });
}

#[test]
fn many_sockets_spread() {
    World::run(|world| {
        let mut control = Control::start(world);
        control.put("web", &IPS, 80, &both(1..=5));
        let pods = Pods::start(1..=5);
        for to in [V4, V6, MAPPED].map(at) {
            let mut counts = BTreeMap::new();
            for _ in 0..spread::CONNECTS {
                client(to.is_ipv4()).send_to(b"hello", to).unwrap();
                *counts.entry(pods.take().pod.ip()).or_insert(0) += 1;
            }
            let p = spread::probability(&counts);
            println!("{to}: {counts:?}, p = {p:.3}");
            assert!(p > spread::ALPHA, "not a fair spread (p = {p:e}): {counts:?}");
        }
    });
}

#[test]
fn endpoints_come_and_go_around_a_backend_that_stays() {
    World::run(|world| {
        let mut control = Control::start(world);
        control.put("web", &IPS, 80, &both(1..=10));
        let pods = Pods::start(1..=20);
        let clients: Vec<_> = [V4, V6, MAPPED]
            .map(at)
            .into_iter()
            .map(|to| {
                let client = client(to.is_ipv4());
                let (pod, label) = exchange(&client, to, &pods);
                assert_eq!(label, to);
                (client, to, pod)
            })
            .collect();
        let firsts: Vec<_> = clients.iter().map(|(.., pod)| pod.ip()).collect();
        for round in 0..30u8 {
            let others = both((1..=20).filter(|n| (n * 7 + round) % 3 != 0));
            let mut ips: Vec<_> = others.into_iter().chain(firsts.iter().copied()).collect();
            ips.sort_unstable();
            ips.dedup();
            control.put("web", &IPS, 80, &ips);
            for (client, to, pod) in &clients {
                assert_eq!(exchange(client, *to, &pods), (*pod, *to), "round {round}");
            }
        }
    });
}

/// A backend that is about to leave keeps the flows that it has, and gets no new ones.
#[test]
fn a_backend_that_terminates_but_serves_keeps_its_flows() {
    World::run(|world| {
        let mut control = Control::start(world);
        let pods = Pods::start(1..=4);
        for (to, backend) in
            [(V4, backend4 as fn(u8) -> IpAddr), (V6, backend6), (MAPPED, backend4)]
        {
            let to = at(to);
            put(&mut control, &[(backend(1), READY)], false);
            let old = client(to.is_ipv4());
            assert_eq!(exchange(&old, to, &pods).0.ip(), backend(1));
            let others = [2, 3, 4].map(|n| (backend(n), READY));
            put(&mut control, &[&others[..], &[(backend(1), LEAVING)]].concat(), false);
            for _ in 0..40 {
                let (pod, label) = exchange(&client(to.is_ipv4()), to, &pods);
                assert_ne!(pod.ip(), backend(1));
                assert_eq!(label, to);
            }
            for _ in 0..3 {
                let (pod, label) = exchange(&old, to, &pods);
                assert_eq!((pod.ip(), label), (backend(1), to));
            }
            // It is gone: the next one goes to one that is there, and the others to the same.
            put(&mut control, &[&others[..], &[(backend(1), GONE)]].concat(), false);
            let (next, _) = exchange(&old, to, &pods);
            assert_ne!(next.ip(), backend(1));
            // Also when the first one comes back, and whatever others do.
            put(&mut control, &[&others[..], &[(backend(1), READY)]].concat(), false);
            for _ in 0..3 {
                assert_eq!(exchange(&old, to, &pods), (next, to));
            }
        }
    });
}

#[test]
fn a_backend_that_is_gone_is_replaced_for_good() {
    World::run(|world| {
        let mut control = Control::start(world);
        let pods = Pods::start(1..=10);
        for to in [V4, V6, MAPPED].map(at) {
            control.put("web", &IPS, 80, &both(1..=10));
            let client = client(to.is_ipv4());
            let mut left: Vec<u8> = (1..=10).collect();
            let (mut pod, _) = exchange(&client, to, &pods);
            while left.len() > 1 {
                left.retain(|n| backend4(*n) != pod.ip() && backend6(*n) != pod.ip());
                control.put("web", &IPS, 80, &both(left.clone()));
                let (next, label) = exchange(&client, to, &pods);
                assert_eq!(label, to);
                assert!(both(left.clone()).contains(&next.ip()), "{next} is gone");
                for _ in 0..3 {
                    assert_eq!(exchange(&client, to, &pods), (next, to));
                }
                pod = next;
            }
            control.put("web", &IPS, 80, &[]);
            assert_eq!(errno(client.send_to(b"hello", to)), Errno::ECONNREFUSED);
            control.put("web", &IPS, 80, &both([3]));
            assert_eq!(exchange(&client, to, &pods).1, to);
        }
    });
}

/// A traffic policy takes the backends out of the set, but they serve: flows that are there stay, new
/// ones have nowhere to go.
#[test]
fn a_policy_ends_no_flow() {
    World::run(|world| {
        let mut control = Control::start(world);
        let pods = Pods::start(1..=3);
        let all: Vec<_> = both(1..=3).into_iter().map(|ip| (ip, READY)).collect();
        for to in [V4, V6, MAPPED].map(at) {
            put(&mut control, &all, false);
            let old = client(to.is_ipv4());
            let (pod, _) = exchange(&old, to, &pods);
            put(&mut control, &all, true);
            let new = client(to.is_ipv4());
            assert_eq!(errno(new.send_to(b"hello", to)), Errno::EHOSTUNREACH);
            pods.assert_idle();
            for _ in 0..3 {
                assert_eq!(exchange(&old, to, &pods), (pod, to));
            }
            put(&mut control, &all, false);
            assert_eq!(exchange(&old, to, &pods), (pod, to));
        }
    });
}

/// What a socket sends to one Service has no influence on where it goes at another.
#[test]
fn each_service_for_itself() {
    World::run(|world| {
        let mut control = Control::start_with(world, Sizes { backends: 4096, ..ROOMY });
        let pods = Pods::start(1..=10);
        let services: Vec<SocketAddr> = (1..=30u8).map(|n| ([10, 96, 1, n], 80).into()).collect();
        for to in &services {
            let name = to.ip().to_string();
            control.put(&name, &[&name], 80, &both(1..=10));
        }
        let client = client(true);
        let first: Vec<_> = services.iter().map(|to| exchange(&client, *to, &pods).0).collect();
        let mut distinct = first.clone();
        distinct.sort_unstable();
        distinct.dedup();
        // Three of ten, by chance: once in 10^13 times.
        assert!(distinct.len() > 3, "{distinct:?}");
        // One after the other loses the backend that most of them may have in common.
        for (n, lost) in services.iter().enumerate() {
            let name = lost.ip().to_string();
            let rest = both((1..=10).filter(|k| pod4(*k) != first[n]));
            control.put(&name, &[&name], 80, &rest);
            for (to, pod) in services.iter().zip(&first).skip(n + 1) {
                assert_eq!(exchange(&client, *to, &pods), (*pod, *to));
            }
            assert_ne!(exchange(&client, *lost, &pods).0, first[n]);
        }
    });
}
