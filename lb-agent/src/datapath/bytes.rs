//! What the programs do byte by byte, seen in their instructions.
//!
//! LLVM makes a call of what zeroes or moves more than a word or so, and the functions that it calls go
//! byte by byte: with one of them, every connect() of a node took as long again as for its lookups.

use aya_obj::{Object, generated::bpf_insn};

use super::{OBJECT, locks::CALL};

/// The functions that LLVM calls.
const FUNCTIONS: [&str; 3] = ["memcpy", "memmove", "memset"];

/// An instruction without what is not yet known before the functions are put together.
fn shape(instruction: bpf_insn) -> (u8, u8, u8, i16) {
    (instruction.code, instruction.dst_reg(), instruction.src_reg(), instruction.off)
}

/// Whether the function is part of the program.
fn has(program: &[bpf_insn], function: &[bpf_insn]) -> bool {
    let shapes = |code: &[bpf_insn]| code.iter().copied().map(shape).collect::<Vec<_>>();
    let function = shapes(function);
    shapes(program).windows(function.len()).any(|part| part == function)
}

#[test]
fn no_program_zeroes_or_copies_byte_by_byte() {
    let mut object = Object::parse(OBJECT).unwrap();
    let named = |name: &&'static str| {
        let function = object.functions.values().find(|function| function.name == *name);
        (*name, function.map(|function| function.instructions.clone()))
    };
    let functions: Vec<_> = FUNCTIONS.iter().map(named).collect();
    let sections = object.functions.keys().map(|(section, _)| *section).collect();
    object.relocate_calls(&sections).unwrap();
    let mut found = Vec::new();
    let mut calls = 0;
    for (name, program) in &object.programs {
        let code = &object.functions[&program.function_key()].instructions;
        calls += code.iter().filter(|i| i.code == CALL && i.src_reg() == 1).count();
        for (function, instructions) in &functions {
            if instructions.as_ref().is_some_and(|function| has(code, function)) {
                found.push(format!("{name}: {function}"));
            }
        }
    }
    assert!(calls > 10, "{calls} calls of functions: are these the programs?");
    assert_eq!(found, [] as [String; 0]);
}
