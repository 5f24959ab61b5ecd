//! What the hooks add to a datagram: received from whoever it is, and the first one that is sent to a
//! Service from a socket that is bound to a port, by which it might be an answer.

use std::{
    net::{SocketAddr, UdpSocket},
    time::Duration,
};

use anyhow::Result;
use nix::time::ClockId;

use super::{
    SERVICES,
    stage::{Program, Stage},
};
use crate::{
    cluster::{PORT, TARGET, cluster_ip, pod_ip},
    lab::move_to,
    samples::{SPREAD, Samples},
};

/// Datagrams that are received in one round: fewer than a socket has room for.
const BATCH: u32 = 100;

/// From whom a server hears.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum From {
    /// An address like any other.
    Nobody,
    /// One next to that of a Service: the filter has its bit.
    Neighbour,
    /// The address and the port of a Service.
    Frontend,
}

impl From {
    const ALL: [Self; 3] = [Self::Nobody, Self::Neighbour, Self::Frontend];

    const fn name(self) -> &'static str {
        match self {
            Self::Nobody => "recvfrom, from nobody's address",
            Self::Neighbour => "recvfrom, from next to a Service",
            Self::Frontend => "recvfrom, from a Service's address",
        }
    }

    fn address(self) -> SocketAddr {
        match self {
            Self::Nobody => ([10, 64, 0, 1], PORT).into(),
            // The first addresses are not given to any.
            Self::Neighbour => ([10, 96, 0, 1], PORT).into(),
            Self::Frontend => (cluster_ip(SERVICES / 2, true), PORT).into(),
        }
    }
}

struct Row {
    stage: usize,
    name: &'static str,
    what: What,
    ns: Samples,
}

enum What {
    Receive { client: UdpSocket, server: UdpSocket },
    First,
}

/// Measures and reports; the process is in one of the cgroups afterwards.
pub(super) fn run(stages: &[Stage], rounds: usize) -> Result<()> {
    let nothing = &stages[0];
    // Whom a backend would hear from.
    move_to(&nothing.cgroup)?;
    let backends: Vec<UdpSocket> = (0..10)
        .map(|n| UdpSocket::bind((pod_ip(SERVICES / 2 * 10 + n, 0, true), TARGET)))
        .collect::<Result<_, _>>()?;
    let direct = backends[0].local_addr()?;
    let service = From::Frontend.address();
    let clients: Vec<UdpSocket> =
        From::ALL.iter().map(|from| UdpSocket::bind(from.address())).collect::<Result<_, _>>()?;
    let mut rows = Vec::new();
    for (index, stage) in stages.iter().enumerate() {
        let has_all = matches!(stage.program, Program::Agent { services: SERVICES, .. });
        if !has_all && stage.program != Program::None {
            continue;
        }
        move_to(&stage.cgroup)?;
        for (from, client) in From::ALL.iter().zip(&clients) {
            let server = UdpSocket::bind(("10.64.1.1", 0))?;
            let what = What::Receive { client: client.try_clone()?, server };
            rows.push(Row { stage: index, name: from.name(), what, ns: Samples::default() });
        }
        let name = "bind and first sendto a Service";
        rows.push(Row { stage: index, name, what: What::First, ns: Samples::default() });
    }
    for round in 0..rounds {
        let len = rows.len();
        for turn in 0..len {
            let row = &mut rows[(round + turn) % len];
            move_to(&stages[row.stage].cgroup)?;
            // Without programs nothing leads to a Service; the backend itself is as far away.
            let to = if row.stage == 0 { direct } else { service };
            let ns = row.what.batch(to, &backends)?;
            row.ns.push(ns);
        }
    }
    report(stages, &rows);
    Ok(())
}

impl What {
    /// ns for each call.
    fn batch(&self, to: SocketAddr, backends: &[UdpSocket]) -> Result<f64> {
        let clock = || ClockId::CLOCK_THREAD_CPUTIME_ID.now();
        let mut bytes = [0; 8];
        let (start, end) = match self {
            Self::Receive { client, server } => {
                let address = server.local_addr()?;
                for _ in 0..BATCH {
                    client.send_to(b"?", address)?;
                }
                let start = clock()?;
                for _ in 0..BATCH {
                    server.recv_from(&mut bytes)?;
                }
                (start, clock()?)
            }
            Self::First => {
                let start = clock()?;
                for _ in 0..BATCH {
                    UdpSocket::bind(("10.64.1.1", 0))?.send_to(b"?", to)?;
                }
                let end = clock()?;
                for backend in backends {
                    backend.set_nonblocking(true)?;
                    while backend.recv(&mut bytes).is_ok() {}
                }
                (start, end)
            }
        };
        Ok(Duration::from(end - start).as_secs_f64() * 1e9 / f64::from(BATCH))
    }
}

fn report(stages: &[Stage], rows: &[Row]) {
    println!("\nOne datagram, in ns, against nothing attached there\n");
    for row in rows.iter().filter(|row| row.stage != 0) {
        let stage = &stages[row.stage];
        let bare = rows.iter().find(|other| other.stage == 0 && other.name == row.name);
        let more = bare.map_or(f64::NAN, |bare| row.ns.minus(&bare.ns).median());
        println!("{:<36}{:<20}{:>8.0}{more:>+8.0}", row.name, stage.name, row.ns.median());
    }
    println!("\n{:<56}{SPREAD}", "");
    for row in rows {
        println!("{:<36}{:<20}{}", row.name, stages[row.stage].name, row.ns);
    }
}
