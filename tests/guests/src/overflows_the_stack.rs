//! Calls itself until the stack is gone.

use std::hint::black_box;

use homeostat_sdk::{Request, Result};

pub struct It;

impl crate::Guest for It {
    fn before(&self, _: &Request) -> Result<()> {
        black_box(deeper(black_box(1)));
        Ok(())
    }
}

fn deeper(depth: u64) -> u64 {
    // Work after the call keeps the compiler from making a loop of it; nothing in a run
    // of this function ever reaches u64::MAX.
    if black_box(depth) == u64::MAX {
        return 0;
    }
    black_box(deeper(depth + 1)) ^ depth
}
