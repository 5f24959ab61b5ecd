//! How a command ends, and the exit code of each end.

use std::io;

use aya::{maps::MapError, sys::SyscallError};

use crate::{
    maps::OpenError,
    pins::{HomeError, Pins, shown},
};

/// What was asked for was looked up.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Answer {
    /// It is there, and well.
    Yes,
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
    /// 0 or 1.
    pub const fn code(self) -> u8 {
        match self {
            Self::Yes => 0,
            Self::No => 1,
        }
    }
}

impl Failure {
    /// 2, 3 or 4; 1 if the answer was lost on its way.
    pub const fn code(&self) -> u8 {
        match self {
            Self::Output(_) => 1,
            Self::Usage(_) => 2,
            Self::Permission(_) => 3,
            Self::Unreachable(_) => 4,
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
        _ => Failure::Unreachable(format!("{what}: {error}")),
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
    use super::*;

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
    }

    #[test]
    fn a_reader_that_went_is_told_from_a_full_disk() {
        let failure = |errno| Failure::from(io::Error::from_raw_os_error(errno));
        assert!(failure(libc::EPIPE).is_reader_gone());
        assert!(!failure(libc::ENOSPC).is_reader_gone());
    }
}
