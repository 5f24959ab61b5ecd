//! kube-proxy's `pkg/proxy/healthcheck/healthcheck_test.go`, under its names, and what is our own.

use super::*;
use crate::admin::Family::{V4, V6};

/// 2026-11-21T15:35:00Z.
const START: u64 = 1_795_275_300;

struct Clock(Moment);

impl Clock {
    fn start() -> Self {
        let wall = SystemTime::UNIX_EPOCH + Duration::from_secs(START);
        Self(Moment { monotonic: Instant::now(), wall })
    }

    fn step(&mut self, seconds: u64) {
        self.0.monotonic += Duration::from_secs(seconds);
        self.0.wall += Duration::from_secs(seconds);
    }
}

/// A health with the clock and the times that it must tell.
struct Bench {
    health: Health,
    clock: Clock,
    updated: [SystemTime; 2],
}

#[derive(Clone, Copy)]
enum Url {
    Healthz,
    Livez,
}

impl Bench {
    fn new() -> Self {
        let mut health = Health::new(Duration::from_secs(10), vec![V4, V6]);
        health.set_node_eligible(true);
        let clock = Clock::start();
        Self { health, updated: [clock.0.wall; 2], clock }
    }

    fn update(&mut self, family: Family) {
        self.health.updated(family, self.clock.0);
        self.updated[usize::from(family == V6)] = self.clock.0.wall;
    }

    fn queue(&mut self, family: Family) {
        self.health.queued(family, self.clock.0);
    }

    /// The whole body is as upstream expects it.
    fn expect(&self, url: Url, families: [bool; 2], eligible: bool) {
        let now = self.clock.0;
        let healthy = families == [true, true];
        let (ok, eligible, verdict) = match url {
            Url::Healthz => (
                healthy && eligible,
                format!(r#""nodeEligible":{eligible},"#),
                self.health.healthz(now),
            ),
            Url::Livez => (healthy, String::new(), self.health.livez(now)),
        };
        let newest = self.updated[0].max(self.updated[1]);
        let last = text(if ok { now.wall } else { newest });
        let [v4, v6] = self.updated.map(text);
        let now = text(now.wall);
        let [healthy4, healthy6] = families;
        let body = format!(
            r#"{{"lastUpdated":"{last}","currentTime":"{now}",{eligible}"healthy":{healthy},"status":{{"IPv4":{{"lastUpdated":"{v4}","healthy":{healthy4}}},"IPv6":{{"lastUpdated":"{v6}","healthy":{healthy6}}}}}}}"#
        );
        assert_eq!(verdict, ProbeAnswer { ok, body });
    }

    /// Upstream's testProxyHealthUpdater, from the first update on.
    fn timeline(&mut self, url: Url) {
        self.update(V4);
        self.update(V6);
        self.expect(url, [true, true], true);
        // Nothing queued: healthy for as long as nothing happens.
        self.clock.step(25);
        self.expect(url, [true, true], true);
        // One family, the other, and both are late.
        for late in [&[V4][..], &[V6], &[V4, V6]] {
            for family in late {
                self.queue(*family);
            }
            self.clock.step(25);
            self.expect(url, [!late.contains(&V4), !late.contains(&V6)], true);
            self.update(V4);
            self.update(V6);
            self.clock.step(5);
            self.expect(url, [true, true], true);
        }
        // An update of IPv4 does not excuse IPv6.
        self.queue(V6);
        self.clock.step(25);
        self.expect(url, [true, false], true);
        self.update(V4);
        self.expect(url, [true, false], true);
        self.update(V6);
        self.expect(url, [true, true], true);
        // Healthy only when both have caught up.
        self.queue(V4);
        self.queue(V6);
        self.clock.step(25);
        self.expect(url, [false, false], true);
        self.update(V4);
        self.expect(url, [true, false], true);
        self.update(V6);
        self.expect(url, [true, true], true);
    }

    /// Upstream's node states: tainted, deleted. Which Node is eligible says `sources::translate`.
    fn nodes(&mut self, url: Url) {
        for eligible in [true, false, true, false] {
            self.health.set_node_eligible(eligible);
            self.expect(url, [true, true], eligible);
        }
    }
}

/// K5, K6: TestHealthzServer.
#[test]
fn test_healthz_server() {
    let mut bench = Bench::new();
    // Upstream expects 200 here: see `not_healthy_before_the_first_sync`.
    bench.timeline(Url::Healthz);
    bench.nodes(Url::Healthz);
}

/// K5, K7: TestLivezServer.
#[test]
fn test_livez_server() {
    let mut bench = Bench::new();
    let now = text(bench.clock.0.wall);
    let body = format!(r#"{{"lastUpdated":"{now}","currentTime":"{now}","healthy":true}}"#);
    assert_eq!(bench.health.livez(bench.clock.0), ProbeAnswer { ok: true, body });
    bench.timeline(Url::Livez);
    bench.nodes(Url::Livez);
}

/// What a real kube-proxy v1.36 said, but for `healthy` and `reason`.
#[test]
fn not_healthy_before_the_first_sync() {
    let mut bench = Bench::new();
    bench.health.set_node_eligible(false);
    let expect = |bench: &Bench, eligible, status: &str| {
        let now = text(bench.clock.0.wall);
        let last = if status.is_empty() { NEVER } else { "2026-11-21T15:35:00Z" };
        let body = format!(
            r#"{{"lastUpdated":"{last}","currentTime":"{now}","nodeEligible":{eligible},"healthy":false{status},"reason":"not in sync yet"}}"#
        );
        assert_eq!(bench.health.healthz(bench.clock.0), ProbeAnswer { ok: false, body });
    };
    expect(&bench, false, "");
    bench.health.set_node_eligible(true);
    expect(&bench, true, "");
    // One family is not all.
    bench.update(V4);
    let status = r#","status":{"IPv4":{"lastUpdated":"2026-11-21T15:35:00Z","healthy":true}}"#;
    expect(&bench, true, status);
    bench.update(V6);
    bench.expect(Url::Healthz, [true, true], true);
}

/// An API server that is away at the start is no reason to restart the agent.
#[test]
fn alive_before_the_first_sync() {
    let mut bench = Bench::new();
    bench.queue(V4);
    bench.clock.step(1000);
    assert!(bench.health.livez(bench.clock.0).ok);
    assert!(!bench.health.healthz(bench.clock.0).ok);
}

#[test]
fn a_family_that_is_not_served_is_not_waited_for() {
    let mut bench = Bench::new();
    bench.health = Health::new(TIMEOUT, vec![V6]);
    bench.health.set_node_eligible(true);
    bench.queue(V4);
    bench.update(V6);
    bench.clock.step(1000);
    let verdict = bench.health.healthz(bench.clock.0);
    assert!(verdict.ok, "{}", verdict.body);
    assert!(!verdict.body.contains("IPv4"), "{}", verdict.body);
}

#[test]
fn a_fault_of_the_datapath_is_not_healthy_but_alive() {
    let mut bench = Bench::new();
    bench.update(V4);
    bench.update(V6);
    bench.health.set_datapath(Err("no \"connect4\"".to_owned()), bench.clock.0);
    let verdict = bench.health.healthz(bench.clock.0);
    assert!(!verdict.ok);
    assert!(verdict.body.contains(r#""healthy":false,"#), "{}", verdict.body);
    assert!(verdict.body.ends_with(r#""reason":"no \"connect4\""}"#), "{}", verdict.body);
    assert!(!bench.health.is_serving(bench.clock.0.monotonic));
    bench.expect(Url::Livez, [true, true], true);
    bench.health.set_datapath(Ok(()), bench.clock.0);
    bench.expect(Url::Healthz, [true, true], true);
    assert!(bench.health.is_serving(bench.clock.0.monotonic));
}

/// All that is wrong is said; the node is nothing of the agent's.
#[test]
fn ready_to_serve_whatever_the_node() {
    let mut bench = Bench::new();
    let expect = |bench: &Bench, reasons: &str| {
        let (ok, body) = match reasons {
            "" => (true, "ok".to_owned()),
            reasons => (false, format!("{reasons}\n")),
        };
        assert_eq!(bench.health.readyz(bench.clock.0.monotonic), ProbeAnswer { ok, body });
    };
    expect(&bench, "not in sync yet");
    bench.health.set_datapath(Err("no \"connect4\"".to_owned()), bench.clock.0);
    expect(&bench, "not in sync yet; no \"connect4\"");
    let healthz = bench.health.healthz(bench.clock.0).body;
    let reason = r#""reason":"not in sync yet; no \"connect4\""}"#;
    assert!(healthz.ends_with(reason), "{healthz}");
    bench.update(V4);
    expect(&bench, "not in sync yet; no \"connect4\"");
    bench.update(V6);
    expect(&bench, "no \"connect4\"");
    bench.health.set_datapath(Ok(()), bench.clock.0);
    for eligible in [true, false] {
        bench.health.set_node_eligible(eligible);
        expect(&bench, "");
        assert_eq!(bench.health.healthz(bench.clock.0).ok, eligible);
    }
    bench.queue(V6);
    bench.clock.step(9);
    expect(&bench, "");
    bench.clock.step(1);
    expect(&bench, "a change has been waiting for 10 s or more");
    bench.health.set_datapath(Err("none".to_owned()), bench.clock.0);
    expect(&bench, "none; a change has been waiting for 10 s or more");
}

/// K5: the timer starts with the first change after a sync, and ends on the second.
#[test]
fn late_to_the_second() {
    let mut bench = Bench::new();
    bench.update(V4);
    bench.update(V6);
    bench.queue(V4);
    bench.clock.step(9);
    bench.queue(V4);
    bench.expect(Url::Livez, [true, true], true);
    bench.clock.step(1);
    bench.expect(Url::Livez, [false, true], true);
}

/// The wall clock is printed, and decides nothing.
#[test]
fn clocks_that_jump() {
    let mut bench = Bench::new();
    bench.update(V6);
    bench.update(V4);
    bench.queue(V4);
    let before = bench.clock.0.wall;
    bench.clock.0.wall += Duration::from_hours(365 * 24);
    bench.expect(Url::Livez, [true, true], true);
    bench.clock.0.wall = SystemTime::UNIX_EPOCH;
    bench.expect(Url::Livez, [true, true], true);
    bench.clock.step(25);
    let last = format!(r#"{{"lastUpdated":"{}","#, text(before));
    let verdict = bench.health.livez(bench.clock.0);
    assert!(!verdict.ok && verdict.body.starts_with(&last), "{}", verdict.body);
}

/// As Go's RFC3339Nano: without zeros at the end.
#[test]
fn times_are_written_as_go_does() {
    let at = |nanos| text(SystemTime::UNIX_EPOCH + Duration::new(START, nanos));
    assert_eq!(at(0), "2026-11-21T15:35:00Z");
    assert_eq!(at(560_104_090), "2026-11-21T15:35:00.56010409Z");
    assert_eq!(at(500_000_000), "2026-11-21T15:35:00.5Z");
    assert_eq!(at(1), "2026-11-21T15:35:00.000000001Z");
}

/// A source that hangs is the one trouble of our own that a restart may end.
#[test]
fn a_source_that_hangs_fails_everything() {
    let now = Moment::now();
    let mut health = Health::new(TIMEOUT, vec![V4]);
    health.updated(V4, now);
    health.set_node_eligible(true);
    let oks = |health: &Health| {
        [health.healthz(now).ok, health.readyz(now.monotonic).ok, health.livez(now).ok]
    };
    assert_eq!(oks(&health), [true; 3]);
    let standstill = |hangs| Some(Standstill { what: "a.yaml: \"hangs\"".to_owned(), hangs });
    health.set_source(standstill(true), now);
    assert_eq!(oks(&health), [false; 3]);
    for verdict in [health.healthz(now), health.livez(now)] {
        assert!(verdict.body.ends_with(r#","reason":"a.yaml: \"hangs\""}"#), "{}", verdict.body);
    }
    assert_eq!(health.readyz(now.monotonic).body, "a.yaml: \"hangs\"\n");
    // A directory that is not there is none after a restart either.
    health.set_source(standstill(false), now);
    assert_eq!(oks(&health), [false, false, true]);
    assert_eq!(health.readyz(now.monotonic).body, "a.yaml: \"hangs\"\n");
    health.set_source(None, now);
    assert_eq!(oks(&health), [true; 3]);
}

/// What `lbctl status` is told: each thing with its beginning and a remedy.
#[test]
fn since_when_and_what_helps() {
    let mut bench = Bench::new();
    bench.health.begun = bench.clock.0;
    let told = |bench: &Bench| {
        let Readiness { ready, reasons, .. } = bench.health.readiness(bench.clock.0.monotonic);
        assert_eq!(ready, bench.health.readyz(bench.clock.0.monotonic).ok);
        let line = |Reason { what, since, remedy }| format!("{since} {what} | {remedy}");
        reasons.into_iter().map(line).collect::<Vec<_>>()
    };
    let log = "lb-agent's log says what it waits for";
    assert_eq!(told(&bench), [format!("2026-11-21T15:35:00Z not in sync yet | {log}")]);
    bench.clock.step(3);
    let wait = |why: &str| Wait { why: why.to_owned(), remedy: "call".to_owned() };
    bench.health.set_waits(
        [("Node", wait("refused")), ("Service", wait("refused")), ("x", wait("a\nb"))].into(),
    );
    let text = "2026-11-21T15:35:00Z not in sync yet, without Node, Service: refused; without x: a\\nb | call";
    assert_eq!(told(&bench), [text]);
    let body = bench.health.readyz(bench.clock.0.monotonic).body;
    assert_eq!(body, "not in sync yet\n", "whoever reaches the node learns of no server");
    bench.update(V4);
    bench.update(V6);
    assert_eq!(told(&bench), [""; 0]);

    // Other words for the same trouble make it no newer.
    for what in ["no connect4", "no connect6"] {
        bench.clock.step(5);
        bench.health.set_datapath(Err(what.to_owned()), bench.clock.0);
        bench.health.set_maps(Err(format!("{what}!")), bench.clock.0);
    }
    let hangs = Standstill { what: "hangs".to_owned(), hangs: true };
    bench.health.set_source(Some(hangs), bench.clock.0);
    bench.queue(V6);
    bench.clock.step(10);
    let lines = told(&bench);
    for (line, begins) in lines.iter().zip([
        "2026-11-21T15:35:08Z no connect6 | lb-agent repairs",
        "2026-11-21T15:35:13Z hangs | repair the mount",
        "2026-11-21T15:35:08Z no connect6! | give it what it lacks",
        "2026-11-21T15:35:13Z a change has been waiting for 10 s or more | see",
    ]) {
        assert!(line.starts_with(begins), "{line}");
    }
    assert_eq!(lines.len(), 4, "{lines:?}");
}

/// Alive, and tries again; but what changes is not in force.
#[test]
fn maps_that_take_nothing() {
    let mut bench = Bench::new();
    bench.update(V4);
    bench.update(V6);
    bench.clock.step(5);
    bench.queue(V4);
    bench.queue(V6);
    for family in [V4, V6] {
        bench.health.tried(family);
    }
    bench.health.set_maps(Err("the kernel takes nothing".into()), bench.clock.0);
    bench.clock.step(60);
    let now = bench.clock.0;
    let ProbeAnswer { ok, body } = bench.health.healthz(now);
    assert!(!ok && body.contains(r#""reason":"the kernel takes nothing""#), "{body}");
    let newest = text(bench.updated[0]);
    assert!(body.starts_with(&format!(r#"{{"lastUpdated":"{newest}""#)), "{body}");
    let ready = bench.health.readyz(now.monotonic);
    assert_eq!(ready, ProbeAnswer { ok: false, body: "the kernel takes nothing\n".into() });
    assert!(bench.health.livez(now).ok, "a restart would not help");
    assert!(!bench.health.is_serving(now.monotonic));
    bench.health.set_maps(Ok(()), bench.clock.0);
    assert!(bench.health.healthz(now).ok && bench.health.is_serving(now.monotonic));
    // Who hangs in it is not alive.
    bench.queue(V4);
    bench.clock.step(60);
    assert!(!bench.health.livez(bench.clock.0).ok);
}
