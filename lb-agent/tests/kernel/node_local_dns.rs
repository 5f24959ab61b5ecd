//! A cache of DNS on the node, at an address of its own and at kube-dns' cluster IP, both of which are
//! addresses of the node then (NodeLocal DNSCache).

use std::{net::UdpSocket, process::Command};

use super::{
    control::Control,
    pods::{Pods, at, client, exchange, pod4, read},
    raw::dial,
    world::{World, backend4},
};

const CLUSTER_IP: &str = "10.96.0.10:53";
const OWN: &str = "169.254.20.10:53";

/// The Service kube-dns with one pod, and the cache.
fn start(world: &World) -> (Control, Pods, Pods) {
    let mut control = Control::start(world);
    control.put("kube-dns", &["10.96.0.10"], 53, &[backend4(1)]);
    for ip in ["10.96.0.10/32", "169.254.20.10/32"] {
        let status = Command::new("ip").args(["address", "add", ip, "dev", "lo"]).status();
        assert!(status.unwrap().success());
    }
    (control, Pods::start([1]), Pods::at([CLUSTER_IP, OWN].map(at)))
}

/// Sends without an address, and has the answer: who got it, and the label.
fn ask(client: &UdpSocket, servers: &Pods) -> (std::net::SocketAddr, std::net::SocketAddr) {
    client.send(b"?").unwrap();
    let letter = servers.take();
    servers.answer(&letter);
    (letter.pod, read(client).1)
}

/// What is sent to the cluster IP goes to the Service's pods, though the address is the node's too.
#[test]
fn at_the_cluster_ip_it_is_passed_by() {
    World::run(|world| {
        let (_control, pods, cache) = start(world);
        assert_eq!(exchange(&client(true), at(CLUSTER_IP), &pods), (pod4(1), at(CLUSTER_IP)));
        let connected = client(true);
        dial(&connected, at(CLUSTER_IP)).unwrap();
        assert_eq!(ask(&connected, &pods), (pod4(1), at(CLUSTER_IP)));
        cache.assert_idle();
    });
}

#[test]
fn at_its_own_address_it_is_asked() {
    World::run(|world| {
        let (_control, pods, cache) = start(world);
        assert_eq!(exchange(&client(true), at(OWN), &cache), (at(OWN), at(OWN)));
        let connected = client(true);
        dial(&connected, at(OWN)).unwrap();
        assert_eq!(ask(&connected, &cache), (at(OWN), at(OWN)));
        pods.assert_idle();
    });
}
