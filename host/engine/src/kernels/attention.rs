//! Attention of a ragged batch over paged keys and values: prefill chunks, decode rows and draft
//! rows of any mixture of sequences, one row of queries each.
//!
//! A row's keys are cut at every multiple of 256 positions. Inside such a *span* the scores come
//! first, then one softmax, then the weighted values key by key; spans are folded together in
//! order, in the manner of FlashAttention (Dao et al. 2022). The cut depends on nothing but
//! positions, so a row gets the same bits alone, in a batch, in any chunk, on any number of
//! threads. What does depend on the batch is only who computes what beside whom: the heads of a kv
//! head and up to a dozen rows share each load of K and V, as long as their tables name the same
//! blocks (a chunk's rows do, and the branches of a draft up to where they part), and the spans of a
//! long, lonely row may go to different threads.
//!
//! It refuses ring buffers: a sliding window is a window over the same blocks.

use std::mem::MaybeUninit;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::isa::Isa;
use super::kv::{BLOCK_TOKENS, KvView};
use super::lanes::{Kernel, LANES, Lanes, exp, with_lanes};
use super::pool::Pool;
use super::rows::cap_scores;

/// Keys of one span: a multiple of the block, long enough that folding costs nothing.
const SPAN: usize = 256;
const SPAN_BLOCKS: usize = SPAN / BLOCK_TOKENS;
/// (row, head) pairs that share the loads of one unit of work: what the widest registers hold. Twice
/// as many, with K and V widened to f32 before, were slower: the scores leave the first cache.
const MAX_PAIRS: usize = 12;
/// Greatest head size: the buffers of a unit lie on the stack.
const MAX_HEAD_DIM: usize = 256;
/// Floats from one pair's queries, and scores, to the next. Powers of two would put all pairs into
/// the same few sets of the cache.
const QUERY_STRIDE: usize = MAX_HEAD_DIM + LANES;
const SCORE_STRIDE: usize = SPAN + LANES;

/// What the model says about attention.
#[derive(Debug, Clone, Copy)]
pub struct AttentionShape {
    /// Query heads, a multiple of the kv heads of the store.
    pub heads: usize,
    /// Multiplies every score; usually `1 / sqrt(head_dim)`.
    pub scale: f32,
    /// Sees this many positions, its own included (Mistral, Gemma); `None` sees all.
    pub window: Option<usize>,
    /// Bounds scores by `cap * tanh(score / cap)` (Gemma 2).
    pub softcap: Option<f32>,
}

/// One row of queries: its position in its sequence and where that sequence's blocks are. It sees
/// the keys of positions `0..=position`, which must have been written.
#[derive(Debug, Clone, Copy)]
pub struct RowMeta<'a> {
    pub position: usize,
    pub block_table: &'a [u32],
}

/// Working memory that is kept between calls, so that a step allocates only when a batch is the
/// longest yet.
#[derive(Debug, Default)]
pub struct AttentionScratch {
    groups: Vec<Group>,
    partials: Vec<f32>,
    /// Spans of each unit that are not computed yet.
    remaining: Vec<AtomicUsize>,
}

/// Consecutive rows that see largely the same blocks.
#[derive(Debug, Clone, Copy)]
struct Group {
    first_row: usize,
    rows: usize,
    /// Positions of the first key any row sees, and past the last.
    keys: (usize, usize),
    /// The tables of all rows name the same blocks before this one.
    common: usize,
}

impl Group {
    fn spans(&self) -> std::ops::Range<usize> {
        self.keys.0 / SPAN..self.keys.1.div_ceil(SPAN)
    }
}

/// `q` and `out` are row-major, one row per entry of `rows`, of `heads` x `head_dim`.
///
/// # Panics
/// If shapes do not fit, the heads are no multiple of the kv heads, the head size exceeds 256, or a
/// block table is too short or names a block that the store does not have.
#[allow(
    clippy::too_many_arguments,
    reason = "the shape, the inputs, the output and where to compute them"
)]
pub fn attention(
    isa: Isa,
    pool: &mut Pool,
    scratch: &mut AttentionScratch,
    shape: &AttentionShape,
    q: &[f32],
    kv: &KvView<'_>,
    rows: &[RowMeta<'_>],
    out: &mut [f32],
) {
    let d = kv.head_dim();
    let shared_heads = shape.heads / kv.kv_heads();
    assert_eq!(
        shared_heads * kv.kv_heads(),
        shape.heads,
        "each kv head serves equally many heads"
    );
    assert!(d <= MAX_HEAD_DIM, "head size {d} is above {MAX_HEAD_DIM}");
    assert_eq!(
        q.len(),
        rows.len() * shape.heads * d,
        "one row of queries per entry"
    );
    assert_eq!(out.len(), q.len(), "one row of results per row of queries");
    // A unit takes `heads_each` of the heads that share a kv head, and as many rows as then fit.
    let heads_each = shared_heads.div_ceil(shared_heads.div_ceil(MAX_PAIRS));
    scratch.find_groups(shape, rows, MAX_PAIRS / heads_each);
    let AttentionScratch {
        groups,
        partials,
        remaining,
    } = scratch;
    let out = out.as_mut_ptr();
    let job = AttentionJob {
        isa,
        shape,
        q,
        kv,
        rows,
        groups,
        heads_each,
        shared_heads,
        out,
    };
    let spans = groups.iter().map(|g| g.spans().len()).max().unwrap_or(0);
    if pool.threads() > 1 && spans > 1 && job.units() < 4 * pool.threads() {
        job.run_spans(pool, spans, partials, remaining);
    } else {
        pool.run(job.units(), |unit| job.unit(unit).run(Work::Whole));
    }
}

impl AttentionScratch {
    fn find_groups(&mut self, shape: &AttentionShape, rows: &[RowMeta<'_>], most: usize) {
        self.groups.clear();
        for (i, row) in rows.iter().enumerate() {
            let needed = row.position / BLOCK_TOKENS + 1;
            assert!(
                row.block_table.len() >= needed,
                "row {i} needs {needed} blocks"
            );
            let first_key = shape
                .window
                .map_or(0, |w| (row.position + 1).saturating_sub(w.max(1)));
            // A window would give each row its own first key; then every row is a group of its own.
            if let Some(group) = self.groups.last_mut()
                && group.rows < most
                && shape.window.is_none()
            {
                let common = common_blocks(&rows[group.first_row], row).min(group.common);
                // Rows that have less than half their blocks in common gain nothing together.
                if common >= needed.div_ceil(2) {
                    group.rows += 1;
                    group.keys.1 = group.keys.1.max(row.position + 1);
                    group.common = common;
                    continue;
                }
            }
            self.groups.push(Group {
                first_row: i,
                rows: 1,
                keys: (first_key, row.position + 1),
                common: usize::MAX,
            });
        }
    }
}

/// Leading blocks that two rows' tables have in common, as far as both rows see; no end for
/// neighbours of one table.
fn common_blocks(a: &RowMeta<'_>, b: &RowMeta<'_>) -> usize {
    let near = a.position.abs_diff(b.position) < BLOCK_TOKENS;
    if near && std::ptr::eq(a.block_table, b.block_table) {
        return usize::MAX;
    }
    let both = a.position.min(b.position) / BLOCK_TOKENS + 1;
    let pairs = a.block_table.iter().zip(b.block_table).take(both);
    pairs.take_while(|(a, b)| a == b).count()
}

struct SharedPartials {
    first: *mut f32,
    stride: usize,
}

// SAFETY: every part of a region uses its own stretch of the buffer (see `of`).
unsafe impl Sync for SharedPartials {}

impl SharedPartials {
    /// `index` counts the spans of all units.
    fn of(&self, index: usize) -> *mut f32 {
        // SAFETY: `run_spans` has made room for every span of every unit.
        unsafe { self.first.add(index * self.stride) }
    }
}

struct AttentionJob<'a> {
    isa: Isa,
    shape: &'a AttentionShape,
    q: &'a [f32],
    kv: &'a KvView<'a>,
    rows: &'a [RowMeta<'a>],
    groups: &'a [Group],
    heads_each: usize,
    shared_heads: usize,
    out: *mut f32,
}

// SAFETY: `out` is written only by units, each of which owns its (row, head) pairs.
unsafe impl Sync for AttentionJob<'_> {}

impl<'a> AttentionJob<'a> {
    /// How often the heads of one kv head have to be cut.
    fn slices(&self) -> usize {
        self.shared_heads.div_ceil(self.heads_each)
    }

    fn units(&self) -> usize {
        self.groups.len() * self.kv.kv_heads() * self.slices()
    }

    /// One group of rows with one slice of the heads of one kv head.
    fn unit(&'a self, unit: usize) -> Unit<'a> {
        let (slice, kv_head) = (
            unit % self.slices(),
            unit / self.slices() % self.kv.kv_heads(),
        );
        let first = slice * self.heads_each;
        Unit {
            job: self,
            group: &self.groups[unit / self.slices() / self.kv.kv_heads()],
            kv_head,
            first_head: kv_head * self.shared_heads + first,
            heads: self.heads_each.min(self.shared_heads - first),
        }
    }

    /// Few units and long contexts: every span of a unit is a part of its own, and is folded
    /// afterwards in the order in which [`Work::Whole`] would have folded it.
    fn run_spans(
        &self,
        pool: &mut Pool,
        spans: usize,
        partials: &mut Vec<f32>,
        remaining: &mut Vec<AtomicUsize>,
    ) {
        let stride = MAX_PAIRS * (self.kv.head_dim() + 2);
        let needed = self.units() * spans * stride;
        if partials.len() < needed {
            partials.resize(needed, 0.0);
        }
        remaining.clear();
        remaining
            .extend((0..self.units()).map(|u| AtomicUsize::new(self.unit(u).group.spans().len())));
        let partials = SharedPartials {
            first: partials.as_mut_ptr(),
            stride,
        };
        pool.run(self.units() * spans, |part| {
            let unit = self.unit(part / spans);
            let own = unit.group.spans();
            if part % spans >= own.len() {
                return;
            }
            unit.run(Work::Span {
                span: own.start + part % spans,
                to: partials.of(part),
            });
            // Whoever computes the last span of a unit, and so sees the others, folds them.
            if remaining[part / spans].fetch_sub(1, Ordering::AcqRel) == 1 {
                unit.run(Work::Fold {
                    from: partials.of(part - part % spans),
                    stride,
                });
            }
        });
    }
}

struct Unit<'a> {
    job: &'a AttentionJob<'a>,
    group: &'a Group,
    kv_head: usize,
    first_head: usize,
    heads: usize,
}

#[derive(Clone, Copy)]
enum Work {
    /// All spans, into `out`.
    Whole,
    /// One span, into a partial result.
    Span { span: usize, to: *mut f32 },
    /// Partial results of all spans, into `out`.
    Fold { from: *const f32, stride: usize },
}

/// What a span, or several folded spans, know of one pair: the greatest score, the sum of e^(score
/// - greatest) and the values weighted with it. In memory: `[greatest][sum][values x d]` per pair.
type Partial = [f32; MAX_PAIRS * (MAX_HEAD_DIM + 2)];

struct Buffers {
    q: [f32; MAX_PAIRS * QUERY_STRIDE],
    scores: [f32; MAX_PAIRS * SCORE_STRIDE],
    partial: Partial,
    folded: Partial,
}

impl Unit<'_> {
    fn run(&self, work: Work) {
        with_lanes(self.job.isa, RunUnit { unit: self, work });
    }

    fn pairs(&self) -> usize {
        self.group.rows * self.heads
    }

    fn head_dim(&self) -> usize {
        self.job.kv.head_dim()
    }

    /// Index of a pair's vector in `q` and `out`.
    fn vector_at(&self, pair: usize) -> usize {
        let row = self.group.first_row + pair / self.heads;
        (row * self.job.shape.heads + self.first_head + pair % self.heads) * self.head_dim()
    }

    /// The keys of a span that any pair sees, relative to the span.
    #[inline(always)]
    fn seen_by_any(&self, span: usize) -> std::ops::Range<usize> {
        self.in_span(span, self.group.keys.1)
    }

    /// The blocks of a span that any pair sees, counted from the start of the sequence.
    #[inline(always)]
    fn blocks(&self, span: usize) -> std::ops::Range<usize> {
        let (seen, at) = (self.seen_by_any(span), span * SPAN_BLOCKS);
        at + seen.start / BLOCK_TOKENS..at + seen.end.div_ceil(BLOCK_TOKENS)
    }

    /// The next pairs, from `pair` on, whose rows have one and the same block behind the number
    /// `block`; rows that do not reach it are passed over.
    #[inline(always)]
    fn sharing(&self, block: usize, pair: usize) -> Option<std::ops::Range<usize>> {
        if block < self.group.common {
            return (pair == 0).then(|| 0..self.pairs());
        }
        let rows = &self.job.rows[self.group.first_row..][..self.group.rows];
        let reaches = |row: &RowMeta<'_>| row.position / BLOCK_TOKENS >= block;
        let first = pair / self.heads;
        let first = first + rows[first..].iter().position(reaches)?;
        let id = rows[first].block_table[block];
        let same = |row: &&RowMeta<'_>| reaches(row) && row.block_table[block] == id;
        let end = first + rows[first..].iter().take_while(same).count();
        Some(first * self.heads..end * self.heads)
    }

    /// The keys, and behind them the values, of one block of a pair.
    fn head(&self, pair: usize, block: usize) -> *const u16 {
        let table = self.job.rows[self.group.first_row + pair / self.heads].block_table;
        self.job.kv.head(table[block], self.kv_head)
    }

    /// What is read after a block of a pair: the next block, if there is one, or this.
    fn after(&self, pair: usize, block: usize) -> *const u16 {
        let table = self.job.rows[self.group.first_row + pair / self.heads].block_table;
        let next = (block + 1).min(table.len() - 1);
        self.job.kv.head(table[next], self.kv_head)
    }

    /// The keys of a span that a pair sees, relative to the span.
    #[inline(always)]
    fn seen(&self, span: usize, pair: usize) -> std::ops::Range<usize> {
        self.in_span(
            span,
            self.job.rows[self.group.first_row + pair / self.heads].position + 1,
        )
    }

    #[inline(always)]
    fn in_span(&self, span: usize, end: usize) -> std::ops::Range<usize> {
        let end = end.saturating_sub(span * SPAN).min(SPAN);
        self.group.keys.0.saturating_sub(span * SPAN).min(end)..end
    }
}

struct RunUnit<'a> {
    unit: &'a Unit<'a>,
    work: Work,
}

impl Kernel for RunUnit<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Lanes>(self, s: S) {
        let unit = self.unit;
        let mut buffers = MaybeUninit::<Buffers>::uninit();
        let b = buffers.as_mut_ptr();
        // SAFETY: only addresses are taken; nothing is read before it is written.
        let (q, scores, partial, folded) = unsafe {
            (
                (&raw mut (*b).q).cast::<f32>(),
                (&raw mut (*b).scores).cast::<f32>(),
                (&raw mut (*b).partial).cast::<f32>(),
                (&raw mut (*b).folded).cast::<f32>(),
            )
        };
        let step = unit.head_dim() + 2;
        let spans = unit.group.spans();
        // SAFETY: q, scores and partials hold MAX_PAIRS rows of the greatest size and `pairs` is at
        // most MAX_PAIRS; `to` and `from` lead to partials of the same layout; `out` holds every
        // pair's vector and this unit alone writes them.
        unsafe {
            match self.work {
                Work::Span { span, to } => {
                    load_queries(s, unit, q);
                    attend_span(s, unit, span, q, scores, to);
                    return;
                }
                Work::Whole => {
                    load_queries(s, unit, q);
                    attend_span(s, unit, spans.start, q, scores, folded);
                    for span in spans.skip(1) {
                        attend_span(s, unit, span, q, scores, partial);
                        fold_span(s, unit, span, partial, folded);
                    }
                }
                Work::Fold { from, stride } => {
                    std::ptr::copy_nonoverlapping(from, folded, unit.pairs() * step);
                    for (i, span) in spans.enumerate().skip(1) {
                        fold_span(s, unit, span, from.add(i * stride), folded);
                    }
                }
            }
            for pair in 0..unit.pairs() {
                store_result(s, unit, pair, folded.add(pair * step));
            }
        }
    }
}

/// Copies the queries, multiplied with the scale.
///
/// # Safety
/// `q` has room for the greatest number of pairs and dimensions.
#[inline(always)]
unsafe fn load_queries<S: Lanes>(s: S, unit: &Unit<'_>, q: *mut f32) {
    let d = unit.head_dim();
    let scale = s.splat(unit.job.shape.scale);
    for pair in 0..unit.pairs() {
        let from = &unit.job.q[unit.vector_at(pair)..][..d];
        for i in (0..d).step_by(LANES) {
            // SAFETY: `d` is a multiple of 16, so sixteen floats follow.
            unsafe {
                let x = s.mul(s.load(from.as_ptr().add(i)), scale);
                s.store(q.add(pair * QUERY_STRIDE + i), x);
            }
        }
    }
}

/// How many pairs to take together when `left` are left; more would not fit the registers.
#[inline(always)]
fn together<S: Lanes>(left: usize) -> usize {
    match left {
        1..=4 => left,
        5 => 3,
        6 if S::WIDE => 6,
        7 => 4,
        8 if S::WIDE => 8,
        9..12 if S::WIDE => 9,
        12.. if S::WIDE => 12,
        _ => 4,
    }
}

/// Calls a function with a constant number of pairs.
macro_rules! for_pairs {
    ($n:expr, $f:ident::<$s:ty>($($x:expr),* $(,)?)) => {
        match $n {
            1 => $f::<$s, 1>($($x),*),
            2 => $f::<$s, 2>($($x),*),
            3 => $f::<$s, 3>($($x),*),
            4 => $f::<$s, 4>($($x),*),
            6 => $f::<$s, 6>($($x),*),
            8 => $f::<$s, 8>($($x),*),
            9 => $f::<$s, 9>($($x),*),
            12 => $f::<$s, 12>($($x),*),
            n => unreachable!("{n} pairs together"),
        }
    };
}

/// Scores, softmax and weighted values of one span, into `to`.
///
/// # Safety
/// As in [`RunUnit::run`]: the buffers hold `pairs` rows.
#[inline(always)]
unsafe fn attend_span<S: Lanes>(
    s: S,
    unit: &Unit<'_>,
    span: usize,
    q: *const f32,
    scores: *mut f32,
    to: *mut f32,
) {
    let d = unit.head_dim();
    let end = unit.seen_by_any(span).end;
    // SAFETY: passed on.
    unsafe {
        score_span(s, unit, span, q, scores);
        for pair in 0..unit.pairs() {
            let to = to.add(pair * (d + 2));
            let scores = scores.add(pair * SCORE_STRIDE);
            let seen = unit.seen(span, pair);
            weigh_scores(s, unit.job.shape.softcap, scores, seen.clone(), to);
            // What only other rows see has no weight here.
            let weighed = seen.end.next_multiple_of(LANES);
            std::ptr::write_bytes(scores.add(weighed), 0, end.saturating_sub(weighed));
            std::ptr::write_bytes(to.add(2), 0, d);
        }
        add_span(s, unit, span, scores, to.add(2));
    }
}

/// # Safety
/// As [`attend_span`].
#[inline(always)]
unsafe fn score_span<S: Lanes>(
    s: S,
    unit: &Unit<'_>,
    span: usize,
    q: *const f32,
    scores: *mut f32,
) {
    let d = unit.head_dim();
    let blocks = unit.blocks(span);
    for block in blocks.clone() {
        let first_key = (block - span * SPAN_BLOCKS) * BLOCK_TOKENS;
        let mut next = 0;
        while let Some(sharing) = unit.sharing(block, next) {
            let mut pair = sharing.start;
            next = sharing.end;
            // SAFETY: values follow keys; a block's scores lie inside the span.
            unsafe {
                let keys = unit.head(pair, block);
                let ahead = match block + 1 < blocks.end {
                    true => unit.after(pair, block),
                    false => unit.head(pair, blocks.start).add(BLOCK_TOKENS * d),
                };
                while pair < next {
                    let n = together::<S>(next - pair);
                    let q = q.add(pair * QUERY_STRIDE);
                    let out = scores.add(pair * SCORE_STRIDE + first_key);
                    for_pairs!(n, score_block::<S>(s, keys, ahead, d, q, out));
                    pair += n;
                }
            }
        }
    }
}

/// Scores of 32 keys for `P` queries. Meanwhile the `d` x 32 f16 at `ahead` are fetched.
///
/// # Safety
/// `keys` holds `d` x 32 f16, `q` and `out` hold `P` rows.
#[inline(always)]
unsafe fn score_block<S: Lanes, const P: usize>(
    s: S,
    keys: *const u16,
    ahead: *const u16,
    d: usize,
    q: *const f32,
    out: *mut f32,
) {
    // SAFETY: passed on; two times sixteen keys make the block.
    unsafe {
        if S::WIDE {
            score_keys::<S, P, 2>(s, keys, ahead, d, q, out);
        } else {
            score_keys::<S, P, 1>(s, keys, ahead, d, q, out);
            score_keys::<S, P, 1>(s, keys.add(LANES), ahead, d, q, out.add(LANES));
        }
    }
}

/// Scores of `K` times sixteen keys.
///
/// # Safety
/// As [`score_block`].
#[inline(always)]
unsafe fn score_keys<S: Lanes, const P: usize, const K: usize>(
    s: S,
    keys: *const u16,
    ahead: *const u16,
    d: usize,
    q: *const f32,
    out: *mut f32,
) {
    let mut acc = [[s.splat(0.0); K]; P];
    for i in 0..d {
        s.fetch(ahead.wrapping_add(i * BLOCK_TOKENS));
        let mut k = [s.splat(0.0); K];
        for (v, k) in k.iter_mut().enumerate() {
            // SAFETY: dimension `i` < d of 16 K keys.
            *k = unsafe { s.load_f16(keys.add(i * BLOCK_TOKENS + v * LANES)) };
        }
        for (p, acc) in acc.iter_mut().enumerate() {
            // SAFETY: dimension `i` of every query.
            let x = s.splat(unsafe { *q.add(p * QUERY_STRIDE + i) });
            for (acc, k) in acc.iter_mut().zip(k) {
                *acc = s.fma(x, k, *acc);
            }
        }
    }
    for (p, acc) in acc.iter().enumerate() {
        for (v, acc) in acc.iter().enumerate() {
            // SAFETY: 16 K scores fit each row of `out`.
            unsafe { s.store(out.add(p * SCORE_STRIDE + v * LANES), *acc) }
        }
    }
}

/// Turns the scores of one pair into weights and writes greatest score and sum of weights to
/// `to[0..2]`. Keys outside `seen` get weight 0 up to the next multiple of sixteen.
///
/// # Safety
/// `scores` holds a span, `to` two floats.
#[inline(always)]
unsafe fn weigh_scores<S: Lanes>(
    s: S,
    softcap: Option<f32>,
    scores: *mut f32,
    seen: std::ops::Range<usize>,
    to: *mut f32,
) {
    let chunks = (seen.start / LANES * LANES..seen.end.next_multiple_of(LANES)).step_by(LANES);
    // SAFETY: every chunk lies inside the span.
    unsafe {
        for unseen in (seen.start / LANES * LANES..seen.start)
            .chain(seen.end..seen.end.next_multiple_of(LANES))
        {
            *scores.add(unseen) = f32::NEG_INFINITY;
        }
        let mut greatest = s.splat(f32::NEG_INFINITY);
        for at in chunks.clone() {
            let mut x = s.load(scores.add(at));
            if let Some(cap) = softcap {
                x = cap_scores(s, x, cap);
                s.store(scores.add(at), x);
            }
            greatest = s.max(x, greatest);
        }
        let greatest = s.greatest(greatest);
        let mut sum = s.splat(0.0);
        for at in chunks {
            let weight = exp(s, s.sub(s.load(scores.add(at)), s.splat(greatest)));
            sum = s.add(sum, weight);
            s.store(scores.add(at), weight);
        }
        *to = greatest;
        *to.add(1) = s.sum(sum);
    }
}

/// The values of one block that some pair sees.
#[derive(Clone, Copy)]
struct Piece {
    /// The first value, and what will be read a block later.
    values: *const u16,
    ahead: *const u16,
    /// Where in the span the first one's weight is, and how many there are.
    first: usize,
    count: usize,
}

/// Adds the weighted values of a span; `to` leads to the values of the first pair.
///
/// # Safety
/// As [`attend_span`].
#[inline(always)]
unsafe fn add_span<S: Lanes>(
    s: S,
    unit: &Unit<'_>,
    span: usize,
    weights: *const f32,
    to: *mut f32,
) {
    let blocks = unit.blocks(span);
    let common = blocks.start..blocks.end.min(unit.group.common);
    // SAFETY: passed on; the rows of a group have these blocks in common.
    unsafe {
        if !common.is_empty() {
            add_blocks(s, unit, span, common.clone(), 0..unit.pairs(), weights, to);
        }
        for block in common.end.max(blocks.start)..blocks.end {
            let mut next = 0;
            while let Some(sharing) = unit.sharing(block, next) {
                next = sharing.end;
                add_blocks(s, unit, span, block..block + 1, sharing, weights, to);
            }
        }
    }
}

/// Adds the weighted values of `blocks`, at least one and all of one span, to those of `pairs`, who
/// share them.
///
/// # Safety
/// As [`attend_span`].
#[inline(always)]
unsafe fn add_blocks<S: Lanes>(
    s: S,
    unit: &Unit<'_>,
    span: usize,
    blocks: std::ops::Range<usize>,
    pairs: std::ops::Range<usize>,
    weights: *const f32,
    to: *mut f32,
) {
    let d = unit.head_dim();
    let (seen, span_end) = (unit.seen_by_any(span), unit.blocks(span).end);
    let nothing = Piece {
        values: std::ptr::null(),
        ahead: std::ptr::null(),
        first: 0,
        count: 0,
    };
    let mut pieces = [nothing; SPAN_BLOCKS];
    for (piece, block) in pieces.iter_mut().zip(blocks.clone()) {
        let first_key = (block - span * SPAN_BLOCKS) * BLOCK_TOKENS;
        // Keys that only some pairs see have no weight for the others.
        let first = seen.start.max(first_key);
        let values = (BLOCK_TOKENS + first - first_key) * d;
        *piece = Piece {
            values: unit.head(pairs.start, block).wrapping_add(values),
            ahead: match block + 1 < span_end {
                true => unit.after(pairs.start, block).wrapping_add(values),
                // Next come the keys of the next span.
                false => unit.after(pairs.start, block),
            },
            first,
            count: seen.end.min(first_key + BLOCK_TOKENS) - first,
        };
    }
    let pieces = &pieces[..blocks.len()];
    let mut pair = pairs.start;
    while pair < pairs.end {
        let n = together::<S>(pairs.end - pair);
        // SAFETY: values follow keys; weights and values of all pairs lie in their buffers.
        unsafe {
            let weights = weights.add(pair * SCORE_STRIDE);
            let to = to.add(pair * (d + 2));
            for_pairs!(n, add_pieces::<S>(s, pieces, d, weights, to));
        }
        pair += n;
    }
}

/// Adds the weighted values of all pieces to those of `P` pairs.
///
/// # Safety
/// The pieces hold rows of `d` f16, `weights` and `to` hold `P` rows.
#[inline(always)]
unsafe fn add_pieces<S: Lanes, const P: usize>(
    s: S,
    pieces: &[Piece],
    d: usize,
    weights: *const f32,
    to: *mut f32,
) {
    let mut col = 0;
    // SAFETY: columns `col..` up to `d` exist in every value and every row of `to`.
    unsafe {
        while S::WIDE && P <= 6 && col + 4 * LANES <= d {
            add_slab::<S, P, 4>(s, pieces, col, d, weights, to.add(col));
            col += 4 * LANES;
        }
        while S::WIDE && col + 2 * LANES <= d {
            add_slab::<S, P, 2>(s, pieces, col, d, weights, to.add(col));
            col += 2 * LANES;
        }
        while col < d {
            add_slab::<S, P, 1>(s, pieces, col, d, weights, to.add(col));
            col += LANES;
        }
    }
}

/// `W` times sixteen columns from `col` on, whose sums stay in registers from piece to piece.
///
/// # Safety
/// As [`add_pieces`], and the columns exist.
#[inline(always)]
unsafe fn add_slab<S: Lanes, const P: usize, const W: usize>(
    s: S,
    pieces: &[Piece],
    col: usize,
    d: usize,
    weights: *const f32,
    to: *mut f32,
) {
    // SAFETY: sixteen floats at each of the `W` places of each pair's row.
    let at = |p: usize, w: usize| unsafe { to.add(p * (d + 2) + w * LANES) };
    let mut acc = [[s.splat(0.0); W]; P];
    for (p, acc) in acc.iter_mut().enumerate() {
        for (w, acc) in acc.iter_mut().enumerate() {
            // SAFETY: as above.
            *acc = unsafe { s.load(at(p, w)) };
        }
    }
    for piece in pieces {
        for key in 0..piece.count {
            for line in (0..W * LANES).step_by(BLOCK_TOKENS) {
                s.fetch(piece.ahead.wrapping_add(key * d + col + line));
            }
            let mut v = [s.splat(0.0); W];
            for (w, v) in v.iter_mut().enumerate() {
                // SAFETY: 16 W columns of the value exist.
                *v = unsafe { s.load_f16(piece.values.add(key * d + col + w * LANES)) };
            }
            for (p, acc) in acc.iter_mut().enumerate() {
                // SAFETY: a weight per key and pair.
                let x = s.splat(unsafe { *weights.add(p * SCORE_STRIDE + piece.first + key) });
                for (acc, v) in acc.iter_mut().zip(v) {
                    *acc = s.fma(x, v, *acc);
                }
            }
        }
    }
    for (p, acc) in acc.iter().enumerate() {
        for (w, acc) in acc.iter().enumerate() {
            // SAFETY: as above.
            unsafe { s.store(at(p, w), *acc) }
        }
    }
}

/// Folds the partial results of one span into `folded`, for the pairs that see the span. The first
/// span is seen by all: by definition without a window, and with one each group is a single row.
///
/// # Safety
/// `partial` and `folded` hold `pairs` partial results.
#[inline(always)]
unsafe fn fold_span<S: Lanes>(
    s: S,
    unit: &Unit<'_>,
    span: usize,
    partial: *const f32,
    folded: *mut f32,
) {
    let step = unit.head_dim() + 2;
    for pair in 0..unit.pairs() {
        if !unit.seen(span, pair).is_empty() {
            // SAFETY: a partial result is `step` floats.
            unsafe {
                fold_pair(
                    s,
                    unit.head_dim(),
                    partial.add(pair * step),
                    folded.add(pair * step),
                )
            };
        }
    }
}

/// # Safety
/// `new` and `old` are partial results of `d` values.
#[inline(always)]
unsafe fn fold_pair<S: Lanes>(s: S, d: usize, new: *const f32, old: *mut f32) {
    // SAFETY: greatest, sum and then `d` values, a multiple of sixteen.
    unsafe {
        let greatest = if *new > *old { *new } else { *old };
        let old_factor = exp(s, s.splat(*old - greatest));
        let new_factor = exp(s, s.splat(*new - greatest));
        let fold = |old: S::F, new: S::F| s.fma(new, new_factor, s.mul(old, old_factor));
        let mut sums = [0f32; LANES];
        s.store(
            sums.as_mut_ptr(),
            fold(s.splat(*old.add(1)), s.splat(*new.add(1))),
        );
        (*old, *old.add(1)) = (greatest, sums[0]);
        for i in (2..d + 2).step_by(LANES) {
            s.store(old.add(i), fold(s.load(old.add(i)), s.load(new.add(i))));
        }
    }
}

/// # Safety
/// `folded` is a pair's partial result over all keys it sees.
#[inline(always)]
unsafe fn store_result<S: Lanes>(s: S, unit: &Unit<'_>, pair: usize, folded: *const f32) {
    // SAFETY: the pair's vector of `d` floats lies inside `out` and belongs to this unit.
    unsafe {
        let out = unit.job.out.add(unit.vector_at(pair));
        let factor = s.splat(1.0 / *folded.add(1));
        for i in (0..unit.head_dim()).step_by(LANES) {
            // Adding zero makes -0 (a sum that has underflowed) the +0 that it is beside a key
            // without weight.
            let x = s.mul(s.load(folded.add(2 + i)), factor);
            s.store(out.add(i), s.add(x, s.splat(0.0)));
        }
    }
}
