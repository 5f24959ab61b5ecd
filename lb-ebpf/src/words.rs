//! Values in memory, word by word.
//!
//! Of what zeroes more than a word, or copies between places that might overlap, LLVM makes a call of a
//! function that goes byte by byte, which takes longer than a lookup in a map.

use core::mem::MaybeUninit;

use bytemuck::Zeroable;
use lb_common::{Addr, abi::Peer};

/// Whether a value consists of words.
const fn is_of_words<T>() -> bool {
    size_of::<T>().is_multiple_of(4) && align_of::<T>() >= 4
}

/// Makes it all zero.
#[inline(always)]
pub(crate) fn clear<T: Zeroable>(place: &mut MaybeUninit<T>) -> &mut T {
    const { assert!(is_of_words::<T>()) };
    let words: *mut u32 = place.as_mut_ptr().cast();
    let mut word = 0;
    while word < size_of::<T>() / 4 {
        // SAFETY: within the place, and aligned.
        unsafe { words.add(word).write_volatile(0) };
        word += 1;
    }
    // SAFETY: zero is a value of it.
    unsafe { place.assume_init_mut() }
}

/// Makes a value that is there all zero.
#[inline(always)]
pub(crate) fn reset<T: Zeroable>(value: &mut T) {
    // SAFETY: a value is a place for one, and is one again afterwards.
    clear(unsafe { &mut *core::ptr::from_mut(value).cast::<MaybeUninit<T>>() });
}

/// A copy of a peer that begins at a multiple of four bytes.
///
/// # Safety
/// It is valid, and may be in a map that others write to.
#[inline(always)]
pub(crate) unsafe fn peer(from: *const Peer) -> Peer {
    let words: *const u32 = from.cast();
    // SAFETY: within the peer, and aligned.
    let word = |index| unsafe { words.add(index).read_volatile() };
    // SAFETY: as for the words.
    let port = unsafe { (*from).port };
    Peer { addr: Addr::from_words([word(0), word(1), word(2), word(3)]), port }
}

/// Copies a value.
///
/// # Safety
/// Both are valid, and one of them may be in a map that others write to.
#[inline(always)]
pub(crate) unsafe fn copy<T: Copy>(to: *mut T, from: *const T) {
    const { assert!(is_of_words::<T>()) };
    let (to, from): (*mut u32, *const u32) = (to.cast(), from.cast());
    let mut word = 0;
    while word < size_of::<T>() / 4 {
        // SAFETY: within the values, and aligned.
        unsafe { to.add(word).write_volatile(from.add(word).read_volatile()) };
        word += 1;
    }
}

/// Reads a word once more: the verifier then knows nothing of it again.
#[inline(always)]
pub(crate) fn anew(word: &u64) -> u64 {
    // SAFETY: a reference is valid.
    unsafe { core::ptr::from_ref(word).read_volatile() }
}
