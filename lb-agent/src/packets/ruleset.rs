//! The table, its sets, chains and rules: the same for every cluster. What differs between clusters is
//! in the elements of the sets, see [`Set`].
//!
//! A packet's frontend is looked up as it stands in the packet, its address, protocol and port, or for a
//! node port the last two of these. `frontends` says from how many slots to draw, a power of two, and
//! `endpoints` has the endpoint in each slot; a slot without one is drawn again. So an endpoint is one
//! element of each of its frontends, and neither chains nor verdicts grow with Services. No key holds
//! what another map said: `nft list ruleset` aborts on such a rule (nftables 1.0.6 to 1.1).
//!
//! Hooks and verdicts are those of kube-proxy's nftables mode.

use super::{
    expression::{Expression, Operator, Register, Verdict},
    nft::{Attributes, Family, Message, Transaction, userdata},
    sets::{Kind, Set},
};

/// The table in each family.
pub(super) const TABLE: &str = "socklb";
/// What the table says of itself: whose it is, and which layout. Another layout is another text.
pub(super) const COMMENT: &str = "made by socklb, layout 2; an agent repairs it";
/// kube-proxy's: packets to be masqueraded carry it from our first hook to our last.
const MARK: u32 = 1 << 14;
/// The most slots that are drawn from: of more endpoints, the first ones are served.
pub(super) const MAX_SLOTS: u32 = 1 << 16;
/// How many times a slot is drawn from all slots. A draw that finds no endpoint is followed by the next;
/// the last draw after these is from the slots that always have one, the first half and one more.
const DRAWS: usize = 6;

/// `slots` of a frontend at which packets are rejected: there are no endpoints anywhere (F1).
pub(super) const REJECT: u32 = 0;
/// `slots` of a frontend at which packets are dropped: there are none here (F2).
pub(super) const DROP: u32 = u32::MAX;

/// `NFT_TABLE_F_OWNER`: nobody else may change the table.
pub(super) const OWNER: u32 = 2;
/// `NFT_TABLE_F_OWNER | NFT_TABLE_F_PERSIST`: and it stays when its owner ends. Linux 6.9.
pub(super) const OWNED: u32 = OWNER | 4;

/// Where a base chain hangs: type, hook, priority.
type Hook = (&'static str, u32, i32);

const PREROUTING: u32 = 0;
const INPUT: u32 = 1;
const FORWARD: u32 = 2;
const OUTPUT: u32 = 3;
const POSTROUTING: u32 = 4;

/// A chain, and its rules in their order.
struct Chain {
    name: String,
    hook: Option<Hook>,
    rules: Vec<Vec<Expression>>,
}

/// Offsets and lengths in an IP header.
struct Header {
    sender: u32,
    receiver: u32,
    len: u32,
    /// How many registers an address takes.
    registers: Register,
}

const fn header(family: Family) -> Header {
    match family {
        Family::Ip => Header { sender: 12, receiver: 16, len: 4, registers: 1 },
        Family::Ip6 => Header { sender: 8, receiver: 24, len: 16, registers: 4 },
    }
}

/// The chains, those that others lead to first.
fn chains(family: Family) -> Vec<Chain> {
    let rules = Rules(header(family));
    let mut all = Vec::new();
    for kind in Kind::ALL {
        let sizes = || (0..=MAX_SLOTS.ilog2()).map(|exponent| 1 << exponent);
        all.extend(sizes().map(|slots| rules.draw(kind, slots)));
        let leads = sizes().map(|slots| rules.lead(kind, slots));
        all.push(Chain { name: kind.chain().to_owned(), hook: None, rules: leads.collect() });
    }
    let hooked = |name: &str, hook: Hook, rules: Vec<Vec<Expression>>| Chain {
        name: name.to_owned(),
        hook: Some(hook),
        rules,
    };
    let (for_all, for_node) = (rules.for_strangers(), rules.for_node());
    let ranges = || vec![rules.outside_of_ranges()];
    all.extend([
        hooked("ranges-prerouting", ("filter", PREROUTING, -110), ranges()),
        hooked("ranges-output", ("filter", OUTPUT, -110), ranges()),
        hooked("none-input", ("filter", INPUT, 0), rules.nobody(&Kind::ALL)),
        hooked("none-forward", ("filter", FORWARD, 0), rules.nobody(&[Kind::Local, Kind::Cluster])),
        // After the ranges: who is outside of them is dropped, not refused (G5).
        hooked(
            "none-output",
            ("filter", OUTPUT, 0),
            rules.nobody(&[Kind::Cluster, Kind::ClusterPort]),
        ),
        hooked("prerouting", ("nat", PREROUTING, -100), for_all),
        hooked("output", ("nat", OUTPUT, -100), for_node),
        hooked("postrouting", ("nat", POSTROUTING, 100), rules.masquerade()),
    ]);
    all
}

/// The rules of a family.
struct Rules(Header);

impl Rules {
    fn receiver(&self, to: Register) -> Expression {
        Expression::Network { to, offset: self.0.receiver, len: self.0.len }
    }

    fn sender(&self, to: Register) -> Expression {
        Expression::Network { to, offset: self.0.sender, len: self.0.len }
    }

    /// What a frontend is found by, and the register after it.
    fn key(&self, kind: Kind) -> (Vec<Expression>, Register) {
        let (mut key, next) = if kind.is_port() {
            (Vec::new(), 0)
        } else {
            (vec![self.receiver(0)], self.0.registers)
        };
        key.push(Expression::L4Protocol { to: next });
        key.push(Expression::DestinationPort { to: next + 1 });
        (key, next + 2)
    }

    /// Goes on if the packet is for a frontend, and the number of its slots compares so.
    fn frontend(&self, kind: Kind, operator: Operator, with: u32) -> Vec<Expression> {
        let mut rule = if kind.is_port() {
            let set = Set::Nodes;
            let lookup = Expression::Lookup { set, key: 0, to: None, inverted: false };
            vec![self.receiver(0), lookup]
        } else {
            Vec::new()
        };
        rule.extend(self.slots(kind, operator, with));
        rule
    }

    fn slots(&self, kind: Kind, operator: Operator, with: u32) -> Vec<Expression> {
        let (mut rule, _) = self.key(kind);
        let set = kind.frontends();
        rule.push(Expression::Lookup { set, key: 0, to: Some(0), inverted: false });
        rule.push(Expression::Compare { on: 0, operator, with });
        rule
    }

    /// Draws one of the slots until there is an endpoint, and sends the packet there.
    fn draw(&self, kind: Kind, slots: u32) -> Chain {
        let half = (slots / 2 + 1).min(slots);
        let draws = [slots].repeat(DRAWS).into_iter().chain([half]);
        let rules = draws.map(|modulus| {
            let (mut rule, index) = self.key(kind);
            let set = kind.endpoints();
            rule.push(Expression::Random { to: index, modulus });
            rule.push(Expression::Lookup { set, key: 0, to: Some(0), inverted: false });
            rule.push(Expression::DestinationNat { address: 0, port: self.0.registers });
            rule
        });
        let rules = if slots <= 2 { rules.take(2).collect() } else { rules.collect() };
        Chain { name: format!("{}-{slots}", kind.chain()), hook: None, rules }
    }

    /// To the chain that draws from so many slots.
    fn lead(&self, kind: Kind, slots: u32) -> Vec<Expression> {
        let mut rule = self.slots(kind, Operator::Equal, slots);
        rule.push(goto(format!("{}-{slots}", kind.chain())));
        rule
    }

    /// What comes to this node.
    fn for_strangers(&self) -> Vec<Vec<Expression>> {
        let [local, local_port] = [Kind::Local, Kind::LocalPort].map(|kind| {
            // Also where there is nobody: the endpoints elsewhere are not for strangers.
            let mut rule = self.frontend(kind, Operator::AtLeast, 0);
            rule.push(goto(kind.chain().to_owned()));
            rule
        });
        let [cluster, cluster_port] = self.to_cluster();
        vec![local, cluster, local_port, cluster_port]
    }

    /// What this node sends itself: as if it had gone to the load balancer and come back (E3).
    fn for_node(&self) -> Vec<Vec<Expression>> {
        self.to_cluster().into()
    }

    fn to_cluster(&self) -> [Vec<Expression>; 2] {
        [Kind::Cluster, Kind::ClusterPort].map(|kind| {
            let mut rule = self.frontend(kind, Operator::NotEqual, REJECT);
            rule.push(Expression::Mark { to: 0 });
            rule.push(Expression::Bits { on: 0, mask: !MARK, xor: MARK });
            rule.push(Expression::SetMark { from: 0 });
            rule.push(goto(kind.chain().to_owned()));
            rule
        })
    }

    /// Where there are ranges, others are dropped, whether or not there are endpoints (G5).
    fn outside_of_ranges(&self) -> Vec<Expression> {
        let mut rule = new_connection();
        let (key, sender) = self.key(Kind::Cluster);
        rule.extend(key.clone());
        rule.push(Expression::Lookup { set: Set::Restricted, key: 0, to: None, inverted: false });
        rule.extend(key);
        rule.push(self.sender(sender));
        rule.push(Expression::Lookup { set: Set::Ranges, key: 0, to: None, inverted: true });
        rule.push(Expression::Verdict(Verdict::Drop));
        rule
    }

    /// Where there are no endpoints.
    fn nobody(&self, kinds: &[Kind]) -> Vec<Vec<Expression>> {
        let rule = |kind, with, end| {
            let mut rule = new_connection();
            // An endpoint of this node may have the number of a node port.
            rule.push(Expression::ConntrackStatus { to: 0 });
            rule.push(Expression::Bits { on: 0, mask: DST_NAT, xor: 0 });
            rule.push(Expression::Compare { on: 0, operator: Operator::Equal, with: 0 });
            rule.extend(self.frontend(kind, Operator::Equal, with));
            rule.push(end);
            rule
        };
        let both = |kind: &Kind| {
            [
                rule(*kind, REJECT, Expression::Reject),
                rule(*kind, DROP, Expression::Verdict(Verdict::Drop)),
            ]
        };
        kinds.iter().flat_map(both).collect()
    }

    fn masquerade(&self) -> Vec<Vec<Expression>> {
        vec![
            vec![
                Expression::Mark { to: 0 },
                Expression::Bits { on: 0, mask: MARK, xor: 0 },
                Expression::Compare { on: 0, operator: Operator::NotEqual, with: 0 },
                Expression::Mark { to: 0 },
                Expression::Bits { on: 0, mask: !MARK, xor: 0 },
                Expression::SetMark { from: 0 },
                Expression::Masquerade,
            ],
            vec![
                Expression::ConntrackStatus { to: 0 },
                Expression::Bits { on: 0, mask: DST_NAT, xor: 0 },
                Expression::Compare { on: 0, operator: Operator::NotEqual, with: 0 },
                self.sender(0),
                self.receiver(self.0.registers),
                Expression::Lookup { set: Set::Hairpin, key: 0, to: None, inverted: false },
                Expression::Masquerade,
            ],
        ]
    }
}

/// `IPS_DST_NAT`.
const DST_NAT: u32 = 1 << 5;
/// `NF_CT_STATE_BIT(IP_CT_NEW)`.
const NEW: u32 = 1 << 3;

/// What is there already is nobody's business: it survives whatever changes for its Service.
fn new_connection() -> Vec<Expression> {
    vec![
        Expression::ConntrackState { to: 0 },
        Expression::Bits { on: 0, mask: NEW, xor: 0 },
        Expression::Compare { on: 0, operator: Operator::NotEqual, with: 0 },
    ]
}

const fn goto(chain: String) -> Expression {
    Expression::Verdict(Verdict::Goto(chain))
}

/// What the rules of a family are to be: the chain of each, and its comment, which is another one for
/// another rule.
pub(super) fn wanted(family: Family) -> Vec<(String, Option<String>)> {
    let all = chains(family).into_iter();
    all.flat_map(|chain| {
        let name = chain.name;
        chain.rules.into_iter().map(move |rule| (name.clone(), Some(fingerprint(&rule, family))))
    })
    .collect()
}

/// FNV-1a.
fn fingerprint(rule: &[Expression], family: Family) -> String {
    let bytes = rule.iter().flat_map(|expression| expression.attributes(family).content().to_vec());
    let hash = bytes
        .fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    format!("{hash:08x}")
}

/// Becomes the owner of a table.
pub(super) fn claim(transaction: &mut Transaction, family: Family) {
    let subject = format!("table {} {TABLE}", family.name());
    let body = Attributes::default().name(1, TABLE).number(2, OWNED);
    transaction.add(Message::NewTable, family, subject, &body);
}

/// Makes the table of a family, or makes an existing one right: its elements stay as they are.
pub(super) fn set_up(transaction: &mut Transaction, family: Family, flags: u32) {
    let subject = |what: &str, name: &str| format!("{what} {} {name}", family.name());
    let named = || Attributes::default().name(1, TABLE);
    let body = named().number(2, flags).bytes(6, &userdata(COMMENT));
    transaction.add(Message::NewTable, family, subject("table", TABLE), &body);
    for (set, id) in Set::ALL.into_iter().zip(1..) {
        let body = set.attributes(TABLE, family, id);
        transaction.add(Message::NewSet, family, subject("set", set.name()), &body);
    }
    let chains = chains(family);
    for chain in &chains {
        let mut body = named().name(3, &chain.name);
        if let Some((kind, hook, priority)) = chain.hook {
            let place = Attributes::default().number(1, hook).bytes(2, &priority.to_be_bytes());
            // The policy is to accept.
            body = body.nest(4, &place).number(5, 1).name(7, kind);
        }
        transaction.add(Message::NewChain, family, subject("chain", &chain.name), &body);
    }
    // All rules of the table.
    transaction.add(Message::DelRule, family, subject("rules of", TABLE), &named());
    for chain in &chains {
        for rule in &chain.rules {
            let all = rule.iter().map(|expression| expression.attributes(family));
            let comment = userdata(&fingerprint(rule, family));
            let body = named().name(2, &chain.name).list(4, all).bytes(7, &comment);
            transaction.add(Message::NewRule, family, subject("rule of", &chain.name), &body);
        }
    }
}

/// Removes the table of a family, with all that is in it.
pub(super) fn remove(transaction: &mut Transaction, family: Family) {
    let body = Attributes::default().name(1, TABLE);
    let subject = format!("table {} {TABLE}", family.name());
    transaction.add(Message::DelTable, family, subject, &body);
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn no_key_holds_what_a_map_said() {
        // Nor does a rule read a register that it has not written.
        for chain in Family::ALL.into_iter().flat_map(chains) {
            for rule in &chain.rules {
                let mut found = None;
                for expression in rule {
                    if let Expression::Lookup { key, to, .. } = expression {
                        assert_ne!(found, Some(*key), "{} {rule:?}", chain.name);
                        found = *to;
                    } else if let Expression::Network { to, .. }
                    | Expression::L4Protocol { to }
                    | Expression::Mark { to } = expression
                        && found == Some(*to)
                    {
                        found = None;
                    }
                }
            }
        }
    }

    #[test]
    fn every_rule_leads_to_a_chain_that_was_made_before() {
        for family in Family::ALL {
            let mut made = BTreeSet::new();
            for chain in chains(family) {
                for expression in chain.rules.iter().flatten() {
                    if let Expression::Verdict(Verdict::Goto(to)) = expression {
                        assert!(made.contains(to), "{} → {to}", chain.name);
                    }
                }
                assert!(made.insert(chain.name));
            }
        }
    }

    #[test]
    fn a_rule_is_known_by_its_comment() {
        let all = wanted(Family::Ip);
        let distinct: BTreeSet<_> = all.iter().map(|(_, comment)| comment).collect();
        // Draws of one chain are the same rule.
        assert!(distinct.len() > 100, "{}", distinct.len());
        assert_ne!(wanted(Family::Ip), wanted(Family::Ip6));
    }
}
