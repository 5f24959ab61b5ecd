//! The largest EndpointSlice there can be: 1,000 endpoints with 100 ports.

use std::{collections::BTreeSet, net::IpAddr, process::Command, time::Instant};

use lb_agent::datapath::Sizes;
use lb_core::model::{Endpoint, Protocol, Service, ServicePort};

use super::{
    affinity::LONG,
    control::{Control, ready, serve, service},
    flips::udp_backend,
    world::World,
};

const ENDPOINTS: u16 = 1000;
const PORTS: u16 = 100;
const SIZES: Sizes = Sizes { services: 1024, backends: 1 << 18, affinity: 64 };

fn endpoints() -> Vec<Endpoint> {
    let addr = |n: u16| IpAddr::from([10, 8, n.to_be_bytes()[0], n.to_be_bytes()[1]]);
    (0..ENDPOINTS).map(|n| ready(addr(n))).collect()
}

fn backend(port: u16) -> IpAddr {
    udp_backend(&format!("10.96.0.10:{port}")).unwrap().ip()
}

#[test]
fn a_thousand_endpoints_with_a_hundred_ports() {
    World::run(|world| {
        let route = ["route", "add", "local", "10.8.0.0/16", "dev", "lo"];
        assert!(Command::new("ip").args(route).status().unwrap().success());
        let mut control = Control::start_with(world, SIZES);
        let port = |n: u16| ServicePort::new(format!("port-{n}"), Protocol::Udp, n);
        let ports = (1..=PORTS).map(port).collect();
        let mut big = Service { ports, ..service(&["10.96.0.10"], 1) };
        let mut all = endpoints();

        let start = Instant::now();
        control.apply(serve("big", &big, all.clone()));
        println!("written in {:?}", start.elapsed());
        let seen: BTreeSet<IpAddr> = (0..5000u16).map(|n| backend(1 + n % PORTS)).collect();
        assert!(seen.len() > 950, "only {} endpoints were chosen", seen.len());

        // One of them leaves: nobody gets it any more, at any port.
        let gone = all.remove(500).addr;
        let start = Instant::now();
        control.apply(serve("big", &big, all.clone()));
        println!("one less in {:?}", start.elapsed());
        assert!((0..5000u16).all(|n| backend(1 + n % PORTS) != gone));

        // With affinity, and room for the bonds of some ports only.
        big.affinity = LONG;
        control.pipeline.reclaim().unwrap();
        control.apply(serve("big", &big, all.clone()));
        let first: Vec<IpAddr> = (1..=PORTS).map(backend).collect();
        let again: Vec<IpAddr> = (1..=PORTS).map(backend).collect();
        let kept = |a: &[IpAddr], b: &[IpAddr]| a.iter().zip(b).filter(|(a, b)| a == b).count();
        assert_eq!(first[..64], again[..64]);
        assert!(kept(&first[64..], &again[64..]) < 10, "those came too late");
        // A bond is found among a thousand, and missed if it is not there.
        control.pipeline.reclaim().unwrap();
        all.retain(|endpoint| endpoint.addr != first[0]);
        control.apply(serve("big", &big, all));
        let now: Vec<IpAddr> = (1..=PORTS).map(backend).collect();
        for (before, now) in first[..64].iter().zip(&now) {
            // Others may have been bound to the one that has left, too.
            assert!(if *before == first[0] { now != before } else { now == before });
        }
    });
}
