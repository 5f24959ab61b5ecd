//! `lbctl get`: the frontends or the backends, all or those asked for.

mod clients;
mod near;
mod others;

use std::{
    collections::BTreeSet,
    io::{self, Write},
};

use lb_core::{
    dump::{self, BackendItem, Entry, Fate, List, ServiceItem},
    store::Snapshot,
};

use self::near::not_found;
pub(super) use self::others::{Others, counters};
use super::{
    cli::{Get, ListForm, What},
    failure::{Answer, Failure},
    json,
    table::{TextTable, or_none},
    target::{ServiceName, Target, is_label},
};

/// What stands for a Service whose name the maps do not know.
const UNKNOWN: &str = "<unknown>";

impl Get {
    /// What clap cannot check by itself.
    pub(super) fn check(&self) -> Result<(), Failure> {
        if let Some(name) = self.namespace.as_ref().filter(|name| !is_label(name)) {
            return Err(Failure::Usage(format!(
                "-n {name:?}: no namespace can have this name: use small letters, digits and `-`"
            )));
        }
        for target in &self.targets {
            if let (Target::Name(ServiceName { namespace: Some(own), .. }), Some(flag)) =
                (target, &self.namespace)
                && own != flag
            {
                return Err(Failure::Usage(format!(
                    "`{target}` is in the namespace {own}, but -n says {flag}"
                )));
            }
        }
        let alone = match self.what {
            What::Services | What::Backends | What::Affinity => None,
            What::Clients => self
                .namespace
                .is_some()
                .then_some("clients are network namespaces, in no namespace"),
            What::Addresses => self.namespace.is_some().then_some("addresses are in no namespace"),
            What::Counters => (self.namespace.is_some() || !self.targets.is_empty())
                .then_some("counters are of the whole node"),
        };
        alone.map_or(Ok(()), |why| Err(Failure::Usage(why.to_owned())))
    }

    /// What the maps know of the addresses that are asked about.
    fn resolved(&self, snapshot: &Snapshot) -> Self {
        let mut get = self.clone();
        for target in &mut get.targets {
            if let Target::Address(address) = target {
                address.resolve(snapshot);
            }
        }
        get
    }

    fn is_wanted(&self, wanted: impl Fn(&Target) -> bool) -> bool {
        self.targets.is_empty() || self.targets.iter().any(wanted)
    }
}

pub(super) fn run(
    get: &Get,
    snapshot: &Snapshot,
    others: &Others,
    out: &mut dyn Write,
    notes: &mut dyn Write,
) -> Result<Answer, Failure> {
    let get = &get.resolved(snapshot);
    let mut all = dump::entries(snapshot);
    // A Service's own addresses first, then its NodePorts.
    all.sort_by_key(|entry| (entry.port, entry.key.scope, !entry.key.peer.addr.is_v4(), entry.key));
    let mut entries = all.clone();
    entries.retain(|entry| get.namespace.as_ref().is_none_or(|wanted| wanted == entry.names()[0]));

    let empty = match get.what {
        What::Services => {
            let mut chosen = entries.clone();
            chosen.retain(|entry| get.is_wanted(|target| target.is_frontend(entry)));
            services(get, &chosen, others, out)?;
            chosen.is_empty()
        }
        What::Backends => {
            let wanted = |entry: &Entry<'_>, peer| get.is_wanted(|t| t.is_backend(entry, peer));
            let list = dump::backends(&entries, wanted);
            backends(get, &list, out)?;
            list.items.is_empty()
        }
        What::Addresses | What::Affinity | What::Clients | What::Counters => {
            return others.run(get, snapshot, out, notes);
        }
    };
    // The rows come before the remarks about them.
    out.flush()?;
    let mut answer = Answer::Yes;
    for target in &get.targets {
        if !is_known(get, &entries, target) {
            answer = Answer::No;
            writeln!(notes, "error: {}", not_found(get, &all, target))?;
        }
    }
    if empty && answer == Answer::Yes {
        writeln!(notes, "{}", nothing(get, &entries))?;
    }
    Ok(answer)
}

/// Whether the target is there at all, though perhaps without backends.
fn is_known(get: &Get, entries: &[Entry<'_>], target: &Target) -> bool {
    entries.iter().any(|entry| match get.what {
        What::Backends => {
            target.is_frontend(entry)
                || entry.forwarding().any(|(_, record, _)| target.is_backend(entry, record.peer))
        }
        _ => target.is_frontend(entry),
    })
}

fn services(
    get: &Get,
    entries: &[Entry<'_>],
    others: &Others,
    out: &mut dyn Write,
) -> io::Result<()> {
    match get.output {
        Some(ListForm::Json) => return json(out, &dump::services(entries)),
        Some(ListForm::Name) => {
            let names = entries.iter().map(|entry| {
                entry.port.map_or_else(|| UNKNOWN.to_owned(), |port| port.service.to_string())
            });
            return once(names, out);
        }
        Some(ListForm::Wide) | None => {}
    }
    let wide = get.output == Some(ListForm::Wide);
    let mut titles = vec!["NAMESPACE", "NAME", "PORT", "FRONTEND", "BACKENDS"];
    if wide {
        titles.extend([
            "ID",
            "BLOCK",
            "GENERATION",
            "AFFINITY",
            "SOURCE-RANGES",
            "ADDRESSES",
            "KEPT",
            "PACKETS",
        ]);
    }
    let mut table = TextTable::new(&titles);
    for entry in entries {
        let item = ServiceItem::from(entry);
        let ServiceItem { namespace, name, port, id, block, generation, backends, .. } = item;
        let count = match item.fate {
            Fate::Damaged | Fate::Unreachable => format!("<{}>", item.fate),
            Fate::Forward | Fate::Refuse => backends.len().to_string(),
        };
        let mut row = names(entry.port.is_some(), [namespace, name, port]);
        row.extend([dump::frontend_text(entry.key), count]);
        if wide {
            let affinity = match item.affinity_seconds {
                0 => String::new(),
                seconds => format!("{seconds}s"),
            };
            let source_ranges = item.source_ranges.unwrap_or_default().join(",");
            row.extend([id, block, generation].map(|number| number.to_string()));
            let packets = others.packets.cell(entry.key);
            row.extend(
                [affinity, source_ranges, backends.join(","), item.kept.join(","), packets]
                    .map(|text| or_none(&text)),
            );
        }
        table.push(row);
    }
    write(get, &table, out, entries.is_empty())
}

fn backends(get: &Get, list: &List<BackendItem<'_>>, out: &mut dyn Write) -> io::Result<()> {
    match get.output {
        Some(ListForm::Json) => return json(out, list),
        Some(ListForm::Name) => {
            return once(list.items.iter().map(|item| item.address.clone()), out);
        }
        Some(ListForm::Wide) | None => {}
    }
    let wide = get.output == Some(ListForm::Wide);
    let mut titles = vec!["NAMESPACE", "NAME", "PORT", "BACKEND", "FLOWS"];
    if wide {
        titles.extend(["ID", "BACKEND-ID", "INDEX", "FRONTENDS"]);
    }
    let mut table = TextTable::new(&titles);
    for item in &list.items {
        let known = !item.name.is_empty();
        let mut row = names(known, [item.namespace, item.name, item.port]);
        row.push(format!("{}/{}", item.address, item.protocol.to_ascii_lowercase()));
        row.push(if item.kept { "old" } else { "all" }.to_owned());
        if wide {
            let indexes: Vec<_> = item.indexes.iter().map(ToString::to_string).collect();
            let frontend = |frontend: &String| {
                let old = !item.kept && item.kept_frontends.contains(frontend);
                if old { format!("{frontend}(old)") } else { frontend.clone() }
            };
            let frontends: Vec<_> = item.frontends.iter().map(frontend).collect();
            row.extend([item.id, item.backend_id].map(|id| id.to_string()));
            row.extend([indexes.join(","), frontends.join(",")]);
        }
        table.push(row);
    }
    write(get, &table, out, list.items.is_empty())
}

fn names(known: bool, names: [&str; 3]) -> Vec<String> {
    names.map(|name| if known { or_none(name) } else { UNKNOWN.to_owned() }).to_vec()
}

/// Titles without rows are noise: what is missing is said elsewhere.
fn write(get: &Get, table: &TextTable, out: &mut dyn Write, empty: bool) -> io::Result<()> {
    if empty { Ok(()) } else { table.write(out, !get.no_headers) }
}

fn once(lines: impl Iterator<Item = String>, out: &mut dyn Write) -> io::Result<()> {
    let mut told = BTreeSet::new();
    for line in lines {
        if told.insert(line.clone()) {
            writeln!(out, "{line}")?;
        }
    }
    Ok(())
}

/// Why there is no row although nothing asked for is missing.
fn nothing(get: &Get, entries: &[Entry<'_>]) -> String {
    let place = place(get);
    match get.what {
        What::Backends if !entries.is_empty() => {
            let whose = if get.targets.is_empty() { "the Services" } else { "what was asked for" };
            format!("No backends found{place}: connections to {whose} are refused.")
        }
        _ => format!("No services found{place}."),
    }
}

fn place(get: &Get) -> String {
    get.namespace.as_ref().map_or_else(String::new, |name| format!(" in namespace {name}"))
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;
    use lb_common::abi::{Backend, Service, ServiceKey};
    use serde_json::{Value, json};

    use super::*;
    use crate::ctl::{Cli, Command};
    use lb_core::{dump::sample, memory::Memory, op::Op, store::Store as _};

    /// Answer, standard output, standard error.
    fn get_from(memory: &Memory, words: &str) -> (Answer, String, String) {
        let Command::Get(get) = Cli::parse_from(format!("lbctl get {words}").split(' ')).command
        else {
            unreachable!()
        };
        let (mut out, mut notes) = (Vec::new(), Vec::new());
        let snapshot = memory.snapshot();
        let answer = run(&get, &snapshot, &others::sample(), &mut out, &mut notes).unwrap();
        (answer, String::from_utf8(out).unwrap(), String::from_utf8(notes).unwrap())
    }

    fn get(words: &str) -> (Answer, String, String) {
        get_from(&sample::memory(), words)
    }

    #[test]
    fn services_in_columns() {
        let (answer, out, notes) = get("services");
        assert_eq!(
            out,
            "\
NAMESPACE     NAME       PORT     FRONTEND             BACKENDS
default       db         <none>   10.96.0.9:5432/tcp   1
default       web        http     10.96.0.10:80/tcp    2
default       web        http     192.0.2.7:80/tcp     2
default       web        http     [fd00::a]:80/tcp     1
kube-system   kube-dns   dns      10.96.0.2:53/udp     0
"
        );
        assert_eq!((answer, notes.as_str()), (Answer::Yes, ""));
    }

    #[test]
    fn wide_adds_columns() {
        let (_, out, _) = get("services kube-dns 10.96.0.10 -o wide");
        assert_eq!(
            out,
            "\
NAMESPACE     NAME       PORT   FRONTEND            BACKENDS   ID   BLOCK   GENERATION   AFFINITY   SOURCE-RANGES   ADDRESSES                      KEPT     PACKETS
default       web        http   10.96.0.10:80/tcp   2          0    2       102          <none>     <none>          10.0.0.9:8080,10.0.0.10:8080   <none>   <none>
kube-system   kube-dns   dns    10.96.0.2:53/udp    0          3    9       109          <none>     <none>          <none>                         <none>   <none>
"
        );
        let (_, out, _) = get("backends db -o wide --no-headers");
        assert_eq!(
            out,
            "default   db   <none>   10.0.0.1:5432/tcp   all   1   7   6   10.96.0.9:5432\n"
        );
    }

    #[test]
    fn backends_by_service_by_frontend_and_by_address() {
        let backends = |words: &str| get(&format!("backends {words} -o name")).1;
        assert_eq!(backends("web"), "10.0.0.9:8080\n10.0.0.10:8080\n[fd01::1]:8080\n");
        assert_eq!(backends("192.0.2.7:80"), "10.0.0.9:8080\n10.0.0.10:8080\n");
        assert_eq!(backends("10.0.0.9"), "10.0.0.9:8080\n");
        assert_eq!(backends("::ffff:10.0.0.9"), "10.0.0.9:8080\n");
    }

    #[test]
    fn what_is_rare_is_told() {
        let rich = |words: &str| get_from(&sample::rich(), words).1;
        assert_eq!(
            rich("services cart"),
            "\
NAMESPACE   NAME   PORT     FRONTEND                     BACKENDS
shop        cart   <none>   10.96.0.21:80/tcp            1
shop        cart   <none>   own-node-ipv4:30080/tcp      1
shop        cart   <none>   other-nodes-ipv4:30080/tcp   <unreachable>
shop        cart   <none>   192.0.2.9:30080/tcp          1
"
        );
        assert_eq!(
            rich("services game --no-headers -o wide"),
            "default   game   <none>   10.96.0.20:53/udp   1   4   0   100   30s   <none>   \
             10.0.0.1:53   10.0.0.2:53,10.0.0.3:53   <none>\n"
        );
        assert_eq!(
            rich("backends game 10.0.0.2"),
            "\
NAMESPACE   NAME   PORT     BACKEND           FLOWS
default     game   <none>   10.0.0.1:53/udp   all
default     game   <none>   10.0.0.2:53/udp   old
default     game   <none>   10.0.0.3:53/udp   old
"
        );
    }

    /// The address of a node, as users know it.
    #[test]
    fn whose_is_this_node_port() {
        let names =
            |words: &str| get_from(&sample::rich(), &format!("services {words} --no-headers")).1;
        let row =
            |frontend: &str, count: &str| format!("shop   cart   <none>   {frontend}   {count}\n");
        let own = row("own-node-ipv4:30080/tcp", "1");
        for target in ["192.0.2.1:30080", "192.0.2.1", "127.0.0.1:30080/tcp", "0.0.0.0:30080"] {
            assert_eq!(names(target), own, "{target}");
        }
        assert_eq!(names("192.0.2.9:30080"), row("192.0.2.9:30080/tcp", "1"));
        for target in ["192.0.2.1:30081", "192.0.2.1:30080/udp", "192.0.2.77:30080", "[::1]:30080"]
        {
            assert_eq!(names(target), "", "{target}");
        }
        let (_, out, _) =
            get_from(&sample::rich(), "backends 192.0.2.1:30080 --no-headers -o wide");
        assert_eq!(
            out,
            "shop   cart   <none>   10.0.1.1:80/tcp   all   5   9   4   own-node-ipv4:30080\n"
        );
        let (_, out, _) = get_from(&sample::rich(), "backends cart --no-headers -o wide");
        assert_eq!(
            out,
            "shop   cart   <none>   10.0.1.1:80/tcp   all   5   9   3,4,6   \
             10.96.0.21:80,own-node-ipv4:30080,192.0.2.9:30080\n"
        );
    }

    /// Draining, and still chosen at one of its frontends.
    #[test]
    fn an_endpoint_that_is_kept_at_some_frontends_only() {
        let mut memory = sample::rich();
        let records = [(1, "10.0.0.1:53"), (2, "10.0.0.2:53")].map(|(backend, addr)| Backend {
            backend,
            ..Backend::forward(sample::peer(addr)).stamped(130, 4)
        });
        memory.apply(&Op::WriteBlock { block: 30, records: records.to_vec() }).unwrap();
        let key = ServiceKey { peer: sample::peer("192.0.2.5:53"), protocol: 17, scope: 0 };
        let service = Service { block: 30, count: 2, kept: 0, generation: 130, id: 4 };
        memory.apply(&Op::PutService { key, service }).unwrap();
        let (_, out, _) = get_from(&memory, "backends game --no-headers -o wide");
        assert_eq!(
            out,
            "default   game   <none>   10.0.0.1:53/udp   all   4   1   0,30   10.96.0.20:53,192.0.2.5:53\n\
             default   game   <none>   10.0.0.2:53/udp   all   4   2   1,31   10.96.0.20:53(old),192.0.2.5:53\n\
             default   game   <none>   10.0.0.3:53/udp   old   4   3   2      10.96.0.20:53\n"
        );
    }

    #[test]
    fn names_once() {
        let (_, out, _) = get("services -o name");
        assert_eq!(out, "default/db\ndefault/web\nkube-system/kube-dns\n");
    }

    #[test]
    fn what_is_not_found_is_an_answer_and_comes_with_near_misses() {
        let (answer, out, notes) = get("services web -n kube-system");
        assert_eq!((answer, out.as_str()), (Answer::No, ""));
        assert_eq!(
            notes,
            "error: `web` not found in namespace kube-system; there is default/web:http\n"
        );
        let (answer, out, notes) = get("services 10.96.0.10:443 db --no-headers");
        assert_eq!(answer, Answer::No);
        assert_eq!(out, "default   db   <none>   10.96.0.9:5432/tcp   1\n", "what there is");
        assert_eq!(
            notes,
            "error: `10.96.0.10:443` not found; there is 10.96.0.10:80/tcp (default/web:http)\n"
        );
        let (_, _, notes) = get("services 10.0.0.9:8080");
        assert!(notes.ends_with("a backend of default/web:http at this address\n"), "{notes}");
    }

    #[test]
    fn a_service_without_backends_is_there() {
        let (answer, out, notes) = get("backends kube-dns");
        assert_eq!((answer, out.as_str()), (Answer::Yes, ""));
        assert_eq!(notes, "No backends found: connections to what was asked for are refused.\n");
    }

    #[test]
    fn nothing_at_all() {
        let empty = Memory::new(1, 1);
        for (words, out) in [("services", ""), ("backends -o wide", ""), ("services -o name", "")] {
            let expected = (Answer::Yes, out.to_owned(), "No services found.\n".to_owned());
            assert_eq!(get_from(&empty, words), expected, "{words}");
        }
        let (_, _, notes) = get("services -n shop");
        assert_eq!(notes, "No services found in namespace shop.\n");
    }

    #[test]
    fn json_is_a_list_also_of_nothing() {
        let (answer, out, _) = get("services shop/web -o json");
        assert_eq!(answer, Answer::No);
        let list: Value = serde_json::from_str(&out).unwrap();
        assert_eq!(list, json!({ "apiVersion": "socklb/v1", "kind": "ServiceList", "items": [] }));
        let (_, out, _) = get("backends web -o json");
        let list: Value = serde_json::from_str(&out).unwrap();
        assert_eq!(list["kind"], "BackendList");
        assert_eq!(list["items"].as_array().unwrap().len(), 3);
    }

    #[test]
    fn a_namespace_said_twice_must_be_the_same() {
        let check = |words: &str| match Cli::parse_from(words.split(' ')).command {
            Command::Get(get) => get.check().map_err(|failure| failure.code()),
            other => panic!("{other:?}"),
        };
        assert_eq!(check("lbctl get svc a/web -n a"), Ok(()));
        assert_eq!(check("lbctl get svc a/web -n b"), Err(2));
        assert_eq!(check("lbctl get affinity web -n a"), Ok(()));
        for words in
            ["addresses -n a", "counters -n a", "counters web", "svc -n A", "svc --namespace="]
        {
            assert_eq!(check(&format!("lbctl get {words}")), Err(2), "{words}");
        }
    }

    #[test]
    fn the_longest_names_stay_aligned() {
        let mut memory = sample::memory();
        let (namespace, name) = ("n".repeat(63), "s".repeat(63));
        let port = (7, namespace.as_str(), name.as_str(), "a-port-name-15b");
        let v6 = "[2001:db8:1111:2222:3333:4444:5555:6666]:65535";
        sample::put(&mut memory, port, &[v6], 20, &[v6]);
        let (_, out, _) = get_from(&memory, "services");
        assert!(out.ends_with(&format!("{v6}/tcp   1\n")), "{out}");
        let starts: BTreeSet<_> = out.lines().map(|line| line.rfind(' ')).collect();
        assert_eq!(starts.len(), 1, "the last column begins at one place:\n{out}");
    }
}
