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

use super::nft::{Attributes, Family, Message, Transaction, userdata};

/// The table in each family.
pub(super) const TABLE: &str = "socklb";
/// What the table says of itself: whose it is, and which layout. Another layout is another text.
pub(super) const COMMENT: &str = "made by socklb, layout 1; an agent repairs it";
/// kube-proxy's: packets to be masqueraded carry it from our first hook to our last.
const MARK: u32 = 1 << 14;
/// The most slots that are drawn from: of more endpoints, the first ones are served.
pub(super) const MAX_SLOTS: u32 = 1 << 16;
/// So often a slot is drawn until there is an endpoint in it. At least half of the slots have one, and
/// the next draw is from that half.
const DRAWS: usize = 6;

/// `slots` of a frontend at which packets are rejected: there are no endpoints anywhere (F1).
pub(super) const REJECT: u32 = 0;
/// `slots` of a frontend at which packets are dropped: there are none here (F2).
pub(super) const DROP: u32 = u32::MAX;

/// `NFT_TABLE_F_OWNER`: nobody else may change the table.
pub(super) const OWNER: u32 = 2;
/// `NFT_TABLE_F_OWNER | NFT_TABLE_F_PERSIST`: and it stays when its owner ends. Linux 6.9.
pub(super) const OWNED: u32 = OWNER | 4;

/// Who asks for a frontend, and how it is found.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub(super) enum Kind {
    /// An address: every endpoint of the cluster.
    Cluster,
    /// An address with the policy Local: this node's endpoints, for strangers.
    Local,
    /// A node port.
    ClusterPort,
    /// A node port with the policy Local.
    LocalPort,
}

impl Kind {
    const ALL: [Self; 4] = [Self::Cluster, Self::Local, Self::ClusterPort, Self::LocalPort];

    const fn chain(self) -> &'static str {
        match self {
            Self::Cluster => "cluster",
            Self::Local => "local",
            Self::ClusterPort => "cluster-port",
            Self::LocalPort => "local-port",
        }
    }

    pub(super) const fn frontends(self) -> Set {
        match self {
            Self::Cluster => Set::Frontends,
            Self::Local => Set::LocalFrontends,
            Self::ClusterPort => Set::Ports,
            Self::LocalPort => Set::LocalPorts,
        }
    }

    pub(super) const fn endpoints(self) -> Set {
        match self {
            Self::Cluster => Set::Endpoints,
            Self::Local => Set::LocalEndpoints,
            Self::ClusterPort => Set::PortEndpoints,
            Self::LocalPort => Set::LocalPortEndpoints,
        }
    }

    const fn is_port(self) -> bool {
        matches!(self, Self::ClusterPort | Self::LocalPort)
    }
}

/// The sets. Their keys and values, each field in 4 bytes or a multiple of that:
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub(super) enum Set {
    /// Addresses at which node ports are served.
    Nodes,
    /// An endpoint's address, twice: it may ask for its own Service.
    Hairpin,
    /// Ranges of senders that a frontend is for: address, protocol, port, range.
    Ranges,
    /// Frontends that have ranges: address, protocol, port.
    Restricted,
    /// Address, protocol, port, slot → address, port.
    Endpoints,
    /// The same for strangers, where the policy is Local.
    LocalEndpoints,
    /// Protocol, port, slot → address, port.
    PortEndpoints,
    /// The same for strangers, where the policy is Local.
    LocalPortEndpoints,
    /// Address, protocol, port → slots.
    Frontends,
    /// The same for strangers, where the policy is Local.
    LocalFrontends,
    /// Protocol, port → slots.
    Ports,
    /// The same for strangers, where the policy is Local.
    LocalPorts,
}

impl Set {
    pub(super) const ALL: [Self; 12] = [
        Self::Nodes,
        Self::Hairpin,
        Self::Ranges,
        Self::Restricted,
        Self::Endpoints,
        Self::LocalEndpoints,
        Self::PortEndpoints,
        Self::LocalPortEndpoints,
        Self::Frontends,
        Self::LocalFrontends,
        Self::Ports,
        Self::LocalPorts,
    ];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Nodes => "nodes",
            Self::Hairpin => "hairpin",
            Self::Ranges => "ranges",
            Self::Restricted => "restricted",
            Self::Endpoints => "endpoints",
            Self::LocalEndpoints => "local-endpoints",
            Self::PortEndpoints => "port-endpoints",
            Self::LocalPortEndpoints => "local-port-endpoints",
            Self::Frontends => "frontends",
            Self::LocalFrontends => "local-frontends",
            Self::Ports => "ports",
            Self::LocalPorts => "local-ports",
        }
    }

    fn key(self) -> &'static [Field] {
        use Field::{Address, Number, Port, Protocol};
        match self {
            Self::Nodes => &[Address],
            Self::Hairpin => &[Address, Address],
            Self::Ranges => &[Address, Protocol, Port, Address],
            Self::Restricted | Self::Frontends | Self::LocalFrontends => &[Address, Protocol, Port],
            Self::Endpoints | Self::LocalEndpoints => &[Address, Protocol, Port, Number],
            Self::PortEndpoints | Self::LocalPortEndpoints => &[Protocol, Port, Number],
            Self::Ports | Self::LocalPorts => &[Protocol, Port],
        }
    }

    fn value(self) -> &'static [Field] {
        match self {
            Self::Nodes | Self::Hairpin | Self::Ranges | Self::Restricted => &[],
            Self::Endpoints
            | Self::LocalEndpoints
            | Self::PortEndpoints
            | Self::LocalPortEndpoints => &[Field::Address, Field::Port],
            Self::Frontends | Self::LocalFrontends | Self::Ports | Self::LocalPorts => {
                &[Field::Number]
            }
        }
    }

    const fn is_interval(self) -> bool {
        matches!(self, Self::Ranges)
    }
}

/// A field of a key or a value, as nft knows types.
#[derive(Clone, Copy)]
enum Field {
    Address,
    Protocol,
    Port,
    /// In the processor's order, as the kernel draws it. nft calls a number of that kind a mark.
    Number,
}

impl Field {
    /// `TYPE_*` of nft's datatype.h, and the length in bytes.
    const fn of(self, family: Family) -> (u32, u32) {
        match (self, family) {
            (Self::Address, Family::Ip) => (7, 4),
            (Self::Address, Family::Ip6) => (8, 16),
            (Self::Protocol, _) => (12, 1),
            (Self::Port, _) => (13, 2),
            (Self::Number, _) => (19, 4),
        }
    }

    /// nft's number of a type of several fields, and the length in registers.
    fn all(fields: &[Self], family: Family) -> (u32, u32) {
        fields.iter().fold((0, 0), |(kind, len), field| {
            let (one, bytes) = field.of(family);
            (kind << 6 | one, len + bytes.next_multiple_of(4))
        })
    }
}

/// `NFT_REG32_00` and those after it.
type Register = u8;

/// One step of a rule.
#[derive(Clone, Debug, Eq, PartialEq)]
enum Expression {
    /// Bytes of the network header.
    Network {
        to: Register,
        offset: u32,
        len: u32,
    },
    /// Both ports of TCP, UDP and SCTP are where UDP's are.
    DestinationPort {
        to: Register,
    },
    L4Protocol {
        to: Register,
    },
    Mark {
        to: Register,
    },
    SetMark {
        from: Register,
    },
    /// `register = register & mask ^ xor`.
    Bits {
        on: Register,
        mask: u32,
        xor: u32,
    },
    Compare {
        on: Register,
        operator: Operator,
        with: u32,
    },
    Lookup {
        set: Set,
        key: Register,
        to: Option<Register>,
        inverted: bool,
    },
    Random {
        to: Register,
        modulus: u32,
    },
    ConntrackState {
        to: Register,
    },
    ConntrackStatus {
        to: Register,
    },
    Verdict(Verdict),
    DestinationNat {
        address: Register,
        port: Register,
    },
    Masquerade,
    Reject,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Operator {
    Equal = 0,
    NotEqual = 1,
    AtLeast = 5,
}

#[derive(Clone, Debug, Eq, PartialEq)]
enum Verdict {
    Drop,
    Goto(String),
}

impl Expression {
    fn attributes(&self, family: Family) -> Attributes {
        let register = |register: Register| u32::from(register) + 8;
        let data = |bytes: &[u8]| Attributes::default().bytes(1, bytes);
        let none = Attributes::default();
        let load = |to: Register, key: u32| none.clone().number(1, register(to)).number(2, key);
        let (name, body) = match self {
            Self::Network { to, offset, len } => (
                "payload",
                none.number(1, register(*to)).number(2, 1).number(3, *offset).number(4, *len),
            ),
            Self::DestinationPort { to } => {
                ("payload", none.number(1, register(*to)).number(2, 2).number(3, 2).number(4, 2))
            }
            Self::L4Protocol { to } => ("meta", load(*to, 16)),
            Self::Mark { to } => ("meta", load(*to, 3)),
            Self::SetMark { from } => ("meta", none.number(2, 3).number(3, register(*from))),
            Self::Bits { on, mask, xor } => (
                "bitwise",
                none.number(1, register(*on))
                    .number(2, register(*on))
                    .number(3, 4)
                    .nest(4, &data(&mask.to_ne_bytes()))
                    .nest(5, &data(&xor.to_ne_bytes())),
            ),
            Self::Compare { on, operator, with } => (
                "cmp",
                none.number(1, register(*on))
                    .number(2, *operator as u32)
                    .nest(3, &data(&with.to_ne_bytes())),
            ),
            Self::Lookup { set, key, to, inverted } => {
                let mut body = none.name(1, set.name()).number(2, register(*key));
                if let Some(to) = to {
                    body = body.number(3, register(*to));
                }
                ("lookup", if *inverted { body.number(5, 1) } else { body })
            }
            Self::Random { to, modulus } => (
                "numgen",
                none.number(1, register(*to)).number(2, *modulus).number(3, 1).number(4, 0),
            ),
            Self::ConntrackState { to } => ("ct", load(*to, 0)),
            Self::ConntrackStatus { to } => ("ct", load(*to, 2)),
            Self::Verdict(verdict) => {
                let code = |code: i32| Attributes::default().bytes(1, &code.to_be_bytes());
                let verdict = match verdict {
                    Verdict::Drop => code(0),
                    Verdict::Goto(chain) => code(-4).name(2, chain),
                };
                let data = Attributes::default().nest(2, &verdict);
                ("immediate", none.number(1, 0).nest(2, &data))
            }
            Self::DestinationNat { address, port } => (
                "nat",
                none.number(1, 1)
                    .number(2, u32::from(family.number()))
                    .number(3, register(*address))
                    .number(5, register(*port)),
            ),
            // NF_NAT_RANGE_PROTO_RANDOM_FULLY.
            Self::Masquerade => ("masq", none.number(1, 16)),
            Self::Reject => {
                // Port unreachable.
                let code = match family {
                    Family::Ip => 3,
                    Family::Ip6 => 4,
                };
                ("reject", none.number(1, 0).bytes(2, &[code]))
            }
        };
        Attributes::default().name(1, name).nest(2, &body)
    }
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
        hooked(
            "none-output",
            ("filter", OUTPUT, -110),
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
        let body = set_attributes(set, family, id);
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

fn set_attributes(set: Set, family: Family, id: u32) -> Attributes {
    const INTERVAL: u32 = 0x4;
    const MAP: u32 = 0x8;
    const CONCAT: u32 = 0x80;
    let (key, key_len) = Field::all(set.key(), family);
    let (value, value_len) = Field::all(set.value(), family);
    let map = if set.value().is_empty() { 0 } else { MAP };
    let interval = if set.is_interval() { INTERVAL | CONCAT } else { 0 };
    let mut body = Attributes::default()
        .name(1, TABLE)
        .name(2, set.name())
        .number(3, map | interval)
        .number(4, key)
        .number(5, key_len);
    if map != 0 {
        body = body.number(6, value).number(7, value_len);
    }
    if set.is_interval() {
        let fields =
            set.key().iter().map(|field| Attributes::default().number(1, field.of(family).1));
        body = body.nest(9, &Attributes::default().list(2, fields));
    }
    body.number(10, id)
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
