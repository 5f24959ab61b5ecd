//! What a Service says about clients that do not dial its cluster IP, and about who may stay where.

use std::{
    net::IpAddr,
    num::{NonZeroU16, NonZeroU32},
};

use k8s_openapi::api::core::v1::{Service as KubeService, ServiceSpec};
use lb_core::model::{Cidr, Service};

use super::{Problem, address};

/// How long a client stays with its backend if it is not said, seconds (H2).
const AFFINITY: NonZeroU32 = NonZeroU32::new(10_800).expect("three hours");
/// The longest that the API allows.
const LONGEST_AFFINITY: u32 = 86_400;

/// Adds it.
pub(super) fn add(
    object: &KubeService,
    spec: &ServiceSpec,
    service: &mut Service,
    problems: &mut Vec<Problem>,
) {
    for (i, text) in spec.external_ips.iter().flatten().enumerate() {
        let field = format!("spec.externalIPs[{i}]");
        service.external_ips.extend(external(text, field, problems));
    }
    let ingress = object.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    let ingress = ingress.and_then(|balancer| balancer.ingress.as_deref()).unwrap_or_default();
    for (i, ingress) in ingress.iter().enumerate() {
        // "Proxy" wants to see the traffic (E11); a host name is for resolvers.
        if let Some(text) = ingress.ip.as_deref().filter(|ip| !ip.is_empty())
            && matches!(ingress.ip_mode.as_deref(), None | Some("VIP"))
        {
            let field = format!("status.loadBalancer.ingress[{i}].ip");
            service.load_balancer_ips.extend(external(text, field, problems));
        }
    }
    let kind = spec.type_.as_deref().unwrap_or("ClusterIP");
    // Of a Service that has no traffic from outside, the field says nothing (D1).
    let has_external = match kind {
        "LoadBalancer" | "NodePort" => true,
        "ClusterIP" => spec.external_ips.as_ref().is_some_and(|ips| !ips.is_empty()),
        _ => false,
    };
    let is_local = |policy: Option<&str>| policy == Some("Local");
    service.external_local = has_external && is_local(spec.external_traffic_policy.as_deref());
    service.internal_local = is_local(spec.internal_traffic_policy.as_deref());
    service.affinity = affinity(spec, problems);
    for (i, text) in spec.load_balancer_source_ranges.iter().flatten().enumerate() {
        match text.parse::<Cidr>() {
            Ok(range) => service.source_ranges.push(range),
            Err(what) => {
                let field = format!("spec.loadBalancerSourceRanges[{i}]");
                let remedy = "the range is ignored: correct it; without any, everybody may connect";
                problems.push(Problem::new(field, what, remedy));
            }
        }
    }
    if kind == "LoadBalancer" && service.external_local {
        let port = spec.health_check_node_port.and_then(|port| u16::try_from(port).ok());
        service.health_check_node_port = port.and_then(NonZeroU16::new);
        if service.health_check_node_port.is_none() {
            let remedy = "nobody learns which nodes have endpoints: let the API server fill it in";
            problems.push(Problem::new("spec.healthCheckNodePort", "is missing", remedy));
        }
    }
}

/// A cluster IP. What every machine and every pod calls its own is nobody's to give away: no packet
/// for it ever reaches another's rules, but a socket's connect() would be seen (A9).
pub(super) fn cluster_ip(text: &str) -> Result<IpAddr, String> {
    let ip = address(text)?;
    if ip.is_loopback() || matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local()) {
        return Err(format!("{ip} is an address of every machine"));
    }
    Ok(ip)
}

/// An address that comes from outside, where 169.254.0.0/16 is every machine's own too: clouds have
/// their metadata there. As a cluster IP it is the cluster's, which has set its range.
fn external(text: &str, field: String, problems: &mut Vec<Problem>) -> Option<IpAddr> {
    match cluster_ip(text) {
        Ok(IpAddr::V4(ip)) if ip.is_link_local() => {
            let what = format!("{ip} is an address of every machine");
            problems.push(Problem::new(field, what, "it is not served: correct the address"));
            None
        }
        Ok(ip) => Some(ip),
        Err(what) => {
            problems.push(Problem::new(field, what, "it is not served: correct the address"));
            None
        }
    }
}

fn affinity(spec: &ServiceSpec, problems: &mut Vec<Problem>) -> Option<NonZeroU32> {
    if spec.session_affinity.as_deref() != Some("ClientIP") {
        return None;
    }
    let client = spec.session_affinity_config.as_ref().and_then(|config| config.client_ip.as_ref());
    let Some(seconds) = client.and_then(|client| client.timeout_seconds) else {
        return Some(AFFINITY);
    };
    let valid = u32::try_from(seconds).ok().filter(|seconds| *seconds <= LONGEST_AFFINITY);
    Some(valid.and_then(NonZeroU32::new).unwrap_or_else(|| {
        let field = "spec.sessionAffinityConfig.clientIP.timeoutSeconds";
        let what = format!("{seconds} is not within 1 and {LONGEST_AFFINITY}");
        let remedy = format!("{AFFINITY} is taken: use a number of seconds in that range");
        problems.push(Problem::new(field, what, remedy));
        AFFINITY
    }))
}
