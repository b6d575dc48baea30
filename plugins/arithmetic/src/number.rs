//! A number that knows whether it is exact.

use std::cmp::Ordering;
use std::fmt;

use crate::Error;

/// Decimals shown of a number that has more.
const DECIMALS_SHOWN: u32 = 10;

/// An exact fraction, or the nearest floating-point number.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Number {
    /// `numerator / denominator`, in lowest terms, denominator positive.
    Exact(i128, i128),
    /// A root or a power that is no fraction; always finite.
    Rounded(f64),
}

fn gcd(a: i128, b: i128) -> i128 {
    let (mut a, mut b) = (a.unsigned_abs(), b.unsigned_abs());
    while b != 0 {
        (a, b) = (b, a % b);
    }
    // At most |i128::MIN| = 2^127, which only gcd(MIN, 0) or gcd(MIN, MIN) reaches; 1 is a
    // divisor as well, and the fraction stays correct with it.
    i128::try_from(a).unwrap_or(1).max(1)
}

impl Number {
    /// A whole number.
    pub fn whole(n: i128) -> Self {
        Self::Exact(n, 1)
    }

    /// `numerator / denominator`.
    pub fn ratio(numerator: i128, denominator: i128) -> Result<Self, Error> {
        if denominator == 0 {
            return Err(Error::Undefined);
        }
        let g = gcd(numerator, denominator);
        let (n, d) = (numerator / g, denominator / g);
        if d > 0 {
            return Ok(Self::Exact(n, d));
        }
        match (n.checked_neg(), d.checked_neg()) {
            (Some(n), Some(d)) => Ok(Self::Exact(n, d)),
            _ => Err(Error::TooLarge),
        }
    }

    pub(crate) fn rounded(value: f64) -> Result<Self, Error> {
        if value.is_finite() {
            Ok(Self::Rounded(value))
        } else {
            Err(Error::TooLarge)
        }
    }

    /// A number as people write it: digits with optional thousands commas and decimals.
    pub fn parse(text: &str) -> Option<Self> {
        let (whole, decimals) = text.split_once('.').unwrap_or((text, ""));
        if whole.is_empty() && decimals.is_empty() {
            return None;
        }
        let mut groups = whole.split(',');
        let first = groups.next().unwrap_or_default();
        let mut digits = first.to_owned();
        for group in groups {
            if group.len() != 3 || first.is_empty() || first.len() > 3 {
                return None;
            }
            digits.push_str(group);
        }
        digits.push_str(decimals);
        if !digits.bytes().all(|b| b.is_ascii_digit()) {
            return None;
        }
        let scale = 10i128.checked_pow(u32::try_from(decimals.len()).ok()?)?;
        Self::ratio(digits.parse().ok()?, scale).ok()
    }

    /// The nearest floating-point number.
    pub fn to_f64(self) -> f64 {
        match self {
            Self::Exact(n, d) => n as f64 / d as f64,
            Self::Rounded(v) => v,
        }
    }

    /// Whether no rounding took place.
    pub fn is_exact(self) -> bool {
        matches!(self, Self::Exact(..))
    }

    /// The whole number that this is, if it is one.
    pub fn as_whole(self) -> Option<i128> {
        match self {
            Self::Exact(n, 1) => Some(n),
            _ => None,
        }
    }

    fn with(
        self,
        other: Self,
        exact: impl Fn((i128, i128), (i128, i128)) -> Option<(i128, i128)>,
        rounded: impl Fn(f64, f64) -> f64,
    ) -> Result<Self, Error> {
        match (self, other) {
            (Self::Exact(a, b), Self::Exact(c, d)) => {
                let (n, d) = exact((a, b), (c, d)).ok_or(Error::TooLarge)?;
                Self::ratio(n, d)
            }
            _ => Self::rounded(rounded(self.to_f64(), other.to_f64())),
        }
    }

    /// The sum, exact where both numbers are.
    pub fn plus(self, other: Self) -> Result<Self, Error> {
        let exact = |(a, b): (i128, i128), (c, d): (i128, i128)| {
            let g = gcd(b, d);
            let left = a.checked_mul(d / g)?;
            let right = c.checked_mul(b / g)?;
            Some((left.checked_add(right)?, b.checked_mul(d / g)?))
        };
        self.with(other, exact, |a, b| a + b)
    }

    /// The difference, exact where both numbers are.
    pub fn minus(self, other: Self) -> Result<Self, Error> {
        self.plus(other.negate()?)
    }

    pub(crate) fn negate(self) -> Result<Self, Error> {
        match self {
            Self::Exact(n, d) => Ok(Self::Exact(n.checked_neg().ok_or(Error::TooLarge)?, d)),
            Self::Rounded(v) => Ok(Self::Rounded(-v)),
        }
    }

    /// The product, exact where both factors are.
    pub fn times(self, other: Self) -> Result<Self, Error> {
        let exact = |(a, b): (i128, i128), (c, d): (i128, i128)| {
            let (g, h) = (gcd(a, d), gcd(c, b));
            Some(((a / g).checked_mul(c / h)?, (b / h).checked_mul(d / g)?))
        };
        self.with(other, exact, |a, b| a * b)
    }

    /// The quotient, exact where both numbers are.
    pub fn divided_by(self, other: Self) -> Result<Self, Error> {
        match other {
            Self::Exact(0, _) => Err(Error::Undefined),
            Self::Exact(n, d) => self.times(Self::ratio(d, n)?),
            Self::Rounded(v) => Self::rounded(self.to_f64() / v),
        }
    }

    /// The remainder of whole numbers, with the sign of the divisor, as mathematicians
    /// mean it; with a negative number, programming languages disagree.
    pub(crate) fn modulo(self, other: Self) -> Result<Self, Error> {
        match (self.as_whole(), other.as_whole()) {
            (_, Some(0)) => Err(Error::Undefined),
            (Some(a), Some(b)) if a >= 0 && b > 0 => Ok(Self::whole(a % b)),
            (Some(_), Some(_)) => Err(Error::Ambiguous),
            _ => Err(Error::NotAnExpression),
        }
    }

    pub(crate) fn power(self, exponent: Self) -> Result<Self, Error> {
        let Some(e) = exponent.as_whole() else {
            if self.to_f64() < 0.0 {
                return Err(Error::Undefined);
            }
            return Self::rounded(self.to_f64().powf(exponent.to_f64()));
        };
        let times = u32::try_from(e.unsigned_abs()).map_err(|_| Error::TooLarge)?;
        let Self::Exact(n, d) = self else {
            return Self::rounded(self.to_f64().powf(e as f64));
        };
        let n = n.checked_pow(times).ok_or(Error::TooLarge)?;
        let d = d.checked_pow(times).ok_or(Error::TooLarge)?;
        if e < 0 {
            Self::ratio(d, n)
        } else {
            Self::ratio(n, d)
        }
    }

    pub(crate) fn square_root(self) -> Result<Self, Error> {
        match self {
            Self::Exact(n, d) if n >= 0 => match (n.checked_isqrt(), d.checked_isqrt()) {
                (Some(p), Some(q)) if p * p == n && q * q == d => Ok(Self::Exact(p, q)),
                _ => Self::rounded(self.to_f64().sqrt()),
            },
            Self::Rounded(v) if v >= 0.0 => Self::rounded(v.sqrt()),
            _ => Err(Error::Undefined),
        }
    }

    pub(crate) fn absolute(self) -> Result<Self, Error> {
        if self.to_f64() < 0.0 {
            self.negate()
        } else {
            Ok(self)
        }
    }

    /// Whether `stated`, written with that many decimals, is this number, its rounding, or
    /// what is left when the further decimals are dropped.
    pub fn agrees_with(self, stated: Self, decimals: u32) -> bool {
        if let (Self::Exact(..), Self::Exact(..)) = (self, stated)
            && self == stated
        {
            return true;
        }
        let difference = (self.to_f64() - stated.to_f64()).abs();
        let exact_whole = self.as_whole().is_some();
        let last_place = 0.1f64.powi(decimals.min(18) as i32);
        if decimals == 0 && exact_whole {
            return difference == 0.0;
        }
        // More decimals than floating point holds cannot be compared.
        difference < last_place.max(1e-12 * self.to_f64().abs()) * (1.0 + 1e-9)
    }
}

impl PartialOrd for Number {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        self.to_f64().partial_cmp(&other.to_f64())
    }
}

impl fmt::Display for Number {
    /// All decimals when there are at most ten, else ten, without trailing zeros. Whether
    /// that rounds is told by [`Number::is_shown_exactly`].
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Exact(n, 1) => write!(f, "{n}"),
            Self::Exact(n, d) => write_fraction(f, n, d),
            Self::Rounded(v) => {
                let text = format!("{v:.10}");
                f.write_str(text.trim_end_matches('0').trim_end_matches('.'))
            }
        }
    }
}

impl Number {
    /// Whether the text form tells the whole number.
    pub fn is_shown_exactly(self) -> bool {
        match self {
            Self::Exact(_, d) => 10i128.pow(DECIMALS_SHOWN) % d == 0,
            Self::Rounded(_) => false,
        }
    }
}

/// Long division, so that no digit is lost to floating point.
fn write_fraction(f: &mut fmt::Formatter<'_>, n: i128, d: i128) -> fmt::Result {
    let (magnitude, d) = (n.unsigned_abs(), d.unsigned_abs());
    let mut rest = magnitude % d;
    let mut digits: Vec<u8> = Vec::new();
    for _ in 0..DECIMALS_SHOWN {
        let Some(ten) = rest.checked_mul(10) else {
            break;
        };
        digits.push((ten / d) as u8);
        rest = ten % d;
    }
    let mut whole = magnitude / d;
    if rest >= d - rest {
        // Round half up, with the carry.
        let mut place = digits.len();
        loop {
            if place == 0 {
                whole += 1;
                break;
            }
            place -= 1;
            if digits[place] < 9 {
                digits[place] += 1;
                break;
            }
            digits[place] = 0;
        }
    }
    while digits.last() == Some(&0) {
        digits.pop();
    }
    if n < 0 {
        f.write_str("-")?;
    }
    write!(f, "{whole}")?;
    if !digits.is_empty() {
        f.write_str(".")?;
        for digit in digits {
            write!(f, "{digit}")?;
        }
    }
    Ok(())
}
