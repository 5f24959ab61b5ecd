//! Random EndpointSlices.

use std::collections::BTreeSet;

use k8s_openapi::api::discovery::v1::{
    Endpoint, EndpointConditions, EndpointHints, EndpointPort, EndpointSlice, ForNode, ForZone,
};
use proptest::{
    collection::vec,
    option::{of, weighted},
    prelude::*,
    sample::select,
};

use super::objects::{HEADLESS, OWN, SERVICE_NAME, meta, port, text};

prop_compose! {
    fn slice_port()(
        (name, protocol) in port(),
        port in prop_oneof![
            1 => Just(None),
            1 => Just(Some(0)),
            10 => Just(Some(8080)),
            3 => Just(Some(9090)),
            3 => Just(Some(53)),
        ],
    ) -> EndpointPort {
        EndpointPort { name, protocol, port, app_protocol: None }
    }
}

/// As the API demands: no name twice.
fn slice_ports() -> impl Strategy<Value = Option<Vec<EndpointPort>>> {
    let ports = prop_oneof![1 => vec(slice_port(), 0..1), 15 => vec(slice_port(), 2..7)];
    weighted(0.97, ports).prop_map(|ports| {
        let mut names = BTreeSet::new();
        let mut is_new = |port: &EndpointPort| {
            let protocol = port.protocol.clone().unwrap_or_else(|| "TCP".to_owned());
            names.insert((port.name.clone().unwrap_or_default(), protocol))
        };
        ports.map(|ports| ports.into_iter().filter(&mut is_new).collect())
    })
}

fn conditions() -> impl Strategy<Value = Option<EndpointConditions>> {
    let maybe = |yes| of(prop::bool::weighted(yes));
    let any = (maybe(0.6), maybe(0.7), maybe(0.4)).prop_map(|(ready, serving, terminating)| {
        EndpointConditions { ready, serving, terminating }
    });
    weighted(0.9, any)
}

/// Whether the endpoints of a slice have hints: what one controller does to all, or somebody to some.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Style {
    None,
    Zones,
    Nodes,
    Both,
    Mixed,
}

prop_compose! {
    fn endpoint(addresses: &'static [&'static str])(
        addresses in prop_oneof![
            1 => vec(text(addresses), 0..1),
            20 => vec(text(addresses), 1..2),
            1 => vec(text(addresses), 2..3),
        ],
        conditions in conditions(),
        node_name in weighted(0.85, text(&[OWN, OWN, "b", "c", "gone"])),
        zones in vec(text(&["z1", "z2"]), 1..3),
        nodes in vec(text(&[OWN, "b"]), 1..3),
        dropped in (any::<bool>(), prop::bool::weighted(0.3), prop::bool::weighted(0.3)),
        zone in weighted(0.3, text(&["z1", "z2"])),
    ) -> (Endpoint, (bool, bool, bool)) {
        let hints = EndpointHints {
            for_nodes: Some(nodes.into_iter().map(|name| ForNode { name }).collect()),
            for_zones: Some(zones.into_iter().map(|name| ForZone { name }).collect()),
        };
        let endpoint = Endpoint {
            addresses,
            conditions,
            node_name,
            zone,
            hints: Some(hints),
            ..Endpoint::default()
        };
        (endpoint, dropped)
    }
}

fn hinted((endpoint, dropped): (Endpoint, (bool, bool, bool)), style: Style) -> Endpoint {
    let (zones, nodes) = match style {
        Style::None => return Endpoint { hints: None, ..endpoint },
        Style::Zones => (true, false),
        Style::Nodes => (false, true),
        Style::Both => (true, true),
        Style::Mixed if dropped.0 => return Endpoint { hints: None, ..endpoint },
        Style::Mixed => (!dropped.1, !dropped.2),
    };
    let hints = endpoint.hints.map(|hints| EndpointHints {
        for_zones: hints.for_zones.filter(|_| zones),
        for_nodes: hints.for_nodes.filter(|_| nodes),
    });
    Endpoint { hints, ..endpoint }
}

/// As of pods that all go at once.
fn left(mut endpoint: Endpoint, leaving: bool) -> Endpoint {
    if leaving {
        let conditions = endpoint.conditions.get_or_insert_default();
        conditions.ready = Some(false);
        conditions.terminating = Some(true);
    }
    endpoint
}

prop_compose! {
    fn slice_of(
        address_type: &'static str,
        names: &'static [&'static str],
        addresses: &'static [&'static str],
        style: Option<Style>,
    )(
        namespace in prop_oneof![15 => Just("default"), 1 => Just("other")],
        name in select(names),
        service in weighted(0.97, prop_oneof![16 => text(&["a"]), 4 => text(&["b"]), 1 => text(&[""])]),
        headless in weighted(0.05, text(&["", "yes"])),
        ports in slice_ports(),
        own_style in select(vec![Style::None, Style::Zones, Style::Nodes, Style::Both, Style::Mixed]),
        endpoints in weighted(0.97, vec(endpoint(addresses), 0..6)),
        leaving in prop::bool::weighted(0.25),
    ) -> EndpointSlice {
        EndpointSlice {
            metadata: meta(namespace, name, &[(SERVICE_NAME, service), (HEADLESS, headless)]),
            address_type: address_type.to_owned(),
            ports,
            endpoints: endpoints
                .map(|all| all.into_iter().map(|it| left(hinted(it, style.unwrap_or(own_style)), leaving)).collect()),
        }
    }
}

/// The address type goes with the name: it never changes. Endpoints have the hints of `style`, or of
/// any.
pub(crate) fn slice(style: Option<Style>) -> impl Strategy<Value = EndpointSlice> {
    // Pods, this node and another, and a cluster IP.
    const V4: &[&str] = &[
        "10.1.0.1",
        "10.1.0.2",
        "10.01.0.002",
        "10.1.0.3",
        "10.1.0.4",
        "10.0.0.1",
        "10.0.0.2",
        "10.96.0.2",
    ];
    const V6: &[&str] =
        &["fd00:1::1", "fd00:1::2", "fd00:1:0::2", "fd00:1::3", "fd00::1", "fd00:96::2"];
    prop_oneof![
        6 => slice_of("IPv4", &["a-1", "a-2", "a-3"], V4, style),
        5 => slice_of("IPv6", &["a-6", "a-66"], V6, style),
        1 => slice_of("FQDN", &["a-f"], &["pod.example"], style),
    ]
}
