//! Looking for sockets without keeping the agent's loop waiting: a thread that looks and destroys,
//! while what is judged in between stays with whoever knows the truth.
//!
//! ```text
//! agent:   sync ──look()──▶           ◀──Seen── judge ──destroy()──▶          ◀──Done── count
//! thread:                   scan ────────▶                          SOCK_DESTROY ──▶
//! ```
//!
//! After a request it looks at once, and again half a second later, since a connect() in flight may
//! have chosen from the set of before; and every 30 seconds without being asked. Requests that come
//! together are one. TCP sockets that wait to be connected are looked for in the same way, but only
//! when they are asked for.

use std::{
    collections::BTreeMap,
    io,
    path::Path,
    sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    thread,
    time::{Duration, Instant},
};

use tokio::sync::mpsc;

use super::{
    Destroyed, EndReason, Found, Scanner, SocketKind, SocketMaps, agenda::Agenda, destroy,
    diag::Diag, healed::Healed, said::Said, without_servers,
};

/// Nothing happens before the first request; the thread wakes all the same.
const IDLE: Duration = Duration::from_secs(30);
/// What it costs when sockets cannot be looked for or ended.
const COST: &str = "connected sockets stay with backends that are gone";
const COST_OF_DIALLING: &str =
    "connections that were begun before there was their Service go on waiting";

enum Order {
    Look,
    LookForDialling,
    Destroy(Vec<(Found, EndReason)>),
}

/// What the thread has to say.
#[derive(Debug)]
pub enum News {
    /// Candidates, if there are any: to be judged, and the condemned handed to [`Sweeper::destroy`].
    /// And how long the search took.
    Seen(Vec<Found>, Duration),
    /// What became of the condemned, by the reason.
    Done(BTreeMap<EndReason, Destroyed>),
}

/// The thread's handle. The thread ends when it is dropped.
#[derive(Debug)]
pub struct Sweeper {
    orders: Sender<Order>,
}

impl Sweeper {
    /// Starts the thread, in the network namespace of the caller. It looks for sockets of these
    /// kinds with what `maps` ([`super::open`]) have for them; `cgroup` is where the programs are
    /// attached. It does not look before it is asked, so that nothing is judged on partial knowledge;
    /// from then on also by itself.
    pub fn start(
        maps: SocketMaps,
        cgroup: &Path,
        kinds: &[SocketKind],
    ) -> io::Result<(Self, mpsc::Receiver<News>)> {
        let (orders, inbox) = channel();
        // What the agent has not read yet keeps the thread from looking again.
        let (outbox, news) = mpsc::channel(1);
        let (cgroup, kinds) = (cgroup.to_owned(), probed(kinds));
        thread::Builder::new().name("sweeper".into()).spawn(move || {
            match Scanner::new(&maps, &cgroup) {
                Ok(scanner) if !kinds.is_empty() => {
                    let (healed, said) = (Healed::default(), Said::default());
                    let mut sweep = Sweep { scanner, kinds, outbox, healed, said };
                    // It ends with the agent.
                    let _ = sweep.run(&inbox);
                }
                result => {
                    if let Err(error) = result {
                        tracing::warn!(%error, "{COST}: what is stored for sockets cannot be read");
                    }
                    // There is nothing that could be done.
                    while inbox.recv().is_ok() {}
                }
            }
        })?;
        Ok((Self { orders }, news))
    }

    /// Asks for a look at once, and for another. Never waits.
    pub fn look(&self) {
        self.order(Order::Look);
    }

    /// The same for TCP sockets that wait to be connected.
    pub fn look_for_dialling(&self) {
        self.order(Order::LookForDialling);
    }

    /// Hands over sockets that have to go. Never waits.
    pub fn destroy(&self, condemned: Vec<(Found, EndReason)>) {
        if !condemned.is_empty() {
            self.order(Order::Destroy(condemned));
        }
    }

    fn order(&self, order: Order) {
        if self.orders.send(order).is_err() {
            // It panicked, which has been logged.
            tracing::error!("the thread that ends stale sockets has died");
        }
    }
}

/// The other side has ended.
struct Ended;

struct Sweep {
    scanner: Scanner,
    kinds: Vec<SocketKind>,
    outbox: mpsc::Sender<News>,
    healed: Healed,
    said: Said,
}

impl Sweep {
    fn run(&mut self, inbox: &Receiver<Order>) -> Result<(), Ended> {
        let mut agendas = Agendas { flows: Agenda::periodic(), dialling: Agenda::on_request() };
        loop {
            let now = Instant::now();
            let wait = agendas.due().map_or(IDLE, |due| due.saturating_duration_since(now));
            match inbox.recv_timeout(wait) {
                Ok(order) => {
                    self.obey(order, &mut agendas)?;
                    // Requests that came together.
                    while let Ok(order) = inbox.try_recv() {
                        self.obey(order, &mut agendas)?;
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Err(Ended),
            }
            let began = Instant::now();
            let due = agendas.due_at(began);
            if due != Due::default() {
                let sight = self.scanner.scan(&due.kinds(&self.kinds));
                let ended = Instant::now();
                agendas.looked(due, began, ended);
                self.said.sight(&sight);
                let took = ended - began;
                let (namespaces, sockets) = (sight.namespaces, sight.found.len());
                tracing::trace!(namespaces, sockets, ?took, "looked for stale sockets");
                let mut found = sight.found;
                self.healed.expire(ended);
                found.retain(|found| self.healed.is_fresh(found));
                self.report(News::Seen(found, took))?;
            }
        }
    }

    fn obey(&mut self, order: Order, agendas: &mut Agendas) -> Result<(), Ended> {
        match order {
            Order::Look => agendas.flows.request(Instant::now()),
            Order::LookForDialling => agendas.dialling.request(Instant::now()),
            Order::Destroy(condemned) => {
                let done = self.end(condemned);
                self.report(News::Done(done))?;
            }
        }
        Ok(())
    }
}

impl Sweep {
    fn report(&self, news: News) -> Result<(), Ended> {
        self.outbox.blocking_send(news).map_err(|_| Ended)
    }

    fn end(&mut self, condemned: Vec<(Found, EndReason)>) -> BTreeMap<EndReason, Destroyed> {
        let mut groups: BTreeMap<EndReason, Vec<Found>> = BTreeMap::new();
        for (found, reason) in condemned {
            groups.entry(reason).or_default().push(found);
        }
        let mut done = BTreeMap::new();
        for (reason, mut sockets) in groups {
            if !matches!(reason, EndReason::Stale | EndReason::Deleted) {
                self.healed.note(&sockets, Instant::now());
            }
            if reason == EndReason::BeforeServiceOnMachine {
                sockets = without_servers(sockets);
            }
            let outcome = destroy(&sockets);
            self.said.outcome(reason, &sockets, &outcome);
            done.insert(reason, outcome);
        }
        done
    }
}

/// When to look for what.
struct Agendas {
    flows: Agenda,
    dialling: Agenda,
}

impl Agendas {
    fn due(&self) -> Option<Instant> {
        [self.flows.due(), self.dialling.due()].into_iter().flatten().min()
    }

    fn due_at(&self, now: Instant) -> Due {
        let [flows, dialling] =
            [&self.flows, &self.dialling].map(|agenda| agenda.due().is_some_and(|due| due <= now));
        Due { flows, dialling }
    }

    fn looked(&mut self, due: Due, began: Instant, ended: Instant) {
        if due.flows {
            self.flows.looked(began, ended);
        }
        if due.dialling {
            self.dialling.looked(began, ended);
        }
    }
}

/// What is to be looked for.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
struct Due {
    flows: bool,
    dialling: bool,
}

impl Due {
    fn kinds(self, all: &[SocketKind]) -> Vec<SocketKind> {
        let is_due = |kind: &SocketKind| match kind {
            SocketKind::Udp => self.flows,
            SocketKind::Dialling => self.dialling,
            SocketKind::Tcp => self.flows || self.dialling,
        };
        all.iter().copied().filter(is_due).collect()
    }
}

/// The kinds of sockets that the kernel would end.
fn probed(kinds: &[SocketKind]) -> Vec<SocketKind> {
    let works = |kind: &SocketKind| {
        let protocol = kind.protocol();
        let result = Diag::open().and_then(|mut diag| diag.probe(protocol));
        if let Err(error) = &result {
            let lack = match error.raw_os_error() {
                Some(libc::EOPNOTSUPP) => "a kernel with CONFIG_INET_DIAG_DESTROY",
                Some(libc::EPERM) => "CAP_NET_ADMIN",
                Some(libc::ENOENT) => "the kernel module udp_diag (or tcp_diag)",
                _ => "sock_diag",
            };
            let cost = if *kind == SocketKind::Dialling { COST_OF_DIALLING } else { COST };
            tracing::warn!(%protocol, %error, "{cost}, for lack of {lack}");
        }
        result.is_ok()
    };
    kinds.iter().copied().filter(works).collect()
}
