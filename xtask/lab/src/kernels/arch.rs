//! What differs between the architectures that are booted.

use std::env::consts;

/// A machine as QEMU makes it, and what others call its architecture.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Arch {
    /// In Rust's words.
    pub(crate) name: &'static str,
    /// In Debian's.
    pub(super) debian: &'static str,
    pub(super) qemu: &'static str,
    pub(super) machine: &'static [&'static str],
    /// The kernel's name of the serial line.
    pub(super) console: &'static str,
}

const ALL: [Arch; 2] = [
    Arch {
        name: "x86_64",
        debian: "amd64",
        qemu: "qemu-system-x86_64",
        machine: &["-machine", "pc"],
        console: "ttyS0",
    },
    Arch {
        name: "aarch64",
        debian: "arm64",
        qemu: "qemu-system-aarch64",
        // Of the processors that QEMU knows, one whose pointer authentication need not be emulated.
        machine: &["-machine", "virt", "-cpu", "cortex-a72"],
        console: "ttyAMA0",
    },
];

impl Arch {
    /// What [`Arch::named`] knows.
    pub(super) const NAMES: [&str; 2] = [ALL[0].name, ALL[1].name];

    pub(super) fn named(name: &str) -> Option<&'static Self> {
        ALL.iter().find(|arch| arch.name == name)
    }

    /// What this machine is.
    pub(super) fn own() -> &'static str {
        consts::ARCH
    }
}
