//! `demo`: the main job in front of somebody's eyes: one node in network namespaces with no way out,
//! the real agent on a directory of YAML, real requests.
//!
//! Nothing is left behind, however it ends, because nobody has to remember what was made: all of it
//! is in one directory and one cgroup with fixed names ([`place`]), and whatever is there is taken
//! away. A shell stands guard ([`GUARD`]): it outlives signals, which a program with no more than
//! std cannot arrange for itself.
//!
//! The processes of the demo are this program again, as hidden commands ([`Part`]).

mod backend;
mod client;
mod network;
mod node;
mod place;
mod play;
mod services;
mod spread;

use std::{
    net::SocketAddrV4,
    process::{Command, ExitCode},
};

use anyhow::Result;
use tools::{
    exec::{myself, say},
    root::{become_root, require_root},
    setup::{self, Scope},
    turn::{self, Turn},
};

use crate::build;

/// Show the main job: Services in, connections out, in network namespaces with no way out.
#[derive(clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Args {
    /// Leave it running afterwards, and say how to play with it.
    #[arg(long)]
    keep: bool,
    /// Take away what --keep left.
    #[arg(long, conflicts_with = "keep")]
    remove: bool,
    /// Seconds to wait for the end of another demo.
    #[arg(long, hide = true, default_value_t = 0)]
    patience: u64,
    #[command(subcommand)]
    part: Option<Part>,
}

/// What the demo starts of itself.
#[derive(clap::Subcommand)]
enum Part {
    /// The demo itself, as root.
    #[command(hide = true)]
    Play(play::Args),
    /// Take away everything.
    #[command(hide = true)]
    Sweep {
        /// Somebody asked for it, and wants to know.
        #[arg(long)]
        asked: bool,
    },
    /// An HTTP server that answers with its name.
    #[command(hide = true)]
    Backend { name: String },
    /// Makes requests, one line of output each.
    #[command(hide = true)]
    Client {
        to: SocketAddrV4,
        #[arg(long)]
        requests: usize,
    },
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    match &args.part {
        None if args.remove => return remove(),
        None => return guarded(args.keep, args.patience),
        Some(Part::Play(args)) => play::run(args),
        Some(Part::Sweep { asked }) => sweep(*asked),
        Some(Part::Backend { name }) => backend::run(name),
        Some(Part::Client { to, requests }) => client::run(*to, *requests),
    }
    .map(|()| ExitCode::SUCCESS)
}

/// `$0` is this program, `$1` says whether to keep what is there after success, the rest goes to
/// `demo play`. A signal ends the play at once, and nothing interrupts the sweep that follows. What
/// the shell itself has to say about that (bash: "Terminated") is no news to anybody.
const GUARD: &str = r#"
keep=$1; shift
stopped=; exec 3>&2
trap 'stopped=1; kill "$!" 2>/dev/null' HUP INT QUIT TERM
"$0" demo play "$@" &
exec 2>/dev/null
[ -z "$stopped" ] || kill "$!"
wait "$!"; code=$?
trap '' HUP INT QUIT TERM
[ "$code" -le 128 ] || echo
if [ "$code" -ne 0 ] || [ "$keep" != true ]; then
    "$0" demo sweep 2>&3 || code=1
fi
exit "$code"
"#;

fn guarded(keep: bool, patience: u64) -> Result<ExitCode> {
    require_root()?;
    setup::ensure(&[Scope::Network])?;
    let programs = build::programs(false)?;
    let mut guard = Command::new("sh");
    guard.args(["-c", GUARD]).arg(myself()?).arg(keep.to_string());
    guard.arg("--agent").arg(programs.agent).arg("--lbctl").arg(programs.lbctl);
    guard.arg("--patience").arg(patience.to_string());
    if keep {
        guard.arg("--keep");
    }
    become_root(guard)
}

fn remove() -> Result<ExitCode> {
    require_root()?;
    let mut sweep = Command::new(myself()?);
    sweep.args(["demo", "sweep", "--asked"]);
    become_root(sweep)
}

fn sweep(asked: bool) -> Result<()> {
    let Some(_turn) = Turn::wait(place::NAME, turn::MOMENT)? else {
        // Another demo has begun since, and by taking away what ours had left.
        return if asked { Err(place::busy()) } else { Ok(()) };
    };
    if !asked && !place::is_ours() {
        return Ok(());
    }
    if place::sweep()? {
        say!("Removed: processes, namespaces, mounts, cgroups, files.");
    } else if asked {
        say!("Nothing to remove.");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{
        env, fs,
        path::{Path, PathBuf},
        process,
        thread::sleep,
        time::Duration,
    };

    use super::*;
    use tools::exec::answer;

    /// The guard, with a script in place of this program; it keeps a diary.
    fn guard(name: &str, keep: bool, play: &str) -> (Command, PathBuf) {
        let directory = env::temp_dir().join(format!("socklb-guard-{}-{name}", process::id()));
        fs::create_dir_all(&directory).unwrap();
        let (program, diary) = (directory.join("program"), directory.join("diary"));
        let script = format!(
            "#!/bin/sh\necho \"$*\" >>{}\n[ \"$2\" = sweep ] && exit\n{play}\n",
            diary.display()
        );
        let mut guard = Command::new("sh");
        // A file that was just written cannot always be executed: another thread may be forking.
        guard.args(["-c", &GUARD.replace("\"$0\"", "sh \"$0\"")]);
        fs::write(&program, script).unwrap();
        guard.arg(program).arg(keep.to_string()).arg("--agent");
        (guard, diary)
    }

    fn take(diary: &Path) -> String {
        let text = fs::read_to_string(diary).unwrap_or_default();
        fs::remove_dir_all(diary.parent().unwrap()).unwrap();
        text
    }

    #[test]
    fn the_guard_sweeps_unless_a_good_end_is_to_be_kept() {
        for (name, keep, play, code, sweeps) in [
            ("done", false, "exit 0", 0, true),
            ("kept", true, "exit 0", 0, false),
            ("failed", true, "exit 3", 3, true),
            ("killed", true, "kill -9 $$", 137, true),
        ] {
            let (mut guard, diary) = guard(name, keep, play);
            assert_eq!(guard.status().unwrap().code(), Some(code), "{name}");
            let sweep = if sweeps { "demo sweep\n" } else { "" };
            assert_eq!(take(&diary), format!("demo play --agent\n{sweep}"), "{name}");
        }
    }

    #[test]
    fn a_signal_ends_the_play_at_once_and_not_the_sweep() {
        let (mut guard, diary) = guard("signal", true, "exec sleep 60");
        let mut guard = guard.spawn().unwrap();
        while !diary.exists() {
            sleep(Duration::from_millis(5));
        }
        answer(Command::new("kill").args(["-TERM", &guard.id().to_string()])).unwrap();
        assert_eq!(guard.wait().unwrap().code(), Some(143));
        assert_eq!(take(&diary), "demo play --agent\ndemo sweep\n");
    }
}
