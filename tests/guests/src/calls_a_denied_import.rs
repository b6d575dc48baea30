//! Uses a power that it was not given, and passes the refusal on.

use homeostat_sdk::{Request, Result, model_names};

pub struct It;

impl crate::Guest for It {
    fn before(&self, _: &Request) -> Result<()> {
        model_names().map(drop)
    }
}
