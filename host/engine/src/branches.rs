//! A draft tree laid out over block tables, so that the target computes every branch in one pass.
//!
//! Every root-to-leaf path has a table of its own: the sequence's table for the first path, a
//! copy-on-write fork for each other. A row therefore attends to exactly its ancestors, by the
//! same kernel and in the same order as if the sequence had been decoded along that path; there
//! is no mask and no second arithmetic. A node that several paths share is computed once, in the
//! first of them, and its keys and values are mirrored into the blocks of the others. Accepting a
//! path is taking its table.
//!
//! It refuses to judge: which path holds is the sampler's word.

use crate::batch::{Batch, Mirror, Span};
use crate::block::{BLOCK_SIZE, BlockCopy, BlockPool, BlockTable, blocks_for};
use crate::speculation::Draft;

/// Where a draft's rows are in the batch; empty without a draft.
#[derive(Default)]
pub struct Branches {
    paths: Vec<Path>,
    /// `[nodes]` the row of each node after the row of the pending token, from 1 on.
    row_of: Vec<usize>,
}

struct Path {
    /// Nodes from the root's child to the leaf.
    nodes: Vec<usize>,
    /// Nodes of this path that earlier paths compute; a prefix of `nodes`.
    shared: usize,
    /// Empty for the first path, which uses the sequence's.
    table: BlockTable,
}

impl Branches {
    pub fn is_empty(&self) -> bool {
        self.paths.is_empty()
    }

    /// The row of a node, counted from the row of the pending token; `None` is that token.
    pub fn row(&self, node: Option<u16>) -> usize {
        node.map_or(0, |node| self.row_of[usize::from(node)])
    }

    /// Gives every path of `draft` room after the `computed` tokens of `table` and the pending
    /// one. On `false` nothing has changed: the pool has not enough blocks to spare above `reserve`.
    #[must_use]
    pub fn place(
        &mut self,
        draft: &Draft,
        computed: usize,
        table: &mut BlockTable,
        pool: &mut BlockPool,
        reserve: usize,
        copies: &mut Vec<BlockCopy>,
    ) -> bool {
        debug_assert!(self.is_empty(), "one draft at a time");
        let mut paths = paths_of(draft);
        let end = |path: &Path| computed + 1 + path.nodes.len();
        // What a path needs beyond the full blocks that it shares with all others.
        let own = |path: &Path| blocks_for(end(path)) - computed / BLOCK_SIZE;
        let held = table.blocks().len() - computed / BLOCK_SIZE;
        let needed = paths.iter().map(own).sum::<usize>().saturating_sub(held);
        if needed + reserve > pool.free() {
            return false;
        }
        for path in paths.iter_mut().skip(1) {
            let mut fork = table.fork(pool);
            fork.truncate(pool, computed);
            let copy = fork.make_writable(pool, computed);
            copies.extend(copy.expect("enough blocks are free"));
            assert!(fork.grow(pool, end(path)), "enough blocks are free");
            path.table = fork;
        }
        let grown = paths.first().is_none_or(|main| table.grow(pool, end(main)));
        assert!(grown, "enough blocks are free");
        self.row_of.clear();
        self.row_of.resize(draft.len(), 0);
        let mut row = 0;
        for path in &paths {
            for node in &path.nodes[path.shared..] {
                row += 1;
                self.row_of[*node] = row;
            }
        }
        self.paths = paths;
        true
    }

    /// Adds the rows of the draft after that of the pending token, which is the batch's last row.
    pub fn fill(&self, draft: &Draft, computed: usize, table: &BlockTable, batch: &mut Batch) {
        let pending = batch.rows() - 1;
        for (index, path) in self.paths.iter().enumerate() {
            let blocks = match index {
                0 => table.blocks(),
                _ => path.table.blocks(),
            };
            let first = batch.rows();
            for (depth, node) in path.nodes.iter().enumerate().skip(path.shared) {
                batch.tokens.push(draft.nodes()[*node].token);
                batch.positions.push((computed + 1 + depth) as u32);
                batch.logit_rows.push((batch.tokens.len() - 1) as u32);
            }
            if index > 0 {
                let shared = path.nodes[..path.shared].iter();
                let rows = [pending].into_iter();
                for (depth, row) in rows
                    .chain(shared.map(|n| pending + self.row_of[*n]))
                    .enumerate()
                {
                    batch.mirrors.push(Mirror {
                        row: row as u32,
                        block: blocks[(computed + depth) / BLOCK_SIZE].0,
                    });
                }
            }
            let logits = batch.logit_rows.len();
            let logits = logits - (batch.rows() - first)..logits;
            let seen = &blocks[..blocks_for(computed + 1 + path.nodes.len())];
            match (index, batch.spans.last_mut()) {
                // The pending token's own span: one sequence, one table, one read of its keys.
                (0, Some(span)) => {
                    let known = span.blocks.len();
                    batch.blocks.extend(seen[known..].iter().map(|id| id.0));
                    span.blocks.end = batch.blocks.len();
                    span.rows.end = batch.tokens.len();
                    span.logits.end = logits.end;
                }
                _ => {
                    let first_block = batch.blocks.len();
                    batch.blocks.extend(seen.iter().map(|id| id.0));
                    batch.spans.push(Span {
                        rows: first..batch.tokens.len(),
                        blocks: first_block..batch.blocks.len(),
                        logits,
                    });
                }
            }
        }
    }

    /// Makes the path through `node` the sequence's own, and gives the others' blocks back.
    pub fn settle(&mut self, node: Option<u16>, table: &mut BlockTable, pool: &mut BlockPool) {
        let through = |path: &Path| node.is_none_or(|node| path.nodes.contains(&usize::from(node)));
        if let Some(winner) = self.paths.iter().position(through)
            && winner > 0
        {
            std::mem::swap(table, &mut self.paths[winner].table);
        }
        self.release(pool);
    }

    /// Gives all blocks back.
    pub fn release(&mut self, pool: &mut BlockPool) {
        for mut path in self.paths.drain(..) {
            path.table.truncate(pool, 0);
        }
    }
}

/// The root-to-leaf paths, in the order of their leaves.
fn paths_of(draft: &Draft) -> Vec<Path> {
    let mut seen = vec![false; draft.len()];
    let path = |nodes: Vec<u16>| {
        let nodes: Vec<usize> = nodes.into_iter().map(usize::from).collect();
        let shared = nodes.iter().filter(|node| seen[**node]).count();
        nodes.iter().for_each(|node| seen[*node] = true);
        Path {
            nodes,
            shared,
            table: BlockTable::default(),
        }
    };
    draft.paths().map(path).collect()
}
