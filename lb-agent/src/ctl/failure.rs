//! How a command ends, and the exit code of each end.

use std::io;

use aya::{maps::MapError, sys::SyscallError};

use crate::{
    maps::OpenError,
    pins::{HomeError, Pins, shown},
};

/// All exit codes: the one table of them, which `--help` shows and README.md repeats.
pub(super) const CODES: [(u8, &str); 9] = [
    (0, "yes: found, served, healthy"),
    (1, "no: not found, not served; status: programs or maps are wrong"),
    (2, "the command line makes no sense"),
    (3, "no permission: root's rights are needed (sudo)"),
    (4, "nothing to look into: no bpf file system, or no maps that can be read"),
    (5, "the answer could not be written"),
    (6, "status: no agent is running; what is in the maps serves on"),
    (7, "status: an agent is running, and does not say whether it is ready"),
    (8, "status: the agent says that it is not ready"),
];

/// [`CODES`], for `--help`.
pub(super) fn codes(only: &[u8]) -> String {
    let wanted = CODES.iter().filter(|(code, _)| only.is_empty() || only.contains(code));
    let lines: Vec<_> = wanted.map(|(code, meaning)| format!("\n  {code}  {meaning}")).collect();
    format!("Exit codes:{}", lines.concat())
}

/// What was asked for was looked up.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Answer {
    /// It is there, and well.
    Yes,
    /// The agent says that it is not ready.
    NotReady,
    /// The agent does not say whether it is ready.
    Silent,
    /// There is no agent.
    Unattended,
    /// It is not there, or not well; what was found is printed.
    No,
}

/// Nothing could be looked up.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The command line makes no sense.
    #[error("{0}")]
    Usage(String),
    /// The kernel does not let this process look.
    #[error("{0}")]
    Permission(String),
    /// There are no maps to look into.
    #[error("{0}")]
    Unreachable(String),
    /// The answer cannot be written.
    #[error("cannot write the answer: {0}")]
    Output(#[from] io::Error),
}

impl Answer {
    /// See `CODES`.
    pub const fn code(self) -> u8 {
        match self {
            Self::Yes => 0,
            Self::No => 1,
            Self::Unattended => 6,
            Self::Silent => 7,
            Self::NotReady => 8,
        }
    }
}

impl Failure {
    /// See `CODES`.
    pub const fn code(&self) -> u8 {
        match self {
            Self::Usage(_) => 2,
            Self::Permission(_) => 3,
            Self::Unreachable(_) => 4,
            Self::Output(_) => 5,
        }
    }

    /// Whether the reader of the answer has gone, as `head` does; that is no error.
    pub fn is_reader_gone(&self) -> bool {
        matches!(self, Self::Output(error) if error.kind() == io::ErrorKind::BrokenPipe)
    }
}

/// Why something pinned cannot be looked at: `what` failed with `error`.
pub(super) fn kernel(what: &str, error: &io::Error) -> Failure {
    match error.raw_os_error() {
        Some(libc::EPERM) => Failure::Permission(format!(
            "{what}: {error}: the capability CAP_BPF is missing; run as root (`sudo lbctl ...`), or \
             give the process CAP_BPF"
        )),
        Some(libc::EACCES) => Failure::Permission(format!(
            "{what}: {error}: pins are root's; run as root (`sudo lbctl ...`), or give the process \
             CAP_BPF and CAP_DAC_OVERRIDE"
        )),
        Some(libc::ENOENT) => Failure::Unreachable(format!(
            "{what}: {error}: somebody removed it; an agent that runs pins it again within 30 s, else start \
             lb-agent"
        )),
        _ => Failure::Unreachable(format!("{what}: {error}")),
    }
}

/// Why a cgroup cannot be asked for its programs.
pub(super) fn cgroup(error: &io::Error) -> Failure {
    let what = "cannot ask the cgroup for its programs";
    match error.raw_os_error() {
        Some(libc::EPERM) => Failure::Permission(format!(
            "{what}: {error}: the capability CAP_NET_ADMIN is missing; run as root (`sudo lbctl ...`), or \
             give the process CAP_NET_ADMIN"
        )),
        _ => kernel(what, error),
    }
}

/// Why the directory of pins cannot be looked at.
pub(super) fn home(error: &HomeError) -> Failure {
    match error {
        HomeError::Io { error: cause, .. } => kernel(&error.to_string(), cause),
        other => Failure::Unreachable(other.to_string()),
    }
}

pub(super) fn open(error: &OpenError) -> Failure {
    match error {
        OpenError::Open {
            error: MapError::SyscallError(SyscallError { io_error: cause, .. }),
            ..
        }
        | OpenError::Memory { error: cause, .. } => kernel(&error.to_string(), cause),
        other => Failure::Unreachable(other.to_string()),
    }
}

/// A map cannot be read.
pub(super) fn map(name: &str, error: &MapError) -> Failure {
    let what = format!("cannot read the map {name}");
    match error {
        MapError::SyscallError(SyscallError { io_error, .. }) => kernel(&what, io_error),
        other => Failure::Unreachable(format!("{what}: {other}")),
    }
}

pub(super) fn unreadable(pins: &Pins, error: &MapError) -> Failure {
    let what = format!("cannot read the maps below {}", shown(pins.root()).display());
    match error {
        MapError::SyscallError(SyscallError { io_error, .. }) => kernel(&what, io_error),
        other => Failure::Unreachable(format!("{what}: {other}")),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;
    use crate::ctl::Cli;

    #[test]
    fn no_permission_names_the_capability_and_the_remedy() {
        for errno in [libc::EPERM, libc::EACCES] {
            let failure = kernel("cannot open x", &io::Error::from_raw_os_error(errno));
            let text = failure.to_string();
            assert_eq!(failure.code(), 3);
            assert!(text.contains("CAP_BPF") && text.contains("sudo lbctl"), "{text}");
        }
        let failure = kernel("cannot open x", &io::Error::from_raw_os_error(libc::ENOENT));
        assert_eq!(failure.code(), 4);
        assert!(failure.to_string().contains("start lb-agent"), "{failure}");
        let failure = cgroup(&io::Error::from_raw_os_error(libc::EPERM));
        assert!(failure.code() == 3 && failure.to_string().contains("CAP_NET_ADMIN"), "{failure}");
    }

    #[test]
    fn each_end_has_a_code_of_the_one_table() {
        let output = || Failure::Output(io::Error::from_raw_os_error(libc::ENOSPC));
        let answers =
            [Answer::Yes, Answer::No, Answer::Unattended, Answer::Silent, Answer::NotReady];
        let failures = [Failure::Usage, Failure::Permission, Failure::Unreachable]
            .map(|failure| failure(String::new()).code());
        let mut codes: Vec<u8> = answers.map(Answer::code).into_iter().chain(failures).collect();
        codes.push(output().code());
        codes.sort_unstable();
        assert_eq!(codes, CODES.map(|(code, _)| code));
        // What is worst of several is what counts.
        assert!(answers.iter().all(|answer| *answer <= Answer::No && *answer >= Answer::Yes));

        let readme = include_str!("../../../README.md");
        let rows: Vec<_> = readme.lines().skip_while(|line| *line != "| exit code | |").collect();
        for ((code, meaning), row) in CODES.iter().zip(&rows[2..]) {
            assert_eq!(*row, format!("| {code} | {meaning} |"), "in README.md");
        }
        let help = Cli::command().render_long_help().to_string();
        for (code, meaning) in CODES {
            assert!(help.contains(&format!("\n  {code}  {meaning}\n")), "{help}");
        }
    }

    #[test]
    fn a_reader_that_went_is_told_from_a_full_disk() {
        let failure = |errno| Failure::from(io::Error::from_raw_os_error(errno));
        assert!(failure(libc::EPIPE).is_reader_gone());
        assert!(!failure(libc::ENOSPC).is_reader_gone());
    }
}
