//! Counts its calls in a global. Within one request it may remember; the next request
//! must not see it.

use std::sync::atomic::{AtomicI64, Ordering};

use homeostat_sdk::{Classification, Decision, Request, Result, Tier, Value, plan};

static CALLS: AtomicI64 = AtomicI64::new(0);

pub struct It;

impl crate::Guest for It {
    fn before(&self, _: &Request) -> Result<()> {
        CALLS.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn classification(&self) -> Classification {
        let calls = CALLS.load(Ordering::Relaxed);
        Classification {
            attributes: vec![("calls".to_owned(), Value::Integer(calls))],
            ..Classification::default()
        }
    }

    fn decision(&self, tiers: &[Tier]) -> Decision {
        let calls = CALLS.load(Ordering::Relaxed).to_string();
        plan(tiers.iter().take(1).map(|t| t.id.as_str()), &calls)
    }
}
