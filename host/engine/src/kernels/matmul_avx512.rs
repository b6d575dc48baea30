//! The tile kernel for AVX-512 VNNI: sixteen outputs and up to eight rows at once. Integers are
//! exact, so only the few float operations at the end of a block have an order to keep, the one
//! that `matmul` states.

use std::arch::x86_64::*;

use super::matmul::{Q4_0, Q4_1, Q8_0, TileWork};
use super::matrix::{TILE_ROWS, TileFormat};

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

/// `dots[row] += w[step] · x[row][step]`, as one instruction with one place in the order. As an
/// intrinsic it is moved: the compiler then does a row after the other, and each waits for its own
/// last product, which costs four rows a third of their speed.
macro_rules! dot_step {
    ($step:literal, $row:literal, $m:ident, $dots:ident, $w:ident, $quants:ident) => {
        if $row < $m {
            // SAFETY: reads four bytes of the eight times 32 at `quants`; the function has the
            // feature.
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
    let mut fetched = work.fetch_from();
    let mask = _mm512_set1_epi8(15);
    let mut acc = [_mm512_setzero_ps(); M];
    for x in work.x {
        work.fetch_block(&mut fetched);
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
