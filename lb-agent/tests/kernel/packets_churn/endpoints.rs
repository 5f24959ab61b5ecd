//! Endpoints with very many addresses, and clients that connect and are gone.

use std::{
    io::{self, Read as _, Write as _},
    net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    sync::Arc,
    thread,
    time::Duration,
};

use nix::sys::socket::{setsockopt, sockopt};

use super::{
    super::lane::{Lane, ip},
    objects::{Endpoint, PORT},
};

/// How many endpoints answer.
pub(super) const ENDPOINTS: u16 = 24;
/// So long a connection may take on a machine that has other things to do.
const PATIENCE: Duration = Duration::from_secs(60);
/// As many clients as may connect at once, and more, in each of the places.
const SERVERS: usize = 16;

/// The endpoint of a number: in pod 1, in pod 2, elsewhere, and so on.
pub(super) fn endpoint(n: u16) -> Endpoint {
    let place = n % 3;
    let [_, low] = n.to_be_bytes();
    Endpoint {
        ipv4: [10, 64 + place.to_be_bytes()[1], 0, 1 + low].into(),
        ipv6: [0xfd64 + place, 0, 0, 0, 0, 0, 0, 1 + n].into(),
        is_here: place < 2,
    }
}

/// The number of an endpoint.
pub(super) fn number(ip: IpAddr) -> Option<u16> {
    (0..ENDPOINTS).find(|n| [true, false].iter().any(|ipv4| endpoint(*n).ip(*ipv4) == ip))
}

/// Gives the places of a lane these addresses, and those of load balancers to the node; each endpoint
/// tells who asks what its address is.
pub(super) fn serve(lane: &Lane) {
    lane.router.run(|| {
        ip("route add 198.18.0.0/15 via 10.50.2.2");
        ip("route add 10.66.0.0/24 via 10.50.3.2");
        ip("route add fd66::/64 via fd50:3::2");
    });
    for pod in [1, 2] {
        ip(&format!("route add 10.{}.0.0/24 via 10.60.{pod}.2", 63 + pod));
        ip(&format!("route add fd{}::/64 via fd60:{pod}::2", 63 + pod));
    }
    let [one, two] = &lane.pods;
    for (place, at) in [one, two, &lane.elsewhere].into_iter().zip(64..) {
        place.run(move || {
            ip(&format!("route add local 10.{at}.0.0/24 dev lo"));
            ip(&format!("-6 route add local fd{at}::/64 dev lo"));
            let listener = Arc::new(TcpListener::bind((Ipv6Addr::UNSPECIFIED, PORT)).unwrap());
            for _ in 0..SERVERS {
                let listener = Arc::clone(&listener);
                thread::spawn(move || {
                    for stream in listener.incoming().flatten() {
                        let _ = answer(stream);
                    }
                });
            }
        });
    }
}

/// Says the address, and waits for the end.
fn answer(mut stream: TcpStream) -> io::Result<()> {
    let ip = match stream.local_addr()?.ip() {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    };
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(&ip.octets())?;
    stream.read(&mut [0]).map(drop)
}

/// What came of a connection: the client's port, and who answered.
pub(super) struct Asked {
    pub(super) port: u16,
    pub(super) endpoint: IpAddr,
}

/// Asks, and ends the connection by a reset, or closes it.
pub(super) fn ask(to: SocketAddr, is_reset: bool) -> io::Result<Asked> {
    let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
    let port = stream.local_addr()?.port();
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut ip = [0; 16];
    stream.read_exact(&mut ip)?;
    if is_reset {
        setsockopt(&stream, sockopt::Linger, &libc::linger { l_onoff: 1, l_linger: 0 })?;
    }
    Ok(Asked { port, endpoint: Ipv6Addr::from(ip).to_canonical() })
}
