//! The tile kernels of 256 bits: eight outputs and up to four rows at once, because sixteen
//! registers hold no more. There are two ways to the exact integer dot: plain AVX2, and AVX-VNNI,
//! which the desktop processors that have no AVX-512 have since 2021.

use std::arch::x86_64::*;

use super::activations::BlockGroup;
use super::formats::{SUPER_BLOCKS, TileFormat};
use super::matmul::TileWork;
use super::matrix::TILE_ROWS;

/// # Safety
/// The processor has AVX2, FMA and F16C; `work` keeps its promises.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn avx2(work: &TileWork<'_>) {
    // SAFETY: passed on.
    unsafe { tile::<Plain>(work) }
}

/// # Safety
/// The processor has AVX2, AVX-VNNI, FMA and F16C; `work` keeps its promises.
#[target_feature(enable = "avx2,avxvnni,fma,f16c")]
pub(super) unsafe fn avx_vnni(work: &TileWork<'_>) {
    // SAFETY: passed on.
    unsafe { tile::<Vnni>(work) }
}

/// A way to the integer dot.
trait Dot {
    /// What Q8 weights, stored as q + 128, are turned into.
    ///
    /// # Safety
    /// The processor has the features of this way.
    unsafe fn unpack_bytes(w: __m256i) -> __m256i;
    /// The dots of eight outputs with one row, in the columns of steps `from` up to `from + N`.
    /// `offset` undoes the +128 of Q8 weights, or what the format has in its place.
    ///
    /// # Safety
    /// As above; `from + N` is at most 8.
    unsafe fn dot<const N: usize>(
        format: TileFormat,
        w: &[__m256i; 8],
        x: &[i8; 32],
        from: usize,
        offset: i32,
    ) -> __m256i;
}

/// # Safety
/// The processor has the features of `D`, FMA and F16C; `work` keeps its promises.
#[inline(always)]
unsafe fn tile<D: Dot>(work: &TileWork<'_>) {
    let mut first = 0;
    while first < work.rows {
        let rows = (work.rows - first).min(4);
        macro_rules! for_formats {
            ($($format:ident),+) => {
                match work.format {
                    $(TileFormat::$format => {
                        some_rows::<D, { TileFormat::$format as u8 }>(work, first, rows)
                    })+
                }
            };
        }
        // SAFETY: passed on; the group has `first + rows` rows.
        unsafe { for_formats!(Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K, Q6_K) }
        first += rows;
    }
}

/// # Safety
/// As [`tile`]; the group has `first + rows` rows, and `rows` is 1 to 4.
#[inline(always)]
unsafe fn some_rows<D: Dot, const FORMAT: u8>(work: &TileWork<'_>, first: usize, rows: usize) {
    // SAFETY: passed on.
    unsafe {
        match rows {
            1 => tile_rows::<D, FORMAT, 1>(work, first),
            2 => tile_rows::<D, FORMAT, 2>(work, first),
            _ => tile_rows::<D, FORMAT, 4>(work, first),
        }
    }
}

/// All sixteen outputs of `M` rows, in two halves. Rows beyond those of `work` are whatever the
/// group held before; their sums are not stored.
///
/// # Safety
/// As [`tile`]; `first + M` is at most 8.
#[inline(always)]
unsafe fn tile_rows<D: Dot, const FORMAT: u8, const M: usize>(work: &TileWork<'_>, first: usize) {
    let mut sums = [[0f32; TILE_ROWS]; M];
    for half in 0..2 {
        // SAFETY: passed on.
        unsafe { half_tile::<D, FORMAT, M>(work, first, half, &mut sums) };
    }
    for (row, sums) in sums.iter().enumerate().take(work.rows - first) {
        work.finish(first + row, sums);
    }
}

/// # Safety
/// As [`tile_rows`].
#[inline(always)]
unsafe fn half_tile<D: Dot, const FORMAT: u8, const M: usize>(
    work: &TileWork<'_>,
    first: usize,
    half: usize,
    sums: &mut [[f32; TILE_ROWS]; M],
) {
    let format = const { TileFormat::from_number(FORMAT) };
    let (mut scales, mut quants) = (work.scales.as_ptr(), work.quants.as_ptr());
    let mut fetched = work.fetch_from();
    // SAFETY: the features are there; a tile holds scales and quants of as many blocks as the row
    // has, those of a superblock before its first block, and a half is eight of sixteen lanes.
    unsafe {
        let mut acc = [_mm256_setzero_ps(); M];
        let mut over = [_mm256_setzero_ps(); 2];
        for (block, x) in work.x.iter().enumerate() {
            if half == 0 && first == 0 {
                work.fetch_block(&mut fetched);
            }
            if format.is_super() && block % SUPER_BLOCKS == 0 {
                over = load_halves(format, scales.add(16 * half));
                scales = scales.add(format.super_bytes());
            }
            let (d, m) = load_scales(format, scales, half, &over);
            let w = unpack::<D>(format, quants.add(32 * half));
            scales = scales.add(format.scale_bytes());
            quants = quants.add(format.quant_bytes());
            for (row, acc) in acc.iter_mut().enumerate() {
                let row = first + row;
                *acc = add_block::<D>(format, &w, d, m, x, row, *acc);
            }
        }
        for (sums, acc) in sums.iter_mut().zip(&acc) {
            _mm256_storeu_ps(sums.as_mut_ptr().add(8 * half), *acc);
        }
    }
}

/// One block of one row.
///
/// # Safety
/// As [`tile`]; the group has this row.
#[inline(always)]
unsafe fn add_block<D: Dot>(
    format: TileFormat,
    w: &[__m256i; 8],
    d: __m256,
    m: __m256,
    x: &BlockGroup,
    row: usize,
    acc: __m256,
) -> __m256 {
    // SAFETY: passed on; a block has eight steps.
    unsafe {
        let q = &x.quants[row];
        let add = |dots: __m256i, d: __m256, acc: __m256| {
            let scale = _mm256_mul_ps(d, _mm256_set1_ps(x.scale[row]));
            _mm256_fmadd_ps(_mm256_cvtepi32_ps(dots), scale, acc)
        };
        if format.scales_by_half() {
            let low = D::dot::<4>(format, w, q, 0, x.offset_low[row]);
            let offset = x.offset[row] - x.offset_low[row];
            let high = D::dot::<4>(format, w, q, 4, offset);
            return add(high, m, add(low, d, acc));
        }
        let acc = add(D::dot::<8>(format, w, q, 0, x.offset[row]), d, acc);
        match format.has_min() {
            true => _mm256_fmadd_ps(m, _mm256_set1_ps(x.scaled_sum[row]), acc),
            false => acc,
        }
    }
}

/// One or two times eight f16, which are 32 bytes apart.
///
/// # Safety
/// They are readable at `scales`; the processor has F16C.
#[inline(always)]
unsafe fn load_halves(format: TileFormat, scales: *const u8) -> [__m256; 2] {
    // SAFETY: passed on.
    unsafe {
        let d = _mm256_cvtph_ps(_mm_loadu_si128(scales.cast()));
        match format.halves() {
            2 => [d, _mm256_cvtph_ps(_mm_loadu_si128(scales.add(32).cast()))],
            _ => [d, d],
        }
    }
}

/// d and m of half a tile's block, or d of either half of its columns; `over` are the scales of its
/// superblock.
///
/// # Safety
/// The scales of a block are readable at `scales`; the processor has AVX2 and F16C.
#[inline(always)]
unsafe fn load_scales(
    format: TileFormat,
    scales: *const u8,
    half: usize,
    over: &[__m256; 2],
) -> (__m256, __m256) {
    // SAFETY: passed on; a block of a K format has two times sixteen bytes.
    unsafe {
        if !format.is_super() {
            let [d, m] = load_halves(format, scales.add(16 * half));
            return (d, m);
        }
        let fine = |at: usize| {
            let bytes = _mm_loadl_epi64(scales.add(at + 8 * half).cast());
            _mm256_cvtepi32_ps(match format.scales_by_half() {
                true => _mm256_cvtepi8_epi32(bytes),
                false => _mm256_cvtepu8_epi32(bytes),
            })
        };
        (
            _mm256_mul_ps(over[0], fine(0)),
            _mm256_mul_ps(over[1], fine(TILE_ROWS)),
        )
    }
}

/// The 32 columns of eight rows.
///
/// # Safety
/// As [`Dot`]; a block's quants are readable at `quants`, from this half on.
#[inline(always)]
unsafe fn unpack<D: Dot>(format: TileFormat, quants: *const u8) -> [__m256i; 8] {
    // SAFETY: the features are there; a block has 64 bytes of quants for each two bits, and this is
    // a half of each.
    unsafe {
        let load = |i: usize| _mm256_loadu_si256(quants.add(64 * i).cast());
        let mut w = [_mm256_setzero_si256(); 8];
        if format.bits() == 8 {
            for (step, w) in w.iter_mut().enumerate() {
                *w = D::unpack_bytes(load(step));
            }
            return w;
        }
        let mask = _mm256_set1_epi8(15);
        for step in 0..4 {
            let bytes = load(step);
            w[step] = _mm256_and_si256(bytes, mask);
            w[step + 4] = _mm256_and_si256(_mm256_srli_epi16::<4>(bytes), mask);
        }
        // The further bits go to places 4 and 5 of their byte.
        let add = |w: &mut __m256i, high: __m256i, by: i32, mask: __m256i| {
            let count = _mm_cvtsi32_si128(by.abs());
            let moved = match by >= 0 {
                true => _mm256_sll_epi16(high, count),
                false => _mm256_srl_epi16(high, count),
            };
            *w = _mm256_or_si256(*w, _mm256_and_si256(moved, mask));
        };
        match format.bits() {
            5 => {
                let (high, mask) = (load(4), _mm256_set1_epi8(16));
                for (step, w) in w.iter_mut().enumerate() {
                    add(w, high, 4 - step as i32, mask);
                }
            }
            6 => {
                let (high, mask) = ([load(4), load(5)], _mm256_set1_epi8(48));
                for (step, w) in w.iter_mut().enumerate() {
                    add(w, high[step / 4], 4 - 2 * (step as i32 % 4), mask);
                }
            }
            _ => {}
        }
        w
    }
}

/// Columns `4 step..4 step + 4` of a row, in every lane.
///
/// # Safety
/// The processor has AVX2; `step` < 8.
#[inline(always)]
unsafe fn four_columns(x: &[i8; 32], step: usize) -> __m256i {
    // SAFETY: four of the row's 32 bytes follow.
    unsafe { _mm256_set1_epi32(x.as_ptr().add(4 * step).cast::<i32>().read_unaligned()) }
}

struct Plain;

impl Dot for Plain {
    /// Back to signed: the product of unsigned and signed bytes would not fit 16 bits.
    #[inline(always)]
    unsafe fn unpack_bytes(w: __m256i) -> __m256i {
        // SAFETY: the features are there.
        unsafe { _mm256_xor_si256(w, _mm256_set1_epi8(-128)) }
    }

    #[allow(
        clippy::needless_range_loop,
        reason = "the step numbers weights and activations alike, and the bounds are constants"
    )]
    #[inline(always)]
    unsafe fn dot<const N: usize>(
        format: TileFormat,
        w: &[__m256i; 8],
        x: &[i8; 32],
        from: usize,
        offset: i32,
    ) -> __m256i {
        // SAFETY: the features are there, and the steps.
        unsafe {
            let ones = _mm256_set1_epi16(1);
            let mut dots = _mm256_setzero_si256();
            if format.bits() == 8 {
                // |w| <= 128 and |x| <= 127: a pair sums to at most 32,512, which 16 bits hold.
                for step in from..from + N {
                    let signed = _mm256_sign_epi8(four_columns(x, step), w[step]);
                    let pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(w[step]), signed);
                    dots = _mm256_add_epi32(dots, _mm256_madd_epi16(pairs, ones));
                }
                return dots;
            }
            // Pairs of 4, 5 and 6 bits sum to at most 3,810, 7,874 and 16,002: 16 bits hold eight,
            // four and two of them.
            let fit = 8 >> (format.bits() - 4);
            for first in (from..from + N).step_by(fit) {
                let mut pairs = _mm256_setzero_si256();
                for step in first..(first + fit).min(from + N) {
                    let two = _mm256_maddubs_epi16(w[step], four_columns(x, step));
                    pairs = _mm256_add_epi16(pairs, two);
                }
                dots = _mm256_add_epi32(dots, _mm256_madd_epi16(pairs, ones));
            }
            match format.offset_shift() {
                Some(shift) => _mm256_add_epi32(dots, _mm256_set1_epi32(offset >> shift)),
                None => dots,
            }
        }
    }
}

struct Vnni;

impl Dot for Vnni {
    #[inline(always)]
    unsafe fn unpack_bytes(w: __m256i) -> __m256i {
        w
    }

    #[inline(always)]
    unsafe fn dot<const N: usize>(
        format: TileFormat,
        w: &[__m256i; 8],
        x: &[i8; 32],
        from: usize,
        offset: i32,
    ) -> __m256i {
        // SAFETY: the features are there, and the steps.
        unsafe {
            // Two sums, because one product has to wait for the one before.
            let mut dots = [_mm256_setzero_si256(); 2];
            if let Some(shift) = format.offset_shift() {
                dots[0] = _mm256_set1_epi32(offset >> shift);
            }
            for step in from..from + N {
                let x = four_columns(x, step);
                dots[step % 2] = _mm256_dpbusd_avx_epi32(dots[step % 2], w[step], x);
            }
            _mm256_add_epi32(dots[0], dots[1])
        }
    }
}
