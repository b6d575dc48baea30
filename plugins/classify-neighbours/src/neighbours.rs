//! Requests whose outcome is known, as bytes: `models/train/fit_neighbours.py` makes them and
//! says what of; `homeostat policy calibrate` makes them of one's own recordings. It refuses bytes
//! of any other form, and knows nothing of how they are used.
//!
//! Little endian: "HNEI0001", u32 dimensions, u32 count, then for each its label (u8), for each
//! its scale (f32), for each its embedding (i8 times the scale).

const MAGIC: &[u8; 8] = b"HNEI0001";
const HEADER_BYTES: usize = 16;

/// What became of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Label {
    /// The small model answered it well.
    Simple,
    /// Neither did: the large one is no better, so there is no need of it.
    Medium,
    /// Only the large model did.
    Complex,
}

/// Embeddings in small: a row of whole numbers each, and what one of them is worth.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Embeddings<'a> {
    dimensions: usize,
    scales: &'a [u8],
    vectors: &'a [u8],
}

impl<'a> Embeddings<'a> {
    /// After the magic word: u32 dimensions, u32 count, `about` bytes on each, which are returned
    /// as they are, the scales (f32), the rows (i8). `None` when the bytes are none of them.
    pub(crate) fn read(bytes: &'a [u8], magic: &[u8; 8], about: usize) -> Option<(&'a [u8], Self)> {
        let number = |at: usize| {
            let four = bytes.get(at..at + 4)?.try_into().ok()?;
            usize::try_from(u32::from_le_bytes(four)).ok()
        };
        let (dimensions, count) = (number(8)?, number(12)?);
        let (header, rest) = bytes.split_at_checked(HEADER_BYTES)?;
        let (told, rest) = rest.split_at_checked(count.checked_mul(about)?)?;
        let (scales, vectors) = rest.split_at_checked(count.checked_mul(4)?)?;
        let whole = vectors.len() == count.checked_mul(dimensions)?;
        let fine = header.starts_with(magic) && dimensions > 0 && count > 0 && whole;
        let embeddings = Self {
            dimensions,
            scales,
            vectors,
        };
        fine.then_some((told, embeddings))
    }

    /// Numbers of one.
    pub(crate) fn dimensions(&self) -> usize {
        self.dimensions
    }

    /// The cosine of each with an embedding of unit length.
    pub(crate) fn similarities(&self, vector: &[f32]) -> impl Iterator<Item = f32> {
        let all = self.vectors.chunks_exact(self.dimensions);
        let scales = self.scales.as_chunks::<4>().0.iter();
        all.zip(scales).map(move |(known, scale)| {
            let products = known.iter().zip(vector);
            let sum: f32 = products.map(|(k, x)| f32::from(*k as i8) * x).sum();
            sum * f32::from_le_bytes(*scale)
        })
    }

    /// One of them.
    #[cfg(test)]
    pub(crate) fn vector(&self, i: usize) -> Vec<f32> {
        let scale = f32::from_le_bytes(self.scales.as_chunks::<4>().0[i]);
        let known = &self.vectors[i * self.dimensions..(i + 1) * self.dimensions];
        known.iter().map(|k| f32::from(*k as i8) * scale).collect()
    }
}

/// Requests and their labels, ready to be compared with.
#[derive(Debug, Clone, Copy)]
pub struct Neighbours<'a> {
    labels: &'a [u8],
    embeddings: Embeddings<'a>,
}

impl Neighbours<'static> {
    /// Those that the component brings.
    ///
    /// # Panics
    /// Never: a test reads them.
    pub fn embedded() -> Self {
        Self::read(include_bytes!("../neighbours.bin")).expect("a test has read them")
    }
}

impl<'a> Neighbours<'a> {
    /// `None` when the bytes are none of them.
    pub fn read(bytes: &'a [u8]) -> Option<Self> {
        let (labels, embeddings) = Embeddings::read(bytes, MAGIC, 1)?;
        let known = labels.iter().all(|l| *l <= Label::Complex as u8);
        known.then_some(Self { labels, embeddings })
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Never: there is always one.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// Numbers of an embedding.
    pub fn dimensions(&self) -> usize {
        self.embeddings.dimensions()
    }

    /// The cosine of each with an embedding of unit length, and its label.
    pub fn similarities(&self, vector: &[f32]) -> Vec<(f32, Label)> {
        let near = self.embeddings.similarities(vector);
        let labels = self.labels.iter().map(|label| label_of(*label));
        near.zip(labels).collect()
    }
}

fn label_of(byte: u8) -> Label {
    match byte {
        0 => Label::Simple,
        1 => Label::Medium,
        _ => Label::Complex,
    }
}

#[cfg(test)]
impl Neighbours<'_> {
    /// The embedding of one.
    pub(crate) fn vector(&self, i: usize) -> Vec<f32> {
        self.embeddings.vector(i)
    }

    /// What became of one.
    pub(crate) fn label(&self, i: usize) -> Label {
        label_of(self.labels[i])
    }
}
