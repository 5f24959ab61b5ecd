//! One request: HTTP/1.0 on a connection of its own, and how far it came.

use std::{
    error::Error,
    fmt,
    io::{self, Read as _, Write as _},
    net::{SocketAddr, TcpStream, ToSocketAddrs as _},
    str::FromStr,
    time::Duration,
};

#[derive(Clone)]
pub(crate) struct Url {
    /// HOST:PORT
    pub(crate) authority: String,
    path: String,
}

impl FromStr for Url {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let rest = text.strip_prefix("http://").ok_or("it does not begin with http://")?;
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        // An IPv6 address has colons of its own.
        let port = authority.rsplit_once(':').filter(|(_, port)| !port.ends_with(']'));
        let authority = port.map_or_else(|| format!("{authority}:80"), |_| authority.to_owned());
        Ok(Self { authority, path: format!("/{path}") })
    }
}

/// How far a request came.
#[derive(Clone, Copy)]
pub(crate) enum Phase {
    Resolve,
    Connect,
    Write,
    Read,
    /// An answer, but not 200.
    Status,
}

impl Phase {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Resolve => "resolve",
            Self::Connect => "connect",
            Self::Write => "write",
            Self::Read => "read",
            Self::Status => "status",
        }
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Reason {
    pub(crate) errno: Option<i32>,
    pub(crate) text: String,
    /// It may be that nobody answered in time. All that a resolver says is that it has no answer.
    pub(crate) is_late: bool,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Error for Reason {}

impl From<io::Error> for Reason {
    fn from(error: io::Error) -> Self {
        // Of connect() and of read().
        let is_late = matches!(error.kind(), io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock);
        Self { errno: error.raw_os_error(), text: error.to_string(), is_late }
    }
}

impl From<&str> for Reason {
    fn from(text: &str) -> Self {
        Self { errno: None, text: text.to_owned(), is_late: false }
    }
}

pub(crate) struct Failure {
    pub(crate) phase: Phase,
    pub(crate) to: Option<SocketAddr>,
    pub(crate) reason: Reason,
}

/// One request; the first word of the answer.
pub(crate) fn request(
    to: &Url,
    timeout: Duration,
    address: Result<SocketAddr, Reason>,
) -> Result<String, Failure> {
    let address = address.map_err(|reason| Failure { phase: Phase::Resolve, to: None, reason })?;
    let failed =
        |phase| move |error: io::Error| Failure { phase, to: Some(address), reason: error.into() };
    let mut stream =
        TcpStream::connect_timeout(&address, timeout).map_err(failed(Phase::Connect))?;
    let write = |stream: &mut TcpStream| {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(timeout))?;
        stream.set_write_timeout(Some(timeout))?;
        // HTTP/1.0: the answer comes in one piece, and ends with the connection.
        let request = format!("GET {} HTTP/1.0\r\nHost: {}\r\n\r\n", to.path, to.authority);
        stream.write_all(request.as_bytes())
    };
    write(&mut stream).map_err(failed(Phase::Write))?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).map_err(failed(Phase::Read))?;
    let wrong = |(phase, reason)| Failure { phase, to: Some(address), reason };
    first_word(&String::from_utf8_lossy(&answer)).map_err(wrong)
}

pub(crate) fn resolve(authority: &str) -> Result<SocketAddr, Reason> {
    let addresses = authority.to_socket_addrs();
    let mut addresses = addresses.map_err(|error| Reason {
        is_late: error.raw_os_error().is_none(),
        ..Reason::from(error)
    })?;
    addresses.next().ok_or_else(|| "the name has no address".into())
}

/// The first word of the body of a whole answer with the status 200.
fn first_word(answer: &str) -> Result<String, (Phase, Reason)> {
    let cut = || (Phase::Read, Reason::from("the answer ends too early"));
    let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(cut)?;
    let mut lines = head.lines();
    let status = lines.next().unwrap_or_default();
    if status.split(' ').nth(1) != Some("200") {
        return Err((Phase::Status, status.into()));
    }
    let length = lines.find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok())?
    });
    if length.is_some_and(|length| body.len() < length) {
        return Err(cut());
    }
    Ok(body.split_whitespace().next().unwrap_or_default().to_owned())
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn a_url_has_a_port_and_a_path_said_or_not() {
        let parts = |text: &str| {
            let Url { authority, path } = text.parse().ok()?;
            Some((authority, path))
        };
        let is = |text, authority: &str, path: &str| {
            assert_eq!(parts(text), Some((authority.to_owned(), path.to_owned())));
        };
        is("http://web", "web:80", "/");
        is("http://web:8080/a/b", "web:8080", "/a/b");
        is("http://[fd00::1]/", "[fd00::1]:80", "/");
        is("http://[fd00::1]:81", "[fd00::1]:81", "/");
        assert_eq!(parts("web:80"), None);
    }

    #[test]
    fn what_nobody_answered_is_told_from_what_was_refused() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let url = format!("http://{address}").parse().unwrap();
        let ask = || request(&url, Duration::from_millis(50), Ok(address)).err().unwrap();
        let silent = ask();
        assert!(matches!(silent.phase, Phase::Read) && silent.reason.is_late, "{}", silent.reason);
        drop(listener);
        let refused = ask();
        assert_eq!(
            (refused.reason.errno, refused.reason.is_late),
            (Some(libc::ECONNREFUSED), false)
        );
        // A name that nobody has to be asked for.
        let unknown = resolve("a..b:80").unwrap_err();
        assert!(unknown.is_late, "{unknown}");
    }

    #[test]
    fn only_a_whole_answer_counts() {
        let word = |answer: &str| {
            first_word(answer).map_err(|(phase, reason)| format!("{}: {reason}", phase.name()))
        };
        let head = "HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\n";
        assert_eq!(word(&format!("{head}web-1\n")), Ok("web-1".to_owned()));
        assert_eq!(word(&format!("{head}web")), Err("read: the answer ends too early".to_owned()));
        assert_eq!(word(""), Err("read: the answer ends too early".to_owned()));
        let busy = "HTTP/1.1 503 Busy\r\n\r\n";
        assert_eq!(word(busy), Err("status: HTTP/1.1 503 Busy".to_owned()));
    }
}
