//! socklb and kube-proxy's own code on the same random clusters: they agree, or they differ by a
//! rule that says why ([`oracle::deviations`]).
//!
//! `cargo xtask oracle` builds the other side and runs this. What is read from the kernel's own tables needs
//! root.

mod oracle {
    pub(crate) mod case;
    pub(crate) mod claims;
    pub(crate) mod client;
    pub(crate) mod coverage;
    pub(crate) mod deviations;
    pub(crate) mod duplicates;
    pub(crate) mod flows;
    pub(crate) mod history;
    pub(crate) mod judge;
    pub(crate) mod mistakes;
    pub(crate) mod mutations;
    pub(crate) mod objects;
    pub(crate) mod outcome;
    pub(crate) mod outside;
    pub(crate) mod packets;
    pub(crate) mod program;
    pub(crate) mod regular;
    pub(crate) mod services;
    pub(crate) mod slices;
    pub(crate) mod socklb;
    pub(crate) mod table;
}

use std::{
    cell::RefCell,
    collections::BTreeMap,
    env,
    fmt::Write as _,
    fs,
    path::Path,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::Instant,
};

use nix::sched::{CloneFlags, unshare};
use oracle::{
    case::Case,
    coverage::{self, Coverage},
    deviations::Deviation,
    flows::Again,
    history::case,
    judge::{Seen, compare, matters},
    mistakes::MUTATIONS,
    mutations::Mutation,
    outcome::Fate,
    program::{PROGRAM, Program},
    table::use_the_kernel,
};
use proptest::{
    strategy::{Strategy as _, ValueTree as _},
    test_runner::{Config, RngAlgorithm, RngSeed, TestCaseError, TestError, TestRunner},
};

const CASES: u32 = 3_000;
/// One of so many of them with the tables of the kernel, which take their time.
const IN_KERNEL: u32 = 30;
/// The test suite has the same cases every time: it fails for what was changed, and for nothing else.
/// `cargo xtask oracle` takes others with each run.
const SEED: u64 = 41;
/// Within so many cases each mistake is found, and of these, which are always the same.
const MISTAKES: usize = 1_000;
const MISTAKES_SEED: u64 = 1;
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
    let Seen { no_local, lists, starts, interfaces, remembered, .. } = seen;
    let Seen { outside, masqueraded, kept_their_source, sctp, .. } = seen;
    let Again { stayed, ended, healed, .. } = &seen.flows;
    let Again { packets_stayed, packets_ended, packets_healed, .. } = &seen.flows;
    fates
        .iter()
        .map(|fate| seen.fates.get(fate).copied().unwrap_or_default())
        .chain([*with_affinity, *at_other_nodes, *contested, *health_checks])
        .chain([*no_local, *lists, *starts, *interfaces, *remembered])
        .chain([*packets_stayed, *packets_ended, *packets_healed])
        .chain([*stayed, *ended, *healed, *masqueraded, *kept_their_source, *sctp])
        .chain(
            [Fate::Refused, Fate::Unreachable, Fate::Denied]
                .map(|fate| outside.get(&fate).copied().unwrap_or_default()),
        )
        .all(|seen| seen > 30)
}

fn number(variable: &str) -> Option<u64> {
    Some(env::var(variable).ok()?.parse().expect("the number of cases and the seed are numbers"))
}

fn require_program() {
    assert!(
        env::var_os(PROGRAM).is_some(),
        "{PROGRAM} names no program of xtask/oracle/: `cargo xtask oracle` builds it and runs this"
    );
}

fn runner(cases: u32, seed: u64) -> TestRunner {
    TestRunner::new(Config {
        cases,
        rng_seed: RngSeed::Fixed(seed),
        // Unoptimized, the default one takes longer than all of our side.
        rng_algorithm: RngAlgorithm::XorShift,
        failure_persistence: None,
        max_shrink_iters: 20_000,
        ..Config::default()
    })
}

/// Runs as many workers as there are processes.
fn in_parallel<T: Send + 'static>(work: impl Fn(u32) -> T + Clone + Send + 'static) -> Vec<T> {
    let workers: Vec<_> = (0..WORKERS)
        .map(|i| {
            let work = work.clone();
            let worker = thread::Builder::new().stack_size(STACK);
            worker.spawn(move || work(i)).expect("a thread")
        })
        .collect();
    workers.into_iter().map(|it| it.join().expect("a worker")).collect()
}

#[test]
fn packets_go_where_kube_proxy_s_rules_let_them_go() {
    require_program();
    if let Some(file) = env::var_os("SOCKLB_ORACLE_REPLAY") {
        let text = fs::read_to_string(&file).expect("the file is there");
        let case = Case::from_yaml(&text);
        let outcome = compare(&mut Program::start(), &case, &mut Seen::default(), None);
        assert!(outcome.is_ok(), "{}", outcome.err().unwrap_or_default());
        return;
    }
    let cases = number("SOCKLB_ORACLE_CASES").map_or(CASES, |cases| cases.try_into().expect("u32"));
    // Who asks for a seed asks for what `cargo xtask oracle` prints.
    let (seed, covers) = number("SOCKLB_ORACLE_SEED").map_or((SEED, false), |seed| (seed, true));
    let started = Instant::now();
    let ends = in_parallel(move |i| {
        let share = cases / WORKERS + u32::from(i < cases % WORKERS);
        work(share, seed.wrapping_add(u64::from(i) << 32), covers)
    });
    let mut failures = String::new();
    let mut coverage = Coverage::new();
    for (i, end) in ends.into_iter().enumerate() {
        match end {
            Ok((tally, of_worker)) => {
                eprintln!("{tally:#?}");
                coverage::add(&mut coverage, &of_worker);
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
    if covers {
        eprintln!("{}", coverage::table(&coverage));
    }
    eprintln!("{cases} cases of seed {seed} in {:.1?}", started.elapsed());
    assert!(failures.is_empty(), "{failures}");
}

/// Compares so many cases, and counts which fields occur and matter, if it `covers` that; else the
/// difference and the smallest case that shows one.
fn work(cases: u32, seed: u64, covers: bool) -> Result<(Seen, Coverage), (String, String)> {
    // Not in the course of shrinking: what is counted then is a case that fails.
    let state = RefCell::new((Program::start(), Seen::default(), Coverage::new()));
    let end = runner(cases, seed).run(&case(), |case| {
        let (program, tally, coverage) = &mut *state.borrow_mut();
        let record = compare(program, &case, tally, None).map_err(TestCaseError::fail)?;
        if covers {
            let set = coverage::note(&case, coverage);
            if let Some(place) = coverage::next(&set, coverage) {
                let mattered = matters(program, &coverage::without(&case, place), &record);
                coverage::tried(coverage, place, mattered);
            }
        }
        Ok(())
    });
    match end {
        Ok(()) => {
            let (_, tally, coverage) = state.into_inner();
            Ok((tally, coverage))
        }
        Err(TestError::Fail(reason, case)) => Err((reason.to_string(), case.yaml())),
        Err(TestError::Abort(reason)) => Err((reason.to_string(), String::new())),
    }
}

/// The same of what the kernel says that stands in its tables, instead of what was to stand there.
#[test]
fn what_stands_in_the_kernel_goes_where_kube_proxy_s_rules_let_it_go() {
    require_program();
    if !nix::unistd::geteuid().is_root() {
        let skips = env::var_os("SOCKLB_SKIP_ROOT").is_some_and(|value| value == "1");
        assert!(skips, "tables of the kernel need root (SOCKLB_SKIP_ROOT=1 leaves them out)");
        return;
    }
    let cases = number("SOCKLB_ORACLE_CASES").map_or(CASES, |cases| cases.try_into().expect("u32"));
    let all = env::var_os("SOCKLB_ORACLE_KERNEL").is_some_and(|value| value == "1");
    let share = if all { cases } else { cases / IN_KERNEL } / WORKERS;
    let seed = number("SOCKLB_ORACLE_SEED").unwrap_or(SEED);
    let ends = in_parallel(move |i| {
        unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace");
        use_the_kernel();
        work(share, seed.wrapping_add(u64::from(i) << 32), false)
    });
    for end in ends {
        let (tally, _) = end.unwrap_or_else(|(difference, case)| panic!("{difference}\n{case}"));
        assert!(cases < CASES || tally.outside[&Fate::Forwarded] > 30, "hardly any packet");
        eprintln!("{tally:#?}");
    }
    eprintln!("{} cases of seed {seed}, judged by the kernel's tables", share * WORKERS);
}

/// The two ways in which a client may come back to another endpoint than kube-proxy's.
#[test]
fn who_comes_back_may_find_another_endpoint() {
    require_program();
    for (text, deviation) in [
        (include_str!("oracle/away.yaml"), Deviation::Away),
        (include_str!("oracle/several.yaml"), Deviation::Several),
    ] {
        let mut tally = Seen::default();
        let outcome = compare(&mut Program::start(), &Case::from_yaml(text), &mut tally, None);
        assert!(outcome.is_ok(), "{}", outcome.err().unwrap_or_default());
        assert_eq!(tally.deviations.get(&deviation), Some(&1), "{deviation:?}");
    }
}

/// Who forgets a rule is found out: see [`oracle::mistakes`].
#[test]
fn each_mistake_is_found() {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    require_program();
    let found: BTreeMap<usize, Option<usize>> = in_parallel(move |_| {
        let (mut program, mut found) = (Program::start(), Vec::new());
        let (strategy, mut runner) = (case(), runner(1, MISTAKES_SEED));
        let mut cases = Vec::new();
        loop {
            let i = NEXT.fetch_add(1, Ordering::Relaxed);
            let Some(mutation) = MUTATIONS.get(i) else { return found };
            let shows = |n: &usize| {
                if cases.len() < *n {
                    cases.push(strategy.new_tree(&mut runner).expect("a case").current());
                }
                shows(mutation, &mut program, &cases[n - 1])
            };
            found.push((i, (1..=MISTAKES).find(shows)));
        }
    })
    .into_iter()
    .flatten()
    .collect();
    let mut table = "| rule | the mistake | found in case |\n|---|---|---|\n".to_owned();
    let mut missed = Vec::new();
    for (i, case) in found {
        let Mutation { rule, mistake, .. } = &MUTATIONS[i];
        let number = case.map_or_else(|| "not".to_owned(), |case| case.to_string());
        writeln!(table, "| {rule} | {mistake} | {number} |").expect("memory");
        missed.extend(case.is_none().then(|| format!("{rule}: {mistake}")));
    }
    eprintln!("{table}\nMistakes, with cases of seed {MISTAKES_SEED}.");
    assert!(missed.is_empty(), "not found within {MISTAKES} cases: {missed:?}");
}

/// Whether the case shows the mistake.
fn shows(mutation: &Mutation, program: &mut Program, case: &Case) -> bool {
    let mut differs = |mutation| compare(program, case, &mut Seen::default(), mutation).is_err();
    // Not for another reason.
    mutation.concerns(case) && differs(Some(mutation)) && !differs(None)
}
