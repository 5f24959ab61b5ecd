//! A node with its pods, a machine elsewhere, and a client two hops away, each in a network namespace of
//! its own, without a way out:
//!
//! ```text
//! client ── router ── node ── pod 1, pod 2
//!             │
//!          elsewhere (an endpoint on another node)
//! ```
//!
//! The node is the namespace of the test's thread. What the endpoint elsewhere sends to the client does
//! not pass the node, unless its address is the node's.

use std::{
    io::{
        self,
        ErrorKind::{
            AddrInUse, ConnectionRefused, HostUnreachable, PermissionDenied, TimedOut, WouldBlock,
        },
        Read as _, Write as _,
    },
    iter,
    net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket},
    process::Command,
    sync::{
        atomic::{AtomicU16, Ordering},
        mpsc::{Sender, channel},
    },
    thread,
    time::Duration,
};

use nix::{
    sched::{CloneFlags, unshare},
    unistd::{Pid, gettid},
};
use socket2::{Domain, Socket, Type};

use super::world::{PORT, hears_itself, soon};

/// No answer takes longer that comes at all.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
/// So long an answer is waited for that must not come.
pub(crate) const SILENCE: Duration = Duration::from_secs(1);

/// What is asked.
const WHO: &[u8] = b"who?";

type Job = Box<dyn FnOnce() + Send>;

/// A network namespace, and a thread in it.
pub(crate) struct Place {
    thread: Pid,
    jobs: Sender<Job>,
}

impl Place {
    fn new() -> Self {
        let (jobs, taken) = channel::<Job>();
        let (said, told) = channel();
        thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            said.send(gettid()).unwrap();
            for job in taken {
                job();
            }
        });
        let place = Self { thread: told.recv().unwrap(), jobs };
        place.ip("link set lo up");
        place
    }

    /// Does something there.
    pub(crate) fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let (said, told) = channel();
        self.jobs.send(Box::new(move || said.send(work()).unwrap())).unwrap();
        told.recv().expect("what is done there panicked")
    }

    pub(crate) fn ip(&self, words: &str) {
        let words = words.to_owned();
        self.run(move || ip(&words));
    }
}

/// Which protocol a test speaks.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Speech {
    Tcp,
    Udp,
}

impl Speech {
    pub(crate) const BOTH: [Self; 2] = [Self::Tcp, Self::Udp];
}

/// What became of a question.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) enum Answer {
    /// Who answered, and whom it saw.
    From {
        name: String,
        seen: IpAddr,
    },
    Refused,
    Silence,
    /// EHOSTUNREACH: packets to an address that nobody serves went to and fro until they were too old.
    Astray,
    /// EPERM: what became of the datagram that the node itself sent.
    Forbidden,
}

impl Answer {
    pub(crate) fn name(&self) -> &str {
        match self {
            Self::From { name, .. } => name,
            other => panic!("{other:?}"),
        }
    }
}

/// All of them.
pub(crate) struct Lane {
    pub(crate) client: Place,
    pub(crate) router: Place,
    pub(crate) pods: [Place; 2],
    pub(crate) elsewhere: Place,
}

/// The client's address.
pub(crate) fn client(ipv4: bool) -> IpAddr {
    if ipv4 { [10, 50, 1, 2].into() } else { [0xfd50, 1, 0, 0, 0, 0, 0, 2].into() }
}

/// The node's address.
pub(crate) fn node(ipv4: bool) -> IpAddr {
    if ipv4 { [10, 50, 2, 2].into() } else { [0xfd50, 2, 0, 0, 0, 0, 0, 2].into() }
}

/// The address of pod 1 or pod 2; 3 is the endpoint elsewhere.
pub(crate) fn endpoint(n: u8, ipv4: bool) -> IpAddr {
    match (n, ipv4) {
        (3, true) => [10, 50, 3, 2].into(),
        (3, false) => [0xfd50, 3, 0, 0, 0, 0, 0, 2].into(),
        (n, true) => [10, 60, n, 2].into(),
        (n, false) => [0xfd60, n.into(), 0, 0, 0, 0, 0, 2].into(),
    }
}

impl Lane {
    /// Around the thread's own namespace.
    pub(crate) fn new() -> Self {
        let [client, router, one, two, elsewhere] = [(); 5].map(|()| Place::new());
        forward();
        router.run(forward);
        let here = gettid();
        // Names are those of the other end.
        let links = [
            ("router", client.thread, "client", router.thread),
            ("node", router.thread, "router", here),
            ("elsewhere", router.thread, "router", elsewhere.thread),
            ("pod1", here, "node", one.thread),
            ("pod2", here, "node", two.thread),
        ];
        for (a, of_a, b, of_b) in links {
            ip(&format!("link add {a} netns {of_a} type veth peer name {b} netns {of_b}"));
        }
        let up = |device: &str, net: &str, host: u8| {
            ip(&format!("address add 10.{}.{host}/24 dev {device}", net.replace(':', ".")));
            ip(&format!("address add fd{net}::{host}/64 dev {device} nodad"));
            ip(&format!("link set {device} up"));
        };
        let via = |net: &'static str| {
            ip(&format!("route add default via 10.{}.1", net.replace(':', ".")));
            ip(&format!("route add default via fd{net}::1"));
        };
        let end = move |device: &'static str, net: &'static str| {
            move || {
                up(device, net, 2);
                via(net);
            }
        };
        client.run(end("router", "50:1"));
        elsewhere.run(end("router", "50:3"));
        one.run(end("node", "60:1"));
        two.run(end("node", "60:2"));
        router.run(move || {
            for (device, net) in [("client", "50:1"), ("node", "50:2"), ("elsewhere", "50:3")] {
                up(device, net, 1);
            }
            // What a router sends to a node: load balancers' addresses, and the pods'.
            ip("route add 192.0.2.0/24 via 10.50.2.2");
            ip("route add 2001:db8::/64 via fd50:2::2");
            ip("route add 10.60.0.0/16 via 10.50.2.2");
            ip("route add fd60::/16 via fd50:2::2");
        });
        up("router", "50:2", 2);
        via("50:2");
        up("pod1", "60:1", 1);
        up("pod2", "60:2", 1);
        let lane = Self { client, router, pods: [one, two], elsewhere };
        for (n, place) in [(1, &lane.pods[0]), (2, &lane.pods[1]), (3, &lane.elsewhere)] {
            let name = format!("endpoint-{n}");
            for ipv4 in [true, false] {
                let (name, addr) = (name.clone(), SocketAddr::new(endpoint(n, ipv4), PORT));
                place.run(move || serve(&name, addr));
            }
        }
        lane
    }

    /// What the client gets.
    pub(crate) fn ask(&self, speech: Speech, to: SocketAddr) -> Answer {
        self.client.run(move || ask(speech, to, PATIENCE))
    }

    /// So many more addresses of the client's.
    pub(crate) fn clients(&self, ipv4: bool, count: u8) -> Vec<IpAddr> {
        let all = (10..).take(count.into()).map(|n: u8| -> IpAddr {
            if ipv4 { [10, 50, 1, n].into() } else { [0xfd50, 1, 0, 0, 0, 0, 0, n.into()].into() }
        });
        let all: Vec<_> = all.collect();
        for client in &all {
            let (length, option) = if ipv4 { (32, "") } else { (128, " nodad") };
            self.client.ip(&format!("address add {client}/{length} dev router{option}"));
        }
        for client in all.clone() {
            assert!(self.client.run(move || soon(|| hears_itself(client).is_ok())), "{client}");
        }
        all
    }

    /// Makes 10.80.0.0/15 the client's, all of it.
    pub(crate) fn crowd(&self) {
        self.client.ip("route add local 10.80.0.0/15 dev lo");
        self.router.ip("route add 10.80.0.0/15 via 10.50.1.2");
    }

    /// What the client gets from one of its addresses.
    pub(crate) fn ask_from(&self, from: IpAddr, speech: Speech, to: SocketAddr) -> Answer {
        self.client.run(move || ask_from(from, speech, to, PATIENCE))
    }

    /// The same from an address and a port.
    pub(crate) fn ask_by(&self, from: SocketAddr, speech: Speech, to: SocketAddr) -> Answer {
        self.client.run(move || ask_by(from, speech, to, PATIENCE))
    }

    /// A connection of the client's that stays.
    pub(crate) fn hold(&self, to: SocketAddr) -> Held {
        let stream = self.client.run(move || dial(any(to), to, PATIENCE).unwrap());
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let held = Held(stream);
        assert!(held.is_alive(), "{to}");
        held
    }

    /// A socket of the client's.
    pub(crate) fn asker(&self, to: SocketAddr) -> Asker {
        self.client.run(move || Asker::new(any(to), to))
    }

    /// The same, to be used at will.
    pub(crate) fn connected(&self, to: SocketAddr) -> UdpSocket {
        self.client.run(move || connected(any(to), to, PATIENCE).unwrap())
    }

    /// What the client gets at each of these addresses, asked at once; what is silent until then is
    /// taken for silent.
    pub(crate) fn ask_all(&self, all: &[(Speech, SocketAddr)], patience: Duration) -> Vec<Answer> {
        let all = all.to_vec();
        // A thread begins in the namespace of the one that begins it.
        self.client.run(move || ask_all(&all, patience))
    }
}

/// A UDP socket of the client's that asks again and again, from one port.
pub(crate) struct Asker {
    socket: UdpSocket,
    to: SocketAddr,
}

impl Asker {
    /// One of this place's.
    pub(crate) fn new(from: SocketAddr, to: SocketAddr) -> Self {
        Self { socket: connected(from, to, PATIENCE).unwrap(), to }
    }

    pub(crate) fn ask(&self) -> Answer {
        said(Speech::Udp, self.to, exchange(&self.socket))
    }

    /// Asks, and does not wait.
    pub(crate) fn send(&self) {
        self.socket.send(WHO).unwrap();
    }

    /// What the answer to that is.
    pub(crate) fn hear(&self) -> Answer {
        said(Speech::Udp, self.to, hear(&self.socket))
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        self.socket.local_addr().unwrap()
    }
}

/// A TCP connection that stays.
pub(crate) struct Held(pub(crate) TcpStream);

impl Held {
    /// Whether what is said there comes back.
    pub(crate) fn is_alive(&self) -> bool {
        self.echoes(b"still there?")
    }

    /// The same of many bytes.
    pub(crate) fn echoes(&self, bytes: &[u8]) -> bool {
        let mut echo = vec![0; bytes.len()];
        let heard = thread::scope(|scope| {
            scope.spawn(|| (&self.0).write_all(bytes));
            let heard = (&self.0).read_exact(&mut echo);
            if heard.is_err() {
                // Who writes waits no longer.
                let _ = self.0.shutdown(Shutdown::Both);
            }
            heard
        });
        heard.is_ok() && echo == bytes
    }
}

/// Any port of the unspecified address of the family.
fn any(of: SocketAddr) -> SocketAddr {
    let ip: IpAddr = if of.is_ipv4() { [0; 4].into() } else { [0; 16].into() };
    (ip, 0).into()
}

fn dial(from: SocketAddr, to: SocketAddr, patience: Duration) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
    socket.set_reuse_address(from.port() != 0)?;
    socket.bind(&from.into())?;
    socket.connect_timeout(&to.into(), patience)?;
    Ok(socket.into())
}

/// From a port that was not used for long, unless it is given: the node remembers for whom a port was, and
/// its next datagram would belong to the flow of the one before.
fn connected(from: SocketAddr, to: SocketAddr, patience: Duration) -> io::Result<UdpSocket> {
    static USED: AtomicU16 = AtomicU16::new(0);
    let fresh = || 10_000 + USED.fetch_add(1, Ordering::Relaxed) % 20_000;
    let port = || if from.port() == 0 { fresh() } else { from.port() };
    let is_free = |bound: &io::Result<_>| {
        let is_taken = bound.as_ref().err().is_some_and(|error| error.kind() == AddrInUse);
        !is_taken || from.port() != 0
    };
    let socket = iter::repeat_with(|| UdpSocket::bind((from.ip(), port())))
        .find(is_free)
        .expect("it is endless")?;
    socket.set_read_timeout(Some(patience))?;
    socket.connect(to)?;
    Ok(socket)
}

fn exchange(socket: &UdpSocket) -> io::Result<String> {
    socket.send(WHO)?;
    hear(socket)
}

fn hear(socket: &UdpSocket) -> io::Result<String> {
    let mut bytes = [0; 256];
    let len = socket.recv(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes[..len]).into_owned())
}

/// Asks once. What is silent until then is taken for silent.
pub(crate) fn ask(speech: Speech, to: SocketAddr, patience: Duration) -> Answer {
    ask_by(any(to), speech, to, patience)
}

/// What is got at each of these addresses, asked at once.
pub(crate) fn ask_all(all: &[(Speech, SocketAddr)], patience: Duration) -> Vec<Answer> {
    thread::scope(|scope| {
        let asked = all.iter().map(|(speech, to)| scope.spawn(|| ask(*speech, *to, patience)));
        let asked: Vec<_> = asked.collect();
        asked.into_iter().map(|answer| answer.join().unwrap()).collect()
    })
}

/// The same from one of this place's addresses.
pub(crate) fn ask_from(from: IpAddr, speech: Speech, to: SocketAddr, patience: Duration) -> Answer {
    ask_by((from, 0).into(), speech, to, patience)
}

pub(crate) fn ask_by(
    from: SocketAddr,
    speech: Speech,
    to: SocketAddr,
    patience: Duration,
) -> Answer {
    let text = match speech {
        Speech::Tcp => dial(from, to, patience).and_then(|mut stream| {
            stream.set_read_timeout(Some(patience))?;
            stream.write_all(WHO)?;
            let mut text = String::new();
            stream.read_to_string(&mut text)?;
            Ok(text)
        }),
        Speech::Udp => connected(from, to, patience).and_then(|socket| exchange(&socket)),
    };
    said(speech, to, text)
}

fn said(speech: Speech, to: SocketAddr, text: io::Result<String>) -> Answer {
    match text {
        Ok(text) => {
            let (name, seen) = text.split_once(' ').unwrap();
            Answer::From { name: name.to_owned(), seen: seen.parse().unwrap() }
        }
        Err(error) if error.kind() == ConnectionRefused => Answer::Refused,
        Err(error) if error.kind() == HostUnreachable => Answer::Astray,
        Err(error) if error.kind() == PermissionDenied => Answer::Forbidden,
        Err(error) if matches!(error.kind(), TimedOut | WouldBlock) => Answer::Silence,
        Err(error) => panic!("{speech:?} {to}: {error}"),
    }
}

/// Says its name, and whom it sees, to all who ask, and says again whatever else it hears; as long as the
/// process lives.
pub(crate) fn serve(name: &str, addr: SocketAddr) {
    // An IPv6 address is there at once, its route a moment later.
    assert!(soon(|| hears_itself(addr.ip()).is_ok()), "{addr} does not work");
    let listener = TcpListener::bind(addr).unwrap();
    let socket = UdpSocket::bind(addr).unwrap();
    let (tcp, udp) = (name.to_owned(), name.to_owned());
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let Ok(seen) = stream.peer_addr() else { continue };
            let answer = format!("{tcp} {}", seen.ip());
            thread::spawn(move || converse(stream, answer.as_bytes()));
        }
    });
    thread::spawn(move || {
        let mut bytes = vec![0; 65_536];
        while let Ok((len, seen)) = socket.recv_from(&mut bytes) {
            let _ = match &bytes[..len] {
                WHO => socket.send_to(format!("{udp} {}", seen.ip()).as_bytes(), seen),
                other => socket.send_to(other, seen),
            };
        }
    });
}

fn converse(mut stream: TcpStream, answer: &[u8]) {
    let mut bytes = [0; 8192];
    while let Ok(len @ 1..) = stream.read(&mut bytes) {
        if bytes[..len] == *WHO {
            let _ = stream.write_all(answer);
            return;
        }
        if stream.write_all(&bytes[..len]).is_err() {
            return;
        }
    }
}

/// Forwards packets, and answers all that it rejects: who asks often would wait for an ICMP error.
pub(crate) fn forward() {
    for (name, value) in [
        ("ipv4/ip_forward", "1"),
        ("ipv6/conf/all/forwarding", "1"),
        ("ipv4/icmp_ratemask", "0"),
        ("ipv6/icmp/ratelimit", "0"),
    ] {
        std::fs::write(format!("/proc/sys/net/{name}"), value).unwrap();
    }
}

/// Where the thread is.
pub(crate) fn ip(words: &str) {
    let status = Command::new("ip").args(words.split_whitespace()).status().expect("iproute2");
    assert!(status.success(), "ip {words}");
}
