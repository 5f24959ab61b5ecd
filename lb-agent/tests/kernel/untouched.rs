//! What is no Service, or no business of the programs, is left alone.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream, UdpSocket},
    os::fd::AsRawFd as _,
    os::unix::net::{UnixListener, UnixStream},
    process::Command,
};

use lb_core::model::{Change, Protocol};
use nix::{
    errno::Errno,
    sys::socket::{MsgFlags, SockaddrStorage, bind},
};

use super::{
    connect::{MAPPED, V4, V6, web},
    control::service,
    echo::{PATIENCE, ask, ask_udp},
    pods::{mapped, send_message},
    raw::{dial, disconnect, errno, exotic, peer, udp, udp_socket},
    world::{PORT, World, backend4, backend6, take_away},
};

#[test]
fn another_address_or_protocol() {
    World::run(|world| {
        let (mut control, _backends) = web(world);
        // One Service for TCP only, at an address of its own.
        let mut tcp_only = service(&["10.96.0.20", "fd00:96::14"], 80);
        tcp_only.ports.retain(|port| port.protocol == Protocol::Tcp);
        let name = super::control::object("tcp-only");
        let slice = super::control::slice("tcp-only", &[backend4(1), backend6(1)]);
        control.pipeline.change(Change::Service(name.clone(), Some(tcp_only)));
        control.pipeline.change(Change::Slice(name, Some(slice)));
        assert!(control.sync().sockets.failed.is_empty());

        for to in ["10.96.0.11:80", "[fd00:96::b]:80", "[::ffff:10.96.0.11]:80"] {
            let to: SocketAddr = to.parse().unwrap();
            assert_eq!(errno(TcpStream::connect(to)), Errno::ENETUNREACH, "TCP {to}");
            assert_eq!(errno(udp(to)), Errno::ENETUNREACH, "UDP {to}");
        }
        for to in ["10.96.0.20:80", "[fd00:96::14]:80", "[::ffff:10.96.0.20]:80"] {
            let to: SocketAddr = to.parse().unwrap();
            assert_eq!(TcpStream::connect(to).unwrap().peer_addr().unwrap(), to);
            let sent = udp_socket(to.is_ipv4()).send_to(b"x", to);
            assert_eq!(errno(sent), Errno::ECONNREFUSED, "UDP {to}: a port that it lacks");
        }
    });
}

#[test]
fn a_backend_dialled_directly() {
    World::run(|world| {
        let _web = web(world);
        for ip in [backend4(1), backend6(1)] {
            let to = SocketAddr::new(ip, PORT);
            let stream = TcpStream::connect(to).unwrap();
            assert_eq!((stream.peer_addr().unwrap(), ask(&stream).backend), (to, to));
            let socket = udp(to).unwrap();
            assert_eq!((socket.peer_addr().unwrap(), ask_udp(&socket).backend), (to, to));
        }
    });
}

#[test]
fn unix_sockets() {
    World::run(|world| {
        let _web = web(world);
        let path = world.dir().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        let mut client = UnixStream::connect(&path).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        client.write_all(b"hello").unwrap();
        let mut bytes = [0; 5];
        server.read_exact(&mut bytes).unwrap();
        assert_eq!((&bytes, client.peer_addr().unwrap().as_pathname()), (b"hello", Some(&*path)));
    });
}

/// Protocols that run the hook too, or might one day: the Service's address is none to them.
#[test]
fn protocols_that_services_do_not_have() {
    World::run(|world| {
        let _web = web(world);
        fs::write("/proc/sys/net/ipv4/ping_group_range", "0 0").unwrap();
        let protocols = [
            ("an ICMP echo socket", libc::SOCK_DGRAM, libc::IPPROTO_ICMP),
            ("UDP-Lite", libc::SOCK_DGRAM, libc::IPPROTO_UDPLITE),
            ("SCTP", libc::SOCK_STREAM, libc::IPPROTO_SCTP),
            ("a raw socket", libc::SOCK_RAW, libc::IPPROTO_UDP),
        ];
        let mut tried = 0;
        for (name, kind, protocol) in protocols {
            match exotic(true, kind, protocol) {
                Err(error) => println!("left out, this kernel has no {name}: {error}"),
                Ok(fd) => {
                    tried += 1;
                    let unreachable = dial(&fd, V4.parse().unwrap());
                    assert_eq!(unreachable, Err(Errno::ENETUNREACH), "{name}");
                    if kind != libc::SOCK_STREAM {
                        let backend = SocketAddr::new(backend4(1), PORT);
                        assert_eq!(dial(&fd, backend), Ok(()), "{name}");
                        assert_eq!(peer(&fd).map(|peer| peer.ip()), Ok(backend4(1)), "{name}");
                    }
                }
            }
        }
        assert!(tried >= 2, "an echo socket and a raw one can be made on any Linux");
    });
}

/// The same of datagrams: UDP-Lite runs the hooks of UDP for them, whatever their address.
#[test]
fn datagrams_of_protocols_that_services_do_not_have() {
    World::run(|world| {
        let _web = web(world);
        fs::write("/proc/sys/net/ipv4/ping_group_range", "0 0").unwrap();
        // An echo request, for those who look at what they are to send.
        let [request4, request6] = [[8, 0, 0, 0, 0, 0, 0, 1], [128, 0, 0, 0, 0, 0, 0, 1]];
        let protocols = [
            ("an ICMP echo socket", true, libc::SOCK_DGRAM, libc::IPPROTO_ICMP),
            ("an ICMPv6 echo socket", false, libc::SOCK_DGRAM, libc::IPPROTO_ICMPV6),
            ("UDP-Lite", true, libc::SOCK_DGRAM, libc::IPPROTO_UDPLITE),
            ("UDP-Lite over IPv6", false, libc::SOCK_DGRAM, libc::IPPROTO_UDPLITE),
            ("L2TP", true, libc::SOCK_DGRAM, 115),
            ("a raw socket", true, libc::SOCK_RAW, libc::IPPROTO_UDP),
            ("a raw IPv6 socket", false, libc::SOCK_RAW, 253),
        ];
        let forms = [V4, V6, MAPPED, "10.96.0.10:81", "[fd00:96::a]:81", "[::ffff:10.96.0.10]:81"];
        for (name, ipv4, kind, protocol) in protocols {
            let fd = match exotic(ipv4, kind, protocol) {
                Err(error) => {
                    println!("left out, this kernel has no {name}: {error}");
                    continue;
                }
                Ok(fd) => fd,
            };
            let request = if ipv4 { request4 } else { request6 };
            for to in forms.map(|form| form.parse::<SocketAddr>().unwrap()) {
                // Others than UDP's have no dual stack, and a port is none to raw sockets.
                let is_lite = protocol == libc::IPPROTO_UDPLITE;
                if to.is_ipv4() != ipv4 || (to.ip().to_canonical().is_ipv4() != ipv4 && !is_lite) {
                    continue;
                }
                let to = if kind == libc::SOCK_RAW { SocketAddr::new(to.ip(), 0) } else { to };
                let sent = send_message(&fd, &[&request], to, MsgFlags::empty());
                assert_eq!(sent, Err(Errno::ENETUNREACH), "{name} to {to}");
            }
        }
    });
}

/// The backend of a Service's UDP port is a UDP-Lite server too, and is nobody else to its clients.
#[test]
fn answers_of_protocols_that_services_do_not_have() {
    World::run(|world| {
        let _web = web(world);
        for (ip, forms) in
            [(backend4(1), &[V4][..]), (backend6(1), &[V6]), (backend4(1), &[MAPPED])]
        {
            let there = SocketAddr::new(ip, PORT);
            let ipv4 = forms == [V4];
            let as_dialled = if ipv4 { there } else { mapped(there) };
            let make = |ipv4| exotic(ipv4, libc::SOCK_DGRAM, libc::IPPROTO_UDPLITE);
            let (server, client) = match (make(there.is_ipv4()), make(ipv4)) {
                (Ok(server), Ok(client)) => (UdpSocket::from(server), UdpSocket::from(client)),
                (Err(error), _) | (_, Err(error)) => {
                    println!("left out, this kernel has no UDP-Lite: {error}");
                    return;
                }
            };
            bind(server.as_raw_fd(), &SockaddrStorage::from(there)).unwrap();
            for socket in [&server, &client] {
                socket.set_read_timeout(Some(PATIENCE)).unwrap();
            }
            // What went to the Service's address went nowhere, and is no question.
            let service: SocketAddr = forms[0].parse().unwrap();
            assert_eq!(errno(client.send_to(b"?", service)), Errno::ENETUNREACH);
            let mut bytes = [0; 8];
            for connected in [false, true] {
                if connected {
                    dial(&client, as_dialled).unwrap();
                    assert_eq!(peer(&client), Ok(as_dialled));
                    client.send(b"?").unwrap();
                } else {
                    client.send_to(b"?", as_dialled).unwrap();
                }
                let (_, from) = server.recv_from(&mut bytes).unwrap();
                server.send_to(b"!", from).unwrap();
                assert_eq!(client.recv_from(&mut bytes).unwrap(), (1, as_dialled));
            }
        }
    });
}

/// A socket belongs to the cgroup in which it was made, whoever connects it.
#[test]
fn sockets_of_other_cgroups() {
    World::run(|world| {
        let _web = web(world);
        let forms = [V4, V6, MAPPED].map(|form| form.parse::<SocketAddr>().unwrap());
        for to in forms {
            let socket = world.outside(|| {
                assert_eq!(errno(TcpStream::connect(to)), Errno::ENETUNREACH, "TCP {to}");
                assert_eq!(errno(udp(to)), Errno::ENETUNREACH, "UDP {to}");
                udp_socket(to.is_ipv4())
            });
            assert_eq!(dial(&socket, to), Err(Errno::ENETUNREACH), "made outside: {to}");
            let socket = udp_socket(to.is_ipv4());
            world.outside(|| {
                assert_eq!(dial(&socket, to), Ok(()), "made inside: {to}");
                assert_eq!(peer(&socket), Ok(to));
                disconnect(&socket);
            });
        }
    });
}

/// A child process, in a cgroup below the one that the programs are attached to.
#[test]
fn sockets_of_a_child_process_are_served() {
    World::run(|world| {
        let _web = web(world);
        let below = world.cgroup().join("below");
        fs::create_dir(&below).unwrap();
        let script = "echo $$ >$1/cgroup.procs && exec 3<>/dev/tcp/10.96.0.10/80 && \
                      echo who? >&3 && read -r answer <&3 && echo \"$answer\"";
        let output = Command::new("bash").args(["-c", script, "bash"]).arg(&below).output();
        let output = output.expect("bash is needed");
        let answer = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert!(answer.starts_with("10.1.0."), "{answer}");
        take_away(&below);
    });
}
