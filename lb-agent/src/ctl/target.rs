//! What a command is asked about: a Service by name, or an address.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    str::FromStr,
};

use lb_common::{
    Addr, Flow, Port,
    abi::{self, Peer, ServiceKey},
};
use lb_core::{dump::Entry, model::Protocol, store::Snapshot};

/// `NAME`, `NAMESPACE/NAME`, either with `:PORT`; or `ADDR`, `ADDR:PORT`, `ADDR:PORT/tcp`: every form
/// in which `lbctl` itself names something.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Target {
    /// A Service, or one port of it.
    Name(ServiceName),
    /// An address, or one port of it.
    Address(TargetAddress),
}

/// A Service, or one port of it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ServiceName {
    /// Any, if none.
    pub namespace: Option<String>,
    /// The name.
    pub name: String,
    /// Name or number of the port; any, if none.
    pub port: Option<String>,
}

/// An address, or one port of it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct TargetAddress {
    /// The address; an IPv4-mapped one is the IPv4 address.
    pub ip: IpAddr,
    /// Any, if none.
    pub port: Option<u16>,
    /// Any, if none.
    pub protocol: Option<Protocol>,
    /// What it stands for, by bits of [`abi::Address`]; 0 until it was looked up.
    pub role: u32,
    /// The ports and protocols of the NodePorts that it has entries of its own for, rather than those of
    /// all other nodes; none until they were looked up.
    pub own_ports: Vec<(Port, u8)>,
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(address) = TargetAddress::parse(text)? {
            return Ok(Self::Address(address));
        }
        let (namespace, rest) = match text.split_once('/') {
            Some((namespace, rest)) => (Some(namespace), rest),
            None => (None, text),
        };
        let (name, port) = match rest.split_once(':') {
            Some((name, port)) => (name, Some(port)),
            None => (rest, None),
        };
        let parts = [namespace, Some(name), port];
        if !parts.into_iter().flatten().all(is_label) {
            return Err(
                "neither a name (NAME, NAMESPACE/NAME, with :PORT) nor an address (ADDR, ADDR:PORT, \
                 ADDR:PORT/tcp; IPv6 as [ADDR]:PORT)"
                    .to_owned(),
            );
        }
        Ok(Self::Name(ServiceName {
            namespace: namespace.map(str::to_owned),
            name: name.to_owned(),
            port: port.map(str::to_owned),
        }))
    }
}

/// Whether Kubernetes could have given the name.
pub(super) fn is_label(text: &str) -> bool {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.';
    !text.is_empty() && text.bytes().all(inner)
}

impl TargetAddress {
    /// Any port of it.
    pub const fn new(ip: IpAddr) -> Self {
        Self { ip, port: None, protocol: None, role: 0, own_ports: Vec::new() }
    }

    /// None if the text does not look like an address; an error if it does, and is none.
    fn parse(text: &str) -> Result<Option<Self>, String> {
        let (addr, protocol) = match text.rsplit_once('/') {
            None => (text, None),
            Some((addr, protocol)) => (addr, Some(protocol)),
        };
        let bare = addr.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(addr);
        let (ip, port) = if let Ok(addr) = addr.parse::<SocketAddr>() {
            (addr.ip(), Some(addr.port()))
        } else if let Ok(ip) = bare.parse::<IpAddr>() {
            (ip, None)
        } else {
            let digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit() || b == b'.');
            let numeric =
                addr.split(':').next().is_some_and(|head| head.contains('.') && digits(head));
            if numeric || addr.starts_with('[') || addr.matches(':').count() > 1 {
                return Err(
                    "not an address: use ADDR, ADDR:PORT or ADDR:PORT/tcp, PORT a number, \
                            and for IPv6 [ADDR]:PORT"
                        .to_owned(),
                );
            }
            return Ok(None);
        };
        let protocol = match protocol.map(str::to_ascii_lowercase).as_deref() {
            None => None,
            Some("tcp") => Some(Protocol::Tcp),
            Some("udp") => Some(Protocol::Udp),
            Some(other) => return Err(format!("`{other}` is not a protocol: use tcp or udp")),
        };
        Ok(Some(Self { port, protocol, ..Self::new(ip.to_canonical()) }))
    }

    /// Whether it means this address and port.
    pub fn is_at(&self, peer: Peer) -> bool {
        peer.addr == Addr::from(self.ip) && self.port.is_none_or(|port| port == peer.port.number())
    }

    /// Looks up whether it is a node's address, at which NodePorts are served. The unspecified address
    /// is what Linux takes it for.
    pub fn resolve(&mut self, snapshot: &Snapshot) {
        let mut addr = Addr::from(self.ip);
        if addr.is_unspecified() {
            addr = addr.meant(addr.unspecified());
        }
        let known = |addr: &Addr| snapshot.addresses.get(addr).map(|known| known.flags);
        let loopback = || known(&abi::LOOPBACK_NET).filter(|_| addr.is_v4() && addr.is_loopback());
        self.role = known(&addr).or_else(loopback).unwrap_or(0);
        let addr = Addr::from(self.ip);
        let is_own = |key: &&ServiceKey| key.scope == abi::SCOPE_NODE && key.peer.addr == addr;
        let own = snapshot.services.keys().filter(is_own);
        self.own_ports = own.map(|key| (key.peer.port, key.protocol)).collect();
    }

    /// Whether it means this address, with this or another port; or an address at which this NodePort,
    /// or one of another number, is served.
    pub fn is_host(&self, key: &ServiceKey) -> bool {
        let is_family = key.peer.addr.is_v4() == self.ip.is_ipv4();
        match key.scope {
            abi::SCOPE_OWN_NODE => is_family && self.role & abi::Address::OWN_NODE != 0,
            abi::SCOPE_OTHER_NODES => {
                is_family
                    && self.role & abi::Address::OTHER_NODE != 0
                    && !self.own_ports.contains(&(key.peer.port, key.protocol))
            }
            _ => key.peer.addr == Addr::from(self.ip),
        }
    }

    fn is_key(&self, key: &ServiceKey) -> bool {
        self.is_host(key)
            && self.port.is_none_or(|port| port == key.peer.port.number())
            && self.is_of(key.protocol)
    }

    fn is_of(&self, protocol: u8) -> bool {
        self.protocol.is_none_or(|wanted| wanted.number() == protocol)
    }
}

impl ServiceName {
    fn is_of(&self, entry: &Entry<'_>) -> bool {
        let [namespace, name, port] = entry.names();
        entry.port.is_some()
            && self.namespace.as_ref().is_none_or(|wanted| wanted == namespace)
            && self.name == name
            && self.port.as_ref().is_none_or(|wanted| {
                wanted == port || wanted.parse() == Ok(entry.key.peer.port.number())
            })
    }
}

impl Target {
    /// Whether it means this frontend.
    pub fn is_frontend(&self, entry: &Entry<'_>) -> bool {
        match self {
            Self::Name(name) => name.is_of(entry),
            Self::Address(addr) => addr.is_key(entry.key),
        }
    }

    /// Whether it means this backend of the frontend, or all of them.
    pub fn is_backend(&self, entry: &Entry<'_>, backend: Peer) -> bool {
        self.is_frontend(entry)
            || matches!(self, Self::Address(addr) if addr.is_at(backend) && addr.is_of(entry.key.protocol))
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(ServiceName { namespace, name, port }) => {
                if let Some(namespace) = namespace {
                    write!(f, "{namespace}/")?;
                }
                f.write_str(name)?;
                port.iter().try_for_each(|port| write!(f, ":{port}"))
            }
            Self::Address(TargetAddress { ip, port, protocol, .. }) => {
                match port {
                    Some(port) => SocketAddr::new(*ip, *port).fmt(f)?,
                    None => ip.fmt(f)?,
                }
                protocol
                    .iter()
                    .try_for_each(|known| write!(f, "/{}", known.name().to_ascii_lowercase()))
            }
        }
    }
}

/// Where a connection would go to: `ADDR:PORT[/tcp|udp]`, TCP if nothing is said.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Destination(pub Flow);

impl FromStr for Destination {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let Some(TargetAddress { ip, port, protocol, .. }) = TargetAddress::parse(text)? else {
            return Err(format!(
                "not an address: use ADDR:PORT, ADDR:PORT/udp or [IPV6]:PORT; `lbctl get services \
                 {text}` shows those of a Service"
            ));
        };
        let port = port.ok_or_else(|| {
            let like = SocketAddr::new(ip, 80);
            let brackets = if ip.is_ipv6() { ", and IPv6 needs brackets" } else { "" };
            format!("a port is missing{brackets}: {like}")
        })?;
        let protocol = protocol.unwrap_or(Protocol::Tcp).number();
        Ok(Self(Flow { peer: SocketAddr::new(ip, port).into(), protocol }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(ip: &str, port: Option<u16>, protocol: Option<Protocol>) -> Target {
        Target::Address(TargetAddress { port, protocol, ..TargetAddress::new(ip.parse().unwrap()) })
    }

    fn name(namespace: Option<&str>, name: &str, port: Option<&str>) -> Target {
        let own = |text: Option<&str>| text.map(str::to_owned);
        Target::Name(ServiceName { namespace: own(namespace), name: name.into(), port: own(port) })
    }

    #[test]
    fn every_form_of_a_target() {
        for (text, target) in [
            ("web", name(None, "web", None)),
            ("web:http", name(None, "web", Some("http"))),
            ("default/web", name(Some("default"), "web", None)),
            ("default/web:80", name(Some("default"), "web", Some("80"))),
            ("10.96.0.10", address("10.96.0.10", None, None)),
            ("10.96.0.10:80", address("10.96.0.10", Some(80), None)),
            ("10.96.0.10:53/UDP", address("10.96.0.10", Some(53), Some(Protocol::Udp))),
            ("10.96.0.10/tcp", address("10.96.0.10", None, Some(Protocol::Tcp))),
            ("::1", address("::1", None, None)),
            ("[::1]", address("::1", None, None)),
            ("[::1]:80", address("::1", Some(80), None)),
            ("[::ffff:10.96.0.10]:80/tcp", address("10.96.0.10", Some(80), Some(Protocol::Tcp))),
        ] {
            let parsed: Target = text.parse().unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!(parsed, target, "{text}");
            assert_eq!(parsed.to_string().parse(), Ok(target), "what is printed is read again");
        }
    }

    #[test]
    fn what_is_no_target_is_refused_with_the_forms_there_are() {
        for text in ["", "/", "a/b/c", "a b", "Web", "ns/", ":80", "[::1]:http", "10.0.0.1:99999"] {
            let error = text.parse::<Target>().unwrap_err();
            assert!(error.contains("ADDR:PORT"), "{text}: {error}");
        }
        let error = "10.0.0.1:80/sctp".parse::<Target>().unwrap_err();
        assert_eq!(error, "`sctp` is not a protocol: use tcp or udp");
    }

    #[test]
    fn a_destination_has_a_port_and_is_tcp_by_default() {
        let flow = |text: &str| text.parse::<Destination>().map(|destination| destination.0);
        let peer = SocketAddr::from(([10, 96, 0, 10], 80)).into();
        let tcp = Flow { peer, protocol: 6 };
        assert_eq!(flow("10.96.0.10:80"), Ok(tcp));
        assert_eq!(flow("[::ffff:10.96.0.10]:80/tcp"), Ok(tcp));
        assert_eq!(flow("10.96.0.10:80/udp"), Ok(Flow { protocol: 17, ..tcp }));
        assert_eq!(
            flow("::1"),
            Err("a port is missing, and IPv6 needs brackets: [::1]:80".to_owned())
        );
        assert!(flow("default/web").unwrap_err().contains("`lbctl get services default/web`"));
    }
}
