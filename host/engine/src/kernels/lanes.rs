//! Sixteen float lanes, whatever the machine has. Kernels that are not integer dots are written
//! once over [`Lanes`]; each instruction set supplies the sixteen lanes, so all paths do the same
//! operations in the same order by construction. It refuses operations whose result may differ
//! between processors (approximate reciprocals, flush-to-zero, unordered sums).
//!
//! An implementor is a token: it is made only after the processor has been asked, which is why the
//! arithmetic methods are safe. Loads and stores take pointers and are not.

use super::isa::{Isa, Level};

/// Number of lanes of [`Lanes::F`].
pub(super) const LANES: usize = 16;

/// Sixteen `f32` and what the kernels do with them.
pub(super) trait Lanes: Copy {
    type F: Copy;
    /// Thirty-two registers of sixteen lanes, so that kernels may keep many sums at once.
    const WIDE: bool;

    fn splat(self, x: f32) -> Self::F;
    /// # Safety
    /// Sixteen floats must be readable at `p`.
    unsafe fn load(self, p: *const f32) -> Self::F;
    /// # Safety
    /// Sixteen floats must be writable at `p`.
    unsafe fn store(self, p: *mut f32, v: Self::F);
    /// # Safety
    /// Sixteen f16 must be readable at `p`.
    unsafe fn load_f16(self, p: *const u16) -> Self::F;
    /// Rounds to nearest even.
    ///
    /// # Safety
    /// Sixteen f16 must be writable at `p`.
    unsafe fn store_f16(self, p: *mut u16, v: Self::F);
    /// Rounds to nearest even, saturates, and returns the sum of the sixteen integers.
    ///
    /// # Safety
    /// Sixteen bytes must be writable at `p`.
    unsafe fn store_i8(self, p: *mut i8, v: Self::F) -> i32;

    /// Asks for the cache line at `p`, which may be any address; changes nothing but time.
    fn fetch(self, p: *const u16);

    fn add(self, a: Self::F, b: Self::F) -> Self::F;
    fn sub(self, a: Self::F, b: Self::F) -> Self::F;
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;
    fn div(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a * b + c`, rounded once.
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// The greater; `b` if they do not compare.
    fn max(self, a: Self::F, b: Self::F) -> Self::F;
    /// The smaller; `b` if they do not compare.
    fn min(self, a: Self::F, b: Self::F) -> Self::F;
    fn abs(self, a: Self::F) -> Self::F;
    /// `value` where `x >= limit`, else 0.
    fn keep_where_ge(self, value: Self::F, x: Self::F, limit: f32) -> Self::F;
    /// `a * 2^n`, `n` being the low bits of `shifted`; `a` and the result are normal numbers.
    fn times_pow2(self, a: Self::F, shifted: Self::F) -> Self::F;
    /// Sum by halves: lane `i` with `i + 8`, then `+ 4`, `+ 2`, `+ 1`.
    fn sum(self, a: Self::F) -> f32;
    fn greatest(self, a: Self::F) -> f32;
}

/// A computation over lanes. `run` must be `#[inline(always)]`: it is compiled once inside a
/// function of each instruction set.
pub(super) trait Kernel {
    type Out;
    fn run<S: Lanes>(self, s: S) -> Self::Out;
}

/// Runs `kernel` with the lanes of `isa`.
pub(super) fn with_lanes<K: Kernel>(isa: Isa, kernel: K) -> K::Out {
    match isa.0 {
        Level::Portable => kernel.run(Portable),
        #[cfg(target_arch = "x86_64")]
        // SAFETY: an `Isa` is the proof that the processor has these features.
        Level::Avx2 | Level::AvxVnni => unsafe { super::lanes_x86::run_avx2(kernel) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Level::Avx512Vnni => unsafe { super::lanes_x86::run_avx512(kernel) },
    }
}

/// 1.5 * 2^23: so large a float has no digits after the point, so adding it rounds to the
/// nearest integer, ties to even, and leaves that in the lowest bits.
const ROUNDER: f32 = 12_582_912.0;

/// The nearest integers to numbers below 2^22, ties to even.
#[inline(always)]
pub(super) fn nearest<S: Lanes>(s: S, x: S::F) -> S::F {
    s.sub(s.add(x, s.splat(ROUNDER)), s.splat(ROUNDER))
}

/// e^x with about 1 ulp: Cody-Waite reduction and the degree-5 polynomial of Cephes' `expf`.
/// Below -87 the result is exactly 0 (so that a masked score of minus infinity has no weight).
#[inline(always)]
pub(super) fn exp<S: Lanes>(s: S, x: S::F) -> S::F {
    const LOWEST: f32 = -87.0;
    const HIGHEST: f32 = 88.0;
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    const POLY: [f32; 6] = [
        1.987_569_1e-4,
        1.398_2e-3,
        8.333_452e-3,
        4.166_579_6e-2,
        1.666_666_5e-1,
        5e-1,
    ];
    let bounded = s.min(x, s.splat(HIGHEST));
    let log2 = s.mul(bounded, s.splat(std::f32::consts::LOG2_E));
    let shifted = s.add(log2, s.splat(ROUNDER));
    let n = s.sub(shifted, s.splat(ROUNDER));
    let r = s.fma(n, s.splat(-LN2_HIGH), bounded);
    let r = s.fma(n, s.splat(-LN2_LOW), r);
    let mut p = s.splat(POLY[0]);
    for c in &POLY[1..] {
        p = s.fma(p, r, s.splat(*c));
    }
    let y = s.add(s.fma(p, s.mul(r, r), r), s.splat(1.0));
    // What is below the lowest comes out as nonsense, and is not kept.
    s.keep_where_ge(s.times_pow2(y, shifted), x, LOWEST)
}

/// Sixteen lanes in plain Rust: the meaning of every operation, and the path of other processors.
#[derive(Clone, Copy)]
pub(super) struct Portable;

#[inline(always)]
fn each(f: impl Fn(usize) -> f32) -> [f32; LANES] {
    std::array::from_fn(f)
}

impl Lanes for Portable {
    type F = [f32; LANES];
    const WIDE: bool = false;

    #[inline(always)]
    fn splat(self, x: f32) -> Self::F {
        [x; LANES]
    }
    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> Self::F {
        // SAFETY: the caller promises sixteen floats; no alignment is assumed.
        unsafe { p.cast::<Self::F>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32, v: Self::F) {
        // SAFETY: as for `load`.
        unsafe { p.cast::<Self::F>().write_unaligned(v) }
    }
    #[inline(always)]
    unsafe fn load_f16(self, p: *const u16) -> Self::F {
        // SAFETY: the caller promises sixteen f16; no alignment is assumed.
        let bits = unsafe { p.cast::<[u16; LANES]>().read_unaligned() };
        each(|i| half::f16::from_bits(bits[i]).to_f32())
    }
    #[inline(always)]
    unsafe fn store_f16(self, p: *mut u16, v: Self::F) {
        let bits: [u16; LANES] = std::array::from_fn(|i| half::f16::from_f32(v[i]).to_bits());
        // SAFETY: the caller promises room for sixteen f16.
        unsafe { p.cast::<[u16; LANES]>().write_unaligned(bits) }
    }
    #[inline(always)]
    unsafe fn store_i8(self, p: *mut i8, v: Self::F) -> i32 {
        let q: [i8; LANES] = std::array::from_fn(|i| v[i].round_ties_even() as i8);
        // SAFETY: the caller promises room for sixteen bytes.
        unsafe { p.cast::<[i8; LANES]>().write_unaligned(q) }
        q.iter().map(|x| i32::from(*x)).sum()
    }
    #[inline(always)]
    fn fetch(self, _: *const u16) {}
    #[inline(always)]
    fn add(self, a: Self::F, b: Self::F) -> Self::F {
        each(|i| a[i] + b[i])
    }
    #[inline(always)]
    fn sub(self, a: Self::F, b: Self::F) -> Self::F {
        each(|i| a[i] - b[i])
    }
    #[inline(always)]
    fn mul(self, a: Self::F, b: Self::F) -> Self::F {
        each(|i| a[i] * b[i])
    }
    #[inline(always)]
    fn div(self, a: Self::F, b: Self::F) -> Self::F {
        each(|i| a[i] / b[i])
    }
    #[inline(always)]
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        each(|i| a[i].mul_add(b[i], c[i]))
    }
    #[inline(always)]
    fn max(self, a: Self::F, b: Self::F) -> Self::F {
        each(|i| if a[i] > b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    fn min(self, a: Self::F, b: Self::F) -> Self::F {
        each(|i| if a[i] < b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    fn abs(self, a: Self::F) -> Self::F {
        each(|i| a[i].abs())
    }
    #[inline(always)]
    fn keep_where_ge(self, value: Self::F, x: Self::F, limit: f32) -> Self::F {
        each(|i| if x[i] >= limit { value[i] } else { 0.0 })
    }
    #[inline(always)]
    fn times_pow2(self, a: Self::F, shifted: Self::F) -> Self::F {
        each(|i| f32::from_bits(a[i].to_bits().wrapping_add(shifted[i].to_bits() << 23)))
    }
    #[inline(always)]
    fn sum(self, a: Self::F) -> f32 {
        let eight: [f32; 8] = std::array::from_fn(|i| a[i] + a[i + 8]);
        let four: [f32; 4] = std::array::from_fn(|i| eight[i] + eight[i + 4]);
        (four[0] + four[2]) + (four[1] + four[3])
    }
    #[inline(always)]
    fn greatest(self, a: Self::F) -> f32 {
        a.into_iter()
            .reduce(|m, x| if m > x { m } else { x })
            .unwrap_or(f32::NEG_INFINITY)
    }
}
