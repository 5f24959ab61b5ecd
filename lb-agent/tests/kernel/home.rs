//! Whose the directory of pins is: root's alone, in a bpffs where everybody may make files.

use std::{
    fs::{self, Permissions},
    os::unix::{
        fs::{PermissionsExt as _, chown},
        process::CommandExt as _,
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use nix::mount::MsFlags;

use super::{
    agent::{Agent, SIZES, command, output, refuses},
    connect::V4,
    flips::udp_backend,
    world::{World, backend4, mount_bpffs, soon},
    yaml,
};

const NOBODY: u32 = 65_534;

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().permissions().mode() & 0o7777
}

fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

/// The directory of pins, where nobody may go as far as the bpffs, which is as `mount -t bpf` makes it.
fn open_to_all(world: &World) -> PathBuf {
    yaml::put(world, "web", "10.96.0.10", &[backend4(1)]);
    chmod(world.dir(), 0o755);
    assert_eq!(mode(&world.bpffs()), 0o1777);
    world.pins().home().to_owned()
}

/// A shell of a user without rights.
fn nobody(words: &str) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", words]).uid(NOBODY).gid(NOBODY).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

/// Neither an agent nor a cleanup nor `lbctl` touches it, and each says why.
fn all_refuse(world: &World, words: &[&str]) {
    refuses(command(world, &SIZES), words);
    refuses(command(world, &["--cleanup"]), words);
    let mut lbctl = Command::new(env!("CARGO_BIN_EXE_lbctl"));
    lbctl.arg("--bpffs").arg(world.bpffs()).args(["get", "services"]);
    refuses(lbctl, words);
}

/// What `--cleanup` deleted once.
#[test]
fn a_link_to_another_place() {
    World::run(|world| {
        let home = open_to_all(world);
        let elsewhere = world.dir().join("elsewhere");
        let second = world.dir().join("second");
        for dir in [&elsewhere, &second] {
            fs::create_dir(dir).unwrap();
        }
        mount_bpffs(&second, MsFlags::empty());
        // Outside of bpffs, in another one, and to nowhere.
        for target in [&elsewhere, &second, &world.dir().join("nowhere")] {
            if target.exists() {
                fs::create_dir_all(target.join("v1/links")).unwrap();
            }
            let words = format!("ln -s '{}' '{}'", target.display(), home.display());
            assert!(nobody(&words).status().unwrap().success());
            let path = home.to_str().unwrap();
            all_refuse(world, &[path, "is a symbolic link", &format!("`rm {path}`")]);
            assert!(!target.exists() || target.join("v1/links").exists(), "it was deleted");
            fs::remove_file(&home).unwrap();
        }
        let _agent = Agent::start(world);
        assert!(udp_backend(V4).is_ok());
    });
}

#[test]
fn a_directory_that_others_made_or_may_write() {
    World::run(|world| {
        let home = open_to_all(world);
        let path = home.display();
        assert!(nobody(&format!("mkdir -p '{path}/v1/links'")).status().unwrap().success());
        let remedy = format!("`rm -r {path}`");
        all_refuse(world, &[&format!("{path} belongs to the user 65534"), &remedy]);
        assert!(home.join("v1/links").exists());
        chown(&home, Some(0), Some(0)).unwrap();
        for mode in [0o777, 0o1777, 0o770] {
            chmod(&home, mode);
            all_refuse(world, &[&format!("{path} has the mode {mode:04o}"), &remedy, "chmod 0700"]);
        }
        assert!(home.join("v1/links").exists());
        // The remedy is one.
        chmod(&home, 0o700);
        let _agent = Agent::start(world);
        assert!(udp_backend(V4).is_ok());
    });
}

/// Whoever could rename the directory could put his own in its place.
#[test]
fn a_bpffs_without_a_sticky_bit() {
    World::run(|world| {
        let home = open_to_all(world);
        let bpffs = world.bpffs();
        chmod(&bpffs, 0o777);
        let words = ["has the mode 0777, without the sticky bit", "mode=0700"];
        refuses(command(world, &SIZES), &words);
        assert!(!home.exists());
        chown(&bpffs, Some(NOBODY), None).unwrap();
        chmod(&bpffs, 0o1777);
        refuses(command(world, &SIZES), &["belongs to the user 65534", "chown 0"]);
        chown(&bpffs, Some(0), None).unwrap();
        for mode in [0o700, 0o755, 0o1777] {
            chmod(&bpffs, mode);
            Agent::start(world).terminate();
        }
        // To remove is always possible.
        chmod(&bpffs, 0o777);
        let (success, text) = output(command(world, &["--cleanup"]));
        assert!(success && !home.exists(), "{text}");
    });
}

/// An agent of an earlier version left it readable for all, and so its lock for all to take.
#[test]
fn what_others_could_read_is_root_s_alone_now() {
    World::run(|world| {
        let home = open_to_all(world);
        Agent::start(world).kill();
        chmod(&home, 0o755);
        let pins = world.pins();
        let _agent = Agent::start(world);
        assert_eq!(mode(&home), 0o700);
        assert!(pins.link("connect4").exists() && udp_backend(V4).is_ok());
        let path = home.display();
        assert!(nobody(&format!("ls '{}'", world.bpffs().display())).status().unwrap().success());
        for words in [
            format!("ls '{path}'"),
            format!("exec 9<'{path}'"),
            format!("mv '{path}' '{path}.old'"),
        ] {
            assert!(!nobody(&words).status().unwrap().success(), "{words}");
        }
    });
}

/// Killed, and waited for, however the test ends.
struct Sleeper(Child);

impl Drop for Sleeper {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_lock_that_is_no_agent_s_is_told_so() {
    World::run(|world| {
        let home = open_to_all(world);
        Agent::start(world).kill();
        chmod(&home, 0o755);
        // It waits: a tool that the agent has just started may have its lock until it is another program.
        let words = format!("exec 9<'{}' && flock 9 && exec sleep 1000", home.display());
        let sleeper = Sleeper(nobody(&words).spawn().unwrap());
        let pid = sleeper.0.id();
        assert!(soon(|| world.pins().holder().unwrap().and_then(|it| it.pid) == Some(pid)));
        // The shell has the lock a moment before it is another program.
        let name = format!("/proc/{pid}/comm");
        assert!(soon(|| fs::read_to_string(&name).unwrap() == "sleep\n"));
        let said = format!("the process {pid} (sleep) of the user 65534 has the lock of");
        refuses(command(world, &SIZES), &[&said, "is no lb-agent: end it"]);
        refuses(command(world, &["--cleanup"]), &[&said]);
        drop(sleeper);
        let _agent = Agent::start(world);
        assert!(udp_backend(V4).is_ok());
    });
}
