//! Services for load balancers and with node ports, in both families, and their endpoints.

use std::{
    fmt::Write as _,
    fs,
    net::{IpAddr, SocketAddr},
};

use super::super::{lane::node, world::World, yaml};

/// The port that endpoints listen on.
pub(super) const PORT: u16 = 9090;

/// An endpoint of both families.
#[derive(Clone, Copy, Debug)]
pub(super) struct Endpoint {
    pub(super) ipv4: IpAddr,
    pub(super) ipv6: IpAddr,
    /// Whether it is on this node.
    pub(super) is_here: bool,
}

impl Endpoint {
    pub(super) const fn ip(&self, ipv4: bool) -> IpAddr {
        if ipv4 { self.ipv4 } else { self.ipv6 }
    }
}

/// A Service without its endpoints.
#[derive(Clone, Debug, Default)]
pub(super) struct Shape {
    /// Tells it from others: all of its addresses go with it.
    pub(super) number: u16,
    pub(super) local: bool,
    /// How long clients stay, in seconds.
    pub(super) affinity: Option<u32>,
    /// Of its load balancer.
    pub(super) ranges: Vec<&'static str>,
}

impl Shape {
    /// At its load balancer's address.
    pub(super) fn vip(&self, ipv4: bool) -> SocketAddr {
        let [high, low] = self.number.to_be_bytes();
        let ip: IpAddr = if ipv4 {
            [198, 18, high, low].into()
        } else {
            [0x2001, 0xdb8, 0, 0, 0, 0, 1, self.number].into()
        };
        (ip, 80).into()
    }

    pub(super) fn node_port(&self) -> u16 {
        30_000 + self.number
    }

    /// Where strangers come to.
    pub(super) fn addresses(&self) -> [SocketAddr; 4] {
        let [one, two] = [true, false]
            .map(|ipv4| [self.vip(ipv4), SocketAddr::new(node(ipv4), self.node_port())]);
        [one[0], one[1], two[0], two[1]]
    }

    /// Its objects.
    pub(super) fn text(&self, endpoints: &[Endpoint]) -> String {
        let Self { number, .. } = self;
        let [high, low] = number.to_be_bytes();
        let policy = if self.local { "Local" } else { "Cluster" };
        let health = if self.local {
            format!("  healthCheckNodePort: {}\n", 32_000 + number)
        } else {
            String::new()
        };
        let affinity = self.affinity.map_or_else(String::new, |seconds| {
            format!(
                "  sessionAffinity: ClientIP
  sessionAffinityConfig: {{clientIP: {{timeoutSeconds: {seconds}}}}}\n"
            )
        });
        let mut text = format!(
            "---
apiVersion: v1
kind: Service
metadata: {{name: s{number}, namespace: default}}
spec:
  type: LoadBalancer
  clusterIP: 10.97.{high}.{low}
  clusterIPs: [10.97.{high}.{low}, 'fd97::1:{number}']
  ipFamilies: [IPv4, IPv6]
  externalTrafficPolicy: {policy}
  loadBalancerSourceRanges: [{}]
{affinity}{health}  ports:
  - {{name: tcp, protocol: TCP, port: 80, nodePort: {}}}
status:
  loadBalancer: {{ingress: [{{ip: {}}}, {{ip: '{}'}}]}}
",
            self.ranges.join(", "),
            self.node_port(),
            self.vip(true).ip(),
            self.vip(false).ip(),
        );
        for (family, ipv4) in [("IPv4", true), ("IPv6", false)] {
            write!(
                text,
                "---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  {{name: s{number}-{ipv4}, namespace: default, labels: {{kubernetes.io/service-name: s{number}}}}}
addressType: {family}
ports: [{{name: tcp, protocol: TCP, port: {PORT}}}]
endpoints:
"
            )
            .unwrap();
            for endpoint in endpoints {
                let node = if endpoint.is_here { ", nodeName: test" } else { "" };
                writeln!(text, "- {{addresses: ['{}']{node}}}", endpoint.ip(ipv4)).unwrap();
            }
        }
        text
    }
}

/// Writes a file of objects, which appears whole.
pub(super) fn put(world: &World, file: &str, text: &str) {
    let fresh = world.dir().join("fresh");
    fs::write(&fresh, text).unwrap();
    fs::rename(fresh, yaml::objects(world).join(file)).unwrap();
}
