//! Sockets and messages that say which interface they are for. Routing is asked about the backend, not
//! about the Service's address; and what is no Service keeps its link.
#![expect(unsafe_code, reason = "nix has neither IP_UNICAST_IF nor packet sockets with a protocol")]

use std::{
    ffi::OsString,
    io::IoSlice,
    net::{IpAddr, SocketAddr, SocketAddrV6, TcpListener, TcpStream, UdpSocket},
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    process::Command,
    time::Duration,
};

use nix::{
    net::if_::if_nametoindex,
    sys::socket::{
        ControlMessage, LinkAddr, MsgFlags, SockaddrLike as _, SockaddrStorage, bind, getpeername,
        sendmsg, setsockopt, sockopt,
    },
};

use super::{
    clients::cookie,
    connect::{V4, V6},
    control::Control,
    node_ports::four,
    pods::{Pods, at, client, exchange, pod4},
    raw::{dial, disconnect, udp},
    sources,
    world::{PORT, World, backend4, backend6, hears_itself_at, soon},
};

/// Two ends of a link, of which one shows what leaves by the other.
const LINK: [&str; 2] = ["v0", "v1"];

fn ip(arguments: &str) {
    let status = Command::new("ip").args(arguments.split(' ')).status().unwrap();
    assert!(status.success(), "ip {arguments}");
}

/// A link by which nothing is sent before anybody answers, and the number of its first end.
fn link() -> u32 {
    let [near, far] = LINK;
    ip(&format!("link add {near} type veth peer name {far}"));
    for end in LINK {
        ip(&format!("link set {end} arp off up"));
    }
    ip(&format!("address add 192.0.2.9/32 dev {near}"));
    if_nametoindex(near).unwrap()
}

/// Sees the IPv4 packets that leave by the link, without their Ethernet header.
struct Tap(OwnedFd);

impl Tap {
    fn new() -> Self {
        let protocol = u16::try_from(libc::ETH_P_IP).unwrap().to_be();
        let kind = libc::SOCK_DGRAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
        // SAFETY: a system call without pointers; the descriptor it returns is nobody else's.
        let fd = unsafe {
            let fd = libc::socket(libc::AF_PACKET, kind, i32::from(protocol));
            assert!(fd >= 0, "{}", std::io::Error::last_os_error());
            OwnedFd::from_raw_fd(fd)
        };
        let to = libc::sockaddr_ll {
            sll_family: u16::try_from(libc::AF_PACKET).unwrap(),
            sll_protocol: protocol,
            sll_ifindex: i32::try_from(if_nametoindex(LINK[1]).unwrap()).unwrap(),
            sll_hatype: 0,
            sll_pkttype: 0,
            sll_halen: 0,
            sll_addr: [0; 8],
        };
        let length = libc::socklen_t::try_from(size_of_val(&to)).unwrap();
        // SAFETY: the pointer is to an address of this length.
        let to = unsafe { LinkAddr::from_raw((&raw const to).cast(), Some(length)) }.unwrap();
        bind(fd.as_raw_fd(), &to).unwrap();
        Self(fd)
    }

    /// Source, and destination with its port, of the next one.
    fn next(&self) -> (IpAddr, SocketAddr) {
        let mut bytes = [0u8; 2048];
        let mut length = 0;
        let come = || {
            length = nix::unistd::read(&self.0, &mut bytes).unwrap_or(0);
            length > 0
        };
        assert!(soon(come), "no packet left");
        let four = |at: usize| IpAddr::from(<[u8; 4]>::try_from(&bytes[at..at + 4]).unwrap());
        let udp = usize::from(bytes[0] & 15) * 4;
        let port = u16::from_be_bytes([bytes[udp + 2], bytes[udp + 3]]);
        assert!(length >= udp + 8);
        (four(12), (four(16), port).into())
    }
}

/// A UDP socket that is to use an interface sends by it, to the backend.
#[test]
fn packets_leave_by_it_and_are_for_the_backend() {
    World::run(|world| {
        let mut control = Control::start(world);
        let index = link();
        let tap = Tap::new();
        // Not an address of this machine.
        let away: IpAddr = "10.9.0.1".parse().unwrap();
        control.put("web", &["10.96.0.10"], 80, &[away]);
        let to = SocketAddr::new(away, PORT);
        let from = "192.0.2.9".parse().unwrap();

        let bound = client(true);
        setsockopt(&bound, sockopt::BindToDevice, &OsString::from(LINK[0])).unwrap();
        bound.send_to(b"?", V4).unwrap();
        assert_eq!(tap.next(), (from, to), "SO_BINDTODEVICE, sendto");
        dial(&bound, at(V4)).unwrap();
        bound.send(b"?").unwrap();
        assert_eq!(tap.next(), (from, to), "SO_BINDTODEVICE, connect");

        let unicast = client(true);
        let value = index.to_be();
        let length = libc::socklen_t::try_from(size_of_val(&value)).unwrap();
        // SAFETY: the kernel reads a number.
        let result = unsafe {
            libc::setsockopt(
                unicast.as_raw_fd(),
                libc::IPPROTO_IP,
                50, // IP_UNICAST_IF
                (&raw const value).cast(),
                length,
            )
        };
        assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
        unicast.send_to(b"?", V4).unwrap();
        assert_eq!(tap.next(), (from, to), "IP_UNICAST_IF");

        let info = libc::in_pktinfo {
            ipi_ifindex: index.try_into().unwrap(),
            ipi_spec_dst: libc::in_addr { s_addr: 0 },
            ipi_addr: libc::in_addr { s_addr: 0 },
        };
        let plain = client(true);
        let (part, name) = ([IoSlice::new(b"?")], SockaddrStorage::from(at(V4)));
        let control = [ControlMessage::Ipv4PacketInfo(&info)];
        sendmsg(plain.as_raw_fd(), &part, &control, MsgFlags::empty(), Some(&name)).unwrap();
        assert_eq!(tap.next(), (from, to), "IP_PKTINFO");
    });
}

/// Source and way are those of the route to the backend, whatever the route to the Service's address.
#[test]
fn the_route_to_the_backend_counts() {
    World::run(|world| {
        let mut control = Control::start(world);
        link();
        let tap = Tap::new();
        control.put("web", &["10.96.0.10"], 80, &["10.9.0.1".parse().unwrap()]);
        ip("route add 10.96.0.0/16 dev lo src 10.1.0.9");
        ip("route add 10.9.0.0/16 dev v0 src 10.2.0.1");
        let from: IpAddr = "10.2.0.1".parse().unwrap();
        let socket = udp(at(V4)).unwrap();
        assert_eq!(socket.local_addr().unwrap().ip(), from);
        client(true).send_to(b"?", V4).unwrap();
        assert_eq!(tap.next(), (from, at("10.9.0.1:8080")));
    });
}

/// The address by which a client of source ranges was judged stays the socket's own when the connection
/// ends: the kernel knows no way back.
#[test]
fn a_source_that_was_judged_stays() {
    World::run(|world| {
        let mut control = Control::start(world);
        control.apply(sources::web(&["10.2.0.0/16", "fd00:2::/32"], &four()));
        sources::know(&mut control, &[&sources::client(cookie(), &["10.2.0.1"])]);
        let socket = client(true);
        let own = || socket.local_addr().unwrap().ip();
        dial(&socket, at(sources::VIPS[0])).unwrap();
        assert_eq!(own(), "10.2.0.1".parse::<IpAddr>().unwrap());
        disconnect(&socket);
        dial(&socket, pod4(2)).unwrap();
        assert_eq!(own(), "10.2.0.1".parse::<IpAddr>().unwrap());
        assert_eq!(udp(pod4(2)).unwrap().local_addr().unwrap().ip(), backend4(2), "another one");
    });
}

/// A pod that reaches itself through its Service talks from its own address to its own address.
#[test]
fn a_pod_that_reaches_itself() {
    World::run(|world| {
        let mut control = Control::start(world);
        control.put("web", &["10.96.0.10"], 80, &[backend4(1)]);
        let backends = super::echo::Backends::start([backend4(1)]);
        let answer = super::echo::ask(&TcpStream::connect(V4).unwrap());
        assert_eq!((answer.client.ip(), answer.backend.ip()), (backend4(1), backend4(1)));
        drop(backends);
        let pods = Pods::start([1]);
        let client = client(true);
        client.send_to(b"?", V4).unwrap();
        assert_eq!(pods.take().from.ip(), backend4(1));
    });
}

/// A link-local address says nothing without its link, which comes with it from every call.
#[test]
fn link_local_peers_keep_their_link() {
    World::run(|world| {
        let mut control = Control::start(world);
        control.put("web", &["10.96.0.10", "fd00:96::a"], 80, &[backend4(1), backend6(1)]);
        let index = link();
        ip("address add fe80::9/64 dev v0 nodad");
        let on_link = |port| SocketAddrV6::new("fe80::9".parse().unwrap(), port, 0, index);
        assert!(soon(|| hears_itself_at(on_link(0).into()).is_ok()));

        let pods = Pods::start([1]);
        let server = UdpSocket::bind(on_link(0)).unwrap();
        server.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let client = client(false);
        // Also a socket that talks to a Service too.
        assert_eq!(exchange(&client, at(V6), &pods).1, at(V6));
        let to = server.local_addr().unwrap();
        for connected in [false, true] {
            if connected {
                client.connect(to).unwrap();
                assert_eq!(client.peer_addr().unwrap(), to);
            }
            client.send_to(b"?", to).unwrap();
            let mut bytes = [0; 8];
            let (_, from) = server.recv_from(&mut bytes).unwrap();
            let SocketAddr::V6(v6) = from else { panic!("{from}") };
            assert_eq!((*v6.ip(), v6.scope_id()), (*on_link(0).ip(), index));
            server.send_to(b"!", from).unwrap();
            assert_eq!(client.recv_from(&mut bytes).unwrap(), (1, to));
        }

        let listener = TcpListener::bind(on_link(0)).unwrap();
        let to = listener.local_addr().unwrap();
        let stream = TcpStream::connect(to).unwrap();
        assert_eq!(stream.peer_addr().unwrap(), to);
        let (accepted, from) = listener.accept().unwrap();
        assert_eq!((accepted.peer_addr().unwrap(), stream.local_addr().unwrap()), (from, from));
        let name: SockaddrStorage = getpeername(stream.as_raw_fd()).unwrap();
        assert_eq!(name.as_sockaddr_in6().unwrap().scope_id(), index);
    });
}
