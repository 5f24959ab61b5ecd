//! A cluster in a pod of the node (kind, k3s or vcluster in a pod): its sockets are of the node's kernel, in
//! cgroups below the node's, and its Services may have the addresses of the node's.

use std::{
    fs,
    net::{TcpListener, TcpStream, UdpSocket},
    path::Path,
    process::{self, Command},
};

use lb_agent::pins::Pins;
use nix::{errno::Errno, mount::MsFlags};

use super::{
    clients::Elsewhere,
    connect::{V4, web},
    control::Control,
    echo::{Backends, ask, ask_udp},
    pods::at,
    raw::{errno, udp, udp_socket},
    world::{World, backend4, mount_bpffs, take_away},
};

/// What the inner cluster has at that address is not reached.
#[test]
fn its_sockets_get_the_outer_cluster_s_backends() {
    World::run(|world| {
        let _web = web(world);
        let inside = Elsewhere::bare();
        inside.within(|| {
            let status =
                Command::new("ip").args(["address", "add", "10.96.0.10/32", "dev", "lo"]).status();
            assert!(status.unwrap().success());
            let _server = (TcpListener::bind(V4).unwrap(), UdpSocket::bind(V4).unwrap());
            // Of the outer backends none can be reached from there.
            assert_eq!(errno(TcpStream::connect(V4)), Errno::ENETUNREACH);
            assert_eq!(errno(udp(at(V4))), Errno::ENETUNREACH);
            assert_eq!(errno(udp_socket(true).send_to(b"?", V4)), Errno::ENETUNREACH);
            world.outside(|| TcpStream::connect(V4).unwrap());
        });
    });
}

fn enter(cgroup: &Path) {
    fs::write(cgroup.join("cgroup.procs"), process::id().to_string()).unwrap();
}

/// Programs at a cgroup further down run first, and what they have translated is no Service any more.
#[test]
fn with_an_agent_of_its_own_they_get_the_inner_ones() {
    World::run(|world| {
        let _web = web(world);
        let _inner_backends = Backends::start([backend4(3)]);
        let (bpffs, below) = (world.dir().join("inner"), world.cgroup().join("inner"));
        fs::create_dir(&bpffs).unwrap();
        fs::create_dir(&below).unwrap();
        mount_bpffs(&bpffs, MsFlags::empty());
        let mut inner = Control::start_at(&Pins::new(&bpffs), &below);
        inner.put("web", &["10.96.0.10"], 80, &[backend4(3)]);
        enter(&below);
        for _ in 0..10 {
            let stream = TcpStream::connect(V4).unwrap();
            assert_eq!(stream.peer_addr().unwrap(), at(V4));
            assert_eq!(ask(&stream).backend.ip(), backend4(3));
            assert_eq!(ask_udp(&udp(at(V4)).unwrap()).backend.ip(), backend4(3));
        }
        enter(world.cgroup());
        assert_ne!(ask(&TcpStream::connect(V4).unwrap()).backend.ip(), backend4(3));
        drop(inner);
        lb_agent::datapath::cleanup(&bpffs).unwrap();
        take_away(&below);
    });
}
