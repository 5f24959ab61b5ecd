//! What the programs do while they hold a lock, seen in their instructions.
//!
//! Linux before 6.9 refuses a program that calls a function between `bpf_spin_lock` and
//! `bpf_spin_unlock`, and `memset` is one: LLVM makes a call of it wherever more than a word is zeroed
//! at once. Later kernels take such programs, so that nobody would see it here.

use aya_obj::{Object, generated::bpf_insn};

use super::OBJECT;

const LOCK: i32 = 93;
const UNLOCK: i32 = 94;
pub(super) const CALL: u8 = 0x85;
pub(super) const EXIT: u8 = 0x95;
const LOAD_64_BITS: u8 = 0x18;
const JUMP: u8 = 0x05;
const JUMP_FAR: u8 = 0x06;

fn is_helper(instruction: bpf_insn, number: i32) -> bool {
    instruction.code == CALL && instruction.src_reg() == 0 && instruction.imm == number
}

/// Where a lock is taken.
fn locks(code: &[bpf_insn]) -> impl Iterator<Item = usize> + '_ {
    (0..code.len()).filter(|at| is_helper(code[*at], LOCK))
}

/// The instructions that may come next.
pub(super) fn next(code: &[bpf_insn], at: usize) -> [Option<usize>; 2] {
    let instruction = &code[at];
    let to = |distance: i32| at.checked_add_signed(distance as isize + 1);
    match instruction.code {
        LOAD_64_BITS => [to(1), None],
        JUMP => [to(instruction.off.into()), None],
        JUMP_FAR => [to(instruction.imm), None],
        // The classes of the jumps, conditional ones.
        other if matches!(other & 7, 5 | 6) && other != CALL => [to(0), to(instruction.off.into())],
        _ => [to(0), None],
    }
}

/// The calls, and the ends of the function, that may be reached with a lock taken at `lock`.
fn called_under(code: &[bpf_insn], lock: usize) -> Vec<usize> {
    let mut seen = vec![false; code.len()];
    let mut left: Vec<usize> = next(code, lock).into_iter().flatten().collect();
    let mut found = Vec::new();
    while let Some(at) = left.pop() {
        if seen[at] || is_helper(code[at], UNLOCK) {
            continue;
        }
        seen[at] = true;
        if matches!(code[at].code, CALL | EXIT) {
            found.push(at);
        }
        if code[at].code != EXIT {
            left.extend(next(code, at).into_iter().flatten());
        }
    }
    found.sort_unstable();
    found
}

#[test]
fn no_program_calls_anything_while_it_holds_a_lock() {
    let object = Object::parse(OBJECT).unwrap();
    let mut held = 0;
    let mut calls = Vec::new();
    for function in object.functions.values() {
        for lock in locks(&function.instructions) {
            held += 1;
            calls.extend(
                called_under(&function.instructions, lock)
                    .into_iter()
                    .map(|at| format!("{}: {at}, locked at {lock}", function.name)),
            );
        }
    }
    assert!(held > 10, "{held} locks: are these the programs?");
    assert!(calls.is_empty(), "calls, by their instructions: {calls:#?}");
}

#[test]
fn a_call_is_found_on_every_way_and_only_before_the_lock_is_released() {
    let made = |code, source, off, imm| bpf_insn {
        code,
        _bitfield_1: bpf_insn::new_bitfield_1(0, source),
        off,
        imm,
    };
    let helper = |number| made(CALL, 0, 0, number);
    let jump = |code, off| made(code, 0, off, 0);
    let code = [
        helper(1),
        helper(LOCK),
        jump(0x15, 3),
        jump(LOAD_64_BITS, 0),
        jump(0, 0),
        jump(JUMP, 1),
        made(CALL, 1, 0, -1),
        jump(0x55, -5),
        helper(UNLOCK),
        helper(1),
        jump(EXIT, 0),
    ];
    assert_eq!(locks(&code).collect::<Vec<_>>(), [1]);
    assert_eq!(called_under(&code, 1), [6]);
    let forgotten = [helper(LOCK), jump(0xb7, 0), jump(EXIT, 0)];
    assert_eq!(called_under(&forgotten, 0), [2]);
}
