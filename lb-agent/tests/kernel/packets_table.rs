//! The tables of nftables, without an agent: what is written, read, refused, and what others do.

use std::{
    collections::BTreeSet,
    fs,
    net::{IpAddr, SocketAddr},
    num::NonZeroU32,
    path::Path,
    process::Command,
};

use lb_agent::packets::{self, Watch};
use lb_core::{
    model::{Cidr, Families, Frontend, Protocol, Scope},
    packets::{Choice, Edit, Element, Group, Table, TableError},
    policy::TrafficPolicy,
};

use super::world::{World, soon};

const BONDS: u32 = 4;
const BOTH: Families = Families { ipv4: true, ipv6: true };

/// The tables of both families.
struct Both<T>([T; 2]);

fn open() -> Both<impl Table> {
    open_with(BONDS)
}

fn open_with(bonds: u32) -> Both<impl Table> {
    Both([true, false].map(|ipv4| packets::open(ipv4, bonds).unwrap()))
}

impl<T: Table> Table for Both<T> {
    fn write(&mut self, edits: &[Edit]) -> Result<(), TableError> {
        for (table, ipv4) in self.0.iter_mut().zip([true, false]) {
            let edits = edits.iter().filter(|edit| edit.element().is_ipv4() == ipv4);
            let edits: Vec<_> = edits.copied().collect();
            if !edits.is_empty() {
                table.write(&edits)?;
            }
        }
        Ok(())
    }

    fn read(&mut self, take: &mut dyn FnMut(Element)) -> Result<(), TableError> {
        self.0.iter_mut().try_for_each(|table| table.read(take))
    }

    fn settle(&mut self) -> Result<(), TableError> {
        self.0.iter_mut().try_for_each(Table::settle)
    }
}

/// Looks at both.
struct Watches([Watch; 2]);

impl Watches {
    fn open() -> Self {
        Self([true, false].map(|ipv4| Watch::open(ipv4, BONDS).unwrap()))
    }

    fn is_damaged(&mut self) -> bool {
        let [of_ipv4, of_ipv6] = self.0.each_mut().map(Watch::is_damaged);
        of_ipv4 || of_ipv6
    }
}

fn read(table: &mut impl Table) -> BTreeSet<Element> {
    let mut all = BTreeSet::new();
    table.read(&mut |element| assert!(all.insert(element))).unwrap();
    all
}

/// One element of each kind, of each family.
fn samples() -> BTreeSet<Element> {
    let mut all = BTreeSet::new();
    for (vip, pod, range) in [
        ("192.0.2.1:80", "10.0.0.1:8080", "10.0.0.0/8"),
        ("[2001:db8::1]:80", "[fd00::1]:8080", "fd00::/8"),
    ] {
        let (vip, pod): (SocketAddr, SocketAddr) = (vip.parse().unwrap(), pod.parse().unwrap());
        let any: IpAddr = if vip.is_ipv4() { [0; 4].into() } else { [0; 16].into() };
        let web = Frontend::new(vip, Protocol::Tcp);
        // Linux need not have SCTP for that.
        let (addr, protocol, scope) = ((any, 30080).into(), Protocol::Sctp, Scope::OwnNode);
        all.extend([
            Element::Node(vip.ip()),
            Element::Hairpin(pod.ip()),
            Element::Restricted(web),
            Element::Range { frontend: web, range: range.parse().unwrap() },
            Element::Range { frontend: web, range: Cidr::host(vip.ip()) },
        ]);
        for (port, frontend) in (7..).zip([web, Frontend { addr, protocol, scope }]) {
            for policy in [TrafficPolicy::Cluster, TrafficPolicy::Local] {
                let group = Group::of(vip.is_ipv4(), port, policy);
                all.insert(Element::Frontend { policy, frontend, group });
                all.insert(Element::Choice { group, value: Choice::Slots(2) });
                all.extend((0..2).map(|slot| Element::Endpoint { group, slot, addr: pod }));
                let number = 7;
                all.insert(Element::Number { group, slot: 1, number });
                all.insert(Element::Numbered { group, number, addr: pod });
                let seconds = NonZeroU32::new(60 + u32::from(vip.is_ipv4())).unwrap();
                all.insert(Element::Affinity { group, seconds });
            }
        }
    }
    all
}

fn write(table: &mut impl Table, elements: &BTreeSet<Element>) -> Result<(), TableError> {
    table.write(&elements.iter().copied().map(Edit::Add).collect::<Vec<_>>())
}

/// What nft says, whether or not it is content.
pub(crate) fn nft(words: &str) -> (bool, String) {
    let output = Command::new("nft").args(words.split_whitespace()).output().expect("nft");
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8(text).unwrap())
}

#[test]
fn what_is_written_is_read_and_other_tools_can_read_it() {
    World::run(|_| {
        let mut table = open();
        assert_eq!(read(&mut table), [].into());
        let all = samples();
        write(&mut table, &all).unwrap();
        assert_eq!(read(&mut table), all);
        // nft aborts on rules that it cannot make sense of.
        let (fine, text) = nft("list ruleset");
        assert!(fine && !text.contains("Error"), "{text}");
        for words in [
            "table ip6 socklb",
            "comment \"made by socklb",
            "192.0.2.1 . tcp . 80 . 10.0.0.0/8",
            "sctp . 30080 : 0x00000010",
            "0x00000010 : 0x00010102",
            "0x00000010 . 0x00000001 . 0x00000000 . 0x00000000 : 10.0.0.1 . 8080",
            "0x00000010 . 0x00000001 . 0x00000000 . 0x00000000 : 0x00000007",
            "map @endpoints",
            "masquerade fully-random",
        ] {
            assert!(text.contains(words), "no {words:?} in\n{text}");
        }
        assert!(nft("-j list ruleset").0);
        // The next agent finds it as it is.
        drop(table);
        assert_eq!(read(&mut open()), all);
        let edits: Vec<_> = all.iter().copied().map(Edit::Delete).collect();
        let mut table = open();
        read(&mut table);
        table.write(&edits).unwrap();
        assert_eq!(read(&mut table), [].into());
    });
}

#[test]
fn a_refused_transaction_changes_nothing_and_names_the_set() {
    World::run(|_| {
        let mut table = open();
        read(&mut table);
        let all = samples();
        write(&mut table, &all).unwrap();
        let fresh = Element::Node([192, 0, 2, 99].into());
        let gone = Element::Hairpin([192, 0, 2, 99].into());
        let refused = table.write(&[Edit::Add(fresh), Edit::Delete(gone)]).unwrap_err();
        assert!(
            matches!(&refused, TableError::Refused(text) if text.contains("ip hairpin")),
            "{refused}"
        );
        assert_eq!(read(&mut table), all);
        // More than the buffer of a socket usually holds.
        let many = (0..=u16::MAX)
            .map(|n| Element::Node([10, 1, n.to_be_bytes()[0], n.to_be_bytes()[1]].into()));
        write(&mut table, &many.collect()).unwrap();
        // As long as the kernel gives a set that has grown more room, a dump may tell an element twice,
        // or not at all.
        assert!(soon(|| {
            let mut count = 0;
            table.read(&mut |_| count += 1).unwrap();
            count == all.len() + 65_536
        }));
    });
}

/// All of its tables, chains and rules are refused: more than there is room for in the socket.
#[test]
fn of_very_many_refusals_the_first_is_told() {
    World::run(|_| {
        let mut owner = open();
        read(&mut owner);
        write(&mut owner, &samples()).unwrap();
        if !is_owned() {
            return;
        }
        let mut other = open_with(2 * BONDS);
        read(&mut other);
        // What was said of the one before is not taken for an answer to the next.
        for _ in 0..2 {
            let refused = write(&mut other, &samples()).unwrap_err().to_string();
            assert!(refused.contains("Operation not permitted"), "{refused}");
        }
        assert_eq!(read(&mut owner), samples());
    });
}

#[test]
fn a_table_of_somebody_elses_stays_and_is_named() {
    World::run(|_| {
        assert!(nft("add table ip6 socklb").0);
        let unusable = open().read(&mut |_| ()).unwrap_err();
        let text = "nft delete table ip6 socklb";
        assert!(matches!(&unusable, TableError::Unusable(why) if why.contains(text)), "{unusable}");
        packets::cleanup().unwrap();
        assert!(nft("list tables").1.contains("table ip6 socklb"));
        assert!(nft("delete table ip6 socklb").0);
        assert_eq!(read(&mut open()), [].into());
    });
}

#[test]
fn an_outdated_table_serves_until_something_is_written() {
    World::run(|_| {
        let mut table = open();
        read(&mut table);
        write(&mut table, &samples()).unwrap();
        drop(table);
        let told = |words| nft("list table ip6 socklb").1.contains(words);
        let mut table = open_with(BONDS + 1);
        for _ in 0..2 {
            assert_eq!(read(&mut table), [].into());
            assert!(told("4 bonds") && told("2001:db8::1"));
        }
        let node = [Element::Node("2001:db8::9".parse().unwrap())].into();
        write(&mut table, &node).unwrap();
        assert!(told("5 bonds") && !told("2001:db8::1"));
        assert!(nft("list table ip socklb").1.contains("4 bonds"), "the other family waits");
        assert_eq!(read(&mut table), node);
        drop(table);
        // Nothing is wanted.
        let mut table = open();
        assert!(read(&mut table).iter().all(Element::is_ipv4));
        assert!(told("5 bonds"));
        table.settle().unwrap();
        assert!(told("4 bonds") && !told("2001:db8::9"));
    });
}

#[test]
fn timeouts_that_nobody_has_lose_their_rules() {
    World::run(|_| {
        let mut watch = Watches::open();
        let mut table = open();
        read(&mut table);
        let group = Group::of(false, 1, TrafficPolicy::Cluster);
        let seconds = |seconds| NonZeroU32::new(seconds).unwrap();
        let of = |timeout| Element::Affinity { group, seconds: seconds(timeout) };
        table.write(&[Edit::Add(of(1))]).unwrap();
        let rules = |chain: &str| nft(&format!("list chain {chain}")).1.matches("update").count();
        let mut most = 0;
        for seconds in 2..60 {
            table.write(&[Edit::Delete(of(seconds - 1)), Edit::Add(of(seconds))]).unwrap();
            most = most.max(rules("ip6 socklb cluster-bonds"));
            assert!(!watch.is_damaged());
        }
        assert!((2..20).contains(&most), "{most}");
        read(&mut table);
        assert_eq!(rules("ip6 socklb local-port-bonds"), 1);
        assert_eq!(rules("ip socklb local-port-bonds"), 0);
        // Another agent finds them as they are.
        drop(table);
        assert_eq!(read(&mut open()), [of(59)].into());
        assert!(!watch.is_damaged());
        assert!(nft("flush chain ip6 socklb local-port-bonds").0);
        assert!(watch.is_damaged());
    });
}

#[test]
fn what_others_remove_is_noticed_and_made_whole() {
    World::run(|_| {
        let mut watch = Watches::open();
        assert!(!watch.is_damaged(), "there was nothing");
        let mut table = open();
        read(&mut table);
        let all = samples();
        write(&mut table, &all).unwrap();
        assert!(!watch.is_damaged());
        // A neighbour's business.
        assert!(nft("add table ip other").0);
        assert!(!watch.is_damaged());
        // Without an owner, or before Linux 6.9.
        drop(table);
        for damage in ["flush chain ip socklb output", "insert rule ip6 socklb cluster accept"] {
            assert!(nft(damage).0, "{damage}");
            assert!(watch.is_damaged(), "{damage}");
            assert!(!watch.is_damaged(), "said once");
            assert_eq!(read(&mut open()), all, "{damage}");
            assert!(!watch.is_damaged(), "{damage}");
        }
        assert!(nft("flush ruleset").0);
        assert!(watch.is_damaged());
        let mut table = open();
        assert_eq!(read(&mut table), [].into());
        write(&mut table, &all).unwrap();
        assert_eq!(
            packets::cleanup().unwrap_err().to_string().contains("owns the table"),
            is_owned()
        );
    });
}

#[test]
fn what_is_in_the_way_is_named() {
    World::run(|_| {
        let set = |value: &str| {
            for name in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
                fs::write(format!("/proc/sys/net/{name}"), value).unwrap();
            }
        };
        let found = || packets::obstacles(Path::new("/proc"), BOTH);
        set("1");
        assert!(nft("add table ip6 filter").0);
        assert!(nft("add chain ip6 filter FORWARD {type filter hook forward priority 0;}").0);
        assert!(
            nft("add chain ip6 filter INPUT {type filter hook input priority 0; policy drop;}").0
        );
        assert_eq!(found(), []);
        set("0");
        let sysctls: Vec<_> = found().into_iter().map(|found| found.remedy).collect();
        assert!(sysctls[0].contains("net.ipv4.ip_forward=1"), "{sysctls:?}");
        assert!(sysctls[1].contains("net.ipv6.conf.all.forwarding=1"), "{sysctls:?}");
        set("1");
        assert!(nft("add chain ip6 filter FORWARD {policy drop;}").0);
        let [found] = &found()[..] else { panic!() };
        assert!(found.what.contains("`ip6 filter FORWARD`"), "{found:?}");
        // The remedy is one.
        let command = found.remedy.split('`').nth(1).unwrap().strip_prefix("nft ").unwrap();
        assert!(nft(command).0, "{command}");
        // One chain for both.
        assert!(nft("delete table ip6 filter").0);
        assert!(nft("add table inet filter").0);
        let hook = "{type filter hook forward priority 0; policy drop;}";
        assert!(nft(&format!("add chain inet filter forward {hook}")).0);
        let found = packets::obstacles(Path::new("/proc"), BOTH);
        let [found] = &found[..] else { panic!("{found:?}") };
        assert!(found.what.contains("`inet filter forward`"), "{found:?}");
        let command = found.remedy.split('`').nth(1).unwrap().strip_prefix("nft ").unwrap();
        assert!(nft(command).0, "{command}");
    });
}

#[test]
fn what_is_in_the_way_of_interfaces_is_named() {
    World::run(|_| {
        let set = |name: &str, value: &str| {
            let path = Path::new("/proc/sys/net").join(name);
            // A kernel without br_netfilter has no such settings, which are as 0.
            assert!(fs::write(&path, value).is_ok() || value == "0", "{name}");
        };
        let what = || {
            let found = packets::obstacles(Path::new("/proc"), BOTH);
            found
                .into_iter()
                .map(|found| (found.what, found.remedy))
                .unzip::<_, _, Vec<_>, Vec<_>>()
        };
        set("ipv4/ip_forward", "1");
        set("ipv6/conf/all/forwarding", "1");
        set("ipv4/conf/all/rp_filter", "0");
        let ip = |words: &str| {
            let status = Command::new("ip").args(words.split(' ')).status().unwrap();
            assert!(status.success(), "ip {words}");
        };
        ip("link add inner type bridge");
        ip("link add one type veth peer name two");
        ip("link set one master inner");
        set("bridge/bridge-nf-call-iptables", "0");
        set("bridge/bridge-nf-call-ip6tables", "0");
        assert_eq!(what().0, <Vec<String>>::new(), "a bridge with a single port");
        ip("link set two master inner");
        let (found, remedies) = what();
        let [v4, v6] = &found[..] else { panic!("{found:?}") };
        assert!(v4.contains("bridge-nf-call-iptables is 0") && v4.contains("bridge inner"), "{v4}");
        assert!(v6.contains("bridge-nf-call-ip6tables is 0"), "{v6}");
        assert!(remedies[0].contains("sysctl -w net.bridge.bridge-nf-call-iptables=1"));
        ip("link set inner type bridge nf_call_iptables 1 nf_call_ip6tables 1");
        assert_eq!(what().0, <Vec<String>>::new(), "this bridge alone");
        ip("link del one");

        for (name, address) in [("east", "192.0.2.1/24"), ("west", "198.51.100.1/24")] {
            ip(&format!("link add {name} type veth peer name {name}-end"));
            set(&format!("ipv4/conf/{name}/rp_filter"), "0");
            ip(&format!("addr add {address} dev {name}"));
        }
        assert_eq!(what().0, <Vec<String>>::new());
        set("ipv4/conf/west/rp_filter", "1");
        let (found, remedies) = what();
        let [strict] = &found[..] else { panic!("{found:?}") };
        assert!(strict.contains("net.ipv4.conf.west.rp_filter is 1"), "{strict}");
        assert!(remedies[0].contains("sysctl -w net.ipv4.conf.west.rp_filter=2"));
        set("ipv4/conf/all/rp_filter", "2");
        assert_eq!(what().0, <Vec<String>>::new(), "the greater one counts");
        set("ipv4/conf/all/rp_filter", "0");
        ip("link del east");
        assert_eq!(what().0, <Vec<String>>::new(), "there is but one way");
    });
}

/// Whether this kernel knows tables that outlive their owner.
pub(crate) fn is_owned() -> bool {
    nft("list table ip socklb").1.contains("flags owner")
}
