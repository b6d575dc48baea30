//! Keeps more and more with the host until it is refused, and passes the refusal on.

use homeostat_sdk::{Request, Result, state};

pub struct It;

impl crate::Guest for It {
    fn before(&self, _: &Request) -> Result<()> {
        for number in 0_u32.. {
            state::set(&format!("page {number}"), &[7; 4096])?;
        }
        Ok(())
    }
}
