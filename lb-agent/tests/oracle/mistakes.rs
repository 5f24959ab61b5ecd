//! One mistake for each rule, or for each half of it.

use k8s_openapi::api::core::v1::LoadBalancerIngress;

use super::{
    case::{Config, Op},
    mutations::{
        How, Mutation, addresses_go, all_slices_go, apply, cluster_ips_are_foreign, conditions,
        drop_label, first_services, first_slices, ingress, interfaces_stay,
        no_others_if_external_is_local, no_others_if_internal_is_local, open_without_slices,
        own_addresses_go, rule, terminating_ones_die, unlabel, zone_goes,
    },
    objects::{HEADLESS, OWN, PROXY_NAME, SERVICE_NAME},
    outside::Handled,
    packets::ip,
    program::Place,
};

pub(crate) const MUTATIONS: &[Mutation] = &[
    rule("A1", "serves what is another proxy's", How::Service(|it| unlabel(it, PROXY_NAME))),
    rule("A2", "serves headless slices", How::Slice(|it| drop_label(it, HEADLESS))),
    rule(
        "A4",
        "serves ExternalName",
        How::Spec(|it| {
            if it.type_.as_deref() == Some("ExternalName") {
                it.type_ = None;
            }
        }),
    ),
    rule(
        "A5",
        "serves every cluster IP, whatever ipFamilies says",
        How::Spec(|it| {
            it.ip_families = None;
        }),
    ),
    rule(
        "A6",
        "takes UDP ports for TCP ones",
        How::Spec(|it| {
            for port in it.ports.iter_mut().flatten() {
                port.protocol = None;
            }
        }),
    ),
    rule("A8", "keeps what a Service was at first", How::Ops(first_services)),
    rule(
        "A9",
        "does not read leading zeros",
        How::Spec(|it| {
            it.external_ips.iter_mut().flatten().for_each(|ip| {
                if ip.contains("000") {
                    ip.clear();
                }
            });
        }),
    ),
    rule(
        "B1",
        "does not know IPv6 slices",
        How::Slice(|it| {
            if it.address_type == "IPv6" {
                it.endpoints = None;
            }
        }),
    ),
    rule(
        "B2",
        "takes slices without a Service for a's",
        How::Slice(|it| {
            let labels = it.metadata.labels.get_or_insert_default();
            labels.entry(SERVICE_NAME.to_owned()).or_insert_with(|| "a".to_owned());
        }),
    ),
    rule("B3", "takes the last address of an endpoint", How::Endpoint(|it| it.addresses.reverse())),
    rule(
        "B4",
        "takes a port without number for 80",
        How::Slice(|it| {
            for port in it.ports.iter_mut().flatten() {
                port.port.get_or_insert(80);
            }
        }),
    ),
    rule(
        "B5",
        "takes every slice port for the one called http",
        How::Slice(|it| {
            for port in it.ports.iter_mut().flatten().take(1) {
                port.name = Some("http".to_owned());
            }
        }),
    ),
    rule(
        "B6",
        "takes a missing ready for false",
        How::Endpoint(|it| {
            conditions(it).ready.get_or_insert(false);
        }),
    ),
    rule(
        "B6",
        "takes a missing serving for false",
        How::Endpoint(|it| {
            let conditions = conditions(it);
            conditions.serving.get_or_insert(false);
        }),
    ),
    rule(
        "B6",
        "takes a missing terminating for true",
        How::Endpoint(|it| {
            conditions(it).terminating.get_or_insert(true);
        }),
    ),
    rule(
        "B7",
        "takes another node's endpoints for local ones",
        How::Endpoint(|it| {
            if it.node_name.is_some() {
                it.node_name = Some(OWN.to_owned());
            }
        }),
    ),
    rule("B8", "knows only the first slice of a Service", How::Ops(first_slices)),
    rule("B9", "forgets all slices when one goes", How::Ops(all_slices_go)),
    rule(
        "B10",
        "keeps what a new list lacks",
        How::Ops(|_, ops| {
            let apply = |op: &Op| match op {
                Op::List { objects, .. } => objects.iter().cloned().map(apply).collect(),
                op => vec![op.clone()],
            };
            ops.iter().flat_map(apply).collect()
        }),
    ),
    rule(
        "B10",
        "does not hear of what went",
        How::Ops(|_, ops| {
            ops.iter().filter(|op| !matches!(op, Op::Delete { .. })).cloned().collect()
        }),
    ),
    rule(
        "B12",
        "takes an endpoint's zone for its hint",
        How::Endpoint(|it| {
            if let (Some(zone), Some(hints)) = (&it.zone, &mut it.hints) {
                hints.for_zones.iter_mut().flatten().for_each(|hint| hint.name.clone_from(zone));
            }
        }),
    ),
    rule(
        "D1",
        "knows no external policy of ClusterIP",
        How::Spec(|it| {
            if it.type_.as_deref().is_none_or(|kind| kind == "ClusterIP") {
                it.external_traffic_policy = None;
            }
        }),
    ),
    rule("D2", "ignores internalTrafficPolicy", How::Spec(|it| it.internal_traffic_policy = None)),
    rule(
        "D4",
        "gives new connections to all that serve",
        How::Endpoint(|it| {
            let conditions = conditions(it);
            conditions.ready = Some(conditions.serving != Some(false));
        }),
    ),
    rule(
        "D4",
        "knows no terminating endpoint that serves",
        How::Endpoint(|it| {
            if conditions(it).terminating == Some(true) {
                conditions(it).serving = Some(false);
            }
        }),
    ),
    rule(
        "D6",
        "knows no terminating endpoint of its own",
        How::Endpoint(|it| {
            if it.node_name.as_deref() == Some(OWN) && conditions(it).terminating == Some(true) {
                conditions(it).serving = Some(false);
            }
        }),
    ),
    rule(
        "D8",
        "lets hints count though an endpoint has none",
        How::Slice(|it| {
            let hints = it.endpoints.iter().flatten().find_map(|it| it.hints.clone());
            for endpoint in it.endpoints.iter_mut().flatten() {
                endpoint.hints = endpoint.hints.take().or_else(|| hints.clone());
            }
        }),
    ),
    rule(
        "D8",
        "prefers zones to nodes",
        How::Endpoint(|it| {
            if let Some(hints) = &mut it.hints
                && hints.for_zones.as_ref().is_some_and(|zones| !zones.is_empty())
            {
                hints.for_nodes = None;
            }
        }),
    ),
    rule(
        "D9",
        "knows only the first zone of a hint",
        How::Endpoint(|it| {
            if let Some(zones) = it.hints.as_mut().and_then(|hints| hints.for_zones.as_mut()) {
                zones.truncate(1);
            }
        }),
    ),
    rule(
        "D9",
        "knows only the first node of a hint",
        How::Endpoint(|it| {
            if let Some(nodes) = it.hints.as_mut().and_then(|hints| hints.for_nodes.as_mut()) {
                nodes.truncate(1);
            }
        }),
    ),
    rule("D11", "does not follow the node's zone", How::Node(|it| it.metadata.labels = None)),
    rule("D11", "forgets the zone with the Node", How::Ops(zone_goes)),
    rule(
        "D13",
        "takes what terminates for not ready",
        How::Endpoint(|it| {
            if conditions(it).terminating == Some(true) {
                conditions(it).ready = Some(false);
            }
        }),
    ),
    rule(
        "E1",
        "lets the external policy hold for cluster IPs",
        How::Spec(|it| {
            if it.external_traffic_policy.is_some() {
                it.internal_traffic_policy.clone_from(&it.external_traffic_policy);
            }
        }),
    ),
    rule(
        "E2, F2",
        "lets the internal policy say which endpoints there are",
        How::Ops(no_others_if_internal_is_local),
    ),
    rule("E3", "takes pods and the node for strangers", How::Ops(no_others_if_external_is_local)),
    rule(
        "E5",
        "does not know other nodes",
        How::Node(|it| {
            if it.metadata.name.as_deref() != Some(OWN) {
                it.status = None;
            }
        }),
    ),
    rule(
        "E5",
        "takes other nodes' policy for Cluster",
        How::Spec(|it| {
            it.external_traffic_policy = None;
        }),
    ),
    rule(
        "A6",
        "knows no SCTP for packets",
        How::Handled(|_, packet, it| {
            if packet.protocol == "SCTP" {
                *it = Handled::default();
            }
        }),
    ),
    rule(
        "E3",
        "takes strangers for pods",
        How::Packet(|it| {
            if it.place == Place::Outside {
                it.place = Place::Pod;
            }
        }),
    ),
    rule(
        "E'",
        "never masquerades",
        How::Handled(|_, _, it| it.endpoints.values_mut().for_each(|is| *is = false)),
    ),
    rule(
        "E'",
        "always masquerades",
        How::Handled(|_, _, it| it.endpoints.values_mut().for_each(|is| *is = true)),
    ),
    rule(
        "E8",
        "does not masquerade who reaches itself",
        How::Handled(|_, packet, it| {
            let others = it.endpoints.values().filter(|is| **is).count();
            for (endpoint, is) in &mut it.endpoints {
                if others == 1 && endpoint.ip() == packet.source {
                    *is = false;
                }
            }
        }),
    ),
    rule(
        "E9",
        "hides pods from the endpoints of cluster IPs if told to hide all",
        How::Handled(|config, packet, it| {
            if config.masquerade_all && packet.place == Place::Pod {
                it.endpoints.values_mut().for_each(|is| *is = true);
            }
        }),
    ),
    rule("E10", "knows no external addresses", How::Spec(|it| it.external_ips = None)),
    rule(
        "E10",
        "serves external addresses that it is not to",
        How::Config(|it| {
            it.external_ips = true;
        }),
    ),
    rule(
        "E11",
        "serves addresses of mode Proxy",
        How::Service(|it| {
            ingress(it).for_each(|ingress| ingress.ip_mode = None);
        }),
    ),
    rule(
        "E12",
        "does not refuse a port that nobody has",
        How::Config(|it| {
            it.refuse_unknown_ports = false;
        }),
    ),
    rule(
        "E12",
        "forgets addresses of its own that are cluster IPs",
        How::Ops(cluster_ips_are_foreign),
    ),
    rule("E14", "knows no cluster CIDR", How::Config(|it| it.cluster_cidrs.clear())),
    rule(
        "E14",
        "takes pods of other nodes for strangers, whatever the cluster CIDR",
        How::Config(|it| {
            if !it.cluster_cidrs.is_empty() {
                it.cluster_cidrs.clone_from(&it.pod_cidrs);
            }
        }),
    ),
    rule(
        "E14",
        "needs to be told which sockets are pods'",
        How::Outcome(|config, packet, it| {
            if packet.place == Place::Pod && !config.tells_pods(packet.source) {
                it.backends.pop_last();
            }
        }),
    ),
    rule(
        "E14",
        "masquerades nobody where nobody is told from others",
        How::Handled(|config, packet, it| {
            if !config.tells_pods(packet.source) {
                it.endpoints.values_mut().for_each(|is| *is = false);
            }
        }),
    ),
    rule(
        "E, claims",
        "lets a younger Service have a frontend",
        How::Service(|it| {
            it.metadata.creation_timestamp = None;
        }),
    ),
    rule("G1", "knows no source ranges", How::Spec(|it| it.load_balancer_source_ranges = None)),
    rule(
        "G1",
        "holds ranges against external addresses",
        How::Service(|it| {
            let externals = it.spec.as_ref().and_then(|spec| spec.external_ips.clone());
            let mode = || LoadBalancerIngress::default();
            let status = it.status.get_or_insert_default().load_balancer.get_or_insert_default();
            let list = status.ingress.get_or_insert_default();
            list.extend(
                externals
                    .into_iter()
                    .flatten()
                    .map(|ip| LoadBalancerIngress { ip: Some(ip), ..mode() }),
            );
        }),
    ),
    rule(
        "G2",
        "judges the node as one of its pods",
        How::Packet(|it| {
            if it.place == Place::Host {
                it.source = if it.to.is_ipv4() { ip("10.1.0.250") } else { ip("fd00:1::fa") };
            }
        }),
    ),
    rule("G3", "does not let the node itself in", How::Ops(own_addresses_go)),
    rule(
        "G4",
        "knows no range /0",
        How::Spec(|it| {
            it.load_balancer_source_ranges.iter_mut().flatten().for_each(|range| {
                if range.ends_with("/0") {
                    *range = if range.contains(':') { "2001:db8:f::/64" } else { "192.0.2.77/32" }
                        .into();
                }
            });
        }),
    ),
    rule("G5", "lets everybody in while there are no endpoints", How::Ops(open_without_slices)),
    rule(
        "G6",
        "judges everybody by an address of its own",
        How::Packet(|it| {
            it.source = if it.to.is_ipv4() { ip("192.0.2.1") } else { ip("2001:db8::77") };
        }),
    ),
    rule("H1", "knows no affinity", How::Spec(|it| it.session_affinity = None)),
    rule("H1", "forgets its clients", How::Config(|it| it.pause = 100_000)),
    rule("H2", "keeps its clients for ever", How::Config(|it| it.pause = 0)),
    rule(
        "H2",
        "takes another timeout when none is given",
        How::Spec(|it| {
            let config = it.session_affinity_config.get_or_insert_default();
            config.client_ip.get_or_insert_default().timeout_seconds.get_or_insert(10_801);
        }),
    ),
    rule("I1", "ignores --nodeport-addresses", How::Config(|it| it.node_port_addresses.clear())),
    rule(
        "I1",
        "takes primary for all",
        How::Config(|it| {
            if it.node_port_addresses == ["primary"] {
                it.node_port_addresses.clear();
            }
        }),
    ),
    rule(
        "I2",
        "gives a family without ranges none",
        How::Config(|it| {
            let has =
                |it: &Config, six| it.node_port_addresses.iter().any(|r| r.contains(':') == six);
            if has(it, true) && !has(it, false) {
                it.node_port_addresses.push("192.0.2.77/32".to_owned());
            } else if has(it, false) && !has(it, true) && it.node_port_addresses != ["primary"] {
                it.node_port_addresses.push("2001:db8:f::1/128".to_owned());
            }
        }),
    ),
    rule("I3", "does not look at interfaces", How::Config(|it| it.interfaces.clear())),
    rule("I3", "does not follow interfaces", How::Ops(interfaces_stay)),
    rule(
        "I4",
        "serves loopback addresses unasked",
        How::Config(|it| it.localhost_nodeports = true),
    ),
    rule(
        "I4",
        "does not serve loopback addresses",
        How::Config(|it| {
            it.localhost_nodeports = false;
        }),
    ),
    rule("J2", "forgets its addresses with the Node", How::Ops(addresses_go)),
    rule(
        "J3",
        "serves a family that the kernel has not",
        How::Config(|it| {
            it.families = vec!["IPv4".to_owned(), "IPv6".to_owned()];
        }),
    ),
    rule("L2", "does not remember where a flow went", How::Carried(|it| it.prior.generation = 0)),
    rule("L2", "ends no flow", How::Stays(|_| true)),
    rule("L2", "ends every flow", How::Stays(|_| false)),
    rule(
        "L2",
        "leaves those alone that were there before the Service",
        How::Carried(|it| it.inside = false),
    ),
    rule(
        "L2",
        "leaves packets' flows alone that were there before the Service",
        How::IsOver(|packet, end, _, is_over| is_over && end != packet.to),
    ),
    rule(
        "L2",
        "ends packets' flows to endpoints that get no new ones",
        How::IsOver(|_, end, now, is_over| is_over || !now.backends.contains(&end)),
    ),
    rule("L2", "ends no flow of packets", How::IsOver(|_, _, _, _| false)),
    rule(
        "L2",
        "ends packets' flows at the numbers of node ports, wherever they go",
        How::IsOver(|packet, _, _, is_over| is_over || packet.to.port() > 30_000),
    ),
    rule("L4", "ends flows to endpoints that terminate", How::Slice(terminating_ones_die)),
    rule(
        "K1",
        "answers on another port",
        How::Spec(|it| {
            it.health_check_node_port = it.health_check_node_port.map(|port| port + 1);
        }),
    ),
    rule(
        "K3",
        "counts endpoints that terminate",
        How::Endpoint(|it| {
            conditions(it).ready = Some(true);
        }),
    ),
];
