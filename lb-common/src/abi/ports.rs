//! `ports`: what is true of a service port, and rarely needed.

use bytemuck::{Pod, Zeroable};

/// Element of [`PORTS`](super::PORTS), at the id of the service port: read only where a record has
/// [`Backend::OPTIONS`](super::Backend::OPTIONS). 8 bytes, which the programs read as one
/// word. So does the kernel write them, as far as is known, and promises nothing: no two of these fields may need
/// to change together.
///
/// It is changed where it stands, while sets of the service port are in use. What is said of a backend has no
/// room here: that is for a map at [`Backend::backend`](super::Backend::backend), beside the sets.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Pod, Zeroable)]
#[repr(C, align(8))]
pub struct PortOptions {
    /// For how many seconds after its last connection a client stays with its backend; 0: not at all.
    pub affinity: u32,
    /// How a backend is chosen. 0: each as likely as any other; there is no other way yet.
    pub algorithm: u8,
    /// Always 0. Room for what is asked of some service ports only.
    pub flags: u8,
    /// Always 0.
    pub reserved: [u8; 2],
}

impl PortOptions {
    /// Nothing but that clients stay for so many seconds.
    pub const fn with_affinity(seconds: u32) -> Self {
        Self { affinity: seconds, algorithm: 0, flags: 0, reserved: [0; 2] }
    }

    /// Whether it says nothing but what this version knows. A reader refuses everything else: whoever wrote
    /// it relies on it.
    #[inline(always)]
    pub const fn is_known(&self) -> bool {
        let [_, rest]: [u32; 2] = bytemuck::must_cast(*self);
        rest == 0
    }
}

const _: () = assert!(size_of::<PortOptions>() == 8);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_is_not_known_yet_is_refused() {
        assert!(PortOptions::default().is_known());
        assert!(PortOptions::with_affinity(u32::MAX).is_known());
        for at in 4..size_of::<PortOptions>() {
            let mut bytes = [0u8; size_of::<PortOptions>()];
            bytes[at] = 1;
            assert!(!bytemuck::must_cast::<_, PortOptions>(bytes).is_known(), "byte {at}");
        }
    }
}
