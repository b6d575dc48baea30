//! Publishes a provisional answer, then thinks for ever.

use homeostat_sdk::{Request, Result, propose};

use crate::{Guest, Honest};

pub struct It;

impl Guest for It {
    fn before(&self, _: &Request) -> Result<()> {
        // Each is counted only inside its own hook.
        propose::classification(Honest.classification());
        propose::verdict(Honest.verdict());
        loop {
            std::hint::spin_loop();
        }
    }
}
