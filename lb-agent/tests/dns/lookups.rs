//! Every way to ask, and who answers.

use std::{collections::BTreeSet, process::Command, time::Duration};

use super::{
    agent::Agent,
    cluster::{self, CoreDns, DNS, DNS_V6, MANY, State, TOO, WHO, resolv_conf},
    resolvers::{Libc, Lookup},
    world::World,
};

/// As a resolver is told: it asks once, and is patient. A question or an answer that is lost makes the
/// lookup fail, and that late; a busy machine does not.
const ONCE: &str = "options timeout:30 attempts:1\n";
/// Less than the patience of any resolver.
const AT_ONCE: Duration = Duration::from_secs(20);

/// Two CoreDNS, and the agent in sync.
fn at_work(world: &World) -> (Agent, [CoreDns; 2]) {
    cluster::put(world, &[(1, State::Ready), (2, State::Ready)]);
    let instances = [1, 2].map(|n| CoreDns::start(world, n));
    (Agent::start(world), instances)
}

#[test]
fn c_libraries_whatever_resolv_conf_says() {
    World::run(|world| {
        let _at_work = at_work(world);
        let search = "search default.svc.cluster.test svc.cluster.test cluster.test";
        let plain = format!("nameserver {DNS}\n");
        // musl opens an IPv6 socket for both families if one name server has an IPv6 address, and
        // asks the others by ::ffff: addresses.
        let mixed = format!("nameserver {DNS}\nnameserver {DNS_V6}\nnameserver {TOO}\n");
        let servers = [
            plain.clone(),
            format!("nameserver {DNS_V6}\n"),
            format!("{plain}options single-request\n"),
            format!("{plain}options single-request-reopen\n"),
            format!("{plain}options use-vc\n"),
            format!("{plain}options edns0 trust-ad\n"),
            format!("nameserver {DNS}\nnameserver {TOO}\n"),
            format!("nameserver {DNS}\nnameserver {TOO}\noptions rotate\n"),
            mixed.clone(),
        ];
        let names = servers.iter().map(|text| (text.clone(), WHO)).chain([
            // In clusters, nearly every name is tried with each suffix first.
            (format!("{plain}{search}\noptions ndots:5\n"), "who"),
            (format!("{plain}{search}\noptions ndots:5\n"), "who.default"),
            (format!("{plain}{search}\noptions ndots:5\n"), "who.default.svc"),
            (format!("{plain}{search}\noptions ndots:5\n"), "who.default.svc.cluster.test"),
            (format!("{mixed}{search}\noptions ndots:5 single-request\n"), "who.default"),
        ]);
        for (text, name) in names {
            resolv_conf(world, &format!("{text}{ONCE}"));
            for libc in Libc::ALL {
                let lookups = libc.start(world, name, 12, Duration::ZERO).finish();
                let slowest = lookups.iter().map(|lookup| lookup.took).max().unwrap();
                println!("{libc:?} {name} {text:?}: {slowest:?}");
                assert!(slowest < AT_ONCE, "{libc:?}, {name}, {text}: {lookups:?}");
                let who: BTreeSet<_> = lookups.iter().flat_map(Lookup::who).collect();
                assert!(who.is_subset(&[1, 2].into()), "{libc:?}, {name}, {text}: {lookups:?}");
            }
        }
        resolv_conf(world, &format!("{plain}{ONCE}"));
        for libc in Libc::ALL {
            let lookups = libc.start(world, WHO, 60, Duration::ZERO).finish();
            let who: BTreeSet<_> = lookups.iter().flat_map(Lookup::who).collect();
            assert_eq!(who, [1, 2].into(), "{libc:?} asks only one of them");
            // Both questions of a lookup are one flow.
            let split = lookups.iter().filter(|lookup| lookup.who()[0] != lookup.who()[1]).count();
            assert_eq!(split, 0, "{libc:?}: {lookups:?}");
            let nobody = libc.look_up(world, "nobody.default.svc.cluster.test");
            assert!(nobody.outcome.is_err() && nobody.took < AT_ONCE, "{nobody:?}");
        }
    });
}

#[test]
fn a_long_answer_comes_by_tcp() {
    World::run(|world| {
        let _at_work = at_work(world);
        resolv_conf(world, &format!("nameserver {DNS}\n{ONCE}"));
        let found = Libc::Glibc.look_up(world, MANY.0).outcome.unwrap();
        assert_eq!(found.len(), MANY.1, "{found:?}");
        // musl before 1.2.4 is content with what fits into the datagram.
        let found = Libc::Musl.look_up(world, MANY.0);
        assert!(found.outcome.as_ref().is_ok_and(|found| found.len() > 20), "{found:?}");
        assert!(found.took < AT_ONCE, "{found:?}");
        let (answer, _) = dig(&["+ignore", "+noedns", MANY.0]);
        assert!(answer.len() < MANY.1, "it was not long: {answer:?}");
        let (answer, text) = dig(&["+noedns", MANY.0]);
        assert_eq!(answer.len(), MANY.1, "{text}");
        assert!(text.contains("(TCP)"), "{text}");
    });
}

#[test]
fn dig_by_udp_and_tcp() {
    World::run(|world| {
        let _at_work = at_work(world);
        resolv_conf(world, &format!("nameserver {DNS}\n"));
        let mut who = BTreeSet::new();
        for transport in ["+notcp", "+tcp"] {
            for server in [DNS, DNS_V6, TOO] {
                // Of 42 choices one falls on the other instance, but for 1 in 10^12.
                for _ in 0..7 {
                    let (answer, text) = dig(&[transport, &format!("@{server}"), WHO]);
                    let [answer] = &answer[..] else { panic!("{text}") };
                    who.insert(answer.clone());
                    let named = format!("SERVER: {server}#53({server})");
                    assert!(text.contains(&named), "{text}");
                    let by = if transport == "+tcp" { "(TCP)" } else { "(UDP)" };
                    assert!(text.contains(by), "{text}");
                }
            }
        }
        assert_eq!(who, ["192.0.2.1".to_owned(), "192.0.2.2".to_owned()].into());
        // A port that kube-dns does not have. dig connects its UDP socket, which is left alone then, and
        // there is no way from here to a cluster IP.
        for (transport, said) in [("+tcp", "connection refused"), ("+notcp", "network unreachable")]
        {
            let mut dig = Command::new("dig");
            dig.args(["+tries=1", "-p54", transport, &format!("@{DNS}"), WHO]);
            let text = String::from_utf8_lossy(&dig.output().unwrap().stdout).into_owned();
            assert!(text.contains(said), "{text}");
        }
    });
}

/// Asks once; the addresses, and all that dig says.
fn dig(arguments: &[&str]) -> (Vec<String>, String) {
    let mut dig = Command::new("dig");
    let output = dig.args(["+tries=1", "+timeout=30"]).args(arguments).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}");
    assert!(!text.contains("unexpected source"), "{text}");
    let answers = text.lines().skip_while(|line| !line.starts_with(";; ANSWER SECTION"));
    let answers = answers.skip(1).take_while(|line| !line.is_empty());
    let answers = answers.filter_map(|line| line.split_whitespace().nth(4).map(str::to_owned));
    (answers.collect(), text)
}
