//! Which full blocks hold the keys and values of which tokens: the prefix cache's index.
//!
//! It exists so that a prompt that begins like an earlier one computes only what differs. A block
//! is known by a chain: a keyed 128-bit hash (BLAKE3) of its parent's hash and its own 32 tokens,
//! with the tenant at the root. The key is random per process, so nobody can prepare a collision,
//! and a hit compares the tokens themselves, so an accident cannot serve a stranger's cache
//! either. Tenants never share: a hit is visible in the time to the first token.
//!
//! It refuses to know who holds a block and which one goes next: the pool does.

use std::collections::HashMap;

use crate::block::{BLOCK_SIZE, BlockId};

/// Children of one block that are searched for a partial match; beyond, the newest are.
const MAX_SIBLINGS: usize = 8;

/// Names a prefix: everything from the first token to the end of one full block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct PrefixKey([u8; 16]);

/// What the cache holds of a prompt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PrefixHit {
    /// Full blocks, first first.
    pub blocks: Vec<BlockId>,
    /// The key of the last of them, or the tenant's root.
    pub key: PrefixKey,
    /// A block that agrees with the next tokens for a while: to be copied, not shared.
    pub partial: Option<(BlockId, usize)>,
}

impl PrefixHit {
    /// Tokens that need not be computed.
    pub fn tokens(&self) -> usize {
        self.blocks.len() * BLOCK_SIZE + self.partial.map_or(0, |(_, tokens)| tokens)
    }
}

struct Entry {
    key: PrefixKey,
    parent: PrefixKey,
    tokens: [u32; BLOCK_SIZE],
}

/// The content of the published blocks.
pub struct PrefixIndex {
    secret: [u8; 32],
    /// `[blocks]`; `None` for what is not published.
    entries: Vec<Option<Entry>>,
    by_key: HashMap<PrefixKey, BlockId>,
    /// Published blocks by their parent, newest last.
    children: HashMap<PrefixKey, Vec<BlockId>>,
}

impl PrefixIndex {
    /// An index for `blocks` blocks whose hashes are keyed by `secret`.
    pub fn new(blocks: usize, secret: [u8; 32]) -> Self {
        Self {
            secret,
            entries: (0..blocks).map(|_| None).collect(),
            by_key: HashMap::new(),
            children: HashMap::new(),
        }
    }

    /// The key of the empty prefix of a tenant.
    pub fn root(&self, tenant: u64) -> PrefixKey {
        self.hash(b"tenant", &tenant.to_le_bytes())
    }

    fn hash(&self, first: &[u8], second: &[u8]) -> PrefixKey {
        let mut hasher = blake3::Hasher::new_keyed(&self.secret);
        hasher.update(first).update(second);
        let mut key = PrefixKey::default();
        hasher.finalize_xof().fill(&mut key.0);
        key
    }

    fn extend(&self, parent: PrefixKey, tokens: &[u32]) -> PrefixKey {
        let mut bytes = [0; 4 * BLOCK_SIZE];
        for (out, token) in bytes.chunks_exact_mut(4).zip(tokens) {
            out.copy_from_slice(&token.to_le_bytes());
        }
        self.hash(&parent.0, &bytes)
    }

    pub fn holds(&self, id: BlockId) -> bool {
        self.entries[id.0 as usize].is_some()
    }

    /// The longest cached prefix of `tokens`, of at most `tokens.len()` tokens.
    pub fn find(&self, tenant: u64, tokens: &[u32]) -> PrefixHit {
        let mut hit = PrefixHit {
            blocks: Vec::new(),
            key: self.root(tenant),
            partial: None,
        };
        let mut rest = tokens;
        while let Some((block, after)) = rest.split_at_checked(BLOCK_SIZE) {
            let key = self.extend(hit.key, block);
            let Some(id) = self.by_key.get(&key).copied() else {
                break;
            };
            let entry = self.entry(id);
            if entry.parent != hit.key || entry.tokens != block {
                break;
            }
            hit.blocks.push(id);
            hit.key = key;
            rest = after;
        }
        hit.partial = self.closest_child(hit.key, rest);
        hit
    }

    fn closest_child(&self, parent: PrefixKey, tokens: &[u32]) -> Option<(BlockId, usize)> {
        let siblings = self.children.get(&parent)?;
        let agreeing = |id: &BlockId| {
            let own = self.entry(*id).tokens.iter();
            let agree = own.zip(tokens).take(BLOCK_SIZE - 1);
            (*id, agree.take_while(|(a, b)| a == b).count())
        };
        let newest_first = siblings.iter().rev().take(MAX_SIBLINGS);
        newest_first
            .map(agreeing)
            .filter(|(_, tokens)| *tokens > 0)
            .max_by_key(|(_, tokens)| *tokens)
    }

    fn entry(&self, id: BlockId) -> &Entry {
        self.entries[id.0 as usize]
            .as_ref()
            .expect("the maps name published blocks only")
    }

    /// Makes a full block findable; its tokens must all be computed and committed. Where the same
    /// prefix is cached already, the block stays private. Returns the key of the prefix.
    pub fn publish(&mut self, id: BlockId, parent: PrefixKey, tokens: &[u32]) -> PrefixKey {
        let key = self.extend(parent, tokens);
        let unknown = !self.by_key.contains_key(&key) && !self.holds(id);
        if let (true, Ok(tokens)) = (unknown, tokens.try_into()) {
            self.entries[id.0 as usize] = Some(Entry {
                key,
                parent,
                tokens,
            });
            self.by_key.insert(key, id);
            self.children.entry(parent).or_default().push(id);
        }
        key
    }

    /// Forgets a block whose memory is about to be used for something else.
    pub fn forget(&mut self, id: BlockId) {
        let Some(entry) = self.entries[id.0 as usize].take() else {
            return;
        };
        self.by_key.remove(&entry.key);
        if let Some(siblings) = self.children.get_mut(&entry.parent) {
            siblings.retain(|sibling| *sibling != id);
            if siblings.is_empty() {
                self.children.remove(&entry.parent);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn index() -> PrefixIndex {
        PrefixIndex::new(16, [7; 32])
    }

    /// Publishes `tokens` block by block as blocks `first..`.
    fn publish(index: &mut PrefixIndex, tenant: u64, first: u32, tokens: &[u32]) {
        let mut key = index.root(tenant);
        for (id, block) in (first..).zip(tokens.chunks_exact(BLOCK_SIZE)) {
            key = index.publish(BlockId(id), key, block);
        }
    }

    fn tokens(seed: u32, count: u32) -> Vec<u32> {
        (0..count).map(|i| seed * 1_000 + i).collect()
    }

    #[test]
    fn a_prefix_is_found_block_by_block_and_then_token_by_token() {
        let mut index = index();
        let text = tokens(1, 96);
        publish(&mut index, 0, 0, &text);
        let hit = index.find(0, &text[..90]);
        assert_eq!(hit.blocks, [BlockId(0), BlockId(1)]);
        assert_eq!(hit.partial, Some((BlockId(2), 26)));
        assert_eq!(hit.tokens(), 90);
        let mut other = text.clone();
        other[40] = 5;
        let hit = index.find(0, &other);
        assert_eq!((hit.blocks.len(), hit.partial), (1, Some((BlockId(1), 8))));
    }

    #[test]
    fn tenants_do_not_see_each_other() {
        let mut index = index();
        publish(&mut index, 1, 0, &tokens(1, 64));
        assert_eq!(index.find(2, &tokens(1, 64)).tokens(), 0);
        assert_eq!(index.find(1, &tokens(1, 64)).tokens(), 64);
    }

    #[test]
    fn equal_blocks_after_different_beginnings_are_different() {
        let mut index = index();
        let text = [tokens(1, 32), tokens(9, 32)].concat();
        publish(&mut index, 0, 0, &text);
        let stranger = [tokens(2, 32), tokens(9, 32)].concat();
        assert_eq!(index.find(0, &stranger).tokens(), 0);
    }

    #[test]
    fn a_colliding_hash_is_caught_by_the_tokens() {
        let mut index = index();
        publish(&mut index, 0, 0, &tokens(1, 32));
        let forged = index.extend(index.root(0), &tokens(2, 32));
        index.by_key.insert(forged, BlockId(0));
        assert_eq!(index.find(0, &tokens(2, 32)).tokens(), 0);
    }

    #[test]
    fn what_is_forgotten_is_gone_and_its_children_are_unreachable() {
        let mut index = index();
        let text = tokens(1, 96);
        publish(&mut index, 0, 0, &text);
        index.forget(BlockId(1));
        assert_eq!(index.find(0, &text).blocks, [BlockId(0)]);
        assert!(!index.holds(BlockId(1)) && index.holds(BlockId(2)));
        index.forget(BlockId(0));
        index.forget(BlockId(2));
        assert!(index.by_key.is_empty() && index.children.is_empty());
    }

    #[test]
    fn a_second_copy_of_a_prefix_stays_private() {
        let mut index = index();
        publish(&mut index, 0, 0, &tokens(1, 32));
        publish(&mut index, 0, 5, &tokens(1, 32));
        assert!(!index.holds(BlockId(5)));
        index.forget(BlockId(5));
        assert_eq!(index.find(0, &tokens(1, 32)).blocks, [BlockId(0)]);
    }

    #[test]
    fn keys_depend_on_the_secret() {
        let other = PrefixIndex::new(1, [8; 32]);
        assert_ne!(index().root(0), other.root(0));
    }
}
