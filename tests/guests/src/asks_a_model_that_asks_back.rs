//! Asks a model which, to answer, needs this very policy: a circle through the host.

use homeostat_sdk::{GenerateOptions, Model, Request, Result};

pub struct It;

impl crate::Guest for It {
    fn before(&self, _: &Request) -> Result<()> {
        let options = GenerateOptions {
            max_tokens: 1,
            ..GenerateOptions::default()
        };
        Model::open("small")?.generate("again", options).map(drop)
    }
}
