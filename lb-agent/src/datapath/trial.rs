//! Whether this kernel takes the programs: each is loaded by itself, on maps that nobody else has and
//! that are gone afterwards. Nothing is pinned or attached.

use anyhow::{Context as _, Result};
use aya::{
    EbpfLoader,
    programs::{CgroupSockAddr, ProgramError},
};

use super::OBJECT;
use crate::pins::PROGRAMS;

/// What the verifier says of a program.
#[derive(Debug)]
pub struct Trial {
    /// As in [`PROGRAMS`].
    pub name: &'static str,
    /// How many instructions it looked at, or why it refuses.
    pub verdict: Result<u32, String>,
}

/// All programs, in their order. Fails if not even the maps can be made.
pub fn trials() -> Result<Vec<Trial>> {
    let mut programs = EbpfLoader::new().load(OBJECT).context("cannot make the maps")?;
    let mut trials = Vec::new();
    for name in PROGRAMS {
        let program: &mut CgroupSockAddr =
            programs.program_mut(name).context("it is not in the object")?.try_into()?;
        let verdict = match program.load() {
            // Kernels before 5.16 do not tell.
            Ok(()) => Ok(program.info()?.verified_instruction_count().unwrap_or(0)),
            Err(error) => Err(why(&error)),
        };
        trials.push(Trial { name, verdict });
    }
    Ok(trials)
}

/// What the verifier says of a program after it has said why it refuses it.
const STATISTICS: [&str; 3] = ["processed ", "stack depth ", "verification time "];

/// One line: the verifier's last words before its statistics are the reason.
fn why(error: &ProgramError) -> String {
    let ProgramError::LoadError { io_error, verifier_log } = error else {
        return error.to_string();
    };
    match reason(&verifier_log.to_string()) {
        Some(reason) => format!("{reason} ({io_error})"),
        None => io_error.to_string(),
    }
}

fn reason(log: &str) -> Option<&str> {
    let is_reason =
        |line: &&str| !line.is_empty() && !STATISTICS.iter().any(|words| line.starts_with(words));
    log.lines().map(str::trim).rfind(is_reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_is_what_stands_before_the_statistics() {
        let log = "1943: (85) call pc-1573\nno calls while holding a lock\n\
                   verification time 111596 usec\nstack depth 72+32\nprocessed 8512 insns\n";
        assert_eq!(reason(log), Some("no calls while holding a lock"));
        assert_eq!(reason("processed 0 insns\n"), None);
    }
}
