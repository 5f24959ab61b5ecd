//! CoreDNS, as clusters have it. Only that it reaches the API server without a Service: it runs
//! where nobody serves any, too.

use std::time::Duration;

use anyhow::Result;
use serde_json::{Value, json};
use tools::wait::{Not, until};

use super::{
    control::API,
    live::Cluster,
    network::{API_PORT, CONTROL, DNS},
    supply::COREDNS,
};

const TAKES: Duration = Duration::from_secs(60);

pub(super) const WORKLOAD: &str = "deployment/coredns";
const COREFILE: &str = "\
.:53 {
    errors
    health {
        lameduck 5s
    }
    ready
    kubernetes cluster.local in-addr.arpa ip6.arpa {
        pods insecure
    }
    cache 5
    loadbalance
}
";

impl Cluster {
    /// An API server that is ready may have no namespaces and no addresses to give yet.
    pub(super) fn make_dns(&self) -> Result<()> {
        until("the API server to take objects", TAKES, &[&self.control().log(API)], || {
            self.apply(&objects()).map_err(|error| Not::Yet(format!("{error:#}")))
        })
    }
}

fn objects() -> Value {
    let name = json!({ "name": "coredns", "namespace": "kube-system" });
    let labels = json!({ "k8s-app": "kube-dns" });
    let watch = json!(["list", "watch"]);
    json!({ "apiVersion": "v1", "kind": "List", "items": [
        { "apiVersion": "v1", "kind": "ServiceAccount", "metadata": name },
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRole",
            "metadata": { "name": "system:coredns" },
            "rules": [
                {
                    "apiGroups": [""],
                    "resources": ["endpoints", "services", "pods", "namespaces"],
                    "verbs": watch,
                },
                {
                    "apiGroups": ["discovery.k8s.io"],
                    "resources": ["endpointslices"],
                    "verbs": watch,
                },
            ],
        },
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRoleBinding",
            "metadata": { "name": "system:coredns" },
            "roleRef": {
                "apiGroup": "rbac.authorization.k8s.io",
                "kind": "ClusterRole",
                "name": "system:coredns",
            },
            "subjects": [
                { "kind": "ServiceAccount", "name": "coredns", "namespace": "kube-system" },
            ],
        },
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": name,
            "data": { "Corefile": COREFILE },
        },
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": { "name": "coredns", "namespace": "kube-system", "labels": labels },
            "spec": {
                "replicas": 2,
                "selector": { "matchLabels": labels },
                "template": { "metadata": { "labels": labels }, "spec": pod() },
            },
        },
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": { "name": "kube-dns", "namespace": "kube-system", "labels": labels },
            "spec": {
                "selector": labels,
                "clusterIP": DNS.to_string(),
                "ports": [
                    { "name": "dns", "port": 53, "protocol": "UDP" },
                    { "name": "dns-tcp", "port": 53, "protocol": "TCP" },
                ],
            },
        },
    ]})
}

fn pod() -> Value {
    json!({
        "serviceAccountName": "coredns",
        "priorityClassName": "system-cluster-critical",
        "dnsPolicy": "Default",
        "tolerations": [{ "key": "CriticalAddonsOnly", "operator": "Exists" }],
        "topologySpreadConstraints": [{
            "maxSkew": 1,
            "topologyKey": "kubernetes.io/hostname",
            "whenUnsatisfiable": "ScheduleAnyway",
            "labelSelector": { "matchLabels": { "k8s-app": "kube-dns" } },
        }],
        "containers": [{
            "name": "coredns",
            "image": COREDNS,
            "imagePullPolicy": "IfNotPresent",
            "args": ["-conf", "/etc/coredns/Corefile"],
            "env": [
                { "name": "KUBERNETES_SERVICE_HOST", "value": CONTROL.to_string() },
                { "name": "KUBERNETES_SERVICE_PORT", "value": API_PORT.to_string() },
            ],
            "ports": [
                { "name": "dns", "containerPort": 53, "protocol": "UDP" },
                { "name": "dns-tcp", "containerPort": 53, "protocol": "TCP" },
            ],
            // A busy machine is not an unready pod.
            "readinessProbe": {
                "httpGet": { "path": "/ready", "port": 8181 }, "periodSeconds": 1, "timeoutSeconds": 5,
            },
            "volumeMounts": [{ "name": "config", "mountPath": "/etc/coredns", "readOnly": true }],
        }],
        "volumes": [{ "name": "config", "configMap": { "name": "coredns" } }],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_resolver_asks_the_api_server_itself() {
        let env = pod()["containers"][0]["env"].clone();
        assert_eq!(env[0], json!({ "name": "KUBERNETES_SERVICE_HOST", "value": "172.30.0.1" }));
        let kinds: Vec<_> = objects()["items"]
            .as_array()
            .unwrap()
            .iter()
            .map(|item| item["kind"].as_str().unwrap().to_owned())
            .collect();
        assert_eq!(kinds[0], "ServiceAccount");
        assert!(kinds.contains(&"ClusterRoleBinding".to_owned()));
    }
}
