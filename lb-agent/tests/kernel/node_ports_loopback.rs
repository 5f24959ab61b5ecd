//! Node ports at loopback addresses: at all that Linux takes for one, and from which sockets.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::{IpAddr, SocketAddr, TcpStream, UdpSocket},
    os::fd::AsRawFd as _,
    process::Command,
};

use lb_agent::maps::{Access, Pinned};
use lb_common::abi::Counter;
use lb_core::model::{Service, Settings};
use nix::{
    errno::Errno,
    libc,
    sys::socket::{ControlMessage, MsgFlags, SockaddrStorage, bind, sendmsg},
};

use super::{
    affinity::LONG,
    clients::{Elsewhere, MANY, TCP, reached},
    control::{Control, SIZES, counted, local, ready, serve},
    echo::{Backends, PATIENCE},
    flips::udp_backend,
    node_ports::{LOOPBACK_FORMS, OWN, expected, four, objects, view, web},
    pods::client,
    raw::{dial, errno, nonblocking_tcp, peer, tcp_from, udp_socket},
    world::World,
};

/// What is dialled, and what Linux makes of it for a socket that is bound to nothing.
const FORMS: [(&str, &str); 9] = [
    ("127.0.0.1:30080", "127.0.0.1:30080"),
    ("127.0.0.2:30080", "127.0.0.2:30080"),
    ("127.255.3.4:30080", "127.255.3.4:30080"),
    ("0.0.0.0:30080", "127.0.0.1:30080"),
    ("[::1]:30080", "[::1]:30080"),
    ("[::]:30080", "[::1]:30080"),
    ("[::ffff:127.0.0.1]:30080", "[::ffff:127.0.0.1]:30080"),
    ("[::ffff:127.9.9.9]:30080", "[::ffff:127.9.9.9]:30080"),
    ("[::ffff:0.0.0.0]:30080", "[::ffff:127.0.0.1]:30080"),
];

fn at(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn start(world: &World, nodeport_addresses: &str) -> Control {
    let nodeport_addresses = nodeport_addresses.parse().unwrap();
    let settings =
        Settings { localhost_nodeports: true, nodeport_addresses, ..Settings::default() };
    let all = objects().into_iter().chain([local(&OWN)]);
    Control::start_as(world, SIZES, view(settings), all)
}

/// The backend that answers a datagram of a socket that is not connected, and the address it has then.
fn answer(socket: &UdpSocket, to: SocketAddr) -> io::Result<(IpAddr, SocketAddr)> {
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.send_to(b"who?", to)?;
    let mut bytes = [0; 256];
    let (length, from) = socket.recv_from(&mut bytes)?;
    let text = std::str::from_utf8(&bytes[..length]).unwrap();
    Ok((at(text.split_once(' ').unwrap().0).ip(), from))
}

#[test]
fn at_all_of_them() {
    World::run(|world| {
        let _backends = Backends::start(four());
        let _control = start(world, "");
        for (to, meant) in FORMS {
            for way in [TCP[0], udp_backend] {
                assert_eq!(reached(way, to), expected(meant), "{to}");
            }
            let socket = |_| answer(&udp_socket(at(to).is_ipv4()), at(to)).unwrap();
            let (by, as_whom): (BTreeSet<_>, BTreeSet<_>) = (0..MANY).map(socket).unzip();
            assert_eq!((by, as_whom), (expected(meant), [at(meant)].into()), "sendto {to}");
            // What the kernel would say without us.
            assert_eq!(peer(&TcpStream::connect(to).unwrap()), Ok(at(meant)), "{to}");
            let udp = client(at(to).is_ipv4());
            dial(&udp, at(to)).unwrap();
            assert_eq!(peer(&udp), Ok(at(meant)), "UDP {to}");
        }
        // Ports that are no node ports, and other addresses, are left alone.
        for to in ["127.0.0.2:30081", "0.0.0.0:30081", "[::]:30081"] {
            assert_eq!(errno(TcpStream::connect(to)), Errno::ECONNREFUSED, "{to}");
            assert!(udp_backend(to).unwrap().ip().to_canonical().is_loopback(), "{to}");
        }
        // A pod's loopback addresses are its own.
        Elsewhere::new().within(|| {
            for (to, meant) in FORMS {
                assert_eq!(errno(TcpStream::connect(to)), Errno::ECONNREFUSED, "{to}");
                let name = udp_backend(to).unwrap().ip().to_canonical();
                assert!(name.is_loopback(), "{to}: {name}");
                let listener = std::net::TcpListener::bind(meant).unwrap();
                let stream = TcpStream::connect(to).unwrap();
                assert_eq!(listener.accept().unwrap().1, stream.local_addr().unwrap());
            }
        });
    });
}

/// I4: a list of ranges has to contain them.
#[test]
fn only_those_that_were_chosen() {
    World::run(|world| {
        let _backends = Backends::start(four());
        let all = [true, true, true, true];
        // 127.0.0.1, 0.0.0.0, 127.0.0.2, ::1
        for (list, served) in [
            ("", all),
            ("primary", all),
            ("0.0.0.0/0,::/0", all),
            ("127.0.0.0/8", all),
            ("64.0.0.0/2", all),
            ("2001:db8::/32,::1/128", all),
            ("127.0.0.1/32,2001:db8::/32", [true, true, false, false]),
            ("127.0.0.0/28,::1/128", [true, true, false, true]),
            ("192.0.2.0/24", [false, false, false, true]),
        ] {
            let _control = start(world, list);
            let forms = ["127.0.0.1:30080", "0.0.0.0:30080", "127.0.0.2:30080", "[::1]:30080"];
            for (to, served) in forms.into_iter().zip(served) {
                let backend = udp_backend(to).unwrap().ip();
                assert_eq!(!backend.is_loopback(), served, "{list:?}: {to} led to {backend}");
            }
        }
    });
}

/// Each way to reach `to` from a socket that is bound to `from`.
fn each(from: &str, to: SocketAddr) -> [Result<(), Errno>; 3] {
    let from: SocketAddr = at(from);
    let tcp = match tcp_from(from.ip(), to) {
        Ok(_) => Ok(()),
        Err(error) => Err(Errno::from_raw(error.raw_os_error().unwrap())),
    };
    let udp = || UdpSocket::bind(from).unwrap();
    let sent = udp().send_to(b"x", to).map(drop);
    [tcp, dial(&udp(), to), sent.map_err(|error| Errno::from_raw(error.raw_os_error().unwrap()))]
}

const REFUSED: [Result<(), Errno>; 3] = [Err(Errno::ECONNREFUSED); 3];

/// Where sockets are bound, and what they dial.
const PAIRS: [(&str, &str); 8] = [
    ("127.0.0.1:0", "127.0.0.1:30080"),
    ("127.0.0.7:0", "127.0.0.2:30080"),
    ("127.0.0.7:0", "0.0.0.0:30080"),
    ("[::1]:0", "[::1]:30080"),
    ("[::1]:0", "[::]:30080"),
    ("[::ffff:127.0.0.1]:0", "[::ffff:127.0.0.1]:30080"),
    ("[::ffff:127.0.0.1]:0", "[::ffff:0.0.0.0]:30080"),
    ("[::ffff:127.0.0.1]:0", "[::]:30080"),
];

/// Where the socket is bound, no hook can bind it anew, and nothing leaves this node from there.
#[test]
fn from_a_loopback_address_to_this_node_only() {
    World::run(|world| {
        let _backends = Backends::start(four());
        let mut control = start(world, "");
        let before = counted(world, Counter::LoopbackBound);
        for (from, to) in PAIRS {
            assert_eq!(each(from, at(to)), REFUSED, "{from} {to}");
        }
        assert_eq!(counted(world, Counter::LoopbackBound) - before, 3 * 8);
        // Cluster IPs are no loopback addresses; the backends are here, so Linux lets it pass.
        assert_eq!(each("127.0.0.1:0", at("10.96.0.10:80")), [Ok(()); 3]);

        // A socket that is bound elsewhere, in each family.
        for (from, to) in [
            ("10.2.0.1:0", "127.0.0.1:30080"),
            ("10.2.0.1:0", "127.0.0.2:30080"),
            ("[fd00:2::1]:0", "[::1]:30080"),
            ("[fd00:2::1]:0", "[::]:30080"),
            ("[::ffff:10.2.0.1]:0", "[::ffff:127.0.0.1]:30080"),
            ("[::ffff:10.2.0.1]:0", "[::]:30080"),
        ] {
            assert_eq!(each(from, at(to)), [Ok(()); 3], "{from} {to}");
            let socket = UdpSocket::bind(from).unwrap();
            let (backend, _) = answer(&socket, at(to)).unwrap();
            assert!(four().contains(&backend.to_canonical()), "{from} {to}");
        }
        // Bound by a connection that it had; sent from there by a control message.
        let socket = client(true);
        dial(&socket, at("127.0.0.1:7")).unwrap();
        assert_eq!(dial(&socket, at("127.0.0.1:30080")), Err(Errno::ECONNREFUSED));
        assert_eq!(errno(socket.send_to(b"x", "127.0.0.1:30080")), Errno::ECONNREFUSED);
        let from = libc::in_pktinfo {
            ipi_ifindex: 0,
            ipi_spec_dst: libc::in_addr { s_addr: u32::from_ne_bytes([127, 0, 0, 1]) },
            ipi_addr: libc::in_addr { s_addr: 0 },
        };
        let said = [ControlMessage::Ipv4PacketInfo(&from)];
        let to = SockaddrStorage::from(at("127.0.0.1:30080"));
        let fd = client(true);
        let parts = [io::IoSlice::new(b"x")];
        let sent = sendmsg(fd.as_raw_fd(), &parts, &said, MsgFlags::empty(), Some(&to));
        assert_eq!(sent, Err(Errno::ECONNREFUSED));

        // The backends are at this node's own addresses, as those of the host's network are.
        let own = four().map(|ip| ip.to_string());
        control.apply([local(&own.each_ref().map(String::as_str))]);
        for (from, to) in PAIRS {
            assert_eq!(each(from, at(to)), [Ok(()); 3], "{from} {to}");
        }
    });
}

/// A bond lasts from the last new connection, and a refusal is none.
#[test]
fn who_is_refused_makes_no_bond_and_renews_none() {
    World::run(|world| {
        let _backends = Backends::start(four());
        let mut control = start(world, "");
        let sticky = Service { affinity: LONG, ..web() };
        control.apply(serve("web", &sticky, four().map(ready).to_vec()));
        let bonds = || {
            let maps = Pinned::open(&world.pins().maps().unwrap().unwrap(), Access::Read).unwrap();
            maps.bonds().collect::<Result<BTreeMap<_, _>, _>>().unwrap()
        };
        for (from, to) in PAIRS {
            assert_eq!(each(from, at(to)), REFUSED, "{from} {to}");
        }
        assert_eq!(bonds(), BTreeMap::new());
        for (from, to) in [("10.2.0.1:0", "127.0.0.1:30080"), ("[fd00:2::1]:0", "[::1]:30080")] {
            assert_eq!(each(from, at(to)), [Ok(()); 3], "{from} {to}");
        }
        let made = bonds();
        assert_eq!(made.len(), 4, "TCP and UDP, IPv4 and IPv6");
        for (from, to) in PAIRS {
            assert_eq!(each(from, at(to)), REFUSED, "{from} {to}");
        }
        assert_eq!(bonds(), made);
        // Where the backends are this node's own, the same sockets are clients as others are.
        let own = four().map(|ip| ip.to_string());
        control.apply([local(&own.each_ref().map(String::as_str))]);
        for (from, to) in PAIRS {
            assert_eq!(each(from, at(to)), [Ok(()); 3], "{from} {to}");
        }
        let renewed = bonds();
        assert!(made.iter().all(|(key, bond)| {
            renewed[key].backend == bond.backend && renewed[key].used > bond.used
        }));
    });
}

/// In IPv4 the unspecified address is the socket's own, if it has one.
#[test]
fn at_the_address_that_the_socket_has() {
    World::run(|world| {
        let _backends = Backends::start(four());
        let view = view(Settings::default());
        let all = objects().into_iter().chain([local(&["10.2.0.1", "fd00:2::1"])]);
        let _control = Control::start_as(world, SIZES, view, all);
        for from in ["10.2.0.1:0", "[::ffff:10.2.0.1]:0"] {
            let to =
                at(if at(from).is_ipv4() { "0.0.0.0:30080" } else { "[::ffff:0.0.0.0]:30080" });
            assert_eq!(each(from, to), [Ok(()); 3], "{from}");
            let (backend, _) = answer(&UdpSocket::bind(from).unwrap(), to).unwrap();
            assert!(four().contains(&backend.to_canonical()), "{backend}");
        }
        // Without --localhost-nodeports, that is all.
        for to in LOOPBACK_FORMS.into_iter().chain(["0.0.0.0:30080", "[::]:30080"]) {
            assert_eq!(errno(TcpStream::connect(to)), Errno::ECONNREFUSED, "{to}");
        }
        let v6 = at("[::]:30080");
        assert_eq!(errno(tcp_from("fd00:2::1".parse().unwrap(), v6)), Errno::ECONNREFUSED);
    });
}

/// A backend off this node: Linux says EINVAL in IPv4, and in IPv6 lets a TCP connection wait for ever.
#[test]
fn at_once_where_the_backend_is_elsewhere() {
    World::run(|world| {
        for command in [
            "link add here type veth peer name there",
            "link set here up",
            "link set there up",
            "address add 10.3.0.1/24 dev here",
            "address add fd00:3::1/64 dev here nodad",
        ] {
            let status = Command::new("ip").args(command.split(' ')).status().unwrap();
            assert!(status.success(), "{command}");
        }
        let mut control = start(world, "");
        let far: [IpAddr; 2] = ["10.3.0.9".parse().unwrap(), "fd00:3::9".parse().unwrap()];
        control.apply(serve("web", &web(), far.map(ready).to_vec()));
        for (from, to) in [("127.0.0.1:0", "127.0.0.1:30080"), ("[::1]:0", "[::1]:30080")] {
            let fd = nonblocking_tcp(at(from).is_ipv4());
            bind(fd.as_raw_fd(), &SockaddrStorage::from(at(from))).unwrap();
            assert_eq!(dial(&fd, at(to)), Err(Errno::ECONNREFUSED), "{from} {to}");
            let [.., connected, sent] = each(from, at(to));
            assert_eq!([connected, sent], [Err(Errno::ECONNREFUSED); 2], "{from} {to}");
            // A socket that is bound to nothing is on its way.
            let fd = nonblocking_tcp(at(from).is_ipv4());
            assert_eq!(dial(&fd, at(to)), Err(Errno::EINPROGRESS), "{to}");
        }
    });
}
