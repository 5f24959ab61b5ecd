//! Make before break, under load: while the set of a Service flips between two that have nothing in
//! common, every connection reaches a backend of one of them.

use std::{
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use lb_agent::datapath::Sizes;
use nix::sys::socket::{setsockopt, sockopt};

use super::{
    connect::V4,
    control::{Control, ROOMY},
    raw::udp,
    world::{PORT, World, backend4},
};

/// Both are exceeded before a test ends, however slow the machine.
const CONNECTS: u32 = 200_000;
const FLIPS: usize = 300;
const LIMIT: Duration = Duration::from_secs(300);

/// Connects under way: how many are done, and what went wrong.
#[derive(Default)]
pub(crate) struct Load {
    pub(crate) done: AtomicU32,
    pub(crate) stop: AtomicBool,
    wrong: Mutex<Vec<String>>,
}

impl Load {
    /// Calls `connect` up to `times`; it says which backend it reached.
    pub(crate) fn run(
        &self,
        times: u32,
        allowed: &[IpAddr],
        connect: impl Fn() -> std::io::Result<SocketAddr>,
    ) {
        for _ in 0..times {
            if self.stop.load(Ordering::Relaxed) {
                break;
            }
            match connect() {
                Ok(addr) if allowed.contains(&addr.ip()) => {}
                Ok(addr) => self.complain(format!("led to {addr}")),
                Err(error) => self.complain(format!(
                    "{error} (after {done})",
                    done = self.done.load(Ordering::Relaxed)
                )),
            }
            self.done.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn complain(&self, what: String) {
        self.wrong.lock().unwrap().push(what);
    }

    pub(crate) fn verdict(&self) {
        let (wrong, done) = (self.wrong.lock().unwrap(), self.done.load(Ordering::Relaxed));
        let first = &wrong[..wrong.len().min(5)];
        assert!(wrong.is_empty(), "{} of {done} connects went wrong: {first:?}", wrong.len());
    }
}

/// The backend that a connected UDP socket was given; the socket is closed.
pub(crate) fn udp_backend(to: &str) -> std::io::Result<SocketAddr> {
    udp(to.parse().unwrap())?.local_addr()
}

/// The same in TCP, closed by a reset: tens of thousands of connections in TIME_WAIT would use up
/// the ports.
pub(crate) fn tcp_backend(to: &str) -> std::io::Result<SocketAddr> {
    let stream = TcpStream::connect(to)?;
    setsockopt(&stream, sockopt::Linger, &libc::linger { l_onoff: 1, l_linger: 0 })?;
    stream.local_addr()
}

/// Drops the connections that it takes. The listener belongs to the caller: who still connects when
/// this ends is not to be refused.
fn accept(listener: &TcpListener, load: &Load) {
    listener.set_nonblocking(true).unwrap();
    while !load.stop.load(Ordering::Relaxed) {
        if listener.accept().is_err() {
            thread::sleep(Duration::from_micros(200));
        }
    }
}

/// Flips `web` between two sets while others come and go, until all connects are done. `room` is
/// the size of the backends map: the less of it, the sooner a block is used again.
fn flip(room: u32) {
    World::run(|world| {
        let sets = [[1, 2, 3, 4].map(backend4), [5, 6, 7, 8].map(backend4)];
        let strangers = [backend4(9), backend4(10)];
        let mut control = Control::start_with(world, Sizes { backends: room, ..ROOMY });
        control.put("web", &["10.96.0.10"], 80, &sets[0]);

        let listener = TcpListener::bind(("0.0.0.0", PORT)).unwrap();
        let load = Load::default();
        let start = Instant::now();
        let mut flips = 0;
        let allowed = sets.concat();
        thread::scope(|scope| {
            scope.spawn(|| accept(&listener, &load));
            for _ in 0..2 {
                scope.spawn(|| load.run(u32::MAX, &allowed, || udp_backend(V4)));
            }
            scope.spawn(|| load.run(u32::MAX, &allowed, || tcp_backend(V4)));

            while (load.done.load(Ordering::Relaxed) < CONNECTS || flips < FLIPS)
                && start.elapsed() < LIMIT
            {
                flips += 1;
                control.put("web", &["10.96.0.10"], 80, &sets[flips % 2]);
                // Their hash elements and their blocks go round among all of them.
                let name = format!("stranger-{}", flips % 3);
                let ip = format!("10.96.1.{}", flips % 7);
                if flips % 2 == 0 {
                    control.put(&name, &[&ip], 80, &strangers);
                } else {
                    control.delete(&name);
                }
                if control.pipeline.retired() > room / 2 {
                    control.pipeline.reclaim().unwrap();
                }
            }
            load.stop.store(true, Ordering::Relaxed);
        });
        let done = load.done.load(Ordering::Relaxed);
        let blocks = control.pipeline.mirror().next_generation();
        println!(
            "{done} connects, {flips} flips, {blocks} blocks written in room for {room} records, {:?}",
            start.elapsed()
        );
        load.verdict();
        assert!(done >= CONNECTS && flips >= FLIPS, "not done in {LIMIT:?}");
    });
}

#[test]
fn with_hardly_any_room() {
    flip(40);
}

#[test]
fn as_fast_as_it_goes() {
    flip(4096);
}
