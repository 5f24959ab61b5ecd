//! The real agent follows who the clients of `loadBalancerSourceRanges` are: addresses and routes come and
//! go in network namespaces, and so do these.

use std::{
    collections::BTreeMap,
    fs, io,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream},
    process::Command,
    sync::mpsc::{Sender, channel},
    thread::{self, JoinHandle},
    time::Instant,
};

use lb_agent::maps::{Access, Pinned};
use lb_common::{
    Addr,
    abi::{ClientKey, Counter, SourceAddress},
};
use nix::{
    errno::Errno,
    mount::{MsFlags, mount},
};

use super::{
    agent::Agent,
    clients::{Elsewhere, cookie},
    control::counted,
    echo::{Answer, Backends, ask},
    raw::{errno, tcp_from},
    world::{World, backend4, backend6, hears_itself, soon},
    yaml,
};

const V4: &str = "203.0.113.5:80";
const V6: &str = "[2001:db8:5::5]:80";

/// A network namespace that lives on by a thread, as that of a pod does by its processes.
struct Pod {
    there: Elsewhere,
    /// Of the thread.
    tid: i32,
    stay: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Pod {
    /// Without an address.
    fn new() -> Self {
        let there = Elsewhere::bare();
        let (stay, left) = channel();
        let (entered, waits) = channel();
        let file = there.file();
        let thread = thread::spawn(move || {
            nix::sched::setns(file, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            entered.send(nix::unistd::gettid().as_raw()).unwrap();
            let _ = left.recv();
        });
        let tid = waits.recv().unwrap();
        Self { there, tid, stay: Some(stay), thread: Some(thread) }
    }

    /// `ip` there.
    fn ip(&self, words: &str) {
        let output = self.there.within(|| Command::new("ip").args(words.split(' ')).output());
        let output = output.unwrap();
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "ip {words}: {error}");
    }

    /// With the addresses of backends, at which they listen.
    fn serve(&self) -> Backends {
        let ips = [backend4(1), backend6(1)];
        for ip in ips {
            self.ip(&format!("address add {ip} dev lo{}", nodad(ip.is_ipv6())));
        }
        // An IPv6 address can be bound before its route is there: until then who connects there gets
        // ENETUNREACH, a second later.
        let works = || ips.iter().all(|ip| hears_itself(*ip).is_ok());
        assert!(soon(|| self.there.within(works)), "{}", self.routes());
        self.there.within(|| Backends::start(ips))
    }

    fn connect(&self, to: &str) -> io::Result<Answer> {
        self.there.within(|| Ok(ask(&TcpStream::connect(to)?)))
    }

    /// Connects until it can, and from where it does then.
    fn comes_from(&self, to: &str) -> String {
        let start = Instant::now();
        let mut from = String::new();
        let connected = soon(|| match self.connect(to) {
            Ok(answer) => {
                from = answer.client.ip().to_canonical().to_string();
                true
            }
            Err(error) => {
                let error = errno::<()>(Err(error));
                assert_eq!(error, Errno::EACCES, "{}", self.routes());
                false
            }
        });
        assert!(connected, "{to} is closed");
        println!("{to} from {from} after {:?}", start.elapsed());
        from
    }

    /// All that decides where its packets go, for whoever has to find out why.
    fn routes(&self) -> String {
        let say = |words: &str| {
            let output = Command::new("ip").args(words.split(' ')).output().unwrap();
            String::from_utf8_lossy(&output.stdout).into_owned()
        };
        let questions = ["address show", "-4 route show table all", "-6 route show table all"];
        self.there.within(|| questions.map(say).concat())
    }

    /// Sooner or later it is shut out, as somebody who is known and in none of the ranges; and then it
    /// stays so.
    fn is_shut_out(&self, world: &World, to: &str) {
        let start = Instant::now();
        let is_denied = || {
            let before = counted(world, Counter::Denied);
            let error = self.connect(to).err().and_then(|error| error.raw_os_error());
            error == Some(libc::EACCES) && counted(world, Counter::Denied) > before
        };
        assert!(soon(is_denied), "{to} is open, or nobody knows who this is:\n{}", self.routes());
        println!("{to} shut after {:?}", start.elapsed());
        for _ in 0..20 {
            assert_eq!(errno(self.connect(to)), Errno::EACCES);
        }
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        drop(self.stay.take());
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

const fn nodad(ipv6: bool) -> &'static str {
    if ipv6 { " nodad" } else { "" }
}

/// What the maps say.
fn clients(world: &World) -> BTreeMap<ClientKey, SourceAddress> {
    let dir = world.pins().maps().unwrap().unwrap();
    Pinned::open(&dir, Access::Read).unwrap().clients().unwrap()
}

/// A load balancer for 10.2.0.0/16 and fd00:2::/32, and an agent that knows of it.
fn start(world: &World) -> Agent {
    let service = "\
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  type: LoadBalancer
  clusterIP: 10.96.0.10
  clusterIPs: [10.96.0.10, 'fd00:96::a']
  ipFamilies: [IPv4, IPv6]
  ports: [{port: 80}]
  loadBalancerSourceRanges: [10.2.0.0/16, 'fd00:2::/32']
status: {loadBalancer: {ingress: [{ip: 203.0.113.5}, {ip: '2001:db8:5::5'}]}}
";
    let slice = |family: &str, address: String| {
        format!(
            "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: web-{}, \
             labels: {{kubernetes.io/service-name: web}}}}\naddressType: {family}\nports: [{{port: \
             8080}}]\nendpoints: [{{addresses: ['{address}']}}]\n",
            family.to_lowercase()
        )
    };
    let slices = [slice("IPv4", backend4(1).to_string()), slice("IPv6", backend6(1).to_string())];
    fs::write(yaml::objects(world).join("web.yaml"), format!("{service}{}", slices.concat()))
        .unwrap();
    Agent::start(world)
}

/// A pod that was looked at before its CNI plugin was done: each family is known as soon as it is there.
#[test]
fn a_late_address_is_known_at_once() {
    World::run(|world| {
        let _agent = start(world);
        let pod = Pod::new();
        for to in [V4, V6] {
            assert_eq!(errno(pod.connect(to)), Errno::EACCES, "it has no address");
        }
        let unknown = counted(world, Counter::UnknownClient);
        assert_eq!((unknown, counted(world, Counter::Denied)), (2, 0));
        // Until the agent has seen it, as its first look at unknown clients shows.
        let other = Pod::new();
        let _others = other.serve();
        other.ip("address add 10.2.0.9/32 dev lo");
        other.ip("route add 203.0.113.5/32 dev lo src 10.2.0.9");
        assert_eq!(other.comes_from(V4), "10.2.0.9");

        // Beside the address of the backend, which is the first one, routing decides.
        let _backends = pod.serve();
        pod.ip("route add 203.0.113.5/32 dev lo src 10.1.0.1");
        pod.is_shut_out(world, V4);
        pod.is_shut_out(world, V6);
        pod.ip("address add 10.2.0.7/32 dev lo");
        pod.ip("route replace 203.0.113.5/32 dev lo src 10.2.0.7");
        assert_eq!(pod.comes_from(V4), "10.2.0.7");
        pod.is_shut_out(world, V6);
        pod.ip("address add fd00:2::7/128 dev lo nodad");
        pod.ip("route add 2001:db8:5::5/128 dev lo src fd00:2::7");
        assert_eq!(pod.comes_from(V6), "fd00:2::7");
        // And gone again.
        pod.ip("address del 10.2.0.7/32 dev lo");
        pod.is_shut_out(world, V4);
        assert_eq!(pod.comes_from(V6), "fd00:2::7");
    });
}

/// Whoever may change addresses and routes of his own namespace changes what his packets carry, too;
/// never what he is taken for.
#[test]
fn an_address_that_is_allowed_helps_only_whoever_comes_from_it() {
    World::run(|world| {
        let _agent = start(world);
        let pod = Pod::new();
        // The allowed one is the first, but routing chooses the other one.
        pod.ip("address add 10.2.0.66/32 dev lo");
        let _backends = pod.serve();
        pod.ip("address add 10.9.0.7/32 dev lo");
        pod.ip("route add 203.0.113.5/32 dev lo src 10.9.0.7");
        pod.is_shut_out(world, V4);
        // The route to the load balancer says one thing, the route to the backend another.
        pod.ip("route replace 203.0.113.5/32 dev lo src 10.2.0.66");
        assert_eq!(pod.comes_from(V4), "10.2.0.66");
        // Somebody who cannot be given that address, as he has a port.
        let bound = || {
            let to: SocketAddr = V4.parse().unwrap();
            tcp_from(Ipv4Addr::UNSPECIFIED.into(), to)
        };
        assert_eq!(pod.there.within(|| errno(bound())), Errno::EACCES);
    });
}

/// As a container runtime makes them: mounted, without a process, and then with addresses. Nobody has
/// to connect before such a namespace is known.
#[test]
fn a_namespace_that_is_mounted_is_followed_before_anybody_connects() {
    World::run(|world| {
        // Only this world sees it.
        mount(Some("tmpfs"), "/run", Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
        let agent = start(world);
        let known = |from: &str| {
            let clients = clients(world);
            clients
                .values()
                .any(|client| client.addr == Addr::from(from.parse::<IpAddr>().unwrap()))
        };
        for n in 1..=3 {
            let (name, from) = (format!("cni-{n}"), format!("10.2.7.{n}"));
            let ip = |words: &str| {
                let status = Command::new("ip").args(words.split(' ')).status();
                assert!(status.unwrap().success(), "ip {words}");
            };
            ip(&format!("netns add {name}"));
            ip(&format!("-n {name} link set lo up"));
            ip(&format!("-n {name} address add {from}/32 dev lo"));
            let start = Instant::now();
            assert!(soon(|| known(&from)), "{}", agent.log());
            println!("known after {:?}", start.elapsed());
            ip(&format!("netns delete {name}"));
            assert!(soon(|| !known(&from)), "{}", agent.log());
        }
        assert_eq!(counted(world, Counter::UnknownClient), 0);
    });
}

/// `lbctl` says by which address a process is judged, and why.
#[test]
fn who_a_process_is_taken_for_is_explained() {
    World::run(|world| {
        let _agent = start(world);
        let pod = Pod::new();
        pod.ip("address add 10.9.0.7/32 dev lo");
        pod.ip("address add 10.2.0.7/32 dev lo");
        let lbctl = |words: &str| {
            let mut lbctl = Command::new(env!("CARGO_BIN_EXE_lbctl"));
            let output = lbctl.arg("--bpffs").arg(world.bpffs()).args(words.split(' ')).output();
            String::from_utf8(output.unwrap().stdout).unwrap()
        };
        let explain = || lbctl(&format!("explain {V4} --pid {}", pod.tid));
        let is_said = |words: &str| {
            assert!(soon(|| explain().contains(words)), "not {words:?}:\n{}", explain());
        };
        is_said("the client's address is not known: connect() fails with EACCES");
        let _ = pod.connect(V4);
        is_said("a socket of this network namespace that is not bound comes from 10.9.0.7");
        assert!(explain().contains("source ranges: connect() fails with EACCES"), "{}", explain());
        pod.ip("route add 203.0.113.5/32 dev lo src 10.2.0.7");
        is_said("that is not bound comes from 10.2.0.7, by its routes");
        let explained = explain();
        assert!(explained.contains("its only backend"), "{explained}");
        assert!(explained.contains("a port, but to no address, gets EACCES"), "{explained}");
        let netns = pod.there.within(cookie);
        assert!(lbctl("get clients 10.2.0.7").contains(&format!("netns {netns}")));
    });
}

/// The thread that listens keeps no namespace alive, and is not there when nobody asks.
#[test]
fn nobody_is_followed_in_vain() {
    World::run(|world| {
        let agent = start(world);
        let pod = Pod::new();
        let _ = pod.connect(V4);
        let netns = pod.there.within(cookie);
        let backends = pod.serve();
        let known = || clients(world).keys().any(|key| key.netns == netns);
        assert!(soon(known), "{}", agent.log());
        drop(backends);
        drop(pod);
        assert!(soon(|| !known()), "{}", agent.log());
        let listens = || {
            let tasks = fs::read_dir(format!("/proc/{}/task", agent.pid())).unwrap();
            tasks.flatten().any(|task| {
                fs::read_to_string(task.path().join("comm")).is_ok_and(|name| name == "clients\n")
            })
        };
        assert!(listens());
        fs::remove_file(yaml::objects(world).join("web.yaml")).unwrap();
        assert!(soon(|| !listens()), "{}", agent.log());
    });
}
