//! Where the real agent listens for load balancers' questions (kube-proxy K1).

use std::{fs, process::Command};

use super::{
    agent::{Agent, SIZES},
    connect::V4,
    flips::udp_backend,
    machine::get,
    world::{World, backend4, soon},
    yaml,
};

const SERVICE: &str = "apiVersion: v1
kind: Service
metadata: {name: balanced}
spec:
  type: LoadBalancer
  clusterIP: 10.96.0.77
  externalTrafficPolicy: Local
  healthCheckNodePort: 32077
  ports: [{port: 80, nodePort: 30077}]
";

/// A list that has all addresses is the wildcard, so that 127.0.0.1 is answered, and addresses that
/// need a link to listen on are tried by no list.
#[test]
fn lists_of_addresses() {
    World::run(|world| {
        yaml::put(world, "web", "10.96.0.10", &[backend4(1)]);
        fs::write(yaml::objects(world).join("balanced.yaml"), SERVICE).unwrap();
        let words = "addr add fe80::77/64 dev lo nodad";
        assert!(
            Command::new("ip").args(words.split(' ')).status().unwrap().success(),
            "ip {words}"
        );
        for (list, answered) in
            [("0.0.0.0/0,::/0", true), ("127.0.0.0/8,fe80::/10", true), ("192.0.2.0/24", false)]
        {
            let list = format!("--nodeport-addresses={list}");
            let agent = Agent::start_with(world, &[SIZES[0], SIZES[1], &list]);
            if answered {
                assert!(soon(|| get("32077/").starts_with("503")), "{list}: {}", agent.log());
            } else {
                assert_eq!(get("32077/"), "", "{list}");
            }
            // Another sync tries again what failed.
            yaml::put(world, "web", "10.96.0.10", &[backend4(2)]);
            let served = || udp_backend(V4).is_ok_and(|to| to.ip() == backend4(2));
            assert!(soon(served), "{list}: {}", agent.log());
            assert!(!agent.log().contains("no health check server"), "{list}: {}", agent.log());
            yaml::put(world, "web", "10.96.0.10", &[backend4(1)]);
            agent.terminate();
        }
    });
}
