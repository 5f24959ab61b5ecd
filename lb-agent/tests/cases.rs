//! Golden tests of the whole control plane: YAML in, the maps as `lbctl` prints them out.
//!
//! A case is a file in `tests/cases`, made of sections:
//!
//! - before the first one: what it is about, and `max-services: N`, `max-backends: N` for small maps;
//!   `fits: any` if what fits into them depends on the order of events; `node: NAME` of the node that
//!   looks at the cluster; `proxy-name: NAME` of the proxy it is; `unknown-ports: pass` if those of
//!   cluster IPs are left alone; `adopts: no` if it counts what was said before;
//! - `-- apply FILE --`: the file has this content now;
//! - `-- remove FILE --`: the file is gone;
//! - `-- expect --`: a sync, and what the maps say then; below it the Services that failed, the
//!   frontends that went to another Service, and the slices whose ports do not match their Service's;
//! - `-- outside --`, right behind it where the case asks: what packets get that come to the node from
//!   elsewhere;
//! - `-- warn --`, behind that: what is wrong with the objects at that moment.
//!
//! `UPDATE=1 cargo test --test cases` writes down what is. Each case runs four times: as it is,
//! with a fresh pipeline that adopts the maps after each step and must find nothing to do; with one op
//! in ten failing; with each object sent by itself, in another order each time; and with somebody who
//! writes to the maps between the steps, unless they are small (what fits then is another matter) or
//! it says `meddled: no`.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]
#![expect(clippy::format_push_string, reason = "short texts, and no error to handle")]

mod cases {
    pub(crate) mod case;
    pub(crate) mod chance;
    pub(crate) mod outside;
    pub(crate) mod reference;
    mod room;
    pub(crate) mod runs;
}

use std::{
    collections::BTreeMap,
    env, fs,
    path::{Path, PathBuf},
};

use cases::{
    case::{Case, Section},
    reference::diff,
    runs::{run_faulty, run_meddled, run_plain, run_shuffled},
};
use lb_agent::sources::dir::{Files, Listing};
use lb_core::{memory::Memory, pipeline::Pipeline};

const DIR: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/cases");
/// Different series of failures and orders, per case.
const SEEDS: u64 = 20;

fn run(path: &Path) -> Result<(), String> {
    let text = fs::read_to_string(path).map_err(|error| error.to_string())?;
    let case = Case::parse(&text)?;
    if case.print() != text {
        return Err(diff(&text, &case.print()));
    }
    let found = run_plain(&case)?;
    if env::var_os("UPDATE").is_some() {
        fs::write(path, found.print()).map_err(|error| error.to_string())?;
    } else if found != case {
        return Err(diff(&text, &found.print()));
    }
    let small = ["max-services", "max-backends"].iter().any(|key| case.header(key).is_some());
    let (mut failed, mut meddled) = (0, 0);
    for seed in 0..SEEDS {
        failed += run_faulty(&case, seed).map_err(|e| format!("failing ops, seed {seed}, {e}"))?;
        run_shuffled(&case, seed).map_err(|e| format!("object by object, seed {seed}, {e}"))?;
        if small || case.header("meddled") == Some("no") {
            meddled = 1;
            continue;
        }
        meddled +=
            run_meddled(&case, seed).map_err(|e| format!("meddled with, seed {seed}, {e}"))?;
    }
    if failed.min(meddled) == 0
        && !found.sections.iter().all(|s| matches!(s, Section::Expect(e) if e.maps.is_empty()))
    {
        return Err("no op failed, or nobody meddled".to_owned());
    }
    Ok(())
}

#[test]
fn cases() {
    let mut paths: Vec<PathBuf> =
        fs::read_dir(DIR).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "txt"));
    paths.sort();
    assert!(paths.len() >= 15, "where are they?");
    let mut wrong = BTreeMap::new();
    for path in paths {
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        match run(&path) {
            Ok(()) => println!("{name}: ok"),
            Err(error) => {
                println!("{name}: {error}");
                wrong.insert(name, error);
            }
        }
    }
    assert!(wrong.is_empty(), "failed: {:?}", wrong.keys().collect::<Vec<_>>());
}

/// A load balancer whose source ranges are these.
fn guarded(ranges: &str) -> Listing {
    let mut files = Files::default();
    let service = format!(
        "{{apiVersion: v1, kind: Service, metadata: {{name: web}}, spec: {{type: LoadBalancer, \
         clusterIP: 10.96.0.10, ports: [{{port: 80}}], loadBalancerSourceRanges: [{ranges}]}}, \
         status: {{loadBalancer: {{ingress: [{{ip: 203.0.113.1}}]}}}}}}",
    );
    files.put("web.yaml", service.as_bytes());
    files.listing()
}

#[test]
fn ranges_come_before_who_asks_for_them_and_go_after_it() {
    let maps = || Memory::new(8, 8);
    let mut pipeline = Pipeline::new(maps(), &maps().snapshot());
    let mut ops_of = |ranges: &str| {
        guarded(ranges).changes().into_iter().for_each(|change| pipeline.change(change));
        let mut ops = Vec::new();
        pipeline.sync_with(&mut |op| ops.push(op.to_string()));
        let about = |op: &String| op.contains("source") || op.contains("203.0.113.1");
        ops.retain(about);
        ops
    };
    let (entry, generation) = ("put service 203.0.113.1:80/tcp id 0 block", "count 1 generation");
    assert_eq!(
        ops_of("10.0.0.0/8"),
        ["put source range 0 10.0.0.0/8".to_owned(), format!("{entry} 1 {generation} 2")]
    );
    // The records say only that there are ranges.
    assert_eq!(
        ops_of("192.0.2.0/24"),
        ["put source range 0 192.0.2.0/24", "delete source range 0 10.0.0.0/8"]
    );
    assert_eq!(
        ops_of(""),
        [format!("{entry} 0 {generation} 1"), "delete source range 0 192.0.2.0/24".to_owned()]
    );
}

#[test]
fn a_case_that_is_wrong_is_found() {
    let text = fs::read_to_string(Path::new(DIR).join("endpoints.txt")).unwrap();
    let mut case = run_plain(&Case::parse(&text).unwrap()).unwrap();
    assert_eq!(run_plain(&case).unwrap(), case);
    let expected = |section| match section {
        &mut Section::Expect(ref mut expected) => Some(expected),
        _ => None,
    };
    let Some(expected) = case.sections.iter_mut().find_map(expected) else {
        panic!("it expects nothing")
    };
    expected.maps = expected.maps.replace("10.0.0.3:8080", "10.0.0.4:8080");
    assert_ne!(run_plain(&case).unwrap(), case);
    assert!(Case::parse("-- aply x --\n").is_err() && Case::parse("-- warn --\n").is_err());
    assert_eq!(diff("a\nb\nc\n", "a\nx\nc\nd\n"), "  a\n- b\n+ x\n  c\n+ d\n");
}
