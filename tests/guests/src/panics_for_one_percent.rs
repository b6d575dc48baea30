//! Fails only for some requests, as real bugs do: those whose id ends in 00.

use homeostat_sdk::{Request, Result};

pub struct It;

impl crate::Guest for It {
    fn before(&self, request: &Request) -> Result<()> {
        assert!(!request.id.ends_with("00"), "an unlucky request");
        Ok(())
    }
}
