//! What shows the backend, and not the Service: all that looks at packets, at sockets from outside, or at
//! errors of the network.

use std::{
    fs,
    io::IoSliceMut,
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    os::fd::{AsRawFd as _, OwnedFd},
    process::Command,
    thread,
};

use nix::{
    errno::Errno,
    sched::{CloneFlags, unshare},
    sys::socket::{
        AddressFamily, MsgFlags, SockFlag, SockType, SockaddrStorage, getsockopt, recvmsg,
        setsockopt, socket, sockopt,
    },
};

use super::{
    connect::{MAPPED, V4, V6, web},
    control::Control,
    echo::ask,
    pods::{at, client, send_message},
    raw::{dial, peer},
    world::{PORT, World, backend4, backend6, soon},
};

/// What `ss` and `netstat` read.
#[test]
fn lists_of_sockets_have_the_backend() {
    World::run(|world| {
        let (mut control, _backends) = web(world);
        control.put("web", &["10.96.0.10"], 80, &[backend4(1)]);
        let stream = TcpStream::connect(V4).unwrap();
        let local = stream.local_addr().unwrap();
        let hex = |addr: SocketAddr| {
            let IpAddr::V4(ip) = addr.ip() else { panic!("{addr}") };
            format!("{:08X}:{:04X}", u32::from_ne_bytes(ip.octets()), addr.port())
        };
        let table = fs::read_to_string("/proc/thread-self/net/tcp").unwrap();
        let line = table.lines().find(|line| line.contains(&format!(": {} ", hex(local))));
        let peer = line.unwrap().split_whitespace().nth(2).unwrap();
        assert_eq!(peer, hex((backend4(1), PORT).into()));
        assert_eq!(stream.peer_addr().unwrap(), at(V4), "the application itself is told");
    });
}

/// An error of the network names where the packet went; no hook runs there.
#[test]
fn error_queues_have_the_backend() {
    World::run(|world| {
        let mut control = Control::start(world);
        // Nobody listens there.
        control.put("web", &["10.96.0.10", "fd00:96::a"], 80, &[backend4(9), backend6(9)]);
        for (to, backend) in [(V4, backend4(9)), (V6, backend6(9))] {
            let client = client(at(to).is_ipv4());
            if at(to).is_ipv4() {
                setsockopt(&client, sockopt::Ipv4RecvErr, &true).unwrap();
            } else {
                setsockopt(&client, sockopt::Ipv6RecvErr, &true).unwrap();
            }
            client.send_to(b"?", to).unwrap();
            let flags = MsgFlags::MSG_ERRQUEUE | MsgFlags::MSG_DONTWAIT;
            let mut named = None;
            let mut bytes = [0; 64];
            assert!(soon(|| {
                let mut space = nix::cmsg_space!([u8; 64]);
                let mut parts = [IoSliceMut::new(&mut bytes)];
                let message = recvmsg::<SockaddrStorage>(
                    client.as_raw_fd(),
                    &mut parts,
                    Some(&mut space),
                    flags,
                );
                named = message.ok().and_then(|message| message.address);
                named.is_some()
            }));
            let named = named.unwrap();
            let v4 = named.as_sockaddr_in().map(|v4| SocketAddr::from((v4.ip(), v4.port())));
            let v6 = named.as_sockaddr_in6().map(|v6| SocketAddr::from((v6.ip(), v6.port())));
            assert_eq!(v4.or(v6), Some((backend, PORT).into()), "{to}");
        }
    });
}

/// A sidecar's rules see what leaves the socket: the backend, not the cluster IP.
#[test]
fn rules_in_a_pod_see_the_backend() {
    World::run(|world| {
        let mut control = Control::start(world);
        control.put("web", &["10.96.0.10"], 80, &[backend4(1)]);
        let rules = "table ip sidecar { chain output { type nat hook output priority -100; \
                     ip daddr 10.96.0.10 tcp dport 80 redirect to :15002; \
                     ip daddr 10.1.0.1 tcp dport 8080 redirect to :15001; }; }";
        let status = Command::new("nft").arg(rules).status();
        assert!(status.expect("`nft` of nftables is needed").success());
        let sidecar = TcpListener::bind("127.0.0.1:15001").unwrap();
        let stream = TcpStream::connect(V4).unwrap();
        let (accepted, _) = sidecar.accept().unwrap();
        let dialled = getsockopt(&accepted, sockopt::OriginalDst).unwrap();
        let port = u16::from_be(dialled.sin_port);
        let dialled = (IpAddr::from(dialled.sin_addr.s_addr.to_ne_bytes()), port);
        assert_eq!(dialled, (backend4(1), PORT));
        assert_eq!(stream.peer_addr().unwrap(), at(V4));
    });
}

/// A connection whose first data is in its SYN runs the hook like any other.
#[test]
fn tcp_fast_open_is_translated() {
    World::run(|world| {
        let _web = web(world);
        fs::write("/proc/sys/net/ipv4/tcp_fastopen", "3").unwrap();
        for to in [V4, V6, MAPPED].map(at) {
            let family = if to.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
            let fd: OwnedFd =
                socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
            let flags = MsgFlags::from_bits_retain(libc::MSG_FASTOPEN);
            // The first one asks for a cookie, or is told that the other side knows none.
            assert_eq!(send_message(&fd, &[b""], to, flags), Ok(0));
            assert_eq!(peer(&fd), Ok(to));
            ask(&TcpStream::from(fd));
        }
        let nobody =
            socket(AddressFamily::Inet, SockType::Stream, SockFlag::empty(), None).unwrap();
        let flags = MsgFlags::from_bits_retain(libc::MSG_FASTOPEN);
        let refused = send_message(&nobody, &[b"x"], at("10.96.0.10:81"), flags);
        assert_eq!(refused, Err(Errno::ECONNREFUSED));
        assert_eq!(dial(&nobody, at(V4)), Ok(()));
    });
}

/// A container with a cgroup namespace of its own is in its cgroup as before.
#[test]
fn sockets_in_a_cgroup_namespace_are_served() {
    World::run(|world| {
        let _web = web(world);
        thread::scope(|scope| {
            let container = scope.spawn(|| {
                unshare(CloneFlags::CLONE_NEWCGROUP).unwrap();
                let cgroup = fs::read_to_string("/proc/thread-self/cgroup").unwrap();
                assert!(cgroup.lines().any(|line| line == "0::/"), "{cgroup}");
                assert_eq!(TcpStream::connect(V4).unwrap().peer_addr().unwrap(), at(V4));
            });
            container.join().unwrap();
        });
    });
}
