//! The tile kernels of 256 bits: eight outputs and up to four rows at once, because sixteen
//! registers hold no more. There are two ways to the exact integer dot: plain AVX2, and AVX-VNNI,
//! which the desktop processors that have no AVX-512 have since 2021.

use std::arch::x86_64::*;

use super::activations::BlockGroup;
use super::matmul::{Q4_0, Q4_1, Q8_0, TileWork};
use super::matrix::{TILE_ROWS, TileFormat};

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

/// A way to the integer dot of 32 columns.
trait Dot {
    /// What Q8 weights, stored as q + 128, are turned into.
    ///
    /// # Safety
    /// The processor has the features of this way.
    unsafe fn unpack_bytes(w: __m256i) -> __m256i;
    /// The dots of eight outputs with one row, less the constant that the format adds to its
    /// weights.
    ///
    /// # Safety
    /// As above.
    unsafe fn dot<const FORMAT: u8>(w: &[__m256i; 8], x: &BlockGroup, row: usize) -> __m256i;
}

/// # Safety
/// The processor has the features of `D`, FMA and F16C; `work` keeps its promises.
#[inline(always)]
unsafe fn tile<D: Dot>(work: &TileWork<'_>) {
    let mut first = 0;
    while first < work.rows {
        let rows = (work.rows - first).min(4);
        // SAFETY: passed on; the group has `first + rows` rows.
        unsafe {
            match work.format {
                TileFormat::Q4_0 => some_rows::<D, Q4_0>(work, first, rows),
                TileFormat::Q4_1 => some_rows::<D, Q4_1>(work, first, rows),
                TileFormat::Q8_0 => some_rows::<D, Q8_0>(work, first, rows),
            }
        }
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
            3 => tile_rows::<D, FORMAT, 3>(work, first),
            _ => tile_rows::<D, FORMAT, 4>(work, first),
        }
    }
}

/// All sixteen outputs of `M` rows, in two halves.
///
/// # Safety
/// As [`tile`]; the group has `first + M` rows.
#[inline(always)]
unsafe fn tile_rows<D: Dot, const FORMAT: u8, const M: usize>(work: &TileWork<'_>, first: usize) {
    let mut sums = [[0f32; TILE_ROWS]; M];
    for half in 0..2 {
        // SAFETY: passed on.
        unsafe { half_tile::<D, FORMAT, M>(work, first, half, &mut sums) };
    }
    for (row, sums) in sums.iter().enumerate() {
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
    let (mut scales, mut quants) = (work.scales.as_ptr(), work.quants.as_ptr());
    let mut fetched = work.fetch_from();
    // SAFETY: the features are there; a tile holds scales and quants of as many blocks as the row
    // has, and a half is eight of sixteen lanes.
    unsafe {
        let mut acc = [_mm256_setzero_ps(); M];
        for x in work.x {
            if half == 0 && first == 0 {
                work.fetch_block(&mut fetched);
            }
            let d = _mm256_cvtph_ps(_mm_loadu_si128(scales.add(16 * half).cast()));
            let mut m = d;
            if FORMAT == Q4_1 {
                m = _mm256_cvtph_ps(_mm_loadu_si128(scales.add(32 + 16 * half).cast()));
            }
            let w = unpack::<D, FORMAT>(quants.add(32 * half));
            scales = scales.add(if FORMAT == Q4_1 { 64 } else { 32 });
            quants = quants.add(if FORMAT == Q8_0 { 512 } else { 256 });
            for (row, acc) in acc.iter_mut().enumerate() {
                let row = first + row;
                let dots = D::dot::<FORMAT>(&w, x, row);
                let scale = _mm256_mul_ps(d, _mm256_set1_ps(x.scale[row]));
                *acc = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dots), scale, *acc);
                if FORMAT == Q4_1 {
                    *acc = _mm256_fmadd_ps(m, _mm256_set1_ps(x.scaled_sum[row]), *acc);
                }
            }
        }
        for (sums, acc) in sums.iter_mut().zip(&acc) {
            _mm256_storeu_ps(sums.as_mut_ptr().add(8 * half), *acc);
        }
    }
}

/// The 32 columns of eight rows.
///
/// # Safety
/// As [`Dot`]; a block's quants are readable at `quants`, from this half on.
#[inline(always)]
unsafe fn unpack<D: Dot, const FORMAT: u8>(quants: *const u8) -> [__m256i; 8] {
    // SAFETY: the features are there; one 64-byte step of a block at a time, of which this is a
    // half.
    unsafe {
        let mask = _mm256_set1_epi8(15);
        let mut w = [_mm256_setzero_si256(); 8];
        for step in 0..if FORMAT == Q8_0 { 8 } else { 4 } {
            let bytes = _mm256_loadu_si256(quants.add(64 * step).cast());
            if FORMAT == Q8_0 {
                w[step] = D::unpack_bytes(bytes);
            } else {
                w[step] = _mm256_and_si256(bytes, mask);
                w[step + 4] = _mm256_and_si256(_mm256_srli_epi16::<4>(bytes), mask);
            }
        }
        w
    }
}

/// Columns `4 step..4 step + 4` of a row, in every lane.
///
/// # Safety
/// The processor has AVX2; `step` < 8.
#[inline(always)]
unsafe fn four_columns(x: &BlockGroup, row: usize, step: usize) -> __m256i {
    // SAFETY: four of the row's 32 bytes follow.
    unsafe {
        _mm256_set1_epi32(
            x.quants[row]
                .as_ptr()
                .add(4 * step)
                .cast::<i32>()
                .read_unaligned(),
        )
    }
}

struct Plain;

impl Dot for Plain {
    /// Back to signed: the product of unsigned and signed bytes would not fit 16 bits.
    #[inline(always)]
    unsafe fn unpack_bytes(w: __m256i) -> __m256i {
        // SAFETY: the features are there.
        unsafe { _mm256_xor_si256(w, _mm256_set1_epi8(-128)) }
    }

    #[inline(always)]
    unsafe fn dot<const FORMAT: u8>(w: &[__m256i; 8], x: &BlockGroup, row: usize) -> __m256i {
        // SAFETY: the features are there.
        unsafe {
            let ones = _mm256_set1_epi16(1);
            if FORMAT == Q8_0 {
                // |w| <= 128 and |x| <= 127: a pair sums to at most 32,512, which 16 bits hold.
                let mut dots = _mm256_setzero_si256();
                for (step, w) in w.iter().enumerate() {
                    let signed = _mm256_sign_epi8(four_columns(x, row, step), *w);
                    let pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(*w), signed);
                    dots = _mm256_add_epi32(dots, _mm256_madd_epi16(pairs, ones));
                }
                return dots;
            }
            // A pair sums to at most 2 * 15 * 127 = 3,810, eight of them to 30,480: still 16 bits.
            let mut pairs = _mm256_setzero_si256();
            for (step, w) in w.iter().enumerate() {
                let two = _mm256_maddubs_epi16(*w, four_columns(x, row, step));
                pairs = _mm256_add_epi16(pairs, two);
            }
            let dots = _mm256_madd_epi16(pairs, ones);
            match FORMAT {
                Q4_0 => _mm256_add_epi32(dots, _mm256_set1_epi32(x.offset[row] >> 4)),
                _ => dots,
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
    unsafe fn dot<const FORMAT: u8>(w: &[__m256i; 8], x: &BlockGroup, row: usize) -> __m256i {
        // SAFETY: the features are there.
        unsafe {
            // Two sums, because one product has to wait for the one before.
            let mut dots = [_mm256_setzero_si256(); 2];
            match FORMAT {
                Q8_0 => dots[0] = _mm256_set1_epi32(x.offset[row]),
                Q4_0 => dots[0] = _mm256_set1_epi32(x.offset[row] >> 4),
                _ => {}
            }
            for (step, w) in w.iter().enumerate() {
                let x = four_columns(x, row, step);
                dots[step % 2] = _mm256_dpbusd_avx_epi32(dots[step % 2], *w, x);
            }
            _mm256_add_epi32(dots[0], dots[1])
        }
    }
}
