//! socklb
