//! `load`: requests by the clock.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    process::ExitCode,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, ScopedJoinHandle},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use serde_json::{Value, json};

use crate::{
    request::{Failure, Reason, Url, request, resolve},
    stalls::{Stalls, decide},
    stop::Stop,
};

/// Send requests at a steady rate, each on a new connection, and tell which failed, when and how.
///
/// A request is due at its time, whether those before it are done or not. One that starts late,
/// because all threads wait for answers or because the machine stood still, is counted as late; none
/// is left out, not even when it is to stop. One that nobody answered in time is made again if this
/// process itself stood still meanwhile: then there is no knowing who was late. Prints a line of JSON every second, and one at the end.
/// Fails if any request failed.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// http://HOST:PORT/PATH
    #[arg(long, value_name = "URL")]
    to: Url,
    /// Requests per second.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..=100_000))]
    rate: u64,
    /// How long.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    seconds: u64,
    /// When to ask for the addresses of a name.
    #[arg(long, value_enum, default_value_t = Resolve::Second)]
    resolve: Resolve,
    /// At most so many requests at once.
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u64).range(1..=4096))]
    threads: u64,
    /// Milliseconds for the connect, for the write and for each read.
    #[arg(long, default_value_t = 5000, value_parser = clap::value_parser!(u64).range(1..=600_000))]
    timeout: u64,
    /// Begin with the first answer, or after so many seconds without one. What fails before is told,
    /// and not counted: who serves a new Service learns of it a little later.
    #[arg(long, value_name = "SECONDS", default_value_t = 0, value_parser = clap::value_parser!(u64).range(..=3600))]
    wait: u64,
}

impl Args {
    const fn timeout(&self) -> Duration {
        Duration::from_millis(self.timeout)
    }
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Resolve {
    /// At the start.
    Once,
    /// Every second.
    Second,
    /// For every request.
    Request,
}

/// What is told one by one; all are counted.
const TOLD: usize = 200;
/// From when on a start is late.
const LATE: Duration = Duration::from_millis(10);

#[derive(Default)]
struct Tally {
    sent: u64,
    ok: u64,
    failed: u64,
    again: u64,
    late: u64,
    latest: Duration,
    backends: BTreeMap<String, u64>,
    /// By phase and text.
    reasons: BTreeMap<String, u64>,
    failures: Vec<Value>,
    microseconds: Vec<u32>,
}

struct Load<'a> {
    args: &'a Args,
    stop: &'a Stop,
    start: Instant,
    next: AtomicU64,
    /// So many are due at all.
    total: AtomicU64,
    addresses: Mutex<Result<SocketAddr, Reason>>,
    stalls: Stalls,
    tally: Mutex<Tally>,
}

/// A thread that panicked has told so.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Between two tries before there is an answer.
const PAUSE: Duration = Duration::from_millis(50);

pub(crate) fn run(args: &Args, stop: &Stop) -> ExitCode {
    await_answer(args, stop);
    let load = Load::new(args, stop);
    let done = load.make();
    let mut tally = lock(&load.tally);
    println!("{}", summary(&mut tally, load.start.elapsed()));
    if done && tally.failed == 0 && tally.ok > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

impl<'a> Load<'a> {
    fn new(args: &'a Args, stop: &'a Stop) -> Self {
        Self {
            args,
            stop,
            start: Instant::now(),
            next: AtomicU64::new(0),
            total: AtomicU64::new(args.rate * args.seconds),
            addresses: Mutex::new(resolve(&args.to.authority)),
            stalls: Stalls::new(),
            tally: Mutex::default(),
        }
    }

    /// All of it, until it is to stop; false if a thread panicked.
    fn make(&self) -> bool {
        let is_done = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| self.stalls.watch(|| !is_done.load(Ordering::Relaxed)));
            let workers: Vec<_> =
                (0..self.args.threads).map(|_| scope.spawn(|| self.work())).collect();
            for second in 1..=self.args.seconds {
                if !self.stop.sleep_until(self.start + Duration::from_secs(second)) {
                    self.total
                        .fetch_min(due(self.start.elapsed(), self.args.rate), Ordering::Relaxed);
                    break;
                }
                if self.args.resolve == Resolve::Second {
                    let answer = resolve(&self.args.to.authority);
                    *lock(&self.addresses) = answer;
                }
                println!("{}", self.progress(second));
            }
            let ended: Vec<_> = workers.into_iter().map(ScopedJoinHandle::join).collect();
            is_done.store(true, Ordering::Relaxed);
            ended.iter().all(Result::is_ok)
        })
    }

    /// Takes the next request that is due, until all are taken.
    fn work(&self) {
        loop {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            if number >= self.total.load(Ordering::Relaxed) {
                return;
            }
            let due = self.start + Duration::from_nanos(number * 1_000_000_000 / self.args.rate);
            // What was due before it was to stop is made.
            if !self.stop.sleep_until(due) && Instant::now() < due {
                return;
            }
            let begun = Instant::now();
            {
                let mut tally = lock(&self.tally);
                let behind = begun - due;
                tally.sent += 1;
                tally.late += u64::from(behind > LATE);
                tally.latest = tally.latest.max(behind);
            }
            let stalled = |from, to| self.stalls.within(from, to);
            let (outcome, again) = decide(|| self.request(), stalled);
            self.count(outcome, begun, again);
        }
    }

    fn count(&self, outcome: Result<String, Failure>, begun: Instant, again: u64) {
        let took = begun.elapsed();
        let mut tally = lock(&self.tally);
        tally.again += again;
        match outcome {
            Ok(backend) => {
                tally.ok += 1;
                *tally.backends.entry(backend).or_default() += 1;
                tally.microseconds.push(took.as_micros().try_into().unwrap_or(u32::MAX));
            }
            Err(Failure { phase, to, reason }) => {
                tally.failed += 1;
                *tally.reasons.entry(format!("{}: {reason}", phase.name())).or_default() += 1;
                if tally.failures.len() < TOLD {
                    tally.failures.push(json!({
                        "time": unix(),
                        "at": (begun - self.start).as_secs_f64(),
                        "took": took.as_secs_f64(),
                        "phase": phase.name(),
                        "errno": reason.errno,
                        "error": reason.text,
                        "to": to.map(|to| to.to_string()),
                    }));
                }
            }
        }
    }

    fn request(&self) -> Result<String, Failure> {
        let address = match self.args.resolve {
            Resolve::Request => resolve(&self.args.to.authority),
            Resolve::Once | Resolve::Second => lock(&self.addresses).clone(),
        };
        request(&self.args.to, self.args.timeout(), address)
    }

    fn progress(&self, second: u64) -> Value {
        let tally = lock(&self.tally);
        json!({
            "second": second,
            "time": unix(),
            "sent": tally.sent,
            "ok": tally.ok,
            "failed": tally.failed,
            "late": tally.late,
            "backends": tally.backends,
        })
    }
}

/// How many are due after this time; the first one at once.
fn due(elapsed: Duration, rate: u64) -> u64 {
    let nanoseconds = elapsed.as_nanos() * u128::from(rate);
    (nanoseconds / 1_000_000_000 + 1).try_into().unwrap_or(u64::MAX)
}

/// Tells every second what is in the way.
fn await_answer(args: &Args, stop: &Stop) {
    let end = Instant::now() + Duration::from_secs(args.wait);
    let mut next = Instant::now();
    while Instant::now() < end {
        let answer = request(&args.to, args.timeout(), resolve(&args.to.authority));
        let Err(Failure { phase, reason, .. }) = answer else { return };
        let now = Instant::now();
        if now >= next {
            let what = format!("{}: {reason}", phase.name());
            println!("{}", json!({ "waiting": what, "time": unix() }));
            next = now + Duration::from_secs(1);
        }
        if !stop.sleep_until(now + PAUSE) {
            return;
        }
    }
}

fn summary(tally: &mut Tally, took: Duration) -> Value {
    tally.microseconds.sort_unstable();
    let sorted = &tally.microseconds;
    let percentile = |percent: usize| {
        let at = (sorted.len() * percent / 100).min(sorted.len().saturating_sub(1));
        sorted.get(at).map(|&it| f64::from(it) / 1000.0)
    };
    json!({
        "summary": true,
        "seconds": took.as_secs_f64(),
        "sent": tally.sent,
        "ok": tally.ok,
        "failed": tally.failed,
        "again": tally.again,
        "late": tally.late,
        "latest_ms": tally.latest.as_secs_f64() * 1000.0,
        "latency_ms": { "p50": percentile(50), "p99": percentile(99), "max": percentile(100) },
        "backends": tally.backends,
        "reasons": tally.reasons,
        "failures": tally.failures,
    })
}

/// The time of day, in seconds.
fn unix() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read as _, Write as _},
        net::{TcpListener, TcpStream},
    };

    use super::*;

    /// As after a time in which the machine stood still.
    #[test]
    fn what_is_due_when_it_is_to_stop_is_made() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let args = Args {
            to: format!("http://{}", listener.local_addr().unwrap()).parse().unwrap(),
            rate: 100,
            seconds: 60,
            resolve: Resolve::Once,
            threads: 1,
            timeout: 20_000,
            wait: 0,
        };
        let stop = Stop::default();
        let asks = stop.clone();
        thread::spawn(move || {
            let mut connections = listener.incoming().map_while(Result::ok);
            let answer = |mut stream: TcpStream| {
                drop(stream.read(&mut [0; 1024]));
                drop(stream.write_all(b"HTTP/1.1 200 OK\r\n\r\nme\n"));
            };
            let first = connections.next();
            // All that is due meanwhile waits for the one thread.
            thread::sleep(Duration::from_secs(1));
            asks.ask();
            first.into_iter().chain(connections).for_each(answer);
        });
        let load = Load::new(&args, &stop);
        assert!(load.make());
        let tally = lock(&load.tally);
        assert!(tally.sent >= 100 && tally.ok == tally.sent, "{} of {}", tally.ok, tally.sent);
    }

    #[test]
    fn one_that_is_due_at_this_very_time_is_due() {
        let due = |millis| due(Duration::from_millis(millis), 10);
        assert_eq!([0, 99, 100, 150, 200].map(due), [1, 1, 2, 2, 3]);
    }

    #[test]
    fn percentiles_are_of_all_requests() {
        let mut tally = Tally {
            microseconds: (1..=1000).rev().map(|it| it * 1000).collect(),
            ..Tally::default()
        };
        let summary = summary(&mut tally, Duration::from_secs(1));
        assert_eq!(summary["latency_ms"], json!({ "p50": 501.0, "p99": 991.0, "max": 1000.0 }));
        let mut none = Tally::default();
        assert_eq!(super::summary(&mut none, Duration::ZERO)["latency_ms"]["p99"], Value::Null);
    }
}
