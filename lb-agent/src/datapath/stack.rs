//! How much stack the programs need, seen in their instructions.
//!
//! The functions on the way to any instruction have 512 bytes together. Linux 6.1 rounds each up to 32
//! bytes, later kernels to 16, so that nobody would see it here.

use std::collections::{BTreeMap, BTreeSet};

use aya_obj::{Object, generated::bpf_insn};

use super::{
    OBJECT,
    locks::{CALL, EXIT, next},
};

const LIMIT: usize = 512;
const ROUNDED_TO: usize = 32;
/// The register that points to the end of the frame.
const FRAME: u8 = 10;
const COPY: u8 = 0xbf;
const ADD_NUMBER: u8 = 0x07;

/// How deep in the frame an instruction reaches; `before` is the one before it.
fn depth(before: bpf_insn, instruction: bpf_insn) -> usize {
    let offset = match instruction.code & 7 {
        // Load: from the source; store: to the destination.
        1 if instruction.src_reg() == FRAME => instruction.off.into(),
        2 | 3 if instruction.dst_reg() == FRAME => instruction.off.into(),
        _ if instruction.code == ADD_NUMBER
            && before.code == COPY
            && before.src_reg() == FRAME
            && before.dst_reg() == instruction.dst_reg() =>
        {
            instruction.imm
        }
        _ => 0,
    };
    usize::try_from(-offset).unwrap_or(0)
}

/// The frame of the function that begins at `start`, and the functions that it calls.
fn frame(code: &[bpf_insn], start: usize) -> (usize, BTreeSet<usize>) {
    let (mut deepest, mut called) = (1, BTreeSet::new());
    let mut seen = BTreeSet::new();
    let mut left = vec![start];
    while let Some(at) = left.pop() {
        if !seen.insert(at) {
            continue;
        }
        deepest = deepest.max(depth(code[at.saturating_sub(1)], code[at]));
        if code[at].code == CALL && code[at].src_reg() == 1 {
            called.extend(at.checked_add_signed(code[at].imm as isize + 1));
        }
        if code[at].code != EXIT {
            left.extend(next(code, at).into_iter().flatten());
        }
    }
    (deepest.next_multiple_of(ROUNDED_TO), called)
}

/// The most that is in use at one time from `start` on.
fn in_use(code: &[bpf_insn], start: usize, known: &mut BTreeMap<usize, usize>) -> usize {
    if let Some(known) = known.get(&start) {
        return *known;
    }
    let (own, called) = frame(code, start);
    let deepest = called.into_iter().map(|at| in_use(code, at, known)).max().unwrap_or(0);
    known.insert(start, own + deepest);
    own + deepest
}

#[test]
fn no_program_needs_more_stack_than_the_oldest_kernel_gives() {
    let mut object = Object::parse(OBJECT).unwrap();
    let sections = object.functions.keys().map(|(section, _)| *section).collect();
    object.relocate_calls(&sections).unwrap();
    let mut needed = BTreeMap::new();
    for (name, program) in &object.programs {
        let code = &object.functions[&program.function_key()].instructions;
        needed.insert(name, in_use(code, 0, &mut BTreeMap::new()));
    }
    println!("{needed:?}");
    assert!(needed.len() == crate::pins::PROGRAMS.len() && needed.values().any(|n| *n > 256));
    assert!(needed.values().all(|needed| *needed <= LIMIT), "bytes of stack: {needed:?}");
}
