//! `oracle`: socklb and kube-proxy's own code on the same random clusters.

use std::{
    env,
    path::PathBuf,
    process::ExitCode,
    time::{SystemTime, SystemTimeError, UNIX_EPOCH},
};

use anyhow::{Context as _, Result};
use tools::{
    cargo::{as_cargo, integration, workspace},
    exec::exec,
    root::{as_root, require_root},
    setup::{self, Scope},
};

use crate::kube;

/// The variable that names the program of `xtask/oracle/`.
pub(crate) const PROGRAM: &str = "SOCKLB_ORACLE";

/// The test in `lb-agent/tests/oracle.rs` that a case can be given to.
const TEST: &str = "packets_go_where_kube_proxy_s_rules_let_them_go";
/// The one that judges what stands in the kernel's tables.
const IN_KERNEL: &str = "what_stands_in_the_kernel_goes_where_kube_proxy_s_rules_let_it_go";

/// Compare what socklb writes with the rules that kube-proxy writes, on random clusters.
///
/// Builds the program of `xtask/oracle/` first, unless SOCKLB_ORACLE names one.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// How many clusters [default: 3000].
    #[arg(long, value_name = "N")]
    cases: Option<u32>,
    /// Where the random numbers start: what a failure says, to see it again [default: random].
    #[arg(long, value_name = "S")]
    seed: Option<u64>,
    /// Judge what is read back from the kernel's own tables, as root, in every case. 10,000 take
    /// 40 minutes.
    #[arg(long, conflicts_with = "replay")]
    kernel: bool,
    /// One case, as a failure prints it, instead of random ones.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["cases", "seed"])]
    replay: Option<PathBuf>,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    setup::ensure(&[Scope::Agent, Scope::Programs])?;
    let program = env::var_os(PROGRAM).map_or_else(kube::oracle, |path| Ok(path.into()))?;
    let mut test = as_cargo(&integration("oracle")?);
    test.env(PROGRAM, workspace().join(program));
    if let Some(cases) = args.cases {
        test.env("SOCKLB_ORACLE_CASES", cases.to_string());
    }
    let random = || Ok(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs());
    let seed = args.seed.map_or_else(random, Ok::<_, SystemTimeError>)?;
    test.env("SOCKLB_ORACLE_SEED", seed.to_string());
    if let Some(file) = &args.replay {
        let file = file.canonicalize().with_context(|| format!("no {}", file.display()))?;
        test.env("SOCKLB_ORACLE_REPLAY", file);
    }
    test.arg("--nocapture");
    if args.kernel {
        require_root()?;
        test.env("SOCKLB_ORACLE_KERNEL", "1").args(["--exact", IN_KERNEL]);
        exec(&mut as_root(test))?;
    } else {
        test.args(args.replay.as_ref().map(|_| TEST));
        exec(&mut test)?;
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::{IN_KERNEL, TEST};

    /// A name that no test has would select none, and that passes.
    #[test]
    fn the_tests_that_are_chosen_are_there() {
        let tests = include_str!("../../../lb-agent/tests/oracle.rs");
        for test in [TEST, IN_KERNEL] {
            assert!(tests.contains(&format!("fn {test}()")));
        }
    }
}
