//! What happens to a connection or a datagram, and why it fails.
//!
//! Errno, counter, name and text of each refusal stand in one row of this file and nowhere else. The
//! programs, `lbctl explain`, the counters, the metrics and the table in README.md have them from here.

use crate::abi::{Counter, UDP};

/// What happens to a connection or a datagram. `To` is what is known of where it goes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Verdict<To> {
    /// Not a Service: leave the destination alone.
    Miss,
    /// Go where the flow went before; nothing has changed.
    Stay,
    /// Go to this backend.
    Forward(To),
    /// Let the system call fail.
    Fail(Refusal),
}

impl<To> Verdict<To> {
    /// The same, with more or less known of where it goes.
    #[inline(always)]
    pub fn map<T>(self, more: impl FnOnce(To) -> T) -> Verdict<T> {
        match self {
            Self::Miss => Verdict::Miss,
            Self::Stay => Verdict::Stay,
            Self::Forward(to) => Verdict::Forward(more(to)),
            Self::Fail(refusal) => Verdict::Fail(refusal),
        }
    }
}

/// Why a system call fails.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Refusal {
    /// The Service has no endpoints (kube-proxy F1).
    NoEndpoints,
    /// The cluster IP has no such port (kube-proxy E12).
    UnknownPort,
    /// Nobody is ever to reach the address: the agent sees by it whether the programs are in force.
    Reserved,
    /// The Service has endpoints, but none for clients here (kube-proxy F2).
    Unreachable,
    /// The client's address is in none of the Service's source ranges (kube-proxy G2).
    Denied,
    /// There are source ranges, and nobody knows the client's address, or it cannot come from there. The
    /// caller may retry once the agent has seen it.
    UnknownClient,
    /// The socket is bound to a loopback address and dials one, and the backend is at none of this node's
    /// own addresses: no packet may leave with such a source, and no hook can bind the socket anew.
    Confined,
    /// No consistent set after [`ATTEMPTS`](crate::ATTEMPTS) readings: the caller may retry. Or a record,
    /// or what is said of the service port, says what this version does not know: that stays so.
    Unstable,
}

/// The error that a system call fails with, by its number. The numbers are the same on every architecture
/// that Linux runs BPF on, save MIPS, PA-RISC and SPARC.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(i32)]
pub enum Errno {
    /// EACCES.
    Access = 13,
    /// ECONNREFUSED.
    ConnectionRefused = 111,
    /// EHOSTUNREACH.
    HostUnreachable = 113,
}

impl Errno {
    /// As in errno(3).
    pub const fn name(self) -> &'static str {
        match self {
            Self::Access => "EACCES",
            Self::ConnectionRefused => "ECONNREFUSED",
            Self::HostUnreachable => "EHOSTUNREACH",
        }
    }
}

impl Refusal {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::NoEndpoints,
        Self::UnknownPort,
        Self::Reserved,
        Self::Unreachable,
        Self::Denied,
        Self::UnknownClient,
        Self::Confined,
        Self::Unstable,
    ];

    /// Errno, counter, name, text.
    #[inline(always)]
    const fn row(self) -> (Errno, Counter, &'static str, &'static str) {
        use Errno::{Access, ConnectionRefused, HostUnreachable};

        match self {
            Self::NoEndpoints => {
                (ConnectionRefused, Counter::Refused, "refuse", "the Service has no endpoints")
            }
            Self::UnknownPort => (
                ConnectionRefused,
                Counter::Refused,
                "unknownPort",
                "the cluster IP does not have this port",
            ),
            Self::Reserved => (
                ConnectionRefused,
                Counter::Refused,
                "reserved",
                "lb-agent tries the address to see that its programs are in force",
            ),
            Self::Unreachable => (
                HostUnreachable,
                Counter::Unreachable,
                "unreachable",
                "the Service has endpoints, but its traffic policy allows none of them from here",
            ),
            Self::Denied => (
                Access,
                Counter::Denied,
                "denied",
                "the client is in none of the Service's source ranges",
            ),
            Self::UnknownClient => (
                Access,
                Counter::UnknownClient,
                "unknownClient",
                "the Service has source ranges, and the client's address is not known",
            ),
            Self::Confined => (
                ConnectionRefused,
                Counter::LoopbackBound,
                "confined",
                "the socket is bound to a loopback address, from which no packet may leave this node, \
                 and the backend is at none of the node's NodePort addresses",
            ),
            Self::Unstable => (
                ConnectionRefused,
                Counter::Unstable,
                "damaged",
                "the records in the maps are not those of the Service, or say what these programs do \
                 not know, however often they are read",
            ),
        }
    }

    /// What the system call fails with.
    #[inline(always)]
    pub const fn errno(self) -> Errno {
        self.row().0
    }

    /// Where it is counted.
    #[inline(always)]
    pub const fn counter(self) -> Counter {
        self.row().1
    }

    /// As `lbctl explain -o json` has it.
    pub const fn name(self) -> &'static str {
        self.row().2
    }

    /// The reason, as a clause: without a capital letter and without a full stop.
    #[inline(always)]
    pub const fn text(self) -> &'static str {
        self.row().3
    }

    /// Whether a connect() leaves the destination alone, where a datagram would be refused.
    ///
    /// A connect() of UDP sends nothing. Programs use it to ask which source address a destination
    /// would have: getaddrinfo() does so for every address that it has found, at whatever port, and
    /// sorts by it (RFC 6724, rule 1). An error would say that there is no route. Who is not allowed to
    /// connect is refused all the same: what a connected socket sends is not asked about again.
    #[inline(always)]
    pub const fn lets_connect(self, protocol: u8) -> bool {
        protocol == UDP && matches!(self, Self::NoEndpoints | Self::UnknownPort | Self::Unreachable)
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn each_refusal_has_a_name_and_a_text_of_its_own() {
        let names: BTreeSet<_> = Refusal::ALL.iter().map(|refusal| refusal.name()).collect();
        let texts: BTreeSet<_> = Refusal::ALL.iter().map(|refusal| refusal.text()).collect();
        assert_eq!((names.len(), texts.len()), (Refusal::ALL.len(), Refusal::ALL.len()));
        for text in texts {
            assert!(!text.ends_with('.') && text.trim() == text, "{text}");
        }
    }

    /// The standard library knows the numbers of the machine that it runs on.
    #[test]
    fn the_numbers_are_linux_s() {
        use std::io::{Error, ErrorKind};

        for (errno, kind) in [
            (Errno::Access, ErrorKind::PermissionDenied),
            (Errno::ConnectionRefused, ErrorKind::ConnectionRefused),
            (Errno::HostUnreachable, ErrorKind::HostUnreachable),
        ] {
            let error = Error::from_raw_os_error(errno as i32);
            assert_eq!(error.kind(), kind, "{}: {error}", errno.name());
        }
    }

    #[test]
    fn a_udp_connect_fails_only_where_somebody_is_not_allowed_to() {
        let untouched = [Refusal::NoEndpoints, Refusal::UnknownPort, Refusal::Unreachable];
        for refusal in Refusal::ALL {
            assert_eq!(refusal.lets_connect(17), untouched.contains(&refusal), "{refusal:?}");
            assert!(!refusal.lets_connect(6), "{refusal:?}");
        }
    }
}
