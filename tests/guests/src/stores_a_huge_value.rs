//! Stores a value that is longer than one may be, which is an error that it expects, then
//! one of 32 MB, which the host must not even copy.

use homeostat_sdk::{Request, Result, state};

pub struct It;

impl crate::Guest for It {
    fn before(&self, _: &Request) -> Result<()> {
        let refused = state::set("long", &[7; 300 << 10]);
        assert!(refused.is_err(), "300 KiB are more than a value may have");
        state::set("huge", &vec![7; 32 << 20])
    }
}
