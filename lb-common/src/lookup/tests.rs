//! What the lookup says of one Service.

extern crate std;

use core::cell::Cell;
use std::vec;

use super::{
    fake::{Fake, fake, flow, gets, peer, record, select, select_after},
    *,
};
use crate::abi::{Address, PortOptions};

#[test]
fn address_port_and_protocol_all_count() {
    let fake = fake();
    assert_eq!(select(&fake, &flow("10.96.0.11:80", 6), 0), Verdict::Miss);
    assert_eq!(select(&fake, &flow("10.96.0.10:81", 6), 0), Verdict::Miss);
    assert_eq!(select(&fake, &flow("10.96.0.10:80", 17), 0), Verdict::Miss);
    assert_eq!(select(&fake, &flow("10.96.0.10:80", 6), 0), gets(2, 7));
    assert_eq!(select(&fake, &flow("[::ffff:10.96.0.10]:80", 6), u32::MAX), gets(4, 7));
}

/// Most connections of a node go to no Service.
#[test]
fn what_is_no_service_costs_two_questions_at_most() {
    let fake = fake();
    for (to, asked) in [("10.96.0.10:80", (1, 0)), ("192.0.2.1:443", (1, 1))] {
        fake.asked.set((0, 0));
        select(&fake, &flow(to, 6), 0);
        assert_eq!(fake.asked.get(), asked, "{to}");
    }
}

#[test]
fn what_is_nobodys_by_the_filter_costs_no_further_question() {
    let mut fake = fake();
    let verdict_and_questions = |fake: &Fake, to| {
        fake.asked.set((0, 0));
        (select(fake, &flow(to, 6), 0), fake.asked.get())
    };
    let serves = (gets(2, 7), (1, 0));
    fake.filter = Some(vec![peer("10.96.0.10:0").addr]);
    assert_eq!(verdict_and_questions(&fake, "10.96.0.10:80"), serves);
    assert_eq!(verdict_and_questions(&fake, "192.0.2.1:80"), (Verdict::Miss, (0, 0)));
    assert_eq!(verdict_and_questions(&fake, "127.0.0.5:80"), (Verdict::Miss, (0, 0)));
    // One bit speaks for all of 127.0.0.0/8, where NodePorts are served there.
    fake.filter = Some(vec![crate::abi::LOOPBACK_NET]);
    assert_eq!(verdict_and_questions(&fake, "127.0.0.5:80"), (Verdict::Miss, (1, 2)));
    assert_eq!(verdict_and_questions(&fake, "[::1]:80"), (Verdict::Miss, (0, 0)));
    assert_eq!(verdict_and_questions(&fake, "10.96.0.10:80"), (Verdict::Miss, (0, 0)));
}

#[test]
fn a_count_from_another_value_never_reaches_into_its_block() {
    let mut fake = fake();
    // The torn reading: block and generation of one value, count of another.
    fake.stale = Service { count: 5, ..fake.service };
    fake.stale_readings = Cell::new(1);
    let verdict = select(&fake, &flow("10.96.0.10:80", 6), u32::MAX);
    assert_eq!(verdict, gets(4, 7));
}

#[test]
fn a_block_of_another_generation_is_read_again_and_then_given_up() {
    let mut fake = fake();
    fake.stale = Service { generation: 6, ..fake.service };
    fake.stale_readings = Cell::new(ATTEMPTS - 1);
    let to = flow("10.96.0.10:80", 6);
    assert_eq!(select(&fake, &to, 0), gets(2, 7));
    fake.stale_readings = Cell::new(ATTEMPTS);
    assert_eq!(select(&fake, &to, 0), Verdict::Fail(Refusal::Unstable));
}

#[test]
fn an_empty_set_refuses_and_a_block_out_of_bounds_is_no_answer() {
    let mut fake = fake();
    fake.records[2] = Backend::refuse().stamped(7, 9);
    fake.service.count = 1;
    let to = flow("10.96.0.10:80", 6);
    assert_eq!(select(&fake, &to, 5), Verdict::Fail(Refusal::NoEndpoints));
    fake.service.block = u32::MAX;
    assert_eq!(select(&fake, &to, 5), Verdict::Fail(Refusal::Unstable));
}

/// Whoever wrote it relies on it, and knows more than this reader.
#[test]
fn what_a_reader_does_not_know_is_refused() {
    let to = flow("10.96.0.10:80", 6);
    let unstable = Verdict::Fail(Refusal::Unstable);
    let mut fake = fake();
    for record in &mut fake.records {
        record.flags = Backend::OPTIONS;
    }
    assert_eq!(select(&fake, &to, 0), gets(2, 7));
    for options in [
        PortOptions { algorithm: 1, ..PortOptions::default() },
        PortOptions { flags: 1, ..PortOptions::default() },
        PortOptions { reserved: [0, 1], ..PortOptions::default() },
    ] {
        fake.options = options;
        assert_eq!(select(&fake, &to, 0), unstable, "{options:?}");
    }
    // Nobody asks where no record says so.
    for record in &mut fake.records {
        record.flags = 0;
    }
    assert_eq!(select(&fake, &to, 0), gets(2, 7));
    fake.options = PortOptions::default();
    for record in &mut fake.records {
        record.flags = 4;
    }
    assert_eq!(select(&fake, &to, 0), unstable);
    let prior = Prior { backend: record(3, 7).peer, generation: 7 };
    assert_eq!(select_after(&fake, &to, &prior), unstable);
    // Outside of the array.
    for record in &mut fake.records {
        (record.flags, record.service) = (Backend::OPTIONS, 10);
    }
    assert_eq!(select(&fake, &to, 0), unstable);
}

#[test]
fn a_flow_stays_with_a_backend_that_serves() {
    let mut fake = fake();
    let to = flow("10.96.0.10:80", 6);
    let select = |fake: &Fake, last, generation| {
        let prior = Prior { backend: record(last, 7).peer, generation };
        select_after(fake, &to, &prior)
    };
    fake.random.set(u32::MAX);
    assert_eq!(select(&fake, 9, 7), Verdict::Stay);
    for last in 2..=4 {
        assert_eq!(select(&fake, last, 6), gets(last, 7));
    }
    assert_eq!(select(&fake, 9, 6), gets(4, 7), "a new one");
    // One that takes no new flows.
    fake.service = Service { count: 1, kept: 2, ..fake.service };
    assert_eq!(select(&fake, 4, 6), gets(4, 7));
    assert_eq!(select(&fake, 9, 6), gets(2, 7));
}

/// Where connect() has left it: also at a Service that had no endpoints then.
#[test]
fn what_goes_to_the_socket_s_own_peer_is_left_alone() {
    let mut fake = fake();
    let [to, other] = ["10.96.0.10:80", "10.96.0.10:81"].map(|to| flow(to, 6));
    fake.connected = Some(to.peer);
    fake.address = Some((to.peer.addr, Address::new(to.peer.addr, Address::CLUSTER_IP, 0)));
    assert_eq!(select(&fake, &to, 0), Verdict::Miss);
    assert_eq!(select(&fake, &other, 0), Verdict::Fail(Refusal::UnknownPort));
    fake.connected = Some(other.peer);
    assert!(matches!(select(&fake, &to, 0), Verdict::Forward(_)));
    assert_eq!(select(&fake, &other, 0), Verdict::Miss);
    let prior = Prior { backend: record(3, 7).peer, generation: 7 };
    assert_eq!(select_after(&fake, &to, &prior), Verdict::Stay);
    fake.connected = Some(to.peer);
    assert_eq!(select_after(&fake, &to, &prior), Verdict::Miss);
}
