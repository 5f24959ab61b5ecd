use super::*;

/// The rules that Kubernetes' own test of its cleanup removes, beside those of others, as the kernel
/// has them.
const SAVED: &str = include_str!("iptables.save");

fn table(name: &str, content: &str) -> String {
    format!("*{name}\n:PREROUTING ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n{content}COMMIT\n")
}

#[test]
fn all_of_kube_proxy_and_nothing_else() {
    let found = removal(SAVED);
    assert_eq!(found.script, include_str!("iptables.removal"));
    let counts = [("filter", 6), ("mangle", 1), ("nat", 21)];
    assert_eq!(found.chains, counts.map(|(name, count)| (name.to_owned(), count)).into());
    assert_eq!(found.kept, []);
    for line in found.script.lines().filter(|line| line.starts_with("-D ")) {
        assert!(line.contains("--comment \"kubernetes "), "{line}");
    }
}

#[test]
fn without_a_kube_proxy_there_is_nothing_to_do() {
    let ours = |line: &&str| !words(line).any(|word| is_ours(word.trim_start_matches(':')));
    let others: String = SAVED.lines().filter(ours).flat_map(|line| [line, "\n"]).collect();
    assert!(others.contains("KUBE-FIREWALL") && others.contains("KUBE-SEP-OWN"));
    assert_eq!(removal(&others), Removal::default());
    assert_eq!(removal(""), Removal::default());
}

/// The mode `ipvs`, and older versions.
#[test]
fn chains_of_other_modes() {
    let saved = table(
        "nat",
        ":KUBE-LOAD-BALANCER - [0:0]\n:KUBE-NODE-PORT - [0:0]\n:KUBE-SERVICES - [0:0]\n\
         :KUBE-XLB-4SW47YFZTEDKD3PK - [0:0]\n:KUBE-XLB-4SW47YFZTEDKD3P1 - [0:0]\n\
         -A PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES\n\
         -A KUBE-SERVICES -m set --match-set KUBE-CLUSTER-IP dst,dst -j ACCEPT\n\
         -A KUBE-SERVICES -m addrtype --dst-type LOCAL -g KUBE-NODE-PORT\n",
    );
    let wanted = "*nat\n:KUBE-LOAD-BALANCER - [0:0]\n:KUBE-NODE-PORT - [0:0]\n\
         :KUBE-SERVICES - [0:0]\n:KUBE-XLB-4SW47YFZTEDKD3PK - [0:0]\n\
         -D PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES\n\
         -X KUBE-LOAD-BALANCER\n-X KUBE-NODE-PORT\n-X KUBE-SERVICES\n\
         -X KUBE-XLB-4SW47YFZTEDKD3PK\nCOMMIT\n";
    assert_eq!(removal(&saved).script, wanted);
}

/// A CNI plugin marks by kube-proxy's chain what is to be masqueraded.
#[test]
fn what_others_use_stays_with_what_it_needs() {
    let saved = table(
        "nat",
        ":CNI-HOSTPORT-SETMARK - [0:0]\n:KUBE-MARK-MASQ - [0:0]\n:KUBE-POSTROUTING - [0:0]\n\
         :KUBE-SERVICES - [0:0]\n:POSTROUTING ACCEPT [0:0]\n\
         -A OUTPUT -j KUBE-SERVICES\n\
         -A POSTROUTING -j KUBE-POSTROUTING\n\
         -A CNI-HOSTPORT-SETMARK -j KUBE-MARK-MASQ\n\
         -A KUBE-SERVICES -j KUBE-MARK-MASQ\n",
    );
    let found = removal(&saved);
    assert_eq!(
        found.script,
        "*nat\n:KUBE-SERVICES - [0:0]\n-D OUTPUT -j KUBE-SERVICES\n-X KUBE-SERVICES\nCOMMIT\n"
    );
    let kept = ["nat", "KUBE-MARK-MASQ", "CNI-HOSTPORT-SETMARK"].map(str::to_owned);
    assert_eq!(found.kept, [kept.into()]);
    // Someone's own rule in a built-in chain.
    let saved =
        table("nat", ":KUBE-MARK-MASQ - [0:0]\n-A OUTPUT -d 192.0.2.1/32 -j KUBE-MARK-MASQ\n");
    assert_eq!(removal(&saved).script, "");
    assert_eq!(removal(&saved).kept.len(), 1);
}

#[test]
fn words_in_quotes_are_no_targets() {
    assert_eq!(target("A -m comment --comment \"x -j KUBE-SERVICES\" -j B"), Some("B"));
    assert_eq!(target("A -m comment --comment \"x \\\" -j C\" -g B"), Some("B"));
    assert_eq!(target("A -m comment --comment \"\" -j B"), Some("B"));
    assert_eq!(target("A -m comment --comment -x"), None);
    assert_eq!(target(""), None);
}
