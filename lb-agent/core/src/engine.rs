//! What carries out what was decided. An engine has a mirror of what it wrote, plans the difference,
//! and tries again what failed; none stops or hides another.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Display,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use crate::{
    claims::Claims,
    model::{Frontend, NodeAddr, ObjectRef},
    policy::Served,
};

/// What is to be different from what was wanted before.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// The Services that were decided about, each whole, with no frontend that is another one's. One
    /// that is [`Served::default`] is to go.
    pub services: BTreeMap<ObjectRef, Arc<Served>>,
    /// Whether `services` are all there are: whatever else an engine has is to go.
    pub is_whole: bool,
    /// Which addresses are nodes', if that is different.
    pub addresses: Option<NodeAddresses>,
}

/// Which addresses are nodes', and at which of them NodePorts are served.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct NodeAddresses {
    /// Each address at which NodePorts are served, and whose it is.
    pub of: BTreeMap<IpAddr, NodeAddr>,
    /// All addresses of this machine, also those at which no NodePorts are served.
    pub own: BTreeSet<IpAddr>,
    /// Whether all of 127.0.0.0/8 is this node's.
    pub loopback_net: bool,
}

/// What an engine says of a sync, if it has nothing more to say.
#[derive(Debug, Default)]
pub struct EngineReport {
    /// How many changes were carried out.
    pub ops: usize,
    /// How many entries there are now.
    pub entries: usize,
    /// The Services that failed, and why; they are tried again with the next sync.
    pub failed: BTreeMap<ObjectRef, String>,
    /// What else failed.
    pub beside: Vec<String>,
    /// The frontends of UDP that are new or went, or where others serve than before, if they are as they
    /// should be; each with the endpoints that serve there: what is remembered of flows that lead from it elsewhere is to be forgotten (L2). None
    /// serves at a frontend that went.
    pub flows: BTreeMap<Frontend, BTreeSet<SocketAddr>>,
    /// Where those of them are that are node ports: each address of this node, with the port, at which no
    /// other frontend is.
    pub node_ports: BTreeSet<SocketAddr>,
    /// The Services of those that were looked at whose senders stay for longer than they say: there are
    /// too many different timeouts.
    pub longer: BTreeSet<ObjectRef>,
}

/// One way of serving what is wanted.
pub trait Engine {
    /// What it says of a sync.
    type Report;

    /// What it is called.
    fn name(&self) -> &'static str;

    /// Reads what is really there and goes on from that, whatever was believed before: at the start, and
    /// whenever somebody else may have written. All that is wanted must come next. On error what is
    /// believed stays as it was.
    fn adopt(&mut self) -> Result<(), String>;

    /// Whether it was not told all that is wanted since it adopted what is there.
    fn lacks_all(&self) -> bool;

    /// Takes in what is wanted, and writes nothing.
    fn want(&mut self, wanted: &Wanted);

    /// Whether a sync would do something.
    fn is_dirty(&self) -> bool;

    /// Makes what is there say what is wanted, showing each change before it is carried out. What
    /// fails stays as it was, and is tried again with the next sync; the rest goes on. A frontend that
    /// is another Service's by `claims` stays until that one replaces it.
    fn sync(&mut self, claims: &Claims, show: &mut dyn FnMut(&dyn Display)) -> Self::Report;
}
