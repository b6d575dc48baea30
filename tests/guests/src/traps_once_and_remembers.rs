//! Dies in `classify`, and in `route` says how many calls this instance has seen. A host
//! that goes on with the instance which died hears of two.

use std::sync::atomic::{AtomicU32, Ordering};

use homeostat_sdk::{Classification, Decision, Request, Result, Tier, plan};

static CALLS: AtomicU32 = AtomicU32::new(0);

pub struct It;

impl crate::Guest for It {
    fn before(&self, _: &Request) -> Result<()> {
        CALLS.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn classification(&self) -> Classification {
        std::process::abort()
    }

    fn decision(&self, tiers: &[Tier]) -> Decision {
        let calls = CALLS.load(Ordering::Relaxed).to_string();
        plan(tiers.iter().take(1).map(|t| t.id.as_str()), &calls)
    }
}
