//! Empty: it lets `lb-agent` depend on this package, so that a change to the programs rebuilds it.
#![no_std]
