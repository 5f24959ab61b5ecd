//! Who answered how often: counted, judged, drawn.

use std::{
    collections::BTreeMap,
    fmt, io,
    net::{SocketAddr, SocketAddrV4},
};

use super::{client::Outcome, network::Pod, services::TARGET_PORT};

/// Counts of outcomes.
#[derive(Debug, Default)]
pub(super) struct Spread {
    /// By name, and where it was reached.
    answers: BTreeMap<(String, SocketAddr), usize>,
    failures: BTreeMap<i32, usize>,
    /// What `getpeername()` told a client, if that is not the address that was dialled.
    misnamed: Option<SocketAddr>,
    total: usize,
}

impl Spread {
    /// Of the outcomes of requests to one address.
    pub(super) fn of(outcomes: &[Outcome], dialled: SocketAddr) -> Self {
        let mut spread = Self { total: outcomes.len(), ..Self::default() };
        for outcome in outcomes {
            match outcome {
                Outcome::Answer { peer, backend, reached } => {
                    *spread.answers.entry((backend.clone(), *reached)).or_default() += 1;
                    if *peer != dialled {
                        spread.misnamed = Some(*peer);
                    }
                }
                Outcome::Failure(errno) => *spread.failures.entry(*errno).or_default() += 1,
            }
        }
        spread
    }

    pub(super) fn total(&self) -> usize {
        self.total
    }

    /// Somebody who answered, and where it was reached.
    pub(super) fn example(&self) -> Option<&(String, SocketAddr)> {
        self.answers.keys().next()
    }

    /// All of these answered, each at its own address, nobody else did, and no request failed; or
    /// what is not so.
    pub(super) fn is_over(&self, backends: &[Pod]) -> Result<(), String> {
        self.all_answered()?;
        let mut missing: Vec<_> = backends.iter().map(identity).collect();
        for (name, reached) in self.answers.keys() {
            match missing.iter().position(|expected| expected == &(name.clone(), *reached)) {
                Some(i) => drop(missing.swap_remove(i)),
                None => return Err(format!("{name} answered at {reached}, which is no backend")),
            }
        }
        if let Some((silent, _)) = missing.first() {
            return Err(format!("{silent} never answered, in {} requests", self.total));
        }
        match self.misnamed {
            Some(peer) => Err(format!("getpeername() told a client {peer}")),
            None => Ok(()),
        }
    }

    /// No request failed; or what is not so.
    pub(super) fn all_answered(&self) -> Result<(), String> {
        match self.failures.first_key_value() {
            Some((errno, count)) => {
                Err(format!("{count} of {} requests: {}", self.total, error(*errno)))
            }
            None => Ok(()),
        }
    }

    /// Every request failed in this way; or what is not so.
    pub(super) fn is_failure(&self, errno: i32) -> Result<(), String> {
        if let Some(((name, _), count)) = self.answers.first_key_value() {
            return Err(format!("{name} answered {count} of {} requests", self.total));
        }
        match self.failures.keys().find(|found| **found != errno) {
            Some(other) => Err(format!("{}, and not: {}", error(*other), error(errno))),
            None if self.total == 0 => Err("no request was made".to_owned()),
            None => Ok(()),
        }
    }
}

/// A bar for everybody who answered would be this long if one alone did.
const BAR: usize = 60;

impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for ((name, _), count) in &self.answers {
            let bar = "#".repeat(count * BAR / self.total);
            writeln!(f, "     {name:7} {count:4}  {bar}")?;
        }
        for (errno, count) in &self.failures {
            writeln!(f, "     {:7} {count:4}  {}", "nobody", error(*errno))?;
        }
        Ok(())
    }
}

/// What a backend says of itself.
fn identity(pod: &Pod) -> (String, SocketAddr) {
    (pod.name.clone(), SocketAddrV4::new(pod.address, TARGET_PORT).into())
}

/// As the system words it.
fn error(errno: i32) -> io::Error {
    io::Error::from_raw_os_error(errno)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spread(lines: &[&str]) -> Spread {
        let outcomes: Vec<_> = lines.iter().map(|line| line.parse().unwrap()).collect();
        Spread::of(&outcomes, "10.96.0.10:80".parse().unwrap())
    }

    const A: &str = "10.96.0.10:80 web-1 10.244.7.11:8080";
    const B: &str = "10.96.0.10:80 web-2 10.244.7.12:8080";

    #[test]
    fn all_of_them_and_nobody_else() {
        assert_eq!(spread(&[A, B, A]).is_over(&Pod::backends(2)), Ok(()));
        let wrong = |lines, count| spread(lines).is_over(&Pod::backends(count)).unwrap_err();
        assert_eq!(wrong(&[A, A], 2), "web-2 never answered, in 2 requests");
        assert!(wrong(&[A, B], 1).starts_with("web-2 answered"));
        assert!(wrong(&["10.96.0.10:80 web-1 10.244.7.12:8080"], 1).contains("no backend"));
        assert!(wrong(&[A, "errno 111"], 1).starts_with("1 of 2 requests: Connection refused"));
        assert!(wrong(&["10.244.7.11:8080 web-1 10.244.7.11:8080"], 1).contains("getpeername"));
    }

    #[test]
    fn refused_is_not_unreachable() {
        assert_eq!(spread(&["errno 111", "errno 111"]).is_failure(111), Ok(()));
        assert!(spread(&["errno 111", "errno 1"]).is_failure(111).is_err());
        assert!(spread(&["errno 111", A]).is_failure(111).is_err());
        assert!(spread(&[]).is_failure(111).is_err());
    }

    #[test]
    fn the_table() {
        let table = spread(&[A, A, B, "errno 111"]).to_string();
        let lines: Vec<_> = table.lines().map(str::trim).collect();
        assert_eq!(lines[0], format!("web-1      2  {}", "#".repeat(30)));
        assert_eq!(lines[1], format!("web-2      1  {}", "#".repeat(15)));
        assert_eq!(lines[2], "nobody     1  Connection refused (os error 111)");
    }
}
