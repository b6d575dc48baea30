//! Sixteen lanes on x86-64: one 512-bit register, or two of 256 bits. Every operation is IEEE or
//! exact, so both give the bits of the portable lanes.

use std::arch::x86_64::*;

use super::lanes::{Kernel, Lanes};

/// Wraps one intrinsic call.
macro_rules! op {
    ($e:expr) => {
        // SAFETY: the token `self` exists only inside `run_avx512` or `run_avx2`, whose callers
        // have asked the processor; pointers are the caller's promise.
        unsafe { $e }
    };
}

/// # Safety
/// The processor has AVX-512 F, BW, DQ, VL and VNNI, FMA and F16C.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
pub(super) unsafe fn run_avx512<K: Kernel>(kernel: K) -> K::Out {
    kernel.run(Avx512(()))
}

/// # Safety
/// The processor has AVX2, FMA and F16C.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn run_avx2<K: Kernel>(kernel: K) -> K::Out {
    kernel.run(Avx2(()))
}

#[derive(Clone, Copy)]
pub(super) struct Avx512(());

#[derive(Clone, Copy)]
pub(super) struct Avx2(());

const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;

/// The tree of [`Lanes::sum`] from eight lanes down.
#[inline(always)]
fn sum_of_eight(a: __m256) -> f32 {
    op!({
        let four = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
        let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
        _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps::<1>(two, two)))
    })
}

#[inline(always)]
fn greatest_of_eight(a: __m256) -> f32 {
    op!({
        let four = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
        let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
        _mm_cvtss_f32(_mm_max_ss(two, _mm_shuffle_ps::<1>(two, two)))
    })
}

/// Sum of sixteen signed bytes.
#[inline(always)]
fn sum_of_bytes(q: __m128i) -> i32 {
    op!({
        // Sums of absolute differences work on unsigned bytes: shift by 128 and take 16 * 128 off
        // again.
        let sums = _mm_sad_epu8(_mm_xor_si128(q, _mm_set1_epi8(-128)), _mm_setzero_si128());
        _mm_cvtsi128_si32(sums) + _mm_extract_epi32::<2>(sums) - 16 * 128
    })
}

impl Lanes for Avx512 {
    type F = __m512;
    const WIDE: bool = true;

    #[inline(always)]
    fn splat(self, x: f32) -> __m512 {
        op!(_mm512_set1_ps(x))
    }
    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> __m512 {
        op!(_mm512_loadu_ps(p))
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32, v: __m512) {
        op!(_mm512_storeu_ps(p, v))
    }
    #[inline(always)]
    unsafe fn load_f16(self, p: *const u16) -> __m512 {
        op!(_mm512_cvtph_ps(_mm256_loadu_si256(p.cast())))
    }
    #[inline(always)]
    unsafe fn store_f16(self, p: *mut u16, v: __m512) {
        op!(_mm256_storeu_si256(p.cast(), _mm512_cvtps_ph::<NEAREST>(v)))
    }
    #[inline(always)]
    unsafe fn store_i8(self, p: *mut i8, v: __m512) -> i32 {
        let q = op!(_mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(v)));
        op!(_mm_storeu_si128(p.cast(), q));
        sum_of_bytes(q)
    }
    #[inline(always)]
    fn fetch(self, p: *const u16) {
        op!(_mm_prefetch::<_MM_HINT_T0>(p.cast()))
    }
    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        op!(_mm512_add_ps(a, b))
    }
    #[inline(always)]
    fn sub(self, a: __m512, b: __m512) -> __m512 {
        op!(_mm512_sub_ps(a, b))
    }
    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        op!(_mm512_mul_ps(a, b))
    }
    #[inline(always)]
    fn div(self, a: __m512, b: __m512) -> __m512 {
        op!(_mm512_div_ps(a, b))
    }
    #[inline(always)]
    fn fma(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        op!(_mm512_fmadd_ps(a, b, c))
    }
    #[inline(always)]
    fn max(self, a: __m512, b: __m512) -> __m512 {
        op!(_mm512_max_ps(a, b))
    }
    #[inline(always)]
    fn min(self, a: __m512, b: __m512) -> __m512 {
        op!(_mm512_min_ps(a, b))
    }
    #[inline(always)]
    fn abs(self, a: __m512) -> __m512 {
        op!(_mm512_abs_ps(a))
    }
    #[inline(always)]
    fn keep_where_ge(self, value: __m512, x: __m512, limit: f32) -> __m512 {
        op!(_mm512_maskz_mov_ps(
            _mm512_cmp_ps_mask::<_CMP_GE_OQ>(x, _mm512_set1_ps(limit)),
            value
        ))
    }
    #[inline(always)]
    fn times_pow2(self, a: __m512, shifted: __m512) -> __m512 {
        op!({
            let exponent = _mm512_slli_epi32::<23>(_mm512_castps_si512(shifted));
            _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(a), exponent))
        })
    }
    #[inline(always)]
    fn sum(self, a: __m512) -> f32 {
        sum_of_eight(op!(_mm256_add_ps(
            _mm512_castps512_ps256(a),
            _mm512_extractf32x8_ps::<1>(a)
        )))
    }
    #[inline(always)]
    fn greatest(self, a: __m512) -> f32 {
        greatest_of_eight(op!(_mm256_max_ps(
            _mm512_castps512_ps256(a),
            _mm512_extractf32x8_ps::<1>(a)
        )))
    }
}

/// Applies one 256-bit operation to both halves.
macro_rules! halves {
    ($f:ident, $($x:ident),+) => {
        op!(($f($($x.0),+), $f($($x.1),+)))
    };
}

impl Lanes for Avx2 {
    type F = (__m256, __m256);
    const WIDE: bool = false;

    #[inline(always)]
    fn splat(self, x: f32) -> Self::F {
        let x = op!(_mm256_set1_ps(x));
        (x, x)
    }
    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> Self::F {
        op!((_mm256_loadu_ps(p), _mm256_loadu_ps(p.add(8))))
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32, v: Self::F) {
        op!({
            _mm256_storeu_ps(p, v.0);
            _mm256_storeu_ps(p.add(8), v.1);
        })
    }
    #[inline(always)]
    unsafe fn load_f16(self, p: *const u16) -> Self::F {
        op!((
            _mm256_cvtph_ps(_mm_loadu_si128(p.cast())),
            _mm256_cvtph_ps(_mm_loadu_si128(p.add(8).cast()))
        ))
    }
    #[inline(always)]
    unsafe fn store_f16(self, p: *mut u16, v: Self::F) {
        op!({
            _mm_storeu_si128(p.cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v.0));
            _mm_storeu_si128(
                p.add(8).cast(),
                _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v.1),
            );
        })
    }
    #[inline(always)]
    unsafe fn store_i8(self, p: *mut i8, v: Self::F) -> i32 {
        let q = op!({
            let words = _mm256_packs_epi32(_mm256_cvtps_epi32(v.0), _mm256_cvtps_epi32(v.1));
            // The pack works within 128-bit halves; 0, 2, 1, 3 puts the quarters back in order.
            let words = _mm256_permute4x64_epi64::<0b11_01_10_00>(words);
            _mm_packs_epi16(
                _mm256_castsi256_si128(words),
                _mm256_extracti128_si256::<1>(words),
            )
        });
        op!(_mm_storeu_si128(p.cast(), q));
        sum_of_bytes(q)
    }
    #[inline(always)]
    fn fetch(self, p: *const u16) {
        op!(_mm_prefetch::<_MM_HINT_T0>(p.cast()))
    }
    #[inline(always)]
    fn add(self, a: Self::F, b: Self::F) -> Self::F {
        halves!(_mm256_add_ps, a, b)
    }
    #[inline(always)]
    fn sub(self, a: Self::F, b: Self::F) -> Self::F {
        halves!(_mm256_sub_ps, a, b)
    }
    #[inline(always)]
    fn mul(self, a: Self::F, b: Self::F) -> Self::F {
        halves!(_mm256_mul_ps, a, b)
    }
    #[inline(always)]
    fn div(self, a: Self::F, b: Self::F) -> Self::F {
        halves!(_mm256_div_ps, a, b)
    }
    #[inline(always)]
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        halves!(_mm256_fmadd_ps, a, b, c)
    }
    #[inline(always)]
    fn max(self, a: Self::F, b: Self::F) -> Self::F {
        halves!(_mm256_max_ps, a, b)
    }
    #[inline(always)]
    fn min(self, a: Self::F, b: Self::F) -> Self::F {
        halves!(_mm256_min_ps, a, b)
    }
    #[inline(always)]
    fn abs(self, a: Self::F) -> Self::F {
        let sign = op!(_mm256_set1_ps(-0.0));
        op!((_mm256_andnot_ps(sign, a.0), _mm256_andnot_ps(sign, a.1)))
    }
    #[inline(always)]
    fn keep_where_ge(self, value: Self::F, x: Self::F, limit: f32) -> Self::F {
        op!({
            let limit = _mm256_set1_ps(limit);
            (
                _mm256_and_ps(value.0, _mm256_cmp_ps::<_CMP_GE_OQ>(x.0, limit)),
                _mm256_and_ps(value.1, _mm256_cmp_ps::<_CMP_GE_OQ>(x.1, limit)),
            )
        })
    }
    #[inline(always)]
    fn times_pow2(self, a: Self::F, shifted: Self::F) -> Self::F {
        let half = |a: __m256, shifted: __m256| {
            op!({
                let exponent = _mm256_slli_epi32::<23>(_mm256_castps_si256(shifted));
                _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(a), exponent))
            })
        };
        (half(a.0, shifted.0), half(a.1, shifted.1))
    }
    #[inline(always)]
    fn sum(self, a: Self::F) -> f32 {
        sum_of_eight(op!(_mm256_add_ps(a.0, a.1)))
    }
    #[inline(always)]
    fn greatest(self, a: Self::F) -> f32 {
        greatest_of_eight(op!(_mm256_max_ps(a.0, a.1)))
    }
}
