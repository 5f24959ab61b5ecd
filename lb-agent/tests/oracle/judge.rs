//! Both sides after each step, asked about the same packets; and kube-proxy's side alone, asked once more
//! without a field.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
};

use k8s_openapi::api::discovery::v1::Endpoint;
use lb_agent::sources::translate;

use super::{
    case::{Case, Config, Key, Kind, Object, Op, endpoints},
    claims::Claims,
    deviations::{Applied, Asked, Deviation, count, leave_closed_out, wanted},
    flows::{Again, Flows, New, Now},
    mutations::Mutation,
    outcome::{Fate, Outcome, Packet, Stated, difference, stated_differences},
    outside::{self, Handled, Unseen},
    packets::{Targets, packets, targets},
    program::{Answer, Place, Program, Question, State},
    regular::Regular,
    socklb::Socklb,
};

/// What was compared, so that nobody takes silence for agreement.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    pub(crate) steps: usize,
    pub(crate) packets: usize,
    pub(crate) fates: BTreeMap<Fate, usize>,
    pub(crate) with_affinity: usize,
    pub(crate) at_other_nodes: usize,
    pub(crate) contested: usize,
    pub(crate) health_checks: usize,
    pub(crate) no_local: usize,
    pub(crate) lists: usize,
    pub(crate) starts: usize,
    pub(crate) interfaces: usize,
    /// Visits of a client that comes back, and how often it was remembered.
    pub(crate) visits: usize,
    pub(crate) remembered: usize,
    pub(crate) flows: Again,
    pub(crate) outside: BTreeMap<Fate, usize>,
    /// Of those that are forwarded from elsewhere.
    pub(crate) masqueraded: usize,
    pub(crate) kept_their_source: usize,
    pub(crate) sctp: usize,
    pub(crate) deviations: Applied,
}

impl Seen {
    fn handled(&mut self, packet: &Packet, handled: &Handled) {
        if packet.is_seen() {
            return;
        }
        *self.outside.entry(handled.fate).or_default() += 1;
        let is_masqueraded = handled.endpoints.values().any(|is| *is);
        self.masqueraded += usize::from(is_masqueraded);
        self.kept_their_source += usize::from(!is_masqueraded && handled.fate == Fate::Forwarded);
        self.sctp += usize::from(packet.protocol == "SCTP" && handled.fate == Fate::Forwarded);
    }

    fn note(&mut self, outcome: &Outcome) {
        self.packets += 1;
        *self.fates.entry(outcome.fate).or_default() += 1;
        self.with_affinity += usize::from(outcome.affinity > 0);
    }
}

/// What kube-proxy was asked after a step, and what is to be done by its answers.
pub(crate) struct Recorded {
    stated: Stated,
    /// With the endpoints that see the node's address.
    packets: Vec<(Packet, Outcome, BTreeSet<SocketAddr>)>,
}

/// Says where the two sides differ after the first step after which they do; else what was compared.
pub(crate) fn compare(
    program: &mut Program,
    case: &Case,
    seen: &mut Seen,
    mutation: Option<&Mutation>,
) -> Result<Vec<Recorded>, String> {
    let mut asked = Asked::new(&case.config);
    program.begin(&asked.config(&mut seen.deviations));
    let config = mutation.map_or_else(|| case.config.clone(), |it| it.config(&case.config));
    let mut sides = Sides {
        case,
        mutation,
        socklb: Socklb::new(&config),
        program,
        live: BTreeMap::new(),
        before: Targets::new(),
        record: Vec::new(),
        regular: Regular::default(),
        flows: Flows::default(),
        course: Course::default(),
    };
    for (i, step) in case.steps.iter().enumerate() {
        seen.steps += 1;
        let state = sides.program.step(&asked.ops(step, &mut seen.deviations));
        match mutation {
            Some(mutation) => sides.socklb.step(&mutation.ops(&sides.live, step)),
            None => sides.socklb.step(step),
        }
        sides.course = follow(&mut sides.live, step, seen);
        let mut lines = Vec::new();
        sides.statements(&state, seen, &mut lines);
        sides.packets(&asked, &state, seen, &mut lines);
        if !lines.is_empty() {
            return Err(format!("after step {}:\n{}", i + 1, lines.join("\n")));
        }
    }
    Ok(sides.record)
}

/// Whether kube-proxy answers anything otherwise in another case that has the same steps.
pub(crate) fn matters(program: &mut Program, other: &Case, record: &[Recorded]) -> bool {
    let mut asked = Asked::new(&other.config);
    let (mut seen, mut live) = (Seen::default(), BTreeMap::new());
    program.begin(&asked.config(&mut seen.deviations));
    for (step, recorded) in other.steps.iter().zip(record) {
        let state = program.step(&asked.ops(step, &mut seen.deviations));
        follow(&mut live, step, &mut seen);
        let claims = Claims::new(&state.claims, &live);
        let same = recorded.packets.iter();
        let (questions, before): (Vec<Question>, Vec<_>) = same
            .filter_map(|(packet, was, masqueraded)| {
                Some((question(packet, &asked, &claims, &mut seen)?, (was, masqueraded)))
            })
            .unzip();
        let answers = program.ask(&questions);
        let mut pairs = answers.iter().zip(before);
        let is_other = |(answer, (was, of)): (&Answer, (&Outcome, &BTreeSet<SocketAddr>))| {
            wanted(answer, &mut seen.deviations) != *was || masqueraded(answer) != *of
        };
        if Stated::from(&state) != recorded.stated || pairs.any(is_other) {
            return true;
        }
    }
    false
}

/// What kube-proxy may have acted on in the course of a step, op by op, and nobody sees at its end.
#[derive(Debug, Default)]
pub(super) struct Course {
    /// Endpoints that were ready and did not serve.
    pub(super) idle: BTreeSet<IpAddr>,
    /// How many ops were about Services and slices: with two, an endpoint may have been away.
    pub(super) changes: usize,
}

/// Keeps the objects that there are.
fn follow(live: &mut BTreeMap<Key, Object>, step: &[Op], seen: &mut Seen) -> Course {
    let mut course = Course { idle: idle(live).collect(), changes: 0 };
    for op in step {
        let is_of_endpoints = |object: &Object| !matches!(object, Object::Node(_));
        course.changes += usize::from(match op {
            Op::List { kind, .. } => *kind != Kind::Node,
            _ => op.objects().iter().any(is_of_endpoints),
        });
        seen.interfaces += usize::from(matches!(op, Op::Interfaces { .. }));
        match op {
            Op::Delete { object } => drop(live.remove(&object.key())),
            Op::Apply { .. } | Op::Interfaces { .. } => {}
            Op::List { kind, .. } => {
                seen.lists += 1;
                live.retain(|key, _| key.0 != *kind);
            }
            Op::Start { .. } => {
                seen.starts += 1;
                live.clear();
            }
        }
        if !matches!(op, Op::Delete { .. }) {
            let objects = op.objects().iter();
            live.extend(objects.map(|object| (object.key(), object.clone())));
        }
        course.idle.extend(idle(live));
    }
    course
}

/// Endpoints that are ready and do not serve.
fn idle(live: &BTreeMap<Key, Object>) -> impl Iterator<Item = IpAddr> {
    let is_idle = |endpoint: &&Endpoint| {
        let conditions = endpoint.conditions.as_ref();
        conditions.is_some_and(|it| it.ready != Some(false) && it.serving == Some(false))
    };
    let all = endpoints(live).filter(is_idle);
    all.filter_map(|endpoint| translate::address(endpoint.addresses.first()?).ok())
}

struct Sides<'a> {
    case: &'a Case,
    mutation: Option<&'a Mutation>,
    socklb: Socklb,
    program: &'a mut Program,
    /// The objects that there are.
    live: BTreeMap<Key, Object>,
    /// Where packets went after the step before.
    before: Targets,
    record: Vec<Recorded>,
    regular: Regular,
    flows: Flows,
    course: Course,
}

impl Sides<'_> {
    fn statements(&self, state: &State, seen: &mut Seen, lines: &mut Vec<String>) {
        let found = self.socklb.stated();
        let mut wanted = Stated::from(state);
        leave_closed_out(&self.case.config, &self.live, &mut wanted, &found, &mut seen.deviations);
        seen.health_checks += wanted.health.len();
        seen.no_local += wanted.no_local.len();
        stated_differences(&wanted, &found, lines);
    }

    fn packets(&mut self, asked: &Asked, state: &State, seen: &mut Seen, lines: &mut Vec<String>) {
        let claims = Claims::new(&state.claims, &self.live);
        let now = targets(asked.now(), &self.live);
        let mut all = now.clone();
        all.append(&mut self.before);
        all.extend(self.socklb.frontends());
        all.extend(self.flows.targets());
        self.before = now;
        let (packets, questions): (Vec<Packet>, Vec<Question>) = packets(asked.now(), &all)
            .into_iter()
            .filter_map(|packet| Some((packet, question(&packet, asked, &claims, seen)?)))
            .unzip();
        let answers: Vec<Answer> = self.program.ask(&questions);
        let by_sockets = self.by_sockets(asked.now(), &packets, &questions, &answers);
        let mut recorded = Vec::with_capacity(packets.len());
        let mut sticky = None;
        let mut flows = Now::new();
        for ((packet, question), answer) in packets.into_iter().zip(questions).zip(&answers) {
            let sent = self.mutation.map_or(packet, |it| it.packet(packet));
            if question.is_to(&packet) {
                lines.extend(self.unseen((packet, sent), answer, &claims, seen));
            }
            let outcome = wanted(answer, &mut seen.deviations);
            recorded.push((packet, outcome.clone(), masqueraded(answer)));
            // What one says of another address says nothing of this one.
            let may_flow = packet.protocol == "UDP"
                && question.is_to(&packet)
                && asked.now().has_family_of(packet.to.ip());
            let alone = question.only.is_empty();
            let is_for_packets = !claims.is_cluster_ip(packet.to, packet.protocol);
            if !packet.is_seen() {
                if may_flow && is_for_packets {
                    let new = || New { answer: answer.clone(), outcome, is_for_packets };
                    flows.insert(packet, alone.then(new));
                }
                continue;
            }
            let found = self.by_maps(&sent);
            let by_socket = by_sockets.get(&packet);
            let mut wanted = by_socket.map_or(outcome, |answer| {
                count(&mut seen.deviations, Deviation::SeesPods);
                wanted(answer, &mut seen.deviations)
            });
            let answer = by_socket.unwrap_or(answer);
            // Of what several want, kube-proxy was shown the owner alone. That the address is another one's
            // cluster IP, it does not know.
            if matches!(wanted.fate, Fate::Refused | Fate::Untouched)
                && found.fate == Fate::UnknownPort
                && !question.only.is_empty()
                && claims.is_cluster_ip_of_another(packet.to.ip(), &question.only)
            {
                wanted.fate = Fate::UnknownPort;
            }
            seen.note(&wanted);
            seen.at_other_nodes += usize::from(!answer.node.is_empty());
            lines.extend(difference(&packet, &wanted, &found));
            let is_candidate = alone && answer.node.is_empty() && by_socket.is_none();
            if is_candidate && self.regular.may_be(&packet, &wanted) {
                sticky.get_or_insert((packet, question.clone(), wanted.clone()));
            }
            if may_flow {
                let new = || New { answer: answer.clone(), outcome: wanted, is_for_packets };
                flows.insert(packet, alone.then(new));
            }
        }
        self.record.push(Recorded { stated: Stated::from(state), packets: recorded });
        let Self { flows: of_udp, socklb, mutation, course, .. } = self;
        let tallies = (&mut seen.flows, &mut seen.deviations);
        let known = (&state.flows[..], &flows, &course.idle);
        of_udp.again(known, socklb, *mutation, tallies, lines);
        if lines.is_empty() {
            self.program.begin_flows(&self.flows.begin(&flows, &self.socklb));
            self.regular.pause(self.case.config.pause, self.socklb.config().pause);
            let Self { regular, program, socklb, course, .. } = self;
            lines.extend(regular.visit(sticky, course.changes, (program, socklb), seen));
        }
    }

    /// What kube-proxy would answer the node's pods if it could tell them, where it cannot and socklb
    /// answers them otherwise.
    fn by_sockets(
        &mut self,
        config: &Config,
        packets: &[Packet],
        questions: &[Question],
        answers: &[Answer],
    ) -> BTreeMap<Packet, Answer> {
        let all = packets.iter().zip(questions).zip(answers);
        let others = all.filter(|((packet, _), answer)| {
            let is_of_pod = packet.place == Place::Pod && packet.is_seen();
            is_of_pod && !config.tells_pods(packet.source) && {
                let sent = self.mutation.map_or(**packet, |it| it.packet(**packet));
                wanted(answer, &mut Applied::new()) != self.by_maps(&sent)
            }
        });
        let (packets, questions): (Vec<Packet>, Vec<Question>) = others
            .map(|((packet, question), _)| {
                (*packet, Question { knows_pods: true, ..question.clone() })
            })
            .unzip();
        if packets.is_empty() {
            return BTreeMap::new();
        }
        packets.into_iter().zip(self.program.ask(&questions)).collect()
    }

    /// What a socket gets that sends the packet.
    fn by_maps(&self, packet: &Packet) -> Outcome {
        let mut found = self.socklb.ask(packet);
        if let Some(mutation) = self.mutation {
            mutation.outcome(&self.case.config, packet, &mut found);
        }
        found
    }

    /// A packet as if no program had seen its socket; `sent` is what socklb takes it for.
    fn unseen(
        &self,
        (packet, sent): (Packet, Packet),
        answer: &Answer,
        claims: &Claims,
        seen: &mut Seen,
    ) -> Option<String> {
        let mut found = self.socklb.handles(&sent);
        if let Some(mutation) = self.mutation {
            mutation.handle(&self.case.config, &sent, &mut found);
        }
        let known = (&self.case.config, claims, &self.live);
        let wanted = outside::wanted(&packet, answer, &found, known, &mut seen.deviations);
        seen.handled(&packet, &wanted);
        let differs = difference(&Unseen(&packet), &wanted, &found);
        differs.or_else(|| self.by_table(&packet, claims))
    }

    /// Whether the table for packets says of one what was decided.
    fn by_table(&self, packet: &Packet, claims: &Claims) -> Option<String> {
        if claims.is_cluster_ip(packet.to, packet.protocol) {
            return None;
        }
        let mut decided = self.socklb.handles(packet);
        let mut written = self.socklb.handles_by_table(packet);
        // It knows who reaches itself by the address alone.
        for handled in [&mut decided, &mut written] {
            let those = handled.endpoints.iter_mut();
            those.filter(|(at, _)| at.ip() == packet.source).for_each(|(_, is)| *is = true);
        }
        (decided != written)
            .then(|| format!("{}\n  decided: {decided}\n  written: {written}", Unseen(packet)))
    }
}

/// The endpoints that see the node's address.
fn masqueraded(answer: &Answer) -> BTreeSet<SocketAddr> {
    answer.reached.iter().filter(|it| it.masquerade).map(|it| it.endpoint).collect()
}

fn question(packet: &Packet, asked: &Asked, claims: &Claims, seen: &mut Seen) -> Option<Question> {
    let to = asked.to(packet, claims, &mut seen.deviations)?;
    let only = claims.owner(to, packet.protocol);
    if !only.is_empty() {
        seen.contested += 1;
        count(&mut seen.deviations, Deviation::Contested);
    }
    Some(Question {
        from: packet.place,
        source: packet.source,
        to: to.ip(),
        port: to.port(),
        protocol: packet.protocol,
        only,
        known: false,
        now: 0,
        gets: String::new(),
        knows_pods: false,
    })
}
