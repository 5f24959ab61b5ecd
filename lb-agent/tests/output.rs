//! Whoever reads what the agent says may go away, or have no room: that is no reason to stop.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]
#![expect(unsafe_code, reason = "capabilities are dropped between fork and exec")]

use std::{
    fs::{File, Permissions},
    io::{self, BufRead as _, BufReader, Read as _},
    os::unix::{fs::PermissionsExt as _, process::CommandExt as _},
    path::Path,
    process::{Command, Output, Stdio},
};

use lb_agent::mounts;

/// lb-agent with these arguments, to its end.
fn lb_agent(args: &[&str]) -> Output {
    agent().args(args).output().unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

/// `lb-agent` as on a machine where nothing is pinned: with what an agent at work has pinned, a file that
/// cannot be read is another matter, and nobody but root may look there.
fn agent() -> Command {
    let is_bare = |mount: &mounts::Mount| {
        let pinned = std::fs::symlink_metadata(mount.path.join("socklb"));
        pinned.is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
    };
    let mut bpffs = mounts::all("bpf").unwrap();
    bpffs.retain(|mount| !is_bare(mount));
    if bpffs.is_empty() {
        return Command::new(env!("CARGO_BIN_EXE_lb-agent"));
    }
    // Whoever is not root has the right to mount in a namespace of users only, and nothing is left of it.
    let (rights, drop): (&[&str], _) = if nix::unistd::geteuid().is_root() {
        (&[], "")
    } else {
        let drop = "setpriv --inh-caps=-all --ambient-caps=-all ";
        (&["--user", "--map-current-user", "--keep-caps"], drop)
    };
    let hide = "mount -t tmpfs none \"$1\" && shift && ".repeat(bpffs.len());
    let script = format!("{hide}exec {drop}\"$@\"");
    let hidden = || {
        let mut unshare = Command::new("unshare");
        unshare.arg("--mount").args(rights).args(["sh", "-c", &script, "hide"]);
        unshare.args(bpffs.iter().map(|mount| &mount.path));
        unshare
    };
    let tried = hidden().arg("true").output().unwrap();
    assert!(
        tried.status.success(),
        "something is pinned in {bpffs:?}, and cannot be hidden from the test, which needs root or user \
         namespaces for that: {}",
        String::from_utf8_lossy(&tried.stderr)
    );
    let mut agent = hidden();
    agent.arg(env!("CARGO_BIN_EXE_lb-agent"));
    agent
}

#[test]
fn a_log_that_cannot_be_written() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("broken.yaml"), "kind: [").unwrap();
    let status = agent()
        .args(["--dry-run", "--source"])
        .arg(format!("dir:{}", dir.path().display()))
        .env("SOCKLB_LOG", "debug")
        .stdout(Stdio::null())
        .stderr(File::options().write(true).open("/dev/full").unwrap())
        .status()
        .unwrap();
    assert_eq!(status.code(), Some(0));
}

/// Escapes, line breaks, a one-byte CSI, a delete and an override of direction.
const HOSTILE: &str = "\u{1b}]0;x\u{7}\u{1b}[2J\n\r\t\u{9b}31m\u{7f}\u{202e}\u{2066}\u{2028}x";

/// Nothing that a terminal obeys, but for line breaks.
fn is_harmless(text: &str) -> bool {
    let harmful = |c: char| {
        (c.is_control() && c != '\n')
            || matches!(c, '\u{61c}' | '\u{200e}'..='\u{200f}' | '\u{2028}'..='\u{202e}')
            || matches!(c, '\u{2066}'..='\u{2069}')
    };
    !text.contains(harmful)
}

/// Names of files, objects, fields and kinds, in files that are good, wrong or broken.
fn hostile(dir: &Path) {
    let escaped = serde_json::to_string(HOSTILE).unwrap();
    let files = [
        ("kind", format!(r#"{{"apiVersion": {escaped}, "kind": {escaped}}}"#)),
        (
            "service",
            format!(
                r#"{{"apiVersion": "v1", "kind": "Service",
                "metadata": {{"name": {escaped}, "namespace": {escaped}}},
                "spec": {{"clusterIP": {escaped}}}}}"#
            ),
        ),
        (
            "fields",
            format!(
                r#"{{"apiVersion": "v1", "kind": "Service", "metadata": {{"name": "a"}},
                "spec": {{"clusterIP": "10.96.0.1", "clusterIPs": [{escaped}],
                "externalIPs": [{escaped}], "loadBalancerSourceRanges": [{escaped}],
                "ports": [{{"name": {escaped}, "port": 80}},
                {{"name": "b", "port": 81, "protocol": {escaped}}}]}}}}"#
            ),
        ),
        (
            "slice",
            format!(
                r#"{{"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
                "metadata": {{"name": "a", "labels": {{"kubernetes.io/service-name": {escaped}}}}},
                "addressType": {escaped}}}"#
            ),
        ),
        (
            "node",
            format!(
                r#"{{"apiVersion": "v1", "kind": "Node", "metadata": {{"name": {escaped}}},
                "status": {{"addresses": [{{"type": "InternalIP", "address": {escaped}}}]}}}}"#
            ),
        ),
        ("type", format!(r#"{{"apiVersion": "v1", "kind": "Node", "spec": {escaped}}}"#)),
        ("map", format!(r#"{{{escaped}: 1, "apiVersion": {{{escaped}: 1}}, "kind": "x"}}"#)),
        ("broken", format!("{{{HOSTILE}: [")),
        ("text", HOSTILE.to_owned()),
    ];
    for (name, text) in files {
        for end in ["json", "yaml"] {
            std::fs::write(dir.join(format!("{name}-{HOSTILE}.{end}")), &text).unwrap();
        }
    }
    std::fs::create_dir(dir.join(format!("{HOSTILE}.yaml"))).unwrap();
    std::os::unix::fs::symlink(HOSTILE, dir.join(format!("link-{HOSTILE}.yaml"))).unwrap();
}

#[test]
fn nothing_that_files_say_or_are_called_reaches_a_terminal_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let files = dir.path().join(format!("dir-{HOSTILE}"));
    std::fs::create_dir(&files).unwrap();
    hostile(&files);
    for format in ["text", "json"] {
        let output = agent()
            .args(["--dry-run", "--log=debug", "--log-format", format, "--source"])
            .arg(format!("dir:{}", files.display()))
            .output()
            .unwrap();
        let (out, log) = (String::from_utf8(output.stdout), String::from_utf8(output.stderr));
        let (out, log) = (out.unwrap(), log.unwrap());
        assert!(is_harmless(&out) && is_harmless(&log), "{format}: {out:?}\n{log:?}");
        // Each line is one of ours: what is in them begins none.
        for line in log.lines() {
            let begins = if format == "json" { "{\"timestamp\"" } else { "20" };
            assert!(line.starts_with(begins), "{format}: {line}");
            assert!(format == "text" || serde_json::from_str::<serde_json::Value>(line).is_ok());
        }
        for said in ["is no valid name", "service-", "broken-", "it is a directory", "skipped"] {
            assert!(log.contains(said), "{format}: nothing about {said}: {log}");
        }
    }
    // An error that ends the agent.
    let output = agent()
        .args(["--dry-run", "--source=dir:/", "--bpffs"])
        .arg(dir.path().join(format!("nowhere-{HOSTILE}")))
        .output()
        .unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("nowhere-") && is_harmless(&said), "{said:?}");
}

/// Nothing is waited for, and nothing but the error is said: cause, path and remedy.
#[test]
fn a_directory_that_cannot_be_read() {
    // CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH, by which root reads it all the same.
    const DAC_OVERRIDE: libc::c_ulong = 1;
    const DAC_READ_SEARCH: libc::c_ulong = 2;
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    std::fs::write(path("file"), "").unwrap();
    std::fs::create_dir(path("closed")).unwrap();
    let mode = |name: &str, mode| {
        std::fs::set_permissions(path(name), Permissions::from_mode(mode)).unwrap();
    };
    mode("closed", 0o000);
    let said = |name: &str| {
        let mut agent = agent();
        agent.args(["--dry-run", "--source"]).arg(format!("dir:{}", path(name).display()));
        // SAFETY: the closure makes system calls only. Who is not root has none of them to drop.
        unsafe {
            agent.pre_exec(|| {
                for capability in [DAC_OVERRIDE, DAC_READ_SEARCH] {
                    libc::prctl(libc::PR_CAPBSET_DROP, capability);
                }
                Ok(())
            })
        };
        let output = agent.output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        assert_eq!(text(&output.stdout), "");
        text(&output.stderr).replace(&dir.path().display().to_string(), "DIR")
    };
    assert_eq!(
        said("none"),
        "error: cannot read the directory DIR/none: No such file or directory (os error 2); \
         `mkdir DIR/none` and put the files there, or name another by --source dir:PATH\n"
    );
    assert_eq!(
        said("file"),
        "error: cannot read the directory DIR/file: Not a directory (os error 20); --source dir:PATH \
         takes a directory: name the one that the files are in\n"
    );
    assert_eq!(
        said("closed"),
        "error: cannot read the directory DIR/closed: Permission denied (os error 13); `chmod u+rx \
         DIR/closed`, and give it to the user that runs lb-agent, or name another by --source \
         dir:PATH\n"
    );
    mode("closed", 0o700);
}

/// A word that means nothing would turn the whole log off.
#[test]
fn a_filter_that_means_nothing_is_refused() {
    for (filter, wanted) in [
        ("warning", "\"warning\" is no level: use off, error, warn, info, debug or trace;"),
        ("inof", "\"inof\" is no level: use off, error, warn, info, debug or trace;"),
        ("lb_agent=foo", "\"foo\" is no level: use off, error, warn, info, debug or trace;"),
        ("lb_agnet=debug", "\"lb_agnet\" is no part of lb-agent: use one of"),
    ] {
        let output = lb_agent(&["--dry-run", "--source=dir:/none", "--log", filter]);
        assert_eq!(output.status.code(), Some(2), "{filter}");
        let said = text(&output.stderr).split_whitespace().collect::<Vec<_>>().join(" ");
        let wanted = format!("error: invalid value '{filter}' for '--log <FILTER>': {wanted}");
        assert!(said.starts_with(&wanted), "{said}");
        let mut by_environment = agent();
        let output = by_environment.arg("--cleanup").env("SOCKLB_LOG", filter).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{filter}");
    }
}

/// A part that is named leaves the rest as it is.
#[test]
fn a_filter_of_one_part() {
    let dir = tempfile::tempdir().unwrap();
    let source = format!("--source=dir:{}", dir.path().display());
    for (filter, says) in
        [("lb_agent::pipeline=debug", true), ("lb_agent::sources=warn", false), ("off", false)]
    {
        let output = lb_agent(&["--dry-run", &source, "--log", filter]);
        assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
        assert_eq!(text(&output.stderr).contains("INFO directory"), says, "{filter}");
    }
}

/// Whatever the terminal: 80 columns, which each has.
#[test]
fn no_line_of_help_is_wider_than_a_terminal() {
    let lbctl = ["", "get", "explain", "status"].map(|of| (env!("CARGO_BIN_EXE_lbctl"), of));
    let all = [(env!("CARGO_BIN_EXE_lb-agent"), "")].into_iter().chain(lbctl);
    for ((program, of), help) in all.flat_map(|all| [(all, "--help"), (all, "-h")]) {
        let mut command = Command::new(program);
        command.args([of, help].iter().filter(|word| !word.is_empty()));
        let output = command.env("COLUMNS", "200").output().unwrap();
        assert!(output.status.success(), "{program} {of}");
        let wide: Vec<_> =
            text(&output.stdout).lines().filter(|line| line.chars().count() > 80).collect();
        assert!(wide.is_empty(), "{program} {of} {help}: {wide:#?}");
    }
}

/// The last line is JSON like all others, also when no others are asked for.
#[test]
fn the_error_that_ends_the_agent() {
    let run = |args: &[&str]| {
        let output = lb_agent(&[&["--dry-run", "--source=dir:/nowhere/at/all"], args].concat());
        assert_eq!(output.status.code(), Some(1));
        text(&output.stderr).to_owned()
    };
    let plain = run(&[]);
    let error = plain.strip_prefix("error: ").unwrap().trim_end();
    assert!(error.starts_with("cannot read the directory /nowhere/at/all: "), "{plain}");
    for log in ["info", "off", "debug"] {
        let said = run(&["--log-format=json", "--log", log]);
        let lines = said.lines().map(|line| serde_json::from_str(line).unwrap());
        let lines: Vec<serde_json::Value> = lines.collect();
        let last = lines.last().unwrap();
        assert_eq!(last["level"], "ERROR", "{said}");
        assert_eq!(last["target"], "lb_agent", "{said}");
        assert_eq!(last["fields"]["message"], error, "{said}");
    }
}

/// All usage errors have one code, clap's.
#[test]
fn usage_errors() {
    for args in [
        &["--source=dir:/none", "--kubeconfig=/none"][..],
        &["--source=dir:/none", "--context=none"],
        &["--source=file:/none"],
        &["--no-such-flag"],
        &["--stay"],
    ] {
        let output = lb_agent(args);
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        let said = text(&output.stderr);
        assert!(said.starts_with("error: ") && said.contains("try '--help'"), "{said}");
    }
}

/// https://no-color.org, https://bixense.com/clicolors, and terminals that know no colours.
#[test]
fn colours() {
    let dir = tempfile::tempdir().unwrap();
    let colours = |terminal: bool, variables: &[(&str, &str)]| {
        let pty = nix::pty::openpty(None, None).unwrap();
        let mut agent = agent();
        agent.arg("--dry-run").arg(format!("--source=dir:{}", dir.path().display()));
        for variable in ["NO_COLOR", "CLICOLOR", "CLICOLOR_FORCE", "CI"] {
            agent.env_remove(variable);
        }
        agent.env("TERM", "xterm").envs(variables.iter().copied()).stdout(Stdio::null());
        let mut said = Vec::new();
        if terminal {
            let mut child = agent.stderr(pty.slave).spawn().unwrap();
            drop(agent);
            // A terminal that nobody writes to any more is an error.
            let _ = File::from(pty.master).read_to_end(&mut said);
            assert!(child.wait().unwrap().success());
        } else {
            said = agent.output().unwrap().stderr;
        }
        let said = text(&said);
        assert!(said.contains("directory"), "{said}");
        said.contains('\u{1b}')
    };
    assert!(colours(true, &[]));
    assert!(!colours(false, &[]));
    assert!(!colours(true, &[("NO_COLOR", "1")]));
    assert!(colours(true, &[("NO_COLOR", "")]), "empty is as if not set");
    assert!(!colours(true, &[("TERM", "dumb")]));
    assert!(!colours(true, &[("CLICOLOR", "0")]));
    assert!(colours(true, &[("TERM", "dumb"), ("CLICOLOR_FORCE", "1")]));
    assert!(colours(false, &[("CLICOLOR_FORCE", "1")]));
    assert!(!colours(false, &[("CLICOLOR_FORCE", "1"), ("NO_COLOR", "1")]));
}

/// The same plugin worked when the agent began, and its credentials have expired.
#[test]
fn a_credential_plugin_that_works_no_longer() {
    let dir = tempfile::tempdir().unwrap();
    let (file, plugin) = (dir.path().join("config"), dir.path().join("plugin"));
    let script = "#!/bin/sh\n[ -e \"$0.ran\" ] && { echo no session >&2; exit 3; }\n: >\"$0.ran\"\n\
                  echo '{\"apiVersion\": \"client.authentication.k8s.io/v1\", \"kind\": \
                  \"ExecCredential\", \"status\": {\"token\": \"x\", \"expirationTimestamp\": \
                  \"2020-01-01T00:00:00Z\"}}'\n";
    std::fs::write(&plugin, script).unwrap();
    std::fs::set_permissions(&plugin, Permissions::from_mode(0o755)).unwrap();
    let plugin = plugin.display();
    std::fs::write(&file, kubeconfig(&format!("command: {plugin}"))).unwrap();
    let mut agent = agent();
    agent.arg("--dry-run").arg(format!("--kubeconfig={}", file.display())).env("NO_COLOR", "1");
    // It tries for 30 s, unless it is ended.
    let mut child = agent.stderr(Stdio::piped()).spawn().unwrap();
    let mut said = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
    let found = said.find(|line| line.contains("ERROR"));
    child.kill().unwrap();
    child.wait().unwrap();
    let place = format!("(users[ops].user.exec of the kubeconfig {})", file.display());
    let wanted = format!(
        "the credential plugin `{plugin}` {place} failed (exit status: 3): no session kind="
    );
    let found = found.unwrap();
    assert!(found.contains(&wanted) && found.contains("run it by hand"), "{found}");
}

/// The user `ops` has this plugin.
fn kubeconfig(exec: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: a\n\
         contexts: [{{name: a, context: {{cluster: c, user: ops}}}}]\n\
         clusters: [{{name: c, cluster: {{server: 'https://127.0.0.1:1'}}}}]\n\
         users: [{{name: ops, user: {{exec: {{apiVersion: client.authentication.k8s.io/v1, \
         interactiveMode: Never, {exec}}}}}}}]\n"
    )
}

/// Which program, where it is named, and what to do.
#[test]
fn a_credential_plugin_that_does_not_work() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("config");
    let said = |exec: &str| {
        std::fs::write(&file, kubeconfig(exec)).unwrap();
        let kubeconfig = format!("--kubeconfig={}", file.display());
        let output = lb_agent(&["--dry-run", "--log=off", &kubeconfig]);
        assert_eq!(output.status.code(), Some(1));
        text(&output.stderr).replace(&file.display().to_string(), "FILE")
    };
    let place = "(users[ops].user.exec of the kubeconfig FILE)";
    let missing = said("command: no-such-plugin, args: [get, token], installHint: buy one");
    let begin = format!(
        "error: cannot run the credential plugin `no-such-plugin get token` {place}: No such file or \
         directory (os error 2); install it in one of the directories of PATH ("
    );
    assert!(missing.starts_with(&begin), "{missing}");
    let end = "or give its whole path in users[ops].user.exec of the kubeconfig FILE. The \
               kubeconfig says: buy one\n";
    assert!(missing.ends_with(end), "{missing}");
    assert_eq!(
        said("command: /no/such/plugin"),
        format!(
            "error: cannot run the credential plugin `/no/such/plugin` {place}: No such file or \
             directory (os error 2); install it there, or correct users[ops].user.exec of the \
             kubeconfig FILE\n"
        )
    );
    assert_eq!(
        said("command: sh, args: [-c, 'echo no session >&2; exit 3']"),
        format!(
            "error: the credential plugin `sh -c echo no session >&2; exit 3` {place} failed (exit \
             status: 3): no session; run it by hand to see what it lacks\n"
        )
    );
    let nothing = said("command: 'true'");
    let begin = format!("error: the credential plugin `true` {place} gave no credentials: ");
    assert!(nothing.starts_with(&begin), "{nothing}");
}

fn lbctl(words: &str) -> (Option<i32>, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lbctl"));
    command.args(words.split(' ').filter(|word| !word.is_empty())).env_remove("SOCKLB_BPFFS");
    let output = command.output().unwrap();
    assert!(output.stdout.is_empty(), "{words}: {output:?}");
    (output.status.code(), text(&output.stderr).to_owned())
}

/// What is wrong with a question is told before what is wrong with the machine, and each error says
/// what helps.
#[test]
fn lbctl_says_what_is_wrong_and_what_helps() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().display();
    let bpffs = "name the bpf file system that lb-agent has (its --bpffs or SOCKLB_BPFFS)";
    for (words, code, said) in [
        ("get", 2, "<WHAT>".to_owned()),
        ("get pods", 2, "[possible values: services, backends,".to_owned()),
        ("get services WEB", 2, "neither a name (NAME, NAMESPACE/NAME, with :PORT)".to_owned()),
        ("get services -n Shop", 2, "-n \"Shop\": no namespace can have this name".to_owned()),
        ("get services a/web -n b", 2, "`a/web` is in the namespace a, but -n says b".to_owned()),
        ("get counters web", 2, "counters are of the whole node".to_owned()),
        ("explain web", 2, "`lbctl get services web` shows those of a Service".to_owned()),
        ("explain 10.96.0.10", 2, "a port is missing: 10.96.0.10:80".to_owned()),
        ("explain fd00::a:80", 2, "and IPv6 needs brackets: [fd00::a:80]:80".to_owned()),
        ("explain 10.96.0.10:http", 2, "PORT a number".to_owned()),
        ("explain 10.96.0.10:80/sctp", 2, "use tcp or udp".to_owned()),
        ("status web", 2, "unexpected argument 'web'".to_owned()),
        ("status -o wide", 2, "[possible values: json]".to_owned()),
        (
            &format!("status --bpffs {dir}/nowhere"),
            4,
            format!("error: --bpffs {dir}/nowhere: there is no such directory: {bpffs}\n"),
        ),
        (
            &format!("get services --bpffs {dir}"),
            4,
            format!("error: --bpffs {dir}: not in a bpf file system: {bpffs}\n"),
        ),
    ] {
        let (exit, error) = lbctl(words);
        assert!(exit == Some(code) && error.contains(&said), "{words}: {exit:?} {error}");
        assert!(error.starts_with("error: "), "{words}: {error}");
    }
}
