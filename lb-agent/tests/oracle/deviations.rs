//! Where socklb differs from kube-proxy on purpose, and why. Nothing else may differ.
//!
//! Three more stand where they act: what several slices say of one address ([`super::duplicates`]),
//! that a node's addresses are followed (`follow` in `xtask/oracle/node.go`, J2), and that those in its status
//! are its own even if no interface has them (`addresses`, I3). That `default/kubernetes` keeps its
//! last endpoints is not compared: no Service has that name.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
};

use k8s_openapi::api::{
    core::v1::{Service, ServiceSpec},
    discovery::v1::EndpointSlice,
};
use lb_agent::sources::translate;
use lb_core::policy::is_connectable;

use super::{
    case::{Config, Key, Kind, Object, Op, label},
    claims::Claims,
    objects::{PROXY_NAME, SERVICE_NAME},
    outcome::{Fate, Outcome, Packet, Stated},
    program::{Answer, Place, Verdict},
};

/// A rule that says what kube-proxy is asked otherwise, or what else is expected than it answers.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) enum Deviation {
    /// An external address that is unspecified, multicast, loopback or link-local is read as one that
    /// is none (A9): to the first two no socket is ever connected, and the others are every machine's
    /// own. kube-proxy programs them; the API has come to forbid them.
    Unconnectable,
    /// Spaces around an external address do not matter (A9). kube-proxy says so of ranges only, and
    /// skips the address; the API lets none through, but files do.
    Spaces,
    /// A Service without `ipFamilies` or `clusterIPs` is read as the API server would fill them in
    /// (A5). socklb reads files too, which nobody filled in; kube-proxy serves less of such a Service.
    FilledIn,
    /// A slice that moves to another Service leaves the first one. kube-proxy takes it in under its
    /// new Service and never out of the old one, until it restarts: it is asked as if the slice had
    /// been deleted in between.
    MovedSlice,
    /// With `--service-proxy-name` it is that other proxy, for which kube-proxy leaves Services alone
    /// (A1): kube-proxy is shown them without their label, and others with one.
    ProxyName,
    /// `--external-ips=false` leaves external addresses out (E10). kube-proxy is shown one of the same
    /// family that nobody dials: its port is externally accessible all the same (D1). To socklb a port
    /// that has no other way in from outside lacks no local endpoints (F2).
    ExternalIps,
    /// A Service that names its own cluster IP as an external address has it as its cluster IP (E10):
    /// kube-proxy is shown another external address.
    OwnClusterIp,
    /// `--unknown-port=pass` leaves a port that a cluster IP lacks alone (E12).
    UnknownPort,
    /// A cluster IP that is an address of this node closes none of the node's ports (E12). kube-proxy
    /// leaves them open to pods, and rejects what the node itself sends to its own address.
    OwnAddress,
    /// `--nodeport-addresses=primary` means no address of a family of which the Node has none (I1).
    Primary,
    /// `--localhost-nodeports` holds for all of 127.0.0.0/8 and ::1 (I4); kube-proxy's nftables mode
    /// has nothing of it. A loopback address is answered as one of the node's own.
    Localhost,
    /// Where kube-proxy drops packets (F2), the caller gets EHOSTUNREACH: a hook decides about the
    /// socket, not about packets, and the prompt error says what the timeout would have said.
    Unreachable,
    /// What another node would choose by the policy Cluster is chosen by this node's topology (E5).
    Topology,
    /// Another timeout of affinity holds from the next connection on (H2). Sets in memory keep the one
    /// that they were made with; those of Linux 6.18 take the new one too.
    Timeout,
    /// A client keeps its endpoint also if that was away for a while, and the client did not come
    /// meanwhile (H1): it has one bond. kube-proxy's set for an endpoint goes with the endpoint.
    Away,
    /// A client that got several endpoints stays with the last of them, or chooses anew if that is not
    /// allowed any more (H1); in kube-proxy it stays with the first in its order that is.
    Several,
    /// A connection is translated once (E12): an endpoint whose address is a cluster IP is dialled,
    /// where kube-proxy's rules reject what has just been translated.
    Once,
    /// kube-proxy looks for stale flows only after endpoints have changed; socklb whenever something
    /// has (L2).
    Sooner,
    /// Flows to a Service that has no serving endpoint left, or is gone: kube-proxy leaves their entries
    /// alone (kubernetes #139628, #141371), socklb ends them (L3).
    Orphan,
    /// A socket that is not connected sends to an address that leads to no Service any more as to any
    /// other: it may be a machine's by now (L2). kube-proxy leaves the entry alone.
    GivenUp,
    /// kube-proxy goes by the number of a node port alone, whatever address was dialled. So it also deletes
    /// flows to addresses at which no Service has that port, or none any more; socklb looks at those for
    /// node ports (L2).
    ByNumber,
    /// An endpoint that is ready serves its flows, whatever its condition `serving` says, as for Services
    /// that publish addresses that are not ready (L2). kube-proxy ends these flows whenever endpoints
    /// change, only to let the next packet begin one there anew.
    Ready,
    /// Datagrams of a socket that is not connected are held against source ranges each by itself (G7).
    Ranges,
    /// A UDP socket that was connected before its Service was known is ended once there are endpoints for
    /// it; before, it asks nobody (F1). kube-proxy rejects or drops what it sends.
    Unrefused,
    /// Who reaches itself is masqueraded also if no slice says on which node it is (E8): it has sent the
    /// packet through this one. Where slices name two nodes, what is said of the port counts; kube-proxy
    /// asks for the address, whatever the port.
    Hairpin,
    /// What is sent to a cluster IP is masqueraded at the Service's ports (E9). kube-proxy asks for the
    /// address alone, so that it hides who sends to a NodePort of policy Local at a node's address that is
    /// a cluster IP besides.
    ByAddress,
    /// It sees who connects, and needs nobody to say which are the node's pods (E14): kube-proxy is asked
    /// as if it could tell them too.
    SeesPods,
    /// Where kube-proxy tells no pods from strangers, it masquerades nothing that is sent to a cluster IP,
    /// so that strangers get no answer; socklb masquerades all of it (E14).
    Untold,
    /// kube-proxy's `--masquerade-all` hides the pods of the node from the endpoints of cluster IPs, too;
    /// socklb has no such flag (E9).
    MasqueradeAll,
    /// Of several Services that want one frontend, one has it by rule: see [`super::claims`].
    Contested,
}

/// How often each one made a difference.
pub(crate) type Applied = BTreeMap<Deviation, usize>;

pub(crate) fn count(applied: &mut Applied, deviation: Deviation) {
    *applied.entry(deviation).or_default() += 1;
}

type Rewrite = fn(&Config, &mut Service);

/// Those that show kube-proxy another Service, in this order.
const REWRITES: &[(Deviation, Rewrite)] = &[
    (Deviation::ProxyName, renamed),
    (Deviation::Spaces, trimmed),
    (Deviation::Unconnectable, connectable),
    (Deviation::ExternalIps, without_external_ips),
    (Deviation::FilledIn, filled_in),
    (Deviation::OwnClusterIp, own_cluster_ip),
];

/// What kube-proxy is told instead of what socklb is told.
pub(crate) struct Asked {
    /// With the addresses of interfaces as they are now.
    config: Config,
    slices: BTreeMap<Key, EndpointSlice>,
}

impl Asked {
    pub(crate) fn new(config: &Config) -> Self {
        Self { config: config.clone(), slices: BTreeMap::new() }
    }

    /// The node as it is now.
    pub(crate) const fn now(&self) -> &Config {
        &self.config
    }

    pub(crate) fn config(&self, applied: &mut Applied) -> Config {
        let mut config = self.config.clone();
        if config.node_port_addresses == ["primary"] {
            count(applied, Deviation::Primary);
            config.node_port_addresses = vec!["primary-only".to_owned()];
        }
        config
    }

    pub(crate) fn ops(&mut self, ops: &[Op], applied: &mut Applied) -> Vec<Op> {
        let mut asked = Vec::new();
        for op in ops {
            let mut op = op.clone();
            for object in op.objects_mut() {
                self.rewrite(object, applied);
            }
            let known = self.slices.clone();
            match &op {
                Op::Delete { object } => drop(self.slices.remove(&object.key())),
                Op::Interfaces { addresses } => self.config.interfaces.clone_from(addresses),
                Op::Start { .. } | Op::List { kind: Kind::EndpointSlice, .. } => {
                    self.slices.clear();
                }
                Op::Apply { .. } | Op::List { .. } => {}
            }
            for object in op.objects() {
                let (Object::Slice(slice), false) = (object, matches!(op, Op::Delete { .. }))
                else {
                    continue;
                };
                self.slices.insert(object.key(), (**slice).clone());
                let before = known.get(&object.key());
                if let Some(before) = before.filter(|before| owner(before) != owner(slice))
                    && !matches!(op, Op::Start { .. })
                {
                    count(applied, Deviation::MovedSlice);
                    asked.push(Op::Delete { object: Object::Slice(before.clone().into()) });
                }
            }
            asked.push(op);
        }
        asked
    }

    fn rewrite(&self, object: &mut Object, applied: &mut Applied) {
        let Object::Service(service) = object else { return };
        for (deviation, rewrite) in REWRITES {
            let before = service.clone();
            rewrite(&self.config, service);
            if *service != before {
                count(applied, *deviation);
            }
        }
    }

    /// Where kube-proxy is asked about; none: nobody knows what it would say.
    pub(crate) fn to(
        &self,
        packet: &Packet,
        claims: &Claims,
        applied: &mut Applied,
    ) -> Option<SocketAddr> {
        if !packet.to.ip().is_loopback()
            || !self.config.localhost_nodeports
            || packet.place != Place::Host
        {
            return Some(packet.to);
        }
        let ipv4 = packet.to.is_ipv4();
        let mut list = self.config.node_port_addresses.iter().filter_map(|text| {
            let (ip, bits) = text.split_once('/')?;
            let ip: IpAddr = ip.parse().ok()?;
            (ip.is_ipv4() == ipv4).then_some((ip, bits == "0"))
        });
        // Of lists, only those that have all of a family.
        if !list.all(|(_, all)| all) || self.config.node_port_addresses == ["primary"] {
            return None;
        }
        let own = self.config.interfaces.iter().map(|ip| ip.parse::<IpAddr>().expect("an address"));
        let stand_in = own.into_iter().find(|ip| ip.is_ipv4() == ipv4)?;
        let stand_in = SocketAddr::new(stand_in, packet.to.port());
        if claims.is_frontend(stand_in) {
            return None;
        }
        count(applied, Deviation::Localhost);
        Some(stand_in)
    }
}

fn owner(slice: &EndpointSlice) -> Option<&str> {
    label(&slice.metadata, SERVICE_NAME)
}

fn renamed(config: &Config, service: &mut Service) {
    let Some(name) = &config.proxy_name else { return };
    let labels = service.metadata.labels.get_or_insert_default();
    if labels.get(PROXY_NAME) == Some(name) {
        labels.remove(PROXY_NAME);
    } else {
        labels.insert(PROXY_NAME.to_owned(), "another".to_owned());
    }
}

fn without_external_ips(config: &Config, service: &mut Service) {
    let spec = service.spec.as_mut().filter(|_| !config.external_ips);
    let ips = spec.into_iter().flat_map(|spec| &mut spec.external_ips).flatten();
    ips.for_each(leave_out);
}

/// Shows kube-proxy one of the same family that nobody dials.
fn leave_out(ip: &mut String) {
    match translate::address(ip) {
        Ok(IpAddr::V4(_)) => "203.0.113.251".clone_into(ip),
        Ok(IpAddr::V6(_)) => "2001:db8:ffff::251".clone_into(ip),
        Err(_) => {}
    }
}

fn connectable(_: &Config, service: &mut Service) {
    let nobodys = |ip: &&mut String| match ip.parse() {
        Ok(IpAddr::V4(ip)) => ip.is_loopback() || ip.is_link_local() || !is_connectable(ip.into()),
        Ok(IpAddr::V6(ip)) => {
            ip.is_loopback() || ip.is_unicast_link_local() || !is_connectable(ip.into())
        }
        Err(_) => false,
    };
    external(service).filter(nobodys).for_each(String::clear);
}

fn trimmed(_: &Config, service: &mut Service) {
    external(service).for_each(|ip| *ip = ip.trim().to_owned());
}

/// The addresses that a Service has from outside.
fn external(service: &mut Service) -> impl Iterator<Item = &mut String> {
    let ips = service.spec.iter_mut().flat_map(|spec| &mut spec.external_ips).flatten();
    let balancers = service.status.iter_mut().flat_map(|status| &mut status.load_balancer);
    let ingress = balancers.flat_map(|balancer| &mut balancer.ingress).flatten();
    ips.chain(ingress.flat_map(|ingress| &mut ingress.ip))
}

/// As the API server does on creation, for a Service that has a cluster IP.
fn filled_in(_: &Config, service: &mut Service) {
    if let Some(spec) = &mut service.spec
        && let Some(first) = spec.cluster_ip.clone().filter(|ip| !matches!(&**ip, "" | "None"))
    {
        let ips = spec.cluster_ips.get_or_insert_with(|| vec![first]);
        let family = |ip: &String| if ip.contains(':') { "IPv6" } else { "IPv4" }.to_owned();
        spec.ip_families.get_or_insert_with(|| ips.iter().map(family).collect());
    }
}

fn own_cluster_ip(_: &Config, service: &mut Service) {
    let own = |spec: &ServiceSpec| -> BTreeSet<IpAddr> {
        let ips = spec.cluster_ips.iter().flatten();
        ips.filter_map(|ip| translate::address(ip).ok()).collect()
    };
    let own = service.spec.as_ref().map(own).unwrap_or_default();
    let is_own = |ip: &&mut String| translate::address(ip).is_ok_and(|ip| own.contains(&ip));
    external(service).filter(is_own).for_each(leave_out);
}

/// Takes ports that only external addresses would open out of those without local endpoints.
pub(crate) fn leave_closed_out(
    config: &Config,
    live: &BTreeMap<Key, Object>,
    wanted: &mut Stated,
    found: &Stated,
    applied: &mut Applied,
) {
    let may_be_closed = |object: &Object| match object {
        Object::Service(service) => {
            let spec = service.spec.as_ref().filter(|it| it.external_ips.is_some());
            spec.and_then(|spec| spec.ports.as_ref()).map_or(0, Vec::len)
        }
        Object::Slice(_) | Object::Node(_) => 0,
    };
    if config.external_ips {
        return;
    }
    let most: usize = live.values().map(may_be_closed).sum();
    wanted.no_local.retain(|what, of| {
        let fewer = found.no_local.get(what).copied().unwrap_or_default();
        if what.starts_with("external") && fewer < *of && *of - fewer <= most {
            count(applied, Deviation::ExternalIps);
            *of = fewer;
        }
        *of > 0
    });
}

/// What socklb is to do where kube-proxy does so.
pub(crate) fn wanted(answer: &Answer, applied: &mut Applied) -> Outcome {
    match &*answer.spared {
        "" => {}
        "own" => count(applied, Deviation::OwnAddress),
        _ => count(applied, Deviation::UnknownPort),
    }
    match answer.verdict {
        Verdict::None => Fate::Untouched.into(),
        Verdict::Reject if answer.by == "cluster-ips-check" => Fate::UnknownPort.into(),
        Verdict::Reject => Fate::Refused.into(),
        Verdict::Drop if answer.by.starts_with("firewall-") => Fate::Denied.into(),
        Verdict::Drop => {
            count(applied, Deviation::Unreachable);
            Fate::Unreachable.into()
        }
        Verdict::Forward => {
            let reached = answer.reached.iter();
            if reached.clone().any(|it| !it.then.is_empty()) {
                count(applied, Deviation::Once);
            }
            let mut backends: BTreeSet<SocketAddr> = reached.map(|it| it.endpoint).collect();
            if let Some(here) = &answer.here {
                let here: BTreeSet<SocketAddr> = here.iter().copied().collect();
                if backends != here {
                    count(applied, Deviation::Topology);
                    backends = here;
                }
            }
            if answer.affinity != answer.timeout {
                count(applied, Deviation::Timeout);
            }
            Outcome { fate: Fate::Forwarded, backends, affinity: answer.timeout }
        }
    }
}
