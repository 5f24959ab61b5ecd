//! `setup`: what the build and the tests need, found or installed. Other commands call [`ensure`]
//! for the part they need, so nobody has to run this first.

mod needs;

use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result, bail};
pub use needs::Scope;
use needs::{Need, Source};

use crate::{
    exec::{ask, exec, show},
    root::{as_root, is_root, require_root},
};

/// Install the pinned toolchains and the tools, or say what is missing.
#[derive(clap::Args)]
pub struct Args {
    /// Change nothing: report what is missing and how to get it; fail if anything is.
    #[arg(long)]
    check: bool,
}

/// The command. Fails where something is missing and may not, or cannot, be installed.
pub fn run(args: &Args) -> Result<ExitCode> {
    let apt = has_apt();
    let needs = needs::of(Scope::ALL);
    let mut lacks = false;
    for need in &needs {
        match need.missing() {
            None => println!("ok       {}", need.what),
            Some(reason) => {
                lacks = true;
                println!("missing  {} ({}): {reason}", need.what, need.why);
                if args.check {
                    println!("         get it: {}", remedy(&need.source, apt));
                }
            }
        }
    }
    if args.check {
        return Ok(if lacks { ExitCode::FAILURE } else { ExitCode::SUCCESS });
    }
    ensure(Scope::ALL)?;
    Ok(ExitCode::SUCCESS)
}

/// Makes sure that what `scopes` need is there. Silent and quick when it is; says what it installs
/// before it does.
pub fn ensure(scopes: &[Scope]) -> Result<()> {
    let lacking: Vec<_> = lacking(scopes);
    if lacking.is_empty() {
        return Ok(());
    }
    eprintln!("To be installed, once:");
    for (need, reason) in &lacking {
        eprintln!("  {} ({}): {reason}", need.what, need.why);
    }
    install(lacking.iter().map(|(need, _)| &need.source))?;
    match lacking_again(scopes) {
        None => Ok(()),
        Some(still) => bail!("installed, and still missing:\n{still}"),
    }
}

fn lacking(scopes: &[Scope]) -> Vec<(Need, String)> {
    let probed = needs::of(scopes).into_iter().map(|need| {
        let reason = need.missing();
        (need, reason)
    });
    probed.filter_map(|(need, reason)| Some((need, reason?))).collect()
}

fn lacking_again(scopes: &[Scope]) -> Option<String> {
    let lacking = lacking(scopes);
    let lines = lacking.iter().map(|(need, reason)| format!("  {}: {reason}", need.what));
    (!lacking.is_empty()).then(|| lines.collect::<Vec<_>>().join("\n"))
}

fn install<'a>(sources: impl Iterator<Item = &'a Source>) -> Result<()> {
    let (mut packages, mut names, mut commands) = (Vec::new(), Vec::new(), Vec::new());
    for source in sources {
        match source {
            Source::Packages { debian, elsewhere } => {
                packages.extend_from_slice(debian);
                names.push(*elsewhere);
            }
            Source::Command(command) => commands.push(command()),
            Source::ByHand(what) => bail!("this has to be installed by hand: {what}"),
        }
    }
    // The distribution's packages first: what cargo builds is linked against them.
    if !packages.is_empty() {
        let names = names.join("\n");
        if !has_apt() {
            bail!("there is no apt here; install by this system's own means:\n{names}");
        }
        let list = packages.join(" ");
        require_root().with_context(|| format!("cannot install {list}"))?;
        let [update, install] = apt(&packages);
        // One unreachable archive among several makes an error; the package may be in another.
        if let Err(error) = exec(&mut as_root(update)) {
            eprintln!("{error:#}; going on with the lists that are there");
        }
        exec(&mut as_root(install))
            .with_context(|| format!("apt could not bring {list}; what is needed:\n{names}"))?;
    }
    commands.iter_mut().try_for_each(exec)
}

/// What to type, or, where we do not know the system's package names for sure, what to look for.
fn remedy(source: &Source, has_apt: bool) -> String {
    match source {
        Source::Packages { debian, .. } if has_apt => {
            let sudo = if is_root() { "" } else { "sudo " };
            format!("{sudo}apt-get install {}", debian.join(" "))
        }
        Source::Packages { elsewhere: what, .. } | Source::ByHand(what) => (*what).to_owned(),
        Source::Command(command) => show(&command()),
    }
}

fn has_apt() -> bool {
    ask(Command::new("apt-get").arg("--version")).is_some()
}

fn apt(packages: &[&str]) -> [Command; 2] {
    let mut update = Command::new("apt-get");
    update.args(["update", "--quiet"]);
    let mut install = Command::new("apt-get");
    install.env("DEBIAN_FRONTEND", "noninteractive");
    install.args(["install", "--quiet", "--yes", "--no-install-recommends"]).args(packages);
    [update, install]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_need_has_a_remedy_on_debian_and_elsewhere() {
        for need in needs::of(Scope::ALL) {
            for has_apt in [true, false] {
                assert!(remedy(&need.source, has_apt).len() > 10, "{}", need.what);
            }
        }
    }

    #[test]
    fn a_remedy_names_the_package_by_what_is_known_of_the_system() {
        let source = Source::Packages { debian: &["iproute2"], elsewhere: "`ip`: iproute2" };
        assert!(remedy(&source, true).ends_with("apt-get install iproute2"));
        assert_eq!(remedy(&source, false), "`ip`: iproute2");
    }
}
