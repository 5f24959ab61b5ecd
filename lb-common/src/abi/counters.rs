//! `counters`: what the programs did other than to forward.

/// Key of [`COUNTERS`](super::COUNTERS): what is counted.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u32)]
pub enum Counter {
    /// Refused for lack of endpoints, or since the cluster IP has no such port.
    Refused = 0,
    /// Failed since no endpoint is allowed from here.
    Unreachable = 1,
    /// Failed since the client's address is in no source range.
    Denied = 2,
    /// Failed since the client's address is not known, and there are source ranges.
    UnknownClient = 3,
    /// Refused since the maps changed under each of the readings.
    Unstable = 4,
    /// A client that was to stay with its backend, but the affinity map had no room.
    AffinityFull = 5,
    /// A socket for whose state the kernel had no memory.
    NoSocketMemory = 6,
    /// A flow of a UDP socket that was forgotten in favour of another flow of the same socket.
    FlowForgotten = 7,
    /// A connect() of UDP that was left untouched, where a datagram would have been refused.
    UdpConnectUntouched = 8,
    /// A datagram from a Service's address, the answer to which goes to a backend: the map of those
    /// that were just heard from had no room.
    HeardFull = 9,
    /// A socket that did without further flows, since its cgroup holds as many as it may.
    FlowsBounded = 10,
    /// Refused since the socket is bound to a loopback address, and the NodePort's backend is at none
    /// of this node's own addresses.
    LoopbackBound = 11,
    /// A client that was to stay with its backend, but whose cgroup has as many bonds as it may.
    AffinityBounded = 12,
}

impl Counter {
    /// All of them, in order.
    pub const ALL: [Self; 13] = [
        Self::Refused,
        Self::Unreachable,
        Self::Denied,
        Self::UnknownClient,
        Self::Unstable,
        Self::AffinityFull,
        Self::NoSocketMemory,
        Self::FlowForgotten,
        Self::UdpConnectUntouched,
        Self::HeardFull,
        Self::FlowsBounded,
        Self::LoopbackBound,
        Self::AffinityBounded,
    ];

    /// As a label.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::Unreachable => "unreachable",
            Self::Denied => "denied",
            Self::UnknownClient => "unknown-client",
            Self::Unstable => "unstable",
            Self::AffinityFull => "affinity-full",
            Self::NoSocketMemory => "no-socket-memory",
            Self::FlowForgotten => "flow-forgotten",
            Self::UdpConnectUntouched => "udp-connect-untouched",
            Self::HeardFull => "heard-full",
            Self::FlowsBounded => "flows-bounded",
            Self::LoopbackBound => "loopback-bound",
            Self::AffinityBounded => "affinity-bounded",
        }
    }
}
