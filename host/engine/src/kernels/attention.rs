//! Attention of a ragged batch over paged keys and values: prefill chunks, decode rows and draft rows of any
//! mixture of sequences, one row of queries each.
//!
//! A row's keys are cut at every multiple of 256 positions. Inside such a *span* the scores come first, then
//! one softmax, then the weighted values key by key; spans are folded together in order, in the manner of
//! FlashAttention (Dao et al. 2022). The cut depends on nothing but positions, so a row gets the same bits
//! alone, in a batch, in any chunk, on any number of threads. What does depend on the batch is only who
//! computes what beside whom: the heads of a kv head and up to a dozen rows of one sequence share each
//! load of K and V, and the spans of a long, lonely row may go to different threads.
//!
//! It refuses ring buffers: a sliding window is a window over the same blocks.

use std::mem::MaybeUninit;

use super::isa::Isa;
use super::kv::{BLOCK_TOKENS, KvView};
use super::lanes::{Kernel, LANES, Lanes, exp, with_lanes};
use super::pool::Pool;

/// Keys of one span: a multiple of the block, long enough that folding costs nothing.
const SPAN: usize = 256;
/// (row, head) pairs that share the loads of one unit of work.
const MAX_PAIRS: usize = 12;
/// Greatest head size: the buffers of a unit lie on the stack.
const MAX_HEAD_DIM: usize = 256;

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

/// One row of queries: its position in its sequence and where that sequence's blocks are. It sees the keys
/// of positions `0..=position`, which must have been written.
#[derive(Debug, Clone, Copy)]
pub struct RowMeta<'a> {
    pub position: usize,
    pub block_table: &'a [u32],
}

/// Working memory that is kept between calls, so that a step allocates only when a batch is the longest yet.
#[derive(Debug, Default)]
pub struct AttentionScratch {
    groups: Vec<Group>,
    partials: Vec<f32>,
}

/// Consecutive rows of one sequence.
#[derive(Debug, Clone, Copy)]
struct Group {
    first_row: usize,
    rows: usize,
    /// Positions of the first key any row sees, and past the last.
    keys: (usize, usize),
}

impl Group {
    fn spans(&self) -> std::ops::Range<usize> {
        self.keys.0 / SPAN..self.keys.1.div_ceil(SPAN)
    }
}

/// `q` and `out` are row-major, one row per entry of `rows`, of `heads` x `head_dim`.
///
/// # Panics
/// If shapes do not fit, the heads are no multiple of the kv heads, the head size exceeds 256, or a block
/// table is too short or names a block that the store does not have.
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
    let heads_each = shared_heads.min(MAX_PAIRS);
    let slices = shared_heads.div_ceil(heads_each);
    scratch.find_groups(shape, rows, MAX_PAIRS / heads_each);
    let AttentionScratch { groups, partials } = scratch;
    let lanes_of_work = groups.len() * kv.kv_heads() * slices;
    let spans = groups.iter().map(|g| g.spans().len()).max().unwrap_or(0);
    let alone = pool.threads() > 1 && spans > 1 && lanes_of_work < 4 * pool.threads();
    let partial_len = MAX_PAIRS * (d + 2);
    if alone {
        partials.resize(partials.len().max(lanes_of_work * spans * partial_len), 0.0);
    }
    let job = AttentionJob {
        isa,
        shape,
        q,
        kv,
        rows,
        heads_each,
        shared_heads,
        out: out.as_mut_ptr(),
    };
    let unit = |lane: usize| {
        let group = &groups[lane / (kv.kv_heads() * slices)];
        job.unit(group, lane / slices % kv.kv_heads(), lane % slices)
    };
    if !alone {
        pool.run(lanes_of_work, |lane| unit(lane).run(Work::Whole));
        return;
    }
    let shared = SharedPartials {
        first: partials.as_mut_ptr(),
        len: partial_len,
    };
    let partial = |lane: usize, span: usize| shared.of(lane * spans + span);
    pool.run(lanes_of_work * spans, |part| {
        let (lane, span) = (part / spans, part % spans);
        let unit = unit(lane);
        let own = unit.group.spans();
        if span < own.len() {
            unit.run(Work::Span {
                span: own.start + span,
                to: partial(lane, span),
            });
        }
    });
    for lane in 0..lanes_of_work {
        unit(lane).run(Work::Fold {
            from: partial(lane, 0),
            stride: partial_len,
        });
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
            if let Some(group) = self.groups.last_mut() {
                let before = &rows[i - 1];
                // A window would give each row its own first key; then every row is a group of its own.
                let joins = group.rows < most
                    && shape.window.is_none()
                    && std::ptr::eq(before.block_table, row.block_table)
                    && row.position == before.position + 1;
                if joins {
                    group.rows += 1;
                    group.keys.1 = row.position + 1;
                    continue;
                }
            }
            self.groups.push(Group {
                first_row: i,
                rows: 1,
                keys: (first_key, row.position + 1),
            });
        }
    }
}

struct SharedPartials {
    first: *mut f32,
    len: usize,
}

// SAFETY: every part of a region uses its own stretch of the buffer (see `of`).
unsafe impl Sync for SharedPartials {}

impl SharedPartials {
    fn of(&self, index: usize) -> *mut f32 {
        // SAFETY: the buffer was resized to hold every (lane, span).
        unsafe { self.first.add(index * self.len) }
    }
}

struct AttentionJob<'a> {
    isa: Isa,
    shape: &'a AttentionShape,
    q: &'a [f32],
    kv: &'a KvView<'a>,
    rows: &'a [RowMeta<'a>],
    heads_each: usize,
    shared_heads: usize,
    out: *mut f32,
}

// SAFETY: `out` is written only by units, each of which owns its (row, head) pairs.
unsafe impl Sync for AttentionJob<'_> {}

impl<'a> AttentionJob<'a> {
    /// The work on slice `slice` of the heads of one kv head, for one group of rows.
    fn unit(&'a self, group: &'a Group, kv_head: usize, slice: usize) -> Unit<'a> {
        let first = slice * self.heads_each;
        Unit {
            job: self,
            group,
            kv_head,
            first_head: kv_head * self.shared_heads + first,
            heads: self.heads_each.min(self.shared_heads - first),
        }
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

/// What a span, or several folded spans, know of one pair: the greatest score, the sum of e^(score - greatest)
/// and the values weighted with it. In memory: `[greatest][sum][values x d]` per pair.
type Partial = [f32; MAX_PAIRS * (MAX_HEAD_DIM + 2)];

struct Buffers {
    q: [f32; MAX_PAIRS * MAX_HEAD_DIM],
    scores: [f32; MAX_PAIRS * SPAN],
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

    /// The keys of a span that a pair sees, relative to the span.
    #[inline(always)]
    fn seen(&self, span: usize, pair: usize) -> std::ops::Range<usize> {
        let position = self.job.rows[self.group.first_row + pair / self.heads].position;
        let end = (position + 1).saturating_sub(span * SPAN).min(SPAN);
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
        let mut filled = [false; MAX_PAIRS];
        // SAFETY: q, scores and partials hold MAX_PAIRS rows of the greatest size and `pairs` is at most
        // MAX_PAIRS; `to` and `from` lead to partials of the same layout; `out` holds every pair's vector and
        // this unit alone writes them.
        unsafe {
            match self.work {
                Work::Span { span, to } => {
                    load_queries(s, unit, q);
                    attend_span(s, unit, span, q, scores, to);
                    return;
                }
                Work::Whole => {
                    load_queries(s, unit, q);
                    for span in spans {
                        attend_span(s, unit, span, q, scores, partial);
                        fold_span(s, unit, span, partial, folded, &mut filled);
                    }
                }
                Work::Fold { from, stride } => {
                    for (i, span) in spans.enumerate() {
                        fold_span(s, unit, span, from.add(i * stride), folded, &mut filled);
                    }
                }
            }
            for pair in 0..unit.pairs() {
                store_result(s, unit, pair, folded.add(pair * step));
            }
        }
    }
}

/// Copies the queries side by side, multiplied with the scale.
///
/// # Safety
/// `q` has room for `pairs` vectors.
#[inline(always)]
unsafe fn load_queries<S: Lanes>(s: S, unit: &Unit<'_>, q: *mut f32) {
    let d = unit.head_dim();
    for pair in 0..unit.pairs() {
        let from = &unit.job.q[unit.vector_at(pair)..][..d];
        for i in (0..d).step_by(LANES) {
            // SAFETY: `d` is a multiple of 16, so sixteen floats follow on both sides.
            unsafe {
                let x = s.mul(s.load(from.as_ptr().add(i)), s.splat(unit.job.shape.scale));
                s.store(q.add(pair * d + i), x);
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
        7 | 8 => 4,
        _ if S::WIDE => 6,
        _ => 3,
    }
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
    let (d, pairs) = (unit.head_dim(), unit.pairs());
    // The last row of a group sees most, the first row sees the first key.
    let (first, end) = (unit.seen(span, 0).start, unit.seen(span, pairs - 1).end);
    let blocks = first / BLOCK_TOKENS..end.div_ceil(BLOCK_TOKENS);
    let table = unit.job.rows[unit.group.first_row].block_table;
    let head = |block: usize| {
        unit.job
            .kv
            .head(table[span * (SPAN / BLOCK_TOKENS) + block], unit.kv_head)
    };
    // SAFETY: `head` leads to d x 32 keys and then 32 x d values; a block's scores lie inside the span.
    unsafe {
        for block in blocks.clone() {
            let (keys, scores) = (head(block), scores.add(block * BLOCK_TOKENS));
            let mut pair = 0;
            while pair < pairs {
                let n = together::<S>(pairs - pair);
                score_block(s, n, keys, d, q.add(pair * d), scores.add(pair * SPAN));
                pair += n;
            }
        }
        for pair in 0..pairs {
            let to = to.add(pair * (d + 2));
            let seen = unit.seen(span, pair);
            weigh_scores(s, unit.job.shape.softcap, scores.add(pair * SPAN), seen, to);
            std::ptr::write_bytes(to.add(2), 0, d);
        }
        for block in blocks {
            let values = head(block).add(BLOCK_TOKENS * d);
            let in_block = |pair: usize| {
                let (seen, at) = (unit.seen(span, pair), block * BLOCK_TOKENS);
                let keys = |x: usize| x.saturating_sub(at).min(BLOCK_TOKENS);
                (keys(seen.start), keys(seen.end))
            };
            let weights = scores.add(block * BLOCK_TOKENS);
            let mut pair = 0;
            while pair < pairs {
                let n = together::<S>(pairs - pair);
                let (from, common) = in_block(pair);
                let own = |p: usize| (weights.add(p * SPAN), to.add(p * (d + 2) + 2));
                let (w, o) = own(pair);
                add_values(s, n, values, d, (from, common), w, o);
                for later in pair + 1..pair + n {
                    let end = in_block(later).1;
                    let (w, o) = own(later);
                    add_values(s, 1, values, d, (common, end), w, o);
                }
                pair += n;
            }
        }
    }
}

/// Scores of 32 keys for `pairs` queries; `q` has stride `d`, `out` stride [`SPAN`].
///
/// # Safety
/// `keys` holds `d` x 32 f16, `q` and `out` hold `pairs` rows.
#[inline(always)]
unsafe fn score_block<S: Lanes>(
    s: S,
    pairs: usize,
    keys: *const u16,
    d: usize,
    q: *const f32,
    out: *mut f32,
) {
    // SAFETY: passed on.
    unsafe {
        match pairs {
            1 => score_pairs::<S, 1>(s, keys, d, q, out),
            2 => score_pairs::<S, 2>(s, keys, d, q, out),
            3 => score_pairs::<S, 3>(s, keys, d, q, out),
            4 => score_pairs::<S, 4>(s, keys, d, q, out),
            _ => score_pairs::<S, 6>(s, keys, d, q, out),
        }
    }
}

/// # Safety
/// As [`score_block`], with `P` pairs.
#[inline(always)]
unsafe fn score_pairs<S: Lanes, const P: usize>(
    s: S,
    keys: *const u16,
    d: usize,
    q: *const f32,
    out: *mut f32,
) {
    // SAFETY: passed on; two times sixteen keys make the block.
    unsafe {
        if S::WIDE {
            score_keys::<S, P, 2>(s, keys, d, q, out);
        } else {
            score_keys::<S, P, 1>(s, keys, d, q, out);
            score_keys::<S, P, 1>(s, keys.add(LANES), d, q, out.add(LANES));
        }
    }
}

/// Scores of `K` times sixteen keys.
///
/// # Safety
/// As [`score_block`], with `P` pairs.
#[inline(always)]
unsafe fn score_keys<S: Lanes, const P: usize, const K: usize>(
    s: S,
    keys: *const u16,
    d: usize,
    q: *const f32,
    out: *mut f32,
) {
    let mut acc = [[s.splat(0.0); K]; P];
    for i in 0..d {
        // SAFETY: dimension `i` < d of 16 K keys and of every query.
        let k: [S::F; K] =
            std::array::from_fn(|v| unsafe { s.load_f16(keys.add(i * BLOCK_TOKENS + v * LANES)) });
        for (p, acc) in acc.iter_mut().enumerate() {
            // SAFETY: as above.
            let x = s.splat(unsafe { *q.add(p * d + i) });
            for (acc, k) in acc.iter_mut().zip(k) {
                *acc = s.fma(x, k, *acc);
            }
        }
    }
    for (p, acc) in acc.into_iter().enumerate() {
        for (v, acc) in acc.into_iter().enumerate() {
            // SAFETY: 16 K scores fit each row of `out`.
            unsafe { s.store(out.add(p * SPAN + v * LANES), acc) }
        }
    }
}

/// Turns the scores of one pair into weights and writes greatest score and sum of weights to `to[0..2]`.
/// Keys outside `seen` get weight 0 up to the next multiple of sixteen.
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

/// `cap * tanh(x / cap)`; minus infinity stays what it is, because it marks a key that is not seen.
#[inline(always)]
fn cap_scores<S: Lanes>(s: S, x: S::F, cap: f32) -> S::F {
    let e = exp(s, s.mul(x, s.splat(2.0 / cap)));
    let tanh = s.sub(s.splat(1.0), s.div(s.splat(2.0), s.add(e, s.splat(1.0))));
    // Adding min(x + greatest float, 0) changes nothing but minus infinity.
    s.add(
        s.mul(tanh, s.splat(cap)),
        s.min(s.add(x, s.splat(f32::MAX)), s.splat(0.0)),
    )
}

/// Adds `weight * value` of keys `keys.0..keys.1` of a block to `out`; `weights` has stride [`SPAN`], `out`
/// stride `d + 2`.
///
/// # Safety
/// `values` holds 32 x `d` f16, `weights` and `out` hold `pairs` rows.
#[inline(always)]
unsafe fn add_values<S: Lanes>(
    s: S,
    pairs: usize,
    values: *const u16,
    d: usize,
    keys: (usize, usize),
    weights: *const f32,
    out: *mut f32,
) {
    // SAFETY: passed on.
    unsafe {
        match pairs {
            1 => add_pairs::<S, 1>(s, values, d, keys, weights, out),
            2 => add_pairs::<S, 2>(s, values, d, keys, weights, out),
            3 => add_pairs::<S, 3>(s, values, d, keys, weights, out),
            4 => add_pairs::<S, 4>(s, values, d, keys, weights, out),
            _ => add_pairs::<S, 6>(s, values, d, keys, weights, out),
        }
    }
}

/// # Safety
/// As [`add_values`], with `P` pairs.
#[inline(always)]
unsafe fn add_pairs<S: Lanes, const P: usize>(
    s: S,
    values: *const u16,
    d: usize,
    keys: (usize, usize),
    weights: *const f32,
    out: *mut f32,
) {
    const SLAB: usize = 4 * LANES;
    if keys.0 >= keys.1 {
        return;
    }
    let mut col = 0;
    // SAFETY: columns `col..` up to `d` exist in every value and every row of `out`.
    unsafe {
        while S::WIDE && col + SLAB <= d {
            add_slab::<S, P, 4>(s, values.add(col), d, keys, weights, out.add(col));
            col += SLAB;
        }
        while col < d {
            add_slab::<S, P, 1>(s, values.add(col), d, keys, weights, out.add(col));
            col += LANES;
        }
    }
}

/// `W` times sixteen columns.
///
/// # Safety
/// As [`add_values`], with `P` pairs.
#[inline(always)]
unsafe fn add_slab<S: Lanes, const P: usize, const W: usize>(
    s: S,
    values: *const u16,
    d: usize,
    keys: (usize, usize),
    weights: *const f32,
    out: *mut f32,
) {
    // SAFETY: sixteen floats at each of the `W` places of each pair's row.
    let at = |p: usize, w: usize| unsafe { out.add(p * (d + 2) + w * LANES) };
    let mut acc: [[S::F; W]; P] =
        // SAFETY: as above.
        std::array::from_fn(|p| std::array::from_fn(|w| unsafe { s.load(at(p, w)) }));
    for key in keys.0..keys.1 {
        // SAFETY: `key` < 32, and 16 W columns of its value exist.
        let v: [S::F; W] =
            std::array::from_fn(|w| unsafe { s.load_f16(values.add(key * d + w * LANES)) });
        for (p, acc) in acc.iter_mut().enumerate() {
            // SAFETY: a weight per key and pair.
            let x = s.splat(unsafe { *weights.add(p * SPAN + key) });
            for (acc, v) in acc.iter_mut().zip(v) {
                *acc = s.fma(x, v, *acc);
            }
        }
    }
    for (p, acc) in acc.into_iter().enumerate() {
        for (w, acc) in acc.into_iter().enumerate() {
            // SAFETY: as above.
            unsafe { s.store(at(p, w), acc) }
        }
    }
}

/// Folds the partial results of one span into `folded`; the first span a pair sees is copied.
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
    filled: &mut [bool; MAX_PAIRS],
) {
    let step = unit.head_dim() + 2;
    for (pair, filled) in filled.iter_mut().enumerate().take(unit.pairs()) {
        if unit.seen(span, pair).is_empty() {
            continue;
        }
        // SAFETY: a partial result is `step` floats.
        unsafe {
            let (new, old) = (partial.add(pair * step), folded.add(pair * step));
            if *filled {
                fold_pair(s, unit.head_dim(), new, old);
            } else {
                std::ptr::copy_nonoverlapping(new, old, step);
            }
        }
        *filled = true;
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
            s.store(out.add(i), s.mul(s.load(folded.add(2 + i)), factor));
        }
    }
}
