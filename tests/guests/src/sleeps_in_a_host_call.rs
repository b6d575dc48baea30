//! Waits for a model that takes longer than the hook may. The deadline clock counts guest
//! code; this time passes in the host.

use homeostat_sdk::{GenerateOptions, Model, Request, Result};

pub struct It;

impl crate::Guest for It {
    fn before(&self, _: &Request) -> Result<()> {
        let model = Model::open("small")?;
        let options = GenerateOptions {
            max_tokens: 256,
            ..GenerateOptions::default()
        };
        model.generate("Once upon a time", options).map(drop)
    }
}
