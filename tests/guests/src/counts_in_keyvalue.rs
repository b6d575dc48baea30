//! Keeps a counter with the host, which must outlive the instance and every swap. It does
//! not misbehave; what it shows is that dropped instances lose nothing.

use homeostat_sdk::{Classification, Request, Result, Value, state};

pub struct It;

impl crate::Guest for It {
    fn before(&self, _: &Request) -> Result<()> {
        state::increment("calls", 1).map(drop)
    }

    fn classification(&self) -> Classification {
        let calls = state::increment("calls", 0).unwrap_or_default();
        Classification {
            attributes: vec![("calls".to_owned(), Value::Integer(calls as i64))],
            ..Classification::default()
        }
    }
}
