//! The planning code against an adversary: random histories of few names and few addresses, with
//! failing and full maps, restarts and reclaims; checked after every single op, not only at the end.
//!
//! | who checks | what |
//! |---|---|
//! | [`Watched::before`] | nothing is written before both lists are whole; no block is overwritten that a reader may hold, also one that began before a restart; no generation is given twice, also in maps that are made anew after others were thrown away; an id stands for one port, and for as long as it is in use; no op is for nothing; no id goes before its source ranges; an address is said to be what it is with the frontends that are there by then |
//! | [`Watched::check_sets`] | make before break: each entry names a complete set, the old or the new one; what was there and is wanted does not disappear; a set with source ranges has them while it is named, the old ones or the new ones |
//! | [`Watched::check_readers`] | a reader with a value of any age gets a record of a set that the frontend had, or reads again; within a grace period the very record that the value named, and a flow stays with a backend that is kept |
//! | [`Watched::check_torn`] | so does one that got words of two values, or the value of another key |
//! | [`World::sync`] | what did not fail is as [`wanted`] says; what failed is named, and tried again; what failed for lack of room has none; nothing is leaked; nothing is rewritten; a cluster IP is marked if, and only if, all ports of its Services are there |
//! | [`World::restart`] | a restart writes nothing, and keeps the ids |
//! | [`World::finish`] | all converges once failures end and there is room; all comes back at the end |
//! | [`narrowing`] | a range of clients goes a grace period after the last reader who may look for it |
//! | [`repair`] | whatever stands in the maps at the start: no panic, the wanted state, and all of the above from then on |
//!
//! Who may have a frontend and where it leads, [`wanted`] says: a model written anew, whole and not
//! incremental. What random histories have found stands in `found` as a story of its own.
#![expect(clippy::unwrap_used, clippy::panic, reason = "this is all test code")]

mod invariants {
    mod damage;
    mod history;
    mod truth;
    mod watched;
    mod world;

    mod found;
    mod narrowing;
    mod props;
}
