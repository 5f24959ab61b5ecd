//! socklb and kube-proxy's own code on the same random clusters: they agree, or they differ by a
//! rule that says why ([`oracle::deviations`]).
//!
//! `cargo xtask oracle` builds the other side and runs this. It needs no root.

mod oracle {
    pub(crate) mod case;
    pub(crate) mod deviations;
    pub(crate) mod duplicates;
    pub(crate) mod history;
    pub(crate) mod objects;
    pub(crate) mod outcome;
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
    deviations::{Applied, asked},
    history::case,
    outcome::{Outcomes, differences, wanted},
    program::{PROGRAM, Program},
    socklb::socklb,
};
use proptest::test_runner::{Config, RngSeed, TestCaseError, TestError, TestRunner};

const CASES: u32 = 10_000;
/// Processes, each with a part of the cases.
const WORKERS: u32 = 2;
/// Unoptimized, the generators hold many large objects by value.
const STACK: usize = 64 << 20;

/// What was compared, so that nobody takes silence for agreement.
#[derive(Debug, Default)]
struct Seen {
    frontends: usize,
    with_backends: usize,
    refused: usize,
    unreachable: usize,
    with_affinity: usize,
    with_sources: usize,
    at_other_nodes: usize,
    health_checks: usize,
    no_local: usize,
    deviations: Applied,
}

impl Seen {
    fn is_of_everything(&self) -> bool {
        let Self { frontends: _, with_backends, refused, unreachable, with_affinity, .. } = self;
        let Self { with_sources, at_other_nodes, health_checks, no_local, .. } = self;
        [with_backends, refused, unreachable, with_affinity, with_sources, at_other_nodes]
            .into_iter()
            .chain([health_checks, no_local])
            .all(|seen| *seen > 100)
    }

    fn note(&mut self, outcomes: &Outcomes) {
        self.health_checks += outcomes.health.len();
        self.no_local += outcomes.no_local.len();
        for (frontend, outcome) in &outcomes.frontends {
            self.frontends += 1;
            self.at_other_nodes += usize::from(frontend.ends_with("(node)"));
            self.with_backends += usize::from(!outcome.backends.is_empty());
            self.refused += usize::from(outcome.empty == "refuse");
            self.unreachable += usize::from(outcome.empty == "unreachable");
            self.with_affinity += usize::from(outcome.affinity > 0);
            self.with_sources += usize::from(!outcome.sources.is_empty());
        }
    }
}

/// Says where the two sides differ after the first step after which they do.
fn compare(program: &mut Program, case: &Case, tally: &mut Seen) -> Result<(), String> {
    let views = program.ask(&asked(case, &mut tally.deviations));
    for (i, (view, found)) in views.iter().zip(socklb(case)).enumerate() {
        let wanted = wanted(view, &mut tally.deviations);
        let differences = differences(&wanted, &found);
        if !differences.is_empty() {
            return Err(format!("after step {}:\n{differences}", i + 1));
        }
        tally.note(&wanted);
    }
    Ok(())
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
                assert!(cases < CASES || tally.is_of_everything(), "a subject is hardly seen");
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
