//! Never answers. Only the deadline ends it.

use homeostat_sdk::{Request, Result};

pub struct It;

impl crate::Guest for It {
    fn before(&self, _: &Request) -> Result<()> {
        loop {
            std::hint::spin_loop();
        }
    }
}
