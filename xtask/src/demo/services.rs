//! The directory of YAML that the agent reads.

use std::{
    fmt::Write as _,
    fs,
    net::{Ipv4Addr, SocketAddrV4},
    path::PathBuf,
};

use anyhow::{Context as _, Result};

use super::{network::Pod, place::home};

/// The Service's address and port.
pub(super) const SERVICE: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 96, 0, 10), 80);
/// Its port at each address of the node.
pub(super) const NODE_PORT: u16 = 30080;
/// Where the backends listen.
pub(super) const TARGET_PORT: u16 = 8080;
/// Of the endpoints' node, and of the agent.
pub(super) const NODE_NAME: &str = "demo-node";

pub(super) fn directory() -> PathBuf {
    home("services")
}

/// The file with the EndpointSlice.
pub(super) fn endpoints_file() -> PathBuf {
    directory().join("endpoints.yaml")
}

/// Makes the directory, with the Service.
pub(super) fn make() -> Result<()> {
    fs::create_dir(directory())?;
    let (address, port) = (SERVICE.ip(), SERVICE.port());
    let service = format!(
        "apiVersion: v1
kind: Service
metadata: {{name: web, namespace: default}}
spec:
  type: NodePort
  clusterIP: {address}
  clusterIPs: [{address}]
  ipFamilies: [IPv4]
  ports:
  - {{name: http, protocol: TCP, port: {port}, targetPort: {TARGET_PORT}, nodePort: {NODE_PORT}}}
"
    );
    fs::write(directory().join("service.yaml"), service).context("cannot write the Service")
}

/// Writes the EndpointSlice. Written elsewhere and moved into place: a file that grows while it is
/// read would be a Service with fewer endpoints for a moment, and correctly so.
pub(super) fn write_endpoints(pods: &[Pod]) -> Result<()> {
    let next = home("endpoints.yaml");
    fs::write(&next, endpoints(pods)?)?;
    fs::rename(next, endpoints_file()).context("cannot write the EndpointSlice")
}

/// One line for an endpoint, so that it is easily taken out and put in.
fn endpoints(pods: &[Pod]) -> Result<String> {
    let mut text = format!(
        "apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: web-1
  namespace: default
  labels: {{kubernetes.io/service-name: web}}
addressType: IPv4
ports:
- {{name: http, protocol: TCP, port: {TARGET_PORT}}}
"
    );
    text += if pods.is_empty() { "endpoints: []\n" } else { "endpoints:\n" };
    for Pod { name, address } in pods {
        writeln!(
            text,
            "- {{addresses: [{address}], conditions: {{ready: true}}, nodeName: {NODE_NAME}, \
             targetRef: {{kind: Pod, namespace: default, name: {name}}}}}"
        )?;
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_a_line() {
        let text = endpoints(&Pod::backends(2)).unwrap();
        let lines: Vec<_> = text.lines().filter(|line| line.contains("name: web-2")).collect();
        assert_eq!(lines.len(), 1);
        assert!(lines[0].starts_with("- {addresses: [10.244.7.12], "), "{text}");
        assert!(endpoints(&[]).unwrap().ends_with("endpoints: []\n"));
    }
}
