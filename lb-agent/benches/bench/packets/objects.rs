//! The objects of the benchmark, as an API server has them: those of `cluster`, with load balancers'
//! addresses, and node ports as far as these go.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use anyhow::{Context as _, Result};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde_json::{Value, json};

use super::network::{NODE, marked};
use crate::cluster::{PORT, Shape, TARGET, pod_ip};

/// Of each Service.
pub(super) const ENDPOINTS: u32 = 10;
/// How many Services have a node port: the default range has room for 2,768.
const NODE_PORTS: u32 = 2_700;
const FIRST_NODE_PORT: u16 = 30_000;
/// The first address of a load balancer; all are in 198.18.0.0/15.
const FIRST: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);
/// The name of the node.
pub(super) const NODE_NAME: &str = "bench";

/// Which endpoints a Service has.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Edition {
    /// Its own.
    Plain,
    /// A marked one besides.
    Added,
    /// A marked one in the place of the last.
    Replaced,
}

/// A cluster of so many Services.
pub(super) const fn shape(services: u32) -> Shape {
    Shape { first: 0, services, endpoints: ENDPOINTS, dual_stack: false, protocol: "TCP" }
}

/// Service `i`, which may be used from `ranges`; none: from anywhere.
pub(super) fn service(shape: Shape, i: u32, ranges: &[&str]) -> Result<Value> {
    let mut value = serde_json::to_value(shape.service(i))?;
    let spec = value["spec"].as_object_mut().context("a Service has a spec")?;
    spec.insert("type".to_owned(), json!("LoadBalancer"));
    spec.insert("externalTrafficPolicy".to_owned(), json!("Cluster"));
    spec.insert("internalTrafficPolicy".to_owned(), json!("Cluster"));
    spec.insert("sessionAffinity".to_owned(), json!("None"));
    spec.insert("ipFamilies".to_owned(), json!(["IPv4"]));
    spec.insert("ipFamilyPolicy".to_owned(), json!("SingleStack"));
    spec.insert("allocateLoadBalancerNodePorts".to_owned(), json!(node_port(i).is_some()));
    if !ranges.is_empty() {
        spec.insert("loadBalancerSourceRanges".to_owned(), json!(ranges));
    }
    if let Some(port) = node_port(i) {
        value["spec"]["ports"][0]["nodePort"] = json!(port.port());
    }
    let ingress = json!({ "ip": load_balancer(i).ip().to_string(), "ipMode": "VIP" });
    value["status"] = json!({ "loadBalancer": { "ingress": [ingress] } });
    Ok(of_kind(value, "v1", "Service"))
}

/// The slice of Service `i`.
pub(super) fn slice(shape: Shape, i: u32, edition: Edition) -> Result<Value> {
    let mut slice: EndpointSlice = shape.slice(i, true, ENDPOINTS, 0);
    let endpoints = slice.endpoints.as_mut().context("a slice has endpoints")?;
    let mut another = endpoints.last().context("a Service has endpoints")?.clone();
    another.addresses = vec![marked(i).to_string()];
    match edition {
        Edition::Plain => {}
        Edition::Added => endpoints.push(another),
        Edition::Replaced => {
            endpoints.pop();
            endpoints.push(another);
        }
    }
    Ok(of_kind(serde_json::to_value(slice)?, "discovery.k8s.io/v1", "EndpointSlice"))
}

/// The one node.
pub(super) fn node() -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": { "name": NODE_NAME, "uid": "node", "labels": { "kubernetes.io/hostname": NODE_NAME } },
        "status": { "addresses": [{ "type": "InternalIP", "address": NODE.to_string() }] },
    })
}

/// Where Service `i` is for clients outside.
pub(super) fn load_balancer(i: u32) -> SocketAddr {
    (IpAddr::V4(Ipv4Addr::from_bits(FIRST.to_bits() + i)), PORT).into()
}

/// Where it is at the node, if it has a node port.
pub(super) fn node_port(i: u32) -> Option<SocketAddr> {
    let offset = u16::try_from(i).ok().filter(|_| i < NODE_PORTS)?;
    Some((IpAddr::V4(NODE), FIRST_NODE_PORT + offset).into())
}

/// One of its endpoints, without a Service.
pub(super) fn endpoint(i: u32) -> SocketAddr {
    (pod_ip(i * ENDPOINTS, 0, true), TARGET).into()
}

/// How many of so many Services have a node port.
pub(super) fn node_ports(services: u32) -> u32 {
    services.min(NODE_PORTS)
}

fn of_kind(mut value: Value, version: &str, kind: &str) -> Value {
    value["apiVersion"] = json!(version);
    value["kind"] = json!(kind);
    let name = value["metadata"]["name"].clone();
    value["metadata"]["uid"] = name;
    value
}
