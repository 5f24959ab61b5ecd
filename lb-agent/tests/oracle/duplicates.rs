//! An address in several slices of one Service.
//!
//! Where the slices say different things of it, kube-proxy believes one that is not terminating
//! (B8); among several such, or several terminating ones, the order of a Go map decides, which is
//! another one every time. Cases leave that open to nobody: what a slice says of an address that
//! another slice has too, and in the same class, is what the other one says.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};
use lb_agent::sources::translate;

use super::{
    case::{Key, Object, label},
    objects::{HEADLESS, SERVICE_NAME},
};

/// Makes the changed slices agree with the others, and with each other.
pub(crate) fn settle(live: &mut BTreeMap<Key, Object>, changed: &BTreeSet<Key>) {
    let mut settled: Vec<EndpointSlice> = Vec::new();
    for (key, object) in live.iter() {
        if let (Object::Slice(slice), false) = (object, changed.contains(key)) {
            settled.push((**slice).clone());
        }
    }
    for key in changed {
        let Some(Object::Slice(slice)) = live.get_mut(key) else { continue };
        let owner = owner(slice);
        let mates = settled.iter().filter(|mate| owner.is_some() && self::owner(mate) == owner);
        let facts = facts(mates);
        for endpoint in slice.endpoints.iter_mut().flatten() {
            if let Some(known) = class(endpoint).and_then(|class| facts.get(&class)) {
                endpoint.conditions.clone_from(&known.conditions);
                endpoint.node_name.clone_from(&known.node_name);
                endpoint.hints.clone_from(&known.hints);
            }
        }
        settled.push((**slice).clone());
    }
}

/// The Service whose endpoints a slice adds to.
fn owner(slice: &EndpointSlice) -> Option<(Option<String>, String)> {
    let meta = &slice.metadata;
    if label(meta, HEADLESS).is_some() {
        return None;
    }
    Some((meta.namespace.clone(), label(meta, SERVICE_NAME)?.to_owned()))
}

/// Address, and whether it is terminating.
type Class = (IpAddr, bool);

fn class(endpoint: &Endpoint) -> Option<Class> {
    let address = translate::address(endpoint.addresses.first()?).ok()?;
    let conditions = endpoint.conditions.as_ref();
    Some((address, conditions.and_then(|it| it.terminating).unwrap_or_default()))
}

/// What settled slices say: of one slice the last one counts if it is not terminating, else the first.
fn facts<'a>(slices: impl Iterator<Item = &'a EndpointSlice>) -> BTreeMap<Class, Endpoint> {
    let mut facts = BTreeMap::new();
    for endpoint in slices.flat_map(|slice| slice.endpoints.iter().flatten()) {
        let Some(class) = class(endpoint) else { continue };
        if class.1 {
            facts.entry(class).or_insert_with(|| endpoint.clone());
        } else {
            facts.insert(class, endpoint.clone());
        }
    }
    facts
}
