//! Connections to an endpoint that serves at the address that was dialled live on, whatever the
//! Service and its ports are called by now.

use std::net::{IpAddr, TcpStream, UdpSocket};

use super::{
    agent::{Agent, SIZES},
    connect::V4,
    control::pinned,
    echo::{Backends, ask_udp},
    look::error_of,
    raw::udp,
    world::{World, backend4, soon},
    yaml,
};

/// A look at all sockets, after all that was said before.
fn look(world: &World) {
    yaml::put(world, "other", "10.96.0.99", &[backend4(3)]);
    let to = "10.96.0.99:80".parse().unwrap();
    let mut other: Option<UdpSocket> = None;
    assert!(soon(|| {
        other = udp(to).ok();
        other.is_some()
    }));
    yaml::put(world, "other", "10.96.0.99", &[]);
    let other = other.unwrap();
    other.set_read_timeout(Some(std::time::Duration::from_secs(10))).unwrap();
    assert_eq!(error_of(other.recv(&mut [0])), Some(libc::ECONNABORTED), "nobody looked");
}

#[test]
fn ports_and_services_get_other_names() {
    World::run(|world| {
        let endpoint: [IpAddr; 1] = [backend4(1)];
        let _backends = Backends::start([backend4(1), backend4(2), backend4(3)]);
        yaml::put(world, "web", "10.96.0.10", &endpoint);
        let _agent = Agent::start_with(world, &[SIZES[0], SIZES[1], "--terminate-tcp=deleted"]);
        let datagrams = udp(V4.parse().unwrap()).unwrap();
        let stream = TcpStream::connect(V4).unwrap();
        for (service, ports) in [("web", ["a", "b"]), ("web", ["b", "a"]), ("shop", ["a", "b"])] {
            yaml::put_as(world, "web", service, ports, "10.96.0.10", &endpoint);
            let is_there = |name: &lb_core::model::PortRef| {
                *name.service.name == *service && *name.port == *ports[0]
            };
            assert!(soon(|| pinned(world).names.values().any(is_there)), "{service} {ports:?}");
            look(world);
            ask_udp(&datagrams);
            assert_eq!(stream.take_error().unwrap().map(|error| error.to_string()), None);
        }
        // To another endpoint: both end.
        yaml::put_as(world, "web", "shop", ["x", "y"], "10.96.0.10", &[backend4(2)]);
        let ended = || stream.take_error().unwrap().and_then(|error| error.raw_os_error());
        assert!(soon(|| ended() == Some(libc::ECONNABORTED)), "the endpoint is gone");
        assert_eq!(error_of(datagrams.recv(&mut [0])), Some(libc::ECONNABORTED));
    });
}
