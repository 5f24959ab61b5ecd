//! `kernels`: the kernel tests on kernels that this machine does not run. The distribution's packaged
//! kernels are booted in QEMU by software emulation, so neither KVM nor another machine is needed.

mod apt;
mod arch;
mod boot;
mod choice;
mod console;
mod guest;
mod initramfs;
mod list;
mod report;
mod supply;

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::BufWriter,
    path::Path,
    process::{Command, ExitCode},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use tools::{
    cargo::{cargo, executables, workspace},
    exec::{ask, say},
    setup::{self, Scope},
};

use self::{
    arch::Arch,
    console::{Fate, Heard, News, Test},
    guest::{Subject, Tests},
    supply::{Kernel, Supply},
};
use crate::{
    image::{machine::libraries, socklb::Target},
    test::Tally,
};

/// Boot other kernels, load the programs there and run kernel tests, by software emulation.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// A kernel of the distribution's: a series (`6.1`, the newest of it), a whole version, or
    /// `newest` [default: 6.1, 6.12 and the newest].
    #[arg(long, value_name = "V")]
    kernel: Vec<String>,
    /// What machine [default: what this machine is].
    #[arg(long, value_name = "ARCH", value_parser = Arch::NAMES)]
    arch: Vec<String>,
    /// Run all kernel tests but those that cannot be run there, not only those that show the
    /// invariants and what is asked of the kernel.
    #[arg(long, conflicts_with = "tests")]
    all: bool,
    /// Try the programs of a plain build, with this machine's libraries, and not static ones: quicker
    /// to build, slower to run.
    #[arg(long)]
    quick: bool,
    /// Keep what comes of it below docs/kernels.
    #[arg(long, conflicts_with = "tests")]
    record: bool,
    /// Tests to run instead, by their full names.
    #[arg(last = true, value_name = "TEST")]
    tests: Vec<String>,
}

/// For one test.
const TEST_LIMIT: Duration = Duration::from_secs(240);
/// How long nothing may be heard of a machine: more than its slowest test takes by its own clock, which
/// goes slower than ours where much else runs.
const PATIENCE: Duration = Duration::from_secs(20 * 60);
/// The kernels that are always of interest, and the newest.
const KERNELS: [&str; 3] = ["6.1", "6.12", choice::NEWEST];
/// The test that has each program loaded.
const LOADS: &str = "kernel::programs::all_load_and_stay_small";

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let or = |given: &[String], usual: &[&str]| {
        if given.is_empty() {
            usual.iter().map(ToString::to_string).collect()
        } else {
            given.to_vec()
        }
    };
    let (kernels, archs) = (or(&args.kernel, &KERNELS), or(&args.arch, &[Arch::own()]));
    let tests = tests(args)?;
    setup::ensure(&[Scope::Kernels])?;
    let mut sum = Tally::default();
    for arch in archs.iter().filter_map(|name| Arch::named(name)) {
        let supply = Supply::new(arch)?;
        let subject = if args.quick { plain(arch)? } else { fixed(arch)? };
        let mut tried = BTreeSet::new();
        for wanted in &kernels {
            let mut one = || {
                let release = supply.release(wanted)?;
                if !tried.insert(release.clone()) {
                    return Ok(Tally::default());
                }
                try_one(&supply, &release, &subject, &tests, args.record)
            };
            sum += one().unwrap_or_else(|error: anyhow::Error| {
                say!("test {wanted} is tried ... FAILED: {error:#}");
                Tally::FAIL
            });
        }
    }
    say!("\n{sum}");
    Ok(if sum.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Static programs, as images have them.
fn fixed(arch: &Arch) -> Result<Subject> {
    Subject::of(Target::new(arch.name)?.build(&["--bins", "--test", "kernel"])?, BTreeSet::new())
}

/// What the kernel tests of this machine are.
fn plain(arch: &Arch) -> Result<Subject> {
    ensure!(arch.name == Arch::own(), "--quick is for the architecture of this machine");
    setup::ensure(&[Scope::Agent, Scope::Programs])?;
    let mut build = cargo();
    build.args(["test", "--package", "lb-agent", "--test", "kernel", "--no-run"]);
    let programs = executables(&mut build)?.into_iter();
    let programs: Vec<_> = programs.map(|program| (program.name, program.path)).collect();
    let libraries = programs.iter().flat_map(|(_, path)| libraries(path)).collect();
    let mut subject = Subject::of(programs, libraries)?;
    let place = target_directory(&subject)?.join("kernels");
    subject.strip(&place)?;
    Ok(subject)
}

/// The tests that are asked for, and always the one that loads the programs.
fn tests(args: &Args) -> Result<Tests> {
    let shown = list::shown()?.into_iter().map(|line| line.name.to_owned());
    let mut named = if args.tests.is_empty() { shown.collect() } else { args.tests.clone() };
    named.retain(|test| test != LOADS);
    named.insert(0, LOADS.to_owned());
    Ok(if args.all {
        Tests::AllBut(list::left_out()?.into_iter().map(|line| line.name.to_owned()).collect())
    } else {
        Tests::Named(named)
    })
}

fn try_one(
    supply: &Supply,
    release: &str,
    subject: &Subject,
    tests: &Tests,
    record: bool,
) -> Result<Tally> {
    let kernel = supply.kernel(release)?;
    let programs = supply.programs()?;
    say!("\n== Linux {release}, {}", kernel.arch.name);
    let start = Instant::now();
    let files = guest::files(&kernel, &programs, subject, tests, TEST_LIMIT)?;
    let place = target_directory(subject)?.join("kernels");
    fs::create_dir_all(&place)?;
    let initramfs = place.join(format!("{release}.cpio"));
    initramfs::write(&files, BufWriter::new(File::create(&initramfs)?))
        .with_context(|| format!("cannot write {}", initramfs.display()))?;
    let mut heard = Heard::default();
    let qemu = boot::qemu(kernel.arch, &kernel.image(), &initramfs);
    let log = place.join(format!("{release}.log"));
    let ending = boot::listen(qemu, PATIENCE, &log, &mut heard, |news| tell(news, release));
    fs::remove_file(&initramfs)?;
    let tally = judge(&kernel, &heard, &ending, tests);
    let took = start.elapsed().as_secs();
    say!("-- {release}: {tally} ({took} s)");
    if record && ending.is_ok() {
        let said = |command: &mut Command| {
            ask(command).map_or_else(|| "unknown".to_owned(), |said| said.trim().to_owned())
        };
        let mut git = Command::new("git");
        git.args(["rev-parse", "--short=10", "HEAD"]).current_dir(workspace());
        let (date, commit) = (said(Command::new("date").args(["-u", "+%Y-%m-%d"])), said(&mut git));
        let count = heard.tests.len();
        let arch = kernel.arch.name;
        let about = format!(
            "{date}, Linux {release} of Debian on {arch}, emulated by QEMU, socklb at {commit}, \
             {}: {count} tests in {took} s",
            if subject.libraries.is_empty() {
                "static programs"
            } else {
                "programs of a plain build"
            }
        );
        report::record(&format!("{arch}-{}", choice::series(release)), &about, &heard)?;
    }
    Ok(tally)
}

/// The directory that cargo builds into, two or more above the program.
fn target_directory(subject: &Subject) -> Result<&Path> {
    let is_target = |path: &&Path| path.join("CACHEDIR.TAG").exists();
    subject.test.ancestors().find(is_target).context("cargo built into no target directory")
}

fn tell(news: &News<'_>, release: &str) {
    match news {
        News::Nothing => {}
        News::Program(program) => match &program.verdict {
            Ok(count) => {
                say!("program {} loads: the verifier looked at {count} instructions", program.name);
            }
            Err(reason) => say!("program {} is refused: {reason}", program.name),
        },
        News::Test(test) => {
            let fate = match test.fate {
                Fate::Passed => "ok".to_owned(),
                Fate::Failed => "FAILED".to_owned(),
                Fate::Late => format!("FAILED: killed after {} s", TEST_LIMIT.as_secs()),
                Fate::Absent => "FAILED: there is no test of this name".to_owned(),
            };
            say!("test {release} {} ... {fate} ({} s)", test.name, seconds(test));
            for line in &test.said {
                say!("  | {line}");
            }
        }
    }
}

/// How long it took, to a tenth.
fn seconds(test: &Test) -> String {
    format!("{}.{}", test.hundredths / 100, test.hundredths / 10 % 10)
}

/// What came of all, and the reasons that no test has told.
fn judge(kernel: &Kernel, heard: &Heard, ending: &Result<()>, tests: &Tests) -> Tally {
    let mut tally = Tally::default();
    for test in &heard.tests {
        tally += if test.fate == Fate::Passed { Tally::PASS } else { Tally::FAIL };
    }
    let release = &kernel.release;
    let mut fail = |what: &str, reason: &str| {
        say!("test {release} {what} ... FAILED: {reason}");
        tally += Tally::FAIL;
    };
    if let Err(error) = ending {
        fail("boots and comes to its end", &format!("{error:#}"));
    }
    let wanted = match tests {
        Tests::Named(names) => names,
        Tests::AllBut(_) => &heard.found,
    };
    for test in heard.silent(wanted) {
        fail(test, "nothing was heard of it");
    }
    for complaint in &heard.complaints {
        fail("the kernel has nothing to complain of", complaint);
    }
    tally
}
