//! The steps of a rule. A rule ends where a step does not find what it looks for, or gives a verdict.

use super::{
    nft::{Attributes, Family},
    sets::Set,
};

/// `NFT_REG32_00` and those after it.
pub(super) type Register = u8;

/// One step of a rule.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Expression {
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
    SourcePort {
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
    /// `register = register >> by`.
    ShiftRight {
        on: Register,
        by: u32,
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
    /// Writes to a set. The rule ends if it is full.
    Record {
        how: Recording,
        set: Set,
        key: Register,
        value: Register,
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
pub(super) enum Operator {
    Equal = 0,
    NotEqual = 1,
    AtLeast = 5,
}

/// What becomes of an element; `seconds`: for how long it is there from now on.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Recording {
    /// One that is there stays as it is.
    Add {
        seconds: u32,
    },
    /// One that is there keeps its value.
    Update {
        seconds: u32,
    },
    Delete,
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Verdict {
    Drop,
    Return,
    Jump(String),
    Goto(String),
}

impl Expression {
    pub(super) fn attributes(&self, family: Family) -> Attributes {
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
            Self::SourcePort { to } => {
                ("payload", none.number(1, register(*to)).number(2, 2).number(3, 0).number(4, 2))
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
            Self::ShiftRight { on, by } => (
                "bitwise",
                none.number(1, register(*on))
                    .number(2, register(*on))
                    .number(3, 4)
                    // NFT_BITWISE_RSHIFT.
                    .number(6, 2)
                    .nest(7, &data(&by.to_ne_bytes())),
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
            Self::Record { how, set, key, value } => {
                let (operation, seconds) = match how {
                    Recording::Add { seconds } => (0, *seconds),
                    Recording::Update { seconds } => (1, *seconds),
                    Recording::Delete => (2, 0),
                };
                let mut body = none
                    .name(1, set.name())
                    .number(3, operation)
                    .number(4, register(*key))
                    .number(5, register(*value));
                if seconds > 0 {
                    body = body.bytes(6, &(u64::from(seconds) * 1000).to_be_bytes());
                }
                ("dynset", body)
            }
            Self::ConntrackState { to } => ("ct", load(*to, 0)),
            Self::ConntrackStatus { to } => ("ct", load(*to, 2)),
            Self::Verdict(verdict) => {
                let code = |code: i32| Attributes::default().bytes(1, &code.to_be_bytes());
                let verdict = match verdict {
                    Verdict::Drop => code(0),
                    Verdict::Return => code(-5),
                    Verdict::Jump(chain) => code(-3).name(2, chain),
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
