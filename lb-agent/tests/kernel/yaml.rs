//! Services as files, for the real agent.

use std::{fmt::Write as _, fs, net::IpAddr, path::PathBuf};

use super::world::{PORT, World};

/// The directory that the agent reads.
pub(crate) fn objects(world: &World) -> PathBuf {
    let path = world.dir().join("objects");
    fs::create_dir_all(&path).unwrap();
    path
}

/// Writes the Service `name` (TCP and UDP, port 80) and its EndpointSlice; IPv4 only. The file
/// appears whole.
pub(crate) fn put(world: &World, name: &str, ip: &str, backends: &[IpAddr]) {
    put_as(world, name, name, ["tcp", "udp"], ip, backends);
}

/// The same in a file of another name than the Service's, with ports of these names.
pub(crate) fn put_as(
    world: &World,
    file: &str,
    name: &str,
    [tcp, udp]: [&str; 2],
    ip: &str,
    backends: &[IpAddr],
) {
    let mut text = format!(
        "apiVersion: v1
kind: Service
metadata: {{name: {name}, namespace: default}}
spec:
  clusterIP: {ip}
  clusterIPs: [{ip}]
  ipFamilies: [IPv4]
  ports:
  - {{name: {tcp}, protocol: TCP, port: 80}}
  - {{name: {udp}, protocol: UDP, port: 80}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: {name}-1, namespace: default, labels: {{kubernetes.io/service-name: {name}}}}}
addressType: IPv4
ports:
- {{name: {tcp}, protocol: TCP, port: {PORT}}}
- {{name: {udp}, protocol: UDP, port: {PORT}}}
endpoints:
"
    );
    for backend in backends {
        writeln!(text, "- {{addresses: [{backend}], conditions: {{ready: true}}}}").unwrap();
    }
    if backends.is_empty() {
        text = text.replace("endpoints:\n", "endpoints: []\n");
    }
    let fresh = world.dir().join("fresh");
    fs::write(&fresh, text).unwrap();
    fs::rename(fresh, objects(world).join(format!("{file}.yaml"))).unwrap();
}
