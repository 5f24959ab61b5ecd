//! kube-proxy's chains in what `iptables-save` prints, and the input of `iptables-restore --noflush`
//! that removes them and nothing else.

use std::collections::{BTreeMap, BTreeSet};

/// The chains with a name of their own that kube-proxy has made in whatever mode and version. What
/// the kubelet makes is not among them: `KUBE-FIREWALL`, `KUBE-MARK-DROP`, `KUBE-KUBELET-CANARY`,
/// `KUBE-IPTABLES-HINT`; nor what dockershim made for host ports, `KUBE-HOSTPORTS` and `KUBE-HP-`.
const CHAINS: [&str; 13] = [
    "KUBE-EXTERNAL-SERVICES",
    "KUBE-FORWARD",
    "KUBE-IPVS-FILTER",
    "KUBE-IPVS-OUT-FILTER",
    "KUBE-LOAD-BALANCER",
    MARK_MASQ,
    "KUBE-NODE-PORT",
    "KUBE-NODEPORTS",
    POSTROUTING,
    "KUBE-PROXY-CANARY",
    "KUBE-PROXY-FIREWALL",
    "KUBE-SERVICES",
    "KUBE-SOURCE-RANGES-FIREWALL",
];
const MARK_MASQ: &str = "KUBE-MARK-MASQ";
const POSTROUTING: &str = "KUBE-POSTROUTING";
/// Those that built-in chains jump to by kube-proxy's hand.
const ENTRIES: [&str; 9] = [
    "KUBE-EXTERNAL-SERVICES",
    "KUBE-FORWARD",
    "KUBE-IPVS-FILTER",
    "KUBE-IPVS-OUT-FILTER",
    "KUBE-NODE-PORT",
    "KUBE-NODEPORTS",
    POSTROUTING,
    "KUBE-PROXY-FIREWALL",
    "KUBE-SERVICES",
];
/// Of the chains of a Service or an endpoint. What follows is a hash.
const PREFIXES: [&str; 6] =
    ["KUBE-SVC-", "KUBE-SVL-", "KUBE-SEP-", "KUBE-FW-", "KUBE-EXT-", "KUBE-XLB-"];
/// Characters of the hash, in base 32.
const HASH: usize = 16;

/// What is to be done to a set of tables.
#[derive(Debug, Default, Eq, PartialEq)]
pub(super) struct Removal {
    /// For `iptables-restore --noflush`; empty if there is nothing to remove.
    pub(super) script: String,
    /// How many chains of each table go.
    pub(super) chains: BTreeMap<String, usize>,
    /// Chains of kube-proxy's that others use: the table, the chain, who uses it.
    pub(super) kept: Vec<(String, String, String)>,
}

/// What removes kube-proxy's chains from these tables.
pub(super) fn removal(saved: &str) -> Removal {
    let mut removal = Removal::default();
    let mut table = Table::default();
    for line in saved.lines() {
        if let Some(name) = line.strip_prefix('*') {
            table = Table { name, ..Table::default() };
        } else if let Some(chain) = line.strip_prefix(':') {
            let mut words = chain.split_ascii_whitespace();
            if let (Some(name), Some(policy)) = (words.next(), words.next()) {
                table.chains.insert(name, policy != "-");
            }
        } else if let Some(rule) = line.strip_prefix("-A ") {
            let chain = rule.split_ascii_whitespace().next().unwrap_or_default();
            table.rules.push(Rule { chain, target: target(rule), text: rule });
        } else if line == "COMMIT" {
            table.remove(&mut removal);
            table = Table::default();
        }
    }
    removal
}

fn is_ours(chain: &str) -> bool {
    let is_hash = |rest: &str| {
        rest.len() == HASH
            && rest.bytes().all(|c| c.is_ascii_uppercase() || matches!(c, b'2'..=b'7'))
    };
    CHAINS.contains(&chain)
        || PREFIXES.iter().any(|prefix| chain.strip_prefix(prefix).is_some_and(is_hash))
}

/// Where a rule jumps to.
fn target(rule: &str) -> Option<&str> {
    let mut words = words(rule);
    words.find(|word| matches!(*word, "-j" | "-g" | "--jump" | "--goto"))?;
    words.next()
}

/// The words of a rule. A comment in quotes is one word.
fn words(rule: &str) -> impl Iterator<Item = &str> {
    let mut rest = rule;
    std::iter::from_fn(move || {
        rest = rest.trim_ascii_start();
        let (mut quoted, mut escaped) = (false, false);
        let end = rest.find(|c: char| {
            let ends = c == ' ' && !quoted;
            quoted ^= c == '"' && !escaped;
            escaped = c == '\\' && !escaped;
            ends
        });
        let (word, after) = rest.split_at(end.unwrap_or(rest.len()));
        rest = after;
        (!word.is_empty()).then_some(word)
    })
}

#[derive(Default)]
struct Table<'a> {
    name: &'a str,
    /// Whether each is built in.
    chains: BTreeMap<&'a str, bool>,
    rules: Vec<Rule<'a>>,
}

struct Rule<'a> {
    chain: &'a str,
    target: Option<&'a str>,
    text: &'a str,
}

impl<'a> Table<'a> {
    fn remove(&self, removal: &mut Removal) {
        let used = self.used_by_others();
        let kept = self.kept(&used);
        let goes = |chain: &str| is_ours(chain) && !kept.contains(chain);
        let chains: Vec<&str> = self.chains.keys().copied().filter(|chain| goes(chain)).collect();
        let jumps: Vec<&str> = self
            .rules
            .iter()
            .filter(|rule| self.is_entry(rule) && rule.target.is_some_and(goes))
            .map(|rule| rule.text)
            .collect();
        removal.kept.extend(
            used.into_iter()
                .map(|(chain, user)| (self.name.to_owned(), chain.to_owned(), user.to_owned())),
        );
        if chains.is_empty() {
            return;
        }
        let script = &mut removal.script;
        let mut add = |parts: &[&str]| {
            script.extend(parts.iter().copied());
            script.push('\n');
        };
        add(&["*", self.name]);
        // Naming a chain empties it.
        for chain in &chains {
            add(&[":", chain, " - [0:0]"]);
        }
        for rule in jumps {
            add(&["-D ", rule]);
        }
        for chain in &chains {
            add(&["-X ", chain]);
        }
        add(&["COMMIT"]);
        *removal.chains.entry(self.name.to_owned()).or_default() += chains.len();
    }

    /// Whether it is the way from a built-in chain to kube-proxy's.
    fn is_entry(&self, rule: &Rule<'_>) -> bool {
        self.chains.get(rule.chain) == Some(&true)
            && rule.target.is_some_and(|target| ENTRIES.contains(&target))
    }

    /// The chains that rules of others jump to, and one who does: host ports of a CNI plugin are
    /// marked by `KUBE-MARK-MASQ`. They could not be removed with that rule in place.
    fn used_by_others(&self) -> BTreeMap<&'a str, &'a str> {
        let foreign = |rule: &&Rule<'_>| !is_ours(rule.chain) && !self.is_entry(rule);
        let used = self.rules.iter().filter(foreign);
        used.filter_map(|rule| Some((rule.target.filter(|target| is_ours(target))?, rule.chain)))
            .collect()
    }

    /// These, and what they need.
    fn kept(&self, used: &BTreeMap<&'a str, &'a str>) -> BTreeSet<&'a str> {
        let mut kept = BTreeSet::new();
        let mut next: Vec<&str> = used.keys().copied().collect();
        while let Some(chain) = next.pop() {
            if !kept.insert(chain) {
                continue;
            }
            if chain == MARK_MASQ {
                // There the mark is acted on.
                next.extend(self.chains.get_key_value(POSTROUTING).map(|(name, _)| *name));
            }
            let of_chain = self.rules.iter().filter(|rule| rule.chain == chain);
            next.extend(of_chain.filter_map(|rule| rule.target.filter(|target| is_ours(target))));
        }
        kept
    }
}

#[cfg(test)]
mod tests;
