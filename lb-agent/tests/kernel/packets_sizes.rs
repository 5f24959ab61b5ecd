//! Packets of strangers that are larger than a link on their way, in both directions.

use std::net::UdpSocket;

use super::{
    lane::{Lane, ip},
    packets::{Web, put_all, start, text, web},
    world::{World, soon},
};

/// What is said: more than the windows of a connection.
const MANY: usize = 1 << 20;
/// A datagram of several packets.
const FEW: usize = 4000;

/// Whether the socket's datagram comes back whole.
fn echoes(socket: &UdpSocket) -> bool {
    let said = [7; FEW];
    let mut heard = [0; FEW + 1];
    socket.send(&said).is_ok() && socket.recv(&mut heard).is_ok_and(|len| heard[..len] == said)
}

/// So long are packets to a network at most, over the link that leads there. Who is behind the link does not
/// know.
fn narrow(device: &str, net: &str, size: u16) {
    let link = format!("dev {device} mtu lock {size}");
    ip(&format!("route change 10.{}.0/24 {link}", net.replace(':', ".")));
    ip(&format!("-6 route add fd{net}::/64 metric 1 {link}"));
}

#[test]
fn they_are_told_by_icmp_and_fragments_come_whole() {
    World::run(|world| {
        let lane = Lane::new();
        // Endpoints here and elsewhere, and those here that see the client itself.
        let services = [
            web(&[1]),
            Web { number: 1, ..web(&[3]) },
            Web { number: 2, local: true, ..web(&[2]) },
        ];
        put_all(world, &services.each_ref().map(text).join("---\n"));
        let _agent = start(world);
        let cells: Vec<_> = services
            .iter()
            .flat_map(|web| [true, false].map(|ipv4| [web.vip(ipv4), web.at_node(ipv4)]))
            .flatten()
            .collect();
        let sockets: Vec<_> = cells.iter().map(|to| (*to, lane.connected(*to))).collect();
        for (to, socket) in &sockets {
            assert!(echoes(socket), "{to}");
        }
        // Only routers know of these links: the one before the client, and those before the endpoints.
        lane.router.run(|| {
            narrow("client", "50:1", 1400);
            narrow("elsewhere", "50:3", 1300);
        });
        narrow("pod1", "60:1", 1300);
        narrow("pod2", "60:2", 1300);
        let bytes: Vec<u8> = (0..MANY).map(|n| n.to_le_bytes()[1]).collect();
        for to in &cells {
            assert!(lane.hold(*to).echoes(&bytes), "{to}");
        }
        // Of IPv6, whoever sends has to make the fragments smaller.
        for (to, socket) in &sockets {
            assert!(soon(|| echoes(socket)), "{to}");
        }
    });
}
