//! connect() of a UDP socket sends nothing; programs use it to ask for the source address that a
//! destination would have. It never fails for lack of a port or of endpoints; what it left untouched
//! then finds its Service when there is something to find.

use std::{
    fs,
    net::{SocketAddr, UdpSocket},
    process::Command,
    thread,
    time::Duration,
};

use lb_core::model::{Change, Protocol};
use nix::{
    errno::Errno,
    mount::{MsFlags, mount},
};

use super::{
    agent::Agent,
    connect::{MAPPED, V4},
    control::{Control, object, ready, serve, service, slice},
    echo::{Backends, ask_udp},
    look::route_services,
    raw::{dial, errno, peer, udp, udp_socket},
    stale::aborted,
    world::{World, backend4, backend6, soon},
    yaml,
};

fn ip(arguments: &str) {
    let status = Command::new("ip").args(arguments.split(' ')).status().unwrap();
    assert!(status.success(), "ip {arguments}");
}

/// A way to all Services in IPv4, none in IPv6: as in a pod without IPv6.
fn route_ipv4() {
    ip("-4 route add 10.96.0.0/16 dev lo src 10.2.0.1");
}

/// A Service of TCP only, one without endpoints, and one whose endpoints are on other nodes.
fn three(control: &mut Control) {
    let ips = [backend4(1), backend6(1)];
    let mut tcp = service(&["10.96.0.10", "fd00:96::a"], 80);
    tcp.ports.retain(|port| port.protocol == Protocol::Tcp);
    control.apply(serve("tcp", &tcp, ips.map(ready).to_vec()));
    control.put("empty", &["10.96.0.11", "fd00:96::b"], 80, &[]);
    let mut local = service(&["10.96.0.12", "fd00:96::c"], 80);
    local.internal_local = true;
    control.apply([
        Change::Slice(object("local"), Some(slice("local", &ips))),
        Change::Service(object("local"), Some(local)),
    ]);
}

/// At 0 and the service's port ask glibc and others, at 9 Go, at 65535 musl.
#[test]
fn the_source_address_is_the_right_one() {
    World::run(|world| {
        let mut control = Control::start(world);
        route_ipv4();
        three(&mut control);
        for last in 10..=12 {
            for port in [0, 9, 80, 81, 65535] {
                let v4 = SocketAddr::from(([10, 96, 0, last], port));
                let mapped = format!("[::ffff:10.96.0.{last}]:{port}").parse().unwrap();
                for to in [v4, mapped] {
                    let socket = super::pods::client(to.is_ipv4());
                    dial(&socket, to).unwrap();
                    let name = socket.local_addr().unwrap().ip().to_canonical();
                    assert_eq!(name.to_string(), "10.2.0.1", "{to}");
                    if port != 0 {
                        assert_eq!(peer(&socket), Ok(to));
                    }
                }
                // Nothing changes for who sends, nor for who has no way.
                if port == 81 {
                    let sent = udp_socket(true).send_to(b"x", v4);
                    assert_eq!(errno(sent), Errno::ECONNREFUSED, "{v4}");
                }
                let v6 = format!("[fd00:96::{last:x}]:{port}").parse().unwrap();
                assert_eq!(errno(udp(v6)), Errno::ENETUNREACH, "{v6}");
            }
        }
    });
}

/// What was connected to a Service before is no longer, and shows it.
#[test]
fn no_translation_is_left_behind() {
    World::run(|world| {
        let mut control = Control::start(world);
        route_ipv4();
        three(&mut control);
        let _backends = Backends::start([backend4(1)]);
        control.put("web", &["10.96.0.13"], 80, &[backend4(1)]);
        let socket = udp_socket(true);
        for _ in 0..2 {
            dial(&socket, "10.96.0.13:80".parse().unwrap()).unwrap();
            assert_eq!(ask_udp(&socket).backend.ip(), backend4(1));
            let empty = "10.96.0.11:80".parse().unwrap();
            dial(&socket, empty).unwrap();
            assert_eq!(peer(&socket), Ok(empty));
        }
    });
}

/// RFC 6724, rule 1: destinations that cannot be reached come last. By the other rules IPv6 goes first.
#[test]
fn getaddrinfo_puts_first_what_can_be_reached() {
    World::run(|world| {
        let mut control = Control::start(world);
        route_ipv4();
        three(&mut control);
        let hosts = world.dir().join("hosts");
        let names =
            ["tcp", "empty", "local"].into_iter().zip(["a", "b", "c"].into_iter().zip(10..));
        let lines =
            names.map(|(name, (v6, v4))| format!("fd00:96::{v6} {name}\n10.96.0.{v4} {name}\n"));
        fs::write(&hosts, lines.collect::<String>()).unwrap();
        // Only this world sees it.
        mount(Some(&hosts), "/etc/hosts", None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
        let script = "import socket, sys\n\
                      for name in 'tcp', 'empty', 'local':\n\
                      \x20 for port in None, 80, 81:\n\
                      \x20   found = socket.getaddrinfo(name, port, 0, socket.SOCK_STREAM)\n\
                      \x20   print(name, port, *(to[0] for *_, to in found))\n";
        let output = Command::new("python3").args(["-c", script]).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let said = String::from_utf8(output.stdout).unwrap();
        let mut lines = said.lines();
        for (name, v4, v6) in [("tcp", 10, "a"), ("empty", 11, "b"), ("local", 12, "c")] {
            for port in ["None", "80", "81"] {
                let expected = format!("{name} {port} 10.96.0.{v4} fd00:96::{v6}");
                assert_eq!(lines.next(), Some(&*expected), "{said}");
            }
        }
    });
}

const WAITS: [&str; 3] = [V4, MAPPED, "10.96.0.10:81"];

/// It is not told before there are endpoints, then it is, and each time anew; and so is one that was
/// connected to a port that there was not.
#[test]
fn it_finds_its_service_when_that_has_endpoints() {
    World::run(|world| {
        route_services();
        yaml::put(world, "web", "10.96.0.10", &[]);
        let _backends = Backends::start([backend4(1)]);
        let _agent = Agent::start(world);
        let sockets = WAITS.map(|to| udp(to.parse().unwrap()).unwrap());
        let waits = |sockets: &[UdpSocket], why| {
            // Each change of a Service is two looks.
            for _ in 0..2 {
                yaml::put(world, "other", "10.96.0.11", &[backend4(1)]);
                thread::sleep(Duration::from_millis(700));
                yaml::put(world, "other", "10.96.0.11", &[]);
                thread::sleep(Duration::from_millis(700));
            }
            for (socket, to) in sockets.iter().zip(WAITS) {
                assert_eq!(aborted(socket), Err(None), "{to} {why}");
                assert_eq!(peer(socket), Ok(to.parse().unwrap()), "{why}");
            }
        };
        waits(&sockets, "without endpoints");
        for _ in 0..2 {
            yaml::put(world, "web", "10.96.0.10", &[backend4(1)]);
            for (socket, to) in sockets.iter().zip(&WAITS[..2]) {
                assert!(soon(|| aborted(socket).is_ok()), "{to} is not told");
                dial(socket, to.parse().unwrap()).unwrap();
                assert_eq!(ask_udp(socket).backend.ip(), backend4(1), "{to}");
            }
            // Its backend goes.
            yaml::put(world, "web", "10.96.0.10", &[]);
            for (socket, to) in sockets.iter().zip(&WAITS[..2]) {
                assert!(soon(|| aborted(socket).is_ok()), "{to} is not told of the end");
                dial(socket, to.parse().unwrap()).unwrap();
            }
        }
        waits(&sockets, "without endpoints again");

        yaml::put(world, "web", "10.96.0.10", &[backend4(1)]);
        let file = yaml::objects(world).join("web.yaml");
        let text = fs::read_to_string(&file).unwrap().replace("port: 80}", "port: 81}");
        let fresh = world.dir().join("fresh");
        fs::write(&fresh, text).unwrap();
        fs::rename(fresh, file).unwrap();
        let [.., unknown] = &sockets;
        assert!(soon(|| aborted(unknown).is_ok()), "the port is there, and it is not told");
        dial(unknown, WAITS[2].parse().unwrap()).unwrap();
        assert_eq!(ask_udp(unknown).backend.ip(), backend4(1));
    });
}
