//! Sockets that send to many Services take memory that counts as the agent's: a cgroup has a bound, and
//! a socket gets along without.
#![expect(unsafe_code, reason = "nix has no SO_ATTACH_FILTER")]

use std::{
    fs, io,
    net::{SocketAddr, UdpSocket},
    os::fd::AsRawFd as _,
    path::{Path, PathBuf},
    process,
};

use lb_agent::sockets::Storage;
use lb_common::abi::{Counter, Held, MORE_FLOWS};

use super::{
    control::{Control, ROOMY, counted},
    pods::{Pods, client, exchange, pipelined, pod4},
    udp_many::{is_remembered, services},
    world::{World, soon},
};

/// A cgroup below the world's, and this process in it.
pub(super) struct Tenant {
    dir: PathBuf,
    home: PathBuf,
}

impl Tenant {
    pub(super) fn new(world: &World, name: &str) -> Self {
        let dir = world.cgroup().join(name);
        fs::create_dir(&dir).unwrap();
        let this = Self { dir, home: world.cgroup().to_owned() };
        this.enter();
        this
    }

    /// Puts this process there again.
    pub(super) fn enter(&self) {
        enter(&self.dir);
    }
}

impl Drop for Tenant {
    fn drop(&mut self) {
        enter(&self.home);
        fs::remove_dir(&self.dir).unwrap();
    }
}

fn enter(cgroup: &Path) {
    fs::write(cgroup.join("cgroup.procs"), process::id().to_string()).unwrap();
}

/// Sockets that have sent to each of the Services.
fn busy(services: &[SocketAddr], pods: &Pods, count: usize) -> Vec<UdpSocket> {
    let socket = |_| {
        let socket = client(true);
        for to in services {
            socket.send_to(b"?", to).unwrap();
            pods.take();
        }
        socket
    };
    (0..count).map(socket).collect()
}

#[test]
fn a_cgroup_has_a_bound_and_others_have_their_own() {
    let bound = usize::try_from(Held::MAX_MORE_FLOWS).unwrap();
    World::run(|world| {
        let mut control = Control::start_with(world, ROOMY);
        let services = services(&mut control);
        let pods = Pods::start(1..=6);
        let mut storage = Storage::open(&world.pins()).unwrap();
        let first = Tenant::new(world, "first");
        let mut sockets = busy(&services, &pods, bound);
        assert_eq!(counted(world, Counter::FlowsBounded), 0);
        let full = storage.count(true).unwrap();
        assert_eq!(full.more_flows.values().copied().collect::<Vec<_>>(), [Held::MAX_MORE_FLOWS]);
        assert_eq!(full.bytes[MORE_FLOWS], bound * 8192);

        // One more does without: it knows the last ones that it has sent to.
        let late = client(true);
        for _ in 0..2 {
            for to in &services {
                assert_eq!(exchange(&late, *to, &pods).1, *to);
            }
        }
        assert_eq!(pipelined(&late, &services[2..], &pods), services[2..]);
        assert_eq!(is_remembered(world, &late), [true, false]);
        assert!(counted(world, Counter::FlowsBounded) > 0);
        assert_eq!(is_remembered(world, &sockets[0]), [true, true]);
        assert_eq!(pipelined(&sockets[0], &services, &pods), services);

        // Another cgroup has a bound of its own.
        {
            let bounded = counted(world, Counter::FlowsBounded);
            let _second = Tenant::new(world, "second");
            let other = busy(&services, &pods, 1).pop().unwrap();
            assert_eq!(is_remembered(world, &other), [true, true]);
            assert_eq!(counted(world, Counter::FlowsBounded), bounded);
            assert_eq!(storage.count(false).unwrap().more_flows.len(), 2);
        }

        // Closed ones are counted down by the agent.
        sockets.truncate(bound / 2);
        let half = || {
            let left = storage.count(false).unwrap().more_flows;
            left.into_values().eq([Held::MAX_MORE_FLOWS / 2])
        };
        assert!(soon(half));
        assert_eq!(exchange(&late, services[0], &pods).1, services[0]);
        enter(&first.dir);
        let again = busy(&services, &pods, 1);
        assert_eq!(is_remembered(world, &again[0]), [true, true]);
        drop(first);
    });
}

/// What one socket may have in the kernel; of this network namespace alone.
const OPTMEM: &str = "/proc/sys/net/core/optmem_max";

#[test]
fn a_socket_with_little_memory_of_its_own() {
    World::run(|world| {
        if !Path::new(OPTMEM).exists() {
            println!("before Linux 6.9 {OPTMEM} is the machine's, and is left alone");
            return;
        }
        let mut control = Control::start_with(world, ROOMY);
        let services = services(&mut control);
        let pods = Pods::start(1..=6);

        // As much as before Linux 6.8: there is room for other things.
        fs::write(OPTMEM, "20480").unwrap();
        let socket = client(true);
        for to in &services {
            assert_eq!(exchange(&socket, *to, &pods).1, *to);
        }
        assert_eq!(is_remembered(world, &socket), [true, true]);
        filter(&socket, 1000).unwrap();
        assert_eq!(pipelined(&socket, &services, &pods), services);
        assert_eq!(counted(world, Counter::NoSocketMemory), 0);

        // Enough for a few flows.
        fs::write(OPTMEM, "2000").unwrap();
        let socket = client(true);
        for to in services.iter().chain(&services) {
            assert_eq!(exchange(&socket, *to, &pods).1, *to);
        }
        assert_eq!(is_remembered(world, &socket), [true, false]);
        assert!(counted(world, Counter::NoSocketMemory) > 0);

        // For none: the datagrams are on their way all the same.
        fs::write(OPTMEM, "64").unwrap();
        let socket = client(true);
        for (to, n) in services.iter().zip(1..) {
            socket.send_to(b"?", to).unwrap();
            assert_eq!(pods.take().pod, pod4(n));
        }
        assert_eq!(is_remembered(world, &socket), [false, false]);
    });
}

/// Takes all; each of its steps takes 8 bytes of the socket's memory.
fn filter(socket: &UdpSocket, steps: u16) -> io::Result<()> {
    let step = |code, k| libc::sock_filter { code, jt: 0, jf: 0, k };
    // Loads a number, again and again.
    let mut filter = vec![step(0, 1); steps.into()];
    *filter.last_mut().unwrap() = step(6, u32::MAX);
    let program = libc::sock_fprog { len: steps, filter: filter.as_mut_ptr() };
    let len = libc::socklen_t::try_from(size_of_val(&program)).unwrap();
    // SAFETY: the kernel reads the program and its steps, which live longer.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            (&raw const program).cast(),
            len,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
