//! One step's work as flat arrays: the only thing a runner sees of sequences.
//!
//! Prefill chunks and decode rows lie side by side; each row knows its token, its position and
//! its sequence's block table. It exists so that a runner needs no idea of scheduling, and is
//! reused from step to step so that filling it allocates nothing once it has grown.

use std::ops::Range;

use crate::block::BLOCK_SIZE;
use crate::scheduler::Chunk;
use crate::sequence::Sequence;

#[derive(Debug, Default)]
pub struct Batch {
    /// `[rows]` token numbers.
    pub tokens: Vec<u32>,
    /// `[rows]` positions within their sequences. A row attends to positions `0..=position`.
    pub positions: Vec<u32>,
    /// Rows of each sequence of the batch, in order, without gaps.
    pub spans: Vec<Span>,
    /// Block tables of all sequences, one after another.
    pub blocks: Vec<u32>,
    /// Rows whose logits are wanted, ascending.
    pub logit_rows: Vec<u32>,
    /// Logits of each chunk of the plan, as a range of [`Batch::logit_rows`].
    pub chunk_logits: Vec<Range<usize>>,
    /// Second homes of keys and values: a row that several branches of a draft tree share is
    /// computed once and written to each branch's blocks.
    pub mirrors: Vec<Mirror>,
}

/// The keys and values of `row` are written to `block` as well, at the row's place in its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mirror {
    pub row: u32,
    pub block: u32,
}

/// One sequence's part of a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Span {
    pub rows: Range<usize>,
    /// Its block table within [`Batch::blocks`].
    pub blocks: Range<usize>,
    /// Its logits within [`Batch::logit_rows`].
    pub logits: Range<usize>,
}

impl Batch {
    pub fn rows(&self) -> usize {
        self.tokens.len()
    }

    /// Replaces the content by what `chunks` say about `running`.
    pub fn fill(&mut self, chunks: &[Chunk], running: &[Sequence]) {
        self.tokens.clear();
        self.positions.clear();
        self.spans.clear();
        self.blocks.clear();
        self.logit_rows.clear();
        self.mirrors.clear();
        self.chunk_logits.clear();
        for chunk in chunks {
            let sequence = &running[chunk.index];
            assert_eq!(sequence.id, chunk.id, "the plan is about other sequences");
            let first_logit = self.logit_rows.len();
            self.add(sequence, chunk.rows);
            sequence.add_draft(self);
            self.chunk_logits.push(first_logit..self.logit_rows.len());
        }
    }

    fn add(&mut self, sequence: &Sequence, rows: usize) {
        let first = sequence.num_computed_tokens;
        assert!(
            first + rows <= sequence.table.capacity(),
            "rows without blocks"
        );
        let first_row = self.rows();
        let first_block = self.blocks.len();
        let first_logit = self.logit_rows.len();
        self.tokens
            .extend_from_slice(&sequence.tokens[first..first + rows]);
        self.positions
            .extend((first..first + rows).map(|p| p as u32));
        // Only the blocks that these rows can see.
        let seen = (first + rows).div_ceil(BLOCK_SIZE);
        self.blocks
            .extend(sequence.table.blocks()[..seen].iter().map(|id| id.0));
        self.logit_rows
            .extend(sequence.logit_rows(rows).map(|r| (first_row + r) as u32));
        self.spans.push(Span {
            rows: first_row..self.rows(),
            blocks: first_block..self.blocks.len(),
            logits: first_logit..self.logit_rows.len(),
        });
    }
}
