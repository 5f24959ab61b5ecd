//! A client that comes back after each step, to a Service with session affinity (H).

use std::{collections::BTreeSet, net::SocketAddr};

use super::{
    deviations::{Deviation, count},
    judge::Seen,
    outcome::{Fate, Outcome, Packet},
    program::{Program, Question},
    socklb::Socklb,
};

#[derive(Debug, Default)]
pub(super) struct Regular {
    /// Its way to the Service; it takes the first one that it sees.
    packet: Option<Packet>,
    /// Seconds since the beginning, by the clocks of kube-proxy and of socklb.
    clocks: (u64, u64),
    /// The timeout at the visit before.
    timeout: u32,
    got: BTreeSet<SocketAddr>,
    last: Option<SocketAddr>,
    /// Whether it could not get to the Service after the step before.
    was_shut_out: bool,
}

impl Regular {
    /// Whether this is its way, or could become it.
    pub(super) fn may_be(&self, packet: &Packet, wanted: &Outcome) -> bool {
        match &self.packet {
            Some(own) => own == packet,
            None => wanted.fate == Fate::Forwarded && wanted.affinity > 0,
        }
    }

    /// It stays away for so long, by either clock.
    pub(super) fn pause(&mut self, kube_proxy: u64, socklb: u64) {
        self.clocks.0 += kube_proxy;
        self.clocks.1 += socklb;
    }

    /// It comes, and gets the first endpoint that it may get. Says how the two sides differ. Where there were
    /// two `changes` since it came last, its endpoint may have been away between them.
    pub(super) fn visit(
        &mut self,
        way: Option<(Packet, Question, Outcome)>,
        changes: usize,
        (program, socklb): (&mut Program, &mut Socklb),
        seen: &mut Seen,
    ) -> Option<String> {
        let (packet, question, outcome) = way?;
        if outcome.fate != Fate::Forwarded || outcome.affinity == 0 {
            self.was_shut_out = true;
            return None;
        }
        if self.timeout != outcome.affinity {
            // An element of a set keeps its timeout, a bond has the Service's: a new beginning.
            let clocks = (self.clocks.0 + 200_000, self.clocks.1 + 200_000);
            *self = Self { clocks, timeout: outcome.affinity, ..Self::default() };
            self.packet = Some(packet);
        }
        let question = Question { known: true, now: self.clocks.0, ..question };
        let answer = program.ask(std::slice::from_ref(&question)).remove(0);
        let wanted: BTreeSet<SocketAddr> = answer.reached.iter().map(|it| it.endpoint).collect();
        let found = socklb.comes_back(&packet, self.clocks.1, None);
        seen.visits += 1;
        seen.remembered += usize::from(wanted.len() < outcome.backends.len());
        if wanted != found {
            let is_anew = found == outcome.backends
                && self.last.is_none_or(|last| !outcome.backends.contains(&last));
            let is_old = found.len() == 1 && found.is_subset(&self.got);
            if is_old && (self.was_shut_out || changes > 1) && found.is_subset(&wanted) {
                count(&mut seen.deviations, Deviation::Away);
            } else if (is_old || is_anew) && wanted.len() == 1 && wanted.is_subset(&self.got) {
                count(&mut seen.deviations, Deviation::Several);
            } else {
                return Some(format!(
                    "{packet}, again at {} s, affinity {} s\n  kube-proxy: {wanted:?}\n  \
                     socklb:     {found:?}",
                    self.clocks.0, self.timeout
                ));
            }
        }
        let gets = *found.first()?;
        program.ask(&[Question { gets: gets.to_string(), ..question }]);
        socklb.comes_back(&packet, self.clocks.1, Some(gets));
        self.got.insert(gets);
        self.last = Some(gets);
        self.was_shut_out = false;
        None
    }
}
