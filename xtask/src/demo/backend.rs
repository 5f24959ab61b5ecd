//! An HTTP server that answers every request with its name and the address it was reached at.

use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, TcpListener, TcpStream},
    thread,
};

use anyhow::{Context as _, Result};

use super::{client::PATIENCE, services::TARGET_PORT};

/// Until killed.
pub(super) fn run(name: &str) -> Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, TARGET_PORT))
        .with_context(|| format!("{name} cannot listen"))?;
    loop {
        let (stream, _) = listener.accept()?;
        let name = name.to_owned();
        // A client that goes away in the middle is its own business.
        thread::spawn(move || answer(stream, &name).ok());
    }
}

fn answer(mut stream: TcpStream, name: &str) -> Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut request = Vec::new();
    let mut part = [0; 1024];
    while !request.ends_with(b"\r\n\r\n") && request.len() < 1 << 16 {
        match stream.read(&mut part)? {
            0 => return Ok(()),
            read => request.extend_from_slice(&part[..read]),
        }
    }
    let body = format!("{name} {}\n", stream.local_addr()?);
    write!(
        stream,
        "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {}\r\n\
         Connection: close\r\n\r\n{body}",
        body.len()
    )?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_names_the_backend_and_where_it_was_reached() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let server = thread::spawn(move || answer(listener.accept().unwrap().0, "web-1"));
        let mut stream = TcpStream::connect(address).unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n").unwrap();
        stream.write_all(b"\r\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        server.join().unwrap().unwrap();
        assert!(text.starts_with("HTTP/1.1 200 OK\r\n"), "{text}");
        assert!(text.ends_with(&format!("\r\n\r\nweb-1 {address}\n")), "{text}");
    }
}
