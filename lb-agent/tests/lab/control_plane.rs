//! etcd, kube-apiserver and kube-controller-manager, on loopback of the sandbox.

use std::{
    env,
    fmt::Display,
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use k8s_openapi::ByteString;
use nix::sys::signal::Signal;
use ring::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _},
};
use serde_json::{Value, json};

use super::{api::Cluster, cgroup, eventually, objects::service, process::Process};

/// The address that the API server says it has; it refuses to say 127.0.0.1.
pub(crate) const ADDRESS: &str = "172.31.255.1";
/// Where the API server listens.
pub(crate) const ENDPOINT: &str = "172.31.255.1:6443";
/// The first address of the Service range: default/kubernetes.
pub(crate) const KUBERNETES: &str = "10.96.0.1:443";
const SERVICES: &str = "10.96.0.0/16,fd00:96::/108";
const ETCD: &str = "127.0.0.1:2379";
/// Of a user who may do everything.
const TOKEN: &str = "the-token-of-the-test";
/// Of the user [`GUEST`], who may do nothing until somebody grants it.
pub(crate) const GUEST_TOKEN: &str = "the-token-of-the-guest";
pub(crate) const GUEST: &str = "guest";
/// Of the user [`PROXY`], who may do nothing either.
const PROXY_TOKEN: &str = "the-token-of-a-proxy";
pub(crate) const PROXY: &str = "proxy";
/// What stands before a point of P-256 in a public key (RFC 5480): its algorithm and its curve.
const P256_PUBLIC: &[u8] = b"\x30\x59\x30\x13\x06\x07\x2a\x86\x48\xce\x3d\x02\x01\x06\x08\x2a\
    \x86\x48\xce\x3d\x03\x01\x07\x03\x42\x00";
const STARTS: Duration = Duration::from_secs(60);

/// The whole of it. What is private in the files is a secret for nobody: it all lives for one test.
pub(crate) struct ControlPlane {
    // Dropped in this order, so that nobody complains about who went first.
    controllers: Option<Process>,
    apiserver: Option<Process>,
    _etcd: Process,
    programs: PathBuf,
    directory: PathBuf,
    /// Where all of it belongs: a node comes and goes, with this process on it.
    cgroup: PathBuf,
}

impl ControlPlane {
    /// Starts all of it and waits until the API answers.
    pub(crate) fn start(directory: &Path) -> Self {
        let programs = env::var_os("SOCKLB_KUBE_BIN").map(PathBuf::from).expect(
            "SOCKLB_KUBE_BIN is not set: it names a directory with kube-apiserver, \
             kube-controller-manager and etcd, and `cargo xtask kube` builds and prints one",
        );
        let directory = directory.join("control-plane");
        fs::create_dir(&directory).expect("a directory");
        write_secrets(&directory);
        let mut etcd = Command::new(programs.join("etcd"));
        etcd.arg("--data-dir").arg(directory.join("etcd"));
        etcd.args(["--listen-client-urls", &format!("http://{ETCD}")]);
        etcd.args(["--advertise-client-urls", &format!("http://{ETCD}")]);
        etcd.args(["--listen-peer-urls", "http://127.0.0.1:0", "--logger", "zap"]);
        let cgroup = cgroup::of_this_process();
        let etcd = Process::start("etcd", &directory, &mut etcd);
        eventually(STARTS, || {
            TcpStream::connect(ETCD).map_err(|error| format!("etcd: {error}\n{}", etcd.log()))
        });
        let mut new =
            Self { controllers: None, apiserver: None, _etcd: etcd, programs, directory, cgroup };
        new.start_apiserver();
        new.start_controllers();
        new
    }

    /// A kubeconfig with the CA that signed the API server's certificate.
    pub(crate) fn kubeconfig(&self) -> PathBuf {
        self.directory.join("kubeconfig")
    }

    /// The same for [`GUEST`].
    pub(crate) fn guest_kubeconfig(&self) -> PathBuf {
        self.directory.join("guest.kubeconfig")
    }

    /// The same for [`PROXY`].
    pub(crate) fn proxy_kubeconfig(&self) -> PathBuf {
        self.directory.join("proxy.kubeconfig")
    }

    /// A program of Kubernetes.
    pub(crate) fn program(&self, name: &str) -> PathBuf {
        self.programs.join(name)
    }

    /// A client with all rights.
    pub(crate) fn client(&self) -> Cluster {
        Cluster::new(&self.kubeconfig())
    }

    /// Kills the API server as a crash of its machine would.
    pub(crate) fn kill_apiserver(&mut self) {
        let mut apiserver = self.apiserver.take().expect("an API server that runs");
        apiserver.stop(Signal::SIGKILL);
    }

    /// Starts the API server if it does not run.
    pub(crate) fn ensure_apiserver(&mut self) {
        if self.apiserver.is_none() {
            self.start_apiserver();
        }
    }

    /// Starts the API server and waits until it answers.
    pub(crate) fn start_apiserver(&mut self) {
        let own = |name| self.directory.join(name).into_os_string().into_string().expect("UTF-8");
        let mut apiserver = Command::new(self.programs.join("kube-apiserver"));
        apiserver.args([
            format!("--etcd-servers=http://{ETCD}"),
            // Compaction happens when the test says so.
            "--etcd-compaction-interval=0".to_owned(),
            format!("--bind-address={ADDRESS}"),
            format!("--advertise-address={ADDRESS}"),
            "--secure-port=6443".to_owned(),
            // It makes its own CA and certificate, the first time.
            format!("--cert-dir={}", own("pki")),
            format!("--service-cluster-ip-range={SERVICES}"),
            format!("--token-auth-file={}", own("tokens.csv")),
            "--authorization-mode=RBAC".to_owned(),
            "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
            format!("--service-account-key-file={}", own("service-account.pub")),
            format!("--service-account-signing-key-file={}", own("service-account.key")),
            // Pods of the test need no token, and nobody makes one.
            "--disable-admission-plugins=ServiceAccount".to_owned(),
        ]);
        let apiserver = Process::start("kube-apiserver", &self.directory, &mut apiserver);
        cgroup::join(&self.cgroup, apiserver.id()).expect("kube-apiserver in its cgroup");
        self.apiserver = Some(apiserver);
        self.await_apiserver();
    }

    fn await_apiserver(&mut self) {
        let certificate = self.directory.join("pki/apiserver.crt");
        // It listens after it has written its certificate, and long before it answers.
        self.await_progress(|| TcpStream::connect(ENDPOINT));
        let authority = fs::read(certificate).expect("the API server's certificate");
        write_kubeconfig(&self.kubeconfig(), &authority, TOKEN);
        write_kubeconfig(&self.guest_kubeconfig(), &authority, GUEST_TOKEN);
        write_kubeconfig(&self.proxy_kubeconfig(), &authority, PROXY_TOKEN);
        let client = self.client();
        // Addresses are what it has ready last.
        let mut probe = service("default", "probe", "", 80);
        probe["spec"]["ipFamilyPolicy"] = json!("RequireDualStack");
        self.await_progress(|| client.would_apply(&probe));
    }

    /// Repeats what does not work yet, as long as the API server runs.
    fn await_progress<T, E: Display>(&mut self, mut attempt: impl FnMut() -> Result<T, E>) {
        let apiserver = self.apiserver.as_mut().expect("an API server that was started");
        eventually(STARTS, || {
            assert!(apiserver.ended().is_none(), "kube-apiserver ended");
            attempt().map_err(|error| format!("kube-apiserver: {error}"))
        });
    }

    fn start_controllers(&mut self) {
        let mut controllers = Command::new(self.programs.join("kube-controller-manager"));
        controllers.arg("--kubeconfig").arg(self.kubeconfig());
        // Only what makes slices from pods, and what removes the slices of a deleted Service. No
        // node controller, which would find out that there is nobody behind our nodes.
        controllers.arg("--controllers=endpointslice-controller,garbage-collector-controller");
        controllers.args(["--leader-elect=false", "--secure-port=0"]);
        let process = Process::start("kube-controller-manager", &self.directory, &mut controllers);
        self.controllers = Some(process);
    }

    /// Makes etcd forget every revision before the present one: a watch that asks for changes since
    /// an older one is told "too old resource version", and has to list again.
    #[expect(clippy::unused_self, reason = "there is an etcd as long as this is borrowed")]
    pub(crate) fn compact(&self) {
        let any = etcd("/v3/kv/range", &json!({ "key": "AA==", "limit": 1 }));
        let revision = any.pointer("/header/revision").expect("a revision").clone();
        etcd("/v3/kv/compaction", &json!({ "revision": revision, "physical": true }));
    }
}

/// Asks etcd by its JSON gateway, so that no etcdctl is needed.
fn etcd(path: &str, body: &Value) -> Value {
    let body = body.to_string();
    let mut stream = TcpStream::connect(ETCD).expect("a connection to etcd");
    let length = body.len();
    let request = format!("POST {path} HTTP/1.0\r\nContent-Length: {length}\r\n\r\n{body}");
    stream.write_all(request.as_bytes()).expect("a request to etcd");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("etcd's answer");
    assert!(answer.contains(" 200 OK\r\n"), "etcd: POST {path} {body}: {answer}");
    let (_, body) = answer.split_once("\r\n\r\n").expect("headers and a body");
    serde_json::from_str(body).unwrap_or_else(|error| panic!("etcd: {error}: {body}"))
}

fn write_secrets(directory: &Path) {
    let users = format!(
        "{TOKEN},test,test,system:masters\n{GUEST_TOKEN},{GUEST},{GUEST}\n\
         {PROXY_TOKEN},{PROXY},{PROXY}\n"
    );
    fs::write(directory.join("tokens.csv"), users).expect("a file of tokens");
    let (random, algorithm) = (SystemRandom::new(), &ECDSA_P256_SHA256_ASN1_SIGNING);
    let private = EcdsaKeyPair::generate_pkcs8(algorithm, &random).expect("a key");
    let pair = EcdsaKeyPair::from_pkcs8(algorithm, private.as_ref(), &random).expect("that key");
    let public = [P256_PUBLIC, pair.public_key().as_ref()].concat();
    write_pem(&directory.join("service-account.key"), "PRIVATE KEY", private.as_ref());
    write_pem(&directory.join("service-account.pub"), "PUBLIC KEY", &public);
}

fn write_pem(path: &Path, kind: &str, bytes: &[u8]) {
    let text = base64(bytes);
    fs::write(path, format!("-----BEGIN {kind}-----\n{text}\n-----END {kind}-----\n"))
        .expect("a PEM file");
}

/// A kubeconfig for the API server that trusts `authority` (PEM).
pub(crate) fn write_kubeconfig(path: &Path, authority: &[u8], token: &str) {
    let config = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{ "name": "test", "cluster": {
            "server": format!("https://{ENDPOINT}"),
            "certificate-authority-data": base64(authority),
        }}],
        "users": [{ "name": "test", "user": { "token": token } }],
        "contexts": [{ "name": "test", "context": { "cluster": "test", "user": "test" } }],
        "current-context": "test",
    });
    fs::write(path, config.to_string()).expect("a kubeconfig");
}

fn base64(bytes: &[u8]) -> String {
    match serde_json::to_value(ByteString(bytes.to_vec())) {
        Ok(Value::String(text)) => text,
        other => panic!("bytes are a string in JSON: {other:?}"),
    }
}
