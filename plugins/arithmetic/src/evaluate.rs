//! The grammar:
//!
//! ```text
//! sum     = product (("+" | "-") product)*
//! product = signed (("*" | "/" | "mod" | "% of") signed)*
//! signed  = "-" signed | "+" signed | power
//! power   = postfix ("^" signed)?                       -2^2 is -4, 2^3^2 is 512
//! postfix = atom ("%" | "squared" | "cubed")*
//! atom    = number | "(" sum ")" | ("sqrt" | "abs") atom
//! ```

use crate::tokens::{self, Spanned, Token};
use crate::{Error, Number};

/// Parentheses within parentheses; more is no question of a person.
const DEPTH_MAX: u32 = 64;

/// The value of `text`, which must be one whole expression.
pub fn evaluate(text: &str) -> Result<Number, Error> {
    evaluate_tokens(&tokens::all(text)?)
}

pub(crate) fn evaluate_tokens(tokens: &[Spanned]) -> Result<Number, Error> {
    let mut parser = Parser {
        tokens,
        at: 0,
        depth: 0,
    };
    let value = parser.sum()?;
    if parser.at == tokens.len() {
        Ok(value.number)
    } else {
        Err(Error::NotAnExpression)
    }
}

/// A value that remembers whether it was written as a bare percentage.
#[derive(Clone, Copy)]
struct Value {
    number: Number,
    percent: bool,
}

impl From<Number> for Value {
    fn from(number: Number) -> Self {
        Self {
            number,
            percent: false,
        }
    }
}

struct Parser<'a> {
    tokens: &'a [Spanned],
    at: usize,
    depth: u32,
}

impl Parser<'_> {
    fn peek(&self) -> Option<Token> {
        self.tokens.get(self.at).map(|s| s.token)
    }

    fn take(&mut self, token: Token) -> bool {
        let found = self.peek() == Some(token);
        self.at += usize::from(found);
        found
    }

    fn sum(&mut self) -> Result<Value, Error> {
        let mut left = self.product()?;
        loop {
            let minus = match self.peek() {
                Some(Token::Plus) => false,
                Some(Token::Minus) => true,
                _ => return Ok(left),
            };
            self.at += 1;
            let right = self.product()?;
            // Some calculators make 100 - 10% into 90, others into 99.9.
            if left.percent != right.percent {
                return Err(Error::Ambiguous);
            }
            let addend = if minus {
                right.number.negate()?
            } else {
                right.number
            };
            left.number = left.number.plus(addend)?;
        }
    }

    fn product(&mut self) -> Result<Value, Error> {
        let mut left = self.signed()?;
        loop {
            let operator = match self.peek() {
                Some(op @ (Token::Times | Token::Divide | Token::Modulo)) => op,
                Some(Token::Of) if left.percent => Token::Times,
                _ => return Ok(left),
            };
            self.at += 1;
            let right = self.signed()?.number;
            left = match operator {
                Token::Divide => left.number.divided_by(right)?,
                Token::Modulo => left.number.modulo(right)?,
                _ => left.number.times(right)?,
            }
            .into();
        }
    }

    fn signed(&mut self) -> Result<Value, Error> {
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            return Err(Error::TooLarge);
        }
        let value = if self.take(Token::Minus) {
            let inside = self.signed()?;
            Ok(Value {
                number: inside.number.negate()?,
                ..inside
            })
        } else if self.take(Token::Plus) {
            self.signed()
        } else {
            self.power()
        };
        self.depth -= 1;
        value
    }

    fn power(&mut self) -> Result<Value, Error> {
        let base = self.postfix()?;
        if !self.take(Token::Power) {
            return Ok(base);
        }
        let exponent = self.signed()?.number;
        Ok(base.number.power(exponent)?.into())
    }

    fn postfix(&mut self) -> Result<Value, Error> {
        let mut value: Value = self.atom()?.into();
        loop {
            match self.peek() {
                Some(Token::Squared) => value.number = value.number.power(Number::whole(2))?,
                Some(Token::Cubed) => value.number = value.number.power(Number::whole(3))?,
                // Before a number or a parenthesis the sign means the remainder.
                Some(Token::Percent) if self.operand_follows() => {
                    self.at += 1;
                    let divisor = self.atom()?;
                    value = value.number.modulo(divisor)?.into();
                    continue;
                }
                Some(Token::Percent) => {
                    value = Value {
                        number: value.number.divided_by(Number::whole(100))?,
                        percent: true,
                    };
                }
                _ => return Ok(value),
            }
            self.at += 1;
        }
    }

    fn operand_follows(&self) -> bool {
        let next = self.tokens.get(self.at + 1).map(|s| s.token);
        matches!(next, Some(Token::Number(_) | Token::Open))
    }

    fn atom(&mut self) -> Result<Number, Error> {
        let token = self.peek().ok_or(Error::NotAnExpression)?;
        self.at += 1;
        match token {
            Token::Number(n) => Ok(n),
            Token::Open => {
                self.depth += 1;
                if self.depth > DEPTH_MAX {
                    return Err(Error::TooLarge);
                }
                let inside = self.sum()?;
                self.depth -= 1;
                if self.take(Token::Close) {
                    Ok(inside.number)
                } else {
                    Err(Error::NotAnExpression)
                }
            }
            Token::SquareRoot => self.nested_atom()?.square_root(),
            Token::Absolute => self.nested_atom()?.absolute(),
            _ => Err(Error::NotAnExpression),
        }
    }

    fn nested_atom(&mut self) -> Result<Number, Error> {
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            return Err(Error::TooLarge);
        }
        let value = self.atom();
        self.depth -= 1;
        value
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: &str) {
        assert_eq!(
            evaluate(text).map(|n| n.to_string()),
            Ok(expected.to_owned()),
            "{text}"
        );
    }

    #[test]
    fn expressions_have_the_value_that_school_teaches() {
        for (text, value) in [
            ("17 * 23", "391"),
            ("2+3*4", "14"),
            ("(2+3)*4", "20"),
            ("-2^2", "-4"),
            ("2^3^2", "512"),
            ("10 - 4 - 3", "3"),
            ("1/3 + 1/6", "0.5"),
            ("0.1 + 0.2", "0.3"),
            ("12.5% of 80", "10"),
            ("20 percent of 1,500", "300"),
            ("17 % 5", "2"),
            ("7 mod 4", "3"),
            ("sqrt(144)", "12"),
            ("square root of 2", "1.4142135624"),
            ("3 squared plus 4 squared", "25"),
            ("2 to the power of 10", "1024"),
            ("6 × 7 ÷ 2", "21"),
            ("3x4", "12"),
            ("$2 * 9", "18"),
            ("2^-2", "0.25"),
            ("2/3", "0.6666666667"),
            ("-1/3", "-0.3333333333"),
            ("1,234,567 + 1", "1234568"),
            ("99999999999 * 99999999999", "9999999999800000000001"),
        ] {
            check(text, value);
        }
    }

    #[test]
    fn what_has_no_single_value_is_refused_by_kind() {
        for (text, error) in [
            ("100 - 10%", Error::Ambiguous),
            ("1/0", Error::Undefined),
            ("1 / (2 - 2)", Error::Undefined),
            ("sqrt(-4)", Error::Undefined),
            ("10^1000", Error::TooLarge),
            ("2^99999999999999999999", Error::TooLarge),
            ("(2 + 3", Error::NotAnExpression),
            ("2 + ", Error::NotAnExpression),
            ("2 3", Error::NotAnExpression),
            ("x + 2", Error::NotAnExpression),
            ("1,23 + 1", Error::NotAnExpression),
            ("", Error::NotAnExpression),
        ] {
            assert_eq!(evaluate(text), Err(error), "{text}");
        }
    }

    #[test]
    fn nesting_without_end_is_refused_instead_of_using_up_the_stack() {
        for open in ["(", "-", "sqrt ", "2^"] {
            let text = format!("{}1", open.repeat(100_000));
            assert_eq!(evaluate(&text), Err(Error::TooLarge), "{open}");
        }
    }

    #[test]
    fn random_text_never_panics() {
        let alphabet = [
            "1",
            "9",
            ".",
            ",",
            "+",
            "-",
            "*",
            "/",
            "^",
            "%",
            "(",
            ")",
            " ",
            "x",
            "of",
            "sqrt",
            "√",
            "²",
            "é",
            "170141183460469231731687303715884105727",
        ];
        let mut seed = 42u64;
        for _ in 0..20_000 {
            let mut text = String::new();
            for _ in 0..12 {
                seed = seed
                    .wrapping_mul(6364136223846793005)
                    .wrapping_add(1442695040888963407);
                text.push_str(alphabet[(seed >> 33) as usize % alphabet.len()]);
            }
            if let Ok(n) = evaluate(&text) {
                assert!(n.to_f64().is_finite(), "{text}");
                assert!(!n.to_string().is_empty(), "{text}");
            }
        }
    }
}
