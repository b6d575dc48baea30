//! Groups of similar requests with what became of them, as bytes: `models/train/fit_neighbours.py`
//! makes them of the neighbours. They take less than a hundredth of their memory, and know only
//! the subject of a request, not its like.
//!
//! Little endian: "HCLU0001", u32 dimensions, u32 count, then for each how many of its requests
//! are simple, medium and complex (three u32), for each its scale (f32), for each its centre (i8
//! times the scale), which is of unit length.

use crate::neighbours::Embeddings;

const MAGIC: &[u8; 8] = b"HCLU0001";
/// Three numbers of four bytes.
const COUNTS_BYTES: usize = 12;

/// They, ready to be compared with.
#[derive(Debug, Clone, Copy)]
pub struct Clusters<'a> {
    counts: &'a [u8],
    centres: Embeddings<'a>,
}

impl Clusters<'static> {
    /// Those that the component brings.
    ///
    /// # Panics
    /// Never: a test reads them.
    pub fn embedded() -> Self {
        Self::read(include_bytes!("../clusters.bin")).expect("a test has read them")
    }
}

impl<'a> Clusters<'a> {
    /// `None` when the bytes are none of them.
    pub fn read(bytes: &'a [u8]) -> Option<Self> {
        let (counts, centres) = Embeddings::read(bytes, MAGIC, COUNTS_BYTES)?;
        Some(Self { counts, centres })
    }

    /// Numbers of an embedding.
    pub fn dimensions(&self) -> usize {
        self.centres.dimensions()
    }

    /// How many requests of each are simple, medium and complex.
    pub fn counts(&self) -> impl Iterator<Item = [u32; 3]> {
        let each = self.counts.as_chunks::<COUNTS_BYTES>().0.iter();
        each.map(|bytes| {
            let number = |at: usize| {
                u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
            };
            [number(0), number(4), number(8)]
        })
    }

    /// The nearest to an embedding of unit length: its cosine, and how many of its requests are
    /// simple, medium and complex.
    pub fn nearest(&self, vector: &[f32]) -> (f32, [u32; 3]) {
        let all = self.centres.similarities(vector).zip(self.counts());
        // There is always one.
        all.max_by(|a, b| a.0.total_cmp(&b.0))
            .unwrap_or((0.0, [0; 3]))
    }

    /// The centre of one.
    #[cfg(test)]
    pub(crate) fn centre(&self, i: usize) -> Vec<f32> {
        self.centres.vector(i)
    }
}
