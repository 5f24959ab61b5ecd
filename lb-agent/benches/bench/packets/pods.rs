//! What listens at every endpoint: it answers a byte by a byte, and counts what is sent in bulk.

use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    os::fd::AsRawFd as _,
    thread,
};

use anyhow::{Context as _, Result};
use nix::sys::socket::{Shutdown, shutdown};
use socket2::{Domain, Socket, Type};

use super::network::Place;
use crate::cluster::TARGET;

/// What a connection begins with: one byte is to be answered, or all that follows is to be counted.
pub(super) const ASK: u8 = b'?';
pub(super) const BULK: u8 = b'#';
/// How many threads accept connections.
const THREADS: usize = 4;
/// So many connections wait to be accepted.
const BACKLOG: i32 = 4096;

/// It, until it is dropped.
pub(super) struct Pods(TcpListener);

impl Pods {
    pub(super) fn start(place: &Place) -> Result<Self> {
        place.within(|| {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
            socket.bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, TARGET)).into())?;
            socket.listen(BACKLOG).context("cannot listen")?;
            let listener: TcpListener = socket.into();
            for _ in 0..THREADS {
                let listener = listener.try_clone()?;
                thread::spawn(move || {
                    for stream in listener.incoming().map_while(Result::ok) {
                        // Most clients only want to know who accepts.
                        drop(serve(stream));
                    }
                });
            }
            Ok(Self(listener))
        })
    }
}

impl Drop for Pods {
    fn drop(&mut self) {
        let _ = shutdown(self.0.as_raw_fd(), Shutdown::Both);
    }
}

fn serve(mut stream: TcpStream) -> Result<()> {
    let mut first = [0];
    if stream.read(&mut first)? == 0 {
        return Ok(());
    }
    if first == [BULK] {
        thread::spawn(move || count(stream));
        return Ok(());
    }
    Ok(stream.write_all(&first)?)
}

/// Says in the end how many bytes came.
fn count(mut stream: TcpStream) -> Result<()> {
    let mut bytes = vec![0; 1 << 18];
    let mut all = 0;
    loop {
        match stream.read(&mut bytes)? {
            0 => return Ok(stream.write_all(&u64::to_be_bytes(all))?),
            some => all += some as u64,
        }
    }
}
