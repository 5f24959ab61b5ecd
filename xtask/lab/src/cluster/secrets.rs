//! Keys, certificates and tokens, made anew for each cluster and worth nothing outside of it.
//! openssl makes them: kube-apiserver's own certificate would lack the IPv6 address of
//! default/kubernetes, and it makes no key for service accounts.

use std::{
    fmt::Write as _,
    fs::{self, File},
    io::Read as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::{
    machine::quietly,
    network::{API_PORT, CONTROL, CONTROL_V6, KUBERNETES, KUBERNETES_V6},
    place::{kubeconfig, var},
};

/// Where the control box has them.
pub(super) const PKI: &str = "/var/lib/pki";

/// The users that a component is, each with the groups that RBAC's own bindings do not give it.
const ADMIN: (&str, &str) = ("admin", "system:masters");
pub(super) const CONTROLLERS: &str = "system:kube-controller-manager";
pub(super) const SCHEDULER: &str = "system:kube-scheduler";
const PROXY: &str = "system:kube-proxy";
/// No part of Kubernetes, so nothing binds it to a role.
const BALANCER: &str = "load-balancer";

/// Makes all of them, and a kubeconfig for each user.
pub(super) fn make(nodes: &[String]) -> Result<()> {
    let pki = var("control").join("lib/pki");
    fs::create_dir_all(&pki)?;
    certificates(&pki)?;
    let mut users = vec![(ADMIN.0.to_owned(), ADMIN.1, vec![kubeconfig()])];
    for (user, groups) in [(CONTROLLERS, ""), (SCHEDULER, ""), (BALANCER, ADMIN.1)] {
        let file = user.trim_start_matches("system:");
        users.push((user.to_owned(), groups, vec![pki.join(format!("{file}.kubeconfig"))]));
    }
    let directory = |node: &String| var(node).join("lib/node");
    for node in nodes {
        fs::create_dir_all(directory(node))?;
        let file = directory(node).join("kubelet.kubeconfig");
        users.push((format!("system:node:{node}"), "system:nodes", vec![file]));
    }
    let proxies = nodes.iter().map(|node| directory(node).join("kube-proxy.kubeconfig"));
    users.push((PROXY.to_owned(), "", proxies.collect()));

    let authority = base64(&pki.join("ca.crt"))?;
    let mut table = String::new();
    for (user, groups, files) in users {
        let token = token()?;
        writeln!(table, "{token},{user},{user},\"{groups}\"")?;
        for file in files {
            let text = kubeconfig_for(&authority, &token).to_string();
            fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))?;
        }
    }
    fs::write(pki.join("tokens.csv"), table).context("cannot write the tokens")
}

/// An authority, the API server's certificate, and a key that signs the tokens of service accounts.
fn certificates(pki: &Path) -> Result<()> {
    let openssl = |words: &[&str]| {
        quietly(Command::new("openssl").args(words).current_dir(pki))
            .context("cannot make the keys of the cluster")
    };
    let key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"];
    let new =
        |words: &[&str]| openssl(&[&["req", "-x509", "-days", "3650"], &key[..], words].concat());
    new(&["-keyout", "ca.key", "-out", "ca.crt", "-subj", "/CN=socklb-cluster"])?;
    let names = format!("subjectAltName={}", names());
    new(&[
        &["-CA", "ca.crt", "-CAkey", "ca.key", "-keyout", "apiserver.key"][..],
        &["-out", "apiserver.crt", "-subj", "/CN=kube-apiserver"],
        &["-addext", &names, "-addext", "basicConstraints=critical,CA:FALSE"],
    ]
    .concat())?;
    openssl(&["ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", "sa.key"])?;
    openssl(&["ec", "-in", "sa.key", "-pubout", "-out", "sa.pub"])
}

/// All names under which somebody may call the API server.
fn names() -> String {
    let dns = ["kubernetes", "kubernetes.default", "kubernetes.default.svc"];
    let long = ["kubernetes.default.svc.cluster.local", "localhost"];
    let dns = dns.iter().chain(&long).map(|name| format!("DNS:{name}"));
    let v4 = [CONTROL, KUBERNETES, [127, 0, 0, 1].into()].map(|address| format!("IP:{address}"));
    let v6 = [CONTROL_V6, KUBERNETES_V6].map(|address| format!("IP:{address}"));
    dns.chain(v4).chain(v6).collect::<Vec<_>>().join(",")
}

fn base64(file: &Path) -> Result<String> {
    let mut openssl = Command::new("openssl");
    Ok(super::machine::answer(openssl.args(["base64", "-A", "-in"]).arg(file))?.trim().to_owned())
}

/// 128 bits that nobody can guess.
fn token() -> Result<String> {
    let mut bytes = [0_u8; 16];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    let mut token = String::new();
    for byte in bytes {
        write!(token, "{byte:02x}")?;
    }
    Ok(token)
}

fn kubeconfig_for(authority: &str, token: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{ "name": "socklb-cluster", "cluster": {
            "server": format!("https://{CONTROL}:{API_PORT}"),
            "certificate-authority-data": authority,
        }}],
        "users": [{ "name": "user", "user": { "token": token } }],
        "contexts": [{
            "name": "socklb-cluster",
            "context": { "cluster": "socklb-cluster", "user": "user" },
        }],
        "current-context": "socklb-cluster",
    })
}

/// A secret of the control plane, as the control box sees it.
pub(super) fn path(file: &str) -> String {
    PathBuf::from(PKI).join(file).display().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_certificate_is_for_every_way_to_the_api_server() {
        let names = format!("{},", names());
        let ways = ["IP:172.30.0.1", "IP:10.96.0.1", "IP:fd00:96::1", "DNS:kubernetes.default.svc"];
        for way in ways {
            assert!(names.contains(&format!("{way},")), "{names} lacks {way}");
        }
    }

    #[test]
    fn no_token_is_like_another() {
        let (one, other) = (token().unwrap(), token().unwrap());
        assert!(one.len() == 32 && one != other, "{one} {other}");
    }
}
