//! The cluster in our words: no Kubernetes type, no map.
//!
//! [`Cluster`] is the index of all that the source has said so far. It answers two questions: which
//! Services does a change touch, and what is known of a Service. A change touches its own Service
//! only, and nothing at all if it says what was known already.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use lb_common::abi;

/// Namespace and name of an object.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct ObjectRef {
    /// The namespace.
    pub namespace: Arc<str>,
    /// The name.
    pub name: Arc<str>,
}

impl ObjectRef {
    /// From its parts.
    pub fn new(namespace: impl Into<Arc<str>>, name: impl Into<Arc<str>>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for ObjectRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// A transport protocol that the datapath serves. SCTP sockets run no hook that it could use.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl Protocol {
    /// The IP protocol number.
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => abi::TCP,
            Self::Udp => abi::UDP,
        }
    }

    /// The inverse of [`Protocol::number`].
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            abi::TCP => Some(Self::Tcp),
            abi::UDP => Some(Self::Udp),
            _ => None,
        }
    }

    /// As Kubernetes writes it: `TCP`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A Service that asks for load balancing: one with a cluster IP.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Service {
    /// Creation time, seconds since 1970; 0 if unknown. The older of two claimants keeps an address.
    pub created: i64,
    /// The cluster IPs, at most one of each family.
    pub cluster_ips: Vec<IpAddr>,
    /// The ports.
    pub ports: Vec<ServicePort>,
}

/// One port of a Service.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ServicePort {
    /// Its name: what ties it to ports of EndpointSlices. Empty if the Service has one port only.
    pub name: Arc<str>,
    /// Its protocol.
    pub protocol: Protocol,
    /// The port that clients dial.
    pub number: u16,
}

/// One EndpointSlice.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Slice {
    /// The Service it belongs to.
    pub service: ObjectRef,
    /// The ports that each endpoint of the slice serves.
    pub ports: Vec<SlicePort>,
    /// The endpoints, all of one family.
    pub endpoints: Vec<Endpoint>,
}

/// One port of an EndpointSlice.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct SlicePort {
    /// The name of the Service's port it stands for.
    pub name: Arc<str>,
    /// Its protocol.
    pub protocol: Protocol,
    /// The port that the endpoint listens on.
    pub number: u16,
}

/// One endpoint of an EndpointSlice.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Endpoint {
    /// Its address.
    pub addr: IpAddr,
    /// Its conditions.
    pub conditions: Conditions,
}

/// What is said of an endpoint's state; `nil` taken as kube-proxy B6 does.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Conditions {
    /// May take new connections.
    pub ready: bool,
    /// Answers, though perhaps not for long.
    pub serving: bool,
    /// On its way out.
    pub terminating: bool,
}

/// What a source says. `Listed*` is the whole of a list: what it lacks is gone.
#[derive(Clone, Debug)]
pub enum Change {
    /// A Service appeared, changed or (`None`) went, or no longer asks for load balancing.
    Service(ObjectRef, Option<Service>),
    /// An EndpointSlice appeared, changed or went.
    Slice(ObjectRef, Option<Slice>),
    /// All Services there are.
    ListedServices(BTreeMap<ObjectRef, Service>),
    /// All EndpointSlices there are.
    ListedSlices(BTreeMap<ObjectRef, Slice>),
}

/// All Services and EndpointSlices, by name and by Service.
#[derive(Debug, Default)]
pub struct Cluster {
    services: BTreeMap<ObjectRef, Service>,
    /// By Service, then by name of the slice: the order in which endpoints are united. One map, not
    /// one for each Service, which would have room for eleven slices where there is one.
    slices: BTreeMap<(ObjectRef, Arc<str>), Slice>,
    /// The Service under which each slice stands in `slices`: its label may change.
    filed: HashMap<ObjectRef, ObjectRef>,
    services_listed: bool,
    slices_listed: bool,
}

impl Cluster {
    /// Takes a change in; returns the Services for which something is different now.
    pub fn apply(&mut self, change: Change) -> BTreeSet<ObjectRef> {
        let mut touched = BTreeSet::new();
        match change {
            Change::Service(name, service) => self.put_service(name, service, &mut touched),
            Change::Slice(name, slice) => self.put_slice(name, slice, &mut touched),
            Change::ListedServices(mut listed) => {
                let gone: Vec<_> = self
                    .services
                    .keys()
                    .filter(|name| !listed.contains_key(name))
                    .cloned()
                    .collect();
                for name in gone {
                    self.put_service(name, None, &mut touched);
                }
                while let Some((name, service)) = listed.pop_first() {
                    self.put_service(name, Some(service), &mut touched);
                }
                self.services_listed = true;
            }
            Change::ListedSlices(mut listed) => {
                let gone: Vec<_> =
                    self.filed.keys().filter(|name| !listed.contains_key(name)).cloned().collect();
                for name in gone {
                    self.put_slice(name, None, &mut touched);
                }
                while let Some((name, slice)) = listed.pop_first() {
                    self.put_slice(name, Some(slice), &mut touched);
                }
                self.slices_listed = true;
            }
        }
        touched
    }

    fn put_service(
        &mut self,
        name: ObjectRef,
        service: Option<Service>,
        touched: &mut BTreeSet<ObjectRef>,
    ) {
        if self.services.get(&name) == service.as_ref() {
            return;
        }
        match service {
            Some(service) => self.services.insert(name.clone(), service),
            None => self.services.remove(&name),
        };
        touched.insert(name);
    }

    fn put_slice(
        &mut self,
        name: ObjectRef,
        slice: Option<Slice>,
        touched: &mut BTreeSet<ObjectRef>,
    ) {
        let before = self.filed.get(&name).map(|service| (service.clone(), name.name.clone()));
        let known = before.as_ref().and_then(|place| self.slices.get(place));
        if known == slice.as_ref() {
            return;
        }
        if let Some(place) = before {
            self.slices.remove(&place);
            self.filed.remove(&name);
            touched.insert(place.0);
        }
        if let Some(slice) = slice {
            let service = slice.service.clone();
            self.filed.insert(name.clone(), service.clone());
            self.slices.insert((service.clone(), name.name), slice);
            touched.insert(service);
        }
    }

    /// Whether both lists are known whole. Before that, nothing may be written (kube-proxy M1).
    pub const fn complete(&self) -> bool {
        self.services_listed && self.slices_listed
    }

    /// The names of all Services.
    pub fn service_names(&self) -> impl Iterator<Item = &ObjectRef> {
        self.services.keys()
    }

    /// A Service.
    pub fn service(&self, name: &ObjectRef) -> Option<&Service> {
        self.services.get(name)
    }

    /// The slices of a Service, in the order of their names.
    pub fn slices<'a>(&'a self, service: &'a ObjectRef) -> impl Iterator<Item = &'a Slice> {
        let first = (service.clone(), Arc::default());
        let rest = self.slices.range(first..);
        rest.take_while(move |((of, _), _)| of == service).map(|(_, slice)| slice)
    }
}

/// One port of one Service: what an id in the maps stands for. Sorts by Service first.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct PortRef {
    /// The Service.
    pub service: ObjectRef,
    /// Name of the port; may be empty.
    pub port: Arc<str>,
    /// Protocol of the port.
    pub protocol: Protocol,
}

impl fmt::Display for PortRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.service.fmt(f)?;
        if !self.port.is_empty() {
            write!(f, ":{}", self.port)?;
        }
        Ok(())
    }
}

/// What the address of a [`Frontend`] stands for.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Scope {
    /// For itself.
    #[default]
    Any,
    /// For every address of this node; it is the unspecified one of its family.
    OwnNode,
    /// For every address of every other node; it is the unspecified one of its family.
    OtherNodes,
    /// For itself, an address of another node; goes before `OtherNodes`.
    Node,
}

impl Scope {
    /// As it stands in a key of the maps.
    pub const fn code(self) -> u8 {
        match self {
            Self::Any => abi::SCOPE_ANY,
            Self::OwnNode => abi::SCOPE_OWN_NODE,
            Self::OtherNodes => abi::SCOPE_OTHER_NODES,
            Self::Node => abi::SCOPE_NODE,
        }
    }

    /// The inverse of [`Scope::code`].
    pub const fn from_code(code: u8) -> Option<Self> {
        match code {
            abi::SCOPE_ANY => Some(Self::Any),
            abi::SCOPE_OWN_NODE => Some(Self::OwnNode),
            abi::SCOPE_OTHER_NODES => Some(Self::OtherNodes),
            abi::SCOPE_NODE => Some(Self::Node),
            _ => None,
        }
    }
}

/// An address that clients dial.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Frontend {
    /// Address and port.
    pub addr: SocketAddr,
    /// Protocol.
    pub protocol: Protocol,
    /// What the address stands for.
    pub scope: Scope,
}

impl Frontend {
    /// An address that stands for itself.
    pub const fn new(addr: SocketAddr, protocol: Protocol) -> Self {
        Self { addr, protocol, scope: Scope::Any }
    }
}

impl fmt::Display for Frontend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let protocol = self.protocol.name().to_ascii_lowercase();
        let (addr, port) = (self.addr, self.addr.port());
        let family = if addr.is_ipv4() { "4" } else { "6" };
        match self.scope {
            Scope::Any => write!(f, "{addr}/{protocol}"),
            Scope::OwnNode => write!(f, "node{family}:{port}/{protocol}"),
            Scope::OtherNodes => write!(f, "nodes{family}:{port}/{protocol}"),
            Scope::Node => write!(f, "node {addr}/{protocol}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(name: &str) -> ObjectRef {
        ObjectRef::new("default", name)
    }

    fn service(ip: &str) -> Service {
        Service { created: 0, cluster_ips: vec![ip.parse().unwrap()], ports: vec![] }
    }

    fn slice(of: &str, addr: &str) -> Slice {
        let conditions = Conditions { ready: true, serving: true, terminating: false };
        Slice {
            service: name(of),
            ports: vec![],
            endpoints: vec![Endpoint { addr: addr.parse().unwrap(), conditions }],
        }
    }

    #[test]
    fn a_change_touches_its_own_service_and_only_if_it_says_something_new() {
        let mut cluster = Cluster::default();
        let put = |ip: &str| Change::Service(name("a"), Some(service(ip)));
        assert_eq!(cluster.apply(put("10.0.0.1")), [name("a")].into());
        assert_eq!(cluster.apply(put("10.0.0.1")), [].into());
        assert_eq!(cluster.apply(put("10.0.0.2")), [name("a")].into());
        assert_eq!(cluster.apply(Change::Service(name("b"), None)), [].into());
        assert_eq!(cluster.apply(Change::Slice(name("x"), None)), [].into());
    }

    #[test]
    fn a_slice_that_moves_touches_both_services() {
        let mut cluster = Cluster::default();
        cluster.apply(Change::Slice(name("x"), Some(slice("a", "10.0.0.1"))));
        let touched = cluster.apply(Change::Slice(name("x"), Some(slice("b", "10.0.0.1"))));
        assert_eq!(touched, [name("a"), name("b")].into());
        assert_eq!(cluster.slices(&name("a")).count(), 0);
        assert_eq!(cluster.slices(&name("b")).count(), 1);
        assert_eq!(cluster.apply(Change::Slice(name("x"), None)), [name("b")].into());
        assert!(cluster.slices.is_empty() && cluster.filed.is_empty(), "nothing is kept of it");
    }

    #[test]
    fn a_list_takes_away_what_it_lacks() {
        let mut cluster = Cluster::default();
        cluster.apply(Change::Service(name("a"), Some(service("10.0.0.1"))));
        cluster.apply(Change::Slice(name("x"), Some(slice("a", "10.1.0.1"))));
        assert!(!cluster.complete());
        let listed = [(name("b"), service("10.0.0.2"))].into();
        assert_eq!(cluster.apply(Change::ListedServices(listed)), [name("a"), name("b")].into());
        assert!(!cluster.complete());
        assert_eq!(cluster.apply(Change::ListedSlices([].into())), [name("a")].into());
        assert!(cluster.complete());
    }
}
