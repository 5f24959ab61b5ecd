//! DNS as it is used: CoreDNS behind a Service, asked by the resolvers of C libraries and by dig, with
//! the real `lb-agent` between them.
//!
//! Needs root, `cc`, `musl-gcc`, `dig` and `SOCKLB_COREDNS`, the program; `cargo xtask test dns`
//! brings all of it. Each test has a world of its own, as those of the kernel layer do.
#![expect(clippy::unwrap_used, clippy::panic, reason = "this is all test code")]

mod dns {
    #[path = "../kernel/agent.rs"]
    #[expect(dead_code, reason = "the kernel tests do more with it")]
    mod agent;
    #[path = "../lab/process.rs"]
    #[expect(dead_code, reason = "the tests with an API server do more with it")]
    mod process;
    #[path = "../kernel/world.rs"]
    #[expect(dead_code, reason = "the kernel tests do more with it")]
    mod world;
    #[path = "../kernel/yaml.rs"]
    #[expect(dead_code, reason = "the kernel tests have other Services")]
    mod yaml;

    mod cluster;
    mod message;
    mod resolvers;

    mod lookups;
    mod replaced;
    mod rolling;
}
