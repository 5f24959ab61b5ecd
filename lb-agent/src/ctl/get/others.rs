//! What the maps say besides the frontends and their backends.

use std::{
    collections::BTreeMap,
    io::{self, Write},
};

use lb_common::abi::{self, Addr, AffinityKey, Bond, ClientKey, Counter, SourceAddress};
use lb_core::{
    dump::{self, API_VERSION, Entry, List},
    op::AddressUse,
    store::Snapshot,
};
use serde::Serialize;

use super::{
    clients::{clients, write_clients},
    names, not_found, once, place, write,
};
use crate::{
    ctl::{
        cli::{Get, ListForm, What},
        failure::{self, Answer, Failure},
        json,
        packets::PacketCells,
        table::{TextTable, or_none},
        target::{Target, TargetAddress},
    },
    maps::{self, Counters, Pinned},
    pins::{Pins, shown},
};

/// What is in no snapshot, as far as it is asked for.
#[derive(Debug, Default)]
pub(in crate::ctl) struct Others {
    bonds: Vec<(AffinityKey, Bond)>,
    clients: BTreeMap<ClientKey, SourceAddress>,
    counters: Vec<(Counter, u64)>,
    /// For `services -o wide`.
    pub(super) packets: PacketCells,
    /// Nanoseconds of the clock of the bonds.
    now: u64,
}

impl Others {
    pub(in crate::ctl) fn read(get: &Get, maps: &Pinned, pins: &Pins) -> Result<Self, Failure> {
        let mut others = Self { now: maps::now(), ..Self::default() };
        let fail = |error| failure::unreadable(pins, &error);
        match get.what {
            What::Affinity => {
                others.clients = maps.clients().map_err(fail)?;
                others.bonds = maps.bonds().collect::<Result<_, _>>().map_err(fail)?;
            }
            What::Clients => others.clients = maps.clients().map_err(fail)?,
            What::Counters => others.counters = counters(pins)?,
            What::Services if get.output == Some(ListForm::Wide) => {
                others.packets = PacketCells::read(pins);
            }
            What::Services | What::Backends | What::Addresses => {}
        }
        Ok(others)
    }

    pub(super) fn run(
        &self,
        get: &Get,
        snapshot: &Snapshot,
        out: &mut dyn Write,
        notes: &mut dyn Write,
    ) -> Result<Answer, Failure> {
        let entries = dump::entries(snapshot);
        let is_empty = match get.what {
            What::Addresses => {
                let list = addresses(get, snapshot, &entries);
                write_addresses(get, &list, out)?;
                list.items.is_empty()
            }
            What::Affinity => {
                let list = self.affinity(get, &entries);
                write_affinity(get, &list, out)?;
                list.items.is_empty()
            }
            What::Clients => {
                let list = clients(get, &self.clients);
                write_clients(get, &list, out)?;
                list.items.is_empty()
            }
            _ => {
                write_counters(get, &counter_list(&self.counters), out)?;
                false
            }
        };
        out.flush()?;
        let mut answer = Answer::Yes;
        for target in get.targets.iter().filter(|target| !self.is_known(snapshot, &entries, target))
        {
            answer = Answer::No;
            writeln!(notes, "error: {}", not_found(get, &entries, target))?;
        }
        if is_empty && answer == Answer::Yes {
            let what = match get.what {
                What::Affinity => "bound clients",
                What::Clients => "clients of source ranges",
                _ => "addresses",
            };
            writeln!(notes, "No {what} found{}.", place(get))?;
        }
        Ok(answer)
    }

    fn is_known(&self, snapshot: &Snapshot, entries: &[Entry<'_>], target: &Target) -> bool {
        let is_host = |addr: Addr| matches!(target, Target::Address(at) if addr == at.ip.into());
        entries.iter().any(|entry| target.is_frontend(entry))
            || snapshot.addresses.keys().any(|addr| is_host(*addr))
            || self.bonds.iter().any(|(_, bond)| is_host(bond.backend.addr))
            || self.clients.iter().any(|(key, to)| is_host(key.to) || is_host(to.addr))
    }

    fn affinity<'a>(&self, get: &Get, entries: &[Entry<'a>]) -> List<AffinityItem<'a>> {
        let mut items = Vec::new();
        for (key, bond) in &self.bonds {
            let of: Vec<&Entry<'a>> =
                entries.iter().filter(|entry| entry.service.id == key.service).collect();
            let [namespace, name, port] = of.first().map_or([""; 3], |entry| entry.names());
            let wanted = |target: &Target| {
                of.iter().any(|entry| target.is_frontend(entry))
                    || matches!(target, Target::Address(at) if at.is_at(bond.backend))
            };
            if !get.is_wanted(wanted) || get.namespace.as_ref().is_some_and(|n| n != namespace) {
                continue;
            }
            let any =
                if key.family == 4 { Addr::from_v4_word(0) } else { Addr::from_words([0; 4]) };
            let client = self.clients.get(&ClientKey::general(key.netns, any));
            items.push(AffinityItem {
                namespace,
                name,
                port,
                id: key.service,
                netns: key.netns,
                client: client.map(|client| client.addr.to_string()),
                family: key.family,
                backend: bond.backend.to_string(),
                age_seconds: self.now.saturating_sub(bond.used) / 1_000_000_000,
                timeout_seconds: of.iter().map(|entry| entry.affinity()).max().unwrap_or(0),
            });
        }
        items.sort_by(|a, b| a.order().cmp(&b.order()));
        List { api_version: API_VERSION, kind: "AffinityList", items }
    }
}

/// All counters, summed over CPUs.
pub(in crate::ctl) fn counters(pins: &Pins) -> Result<Vec<(Counter, u64)>, Failure> {
    let what = || format!("cannot read {}", shown(pins.root()).display());
    let dir = pins.maps().map_err(|error| failure::kernel(&what(), &error))?;
    let Some(dir) = dir else { return Ok(Vec::new()) };
    let counters = Counters::open(&dir).map_err(|error| failure::open(&error))?;
    let all = Counter::ALL.into_iter();
    all.map(|counter| Ok((counter, counters.get(counter)?)))
        .collect::<Result<_, _>>()
        .map_err(|error| failure::unreadable(pins, &error))
}

/// An address, as JSON has it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct AddressItem {
    address: String,
    /// `own-node`, `other-node`, `cluster-ip`, `reserved`.
    roles: Vec<&'static str>,
    /// The cookie of the only network namespace where it is that; null: everywhere.
    netns: Option<u64>,
    /// The Services with a frontend there.
    services: Vec<String>,
}

/// A client that stays with its backend.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct AffinityItem<'a> {
    namespace: &'a str,
    name: &'a str,
    port: &'a str,
    id: u32,
    /// Cookie of the client's network namespace.
    netns: u64,
    /// Its address; null if not known.
    client: Option<String>,
    /// 4 or 6.
    family: u32,
    backend: String,
    /// Since its last connection.
    age_seconds: u64,
    /// For how long it stays; 0: not any more.
    timeout_seconds: u32,
}

impl AffinityItem<'_> {
    fn order(&self) -> (&str, &str, &str, u32, u64, u32) {
        (self.namespace, self.name, self.port, self.id, self.netns, self.family)
    }
}

/// How often something happened.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct CounterItem {
    name: &'static str,
    count: u64,
}

fn addresses(get: &Get, snapshot: &Snapshot, entries: &[Entry<'_>]) -> List<AddressItem> {
    let is_node_port = |entry: &&Entry<'_>| {
        [abi::SCOPE_OWN_NODE, abi::SCOPE_OTHER_NODES].contains(&entry.key.scope)
    };
    let (node_ports, plain): (Vec<&Entry<'_>>, Vec<_>) = entries.iter().partition(is_node_port);
    let mut by_addr: BTreeMap<Addr, Vec<&Entry<'_>>> = BTreeMap::new();
    for entry in plain {
        by_addr.entry(entry.key.peer.addr).or_default().push(entry);
    }
    let item = |(addr, known): (&Addr, &AddressUse)| {
        let at_it = by_addr.get(addr).map_or(&[][..], Vec::as_slice);
        let own = at_it.iter().filter(|entry| entry.key.scope == abi::SCOPE_NODE);
        let place = TargetAddress {
            own_ports: own.map(|entry| (entry.key.peer.port, entry.key.protocol)).collect(),
            role: known.flags,
            ..TargetAddress::new(addr.ip())
        };
        let is_node = known.flags & (abi::Address::OWN_NODE | abi::Address::OTHER_NODE) != 0;
        let of_nodes = || node_ports.iter().filter(|entry| is_node && place.is_host(entry.key));
        let here = || at_it.iter().copied().chain(of_nodes().copied());
        let wanted = |target: &Target| match target {
            Target::Name(_) => here().any(|entry| target.is_frontend(entry)),
            Target::Address(at) => {
                *addr == at.ip.into()
                    && at.port.is_none_or(|_| here().any(|e| target.is_frontend(e)))
            }
        };
        let mut services: Vec<String> =
            here().filter_map(|entry| Some(entry.port?.service.to_string())).collect();
        services.sort();
        services.dedup();
        get.is_wanted(wanted).then(|| AddressItem {
            address: addr.to_string(),
            roles: roles(known.flags),
            netns: (known.netns != 0).then_some(known.netns),
            services,
        })
    };
    let items = snapshot.addresses.iter().filter_map(item).collect();
    List { api_version: API_VERSION, kind: "AddressList", items }
}

fn roles(flags: u32) -> Vec<&'static str> {
    [
        (abi::Address::OWN_NODE, "own-node"),
        (abi::Address::OTHER_NODE, "other-node"),
        (abi::Address::CLUSTER_IP, "cluster-ip"),
        (abi::Address::RESERVED, "reserved"),
    ]
    .into_iter()
    .filter_map(|(flag, name)| (flags & flag != 0).then_some(name))
    .collect()
}

fn write_addresses(get: &Get, list: &List<AddressItem>, out: &mut dyn Write) -> io::Result<()> {
    match get.output {
        Some(ListForm::Json) => return json(out, list),
        Some(ListForm::Name) => return once(list.items.iter().map(|i| i.address.clone()), out),
        Some(ListForm::Wide) | None => {}
    }
    let wide = get.output == Some(ListForm::Wide);
    let mut titles = vec!["ADDRESS", "ROLES", "WHERE"];
    if wide {
        titles.push("SERVICES");
    }
    let mut table = TextTable::new(&titles);
    for item in &list.items {
        let place = item.netns.map_or_else(|| "all".to_owned(), |netns| format!("netns {netns}"));
        let mut row = vec![item.address.clone(), or_none(&item.roles.join(",")), place];
        if wide {
            row.push(or_none(&item.services.join(",")));
        }
        table.push(row);
    }
    write(get, &table, out, list.items.is_empty())
}

fn write_affinity(get: &Get, list: &List<AffinityItem<'_>>, out: &mut dyn Write) -> io::Result<()> {
    match get.output {
        Some(ListForm::Json) => return json(out, list),
        Some(ListForm::Name) => return once(list.items.iter().map(|i| i.backend.clone()), out),
        Some(ListForm::Wide) | None => {}
    }
    let wide = get.output == Some(ListForm::Wide);
    let mut titles = vec!["NAMESPACE", "NAME", "PORT", "CLIENT", "BACKEND", "AGE", "LEFT"];
    if wide {
        titles.extend(["ID", "ADDRESS"]);
    }
    let mut table = TextTable::new(&titles);
    for item in &list.items {
        let mut row = names(!item.name.is_empty(), [item.namespace, item.name, item.port]);
        let left = u64::from(item.timeout_seconds).saturating_sub(item.age_seconds);
        row.extend([
            format!("netns {}", item.netns),
            item.backend.clone(),
            format!("{}s", item.age_seconds),
            if left > 0 { format!("{left}s") } else { "over".to_owned() },
        ]);
        if wide {
            row.extend([item.id.to_string(), or_none(item.client.as_deref().unwrap_or_default())]);
        }
        table.push(row);
    }
    write(get, &table, out, list.items.is_empty())
}

fn counter_list(counters: &[(Counter, u64)]) -> List<CounterItem> {
    let item =
        |(counter, count): &(Counter, u64)| CounterItem { name: counter.name(), count: *count };
    let items = counters.iter().map(item).collect();
    List { api_version: API_VERSION, kind: "CounterList", items }
}

fn write_counters(get: &Get, list: &List<CounterItem>, out: &mut dyn Write) -> io::Result<()> {
    match get.output {
        Some(ListForm::Json) => return json(out, list),
        Some(ListForm::Name) => return once(list.items.iter().map(|i| i.name.to_owned()), out),
        Some(ListForm::Wide) | None => {}
    }
    let mut table = TextTable::new(&["COUNTER", "COUNT"]);
    for item in &list.items {
        table.push(vec![item.name.to_owned(), item.count.to_string()]);
    }
    write(get, &table, out, list.items.is_empty())
}

/// A client that stays with a backend of [`dump::sample::rich`], and one that did.
#[cfg(test)]
pub(super) fn sample() -> Others {
    use lb_core::dump::sample::peer;

    let bond = |netns, used, backend| {
        let key = AffinityKey { netns, service: 4, family: 4 };
        (key, Bond { used, backend: peer(backend), reserved: [0; 6] })
    };
    let client = ClientKey::general(4711, peer("0.0.0.0:0").addr);
    let one = client.towards(peer("203.0.113.5:0").addr);
    let addr = |from| SourceAddress::new(peer(from).addr, 0);
    let general =
        SourceAddress { flags: SourceAddress::SURE | SourceAddress::OTHERS, ..addr("10.2.0.1:0") };
    Others {
        bonds: vec![
            bond(4712, 10_000_000_000, "10.0.0.9:53"),
            bond(4711, 90_000_000_000, "10.0.0.1:53"),
        ],
        clients: [(client, general), (one, addr("10.2.0.2:0"))].into(),
        counters: vec![(Counter::Refused, 3), (Counter::Denied, 0)],
        now: 95_000_000_000,
        packets: PacketCells::default(),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;
    use serde_json::{Value, json};

    use super::*;
    use crate::ctl::{Cli, Command};

    fn get(words: &str) -> (Answer, String, String) {
        let Command::Get(get) = Cli::parse_from(format!("lbctl get {words}").split(' ')).command
        else {
            unreachable!()
        };
        let (mut out, mut notes) = (Vec::new(), Vec::new());
        let snapshot = dump::sample::rich().snapshot();
        let answer = super::super::run(&get, &snapshot, &sample(), &mut out, &mut notes).unwrap();
        (answer, String::from_utf8(out).unwrap(), String::from_utf8(notes).unwrap())
    }

    fn item(words: &str, n: usize) -> Value {
        let list: Value = serde_json::from_str(&get(words).1).unwrap();
        list["items"][n].clone()
    }

    #[test]
    fn what_addresses_stand_for() {
        assert_eq!(
            get("addresses").1,
            "\
ADDRESS      ROLES        WHERE
10.96.0.20   cluster-ip   all
10.96.0.21   cluster-ip   all
127.0.0.1    own-node     netns 77
192.0.2.1    own-node     all
192.0.2.9    other-node   all
"
        );
        let line = "10.96.0.21   cluster-ip   all   shop/cart\n";
        assert_eq!(get("addr 10.96.0.21 --no-headers -o wide").1, line);
        let all = "10.96.0.21\n127.0.0.1\n192.0.2.1\n192.0.2.9\n";
        assert_eq!(get("addresses cart -o name").1, all, "its NodePort is at the nodes' addresses");
        assert_eq!(get("addresses 192.0.2.1:30080 -o name").1, "192.0.2.1\n");
        let line = "192.0.2.1   own-node   all   shop/cart\n";
        assert_eq!(get("addr 192.0.2.1 --no-headers -o wide").1, line);
        assert_eq!(get("addresses 10.9.9.9").0, Answer::No);
        assert_eq!(
            item("addresses -o json", 2),
            json!({
                "address": "127.0.0.1", "roles": ["own-node"], "netns": 77,
                "services": ["shop/cart"],
            })
        );
    }

    #[test]
    fn clients_and_where_they_stay() {
        assert_eq!(
            get("affinity -o wide").1,
            "\
NAMESPACE   NAME   PORT     CLIENT       BACKEND       AGE   LEFT   ID   ADDRESS
default     game   <none>   netns 4711   10.0.0.1:53   5s    25s    4    10.2.0.1
default     game   <none>   netns 4712   10.0.0.9:53   85s   over   4    <none>
"
        );
        assert_eq!(get("affinity 10.0.0.9 -o name").1, "10.0.0.9:53\n");
        let nothing = (Answer::Yes, String::new(), "No bound clients found.\n".to_owned());
        assert_eq!(get("affinity cart"), nothing);
        assert_eq!(get("affinity nope").0, Answer::No);
        assert_eq!(
            item("affinity -o json", 0),
            json!({
                "namespace": "default", "name": "game", "port": "", "id": 4, "netns": 4711,
                "client": "10.2.0.1", "family": 4, "backend": "10.0.0.1:53", "ageSeconds": 5,
                "timeoutSeconds": 30,
            })
        );
    }

    #[test]
    fn from_where_clients_come() {
        assert_eq!(
            get("clients").1,
            "\
CLIENT       FAMILY   TO            FROM
netns 4711   IPv4     any           10.2.0.1
netns 4711   IPv4     203.0.113.5   10.2.0.2
"
        );
        let one = "netns 4711   IPv4   203.0.113.5   10.2.0.2   no\n";
        assert_eq!(get("clients 203.0.113.5 --no-headers -o wide").1, one);
        assert_eq!(get("client 10.2.0.2 -o name").1, "10.2.0.2\n");
        assert_eq!(get("clients 10.9.9.9").0, Answer::No);
        assert_eq!(
            item("clients -o json", 0),
            json!({ "netns": 4711, "family": 4, "to": null, "from": "10.2.0.1", "withPort": true })
        );
    }

    #[test]
    fn counts() {
        assert_eq!(get("counters").1, "COUNTER   COUNT\nrefused   3\ndenied    0\n");
        assert_eq!(item("counters -o json", 0), json!({ "name": "refused", "count": 3 }));
    }
}
