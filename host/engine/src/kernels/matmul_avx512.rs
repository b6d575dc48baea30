//! The tile kernel for AVX-512 VNNI: sixteen outputs and up to eight rows at once. Integers are
//! exact, so only the few float operations at the end of a block have an order to keep, the one
//! that `matmul` states.

use std::arch::x86_64::*;

use super::activations::BlockGroup;
use super::formats::{SUPER_BLOCKS, TileFormat};
use super::matmul::TileWork;
use super::matrix::TILE_ROWS;

/// # Safety
/// The processor has AVX-512 F, BW, VL and VNNI, and F16C; `work` keeps its promises.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,f16c,fma")]
pub(super) unsafe fn avx512(work: &TileWork<'_>) {
    macro_rules! for_rows {
        ($format:ident; $($n:literal),+) => {
            match work.rows {
                $(..=$n => tile_avx512::<{ TileFormat::$format as u8 }, $n>(work),)+
                rows => unreachable!("{rows} rows in a group"),
            }
        };
    }
    macro_rules! for_formats {
        ($($format:ident),+) => {
            match work.format {
                $(TileFormat::$format => for_rows!($format; 1, 2, 3, 4, 6, 8),)+
            }
        };
    }
    // SAFETY: passed on.
    unsafe { for_formats!(Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K, Q6_K) }
}

/// `dots[row] += w[step] · x[row][step]`, as one instruction with one place in the order. As an
/// intrinsic it is moved: the compiler then does a row after the other, and each waits for its own
/// last product, which costs four rows a third of their speed.
macro_rules! dot_step {
    ($step:literal, $row:literal, ($m:ident, $dots:ident, $w:ident, $quants:ident)) => {
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

/// Expands `$body!(step, row, args)` for some steps of eight rows; the rows take turns.
macro_rules! for_steps_and_rows {
    (@step $step:literal, $body:ident, $args:tt) => {
        $body!($step, 0, $args);
        $body!($step, 1, $args);
        $body!($step, 2, $args);
        $body!($step, 3, $args);
        $body!($step, 4, $args);
        $body!($step, 5, $args);
        $body!($step, 6, $args);
        $body!($step, 7, $args);
    };
    ([$($step:literal),+], $body:ident, $args:tt) => {
        $(for_steps_and_rows!(@step $step, $body, $args);)+
    };
}

/// All sixteen outputs of `M` rows: a block's weights are unpacked once and used `M` times. Rows
/// beyond those of `work` are whatever the group held before; their sums are not stored.
///
/// # Safety
/// As [`avx512`]; `M` is at least the rows of `work` and at most 8.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,f16c,fma")]
#[inline]
unsafe fn tile_avx512<const FORMAT: u8, const M: usize>(work: &TileWork<'_>) {
    let format = const { TileFormat::from_number(FORMAT) };
    let (mut scales, mut quants) = (work.scales.as_ptr(), work.quants.as_ptr());
    let mut fetched = work.fetch_from();
    let mut acc = [_mm512_setzero_ps(); M];
    let mut over = [_mm512_setzero_ps(); 2];
    for (block, x) in work.x.iter().enumerate() {
        work.fetch_block(&mut fetched);
        // SAFETY: a tile holds scales and quants of as many blocks as the row has; those of a
        // superblock stand before its first block.
        let (d, m, w) = unsafe {
            if format.is_super() && block % SUPER_BLOCKS == 0 {
                over = load_halves(format, scales);
                scales = scales.add(format.super_bytes());
            }
            let (d, m) = load_scales(format, scales, &over);
            let w = unpack(format, quants);
            scales = scales.add(format.scale_bytes());
            quants = quants.add(format.quant_bytes());
            (d, m, w)
        };
        let quants = x.quants.as_ptr();
        let mut dots = [_mm512_setzero_si512(); M];
        if format.scales_by_half() {
            begin(format, &mut dots, |row| x.offset_low[row]);
            for_steps_and_rows!([0, 1, 2, 3], dot_step, (M, dots, w, quants));
            add_dots(&mut acc, &dots, d, x);
            begin(format, &mut dots, |row| x.offset[row] - x.offset_low[row]);
            for_steps_and_rows!([4, 5, 6, 7], dot_step, (M, dots, w, quants));
            add_dots(&mut acc, &dots, m, x);
        } else {
            begin(format, &mut dots, |row| x.offset[row]);
            for_steps_and_rows!([0, 1, 2, 3, 4, 5, 6, 7], dot_step, (M, dots, w, quants));
            add_dots(&mut acc, &dots, d, x);
        }
        if format.has_min() {
            for (row, acc) in acc.iter_mut().enumerate() {
                *acc = _mm512_fmadd_ps(m, _mm512_set1_ps(x.scaled_sum[row]), *acc);
            }
        }
    }
    for (row, acc) in acc.into_iter().enumerate().take(work.rows) {
        let mut sums = [0f32; TILE_ROWS];
        // SAFETY: sixteen floats.
        unsafe { _mm512_storeu_ps(sums.as_mut_ptr(), acc) };
        work.finish(row, &sums);
    }
}

/// What undoes the shift of the stored weights.
#[target_feature(enable = "avx512f")]
#[inline]
fn begin<const M: usize>(
    format: TileFormat,
    dots: &mut [__m512i; M],
    offset: impl Fn(usize) -> i32,
) {
    if let Some(shift) = format.offset_shift() {
        for (row, dots) in dots.iter_mut().enumerate() {
            *dots = _mm512_set1_epi32(offset(row) >> shift);
        }
    }
}

/// `acc = fma(dots, d * scale, acc)`.
#[target_feature(enable = "avx512f")]
#[inline]
fn add_dots<const M: usize>(acc: &mut [__m512; M], dots: &[__m512i; M], d: __m512, x: &BlockGroup) {
    for (row, (acc, dots)) in acc.iter_mut().zip(dots).enumerate() {
        let scale = _mm512_mul_ps(d, _mm512_set1_ps(x.scale[row]));
        *acc = _mm512_fmadd_ps(_mm512_cvtepi32_ps(*dots), scale, *acc);
    }
}

/// One or two times sixteen f16.
///
/// # Safety
/// They are readable at `scales`.
#[target_feature(enable = "avx512f")]
#[inline]
unsafe fn load_halves(format: TileFormat, scales: *const u8) -> [__m512; 2] {
    // SAFETY: passed on.
    unsafe {
        let d = _mm512_cvtph_ps(_mm256_loadu_si256(scales.cast()));
        match format.halves() {
            2 => [
                d,
                _mm512_cvtph_ps(_mm256_loadu_si256(scales.add(32).cast())),
            ],
            _ => [d, d],
        }
    }
}

/// d and m of a block, or d of either half; `over` are the scales of its superblock.
///
/// # Safety
/// The scales of a block are readable at `scales`.
#[target_feature(enable = "avx512f")]
#[inline]
unsafe fn load_scales(
    format: TileFormat,
    scales: *const u8,
    over: &[__m512; 2],
) -> (__m512, __m512) {
    // SAFETY: passed on; a block of a K format has two times sixteen bytes.
    unsafe {
        if !format.is_super() {
            let [d, m] = load_halves(format, scales);
            return (d, m);
        }
        let fine = [scales, scales.add(TILE_ROWS)].map(|at| {
            let bytes = _mm_loadu_si128(at.cast());
            _mm512_cvtepi32_ps(match format.scales_by_half() {
                true => _mm512_cvtepi8_epi32(bytes),
                false => _mm512_cvtepu8_epi32(bytes),
            })
        });
        (
            _mm512_mul_ps(over[0], fine[0]),
            _mm512_mul_ps(over[1], fine[1]),
        )
    }
}

/// The 32 columns of sixteen rows, four at a time.
///
/// # Safety
/// A block's quants are readable at `quants`.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
unsafe fn unpack(format: TileFormat, quants: *const u8) -> [__m512i; 8] {
    // SAFETY: passed on; a block has 64 bytes of quants for each two bits.
    unsafe {
        let load = |i: usize| _mm512_loadu_si512(quants.add(64 * i).cast());
        let mut w = [_mm512_setzero_si512(); 8];
        if format.bits() == 8 {
            for (step, w) in w.iter_mut().enumerate() {
                *w = load(step);
            }
            return w;
        }
        let mask = _mm512_set1_epi8(15);
        for step in 0..4 {
            let bytes = load(step);
            w[step] = _mm512_and_si512(bytes, mask);
            w[step + 4] = _mm512_and_si512(_mm512_srli_epi16::<4>(bytes), mask);
        }
        // The further bits go to places 4 and 5 of their byte.
        match format.bits() {
            5 => {
                let (high, mask) = (load(4), _mm512_set1_epi8(16));
                for (step, w) in w.iter_mut().enumerate() {
                    *w = or_masked(*w, moved(high, 4 - step as i32), mask);
                }
            }
            6 => {
                let (high, mask) = ([load(4), load(5)], _mm512_set1_epi8(48));
                for (step, w) in w.iter_mut().enumerate() {
                    let by = 4 - 2 * (step as i32 % 4);
                    *w = or_masked(*w, moved(high[step / 4], by), mask);
                }
            }
            _ => {}
        }
        w
    }
}

/// Every 16 bits moved up by `by`, or down.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
fn moved(x: __m512i, by: i32) -> __m512i {
    let count = _mm_cvtsi32_si128(by.abs());
    match by >= 0 {
        true => _mm512_sll_epi16(x, count),
        false => _mm512_srl_epi16(x, count),
    }
}

/// `x | (y & mask)`.
#[target_feature(enable = "avx512f")]
#[inline]
fn or_masked(x: __m512i, y: __m512i, mask: __m512i) -> __m512i {
    _mm512_ternarylogic_epi32::<0b1111_1000>(x, y, mask)
}
