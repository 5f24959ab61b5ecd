//! Clients that are not ours, in other languages, with sockets as their libraries make them: they
//! reach the Service, and see what they dialled.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    process::Command,
};

use super::{
    connect::{MAPPED, V4, V6, web},
    world::{PORT, World, backend4, backend6},
};

/// What a client has to say: the other end as it sees it, and the backend; or the error.
fn ask(client: &mut Command, way: &str, to: SocketAddr) -> Result<(SocketAddr, IpAddr), String> {
    // As it would be typed: the standard library writes `::ffff:10.96.0.10` so too.
    let output = client.arg(way).arg(to.ip().to_string()).arg(to.port().to_string()).output();
    let output = output.unwrap_or_else(|error| panic!("{client:?}: {error}"));
    let said = String::from_utf8(output.stdout).unwrap();
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).trim().to_owned());
    }
    let (peer, answer) = said.trim().split_once('\n').unwrap();
    let (ip, port) = peer.split_once(' ').unwrap();
    let backend: SocketAddr = answer.split_once(' ').unwrap().0.parse().unwrap();
    assert_eq!(backend.port(), PORT);
    Ok((SocketAddr::new(ip.parse().unwrap(), port.parse().unwrap()), backend.ip()))
}

/// Everything that a client may do, once.
fn all(client: impl Fn() -> Command + Sync) {
    World::run(|world| {
        let (mut control, _backends) = web(world);
        control.put("empty", &["10.96.0.11", "fd00:96::b"], 80, &[]);
        for way in ["tcp", "udp", "unconnected"] {
            for to in [V4, V6, MAPPED].map(|form| form.parse::<SocketAddr>().unwrap()) {
                let (peer, backend) = ask(&mut client(), way, to).unwrap();
                // Some libraries show the IPv4 address in a mapped one.
                assert_eq!((peer.ip().to_canonical(), peer.port()), (to.ip().to_canonical(), 80));
                let expected = if to.ip().to_canonical().is_ipv4() {
                    [backend4(1), backend4(2)]
                } else {
                    [backend6(1), backend6(2)]
                };
                assert!(expected.contains(&backend), "{way} {to} led to {backend}");
            }
            for to in
                ["10.96.0.11:80", "[fd00:96::b]:80", "10.96.0.10:81", "[::ffff:10.96.0.11]:80"]
            {
                let refused = ask(&mut client(), way, to.parse().unwrap()).unwrap_err();
                // connect() of UDP goes on as without programs, and there is no route.
                let no_route = ["ENETUNREACH", "network is unreachable"];
                if way == "udp" {
                    assert!(no_route.iter().any(|text| refused.ends_with(text)), "{to}: {refused}");
                } else {
                    assert_eq!(refused, "ECONNREFUSED", "{way} {to}");
                }
            }
        }
    });
}

fn source(name: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "tests/kernel/languages", name].iter().collect()
}

#[test]
fn python() {
    all(|| {
        let mut python = Command::new("python3");
        python.arg(source("client.py"));
        python
    });
}

#[test]
fn go() {
    const PROGRAM: &str = "SOCKLB_GO_CLIENT";
    let program = std::env::var_os(PROGRAM).unwrap_or_else(|| {
        panic!("{PROGRAM} names no program; `cargo xtask test kernel` builds client.go and sets it")
    });
    all(|| Command::new(&program));
}
