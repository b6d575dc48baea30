//! Gives up politely, with an error value.

use homeostat_sdk::{Request, Result};

pub struct It;

impl crate::Guest for It {
    fn before(&self, _: &Request) -> Result<()> {
        Err("this policy does not feel well".into())
    }
}
