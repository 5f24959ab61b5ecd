//! The client outside of the node: who accepts its connections, how long that takes, how many there are
//! in a second, and how much one of them carries.

use std::{
    io::{self, Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpStream},
    os::fd::AsFd as _,
    thread::{self, sleep},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, ppoll},
    sys::{
        socket::{getsockopt, sockopt::TcpMaxSeg},
        time::TimeSpec,
    },
};
use socket2::{Domain, Socket, Type};

use super::{
    network::is_marked,
    pods::{ASK, BULK},
    stop,
};
use crate::samples::Samples;

/// A connection that takes longer does not come.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);
/// Written at once in bulk, as iperf3 does.
const BLOCK: usize = 128 << 10;
/// How many connections are opened at the same time.
const THREADS: u32 = 4;

/// Who accepted a connection.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Seen {
    Plain,
    Marked,
    /// It was refused, or nobody answered in time.
    Nobody,
}

/// A connection: its socket, unless nobody answers so soon.
fn connect(to: SocketAddr, patience: Duration) -> Result<Option<Socket>> {
    stop::check()?;
    let socket = Socket::new(Domain::for_address(to), Type::STREAM.nonblocking(), None)?;
    // Closed by a reset: neither side remembers it.
    socket.set_linger(Some(Duration::ZERO))?;
    match socket.connect(&to.into()) {
        Ok(()) => return Ok(Some(socket)),
        Err(error) if error.raw_os_error() == Some(Errno::EINPROGRESS as i32) => {}
        Err(error) => return nobody(error),
    }
    let mut poll = [PollFd::new(socket.as_fd(), PollFlags::POLLOUT)];
    if ppoll(&mut poll, Some(TimeSpec::from_duration(patience)), None)? == 0 {
        return Ok(None);
    }
    match socket.take_error()? {
        None => Ok(Some(socket)),
        Some(error) => nobody(error),
    }
}

fn nobody(error: io::Error) -> Result<Option<Socket>> {
    match error.kind() {
        io::ErrorKind::ConnectionRefused
        | io::ErrorKind::HostUnreachable
        | io::ErrorKind::NetworkUnreachable
        | io::ErrorKind::TimedOut => Ok(None),
        _ => Err(error).context("connect"),
    }
}

/// Who accepts a connection.
pub(super) fn ask(to: SocketAddr, patience: Duration) -> Result<Seen> {
    let Some(socket) = connect(to, patience)? else { return Ok(Seen::Nobody) };
    let mss = getsockopt(&socket, TcpMaxSeg)?;
    Ok(if is_marked(mss) { Seen::Marked } else { Seen::Plain })
}

/// Waits a thousandth of the time that has passed: whoever asks again and again takes no time from the
/// one he waits for, and knows the end by a tenth of a percent.
pub(super) fn wait(since: Instant) {
    let pause = since.elapsed() / 1000;
    if pause > Duration::from_micros(100) {
        sleep(pause);
    }
}

/// How long each connection takes, in µs.
pub(super) fn latency(to: impl Iterator<Item = SocketAddr>) -> Result<Samples> {
    let mut samples = Samples::default();
    for to in to {
        let start = Instant::now();
        let connected = connect(to, PATIENCE)?;
        samples.push(start.elapsed().as_secs_f64() * 1e6);
        connected.with_context(|| format!("nobody at {to}"))?;
    }
    Ok(samples)
}

/// How many connections are opened in a second, by which one byte goes to and fro.
pub(super) fn rate(to: &(impl Fn(u32) -> SocketAddr + Sync), time: Duration) -> Result<f64> {
    let start = Instant::now();
    let work = |thread: u32| {
        let mut n = thread;
        while start.elapsed() < time {
            let to = to(n);
            let socket = connect(to, PATIENCE)?.with_context(|| format!("nobody at {to}"))?;
            socket.set_nonblocking(false)?;
            let (mut stream, mut byte) = (TcpStream::from(socket), [ASK]);
            stream.write_all(&byte)?;
            stream.read_exact(&mut byte).with_context(|| format!("no answer from {to}"))?;
            n += THREADS;
        }
        Ok(n / THREADS)
    };
    let connections = thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS).map(|n| scope.spawn(move || work(n))).collect();
        threads.into_iter().try_fold(0, |sum, thread| match thread.join() {
            Ok(count) => count.map(|count| sum + count),
            Err(_) => bail!("a client panicked"),
        })
    })?;
    Ok(f64::from(connections) / start.elapsed().as_secs_f64())
}

/// What one connection carries, in Gbit/s.
#[expect(clippy::cast_precision_loss, reason = "less than 2^53 bytes")]
pub(super) fn bulk(to: SocketAddr, time: Duration) -> Result<f64> {
    let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
    let mut block = vec![0; BLOCK];
    block[0] = BULK;
    let start = Instant::now();
    while start.elapsed() < time {
        stream.write_all(&block)?;
    }
    stream.shutdown(Shutdown::Write)?;
    let mut bytes = [0; 8];
    stream.read_exact(&mut bytes)?;
    Ok(u64::from_be_bytes(bytes) as f64 * 8.0 / 1e9 / start.elapsed().as_secs_f64())
}
