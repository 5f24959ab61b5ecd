//! Services, EndpointSlices and Nodes from the API server: list, watch, and list again after a gap.

mod access;

use std::{
    collections::{BTreeMap, HashSet},
    fmt::Debug,
    time::{Duration, Instant},
};

use futures::{StreamExt as _, pin_mut};
use k8s_openapi::api::{
    core::v1::{Node as KubeNode, Service as KubeService},
    discovery::v1::EndpointSlice,
};
use kube::{
    Api, Resource,
    core::DeserializeGuard,
    runtime::{utils::Backoff as _, watcher},
};
use lb_core::model::{Change, ObjectRef};
use serde::de::DeserializeOwned;
use tokio::time::sleep;

use self::access::Cause;
pub use self::access::{ApiAccess, ApiServer};
use super::{Changes, Problem, Problems, Wait, Waits, lasting::Lasting, translate};
use crate::log;

/// The label that names a Service's proxy (A1).
const PROXY_NAME: &str = "service.kubernetes.io/service-proxy-name";
/// The longest pause before the first list of a kind is there. With the time that a
/// connection may take it is less than the loop waits for Nodes when all else is known: a kind that only pauses must not be taken for one that
/// nobody lets us see.
const UNLISTED: Duration = Duration::from_secs(10);
/// A watch says nothing until something changes. After this long without an error it has worked again
/// meanwhile: no try takes longer, with the pause before it.
const QUIET: Duration = Duration::from_secs(300);

/// Follows all three kinds until the receiver is gone. With `proxy_name`, only Services that ask for
/// the proxy of that name. `waits` is told why a kind is not listed yet.
pub async fn run(server: ApiServer, proxy_name: Option<&str>, changes: Changes, waits: Waits) {
    // What the API server can leave out by itself; `translate` leaves out the rest (A1, A2, A4).
    let ours = match proxy_name {
        Some(name) => format!("{PROXY_NAME}={name}"),
        None => format!("!{PROXY_NAME}"),
    };
    let services = follow::<KubeService>(
        server.clone(),
        watcher::Config::default().labels(&ours),
        changes.clone(),
        waits.clone(),
    );
    let slices = follow::<EndpointSlice>(
        server.clone(),
        watcher::Config::default().labels("!service.kubernetes.io/headless"),
        changes.clone(),
        waits.clone(),
    );
    let nodes = follow::<KubeNode>(server, watcher::Config::default(), changes, waits);
    tokio::join!(services, slices, nodes);
}

/// A kind of object that becomes a part of the model.
trait Kind: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + 'static {
    /// What it becomes.
    type Model: Send;
    /// How logs call it.
    const NAME: &'static str;
    /// Objects per page of a list: what is held decoded at one time.
    const PAGE: u32 = 500;
    fn translate(&self) -> translate::Translated<Self::Model>;
    fn change(name: ObjectRef, model: Option<Self::Model>) -> Change;
    fn listed(all: BTreeMap<ObjectRef, Self::Model>) -> Change;
    fn label(name: &ObjectRef) -> String {
        format!("{} {name}", Self::NAME)
    }
}

impl Kind for KubeService {
    type Model = lb_core::model::Service;
    const NAME: &'static str = "Service";

    fn translate(&self) -> translate::Translated<Self::Model> {
        translate::service(self)
    }

    fn change(name: ObjectRef, model: Option<Self::Model>) -> Change {
        Change::Service(name, model)
    }

    fn listed(all: BTreeMap<ObjectRef, Self::Model>) -> Change {
        Change::ListedServices(all)
    }
}

impl Kind for EndpointSlice {
    type Model = lb_core::model::Slice;
    const NAME: &'static str = "EndpointSlice";

    fn translate(&self) -> translate::Translated<Self::Model> {
        translate::slice(self)
    }

    fn change(name: ObjectRef, model: Option<Self::Model>) -> Change {
        Change::Slice(name, model)
    }

    fn listed(all: BTreeMap<ObjectRef, Self::Model>) -> Change {
        Change::ListedSlices(all)
    }
}

impl Kind for KubeNode {
    type Model = lb_core::model::Node;
    const NAME: &'static str = "Node";
    /// A Node has some 20 kB, most of it names of images.
    const PAGE: u32 = 100;

    fn translate(&self) -> translate::Translated<Self::Model> {
        translate::node(self)
    }

    fn change(name: ObjectRef, model: Option<Self::Model>) -> Change {
        Change::Node(name.name, model)
    }

    fn listed(all: BTreeMap<ObjectRef, Self::Model>) -> Change {
        Change::ListedNodes(all.into_iter().map(|(name, node)| (name.name, node)).collect())
    }

    fn label(name: &ObjectRef) -> String {
        format!("{} {}", Self::NAME, name.name)
    }
}

async fn follow<K: Kind>(
    server: ApiServer,
    config: watcher::Config,
    changes: Changes,
    waits: Waits,
) {
    let unlisted = |why: &str, remedy: &str| {
        let wait = Wait { why: why.to_owned(), remedy: remedy.to_owned() };
        waits.send_modify(|waits| drop(waits.insert(K::NAME, wait)));
    };
    unlisted("the API server has not answered yet", "check the server's address and the way to it");
    // One object that does not decode must not stop the watch of all others.
    let api: Api<DeserializeGuard<K>> = Api::all(server.client);
    let events = watcher(api, config.page_size(K::PAGE));
    pin_mut!(events);
    let mut pauses = Pauses::default();
    let mut problems = Problems::default();
    let mut listing = BTreeMap::new();
    let mut troubled = HashSet::new();
    let mut trouble = Lasting::default();
    let mut failed: Option<Instant> = None;
    while let Some(event) = events.next().await {
        let change = match event {
            Err(error) if is_gap(&error) => {
                tracing::info!(kind = K::NAME, "too far behind the API server: listing anew");
                sleep(pauses.pause()).await;
                continue;
            }
            Err(error) => {
                // It is tried again and again, for hours perhaps.
                let blamed = server.plugin.as_ref().and_then(|plugin| plugin.blamed(&error));
                let cause = blamed
                    .unwrap_or_else(|| Cause::new(log::whole(&error), remedy(&error).to_owned()));
                let now = Instant::now();
                if failed.is_some_and(|at| now.duration_since(at) > QUIET) {
                    trouble.end();
                }
                if !pauses.listed {
                    unlisted(&cause.to_string(), &cause.remedy);
                }
                if trouble.is_due(&cause.what, now) {
                    tracing::error!(kind = K::NAME, remedy = cause.remedy, "{cause}");
                }
                failed = Some(now);
                sleep(pauses.pause()).await;
                continue;
            }
            Ok(event) => {
                pauses.answered(&event);
                // `Init` says only that a list is about to be asked for.
                if !matches!(event, watcher::Event::Init) && trouble.end() {
                    tracing::info!(kind = K::NAME, "the API server answers again");
                }
                match event {
                    watcher::Event::Init => {
                        listing.clear();
                        troubled.clear();
                        continue;
                    }
                    watcher::Event::InitApply(object) => {
                        let (name, model) = read(object, &mut problems);
                        if problems.has(&K::label(&name)) {
                            troubled.insert(K::label(&name));
                        }
                        if let Some(model) = model {
                            listing.insert(name, model);
                        }
                        continue;
                    }
                    watcher::Event::InitDone => {
                        let all = std::mem::take(&mut listing);
                        problems.keep(&troubled);
                        tracing::info!(kind = K::NAME, objects = all.len(), "listed");
                        waits.send_modify(|waits| drop(waits.remove(K::NAME)));
                        K::listed(all)
                    }
                    watcher::Event::Apply(object) => {
                        let (name, model) = read(object, &mut problems);
                        K::change(name, model)
                    }
                    watcher::Event::Delete(object) => {
                        let name = translate::object_ref(meta(&object));
                        problems.forget(&K::label(&name));
                        K::change(name, None)
                    }
                }
            }
        };
        if changes.send(change).await.is_err() {
            return;
        }
    }
}

/// How long to wait before the API server is asked again. What kube does by itself begins anew at
/// each [`watcher::Event::Init`], which comes before anything is asked: as long as there is no list, its
/// pauses do not grow.
#[derive(Default)]
struct Pauses {
    backoff: watcher::DefaultBackoff,
    listed: bool,
}

impl Pauses {
    fn pause(&mut self) -> Duration {
        let longest = if self.listed { Duration::MAX } else { UNLISTED };
        self.backoff.next().unwrap_or(UNLISTED).min(longest)
    }

    /// The pauses are short again, once a list is whole or a watch says something.
    fn answered<K>(&mut self, event: &watcher::Event<K>) {
        match event {
            watcher::Event::Init | watcher::Event::InitApply(_) => return,
            watcher::Event::InitDone => self.listed = true,
            watcher::Event::Apply(_) | watcher::Event::Delete(_) => {}
        }
        self.backoff.reset();
    }
}

fn meta<K: Kind>(
    object: &DeserializeGuard<K>,
) -> &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta {
    object.meta()
}

fn read<K: Kind>(
    object: DeserializeGuard<K>,
    problems: &mut Problems,
) -> (ObjectRef, Option<K::Model>) {
    let name = translate::object_ref(meta(&object));
    let (model, found) = match object.0 {
        Ok(object) => object.translate(),
        Err(invalid) => {
            let remedy = "the object is ignored: correct it";
            (None, vec![Problem::new("object", invalid.error, remedy)])
        }
    };
    problems.set(&K::label(&name), found);
    (name, model)
}

/// Whether the API server no longer knows what followed the last event: all in a day's work.
fn is_gap(error: &watcher::Error) -> bool {
    status(error) == Some(410)
}

/// What to do about it.
fn remedy(error: &watcher::Error) -> &'static str {
    match status(error) {
        Some(401) => "the API server does not know us: check the kubeconfig's user or the token",
        Some(403) => "grant list and watch on services, nodes and endpointslices.discovery.k8s.io",
        _ => "check the server's address, its certificate and the way to it; trying again",
    }
}

/// The HTTP status that the API server gave.
fn status(error: &watcher::Error) -> Option<u16> {
    match error {
        watcher::Error::InitialListFailed(kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(kube::Error::Api(status))
        | watcher::Error::WatchFailed(kube::Error::Api(status))
        | watcher::Error::WatchError(status) => Some(status.code),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_until_something_came_of_it() {
        const SHORT: Duration = Duration::from_secs(2);
        let mut pauses = Pauses::default();
        assert!(pauses.pause() < SHORT);
        for _ in 0..8 {
            pauses.answered(&watcher::Event::<()>::Init);
            pauses.pause();
        }
        assert_eq!(pauses.pause(), UNLISTED);
        pauses.answered(&watcher::Event::InitApply(()));
        assert_eq!(pauses.pause(), UNLISTED, "a list that ends half-way");

        pauses.answered(&watcher::Event::<()>::InitDone);
        assert!(pauses.pause() < SHORT);
        for _ in 0..8 {
            pauses.pause();
        }
        assert!(pauses.pause() > UNLISTED, "who has a list can wait");
        pauses.answered(&watcher::Event::Apply(()));
        assert!(pauses.pause() < SHORT);
    }
}
