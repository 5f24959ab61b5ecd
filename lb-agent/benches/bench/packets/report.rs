//! The figures, each beside those it is compared with.

use super::{
    Versions,
    cell::{Cell, Memory, Traffic, flags},
    changes::{Step, Taken},
    kept::Kept,
    objects::{ENDPOINTS, node_ports},
    proxy::Name,
};
use crate::samples::verdict;

/// Aims: the first sync with 10,000 Services in s, and in proportion with more; 99 of 100 changes of one
/// endpoint in ms.
const AIM_FIRST: f64 = 0.5;
const AIM_SIZE: u32 = 10_000;
const AIM_ONE: f64 = 5.0;

/// Of one size.
pub(super) struct Row {
    pub(super) services: u32,
    pub(super) cells: Vec<(Name, Option<Kept>)>,
}

impl Row {
    fn cell(&self, of: Name) -> Option<&Cell> {
        let (_, kept) = self.cells.iter().find(|(name, _)| *name == of)?;
        Some(&kept.as_ref()?.cell)
    }

    /// A line: each figure, and how many times that of socklb it is.
    fn line(&self, title: &str, digits: usize, figure: impl Fn(&Cell) -> Option<Figure>) {
        print!("{title:<44}");
        let ours = self.cell(Name::Socklb).and_then(&figure);
        for (name, kept) in &self.cells {
            let figure = kept.as_ref().and_then(|kept| figure(&kept.cell));
            let text = match figure {
                None => "-".to_owned(),
                Some(Figure::Late) => "> 15 min".to_owned(),
                Some(Figure::Is(value)) => {
                    let ratio = match ours {
                        Some(Figure::Is(ours)) if *name != Name::Socklb => {
                            format!(" {:>8}", times(value / ours))
                        }
                        _ => String::new(),
                    };
                    format!("{value:.digits$}{ratio}")
                }
            };
            print!("{text:>width$}", width = width(*name));
        }
        println!();
    }
}

/// What stands in a column.
#[derive(Clone, Copy)]
enum Figure {
    Is(f64),
    Late,
}

/// How many times as much.
fn times(ratio: f64) -> String {
    if ratio < 10.0 { format!("x{ratio:.2}") } else { format!("x{ratio:.0}") }
}

fn width(name: Name) -> usize {
    if name == Name::Socklb { 12 } else { 22 }
}

pub(super) fn print(rows: &[Row], versions: &Versions) {
    println!(
        "Packets from outside: socklb's agent with --packets external beside kube-proxy, with {ENDPOINTS} \
         endpoints of\neach Service, a load balancer's address for each and a NodePort for the first \
         {}. IPv4 and TCP,\nexternalTrafficPolicy Cluster. A client, the node and the pods are in network \
         namespaces of one machine.\nAll are told the same objects by the same API server, as JSON; what is \
         measured is what the client sees.\nBehind each figure: how many times that of socklb it is. \"socklb \
         again\" is the same measured once more:\nwhat differs there is chance. MB are 10^6 bytes.\n",
        node_ports(u32::MAX),
    );
    println!("{}, {}, {}", versions.kube_proxy, versions.nft, versions.iptables);
    for row in rows {
        table(row);
    }
    explain();
    aims(rows);
    origins(rows);
}

fn table(row: &Row) {
    print!("\n{:<44}", format!("{} Services", row.services));
    for (name, _) in &row.cells {
        print!("{:>width$}", name.title(), width = width(*name));
    }
    println!("\n");
    let first = |of: fn(&super::cell::First) -> f64| {
        move |cell: &Cell| Some(cell.first.as_ref().map_or(Figure::Late, |it| Figure::Is(of(it))))
    };
    row.line("first sync, s", 3, first(|it| it.whole));
    row.line("  after the last object was told", 3, first(|it| it.after));
    row.line("  by its own account", 3, first(|it| it.own));
    for step in Step::ALL {
        let quantile = |part| {
            move |cell: &Cell| {
                let taken = taken(cell, step)?;
                if taken.is_late {
                    return Some(Figure::Late);
                }
                (taken.ms.len() > 0).then(|| Figure::Is(taken.ms.quantile(part)))
            }
        };
        row.line(&format!("{}, ms: median", step.title()), 2, quantile(0.5));
        row.line("  99 of 100 take less than", 2, quantile(0.99));
    }
    row.line("  a sync by its own account, ms: mean", 2, |cell| cell.own.map(Figure::Is));
    row.line("  changes of each kind", 0, |cell| {
        let taken = taken(cell, Step::Added)?;
        Some(Figure::Is(f64::from(u32::try_from(taken.ms.len()).unwrap_or(u32::MAX))))
    });
    let traffic =
        |of: fn(&Traffic) -> f64| move |cell: &Cell| Some(Figure::Is(of(cell.traffic.as_ref()?)));
    row.line("connect() to a load balancer, µs: median", 1, traffic(|it| it.balanced.median()));
    row.line("  99 of 100 take less than", 1, traffic(|it| it.balanced.quantile(0.99)));
    row.line("connect() to a NodePort, µs: median", 1, traffic(|it| it.node_ports.median()));
    row.line("  99 of 100 take less than", 1, traffic(|it| it.node_ports.quantile(0.99)));
    row.line("connect() to a pod itself, µs: median", 1, traffic(|it| it.straight.median()));
    row.line("connections in a second, load balancer", 0, traffic(|it| it.balanced_rate));
    row.line("connections in a second, pod itself", 0, traffic(|it| it.straight_rate));
    row.line("one connection, Gbit/s: load balancer", 2, traffic(|it| it.balanced_bulk.median()));
    row.line("  pod itself (A)", 2, traffic(|it| it.straight_bulk.median()));
    row.line("  pod itself once more (A/A)", 2, traffic(|it| it.again_bulk.median()));
    let memory =
        |of: fn(&Memory) -> f64| move |cell: &Cell| Some(Figure::Is(of(cell.memory.as_ref()?)));
    row.line("resident memory, MB", 1, memory(|it| it.resident));
    row.line("  after the changes", 1, memory(|it| it.changed));
    row.line("  peak", 1, memory(|it| it.peak));
    row.line("peak with all it starts and the kernel, MB", 1, memory(|it| it.peak_of_all));
    row.line("kernel memory, MB", 1, memory(|it| it.kernel));
    row.line("  of the rules alone", 1, memory(|it| it.rules));
    let flags = flags(row.services);
    if !flags.is_empty() {
        println!("\nsocklb is told {}.", flags.join(" "));
    }
}

fn taken(cell: &Cell, step: Step) -> Option<&Taken> {
    cell.changes.iter().find(|taken| taken.step == step)
}

fn explain() {
    println!(
        "
first sync: from the first object told to the answer of the last of 100 Services. The proxy has started
  and waits for the objects. Then 1,000 Services and 270 NodePorts are asked whether they are served.
an endpoint is added, replaced: to the first connection to the new one. Each goes there with one chance of
  ten; (nothing changes) is how long that takes by itself, and is in these figures.
an endpoint is removed: to the last connection to it, and ten more: so many lie between two that go there
  while it is there, on the average.
a range excludes the client: loadBalancerSourceRanges; to the first connection that nobody answers.
  Connections are tried again and again, the longer it takes the more rarely (after a thousandth of the time
  that has passed), so trying does not slow down who is waited for. kube-proxy writes once in a second at
  most; changes come further apart, so what it waits is not in its figures.
by its own account: kubeproxy_sync_proxy_rules_duration_seconds, which both have. socklb's has its maps for
  sockets in it.
connections in a second: of four threads, each opens one, sends a byte, gets one and closes by a reset.
one connection: written to for 3 s, five times, in blocks of 128 KiB; medians.
kernel memory: what the kernel charges to the proxy's control group; of the rules alone: what of it is left
  when the proxy has ended, and the maps and programs of socklb are gone."
    );
}

fn aims(rows: &[Row]) {
    println!("\nAims of socklb");
    let value = |row: &Row, step| {
        let taken = row.cell(Name::Socklb).and_then(|cell| taken(cell, step))?;
        (taken.ms.len() > 0 && !taken.is_late).then(|| taken.ms.quantile(0.99))
    };
    for row in rows.iter().filter(|row| row.services >= AIM_SIZE) {
        let Some(first) = row.cell(Name::Socklb).and_then(|cell| cell.first.as_ref()) else {
            continue;
        };
        let aim = AIM_FIRST * f64::from(row.services) / f64::from(AIM_SIZE);
        println!(
            "{} Services, first sync {:.3} s, aim {aim:.2}: {}; after the last object was told {:.3}: {}; by \
             its own account {:.3}: {}",
            row.services,
            first.whole,
            verdict(first.whole <= aim),
            first.after,
            verdict(first.after <= aim),
            first.own,
            verdict(first.own <= aim),
        );
    }
    for step in [Step::Added, Step::Removed, Step::Replaced] {
        let all: Vec<_> = rows.iter().filter_map(|row| Some((row, value(row, step)?))).collect();
        for (row, ms) in &all {
            println!(
                "{} Services, {}: 99 of 100 in {ms:.2} ms, aim {AIM_ONE:.0}: {}",
                row.services,
                step.title(),
                verdict(*ms <= AIM_ONE)
            );
        }
        if let [(few, before), .., (many, after)] = all[..] {
            let (few, many) = (few.services, many.services);
            println!("  with {many} Services {} of that with {few}", times(after / before));
        }
    }
}

fn origins(rows: &[Row]) {
    println!("\nMeasured");
    for row in rows {
        for (name, kept) in &row.cells {
            let Some(Kept { origin, .. }) = kept else { continue };
            let (title, services) = (name.title(), row.services);
            println!("{}  {services:>6} Services, {title}: {}", origin.date, origin.version);
        }
    }
}
