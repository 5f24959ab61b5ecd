//! A cluster from YAML, and what becomes of a connection in it.

use std::{
    fmt::Write as _,
    net::{IpAddr, SocketAddr},
};

use lb_agent::sources::dir::Files;
use lb_core::{
    model::{Change, Cidr, Cluster, Frontend, NodeAddr, ObjectRef, Protocol, Scope, Settings},
    policy::{self, BackendSet, Empty, FrontendKind, PacketVerdict, Sender, Served},
};

pub(crate) const POD: &str = "10.0.0.2";
pub(crate) const NODE: &str = "192.168.0.2";
/// Elsewhere.
pub(crate) const STRANGER: &str = "203.0.113.2";
pub(crate) const NODE_ALT: &str = "192.168.1.2";

pub(crate) struct Lab {
    files: Files,
    pub(crate) cluster: Cluster,
}

impl Lab {
    /// On the node `test-node`, with its addresses.
    pub(crate) fn new(yaml: &str) -> Self {
        Self::with(yaml, Settings { node_name: "test-node".into(), ..Settings::default() })
    }

    pub(crate) fn with(yaml: &str, settings: Settings) -> Self {
        let mut lab = Self { files: Files::default(), cluster: Cluster::new(settings) };
        let addresses = "127.0.0.1 ::1 192.168.0.2 192.168.1.2 2001:db8::1 2001:db8:1::2";
        let addresses = addresses.split(' ').map(|ip| ip.parse().unwrap()).collect();
        lab.cluster.apply(Change::LocalAddresses(addresses));
        let node = "{apiVersion: v1, kind: Node, metadata: {name: test-node}, status: {addresses: [\
                    {type: InternalIP, address: 192.168.0.2}, \
                    {type: InternalIP, address: '2001:db8::1'}, \
                    {type: InternalIP, address: 192.168.1.2}, \
                    {type: Hostname, address: test-node}]}}";
        lab.apply("node.yaml", node);
        lab.apply("objects.yaml", yaml);
        lab
    }

    /// The file says this now; returns the Services that it touched.
    pub(crate) fn apply(&mut self, file: &str, yaml: &str) -> Vec<String> {
        self.files.put(file, yaml.as_bytes());
        let listing = self.files.listing();
        assert!(listing.problems.values().flatten().all(|p| p.field != "document"), "{yaml}");
        let changes = listing.changes().into_iter();
        let touched = changes.flat_map(|change| self.cluster.apply(change));
        let mut touched: Vec<_> = touched.map(|name| name.to_string()).collect();
        touched.sort();
        touched.dedup();
        touched
    }

    pub(crate) fn served(&self, name: &str) -> Served {
        let (namespace, name) = name.split_once('/').unwrap();
        policy::serve(&self.cluster, &ObjectRef::new(namespace, name))
    }

    fn sets(&self) -> Vec<BackendSet> {
        let names: Vec<_> = self.cluster.service_names().cloned().collect();
        names.iter().flat_map(|name| policy::serve(&self.cluster, name).local).collect()
    }

    /// What a connection from `client` gets: backends, REJECT, DROP, or nothing if it is left alone.
    pub(crate) fn flow(&self, client: &str, protocol: Protocol, to: &str) -> String {
        let to: SocketAddr = to.parse().unwrap();
        let unspecified = if to.is_ipv4() { "0.0.0.0" } else { "::" };
        let any = SocketAddr::new(unspecified.parse().unwrap(), to.port());
        let frontends = match self.cluster.nodes().nodeport_addresses().get(&to.ip()) {
            None => vec![(to, Scope::Any)],
            Some(NodeAddr::Own | NodeAddr::OwnLoopback) => {
                vec![(to, Scope::Any), (any, Scope::OwnNode)]
            }
            Some(NodeAddr::Other) => {
                vec![(to, Scope::Any), (to, Scope::Node), (any, Scope::OtherNodes)]
            }
        };
        let sets = self.sets();
        let found = frontends.into_iter().find_map(|(addr, scope)| {
            let frontend = Frontend { addr, protocol, scope };
            let mut of = sets.iter().filter(|set| set.frontends.contains(&frontend));
            let found = of.next();
            assert!(of.next().is_none(), "{frontend} is there twice");
            found
        });
        let Some(set) = found else {
            let names: Vec<_> = self.cluster.service_names().cloned().collect();
            let mut known =
                names.iter().flat_map(|name| policy::serve(&self.cluster, name).cluster_ips);
            return if known.any(|ip| ip == to.ip()) { "REJECT" } else { "" }.to_owned();
        };
        let client: IpAddr = client.parse().unwrap();
        if !set.source_ranges.is_empty()
            && !set.source_ranges.iter().any(|range| range.contains(client))
        {
            return "DROP".to_owned();
        }
        match (set.backends.is_empty(), set.empty) {
            (true, Empty::Refuse) => "REJECT".to_owned(),
            (true, Empty::Unreachable) => "DROP".to_owned(),
            (false, _) => {
                set.backends.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
            }
        }
    }

    /// What a packet gets: endpoints, REJECT or DROP, and whether its source is replaced; none if no
    /// frontend is there.
    pub(crate) fn packet(
        &self,
        from: &str,
        protocol: Protocol,
        to: &str,
    ) -> Option<(String, bool)> {
        let to: SocketAddr = to.parse().unwrap();
        let from: IpAddr = from.parse().unwrap();
        let nodes = self.cluster.nodes().nodeport_addresses();
        let pods = ["10.0.0.0/8", "fd00:10::/32"].map(|range| range.parse::<Cidr>().unwrap());
        let sender = if nodes.get(&from) == Some(&NodeAddr::Own) {
            Sender::Node
        } else if pods.iter().any(|range| range.contains(from)) {
            Sender::Pod
        } else {
            Sender::Stranger
        };
        let served = self.cluster.service_names().map(|name| policy::serve(&self.cluster, name));
        let ports: Vec<_> = served.flat_map(|served| served.outside).collect();
        let all = || ports.iter().flat_map(|port| port.frontends.iter().map(move |of| (port, of)));
        let at = |addr, scope| {
            let frontend = Frontend { addr, protocol, scope };
            let mut of = all().filter(|(_, of)| of.frontend == frontend);
            let found = of.next();
            assert!(of.next().is_none(), "{frontend} is there twice");
            found
        };
        let unspecified = if to.is_ipv4() { "0.0.0.0" } else { "::" };
        let any = SocketAddr::new(unspecified.parse().unwrap(), to.port());
        let is_own = nodes.get(&to.ip()) == Some(&NodeAddr::Own);
        let found = at(to, Scope::Any).or_else(|| at(any, Scope::OwnNode).filter(|_| is_own));
        let (port, frontend) = found?;
        assert_eq!((port.ipv4, port.port.protocol), (to.is_ipv4(), protocol));
        let has_ranges =
            frontend.kind == FrontendKind::LoadBalancer && !port.source_ranges.is_empty();
        if has_ranges && !port.source_ranges.iter().any(|range| range.contains(from)) {
            return Some(("DROP".to_owned(), false));
        }
        let route = frontend.route(sender);
        Some(match port.verdict(route.policy) {
            PacketVerdict::Reject => ("REJECT".to_owned(), false),
            PacketVerdict::Drop => ("DROP".to_owned(), false),
            PacketVerdict::Forward(endpoints) => {
                let all: Vec<_> = endpoints.iter().map(ToString::to_string).collect();
                (all.join(", "), route.masquerade)
            }
        })
    }

    /// TCP connections of sockets: name, client, destination, what it gets. The same packet of a
    /// sender whose socket nobody sees must get the same.
    pub(crate) fn tcp(&self, flows: &[(&str, &str, &str, &str)]) {
        for (name, client, to, wanted) in flows {
            assert_eq!(self.flow(client, Protocol::Tcp, to), *wanted, "{name}");
            if let Some((found, _)) = self.packet(client, Protocol::Tcp, to) {
                assert_eq!(found, *wanted, "{name}, a packet");
            }
        }
    }

    /// TCP packets: name, sender, destination, what it gets, and whether it is masqueraded.
    pub(crate) fn packets(&self, flows: &[(&str, &str, &str, &str, bool)]) {
        for (name, from, to, wanted, masquerade) in flows {
            let found = self.packet(from, Protocol::Tcp, to);
            assert_eq!(found, Some(((*wanted).to_owned(), *masquerade)), "{name}");
        }
    }
}

/// A Service, from the fields of its spec, and its load balancer's addresses.
pub(crate) fn service(name: &str, spec: &str, ingress: &str) -> String {
    let (namespace, name) = name.split_once('/').unwrap();
    format!(
        "---\n{{apiVersion: v1, kind: Service, metadata: {{namespace: {namespace}, name: {name}}}, \
         spec: {{{spec}}}, status: {{loadBalancer: {{ingress: [{ingress}]}}}}}}\n"
    )
}

/// A slice of the Service: `p80=80`, and endpoints such as `10.0.1.1 test-node`, behind that
/// `unready`, `draining` or `dead`.
pub(crate) fn slice(name: &str, number: usize, ports: &str, endpoints: &[&str]) -> String {
    let (namespace, service) = name.split_once('/').unwrap();
    let mut text = format!(
        "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{namespace: \
         {namespace}, name: {service}-{number}, labels: {{kubernetes.io/service-name: {service}}}}}\n"
    );
    let family = if endpoints.iter().any(|e| e.contains(':')) { "IPv6" } else { "IPv4" };
    write!(text, "addressType: {family}\nports: [").unwrap();
    for port in ports.split_whitespace() {
        let (name, port) = port.split_once('=').unwrap();
        let (port, protocol) = port.split_once('/').unwrap_or((port, "TCP"));
        write!(text, "{{name: '{name}', port: {port}, protocol: {protocol}}}, ").unwrap();
    }
    text.push_str("]\nendpoints:\n");
    for endpoint in endpoints {
        let mut words = endpoint.split_whitespace();
        let (addr, node) = (words.next().unwrap(), words.next().unwrap());
        let conditions = match words.next() {
            None => "",
            Some("unready") => "ready: false, serving: false, terminating: false",
            Some("lagging") => "ready: false, serving: true, terminating: false",
            Some("draining") => "ready: false, serving: true, terminating: true",
            Some("dead") => "ready: false, serving: false, terminating: true",
            Some(other) => panic!("{other}"),
        };
        writeln!(
            text,
            "- {{addresses: ['{addr}'], nodeName: {node}, conditions: {{{conditions}}}}}"
        )
        .unwrap();
    }
    text
}

/// Another node with an address.
pub(crate) fn node(name: &str, ip: &str) -> String {
    format!(
        "---\n{{apiVersion: v1, kind: Node, metadata: {{name: {name}}}, \
         status: {{addresses: [{{type: InternalIP, address: '{ip}'}}]}}}}\n"
    )
}
