//! What clients outside see of a change, and when.

use std::{
    net::SocketAddr,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use super::{
    LIMIT,
    api::{ApiServer, Kind},
    client::{Seen, ask, wait},
    network::CLIENTS,
    objects::{ENDPOINTS, Edition, load_balancer, service, slice},
};
use crate::{cluster::Shape, samples::Samples};

/// A network in which no client is.
const ELSEWHERE: &str = "203.0.113.0/24";
/// An answer that comes takes less, if nobody is in its way.
const SOON: Duration = Duration::from_micros(500);
/// An answer that takes longer does not come.
const LONG: Duration = Duration::from_millis(100);
/// So many connections in a row miss an endpoint that one of ten goes to once in 10^13.
const MISSES: u32 = 300;
/// So many lie between two that go there, on the average.
const BETWEEN: u32 = ENDPOINTS;

/// What changes for a Service.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(super) enum Step {
    Added,
    Removed,
    Replaced,
    Closed,
    Opened,
    /// Nothing does: how long it takes to get a certain endpoint of ten.
    Chance,
}

impl Step {
    pub(super) const ALL: [Self; 6] =
        [Self::Added, Self::Removed, Self::Replaced, Self::Closed, Self::Opened, Self::Chance];

    pub(super) const fn title(self) -> &'static str {
        match self {
            Self::Added => "an endpoint is added",
            Self::Removed => "an endpoint is removed",
            Self::Replaced => "an endpoint is replaced",
            Self::Closed => "a range excludes the client",
            Self::Opened => "a range includes it again",
            Self::Chance => "(nothing changes)",
        }
    }
}

/// How long a step took each time, in ms.
#[derive(Clone, Deserialize, Serialize)]
pub(super) struct Taken {
    pub(super) step: Step,
    pub(super) ms: Samples,
    /// Once it took longer than the limit.
    pub(super) is_late: bool,
}

/// Changes of one Service after the other.
pub(super) struct Changes<'a> {
    pub(super) api: &'a ApiServer,
    pub(super) shape: Shape,
    /// Between two.
    pub(super) pause: Duration,
}

impl Changes<'_> {
    /// At most so many of each, as long as there is time; at least one. They are seen in the network
    /// namespace of this thread.
    pub(super) fn run(&self, most: u32, time: Duration) -> Result<Vec<Taken>> {
        let taken = |step| Taken { step, ms: Samples::default(), is_late: false };
        let mut all = Step::ALL.map(taken);
        let start = Instant::now();
        for n in 0..most {
            if n > 0 && start.elapsed() > time {
                break;
            }
            // Far apart from each other, and each only once.
            let i = n * (self.shape.services / most).max(1) % self.shape.services;
            if !self.round(i, &mut all)? {
                break;
            }
        }
        Ok(all.into())
    }

    /// Every step for a Service, and back; false: one was too late.
    fn round(&self, i: u32, all: &mut [Taken; 6]) -> Result<bool> {
        let to = load_balancer(i);
        let mut done = |step: Step, took: Option<Duration>| {
            let taken = &mut all[step as usize];
            if let Some(took) = took {
                taken.ms.push(took.as_secs_f64() * 1e3);
            } else {
                eprintln!("  {}: more than 15 min", step.title());
                taken.is_late = true;
            }
            sleep(self.pause);
            took.is_some()
        };
        let endpoints = |edition| -> Result<Instant> {
            self.api.change(Kind::Slices, i, slice(self.shape, i, edition)?)
        };
        let ranges = |ranges: &[&str]| -> Result<Instant> {
            self.api.change(Kind::Services, i, service(self.shape, i, ranges)?)
        };
        Ok(done(Step::Added, comes(to, endpoints(Edition::Added)?)?)
            && done(Step::Chance, comes(to, Instant::now())?)
            && done(Step::Removed, goes(to, endpoints(Edition::Plain)?)?)
            && done(Step::Replaced, comes(to, endpoints(Edition::Replaced)?)?)
            && {
                // Not counted: it is the same the other way round.
                let back = goes(to, endpoints(Edition::Plain)?)?;
                sleep(self.pause);
                back.is_some()
            }
            && done(Step::Closed, closes(to, ranges(&[ELSEWHERE])?)?)
            && done(Step::Opened, opens(to, ranges(&[ELSEWHERE, CLIENTS])?)?))
    }
}

/// Until the first connection to a marked endpoint.
fn comes(to: SocketAddr, start: Instant) -> Result<Option<Duration>> {
    while start.elapsed() < LIMIT {
        if ask(to, LONG)? == Seen::Marked {
            return Ok(Some(start.elapsed()));
        }
        wait(start);
    }
    Ok(None)
}

/// Until there are no more connections to a marked endpoint: so long after the last as it takes to the
/// next while it is there, on the average.
fn goes(to: SocketAddr, start: Instant) -> Result<Option<Duration>> {
    let (mut gone, mut misses) = (Duration::ZERO, 0);
    while start.elapsed() < LIMIT {
        match ask(to, LONG)? {
            Seen::Marked => misses = 0,
            Seen::Plain => misses += 1,
            Seen::Nobody => {}
        }
        if misses == BETWEEN {
            gone = start.elapsed();
        } else if misses == MISSES {
            return Ok(Some(gone));
        }
        wait(start);
    }
    Ok(None)
}

/// Until the first connection that nobody answers.
fn closes(to: SocketAddr, start: Instant) -> Result<Option<Duration>> {
    while start.elapsed() < LIMIT {
        let sent = start.elapsed();
        if ask(to, LONG)? == Seen::Nobody {
            return Ok(Some(sent));
        }
        wait(start);
    }
    Ok(None)
}

/// Until the first connection that somebody answers.
fn opens(to: SocketAddr, start: Instant) -> Result<Option<Duration>> {
    while start.elapsed() < LIMIT {
        if ask(to, SOON)? != Seen::Nobody {
            return Ok(Some(start.elapsed()));
        }
        wait(start);
    }
    Ok(None)
}

/// How long after `start` the last of some Services answers; none: too late.
pub(super) fn all_answer(
    services: impl Iterator<Item = u32>,
    start: Instant,
    mut check: impl FnMut() -> Result<()>,
) -> Result<Option<Duration>> {
    for i in services {
        let mut last = Instant::now();
        while ask(load_balancer(i), LONG.min(start.elapsed() / 100).max(SOON))? == Seen::Nobody {
            if start.elapsed() > LIMIT {
                return Ok(None);
            }
            if last.elapsed() > Duration::from_secs(1) {
                check().context("before it served")?;
                last = Instant::now();
            }
            wait(start);
        }
    }
    Ok(Some(start.elapsed()))
}
