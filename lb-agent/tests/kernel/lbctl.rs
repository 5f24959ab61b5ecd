//! What `lbctl` says of real maps and links is what the kernel does with them.

use std::{
    collections::BTreeSet,
    fs::{self, File, Permissions},
    io,
    net::TcpStream,
    os::unix::{fs::PermissionsExt as _, process::CommandExt as _},
    process::{self, Command},
};

use aya::maps::{Map, MapData};
use lb_agent::{datapath::Datapath, pins::Pins};
use nix::mount::MsFlags;
use serde_json::{Value, json};

use super::{
    connect::V4,
    control::{Control, SIZES},
    raw::udp,
    world::{PORT, World, backend4, backend6, mount_bpffs, soon},
};

pub(crate) const NOBODY: u32 = 65_534;

pub(crate) fn lbctl(world: &World, words: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lbctl"));
    command.arg("--bpffs").arg(world.bpffs()).args(words.split(' '));
    command
}

/// Exit code, standard output, standard error.
pub(crate) fn ask(world: &World, words: &str) -> (i32, String, String) {
    let output = lbctl(world, words).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

fn answer(world: &World, words: &str) -> Value {
    serde_json::from_str(&ask(world, &format!("{words} -o json")).1).unwrap()
}

#[test]
fn explain_names_exactly_the_backends_that_connections_get() {
    World::run(|world| {
        let mut control = Control::start(world);
        let backends = [backend4(1), backend4(2), backend4(3)];
        control.put("web", &["10.96.0.10"], 80, &backends);

        let explained = answer(world, &format!("explain {V4}/udp"));
        assert_eq!(explained["verdict"], "forward");
        assert_eq!(explained["service"]["name"], "web");
        let candidates = explained["candidates"].as_array().unwrap();
        let said: BTreeSet<_> =
            candidates.iter().map(|c| c["address"].as_str().unwrap().to_owned()).collect();
        // The odds that one of three is not met in 200 connections: 10^-35.
        let got: BTreeSet<_> = (0..200)
            .map(|_| {
                let backend = udp(V4.parse().unwrap()).unwrap().local_addr().unwrap().ip();
                format!("{backend}:{PORT}")
            })
            .collect();
        assert_eq!(said, got);

        control.put("web", &["10.96.0.10"], 80, &[]);
        let (code, out, _) = ask(world, &format!("explain {V4}"));
        assert!(code == 1 && out.contains("ECONNREFUSED"), "{code} {out}");
        control.delete("web");
        let (code, out, _) = ask(world, &format!("explain {V4}"));
        assert!(code == 1 && out.contains("is no Service's"), "{code} {out}");
    });
}

#[test]
fn lists_of_no_service_and_of_many() {
    World::run(|world| {
        let (code, out, notes) = ask(world, "get services");
        assert_eq!((code, out.as_str()), (4, ""));
        assert!(notes.contains("start lb-agent"), "{notes}");

        let mut control = Control::start(world);
        let nothing = (0, String::new(), "No services found.\n".to_owned());
        assert_eq!(ask(world, "get services"), nothing);

        control.put("web", &["10.96.0.10", "fd00:96::a"], 80, &[backend4(1), backend6(1)]);
        let (code, out, notes) = ask(world, "get services web:tcp");
        assert_eq!((code, notes.as_str()), (0, ""));
        assert_eq!(
            out,
            "\
NAMESPACE   NAME   PORT   FRONTEND              BACKENDS
default     web    tcp    10.96.0.10:80/tcp     1
default     web    tcp    [fd00:96::a]:80/tcp   1
"
        );
        let items = answer(world, "get backends")["items"].clone();
        assert_eq!(items.as_array().unwrap().len(), 4, "two families, two protocols");
        assert_eq!(answer(world, "get services web:tcp")["items"][0]["count"], 1);
        assert_eq!(ask(world, "get services nope").0, 1);
    });
}

#[test]
fn status_names_what_is_wrong() {
    World::run(|world| {
        let control = Control::start(world);
        // The lock is what makes an agent one that runs; this one does not say how it is.
        let lock = Pins::take(&world.bpffs()).unwrap();
        let status = answer(world, "status");
        assert_eq!(status["problems"].as_array().unwrap().len(), 1, "{status}");
        assert_eq!(status["agent"]["ready"], json!(null));
        assert_eq!(status["agent"]["pid"], process::id());
        for program in status["programs"].as_array().unwrap() {
            assert_eq!(program["cgroup"], world.cgroup().to_str().unwrap(), "{program}");
        }
        assert_eq!(status["maps"][0]["size"], SIZES.services);
        drop(lock);

        let (code, out, _) = ask(world, "status");
        assert!(code == 6 && out.starts_with("degraded\n  no agent is running"), "{code} {out}");
        drop(control);
        fs::remove_file(world.pins().link("connect6")).unwrap();
        // The kernel lets go of a link a moment after nobody has it any more.
        let is_missing = || {
            let (code, out, _) = ask(world, "status");
            code == 1 && out.contains("not attached: connect6; start lb-agent")
        };
        assert!(soon(is_missing), "{}", ask(world, "status").1);
        let (_, _, notes) = ask(world, &format!("explain {V4}"));
        assert_eq!(notes, "note: nothing is translated now, see `lbctl status`\n");
    });
}

#[test]
fn a_user_is_told_what_is_missing() {
    World::run(|world| {
        let _control = Control::start(world);
        // The program may lie where only root may go.
        let program = world.bpffs().with_file_name("lbctl");
        fs::copy(env!("CARGO_BIN_EXE_lbctl"), &program).unwrap();
        fs::set_permissions(world.dir(), Permissions::from_mode(0o755)).unwrap();
        let command = lbctl(world, "get services");
        let output = Command::new(program)
            .args(command.get_args())
            .uid(NOBODY)
            .gid(NOBODY)
            .output()
            .unwrap();
        let notes = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(3), "{notes}");
        assert!(notes.contains("CAP_BPF") && notes.contains("sudo lbctl"), "{notes}");
        assert!(notes.contains(world.pins().home().to_str().unwrap()), "{notes}");
    });
}

#[test]
fn a_reader_that_goes_is_no_error_and_a_full_disk_is_one() {
    World::run(|world| {
        let mut control = Control::start(world);
        control.put("web", &["10.96.0.10"], 80, &[backend4(1)]);
        let (reader, writer) = io::pipe().unwrap();
        drop(reader);
        let output = lbctl(world, "get services").stdout(writer).output().unwrap();
        assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(0), &b""[..]));

        let full = File::options().write(true).open("/dev/full").unwrap();
        let output = lbctl(world, "get services").stdout(full).output().unwrap();
        let notes = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(5));
        assert!(notes.starts_with("error: cannot write the answer: No space left"), "{notes}");
    });
}

#[test]
fn another_agent_at_the_same_hooks_is_found() {
    World::run(|world| {
        let _control = Control::start(world);
        let status = answer(world, "status");
        assert_eq!(status["programs"].as_array().unwrap().len(), 8);
        assert_eq!(status["others"], json!([]));
        assert_eq!(ask(world, "status").0, 6);
        assert_eq!(status["maps"][3]["name"], "addresses");

        let other = world.dir().join("other");
        fs::create_dir(&other).unwrap();
        mount_bpffs(&other, MsFlags::empty());
        let (mut datapath, _maps) = Datapath::load(&Pins::new(&other), SIZES).unwrap();
        datapath.attach(world.cgroup()).unwrap();
        let (code, out, _) = ask(world, "status");
        assert_eq!(code, 1);
        for hook in ["connect4", "sendmsg6", "getpeername4"] {
            let line = format!("  another program on {hook}: {hook} id ");
            assert!(out.contains(&line), "{out}");
        }
        assert_eq!(answer(world, "status")["others"].as_array().unwrap().len(), 8);
    });
}

#[test]
fn counters_and_clients() {
    World::run(|world| {
        let mut control = Control::start(world);
        control.put("web", &["10.96.0.10"], 80, &[]);
        let count = || answer(world, "get counters")["items"][0]["count"].as_u64().unwrap();
        let before = count();
        TcpStream::connect(V4).unwrap_err();
        TcpStream::connect("10.96.0.10:81").unwrap_err();
        assert_eq!(count(), before + 2);
        let pid = process::id();
        let (code, out, _) = ask(world, &format!("explain 10.96.0.10:81 --pid {pid}"));
        assert!(code == 1 && out.contains("does not have"), "{out}");
        let (code, out, notes) = ask(world, "explain 10.96.0.10:80 --pid 4194305");
        assert_eq!((code, out.as_str()), (2, ""));
        assert!(notes.starts_with("error: --pid 4194305: there is no such process"), "{notes}");
        assert_eq!(ask(world, "get addresses -o name").1, "10.96.0.10\n");
    });
}

const WORDS: [&str; 12] = [
    "get services",
    "get services -o wide",
    "get services -o name",
    "get services -o json",
    "get backends -o wide",
    "get backends -o json",
    "get addresses -o wide",
    "get services 10.96.0.10:81",
    "explain 10.96.0.10:80/udp",
    "explain 10.96.0.10:80/udp -o json",
    "explain 10.96.0.10:99",
    "status",
];

/// Who wrote the maps may have written anything.
#[test]
fn names_that_are_none_are_printed_all_the_same() {
    World::run(|world| {
        let mut control = Control::start(world);
        control.put("web", &["10.96.0.10"], 80, &[backend4(1)]);
        let lines = |words| {
            let (_, out, notes) = ask(world, words);
            (out + &notes).lines().count()
        };
        let before = WORDS.map(lines);
        let maps = world.pins().maps().unwrap().expect("maps");
        let data = MapData::from_pin(maps.join("names")).unwrap();
        let map = Map::HashMap(data);
        let mut names: aya::maps::HashMap<_, u32, [u8; 200]> = map.try_into().unwrap();
        // Namespace, name and port.
        let texts: [&[u8]; 3] = [
            b"a\x1b[2J\x1b]0;x\x07",
            b"b\n\r\t\x7f\xff\xc2\x9b",
            "\u{202e}c\u{2066}\u{2028}".as_bytes(),
        ];
        let all: Vec<_> = names.iter().map(Result::unwrap).collect();
        for (id, mut name) in all {
            for (field, text) in name.as_chunks_mut::<64>().0.iter_mut().zip(texts) {
                field.fill(0);
                field[..text.len()].copy_from_slice(text);
            }
            names.insert(&id, &name, 0).unwrap();
        }
        let harmful = |c: char| {
            (c.is_control() && c != '\n')
                || matches!(c, '\u{200e}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
        };
        for (words, lines) in WORDS.into_iter().zip(before) {
            let (_, out, notes) = ask(world, words);
            let all = out + &notes;
            assert!(!all.contains(harmful), "{words}: {all:?}");
            assert!(all.lines().count() == lines, "{words}, {lines} lines: {all}");
            let names = ["status", "get addresses -o wide"].contains(&words);
            assert!(names || all.contains("[2J"), "{words}: {all}");
        }
    });
}
