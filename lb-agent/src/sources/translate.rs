//! Kubernetes objects in our words. Every rule about their fields is here, and pure.
//!
//! What cannot be used becomes a [`Problem`] and is left out; the rest of the object counts.

mod external;
mod names;
mod node;

use std::{collections::BTreeSet, net::IpAddr, num::NonZeroU16, sync::Arc, time::SystemTime};

use k8s_openapi::{
    api::{
        core::v1::{Service as KubeService, ServicePort as KubePort, ServiceSpec},
        discovery::v1::{
            Endpoint as KubeEndpoint, EndpointConditions, EndpointHints, EndpointPort,
            EndpointSlice,
        },
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
    jiff::Timestamp,
};
use lb_core::{
    model::{
        Conditions, Endpoint, Hints, ObjectRef, Protocol, Service, ServicePort, Slice, SlicePort,
        Trigger, parse_ip,
    },
    policy::is_connectable,
};

use self::names::Sort;
pub use self::node::node;
use super::Problem;

/// Another proxy is to serve the Service (kube-proxy A1).
const PROXY_NAME: &str = "service.kubernetes.io/service-proxy-name";
/// The slice belongs to a headless Service (A2).
const HEADLESS: &str = "service.kubernetes.io/headless";
/// The Service that a slice belongs to (B2).
const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// When the pod or Service changed that made the slice change.
const TRIGGERED: &str = "endpoints.kubernetes.io/last-change-trigger-time";

/// A translation and what was wrong with the object.
pub type Translated<T> = (Option<T>, Vec<Problem>);

/// Namespace and name; files may leave the namespace out, as `kubectl apply` does.
pub fn object_ref(meta: &ObjectMeta) -> ObjectRef {
    let namespace = meta.namespace.as_deref().unwrap_or("default");
    ObjectRef::new(namespace, meta.name.as_deref().unwrap_or_default())
}

fn check_name(name: &ObjectRef, sort: Sort) -> Result<(), Problem> {
    let follows = "the object is ignored";
    sort.check("metadata.name", &name.name, follows)?;
    Sort::Label.check("metadata.namespace", &name.namespace, follows)
}

fn label<'a>(meta: &'a ObjectMeta, key: &str) -> Option<&'a str> {
    meta.labels.as_ref()?.get(key).map(String::as_str)
}

/// The proxy that is to serve the Service; none: the one that was given no name (A1).
pub fn proxy_name(object: &KubeService) -> Option<&str> {
    label(&object.metadata, PROXY_NAME)
}

/// A Service, whichever proxy is to serve it; none if it asks for no load balancing: headless or
/// ExternalName (A4).
pub fn service(object: &KubeService) -> Translated<Service> {
    let name = object_ref(&object.metadata);
    if let Err(problem) = check_name(&name, Sort::Label) {
        return (None, vec![problem]);
    }
    let Some(spec) = &object.spec else { return (None, vec![]) };
    let cluster_ip = spec.cluster_ip.as_deref().unwrap_or_default();
    if matches!(cluster_ip, "" | "None") || spec.type_.as_deref() == Some("ExternalName") {
        return (None, vec![]);
    }

    let mut problems = Vec::new();
    let cluster_ips = cluster_ips(spec, cluster_ip, &mut problems);
    let ports = service_ports(spec, &mut problems);
    let created = object.metadata.creation_timestamp.as_ref().map_or(0, |time| time.0.as_second());
    let mut service = Service { created, cluster_ips, ports, ..Service::default() };
    external::add(object, spec, &mut service, &mut problems);
    (Some(service), problems)
}

/// What is wrong with a Service that has no cluster IP where nobody will give it one: in a file.
pub fn without_address(object: &KubeService) -> Option<Problem> {
    let spec = object.spec.as_ref()?;
    let has_address = spec.cluster_ip.as_ref().is_some_and(|ip| !ip.is_empty());
    (!has_address && spec.type_.as_deref() != Some("ExternalName")).then(|| {
        let remedy = "the Service is not served: give it an address, which in a cluster the API \
                      server does, or `None` if it is headless";
        Problem::new("spec.clusterIP", "is missing", remedy)
    })
}

/// The cluster IPs, one of a family.
fn cluster_ips(spec: &ServiceSpec, cluster_ip: &str, problems: &mut Vec<Problem>) -> Vec<IpAddr> {
    let mut cluster_ips: Vec<IpAddr> = Vec::with_capacity(2);
    // `clusterIPs` repeats `clusterIP` as its first element, wherever it is filled in.
    let listed = spec.cluster_ips.as_deref().unwrap_or_default();
    let (field, texts): (_, Vec<&str>) = if listed.is_empty() {
        ("spec.clusterIP", vec![cluster_ip])
    } else {
        ("spec.clusterIPs", listed.iter().map(String::as_str).collect())
    };
    for (i, text) in texts.into_iter().enumerate() {
        let field = if listed.is_empty() { field.to_owned() } else { format!("{field}[{i}]") };
        match external::cluster_ip(text) {
            Ok(ip) if cluster_ips.iter().any(|other| other.is_ipv4() == ip.is_ipv4()) => {
                let what = format!("{text} is a second address of its family");
                problems.push(Problem::new(field, what, "it is not served: give one of each"));
            }
            Ok(ip) if is_family_of(spec, ip) => cluster_ips.push(ip),
            Ok(_) => {}
            Err(what) => {
                problems.push(Problem::new(field, what, "it is not served: correct the address"));
            }
        }
    }

    cluster_ips
}

/// Whether the Service has the family; one that does not say has those of its addresses (A5).
fn is_family_of(spec: &ServiceSpec, ip: IpAddr) -> bool {
    let family = if ip.is_ipv4() { "IPv4" } else { "IPv6" };
    let families = spec.ip_families.as_deref().unwrap_or_default();
    families.is_empty() || families.iter().any(|name| name == family)
}

/// The ports, none of them twice.
fn service_ports(spec: &ServiceSpec, problems: &mut Vec<Problem>) -> Vec<ServicePort> {
    let mut ports = Vec::with_capacity(spec.ports.as_ref().map_or(0, Vec::len));
    let mut seen = BTreeSet::new();
    let mut node_ports = BTreeSet::new();
    for (i, port) in spec.ports.iter().flatten().enumerate() {
        match service_port(port) {
            Ok(mut port) => {
                if !port.protocol.has_sockets() {
                    let what = format!("{} is not served: no hook sees its sockets", port.protocol);
                    let remedy = "the other ports are served: leave this one to kube-proxy, or use \
                                  TCP or UDP";
                    let field = format!("spec.ports[{i}].protocol");
                    problems.push(Problem::new(field, what, remedy));
                }
                if let Some(number) = port.node_port
                    && !node_ports.insert((port.protocol, number))
                {
                    let what = format!("{number}/{} is there twice", port.protocol);
                    let remedy = "the first one is served: remove or renumber the other";
                    let field = format!("spec.ports[{i}].nodePort");
                    problems.push(Problem::new(field, what, remedy));
                    port.node_port = None;
                }
                if seen.insert((port.protocol, port.number)) {
                    ports.push(port);
                } else {
                    let what = format!("{}/{} is there twice", port.number, port.protocol);
                    let remedy = "the first one is served: remove or renumber the other";
                    problems.push(Problem::new(format!("spec.ports[{i}].port"), what, remedy));
                }
            }
            Err(problem) => problems
                .push(Problem { field: format!("spec.ports[{i}].{}", problem.field), ..problem }),
        }
    }
    ports
}

fn service_port(port: &KubePort) -> Result<ServicePort, Problem> {
    let name = port_name(port.name.as_deref(), "the port is not served")?;
    let protocol = protocol(port.protocol.as_deref())?;
    let number = number(port.port).map_err(|what| {
        Problem::new("port", what, "the port is not served: use a number from 1 to 65535")
    })?;
    let node_port = port.node_port.filter(|number| *number != 0).map(|number| {
        let number = u16::try_from(number).ok().and_then(NonZeroU16::new);
        number.ok_or_else(|| {
            let what = format!("{} is no port number", port.node_port.unwrap_or_default());
            Problem::new("nodePort", what, "the port is not served: use a number from 1 to 65535")
        })
    });
    Ok(ServicePort { name, protocol, number, node_port: node_port.transpose()? })
}

/// The name of a port, which may be empty.
fn port_name(name: Option<&str>, follows: &str) -> Result<Arc<str>, Problem> {
    let name = name.unwrap_or_default();
    if !name.is_empty() {
        Sort::Value.check("name", name, follows)?;
    }
    Ok(name.into())
}

fn protocol(text: Option<&str>) -> Result<Protocol, Problem> {
    match text.unwrap_or("TCP") {
        "TCP" => Ok(Protocol::Tcp),
        "UDP" => Ok(Protocol::Udp),
        "SCTP" => Ok(Protocol::Sctp),
        other => Err(Problem::new(
            "protocol",
            format!("{other:?} is no protocol"),
            "the port is not served: use TCP or UDP",
        )),
    }
}

fn number(number: i32) -> Result<u16, String> {
    u16::try_from(number)
        .ok()
        .filter(|number| *number != 0)
        .ok_or_else(|| format!("{number} is no port number"))
}

/// An address as kube-proxy reads it (A9): leading zeros are decimal (`010.0.0.1` is 10.0.0.1), and
/// spaces around it do not matter. An IPv4-mapped address is an IPv4 one.
pub fn address(text: &str) -> Result<IpAddr, String> {
    let text = text.trim();
    match parse_ip(text).map(|ip| ip.to_canonical()) {
        None => Err(format!("{text:?} is no IP address")),
        Some(ip) if !is_connectable(ip) => Err(format!("{ip} cannot be connected to")),
        Some(ip) => Ok(ip),
    }
}

/// An EndpointSlice; none if it serves no Service (A2, B1, B2).
pub fn slice(object: &EndpointSlice) -> Translated<Slice> {
    let name = object_ref(&object.metadata);
    if let Err(problem) = check_name(&name, Sort::Subdomain) {
        return (None, vec![problem]);
    }
    if label(&object.metadata, HEADLESS).is_some() {
        return (None, vec![]);
    }
    let Some(service) = label(&object.metadata, SERVICE_NAME).filter(|name| !name.is_empty())
    else {
        let field = format!("metadata.labels[{SERVICE_NAME}]");
        let remedy = "the slice is ignored: label it with the name of its Service";
        return (None, vec![Problem::new(field, "is missing", remedy)]);
    };
    let field = format!("metadata.labels[{SERVICE_NAME}]");
    if let Err(problem) = Sort::Label.check(&field, service, "the slice is ignored") {
        return (None, vec![problem]);
    }
    let ipv4 = match object.address_type.as_str() {
        "IPv4" => true,
        "IPv6" => false,
        other => {
            let what = format!("{other:?} cannot be load-balanced");
            let remedy = "the slice is ignored: use IPv4 or IPv6";
            return (None, vec![Problem::new("addressType", what, remedy)]);
        }
    };

    let mut problems = Vec::new();
    let mut ports = Vec::with_capacity(object.ports.as_ref().map_or(0, Vec::len));
    for (i, port) in object.ports.iter().flatten().enumerate() {
        match slice_port(port) {
            Ok(port) => ports.push(port),
            Err(problem) => {
                let field = format!("ports[{i}].{}", problem.field);
                problems.push(Problem { field, ..problem });
            }
        }
    }
    let mut endpoints = Vec::with_capacity(object.endpoints.as_ref().map_or(0, Vec::len));
    let mut known = Vec::new();
    for (i, endpoint) in object.endpoints.iter().flatten().enumerate() {
        match self::endpoint(endpoint, ipv4, &mut known) {
            Ok(endpoint) => endpoints.extend(endpoint),
            Err(problem) => {
                let field = format!("endpoints[{i}].{}", problem.field);
                problems.push(Problem { field, ..problem });
            }
        }
    }
    let service = ObjectRef { namespace: name.namespace, name: service.into() };
    let trigger = Trigger { at: triggered(&object.metadata), ipv6: !ipv4 };
    (Some(Slice { service, ports, endpoints, trigger }), problems)
}

/// The time is not worth a complaint: it is measured with, nothing depends on it.
fn triggered(meta: &ObjectMeta) -> Option<SystemTime> {
    let text = meta.annotations.as_ref()?.get(TRIGGERED)?;
    Some(text.parse::<Timestamp>().ok()?.into())
}

fn slice_port(port: &EndpointPort) -> Result<SlicePort, Problem> {
    let name = port_name(port.name.as_deref(), "the port is ignored")?;
    let protocol = protocol(port.protocol.as_deref())?;
    // "All ports", says the API of a port that is nil; no proxy implements it (B4).
    let Some(port) = port.port else {
        let remedy = "the port is ignored: give a number";
        return Err(Problem::new("port", "is missing", remedy));
    };
    let number = number(port).map_err(|what| {
        Problem::new("port", what, "the port is ignored: use a number from 1 to 65535")
    })?;
    Ok(SlicePort { name, protocol, number })
}

/// An endpoint: its first address, as the API says of all of them that they are the same pod (B3).
/// `known` are the hints of the others, which mostly are the same.
fn endpoint(
    endpoint: &KubeEndpoint,
    ipv4: bool,
    known: &mut Vec<Arc<Hints>>,
) -> Result<Option<Endpoint>, Problem> {
    let Some(text) = endpoint.addresses.first() else { return Ok(None) };
    let wrong = |what| {
        let remedy =
            "the endpoint is ignored: correct the address, or put it into a slice of its type";
        Problem::new("addresses[0]", what, remedy)
    };
    let addr = address(text).map_err(wrong)?;
    if addr.is_ipv4() != ipv4 {
        let family = if ipv4 { "IPv4" } else { "IPv6" };
        return Err(wrong(format!("{addr} is no {family} address, as addressType says")));
    }
    let EndpointConditions { ready, serving, terminating } =
        endpoint.conditions.clone().unwrap_or_default();
    let conditions = Conditions {
        ready: ready.unwrap_or(true),
        serving: serving.unwrap_or(true),
        terminating: terminating.unwrap_or(false),
    };
    let follows = "the endpoint is ignored";
    let node = endpoint.node_name.as_deref().filter(|name| !name.is_empty());
    node.map_or(Ok(()), |node| Sort::NodeRef.check("nodeName", node, follows))?;
    let hints = endpoint.hints.as_ref().map(|hints| self::hints(hints, known, follows));
    let hints = hints.transpose()?.flatten();
    Ok(Some(Endpoint { addr, conditions, node: node.map(Arc::from), hints }))
}

/// Hints for zones and nodes (B12).
fn hints(
    hints: &EndpointHints,
    known: &mut Vec<Arc<Hints>>,
    follows: &str,
) -> Result<Option<Arc<Hints>>, Problem> {
    let (zones, nodes) = (hints.for_zones.iter().flatten(), hints.for_nodes.iter().flatten());
    for (i, zone) in zones.clone().enumerate() {
        Sort::Value.check(&format!("hints.forZones[{i}].name"), &zone.name, follows)?;
    }
    for (i, node) in nodes.clone().enumerate() {
        Sort::NodeRef.check(&format!("hints.forNodes[{i}].name"), &node.name, follows)?;
    }
    let zones = zones.map(|zone| zone.name.as_str().into()).collect();
    let hints = Hints { zones, nodes: nodes.map(|node| node.name.as_str().into()).collect() };
    if hints == Hints::default() {
        return Ok(None);
    }
    if let Some(same) = known.iter().find(|known| ***known == hints) {
        return Ok(Some(same.clone()));
    }
    let hints = Arc::new(hints);
    // Hints for nodes differ from endpoint to endpoint: no use looking for the same ones for long.
    if known.len() < 16 {
        known.push(hints.clone());
    }
    Ok(Some(hints))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_time_of_a_trigger() {
        let at = |text: &str| {
            let annotations = Some([(TRIGGERED.to_owned(), text.to_owned())].into());
            triggered(&ObjectMeta { annotations, ..ObjectMeta::default() })
        };
        let second = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        assert_eq!(at("2023-11-14T22:13:20Z"), Some(second));
        assert_eq!(at("2023-11-14T23:13:20.5+01:00"), Some(second + Duration::from_millis(500)));
        for text in ["", "yesterday", "2023-11-14"] {
            assert_eq!(at(text), None, "{text}");
        }
        assert_eq!(triggered(&ObjectMeta::default()), None);
    }

    #[test]
    fn addresses_are_read_as_kube_proxy_does() {
        for (text, ip) in [
            ("10.96.0.10", "10.96.0.10"),
            ("172.30.0.041", "172.30.0.41"),
            ("010.00.000.010", "10.0.0.10"),
            (" 10.0.0.1 ", "10.0.0.1"),
            ("fd00::1", "fd00::1"),
            ("::ffff:10.0.0.1", "10.0.0.1"),
        ] {
            assert_eq!(address(text), Ok(ip.parse().unwrap()), "{text}");
        }
        for text in
            ["", "None", "10.0.0", "10.0.0.256", "10.0.0.1.2", "10.0.0.0x1", "10..0.1", "1.2.3.+4"]
        {
            let error = address(text).unwrap_err();
            assert!(error.contains("is no IP address"), "{text}: {error}");
        }
        for text in ["0.0.0.0", "::", "224.0.0.1", "ff02::1"] {
            assert!(address(text).unwrap_err().contains("cannot be connected to"), "{text}");
        }
    }
}
