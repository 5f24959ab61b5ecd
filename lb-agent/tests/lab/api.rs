//! A client of the API server that does what `kubectl apply` and `kubectl delete` do, one thing
//! at a time. An object is written as JSON, so that it can be as wrong as the API server lets it be.

use std::path::Path;

use futures::StreamExt as _;
use k8s_openapi::api::{
    core::v1::{Namespace, Node, Pod, Service},
    discovery::v1::EndpointSlice,
    rbac::v1::{ClusterRole, ClusterRoleBinding},
};
use kube::{
    Api, Client, Config,
    api::{ApiResource, DeleteParams, DynamicObject, Patch, PatchParams, WatchEvent, WatchParams},
    config::{KubeConfigOptions, Kubeconfig},
};
use serde_json::Value;
use tokio::runtime::{Builder, Runtime};

pub(crate) struct Cluster {
    runtime: Runtime,
    client: Client,
}

impl Cluster {
    pub(crate) fn new(kubeconfig: &Path) -> Self {
        let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
        let client = runtime.block_on(async {
            let file = Kubeconfig::read_from(kubeconfig).expect("a kubeconfig");
            let config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await;
            Client::try_from(config.expect("a kubeconfig")).expect("a client")
        });
        Self { runtime, client }
    }

    /// Makes the object so, whether it is there or not; what `object` no longer says is removed.
    pub(crate) fn apply(&self, object: &Value) {
        let (api, name) = self.api(object);
        let params = PatchParams::apply("test").force();
        let applied = self.runtime.block_on(api.patch(&name, &params, &Patch::Apply(object)));
        applied.unwrap_or_else(|error| panic!("cannot apply {object}: {error}"));
    }

    /// The same for its status, which has to be all that `object` says.
    pub(crate) fn apply_status(&self, object: &Value) {
        let (api, name) = self.api(object);
        let params = PatchParams::apply("test").force();
        let applied =
            self.runtime.block_on(api.patch_status(&name, &params, &Patch::Apply(object)));
        applied.unwrap_or_else(|error| panic!("cannot apply the status of {object}: {error}"));
    }

    /// Deletes it at once.
    pub(crate) fn delete(&self, object: &Value) {
        let (api, name) = self.api(object);
        let params = DeleteParams::default().grace_period(0);
        let deleted = self.runtime.block_on(api.delete(&name, &params));
        deleted.unwrap_or_else(|error| panic!("cannot delete {object}: {error}"));
    }

    /// Whether the API server would take the object now. It does not keep it.
    pub(crate) fn would_apply(&self, object: &Value) -> kube::Result<()> {
        let (api, name) = self.api(object);
        let params = PatchParams { dry_run: true, ..PatchParams::apply("test").force() };
        self.runtime.block_on(api.patch(&name, &params, &Patch::Apply(object))).map(drop)
    }

    /// The version that a list of all Services has now.
    pub(crate) fn revision(&self) -> String {
        let api = Api::<Service>::all(self.client.clone());
        let list = self.runtime.block_on(api.list(&kube::api::ListParams::default()));
        let list = list.expect("a list of Services");
        list.metadata.resource_version.expect("a list with a version")
    }

    /// What a watch of Services is told that wants all changes since `revision`: the status of the
    /// error, if it is refused.
    pub(crate) fn refused_watch(&self, revision: &str) -> Option<u16> {
        let api = Api::<Service>::all(self.client.clone());
        let params = WatchParams::default().timeout(60);
        self.runtime.block_on(async {
            let events = match api.watch(&params, revision).await {
                Err(kube::Error::Api(status)) => return Some(status.code),
                events => events.expect("a watch"),
            };
            match events.boxed().next().await?.expect("an event") {
                WatchEvent::Error(status) => Some(status.code),
                _ => None,
            }
        })
    }

    fn api(&self, object: &Value) -> (Api<DynamicObject>, String) {
        let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str);
        let resource = match text("/kind") {
            Some("ClusterRole") => ApiResource::erase::<ClusterRole>(&()),
            Some("ClusterRoleBinding") => ApiResource::erase::<ClusterRoleBinding>(&()),
            Some("Namespace") => ApiResource::erase::<Namespace>(&()),
            Some("Node") => ApiResource::erase::<Node>(&()),
            Some("Pod") => ApiResource::erase::<Pod>(&()),
            Some("Service") => ApiResource::erase::<Service>(&()),
            Some("EndpointSlice") => ApiResource::erase::<EndpointSlice>(&()),
            kind => panic!("objects of kind {kind:?} are not made here"),
        };
        let client = self.client.clone();
        let api = match text("/metadata/namespace") {
            Some(namespace) => Api::namespaced_with(client, namespace, &resource),
            None => Api::all_with(client, &resource),
        };
        (api, text("/metadata/name").expect("an object with a name").to_owned())
    }
}
