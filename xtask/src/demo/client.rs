//! Requests, each on a connection of its own, and what came of each: a line of text between the
//! process that makes them, inside the node, and the demo, outside.

use std::{
    fmt,
    io::{self, Read as _, Write as _},
    net::{SocketAddr, SocketAddrV4, TcpStream},
    str::FromStr,
    time::Duration,
};

use anyhow::{Context as _, Error, Result, bail};

/// Nothing here waits for anybody, but the machine may stand still.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);

/// What came of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// An answer.
    Answer {
        /// What `getpeername()` says of the client's socket.
        peer: SocketAddr,
        /// Who answered, by its own word.
        backend: String,
        /// Where the connection came out, by the backend's word.
        reached: SocketAddr,
    },
    /// An error of the operating system, by number.
    Failure(i32),
}

/// Makes `requests` requests and prints what came of each.
pub(super) fn run(to: SocketAddrV4, requests: usize) -> Result<()> {
    let mut out = io::stdout().lock();
    for _ in 0..requests {
        let outcome = match request(to) {
            Ok(outcome) => outcome,
            Err(error) => match error.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error)
            {
                Some(errno) => Outcome::Failure(errno),
                None => return Err(error),
            },
        };
        writeln!(out, "{outcome}")?;
    }
    Ok(())
}

fn request(to: SocketAddrV4) -> Result<Outcome> {
    let mut stream = TcpStream::connect_timeout(&to.into(), PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let peer = stream.peer_addr()?;
    write!(stream, "GET / HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", to.ip())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("no HTTP in the answer")?;
    if !head.starts_with("HTTP/1.1 200 ") {
        bail!("the answer is {head:?}");
    }
    format!("{peer} {body}").parse()
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Answer { peer, backend, reached } => write!(f, "{peer} {backend} {reached}"),
            Self::Failure(errno) => write!(f, "errno {errno}"),
        }
    }
}

impl FromStr for Outcome {
    type Err = Error;

    fn from_str(line: &str) -> Result<Self> {
        let words: Vec<_> = line.split_whitespace().collect();
        match words[..] {
            ["errno", errno] => Ok(Self::Failure(errno.parse()?)),
            [peer, backend, reached] => Ok(Self::Answer {
                peer: peer.parse()?,
                backend: backend.to_owned(),
                reached: reached.parse()?,
            }),
            _ => bail!("not the outcome of a request: {line:?}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{net::TcpListener, thread};

    use super::*;

    #[test]
    fn an_outcome_survives_its_line() {
        for line in ["10.96.0.10:80 web-1 10.244.7.11:8080", "errno 111"] {
            assert_eq!(line.parse::<Outcome>().unwrap().to_string(), line);
        }
        for line in ["", "web-1", "errno x", "a b c"] {
            assert!(line.parse::<Outcome>().is_err(), "{line}");
        }
    }

    #[test]
    fn a_late_answer_is_one() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let server = thread::spawn(move || {
            let mut stream = listener.accept().unwrap().0;
            thread::sleep(Duration::from_secs(3));
            write!(stream, "HTTP/1.1 200 OK\r\n\r\nweb-1 {address}\n").unwrap();
            // What was not read would make the end of the connection a reset.
            drop(stream.read(&mut [0; 1024]));
        });
        let outcome = request(address.to_string().parse().unwrap()).unwrap();
        server.join().unwrap();
        assert!(matches!(outcome, Outcome::Answer { backend, .. } if backend == "web-1"));
    }

    #[test]
    fn a_refused_connection_has_a_number() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string().parse().unwrap();
        drop(listener);
        let error = request(address).unwrap_err();
        assert_eq!(error.downcast_ref::<io::Error>().unwrap().raw_os_error(), Some(111));
    }
}
