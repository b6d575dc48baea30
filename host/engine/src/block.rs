//! KV memory in blocks of 32 tokens: who holds which, and the law that none is lost.
//!
//! It exists so that sequences of any length share one pool without fragmentation, can be cut
//! back (rejected drafts, preemption) and can share a prefix. The pool knows indices and
//! reference counts only; the bytes belong to the runner, whose layout they follow. A freed block
//! keeps its content until it is needed, and while it does the prefix index can find it: free
//! blocks are handed out in the order of their last use, so the cache is whatever nobody needs.
//!
//! It refuses to be wrong quietly: releasing a free block, or a block that does not exist,
//! stops the step. `free + used = total` is checked by [`BlockPool::assert_conserved`].

use crate::prefix::{PrefixHit, PrefixIndex, PrefixKey};

/// Tokens per block. candle's paged flash attention needs a multiple of 32, and at 32 a sequence
/// wastes at most 31 tokens (0.7 MB for a 135M model).
pub const BLOCK_SIZE: usize = 32;

/// Index of one block in the pool and in the runner's KV memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct BlockId(pub u32);

/// A block that must be copied by the runner before anybody writes to `to`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockCopy {
    pub from: BlockId,
    pub to: BlockId,
}

/// Blocks needed for `tokens` tokens.
pub fn blocks_for(tokens: usize) -> usize {
    tokens.div_ceil(BLOCK_SIZE)
}

/// No block: the end of the free list.
const NONE: u32 = u32::MAX;

/// A block's place in the free list.
#[derive(Clone, Copy)]
struct Link {
    before: u32,
    after: u32,
}

pub struct BlockPool {
    references: Vec<u32>,
    /// The free list, least recently used first: what is cached is overwritten last.
    links: Vec<Link>,
    first: u32,
    last: u32,
    num_free: usize,
    prefixes: Option<PrefixIndex>,
}

impl BlockPool {
    /// A pool that forgets what its free blocks held.
    pub fn new(total: usize) -> Self {
        let total = u32::try_from(total)
            .ok()
            .filter(|total| *total < NONE)
            .expect("a pool has fewer than 2^32 blocks; EngineConfig bounds it");
        let mut pool = Self {
            references: vec![0; total as usize],
            links: vec![
                Link {
                    before: NONE,
                    after: NONE,
                };
                total as usize
            ],
            first: NONE,
            last: NONE,
            num_free: 0,
            prefixes: None,
        };
        (0..total).for_each(|id| pool.link_last(id));
        pool
    }

    /// A pool whose full blocks can be found again by what they hold, until they are overwritten.
    pub fn with_prefix_cache(total: usize, secret: [u8; 32]) -> Self {
        let mut pool = Self::new(total);
        pool.prefixes = Some(PrefixIndex::new(total, secret));
        pool
    }

    pub fn total(&self) -> usize {
        self.references.len()
    }

    pub fn free(&self) -> usize {
        self.num_free
    }

    pub fn used(&self) -> usize {
        self.total() - self.free()
    }

    fn link_last(&mut self, id: u32) {
        self.links[id as usize] = Link {
            before: self.last,
            after: NONE,
        };
        match self.last {
            NONE => self.first = id,
            last => self.links[last as usize].after = id,
        }
        self.last = id;
        self.num_free += 1;
    }

    fn link_first(&mut self, id: u32) {
        self.links[id as usize] = Link {
            before: NONE,
            after: self.first,
        };
        match self.first {
            NONE => self.last = id,
            first => self.links[first as usize].before = id,
        }
        self.first = id;
        self.num_free += 1;
    }

    fn unlink(&mut self, id: u32) {
        let Link { before, after } = self.links[id as usize];
        match before {
            NONE => self.first = after,
            before => self.links[before as usize].after = after,
        }
        match after {
            NONE => self.last = before,
            after => self.links[after as usize].before = before,
        }
        self.num_free -= 1;
    }

    /// `None` is a scheduling result, not an error: somebody must give way first.
    fn allocate(&mut self) -> Option<BlockId> {
        let id = Some(self.first).filter(|id| *id != NONE)?;
        self.unlink(id);
        if let Some(prefixes) = &mut self.prefixes {
            prefixes.forget(BlockId(id));
        }
        let references = &mut self.references[id as usize];
        assert_eq!(*references, 0, "free block {id} had holders");
        *references = 1;
        Some(BlockId(id))
    }

    fn share(&mut self, id: BlockId) {
        let references = &mut self.references[id.0 as usize];
        assert!(*references > 0, "block {} shared after it was freed", id.0);
        *references += 1;
    }

    /// Holds a cached block, whether somebody else does or it was free.
    fn take_cached(&mut self, id: BlockId) {
        if self.references[id.0 as usize] == 0 {
            self.unlink(id.0);
        }
        self.references[id.0 as usize] += 1;
    }

    fn release(&mut self, id: BlockId) {
        let references = &mut self.references[id.0 as usize];
        assert!(*references > 0, "block {} released twice", id.0);
        *references -= 1;
        if *references > 0 {
            return;
        }
        match self.prefixes.as_ref().is_some_and(|p| p.holds(id)) {
            true => self.link_last(id.0),
            // Nothing is lost with it, so it goes before anything cached does.
            false => self.link_first(id.0),
        }
    }

    /// The longest cached prefix of `tokens`; `None` without a prefix cache.
    pub fn find_prefix(&self, tenant: u64, tokens: &[u32]) -> Option<PrefixHit> {
        Some(self.prefixes.as_ref()?.find(tenant, tokens))
    }

    /// Blocks of a hit that lie in the free list now.
    pub fn free_among(&self, hit: &PrefixHit) -> usize {
        let is_free = |id: &&BlockId| self.references[id.0 as usize] == 0;
        hit.blocks.iter().filter(is_free).count()
    }

    /// Makes a full block of computed, committed tokens findable under its prefix. Returns the
    /// prefix's key, the parent of the block after it; `None` without a prefix cache.
    pub fn publish(
        &mut self,
        id: BlockId,
        tenant: u64,
        parent: Option<PrefixKey>,
        tokens: &[u32],
    ) -> Option<PrefixKey> {
        assert!(self.references[id.0 as usize] > 0, "a free block published");
        let prefixes = self.prefixes.as_mut()?;
        let parent = parent.unwrap_or_else(|| prefixes.root(tenant));
        Some(prefixes.publish(id, parent, tokens))
    }

    fn is_shared(&self, id: BlockId) -> bool {
        self.references[id.0 as usize] > 1
    }

    /// Every reference is a table's entry, every other block is free exactly once.
    ///
    /// # Panics
    /// When the books do not balance: a bug in this room, never a condition of the outside.
    pub fn assert_conserved<'a>(&self, tables: impl Iterator<Item = &'a BlockTable>) {
        let mut held = vec![0u32; self.total()];
        for id in tables.flat_map(|table| &table.blocks) {
            held[id.0 as usize] += 1;
        }
        assert_eq!(
            held, self.references,
            "references differ from the tables' entries"
        );
        let mut seen = vec![false; self.total()];
        let (mut id, mut before) = (self.first, NONE);
        while id != NONE {
            assert!(
                !std::mem::replace(&mut seen[id as usize], true),
                "block {id} is free twice"
            );
            assert_eq!(
                self.references[id as usize], 0,
                "block {id} is free and held"
            );
            assert_eq!(self.links[id as usize].before, before, "a broken free list");
            (before, id) = (id, self.links[id as usize].after);
        }
        assert_eq!(self.last, before, "a broken free list");
        assert_eq!(seen.iter().filter(|s| **s).count(), self.free());
        let used = self.references.iter().filter(|r| **r > 0).count();
        assert_eq!(self.free() + used, self.total(), "free + used = total");
    }
}

/// The blocks of one sequence, in token order. Dropping a table with blocks would lose them, so
/// its owner calls [`BlockTable::truncate`] to 0 first; debug builds and tests check it.
#[derive(Debug, Default)]
pub struct BlockTable {
    blocks: Vec<BlockId>,
}

impl BlockTable {
    pub fn blocks(&self) -> &[BlockId] {
        &self.blocks
    }

    /// Tokens for which there is room.
    pub fn capacity(&self) -> usize {
        self.blocks.len() * BLOCK_SIZE
    }

    /// Makes room for `tokens` tokens in all. On `false` nothing has changed.
    #[must_use]
    pub fn grow(&mut self, pool: &mut BlockPool, tokens: usize) -> bool {
        let missing = blocks_for(tokens).saturating_sub(self.blocks.len());
        if missing > pool.free() {
            return false;
        }
        self.blocks
            .extend((0..missing).map_while(|_| pool.allocate()));
        debug_assert!(self.capacity() >= tokens);
        true
    }

    /// Begins an empty table with the full blocks of a hit.
    pub fn adopt(&mut self, pool: &mut BlockPool, hit: &PrefixHit) {
        assert!(self.blocks.is_empty(), "a prefix comes first");
        hit.blocks.iter().for_each(|id| pool.take_cached(*id));
        self.blocks.extend_from_slice(&hit.blocks);
    }

    /// Gives back whole blocks beyond `tokens` tokens, last first.
    pub fn truncate(&mut self, pool: &mut BlockPool, tokens: usize) {
        while self.blocks.len() > blocks_for(tokens) {
            let last = self
                .blocks
                .pop()
                .expect("longer than the target, so not empty");
            pool.release(last);
        }
    }

    /// A second table over the same blocks. Whoever writes first calls [`Self::make_writable`].
    pub fn fork(&self, pool: &mut BlockPool) -> Self {
        self.blocks.iter().for_each(|id| pool.share(*id));
        Self {
            blocks: self.blocks.clone(),
        }
    }

    /// Prepares to write from token `from` on: shared blocks from there are replaced by fresh
    /// ones, and only a block that keeps earlier tokens needs its content copied.
    /// `None`: the pool is empty; nothing has changed.
    #[must_use]
    pub fn make_writable(
        &mut self,
        pool: &mut BlockPool,
        from: usize,
    ) -> Option<Option<BlockCopy>> {
        let first = from / BLOCK_SIZE;
        let shared: Vec<usize> = (first..self.blocks.len())
            .filter(|i| pool.is_shared(self.blocks[*i]))
            .collect();
        if shared.len() > pool.free() {
            return None;
        }
        let mut copy = None;
        for i in shared {
            let to = pool.allocate()?;
            let from_block = std::mem::replace(&mut self.blocks[i], to);
            pool.release(from_block);
            if i == first && !from.is_multiple_of(BLOCK_SIZE) {
                copy = Some(BlockCopy {
                    from: from_block,
                    to,
                });
            }
        }
        Some(copy)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::SplitMix;

    #[test]
    fn growing_is_all_or_nothing() {
        let mut pool = BlockPool::new(3);
        let mut table = BlockTable::default();
        assert!(!table.grow(&mut pool, 4 * BLOCK_SIZE));
        assert_eq!((table.capacity(), pool.free()), (0, 3));
        assert!(table.grow(&mut pool, 2 * BLOCK_SIZE + 1));
        assert_eq!((table.capacity(), pool.free()), (3 * BLOCK_SIZE, 0));
        pool.assert_conserved([&table].into_iter());
    }

    #[test]
    fn a_fork_copies_only_the_partial_block_it_writes_to() {
        let mut pool = BlockPool::new(4);
        let mut parent = BlockTable::default();
        assert!(parent.grow(&mut pool, 40));
        let mut child = parent.fork(&mut pool);
        assert_eq!(pool.used(), 2);
        let copy = child
            .make_writable(&mut pool, 40)
            .expect("two blocks are free");
        assert_eq!(
            copy,
            Some(BlockCopy {
                from: parent.blocks()[1],
                to: child.blocks()[1]
            })
        );
        assert_eq!(child.blocks()[0], parent.blocks()[0]);
        assert_ne!(child.blocks()[1], parent.blocks()[1]);
        assert_eq!(
            parent.make_writable(&mut pool, 40),
            Some(None),
            "the parent is now alone in its last block"
        );
        pool.assert_conserved([&parent, &child].into_iter());
        child.truncate(&mut pool, 0);
        parent.truncate(&mut pool, 0);
        assert_eq!(pool.free(), pool.total());
    }

    #[test]
    fn a_write_from_a_block_edge_copies_nothing() {
        let mut pool = BlockPool::new(8);
        let mut parent = BlockTable::default();
        assert!(parent.grow(&mut pool, 64));
        let mut child = parent.fork(&mut pool);
        assert_eq!(child.make_writable(&mut pool, 32), Some(None));
        assert_ne!(child.blocks()[1], parent.blocks()[1]);
        pool.assert_conserved([&parent, &child].into_iter());
    }

    #[test]
    #[should_panic(expected = "references differ")]
    fn a_lost_block_is_noticed() {
        let mut pool = BlockPool::new(2);
        let mut table = BlockTable::default();
        assert!(table.grow(&mut pool, 1));
        pool.assert_conserved([].into_iter());
    }

    /// Seeds are printed by the assertion that fails, through the panic message's table state.
    #[test]
    fn blocks_are_conserved_under_random_histories() {
        for seed in 0..64 {
            let mut random = SplitMix::new(seed);
            let mut pool = BlockPool::new(1 + random.below(24));
            let mut tables: Vec<BlockTable> = Vec::new();
            for _ in 0..400 {
                let pick = random.below(tables.len().max(1));
                match (random.below(6), tables.get_mut(pick)) {
                    (0 | 1, _) => tables.push(BlockTable::default()),
                    (2, Some(table)) => {
                        let before = table.capacity();
                        if !table.grow(&mut pool, random.below(200)) {
                            assert_eq!(table.capacity(), before, "seed {seed}");
                        }
                    }
                    (3, Some(table)) => table.truncate(&mut pool, random.below(200)),
                    (4, Some(table)) => {
                        let child = table.fork(&mut pool);
                        tables.push(child);
                    }
                    (5, Some(table)) => {
                        let from = random.below(table.capacity() + 1);
                        if table.make_writable(&mut pool, from).is_some() {
                            let owned = &table.blocks()[from / BLOCK_SIZE..];
                            assert!(owned.iter().all(|id| !pool.is_shared(*id)), "seed {seed}");
                        }
                    }
                    _ => {}
                }
                if tables.len() > 12 {
                    tables.swap_remove(0).truncate(&mut pool, 0);
                }
                pool.assert_conserved(tables.iter());
            }
            tables.iter_mut().for_each(|t| t.truncate(&mut pool, 0));
            assert_eq!(pool.free(), pool.total(), "seed {seed}");
        }
    }
}
