use serde_json::json;

use super::{agent::Silence, *};
use crate::admin::readiness::Reason;
use lb_core::dump::sample;

fn program(name: &'static str, cgroup_id: u64) -> ProgramStatus {
    ProgramStatus {
        name,
        state: State::Attached,
        cgroup: Some("/sys/fs/cgroup".into()),
        cgroup_id: Some(cgroup_id),
        program_id: Some(7),
        link_id: Some(8),
    }
}

fn status(programs: Vec<ProgramStatus>, agent: AgentStatus) -> Status {
    let mut status = Status {
        api_version: API_VERSION,
        kind: "Status",
        healthy: true,
        answer: Answer::Yes,
        problems: Vec::new(),
        layout: LAYOUT,
        pins: "/bpf/socklb/v1".into(),
        live_maps: Some("/bpf/socklb/v1/maps-1".into()),
        left: None,
        agent,
        cgroup: Some(ServedCgroup { path: Some("/".into()), is_node: Some(true), id: 1 }),
        packets: None,
        packets_unread: None,
        programs,
        maps: fills::planned(&sample::memory().snapshot()),
        others: Vec::new(),
        interrupted: Vec::new(),
        counters: BTreeMap::new(),
    };
    status.judge(None, &[]);
    status
}

fn text(status: &Status) -> String {
    let mut out = Vec::new();
    status.write(&mut out).unwrap();
    String::from_utf8(out).unwrap()
}

fn running() -> AgentStatus {
    let version = Some(env!("CARGO_PKG_VERSION").to_owned());
    AgentStatus {
        running: true,
        pid: Some(42),
        ready: Some(true),
        version,
        ..AgentStatus::default()
    }
}

#[test]
fn tables_that_cannot_be_read_are_said_and_no_problem() {
    let packets_unread = Some("nf_tables: no rights".to_owned());
    let status = Status { packets_unread, ..status(vec![program("connect4", 1)], running()) };
    let line = "tables for packets: cannot be read: nf_tables: no rights\n";
    assert!(text(&status).contains(line) && status.healthy, "{}", text(&status));
}

#[test]
fn healthy() {
    let status = status(vec![program("connect4", 1), program("connect6", 1)], running());
    assert_eq!(
        text(&status),
        "\
healthy

agent:   running (pid 42), ready
pins:    /bpf/socklb/v1 (layout 5, maps-1)
cgroup:  / (the node's root: all its sockets)
packets: off (no table of socklb in nftables)

PROGRAM    STATE      CGROUP
connect4   attached   /sys/fs/cgroup
connect6   attached   /sys/fs/cgroup

MAP        USED   SIZE   FILL
services   5      16     31.2%
backends   5      64     7.8%
names      3      32     9.4%
"
    );
}

#[test]
fn each_thing_that_is_wrong_is_named() {
    let mut programs = vec![program("connect4", 1), program("connect6", 2)];
    programs.push(ProgramStatus { state: State::CgroupGone, ..program("getpeername4", 1) });
    programs.push(ProgramStatus { state: State::Missing, ..program("getpeername6", 1) });
    let mut status = status(programs, AgentStatus::default());
    status.maps[1].used = 63;
    let other = |name: &str| Other { hook: "connect4", name: name.into(), program_id: 9 };
    status.others = vec![other("connect4"), other("cil_sock4_conne")];
    status.interrupted = vec!["connect4_new".into()];
    status.counters.insert("denied", 2);
    status.judge(None, &["sockets"]);
    let problems = &status.problems;
    for (problem, word) in problems.iter().zip([
        "no agent is running",
        "not attached: getpeername6;",
        "cgroup is gone: getpeername4;",
        "different cgroups",
        "sockets",
        "--max-backends",
        "another program on connect4: connect4 id 9; a socklb of another",
        "interrupted: connect4_new;",
    ]) {
        assert!(problem.contains(word), "{problem}");
    }
    assert_eq!(problems.len(), 8, "that of a stranger is only told");
    assert!(text(&status).ends_with(
        "COUNTER   COUNT\ndenied    2\n\nother programs at the same hooks:\n  \
         another program on connect4: connect4 id 9\n  \
         another program on connect4: cil_sock4_conne id 9\n"
    ));
    assert!(text(&status).starts_with("degraded\n  no agent is running"));
}

/// The words at the top and the exit code, by what is wrong.
#[test]
fn the_worst_of_several_things_is_the_answer() {
    let program = |state| ProgramStatus { state, ..program("connect4", 1) };
    let judged = |agent: &AgentStatus, state| {
        let status = status(vec![program(state)], agent.clone());
        let text = text(&status);
        let head = text.lines().next().unwrap_or_default().to_owned();
        (head, status.answer.code(), status.problems.len(), status.healthy)
    };
    let reason = |what: &str| Reason {
        what: what.to_owned(),
        since: "2026-11-29T01:40:00Z".to_owned(),
        remedy: "wait".to_owned(),
    };
    let reasons = vec![reason("not in sync yet"), reason("no memory")];
    let silent = |silence| AgentStatus { silence: Some(silence), ready: None, ..running() };
    let not_ready = AgentStatus { ready: Some(false), reasons, ..running() };
    for (agent, verdict, code, problems) in [
        (running(), "healthy", 0, 0),
        (AgentStatus::default(), "degraded", 6, 1),
        (silent(Silence::Stopped), "degraded", 7, 1),
        (silent(Silence::Hangs), "degraded", 7, 1),
        (silent(Silence::Absent), "unknown", 7, 1),
        (not_ready.clone(), "degraded", 8, 2),
    ] {
        let wanted = (verdict.to_owned(), code, problems, code == 0);
        assert_eq!(judged(&agent, State::Attached), wanted, "{agent}");
        let worse = ("degraded".to_owned(), 1, problems + 1, false);
        assert_eq!(judged(&agent, State::Missing), worse, "{agent}");
    }
    let status = status(vec![program(State::Attached)], not_ready);
    assert!(text(&status).starts_with(
        "degraded\n  the agent is not ready, since 2026-11-29T01:40:00Z: not in sync yet; wait\n  \
         the agent is not ready, since 2026-11-29T01:40:00Z: no memory; wait\n\n\
         agent:   running (pid 42), not ready\n"
    ));
}

#[test]
fn the_schema() {
    let status = status(vec![program("connect4", 1)], running());
    assert_eq!(
        serde_json::to_value(&status).unwrap(),
        json!({
            "apiVersion": "socklb/v1", "kind": "Status", "healthy": true, "problems": [],
            "layout": 5, "pins": "/bpf/socklb/v1", "liveMaps": "/bpf/socklb/v1/maps-1",
            "agent": {
                "running": true, "pid": 42, "version": env!("CARGO_PKG_VERSION"), "ready": true,
                "reasons": [],
            },
            "cgroup": { "path": "/", "isNode": true },
            "programs": [{
                "name": "connect4", "state": "attached", "cgroup": "/sys/fs/cgroup",
                "cgroupId": 1, "programId": 7, "linkId": 8,
            }],
            "maps": [
                { "name": "services", "used": 5, "size": 16 },
                { "name": "backends", "used": 5, "size": 64 },
                { "name": "names", "used": 3, "size": 32 },
            ],
            "packets": null, "others": [], "interrupted": [], "counters": {},
        })
    );
}
