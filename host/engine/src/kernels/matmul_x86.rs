//! The tile kernels of x86-64. Integers are exact, so only the few float operations at the end of a block
//! have an order to keep, the one that `matmul` states.

use std::arch::x86_64::*;

use super::activations::BlockGroup;
use super::matmul::TileWork;
use super::matrix::{TILE_ROWS, TileFormat};

const Q4_0: u8 = 0;
const Q4_1: u8 = 1;
const Q8_0: u8 = 2;

/// # Safety
/// The processor has AVX-512 F, BW, VL and VNNI, and F16C; `work` keeps its promises.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,f16c,fma")]
pub(super) unsafe fn avx512(work: &TileWork<'_>) {
    macro_rules! for_rows {
        ($($n:literal),+) => {
            match (work.format, work.rows) {
                $(
                    (TileFormat::Q4_0, $n) => tile_avx512::<Q4_0, $n>(work),
                    (TileFormat::Q4_1, $n) => tile_avx512::<Q4_1, $n>(work),
                    (TileFormat::Q8_0, $n) => tile_avx512::<Q8_0, $n>(work),
                )+
                (format, rows) => unreachable!("{rows} rows of {format:?}"),
            }
        };
    }
    // SAFETY: passed on.
    unsafe { for_rows!(1, 2, 3, 4, 5, 6, 7, 8) }
}

/// How far ahead of the block at work its successors are fetched: some 150 ns of work. Tiles and gathered
/// matrices follow each other in memory, so this reaches into the next tile and the next matrix.
const FETCH_AHEAD: usize = 4096;

/// Asks for the cache lines of one block; an address beyond the end is ignored by the processor.
#[inline(always)]
fn fetch(block: *const u8, bytes: usize) {
    for line in (0..bytes).step_by(64) {
        // SAFETY: a prefetch reads nothing and cannot fault.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(block.wrapping_add(line).cast()) };
    }
}

/// Four consecutive bytes of activations, as one lane.
#[inline(always)]
fn four_bytes(x: &[i8; 32], step: usize) -> i32 {
    // SAFETY: `step` < 8, so four of the 32 bytes follow.
    unsafe { x.as_ptr().add(4 * step).cast::<i32>().read_unaligned() }
}

/// `dots[row] += w[step] · x[row][step]`, as one instruction with one place in the order. As an intrinsic it
/// is moved: the compiler then does a row after the other, and each waits for its own last product, which
/// costs four rows a third of their speed.
macro_rules! dot_step {
    ($step:literal, $row:literal, $m:ident, $dots:ident, $w:ident, $quants:ident) => {
        if $row < $m {
            // SAFETY: reads four bytes of the eight times 32 at `quants`; the function has the feature.
            unsafe {
                std::arch::asm!(
                    "vpdpbusd {dots}, {w}, dword ptr [{quants} + {at}]{{1to16}}",
                    dots = inout(zmm_reg) $dots[$row],
                    w = in(zmm_reg) $w[$step],
                    quants = in(reg) $quants,
                    at = const $row * 32 + $step * 4,
                    options(readonly, nostack, preserves_flags)
                );
            }
        }
    };
}

/// Expands `$body!(step, row, …)` for eight steps of eight rows; the rows take turns.
macro_rules! for_steps_and_rows {
    (@step $step:literal, $body:ident, $($args:ident),+) => {
        $body!($step, 0, $($args),+);
        $body!($step, 1, $($args),+);
        $body!($step, 2, $($args),+);
        $body!($step, 3, $($args),+);
        $body!($step, 4, $($args),+);
        $body!($step, 5, $($args),+);
        $body!($step, 6, $($args),+);
        $body!($step, 7, $($args),+);
    };
    ($body:ident, $($args:ident),+) => {
        for_steps_and_rows!(@step 0, $body, $($args),+);
        for_steps_and_rows!(@step 1, $body, $($args),+);
        for_steps_and_rows!(@step 2, $body, $($args),+);
        for_steps_and_rows!(@step 3, $body, $($args),+);
        for_steps_and_rows!(@step 4, $body, $($args),+);
        for_steps_and_rows!(@step 5, $body, $($args),+);
        for_steps_and_rows!(@step 6, $body, $($args),+);
        for_steps_and_rows!(@step 7, $body, $($args),+);
    };
}

/// All sixteen outputs of `M` rows: a block's weights are unpacked once and used `M` times.
///
/// # Safety
/// As [`avx512`]; the group has `M` rows.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,f16c,fma")]
#[inline]
unsafe fn tile_avx512<const FORMAT: u8, const M: usize>(work: &TileWork<'_>) {
    let (mut scales, mut quants) = (work.scales.as_ptr(), work.quants.as_ptr());
    let mut fetched = scales.wrapping_add(FETCH_AHEAD);
    let block_bytes = work.format.scale_bytes() + work.format.quant_bytes();
    let mask = _mm512_set1_epi8(15);
    let mut acc = [_mm512_setzero_ps(); M];
    for x in work.x {
        if work.fetch_ahead {
            fetch(fetched, block_bytes);
            fetched = fetched.wrapping_add(block_bytes);
        }
        // SAFETY: a tile holds scales and quants of as many blocks as the row has.
        let (d, m, w) = unsafe {
            let d = _mm512_cvtph_ps(_mm256_loadu_si256(scales.cast()));
            let mut m = d;
            if FORMAT == Q4_1 {
                m = _mm512_cvtph_ps(_mm256_loadu_si256(scales.add(32).cast()));
            }
            let mut w = [_mm512_setzero_si512(); 8];
            for step in 0..if FORMAT == Q8_0 { 8 } else { 4 } {
                let bytes = _mm512_loadu_si512(quants.add(64 * step).cast());
                if FORMAT == Q8_0 {
                    w[step] = bytes;
                } else {
                    w[step] = _mm512_and_si512(bytes, mask);
                    w[step + 4] = _mm512_and_si512(_mm512_srli_epi16::<4>(bytes), mask);
                }
            }
            scales = scales.add(if FORMAT == Q4_1 { 64 } else { 32 });
            quants = quants.add(if FORMAT == Q8_0 { 512 } else { 256 });
            (d, m, w)
        };
        let mut dots = [_mm512_setzero_si512(); M];
        for (row, dots) in dots.iter_mut().enumerate() {
            match FORMAT {
                Q8_0 => *dots = _mm512_set1_epi32(x.offset[row]),
                Q4_0 => *dots = _mm512_set1_epi32(x.offset[row] >> 4),
                _ => {}
            }
        }
        let quants = x.quants.as_ptr();
        for_steps_and_rows!(dot_step, M, dots, w, quants);
        for (row, acc) in acc.iter_mut().enumerate() {
            let scale = _mm512_mul_ps(d, _mm512_set1_ps(x.scale[row]));
            *acc = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dots[row]), scale, *acc);
            if FORMAT == Q4_1 {
                *acc = _mm512_fmadd_ps(m, _mm512_set1_ps(x.scaled_sum[row]), *acc);
            }
        }
    }
    for (row, acc) in acc.into_iter().enumerate() {
        let mut sums = [0f32; TILE_ROWS];
        // SAFETY: sixteen floats.
        unsafe { _mm512_storeu_ps(sums.as_mut_ptr(), acc) };
        work.finish(row, &sums);
    }
}

/// # Safety
/// The processor has AVX2, FMA and F16C; `work` keeps its promises.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn avx2(work: &TileWork<'_>) {
    // SAFETY: passed on; the rows of a group go by fours.
    unsafe {
        if work.rows > 4 {
            match work.format {
                TileFormat::Q4_0 => tile_avx2::<Q4_0, 4>(work, 0),
                TileFormat::Q4_1 => tile_avx2::<Q4_1, 4>(work, 0),
                TileFormat::Q8_0 => tile_avx2::<Q8_0, 4>(work, 0),
            }
            avx2_last_rows(work, 4, work.rows - 4);
        } else {
            avx2_last_rows(work, 0, work.rows);
        }
    }
}

/// # Safety
/// As [`avx2`]; `rows` is 1 to 4.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn avx2_last_rows(work: &TileWork<'_>, first: usize, rows: usize) {
    macro_rules! for_rows {
        ($($n:literal),+) => {
            match (work.format, rows) {
                $(
                    (TileFormat::Q4_0, $n) => tile_avx2::<Q4_0, $n>(work, first),
                    (TileFormat::Q4_1, $n) => tile_avx2::<Q4_1, $n>(work, first),
                    (TileFormat::Q8_0, $n) => tile_avx2::<Q8_0, $n>(work, first),
                )+
                (format, rows) => unreachable!("{rows} rows of {format:?}"),
            }
        };
    }
    // SAFETY: passed on.
    unsafe { for_rows!(1, 2, 3, 4) }
}

/// As [`tile_avx512`], eight outputs at a time: sixteen registers hold no more.
///
/// # Safety
/// As [`avx2`]; the group has `first + M` rows.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn tile_avx2<const FORMAT: u8, const M: usize>(work: &TileWork<'_>, first: usize) {
    let mut sums = [[0f32; TILE_ROWS]; M];
    for half in 0..2 {
        let (mut scales, mut quants) = (work.scales.as_ptr(), work.quants.as_ptr());
        let mut acc = [_mm256_setzero_ps(); M];
        for x in work.x {
            // SAFETY: a tile holds scales and quants of as many blocks as the row has; a half is eight of
            // sixteen lanes.
            let (d, m, w) = unsafe {
                let f16s =
                    |at: usize| _mm256_cvtph_ps(_mm_loadu_si128(scales.add(at + 16 * half).cast()));
                let (d, m) = (
                    f16s(0),
                    if FORMAT == Q4_1 {
                        f16s(32)
                    } else {
                        _mm256_setzero_ps()
                    },
                );
                let w = unpack_avx2::<FORMAT>(quants.add(32 * half));
                scales = scales.add(if FORMAT == Q4_1 { 64 } else { 32 });
                quants = quants.add(if FORMAT == Q8_0 { 512 } else { 256 });
                (d, m, w)
            };
            for (row, acc) in acc.iter_mut().enumerate() {
                let row = first + row;
                let dots = dot_avx2::<FORMAT>(&w, x, row);
                let scale = _mm256_mul_ps(d, _mm256_set1_ps(x.scale[row]));
                *acc = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dots), scale, *acc);
                if FORMAT == Q4_1 {
                    *acc = _mm256_fmadd_ps(m, _mm256_set1_ps(x.scaled_sum[row]), *acc);
                }
            }
        }
        for (sums, acc) in sums.iter_mut().zip(acc) {
            // SAFETY: eight floats of sixteen.
            unsafe { _mm256_storeu_ps(sums.as_mut_ptr().add(8 * half), acc) };
        }
    }
    for (row, sums) in sums.iter().enumerate() {
        work.finish(first + row, sums);
    }
}

/// The 32 columns of eight rows: nibbles as they are, Q8 as signed bytes.
///
/// # Safety
/// AVX2; a block's quants are readable at `quants`, from this half on.
#[target_feature(enable = "avx2")]
#[inline]
unsafe fn unpack_avx2<const FORMAT: u8>(quants: *const u8) -> [__m256i; 8] {
    let mask = _mm256_set1_epi8(15);
    let mut w = [_mm256_setzero_si256(); 8];
    for step in 0..if FORMAT == Q8_0 { 8 } else { 4 } {
        // SAFETY: one 64-byte step of a block, of which this is a half.
        let bytes = unsafe { _mm256_loadu_si256(quants.add(64 * step).cast()) };
        if FORMAT == Q8_0 {
            w[step] = _mm256_xor_si256(bytes, _mm256_set1_epi8(-128));
        } else {
            w[step] = _mm256_and_si256(bytes, mask);
            w[step + 4] = _mm256_and_si256(_mm256_srli_epi16::<4>(bytes), mask);
        }
    }
    w
}

/// The exact integer dot of one block, for eight outputs of one row.
#[target_feature(enable = "avx2")]
#[inline]
fn dot_avx2<const FORMAT: u8>(w: &[__m256i; 8], x: &BlockGroup, row: usize) -> __m256i {
    let ones = _mm256_set1_epi16(1);
    let bytes = |step: usize| _mm256_set1_epi32(four_bytes(&x.quants[row], step));
    if FORMAT == Q8_0 {
        // |w| <= 128 and |x| <= 127: a pair sums to at most 32,512, so the 16-bit sums do not saturate.
        let mut dots = _mm256_setzero_si256();
        for (step, w) in w.iter().enumerate() {
            let pairs =
                _mm256_maddubs_epi16(_mm256_abs_epi8(*w), _mm256_sign_epi8(bytes(step), *w));
            dots = _mm256_add_epi32(dots, _mm256_madd_epi16(pairs, ones));
        }
        return dots;
    }
    // A pair sums to at most 2 * 15 * 127 = 3,810, eight of them to 30,480: still 16 bits.
    let mut pairs = _mm256_maddubs_epi16(w[0], bytes(0));
    for (step, w) in w.iter().enumerate().skip(1) {
        pairs = _mm256_add_epi16(pairs, _mm256_maddubs_epi16(*w, bytes(step)));
    }
    let dots = _mm256_madd_epi16(pairs, ones);
    if FORMAT == Q4_0 {
        _mm256_add_epi32(dots, _mm256_set1_epi32(x.offset[row] >> 4))
    } else {
        dots
    }
}
