//! kube-dns, as in a cluster: a Service for each of two addresses, and CoreDNS behind them.

use std::{
    env,
    fmt::Write as _,
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket},
    path::Path,
    process::Command,
    time::Duration,
};

use nix::mount::{MsFlags, mount};

use super::{
    message::ask_at,
    process::Process,
    world::{World, backend4, backend6, soon},
    yaml,
};

/// Of the Service kube-dns.
pub(super) const DNS: &str = "10.96.0.10";
pub(super) const DNS_V6: &str = "fd00:10:96::a";
/// Of another Service with the same endpoints.
pub(super) const TOO: &str = "10.96.0.11";
const TOO_V6: &str = "fd00:10:96::b";
/// The name whose addresses say who answered.
pub(super) const WHO: &str = "who.default.svc.cluster.test";
/// A name with so many addresses, more than a datagram of 512 bytes holds.
pub(super) const MANY: (&str, usize) = ("many.default.svc.cluster.test", 60);
/// How long CoreDNS goes on answering after SIGTERM, in seconds, as in most clusters: so long the nodes
/// have to learn of it.
pub(super) const LAMEDUCK: u32 = 5;

/// What an EndpointSlice says of an instance.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum State {
    Ready,
    /// It was told to go and still answers.
    Terminating,
    /// It was told to go and does not answer any more.
    Gone,
}

/// One CoreDNS, on [`backend4`] and [`backend6`] of its number.
pub(super) struct CoreDns(Process);

impl CoreDns {
    /// Started, and answering.
    pub(super) fn start(world: &World, n: u8) -> Self {
        let program = env::var_os("SOCKLB_COREDNS").expect(
            "SOCKLB_COREDNS is not set: it names CoreDNS, `cargo xtask test dns` brings it",
        );
        let directory = world.dir().join(format!("coredns-{n}"));
        fs::create_dir_all(&directory).unwrap();
        let files = ["cluster.test", "Corefile"].map(|name| directory.join(name));
        fs::write(&files[0], zone(n)).unwrap();
        fs::write(&files[1], corefile(n, &files[0])).unwrap();
        let mut command = Command::new(program);
        command.arg("-conf").arg(&files[1]);
        let mut new = Self(Process::start("coredns", &directory, &mut command));
        let answers = || [backend4(n), backend6(n)].iter().all(|ip| answers(*ip));
        assert!(
            soon(|| answers() || new.0.ended().is_some()) && answers(),
            "CoreDNS does not start:\n{}",
            new.0.log()
        );
        new
    }

    pub(super) fn process(&mut self) -> &mut Process {
        &mut self.0
    }
}

/// Whether it answers there in UDP; before that it has listened in TCP.
fn answers(ip: IpAddr) -> bool {
    let from: IpAddr = if ip.is_ipv4() { "0.0.0.0" } else { "::" }.parse().unwrap();
    let socket = UdpSocket::bind((from, 0)).unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    ask_at(&socket, (ip, 53).into(), 1).is_ok()
}

/// The Corefile.
fn corefile(n: u8, zone: &Path) -> String {
    let (bind4, bind6, zone) = (backend4(n), backend6(n), zone.display());
    format!(
        ".:53 {{
    bind {bind4} {bind6}
    errors
    health {bind4}:8080 {{
        lameduck {LAMEDUCK}s
    }}
    file {zone} cluster.test
}}
"
    )
}

/// All names there are. The addresses that one instance gives have its number in them.
fn zone(n: u8) -> String {
    let [v4, v6] = who(n);
    let mut zone = format!(
        "$TTL 30
cluster.test. IN SOA ns.cluster.test. root.cluster.test. 1 3600 600 86400 30
cluster.test. IN NS ns.cluster.test.
ns.cluster.test. IN A {DNS}
{WHO}. IN A {v4}
{WHO}. IN AAAA {v6}
"
    );
    for i in 1..=MANY.1 {
        writeln!(zone, "{}. IN A 198.51.100.{i}", MANY.0).unwrap();
    }
    zone
}

/// What [`WHO`] is, if this instance says so.
pub(super) fn who(n: u8) -> [IpAddr; 2] {
    [
        Ipv4Addr::new(192, 0, 2, n).into(),
        Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, n.into()).into(),
    ]
}

/// Both Services with these endpoints. The agent sees all of it at once.
pub(super) fn put(world: &World, endpoints: &[(u8, State)]) {
    let mut all = String::new();
    for (name, ip, ip6) in [("kube-dns", DNS, DNS_V6), ("kube-dns-too", TOO, TOO_V6)] {
        write!(
            all,
            "apiVersion: v1
kind: Service
metadata: {{name: {name}, namespace: kube-system}}
spec:
  clusterIP: {ip}
  clusterIPs: [{ip}, '{ip6}']
  ipFamilies: [IPv4, IPv6]
  ports:
  - {{name: dns, protocol: UDP, port: 53}}
  - {{name: dns-tcp, protocol: TCP, port: 53}}
---
"
        )
        .unwrap();
        for (family, address) in [("IPv4", backend4 as fn(u8) -> _), ("IPv6", backend6)] {
            let labels = format!("{{kubernetes.io/service-name: {name}}}");
            let id = format!("{name}-{}", family.to_lowercase());
            let list = endpoints.iter().map(|(n, state)| {
                let conditions = match state {
                    State::Ready => "ready: true, serving: true, terminating: false",
                    State::Terminating => "ready: false, serving: true, terminating: true",
                    State::Gone => "ready: false, serving: false, terminating: true",
                };
                format!("{{addresses: ['{}'], conditions: {{{conditions}}}}}", address(*n))
            });
            let list = list.collect::<Vec<_>>().join(", ");
            write!(
                all,
                "apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: {id}, namespace: kube-system, labels: {labels}}}
addressType: {family}
ports:
- {{name: dns, protocol: UDP, port: 53}}
- {{name: dns-tcp, protocol: TCP, port: 53}}
endpoints: [{list}]
---
"
            )
            .unwrap();
        }
    }
    let fresh = world.dir().join("fresh");
    fs::write(&fresh, all).unwrap();
    fs::rename(fresh, yaml::objects(world).join("dns.yaml")).unwrap();
}

/// What this world's `/etc/resolv.conf` says from now on.
pub(super) fn resolv_conf(world: &World, text: &str) {
    let file = world.dir().join("resolv.conf");
    let first = !file.exists();
    fs::write(&file, text).unwrap();
    if first {
        let nothing = None::<&str>;
        mount(Some(&file), "/etc/resolv.conf", nothing, MsFlags::MS_BIND, nothing).unwrap();
    }
}
