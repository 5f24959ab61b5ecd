//! `affinity` and `held`: where clients stay, and how much of that a cgroup has.

use core::mem::offset_of;

use bytemuck::{Pod, Zeroable, must_cast};

use super::{Addr, Peer, Port, bpf_spin_lock};

/// Key of [`AFFINITY`](super::AFFINITY): a client of a service port. 16 bytes.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd, Pod, Zeroable)]
#[repr(C)]
pub struct AffinityKey {
    /// Cookie of the client's network namespace: it stands for the client's address (kube-proxy H1).
    pub netns: u64,
    /// Id of the service port.
    pub service: u32,
    /// 4 or 6: a client has an address of either family, and so has the service port.
    pub family: u32,
}

/// What [`AFFINITY`](super::AFFINITY) says of a client.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct Bond {
    /// When the client connected last, in nanoseconds of the monotonic clock.
    pub used: u64,
    /// Where it went.
    pub backend: Peer,
    /// Always 0.
    pub reserved: [u8; 6],
}

impl Bond {
    /// Of a client that has not connected yet.
    pub const NONE: Self = Self {
        used: 0,
        backend: Peer { addr: Addr::from_words([0; 4]), port: Port::from_raw(0) },
        reserved: [0; 6],
    };

    /// Of a client that connected to `backend` at this time. Made of words: LLVM would zero the rest by a
    /// call.
    #[inline(always)]
    pub const fn new(used: u64, backend: Peer) -> Self {
        let [low, high]: [u32; 2] = must_cast(used);
        let [a, b, c, d] = backend.addr.words();
        let [first, second] = backend.port.raw().to_ne_bytes();
        must_cast([low, high, a, b, c, d, u32::from_ne_bytes([first, second, 0, 0]), 0])
    }

    /// Whether there is one.
    #[inline(always)]
    pub const fn is_made(&self) -> bool {
        self.used != 0
    }
}

/// Value of [`AFFINITY`](super::AFFINITY). 64 bytes.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct Affinity {
    /// What it says.
    pub bond: Bond,
    /// Whose it is: a hash element may be recycled under its reader.
    pub key: AffinityKey,
    /// In the name of which cgroup it was made, see [`HELD`](super::HELD).
    pub cgroup: u64,
    /// Of two programs that choose a backend for one client at one time, the second takes the choice
    /// of the first.
    pub lock: bpf_spin_lock,
    /// Always 0.
    pub reserved: u32,
}

impl Affinity {
    /// What stands in the map under `key`, made in the name of a cgroup.
    #[inline(always)]
    pub const fn new(key: AffinityKey, bond: Bond, cgroup: u64) -> Self {
        Self { bond, key, cgroup, lock: bpf_spin_lock::UNLOCKED, reserved: 0 }
    }
}

/// Value of [`HELD`](super::HELD): what was made in the name of a cgroup, and takes memory of the
/// agent's or room that others need. The programs count up, and the agent puts it right now and then:
/// nothing is done when a socket is closed or a bond ends. 16 bytes.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct Held {
    /// Values of [`MORE_FLOWS`](super::MORE_FLOWS).
    pub more_flows: u32,
    /// Entries of [`AFFINITY`](super::AFFINITY).
    pub bonds: u32,
    /// Two programs may count at one time.
    pub lock: bpf_spin_lock,
    /// Always 0.
    pub reserved: u32,
}

impl Held {
    /// Nothing yet.
    pub const NOTHING: Self =
        Self { more_flows: 0, bonds: 0, lock: bpf_spin_lock::UNLOCKED, reserved: 0 };
    /// The most values of [`MORE_FLOWS`](super::MORE_FLOWS) that the tasks of one cgroup may have: 8 MB.
    pub const MAX_MORE_FLOWS: u32 = 1024;
    /// The most cgroups at one time: more than a node has.
    pub const MAX_CGROUPS: u32 = 16_384;
    /// The most bonds that one cgroup may have in any case.
    pub const FEW_BONDS: u32 = 1024;

    /// The most entries of [`AFFINITY`](super::AFFINITY) that may be made in the name of one cgroup,
    /// where there is room for `of_all`: a sixteenth of them, or [`FEW_BONDS`](Self::FEW_BONDS).
    pub const fn max_bonds(of_all: u32) -> u32 {
        let share = of_all / 16;
        if share > Self::FEW_BONDS { share } else { Self::FEW_BONDS }
    }
}

const _: () = {
    assert!(size_of::<AffinityKey>() == 16);
    assert!(size_of::<Bond>() == 32);
    assert!(size_of::<Affinity>() == 64);
    assert!(offset_of!(Affinity, lock) == 56);
    assert!(size_of::<Held>() == 16);
};
