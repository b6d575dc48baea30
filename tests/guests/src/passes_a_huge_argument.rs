//! Hands the host a log line of 32 MB.

use homeostat_sdk::{Level, Request, Result, log};

pub struct It;

impl crate::Guest for It {
    fn before(&self, _: &Request) -> Result<()> {
        log(Level::Info, &"a".repeat(32 << 20));
        Ok(())
    }
}
