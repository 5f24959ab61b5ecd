//! The table, its sets, chains and rules: the same for every cluster, but for a rule for each timeout of
//! session affinity. What else differs between clusters is in the elements of the sets, see [`Set`].
//!
//! A packet's frontend is looked up as it stands in the packet, its address, protocol and port, or for a
//! node port the last two of these. `frontends` leads to a group, which all frontends of a port of a
//! Service share: `choices` says from how many slots to draw, a power of two, and `endpoints` has the
//! endpoint in each slot; a slot without one is drawn again. So an endpoint is one element, and neither
//! chains nor verdicts grow with Services.
//!
//! Few rules look up `endpoints`, whatever the number of slots: the kernel checks an element that is
//! added against each of them. No step divides by a number that comes from a map. So a slot is drawn
//! digit by digit, in base [`BASE`]: `choices` has the modulus of each digit, a power of two in a byte of
//! its own, and `remainders`, which is always the same, has a digit for each modulus and number below the
//! base. Of more endpoints than there are slots with so many digits, the first ones are served.
//!
//! Where senders stay with their endpoint (H), a bond leads from a port of a Service and a sender to a
//! number, and `numbered` from there to the endpoint: a number without one is a bond to an endpoint that
//! left, and is removed by the sender's next packet. The number of the slot that was drawn is in
//! `numbers`. How long a bond lasts is written in a rule, so each timeout that is in use has one.
//!
//! No key holds what another map said: `nft list ruleset` aborts on such a rule (nftables 1.0.6 to 1.1).
//! What a map has said becomes a key by way of the packet's mark, within one rule: nft can list that.
//!
//! Hooks and verdicts are those of kube-proxy's nftables mode.

use std::collections::BTreeSet;

use super::{
    element::remainder,
    expression::{Expression, Operator, Recording, Register, Verdict},
    nft::{Attributes, Family, Message, Raw, Transaction, userdata},
    sets::{BASE, BYTES, DROP, Kind, REJECT, Set},
};

/// The table in each family.
pub(super) const TABLE: &str = "socklb";
/// What every table of ours begins to say of itself.
pub(super) const OURS: &str = "made by socklb";
/// kube-proxy's: packets to be masqueraded carry it from our first hook to our last.
const MARK: u32 = 1 << 14;
/// How many times a slot is drawn from all slots. At least half of them have an endpoint; a draw that
/// finds none is followed by the next. The last draw after these is from slots that all have one, the
/// first half or fewer.
const DRAWS: usize = 8;
/// With this bit a modulus stands for half of it, but at least for 1.
const HALF: u32 = 1 << 31;
/// For how many seconds a bond is recorded, before it is followed the first time.
const FIRST: u32 = 60;
/// The registers that no key reaches: what a map has said, a value to be recorded, and what the packet's
/// mark was.
const FOUND: Register = 13;
const VALUE: Register = 14;
const MARKED: Register = 15;
/// The group of the packet's frontend, and what is behind it in a key: a number, or the digits of a slot.
const GROUP: Register = 0;
const SECOND: Register = 1;
/// A modulus, and a number behind it: the key of a digit.
const MODULUS: Register = 4;
/// The port of the packet's frontend, and the sender behind it: the key of a bond.
const PORT: Register = 4;
const SENDER: Register = 5;
/// The bit in which the groups of a port differ.
const POLICY: u32 = 1;

/// `NFT_TABLE_F_OWNER`: nobody else may change the table.
pub(super) const OWNER: u32 = 2;
/// `NFT_TABLE_F_OWNER | NFT_TABLE_F_PERSIST`: and it stays when its owner ends. Linux 6.9.
pub(super) const OWNED: u32 = OWNER | 4;

/// What the table says of itself: whose it is, which layout, and how many bonds it holds.
/// Another layout or number is another text, and another table.
pub(super) fn comment(bonds: u32) -> String {
    format!("{OURS}, layout 6, {bonds} bonds; an agent repairs it")
}

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

/// The chain that follows the bonds of a kind: it has a rule for each timeout that is in use.
pub(super) fn bonds(kind: Kind) -> String {
    format!("{}-bonds", kind.chain())
}

/// The chains, those that others lead to first. `timeouts`: of session affinity, in seconds.
fn chains(family: Family, timeouts: &BTreeSet<u32>) -> Vec<Chain> {
    let rules = Rules(header(family));
    let mut all = Vec::new();
    for kind in Kind::ALL {
        let timeouts = timeouts.iter().map(|seconds| rules.follow(kind, *seconds));
        all.push(Chain { name: bonds(kind), hook: None, rules: timeouts.collect() });
        all.extend([rules.forget(kind), rules.record(kind), rules.stay(kind), rules.serve(kind)]);
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
        hooked("none-input", ("filter", INPUT, 0), rules.stray_or_nobody(&Kind::ALL)),
        hooked(
            "none-forward",
            ("filter", FORWARD, 0),
            rules.stray_or_nobody(&[Kind::Local, Kind::Cluster]),
        ),
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

    /// Goes on if the packet is for a frontend, and what stands in the place of its moduli compares so.
    fn frontend(&self, kind: Kind, operator: Operator, with: u32) -> Vec<Expression> {
        let mut rule = if kind.is_port() {
            let set = Set::Nodes;
            let lookup = Expression::Lookup { set, key: 0, to: None, inverted: false };
            vec![self.receiver(0), lookup]
        } else {
            Vec::new()
        };
        rule.extend(self.group(kind));
        rule.push(find(Set::Choices, GROUP, FOUND));
        rule.push(Expression::Compare { on: FOUND, operator, with });
        rule
    }

    /// Goes on if the packet is for a frontend, whose group is then where keys begin.
    fn group(&self, kind: Kind) -> Vec<Expression> {
        let (mut rule, _) = self.key(kind);
        rule.push(find(Set::Frontends(kind), GROUP, FOUND));
        rule.extend(through_mark(FOUND, GROUP));
        rule
    }

    /// Goes on if the packet is for a frontend with endpoints, whose group is then where keys begin, and
    /// behind it the digits of a slot. `half`: of a slot that has an endpoint.
    fn slot(&self, kind: Kind, half: bool) -> Vec<Expression> {
        let mut rule = self.group(kind);
        rule.push(find(Set::Choices, GROUP, VALUE));
        for (digit, by) in (SECOND..).zip(BYTES) {
            rule.extend(through_mark(VALUE, MODULUS));
            let xor = if half { HALF } else { 0 };
            // The kernel refuses to shift by nothing.
            if by > 0 {
                rule.push(Expression::ShiftRight { on: MODULUS, by });
            }
            rule.push(Expression::Bits { on: MODULUS, mask: 0xff, xor });
            rule.push(Expression::Random { to: MODULUS + 1, modulus: BASE });
            rule.push(find(Set::Remainders, MODULUS, FOUND));
            rule.extend(through_mark(FOUND, digit));
        }
        rule
    }

    /// Draws a slot until there is one with an endpoint, for which a rule goes on by these steps.
    fn draw(&self, kind: Kind, then: &[Expression]) -> Vec<Vec<Expression>> {
        let halves = [false].repeat(DRAWS).into_iter().chain([true]);
        halves.map(|half| [&self.slot(kind, half), then].concat()).collect()
    }

    /// To the endpoint that a map has for the first two registers.
    fn translate(&self, set: Set) -> [Expression; 2] {
        [
            find(set, GROUP, GROUP),
            Expression::DestinationNat { address: GROUP, port: self.0.registers },
        ]
    }

    /// Sends a packet to the endpoint of its sender's bond, or to one that is drawn.
    fn serve(&self, kind: Kind) -> Chain {
        let draws = self.draw(kind, &self.translate(Set::Endpoints));
        let rules = std::iter::once(self.to_stay(kind)).chain(draws).collect();
        Chain { name: kind.chain().to_owned(), hook: None, rules }
    }

    /// Where senders stay, a packet is sent to the endpoint of its sender's bond. If it has none and
    /// there is no room for one, the packet goes on as if senders did not stay.
    fn to_stay(&self, kind: Kind) -> Vec<Expression> {
        let mut rule = self.group(kind);
        rule.push(find(Set::Affinity, GROUP, FOUND));
        rule.push(jump(stay(kind)));
        rule
    }

    fn stay(&self, kind: Kind) -> Chain {
        let follow = || vec![jump(bonds(kind))];
        // Who has none must not remove the one that another packet of the sender records just now.
        let mut has_bond = self.to_bond(kind);
        has_bond.push(jump(forget(kind)));
        let rules = vec![follow(), has_bond, vec![jump(record(kind))], follow()];
        Chain { name: stay(kind), hook: None, rules }
    }

    /// Makes the key of the sender's bond, which all frontends of a port share (H1): after
    /// [`Self::group`].
    fn bond_key(&self) -> Vec<Expression> {
        let mut rule = through_mark(GROUP, PORT).to_vec();
        rule.push(Expression::Bits { on: PORT, mask: !POLICY, xor: 0 });
        rule.push(self.sender(SENDER));
        rule
    }

    /// Follows a bond with this timeout, which begins anew (H2).
    fn follow(&self, kind: Kind, seconds: u32) -> Vec<Expression> {
        let mut rule = self.group(kind);
        rule.extend(self.bond_key());
        rule.push(find(Set::Affinity, GROUP, FOUND));
        rule.push(Expression::Compare { on: FOUND, operator: Operator::Equal, with: seconds });
        rule.push(find(Set::Bonds, PORT, FOUND));
        rule.extend(through_mark(FOUND, VALUE));
        let how = Recording::Update { seconds };
        rule.push(Expression::Record { how, set: Set::Bonds, key: PORT, value: VALUE });
        rule.extend(through_mark(VALUE, SECOND));
        rule.extend(self.translate(Set::Numbered));
        rule
    }

    /// Goes on if the packet's sender has a bond.
    fn to_bond(&self, kind: Kind) -> Vec<Expression> {
        let mut rule = self.group(kind);
        rule.extend(self.bond_key());
        rule.push(find(Set::Bonds, PORT, FOUND));
        rule
    }

    /// Removes the bond of the packet's sender if its endpoint has left (H3). Of two packets that come at
    /// once then, the second may remove what the first has recorded: no step compares and removes.
    fn forget(&self, kind: Kind) -> Chain {
        let mut leads = self.to_bond(kind);
        leads.extend(through_mark(FOUND, SECOND));
        leads.push(find(Set::Numbered, GROUP, GROUP));
        leads.push(Expression::Verdict(Verdict::Return));
        let mut dangles = self.to_bond(kind);
        dangles.push(Expression::Mark { to: VALUE });
        let how = Recording::Delete;
        dangles.push(Expression::Record { how, set: Set::Bonds, key: PORT, value: VALUE });
        Chain { name: forget(kind), hook: None, rules: vec![leads, dangles] }
    }

    /// Draws a slot until it is one with an endpoint, and records the endpoint's number for the sender;
    /// who has been recorded meanwhile keeps what it has.
    fn record(&self, kind: Kind) -> Chain {
        let mut then = vec![find(Set::Numbers, GROUP, FOUND)];
        then.extend(through_mark(FOUND, VALUE));
        then.extend(self.bond_key());
        let how = Recording::Add { seconds: FIRST };
        then.push(Expression::Record { how, set: Set::Bonds, key: PORT, value: VALUE });
        then.push(Expression::Verdict(Verdict::Return));
        Chain { name: record(kind), hook: None, rules: self.draw(kind, &then) }
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

    /// What an endpoint sends that belongs to no connection, and where there are no endpoints.
    fn stray_or_nobody(&self, kinds: &[Kind]) -> Vec<Vec<Expression>> {
        let port = self.0.registers + 1;
        let mut stray = in_state(INVALID);
        stray.extend([
            self.sender(0),
            Expression::L4Protocol { to: self.0.registers },
            Expression::SourcePort { to: port },
            Expression::Lookup { set: Set::Servers, key: 0, to: None, inverted: false },
            Expression::Verdict(Verdict::Drop),
        ]);
        [vec![stray], self.nobody(kinds)].concat()
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

/// `NF_CT_STATE_INVALID_BIT`.
const INVALID: u32 = 1;

/// What is there already is nobody's business: it survives whatever changes for its Service.
fn new_connection() -> Vec<Expression> {
    in_state(NEW)
}

fn in_state(bit: u32) -> Vec<Expression> {
    vec![
        Expression::ConntrackState { to: 0 },
        Expression::Bits { on: 0, mask: bit, xor: 0 },
        Expression::Compare { on: 0, operator: Operator::NotEqual, with: 0 },
    ]
}

const fn goto(chain: String) -> Expression {
    Expression::Verdict(Verdict::Goto(chain))
}

const fn jump(chain: String) -> Expression {
    Expression::Verdict(Verdict::Jump(chain))
}

/// Looks up what the registers from `key` on hold. What is found is no key: see [`through_mark`].
const fn find(set: Set, key: Register, to: Register) -> Expression {
    Expression::Lookup { set, key, to: Some(to), inverted: false }
}

/// Makes what a map has said a part of a key, by way of the packet's mark, which is as before at the
/// end. In between no step can end the rule.
const fn through_mark(from: Register, to: Register) -> [Expression; 4] {
    [
        Expression::Mark { to: MARKED },
        Expression::SetMark { from },
        Expression::Mark { to },
        Expression::SetMark { from: MARKED },
    ]
}

fn stay(kind: Kind) -> String {
    format!("{}-stay", kind.chain())
}

fn forget(kind: Kind) -> String {
    format!("{}-forget", kind.chain())
}

fn record(kind: Kind) -> String {
    format!("{}-record", kind.chain())
}

/// What the rules of a family are to be: the chain of each, and its comment, which is another one for
/// another rule.
pub(super) fn wanted(family: Family, timeouts: &BTreeSet<u32>) -> Vec<(String, Option<String>)> {
    let all = chains(family, timeouts).into_iter();
    all.flat_map(|chain| {
        let name = chain.name;
        chain.rules.into_iter().map(move |rule| (name.clone(), Some(fingerprint(&rule, family))))
    })
    .collect()
}

/// The timeout of session affinity that a rule with this comment is for.
pub(super) fn timeout(comment: &str) -> Option<u32> {
    comment.split_once(" s ")?.0.parse().ok()
}

/// FNV-1a.
fn fingerprint(rule: &[Expression], family: Family) -> String {
    let bytes = rule.iter().flat_map(|expression| expression.attributes(family).content().to_vec());
    let hash = bytes
        .fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    let timeout = rule.iter().find_map(|expression| match expression {
        Expression::Record { how: Recording::Update { seconds }, .. } => Some(seconds),
        _ => None,
    });
    timeout.map_or_else(|| format!("{hash:08x}"), |seconds| format!("{seconds} s {hash:08x}"))
}

/// Becomes the owner of a table.
pub(super) fn claim(transaction: &mut Transaction, family: Family) {
    let subject = format!("table {} {TABLE}", family.name());
    let body = Attributes::default().name(1, TABLE).number(2, OWNED);
    transaction.add(Message::NewTable, family, subject, &body);
}

/// Makes the table of a family, or makes an existing one right: its elements stay as they are.
pub(super) fn set_up(
    transaction: &mut Transaction,
    family: Family,
    flags: u32,
    (timeouts, bonds): (&BTreeSet<u32>, u32),
) {
    let subject = |what: &str, name: &str| format!("{what} {} {name}", family.name());
    let named = || Attributes::default().name(1, TABLE);
    let body = named().number(2, flags).bytes(6, &userdata(&comment(bonds)));
    transaction.add(Message::NewTable, family, subject("table", TABLE), &body);
    for (set, id) in Set::all().zip(1..) {
        let body = set.attributes(TABLE, family, (id, bonds));
        transaction.add(Message::NewSet, family, subject("set", set.name()), &body);
    }
    set_remainders(transaction, family);
    let chains = chains(family, timeouts);
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
            add(transaction, family, &chain.name, rule);
        }
    }
}

/// Makes the map of remainders as it is to be.
fn set_remainders(transaction: &mut Transaction, family: Family) {
    let set = Set::Remainders.name();
    // All there are.
    let body = Attributes::default().name(1, TABLE).name(2, set);
    let subject = format!("elements of {} {set}", family.name());
    transaction.add(Message::DelElements, family, subject, &body);
    transaction.elements(Message::NewElements, family, (TABLE, set), &remainders());
}

/// What the map of remainders is to have, sorted.
pub(super) fn remainders() -> Vec<Raw> {
    let moduli = (0..=BASE.ilog2()).map(|exponent| 1 << exponent);
    let halves = moduli.clone().map(|modulus: u32| (modulus | HALF, (modulus / 2).max(1)));
    let all = moduli.map(|modulus| (modulus, modulus)).chain(halves);
    let of = |(key, modulus)| (0..BASE).map(move |of| remainder(key, of, of % modulus));
    let mut all: Vec<_> = all.flat_map(of).collect();
    all.sort_unstable();
    all
}

/// Adds the rules for timeouts of session affinity, in seconds.
pub(super) fn add_timeouts(
    transaction: &mut Transaction,
    family: Family,
    timeouts: &BTreeSet<u32>,
) {
    for kind in Kind::ALL {
        for seconds in timeouts {
            add(transaction, family, &bonds(kind), &Rules(header(family)).follow(kind, *seconds));
        }
    }
}

/// Leaves the rules for these timeouts of session affinity, in seconds, and none for others.
pub(super) fn set_timeouts(
    transaction: &mut Transaction,
    family: Family,
    timeouts: &BTreeSet<u32>,
) {
    for kind in Kind::ALL {
        let chain = bonds(kind);
        // All rules of the chain.
        let body = Attributes::default().name(1, TABLE).name(2, &chain);
        let subject = format!("rules of {} {chain}", family.name());
        transaction.add(Message::DelRule, family, subject, &body);
    }
    add_timeouts(transaction, family, timeouts);
}

fn add(transaction: &mut Transaction, family: Family, chain: &str, rule: &[Expression]) {
    let all = rule.iter().map(|expression| expression.attributes(family));
    let comment = userdata(&fingerprint(rule, family));
    let body = Attributes::default().name(1, TABLE).name(2, chain).list(4, all).bytes(7, &comment);
    transaction.add(Message::NewRule, family, format!("rule of {} {chain}", family.name()), &body);
}

/// Removes the table of a family, with all that is in it.
pub(super) fn remove(transaction: &mut Transaction, family: Family) {
    let body = Attributes::default().name(1, TABLE);
    let subject = format!("table {} {TABLE}", family.name());
    transaction.add(Message::DelTable, family, subject, &body);
}

#[cfg(test)]
mod tests {
    use super::{super::sets::Field, *};

    fn timeouts() -> BTreeSet<u32> {
        [60, 10_800].into()
    }

    /// The registers that a step reads, and those that it writes, and whether these hold what a map has
    /// said.
    fn registers(expression: &Expression, family: Family) -> (Vec<Register>, Vec<Register>, bool) {
        let number = |bytes: u32| Register::try_from(bytes.div_ceil(4)).unwrap();
        let len = |fields: &[Field]| number(Field::all(fields, family).1);
        let some = |from: Register, count: Register| (from..from + count).collect::<Vec<_>>();
        match expression {
            Expression::Network { to, len, .. } => (vec![], some(*to, number(*len)), false),
            Expression::DestinationPort { to }
            | Expression::SourcePort { to }
            | Expression::L4Protocol { to }
            | Expression::Mark { to }
            | Expression::Random { to, .. }
            | Expression::ConntrackState { to }
            | Expression::ConntrackStatus { to } => (vec![], vec![*to], false),
            Expression::SetMark { from } => (vec![*from], vec![], false),
            Expression::Bits { on, .. } | Expression::ShiftRight { on, .. } => {
                (vec![*on], vec![*on], false)
            }
            Expression::Compare { on, .. } => (vec![*on], vec![], false),
            Expression::Lookup { set, key, to, .. } => {
                let value = to.map_or_else(Vec::new, |to| some(to, len(set.value())));
                (some(*key, len(&set.key())), value, true)
            }
            Expression::Record { set, key, value, .. } => {
                ([some(*key, len(&set.key())), vec![*value]].concat(), vec![], false)
            }
            Expression::DestinationNat { address, port } => (vec![*address, *port], vec![], false),
            Expression::Verdict(_) | Expression::Masquerade | Expression::Reject => {
                (vec![], vec![], false)
            }
        }
    }

    #[test]
    fn no_key_holds_what_a_map_said() {
        // Nor does a rule read a register that it has not written, nor leave the mark as it should not be.
        for family in Family::ALL {
            for chain in chains(family, &timeouts()) {
                for rule in &chain.rules {
                    let (mut said, mut written) = (BTreeSet::new(), BTreeSet::new());
                    // Whether the mark is another one than before, and who holds that.
                    let (mut is_marked, mut marks) = (false, BTreeSet::new());
                    for expression in rule {
                        let (read, writes, is_map) = registers(expression, family);
                        let at = || format!("{} {rule:?}", chain.name);
                        assert!(read.iter().all(|register| written.contains(register)), "{}", at());
                        assert!(writes.iter().all(|register| *register <= MARKED), "{}", at());
                        let is_key = matches!(
                            expression,
                            Expression::Lookup { .. } | Expression::Record { .. }
                        );
                        if is_key {
                            assert!(
                                read.iter().all(|register| !said.contains(register)),
                                "{}",
                                at()
                            );
                        }
                        if let Expression::SetMark { from } = expression {
                            is_marked = !marks.contains(from);
                        } else {
                            assert!(!is_marked || matches!(expression, Expression::Mark { .. }));
                        }
                        match expression {
                            Expression::Mark { to } if !is_marked => _ = marks.insert(*to),
                            Expression::Bits { .. } | Expression::ShiftRight { .. } => {}
                            _ => marks.retain(|register| !writes.contains(register)),
                        }
                        written.extend(writes.iter().copied());
                        for register in writes {
                            if is_map {
                                said.insert(register)
                            } else {
                                said.remove(&register)
                            };
                        }
                    }
                    assert!(!is_marked, "{}", chain.name);
                }
            }
        }
    }

    #[test]
    fn every_rule_leads_to_a_chain_that_was_made_before() {
        for family in Family::ALL {
            let mut made = BTreeSet::new();
            for chain in chains(family, &timeouts()) {
                for expression in chain.rules.iter().flatten() {
                    if let Expression::Verdict(Verdict::Goto(to) | Verdict::Jump(to)) = expression {
                        assert!(made.contains(to), "{} → {to}", chain.name);
                    }
                }
                assert!(made.insert(chain.name));
            }
        }
    }

    /// Draws as the rules do, by what the maps say.
    #[test]
    fn every_slot_is_drawn_as_often_and_the_last_draw_finds_an_endpoint() {
        let remainders = remainders();
        let digit = |modulus: u32, of: u32| {
            let key = remainder(modulus, of, 0).key;
            let found = remainders.iter().find(|raw| raw.key == key)?;
            Some(u32::from_ne_bytes(found.value?.as_ref().try_into().unwrap()))
        };
        for modulus in (0..=5).map(|exponent| 1 << exponent) {
            let mut drawn = vec![0; modulus as usize];
            for of in 0..BASE {
                drawn[digit(modulus, of).unwrap() as usize] += 1;
                let half = digit(modulus | HALF, of).unwrap();
                assert!(half == 0 || half < modulus / 2);
            }
            assert_eq!(drawn, vec![BASE / modulus; modulus as usize]);
        }
        for nobody in [REJECT, DROP, REJECT | HALF] {
            assert_eq!(digit(nobody, 0), None);
        }
    }

    #[test]
    fn a_rule_is_known_by_its_comment() {
        let all = wanted(Family::Ip, &timeouts());
        let distinct: BTreeSet<_> = all.iter().map(|(_, comment)| comment).collect();
        // Draws of one chain are the same rule.
        assert!(distinct.len() > 50, "{}", distinct.len());
        assert_ne!(all, wanted(Family::Ip6, &timeouts()));
        let found: BTreeSet<_> =
            all.iter().filter_map(|(_, comment)| timeout(comment.as_ref()?)).collect();
        assert_eq!(found, timeouts());
    }
}
