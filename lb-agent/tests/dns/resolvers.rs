//! The resolvers of two C libraries, in programs of their own.

use std::{
    io::{BufRead as _, BufReader},
    net::IpAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::{
    cluster::who,
    world::{World, soon},
};

/// A C library.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Libc {
    /// Asks by a connected socket.
    Glibc,
    /// Asks all name servers at once, by one unconnected socket.
    Musl,
}

impl Libc {
    pub(super) const ALL: [Self; 2] = [Self::Glibc, Self::Musl];

    /// The program `resolver.c`, made once for a world.
    pub(super) fn program(self, world: &World) -> PathBuf {
        let (compiler, name) = match self {
            Self::Glibc => ("cc", "resolver-glibc"),
            Self::Musl => ("musl-gcc", "resolver-musl"),
        };
        let program = world.dir().join(name);
        if !program.exists() {
            let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/dns/resolver.c");
            let mut make = Command::new(compiler);
            make.arg("-O1").arg("-o").arg(&program).arg(source);
            if self == Self::Musl {
                make.arg("-static");
            }
            let status = make.status();
            assert!(status.is_ok_and(|status| status.success()), "{compiler} makes no program");
        }
        program
    }

    /// Looks a name up `count` times, one every `pause`, and does not wait for it.
    pub(super) fn start(self, world: &World, name: &str, count: u32, pause: Duration) -> Lookups {
        let mut command = Command::new(self.program(world));
        command.arg(name).arg(count.to_string()).arg(pause.as_millis().to_string());
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let done = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&done);
        let reader = thread::spawn(move || {
            let count = |line: &String| {
                counter.fetch_add(1, Ordering::Relaxed);
                Lookup::of_line(line)
            };
            lines.map(|line| count(&line.unwrap())).collect()
        });
        Lookups { child, count, done, reader: Some(reader) }
    }

    /// The same until it is told to stop.
    pub(super) fn start_endless(self, world: &World, name: &str, pause: Duration) -> Lookups {
        self.start(world, name, 0, pause)
    }

    /// Looks a name up once.
    pub(super) fn look_up(self, world: &World, name: &str) -> Lookup {
        self.start(world, name, 1, Duration::ZERO).finish().remove(0)
    }
}

/// A resolver at work.
pub(super) struct Lookups {
    child: Child,
    /// 0: until it is stopped.
    count: u32,
    done: Arc<AtomicUsize>,
    reader: Option<JoinHandle<Vec<Lookup>>>,
}

impl Lookups {
    /// Waits for all of them.
    pub(super) fn finish(mut self) -> Vec<Lookup> {
        let lookups = self.reader.take().unwrap().join().unwrap();
        assert!(self.child.wait().unwrap().success(), "{lookups:?}");
        let count = usize::try_from(self.count).unwrap();
        assert!(count == 0 || lookups.len() == count, "{lookups:?}");
        lookups
    }

    /// The same of those that nothing else ends.
    pub(super) fn stop(self) -> Vec<Lookup> {
        kill(Pid::from_raw(self.child.id().try_into().unwrap()), Signal::SIGTERM).unwrap();
        self.finish()
    }

    /// Waits until so many more are done.
    pub(super) fn await_more(&self, count: usize) {
        let done = || self.done.load(Ordering::Relaxed);
        let enough = done() + count;
        assert!(soon(|| done() >= enough), "{} lookups of {enough}", done());
    }
}

impl Drop for Lookups {
    fn drop(&mut self) {
        // Nothing is left to do if it has ended.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// What came of it.
#[derive(Debug)]
pub(super) struct Lookup {
    pub(super) took: Duration,
    pub(super) outcome: Result<Vec<IpAddr>, String>,
}

impl Lookup {
    fn of_line(line: &str) -> Self {
        let (took, rest) = line.split_once(' ').unwrap();
        let took = Duration::from_millis(took.parse().unwrap());
        let outcome = match rest.strip_prefix("error ") {
            Some(error) => Err(error.to_owned()),
            None => Ok(rest.split(' ').map(|ip| ip.parse().unwrap()).collect()),
        };
        Self { took, outcome }
    }

    /// The instances that gave the IPv4 and the IPv6 address of [`super::cluster::WHO`].
    pub(super) fn who(&self) -> [u8; 2] {
        let all = self.outcome.as_ref().unwrap_or_else(|error| panic!("{error}: {self:?}"));
        assert_eq!(all.len(), 2, "{self:?}");
        [0, 1].map(|family| {
            let found = (1..=9).find(|n| all.contains(&who(*n)[family]));
            found.unwrap_or_else(|| panic!("no instance of ours: {self:?}"))
        })
    }
}
