//! What a kube-proxy left goes, and what is others' stays byte for byte (M7).

use std::{
    fs,
    io::Write as _,
    process::{Child, Command, Stdio},
};

use super::{
    agent::{Agent, SIZES, command, output},
    world::{World, soon},
};

const OTHERS: &str = include_str!("kube-proxy/others.rules");
const RULES: &str = include_str!("kube-proxy/iptables.rules");
const OTHERS_TABLES: &str = "table inet kube-proxy-like { chain c { counter drop; }; }
table ip mine { set kube-proxy { type ipv4_addr; elements = { 192.0.2.1 }; }; }
table inet kube-proxy { chain c { ip daddr 192.0.2.1 drop; }; }";
/// In the shape of what kube-proxy makes.
const TABLES: &str = r#"table FAMILY kube-proxy {
    comment "rules for kube-proxy"
    set cluster-ips { type FAMILY_addr; comment "Active ClusterIPs"; }
    map service-ips { type FAMILY_addr . inet_proto . inet_service : verdict; }
    map no-endpoint-services { type FAMILY_addr . inet_proto . inet_service : verdict; }
    chain reject-chain { reject; }
    chain mark-for-masquerade { meta mark set meta mark or 0x4000; }
    chain services { FAMILY daddr . meta l4proto . th dport vmap @service-ips; }
    chain nat-output { type nat hook output priority -100; jump services; }
    chain nat-prerouting { type nat hook prerouting priority dstnat; jump services; }
}"#;

fn tool(program: &str, arguments: &[&str], input: &str) -> String {
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{program} is needed (`cargo xtask setup`): {error}"));
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// All that there is, as the tools print it, without the dates.
fn everything() -> String {
    let mut text = tool("nft", &["list", "ruleset"], "");
    for family in ["iptables", "ip6tables"] {
        for kind in ["nft", "legacy"] {
            text += &tool(&format!("{family}-{kind}-save"), &[], "");
        }
    }
    text += &tool("ipset", &["save"], "");
    let undated = |line: &str| !line.starts_with('#');
    text.split_inclusive('\n').filter(|line| undated(line)).collect()
}

fn restore(kind: &str, rules: &str) {
    tool(&format!("iptables-{kind}-restore"), &["--noflush"], rules);
    // What tells the families apart is in addresses only.
    let v6: String = rules
        .split_inclusive('\n')
        .filter(|line| line.split(' ').all(|word| !word.starts_with(|c: char| c.is_ascii_digit())))
        .collect();
    tool(&format!("ip6tables-{kind}-restore"), &["--noflush"], &v6);
}

fn cleanup(world: &World) -> (bool, String) {
    let (success, text) = output(command(world, &["--cleanup-kube-proxy"]));
    println!("{text}");
    (success, text)
}

/// A process that is called kube-proxy.
fn kube_proxy(world: &World) -> Child {
    let program = world.dir().join("kube-proxy");
    fs::copy("/bin/sleep", &program).unwrap();
    let child = Command::new(program).arg("60").spawn().unwrap();
    let comm = format!("/proc/{}/comm", child.id());
    assert!(soon(|| fs::read_to_string(&comm).unwrap() == "kube-proxy\n"));
    child
}

#[test]
fn of_all_modes_nothing_stays_but_what_is_others() {
    World::run(|world| {
        let (success, text) = cleanup(world);
        assert!(success && text.contains("nothing of kube-proxy to remove"), "{text}");
        let kinds = ["nft", "legacy"];
        for kind in kinds {
            restore(kind, OTHERS);
        }
        tool("nft", &["-f", "-"], OTHERS_TABLES);
        tool("ipset", &["create", "KUBE-MINE", "hash:ip"], "");
        let before = everything();
        assert_eq!(lb_agent::kube_proxy::active(), None);

        for kind in kinds {
            restore(kind, RULES);
        }
        for family in ["ip", "ip6"] {
            let address = if family == "ip" { "ipv4_addr" } else { "ipv6_addr" };
            let tables = TABLES.replace("FAMILY_addr", address).replace("FAMILY", family);
            tool("nft", &["-f", "-"], &tables);
        }
        tool("ipset", &["create", "KUBE-CLUSTER-IP", "hash:ip,port"], "");
        tool("ipset", &["create", "KUBE-6-CLUSTER-IP", "hash:ip,port", "family", "inet6"], "");
        let uses =
            "*nat\n-A KUBE-SERVICES -m set --match-set KUBE-CLUSTER-IP dst,dst -j ACCEPT\nCOMMIT\n";
        tool("iptables-nft-restore", &["--noflush"], uses);
        let link = ["link", "add", "kube-ipvs0", "type", "bridge"];
        tool("ip", &link, "");
        let full = everything();

        let mut child = kube_proxy(world);
        let (success, text) = cleanup(world);
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!success && text.contains("kube-proxy is running"), "{text}");
        assert!(text.contains("delete daemonset kube-proxy"), "{text}");
        assert_eq!(everything(), full, "nothing is touched while it runs");
        assert_eq!(lb_agent::kube_proxy::active().unwrap().to_string().find("kube-proxy"), Some(0));

        let (success, text) = cleanup(world);
        assert!(success, "{text}");
        for what in [
            "the nftables table ip kube-proxy",
            "the nftables table ip6 kube-proxy",
            "21 chains of the table nat (iptables-nft-save)",
            "6 chains of the table filter (ip6tables-legacy-save)",
            "the device kube-ipvs0",
            "the ipset KUBE-CLUSTER-IP",
            "the ipset KUBE-6-CLUSTER-IP",
        ] {
            assert!(text.contains(&format!("removed {what}\n")), "{what}: {text}");
        }
        assert_eq!(everything(), before);
        assert_eq!(lb_agent::kube_proxy::active(), None);
        assert!(cleanup(world).1.contains("nothing of kube-proxy to remove"));
    });
}

#[test]
fn what_is_left_of_each_mode_is_noticed() {
    World::run(|world| {
        let active = || lb_agent::kube_proxy::active().map(|active| active.to_string());
        for (kind, what) in [("nft", "chains in iptables"), ("legacy", "chains in iptables")] {
            tool(&format!("iptables-{kind}-restore"), &["--noflush"], RULES);
            assert!(active().unwrap().ends_with(what));
            assert!(cleanup(world).0);
            assert_eq!(active(), None);
        }
        tool("nft", &["add", "table", "ip6", "kube-proxy"], "");
        assert!(active().unwrap().ends_with("tables in nftables"));
        tool("ip", &["link", "add", "kube-ipvs0", "type", "bridge"], "");
        assert!(active().unwrap().ends_with("IPVS servers"));
        let mut child = kube_proxy(world);
        let wanted = format!("kube-proxy is running (process {})", child.id());
        assert_eq!(active(), Some(wanted));
        child.kill().unwrap();
        child.wait().unwrap();
    });
}

/// Two would translate the same packets.
#[test]
fn packets_from_outside_are_served_unless_they_may_be_another_proxys() {
    World::run(|world| {
        let start = |more: &[&str]| Agent::start_with(world, &[&SIZES[..], more].concat());
        let are_served = || tool("nft", &["list", "tables"], "").contains("table ip6 socklb");
        drop(start(&["--packets=auto"]));
        assert!(are_served());
        drop(start(&["--packets=auto", "--service-proxy-name=mine"]));
        assert!(!are_served(), "what was there is gone");
        tool("nft", &["add", "table", "ip6", "kube-proxy"], "");
        let agent = start(&["--packets=auto"]);
        agent.wait_for("all else by its rules, packets from outside too");
        agent.wait_for("then start this agent again");
        assert!(!are_served());
        drop(agent);
        // Whoever says so.
        let agent = start(&["--packets=external"]);
        agent.wait_for("packets from outside by who sees them first");
        assert!(are_served());
        drop(agent);
        drop(start(&["--packets=off"]));
        assert!(!are_served());
        let more = ["--packets=external", "--service-proxy-name=mine"];
        drop(start(&more));
        assert!(are_served());
    });
}

/// A rule that another table's chain has of ours keeps it; all else goes.
#[test]
fn chains_that_others_use_are_named() {
    World::run(|world| {
        tool("iptables-nft-restore", &["--noflush"], RULES);
        let hostport =
            "*nat\n:CNI-DN-1 - [0:0]\n-A CNI-DN-1 -s 10.1.0.1/32 -j KUBE-MARK-MASQ\nCOMMIT\n";
        tool("iptables-nft-restore", &["--noflush"], hostport);
        let (success, text) = cleanup(world);
        assert!(success, "{text}");
        let kept = "kept the chain KUBE-MARK-MASQ of the table nat: CNI-DN-1 uses it";
        assert_eq!(text.matches(kept).count(), 1, "{text}");
        let saved = tool("iptables-nft-save", &["-t", "nat"], "");
        for line in ["-A KUBE-MARK-MASQ -j MARK", "-A POSTROUTING ", "-A KUBE-POSTROUTING "] {
            assert!(saved.contains(line), "{line}: {saved}");
        }
        assert!(!saved.contains("KUBE-SERVICES") && !saved.contains("KUBE-SVC"), "{saved}");
    });
}
