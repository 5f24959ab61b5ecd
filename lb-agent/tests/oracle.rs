//! socklb and kube-proxy's own code on the same random clusters: they agree, or they differ by a
//! rule that says why ([`oracle::deviations`]).
//!
//! `cargo xtask oracle` builds the other side and runs this. It needs no root.

mod oracle {
    pub(crate) mod case;
    pub(crate) mod claims;
    pub(crate) mod deviations;
    pub(crate) mod duplicates;
    pub(crate) mod history;
    pub(crate) mod judge;
    pub(crate) mod objects;
    pub(crate) mod outcome;
    pub(crate) mod packets;
    pub(crate) mod program;
    pub(crate) mod services;
    pub(crate) mod slices;
    pub(crate) mod socklb;
}

use std::{
    env,
    fmt::Write as _,
    fs,
    path::Path,
    thread,
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use oracle::{
    case::Case,
    history::case,
    judge::{Seen, compare},
    outcome::Fate,
    program::{PROGRAM, Program},
};
use proptest::test_runner::{Config, RngSeed, TestCaseError, TestError, TestRunner};

const CASES: u32 = 3_000;
/// Processes, each with a part of the cases.
const WORKERS: u32 = 2;
/// Unoptimized, the generators hold many large objects by value.
const STACK: usize = 64 << 20;

fn is_of_everything(seen: &Seen) -> bool {
    let fates = [
        Fate::Untouched,
        Fate::Forwarded,
        Fate::Refused,
        Fate::UnknownPort,
        Fate::Unreachable,
        Fate::Denied,
    ];
    let Seen { with_affinity, at_other_nodes, contested, health_checks, .. } = seen;
    let Seen { no_local, lists, starts, .. } = seen;
    fates
        .iter()
        .map(|fate| seen.fates.get(fate).copied().unwrap_or_default())
        .chain([*with_affinity, *at_other_nodes, *contested, *health_checks])
        .chain([*no_local, *lists, *starts])
        .all(|seen| seen > 100)
}

fn number(variable: &str) -> Option<u64> {
    Some(env::var(variable).ok()?.parse().expect("the number of cases and the seed are numbers"))
}

#[test]
fn socklb_decides_as_kube_proxy_does() {
    assert!(
        env::var_os(PROGRAM).is_some(),
        "{PROGRAM} names no program of oracle/: `cargo xtask oracle` builds it and runs this"
    );
    if let Some(file) = env::var_os("SOCKLB_ORACLE_REPLAY") {
        let text = fs::read_to_string(&file).expect("the file is there");
        let case = Case::from_yaml(&text);
        let outcome = compare(&mut Program::start(), &case, &mut Seen::default());
        assert!(outcome.is_ok(), "{}", outcome.unwrap_err());
        return;
    }
    let cases = number("SOCKLB_ORACLE_CASES").map_or(CASES, |cases| cases.try_into().expect("u32"));
    let seed = number("SOCKLB_ORACLE_SEED").unwrap_or_else(|| {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("it is after 1970");
        now.as_secs()
    });
    let started = Instant::now();
    let shares = (0..WORKERS).map(|i| (i, cases / WORKERS + u32::from(i < cases % WORKERS)));
    let workers: Vec<_> = shares
        .map(|(i, cases)| {
            let seed = seed.wrapping_add(u64::from(i) << 32);
            let worker = thread::Builder::new().stack_size(STACK);
            worker.spawn(move || work(cases, seed)).expect("a thread")
        })
        .collect();
    let ends: Vec<_> = workers.into_iter().map(|it| it.join().expect("a worker")).collect();
    let mut failures = String::new();
    for (i, end) in ends.into_iter().enumerate() {
        match end {
            Ok(tally) => {
                eprintln!("{tally:#?}");
                assert!(cases < CASES || is_of_everything(&tally), "a subject is hardly seen");
            }
            Err((difference, case)) => {
                let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("oracle-{i}.yaml"));
                fs::write(&file, &case).expect("the target directory can be written");
                write!(
                    failures,
                    "{difference}\n\nThe case, also in {0}; again with `cargo xtask oracle \
                     --replay {0}` or `--cases {cases} --seed {seed}`:\n{case}\n",
                    file.display()
                )
                .expect("memory");
            }
        }
    }
    eprintln!("{cases} cases of seed {seed} in {:.1?}", started.elapsed());
    assert!(failures.is_empty(), "{failures}");
}

/// Compares so many cases; else the difference and the smallest case that shows one.
fn work(cases: u32, seed: u64) -> Result<Seen, (String, String)> {
    let mut program = Program::start();
    let mut tally = Seen::default();
    let mut runner = TestRunner::new(Config {
        cases,
        rng_seed: RngSeed::Fixed(seed),
        failure_persistence: None,
        max_shrink_iters: 20_000,
        ..Config::default()
    });
    let cell = std::cell::RefCell::new((&mut program, &mut tally));
    let end = runner.run(&case(), |case| {
        let (program, tally) = &mut *cell.borrow_mut();
        compare(program, &case, tally).map_err(TestCaseError::fail)
    });
    match end {
        Ok(()) => Ok(tally),
        Err(TestError::Fail(reason, case)) => Err((reason.to_string(), case.yaml())),
        Err(TestError::Abort(reason)) => Err((reason.to_string(), String::new())),
    }
}
