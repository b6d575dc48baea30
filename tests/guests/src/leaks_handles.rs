//! Opens a million handles and gives none back.

use std::mem::ManuallyDrop;

use homeostat_sdk::{Model, Request, Result};

pub struct It;

impl crate::Guest for It {
    fn before(&self, _: &Request) -> Result<()> {
        for _ in 0..1_000_000 {
            let _leaked = ManuallyDrop::new(Model::open("small")?);
        }
        Ok(())
    }
}
