//! Logs 64 MB in one call, then answers as if nothing had happened.

use homeostat_sdk::{Level, Request, Result, log};

pub struct It;

impl crate::Guest for It {
    fn before(&self, _: &Request) -> Result<()> {
        let line = "all work and no play makes a dull policy ".repeat(200);
        for _ in 0..8192 {
            log(Level::Warn, &line);
        }
        Ok(())
    }
}
