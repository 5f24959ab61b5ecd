//! The objects that tests create. A slice made here is managed by nobody: its Service has no
//! selector.

use serde_json::{Value, json};

pub(crate) fn namespace(name: &str) -> Value {
    json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name } })
}

/// `port` is forwarded to whatever port a slice says.
pub(crate) fn service(namespace: &str, name: &str, ip: &str, port: u16) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": { "namespace": namespace, "name": name },
        "spec": { "clusterIP": ip, "ports": [{ "port": port, "protocol": "TCP" }] },
    })
}

/// A Service whose slices are made from the pods with the label `app: NAME`, by their port `http`.
pub(crate) fn selecting_service(namespace: &str, name: &str, ip: &str, port: u16) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": { "namespace": namespace, "name": name },
        "spec": {
            "clusterIP": ip,
            "selector": { "app": name },
            "ports": [{ "port": port, "protocol": "TCP", "targetPort": "http" }],
        },
    })
}

/// Ready endpoints of a Service, all on one port.
pub(crate) fn slice(
    namespace: &str,
    name: &str,
    service: &str,
    addresses: &[impl AsRef<str>],
    port: u16,
) -> Value {
    let endpoint = |address: &_| {
        let address: &str = AsRef::as_ref(address);
        json!({ "addresses": [address], "conditions": { "ready": true } })
    };
    json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "namespace": namespace,
            "name": name,
            "labels": { "kubernetes.io/service-name": service },
        },
        "addressType": "IPv4",
        "ports": [{ "name": "", "port": port, "protocol": "TCP" }],
        "endpoints": addresses.iter().map(endpoint).collect::<Vec<_>>(),
    })
}

/// A node that nobody runs.
pub(crate) fn node(name: &str) -> Value {
    json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": name } })
}

/// What the kubelet would say about its node. The API server takes one address of a type from whom
/// applies.
pub(crate) fn node_status(name: &str, addresses: &[&str; 2]) -> Value {
    let types = ["InternalIP", "ExternalIP"];
    let address = |(ip, of): (&&str, &str)| json!({ "type": of, "address": ip });
    json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": { "name": name },
        "status": { "addresses": addresses.iter().zip(types).map(address).collect::<Vec<_>>() },
    })
}

/// A pod that nobody runs, of the Service `app`, bound to `node`.
pub(crate) fn pod(namespace: &str, name: &str, app: &str, node: &str, port: u16) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "namespace": namespace, "name": name, "labels": { "app": app } },
        "spec": {
            "nodeName": node,
            "containers": [{
                "name": "web",
                "image": "none",
                "ports": [{ "name": "http", "containerPort": port }],
            }],
        },
    })
}

/// What the kubelet would say about a pod that runs.
pub(crate) fn pod_status(namespace: &str, name: &str, ip: &str, ready: bool) -> Value {
    let ready = if ready { "True" } else { "False" };
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "namespace": namespace, "name": name },
        "status": {
            "phase": "Running",
            "podIP": ip,
            "podIPs": [{ "ip": ip }],
            "conditions": [{ "type": "Ready", "status": ready }],
        },
    })
}

/// The right to read `resource` of `group` everywhere.
pub(crate) fn reader(name: &str, group: &str, resource: &str) -> Value {
    json!({
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRole",
        "metadata": { "name": name },
        "rules": [{ "apiGroups": [group], "resources": [resource], "verbs": ["list", "watch"] }],
    })
}

/// Grants the right of that name to a user.
pub(crate) fn grant(name: &str, user: &str) -> Value {
    let group = "rbac.authorization.k8s.io";
    json!({
        "apiVersion": format!("{group}/v1"),
        "kind": "ClusterRoleBinding",
        "metadata": { "name": name },
        "roleRef": { "apiGroup": group, "kind": "ClusterRole", "name": name },
        "subjects": [{ "apiGroup": group, "kind": "User", "name": user }],
    })
}
