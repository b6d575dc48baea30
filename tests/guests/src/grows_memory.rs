//! Takes memory until it gets no more, then dies of it like most programs.

use std::hint::black_box;

use homeostat_sdk::{Request, Result};

pub struct It;

impl crate::Guest for It {
    fn before(&self, _: &Request) -> Result<()> {
        let mut held = Vec::new();
        loop {
            held.push(black_box(vec![1_u8; 1 << 20]));
        }
    }
}
