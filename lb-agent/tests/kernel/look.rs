//! Looking for sockets and ending them, with a truth that the test says; and namespaces to do it in.
//!
//! A look goes through all network namespaces of the machine. What it finds of others is never
//! condemned: the map says nothing of their sockets, and they are in other cgroups.

use std::{
    collections::BTreeSet,
    io,
    net::{IpAddr, SocketAddr, UdpSocket},
    process::Command,
    sync::mpsc::{Sender, channel},
    thread::{self, JoinHandle},
};

use lb_agent::sockets::{
    self, Destroyed, EndReason, Found, Scanner, Sight, SocketKind, Truth, judge,
};
use lb_common::abi::Translation;
use lb_core::model::Protocol;
use nix::sched::{CloneFlags, unshare};

use super::world::{World, network};

/// What is known: by address alone, since each test has few Services.
#[derive(Clone, Debug, Default)]
pub(crate) struct Known {
    pub(crate) serving: BTreeSet<SocketAddr>,
    pub(crate) listed: BTreeSet<SocketAddr>,
    pub(crate) frontends: BTreeSet<SocketAddr>,
    /// Addresses of machines; of others nobody asks.
    pub(crate) machines: BTreeSet<IpAddr>,
}

impl Truth for Known {
    fn serves(&self, _: Protocol, translation: &Translation) -> bool {
        self.serving.contains(&translation.backend.into())
    }

    fn exists(&self, _: Protocol, translation: &Translation) -> bool {
        self.listed.contains(&translation.backend.into())
    }

    fn is_frontend(&self, found: &Found) -> bool {
        let peer = SocketAddr::from(found.peer);
        self.frontends.contains(&peer)
    }

    fn is_virtual(&self, ip: IpAddr) -> bool {
        !self.machines.contains(&ip)
    }

    fn answers(&self, _: &Found) -> bool {
        false
    }
}

pub(crate) struct Look(Scanner);

impl Look {
    /// At what the programs have stored in this world.
    pub(crate) fn new(world: &World) -> Self {
        let maps = sockets::open(&world.pins()).unwrap();
        Self(Scanner::new(&maps, world.cgroup()).unwrap())
    }

    pub(crate) fn scan(&mut self, kinds: &[SocketKind]) -> Sight {
        self.0.scan(kinds)
    }

    /// Ends those that have to go.
    pub(crate) fn sweep(&mut self, known: &Known) -> (Vec<(Found, EndReason)>, Destroyed) {
        self.sweep_of(&[SocketKind::Udp, SocketKind::Tcp], known)
    }

    pub(crate) fn sweep_of(
        &mut self,
        kinds: &[SocketKind],
        known: &Known,
    ) -> (Vec<(Found, EndReason)>, Destroyed) {
        let sight = self.scan(kinds);
        assert_eq!(sight.refused, 0, "{sight:?}");
        let judged = |found: Found| judge(&found, known).map(|reason| (found, reason));
        let condemned: Vec<_> = sight.found.into_iter().filter_map(judged).collect();
        let (maybe, sure): (Vec<_>, Vec<_>) = condemned
            .iter()
            .cloned()
            .partition(|(_, reason)| *reason == EndReason::BeforeServiceOnMachine);
        let [maybe, mut sockets]: [Vec<Found>; 2] =
            [maybe, sure].map(|all| all.into_iter().map(|(found, _)| found).collect());
        sockets.extend(sockets::without_servers(maybe));
        (condemned, sockets::destroy(&sockets))
    }
}

/// Another network namespace, with the same addresses; kept by a thread that does nothing else.
pub(crate) struct Elsewhere {
    tasks: Sender<Box<dyn FnOnce() + Send>>,
    thread: Option<JoinHandle<()>>,
}

impl Elsewhere {
    pub(crate) fn new() -> Self {
        let (tasks, inbox) = channel::<Box<dyn FnOnce() + Send>>();
        let thread = thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            network();
            for task in inbox {
                task();
            }
        });
        Self { tasks, thread: Some(thread) }
    }

    /// Does something in there.
    pub(crate) fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let (sender, result) = channel();
        self.tasks.send(Box::new(move || sender.send(work()).unwrap())).unwrap();
        result.recv().expect("the task panicked")
    }
}

impl Drop for Elsewhere {
    fn drop(&mut self) {
        (self.tasks, _) = channel();
        let _ = self.thread.take().unwrap().join();
    }
}

/// Lets Service addresses be dialled that are no Services yet.
pub(crate) fn route_services() {
    for route in
        ["-4 route add local 10.96.0.0/16 dev lo", "-6 route add local fd00:96::/64 dev lo"]
    {
        let status = Command::new("ip").args(route.split(' ')).status().unwrap();
        assert!(status.success(), "{route}");
    }
}

/// The local address of a socket, which names it in what is found.
pub(crate) fn name(socket: &UdpSocket) -> SocketAddr {
    let local = socket.local_addr().unwrap();
    (local.ip().to_canonical(), local.port()).into()
}

/// The local addresses of what was found.
pub(crate) fn names<'a>(
    found: impl IntoIterator<Item = &'a (Found, EndReason)>,
) -> BTreeSet<SocketAddr> {
    found.into_iter().map(|(found, _)| found.local.into()).collect()
}

/// A read that ends with an error, and the time at which it did.
pub(crate) fn error_of(result: io::Result<usize>) -> Option<i32> {
    result.err().and_then(|error| error.raw_os_error())
}
