//! `serve`: answers who it is.

use std::{
    fs,
    io::{self, BufRead as _, BufReader, Write as _},
    net::{TcpListener, TcpStream},
    os::fd::AsFd as _,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use nix::poll::{PollFd, PollFlags, poll};

use crate::stop::Stop;

/// Answer every request with one line: the name, and the client's address.
///
/// `/healthz` answers `ok`; 503 after SIGTERM. After SIGTERM it goes on for --delay-exit seconds,
/// finishes what it has begun, and exits 0.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The TCP port, at all addresses.
    #[arg(long)]
    pub(crate) port: u16,
    /// What it is called [default: the host's name].
    #[arg(long)]
    name: Option<String>,
    /// Seconds to go on after SIGTERM, until everybody has heard that this endpoint goes away.
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u64).range(..=3600))]
    delay_exit: u64,
    /// Milliseconds that an answer takes.
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u64).range(..=60_000))]
    delay: u64,
}

const PATIENCE: Duration = Duration::from_secs(5);
const AT_ONCE: usize = 1000;

pub(crate) fn run(args: &Args, stop: &Stop) -> io::Result<()> {
    let name = match &args.name {
        Some(name) => name.clone(),
        None => fs::read_to_string("/proc/sys/kernel/hostname")?.trim().to_owned(),
    };
    // A host without IPv6 has no such address.
    let listener = TcpListener::bind(("::", args.port))
        .or_else(|_| TcpListener::bind(("0.0.0.0", args.port)))?;
    listener.set_nonblocking(true)?;
    let busy = Arc::new(AtomicUsize::new(0));
    let mut end = None;
    loop {
        if stop.asked() {
            let end =
                end.get_or_insert_with(|| Instant::now() + Duration::from_secs(args.delay_exit));
            if Instant::now() >= *end {
                break;
            }
        }
        let mut ready = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
        poll(&mut ready, 50_u16)?;
        accept(&listener, args, &name, stop, &busy)?;
    }
    // Who is in the queue was promised an answer by the kernel.
    accept(&listener, args, &name, stop, &busy)?;
    drop(listener);
    let patience = Instant::now() + PATIENCE;
    while busy.load(Ordering::Relaxed) > 0 && Instant::now() < patience {
        thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// Answers all that wait.
fn accept(
    listener: &TcpListener,
    args: &Args,
    name: &str,
    stop: &Stop,
    busy: &Arc<AtomicUsize>,
) -> io::Result<()> {
    while busy.load(Ordering::Relaxed) < AT_ONCE {
        let stream = match listener.accept() {
            Ok((stream, _)) => stream,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            // One that was given up while it waited.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => continue,
            Err(error) => return Err(error),
        };
        busy.fetch_add(1, Ordering::Relaxed);
        let (busy, name, stop) = (Arc::clone(busy), name.to_owned(), stop.clone());
        let delay = Duration::from_millis(args.delay);
        thread::spawn(move || {
            if let Err(error) = answer(&stream, &name, delay, &stop) {
                eprintln!("a request failed: {error}");
            }
            busy.fetch_sub(1, Ordering::Relaxed);
        });
    }
    Ok(())
}

fn answer(stream: &TcpStream, name: &str, delay: Duration, stop: &Stop) -> io::Result<()> {
    // What accept returns does not inherit it on Linux, and need not be of Linux.
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut lines = BufReader::new(stream).lines();
    let Some(request) = lines.next().transpose()? else {
        // Opened and closed: somebody only looked whether the port answers.
        return Ok(());
    };
    for line in lines {
        if line?.is_empty() {
            break;
        }
    }
    let is_probe = request.split(' ').nth(1) == Some("/healthz");
    let (status, body) = match is_probe {
        true if stop.asked() => ("503 Service Unavailable", "stopping\n".to_owned()),
        true => ("200 OK", "ok\n".to_owned()),
        false => {
            thread::sleep(delay);
            ("200 OK", format!("{name} {}\n", stream.peer_addr()?))
        }
    };
    let length = body.len();
    let mut stream = stream;
    write!(
        stream,
        "HTTP/1.1 {status}\r\nContent-Type: text/plain\r\nContent-Length: {length}\r\n\
         Connection: close\r\n\r\n{body}"
    )
}
