//! "Convert 5 km to miles", "how many feet in 2 miles", "72 °F in Celsius".
//!
//! Factors are the legal definitions as exact fractions. Units with several meanings
//! (ton, ounce of what, month, calorie) are not here: then a model may ask back.

use arithmetic::Number;

/// What is measured; only the same can be converted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Quantity {
    Length,
    Mass,
    Volume,
    Speed,
    Time,
    Data,
    Temperature,
}

struct Unit {
    quantity: Quantity,
    /// How the answer writes it.
    symbol: &'static str,
    /// Lower-case names, the symbol included.
    names: &'static [&'static str],
    /// This unit in metres, kilograms, litres, metres per second, seconds, bits or kelvins.
    factor: (i128, i128),
    /// Zero of this unit in the base unit, as a fraction; only temperatures have one.
    zero: (i128, i128),
}

const fn unit(
    quantity: Quantity,
    symbol: &'static str,
    names: &'static [&'static str],
    factor: (i128, i128),
) -> Unit {
    Unit {
        quantity,
        symbol,
        names,
        factor,
        zero: (0, 1),
    }
}

use Quantity::{Data, Length, Mass, Speed, Temperature, Time, Volume};

const UNITS: &[Unit] = &[
    unit(
        Length,
        "mm",
        &[
            "mm",
            "millimeter",
            "millimeters",
            "millimetre",
            "millimetres",
        ],
        (1, 1000),
    ),
    unit(
        Length,
        "cm",
        &[
            "cm",
            "centimeter",
            "centimeters",
            "centimetre",
            "centimetres",
        ],
        (1, 100),
    ),
    unit(
        Length,
        "m",
        &["m", "meter", "meters", "metre", "metres"],
        (1, 1),
    ),
    unit(
        Length,
        "km",
        &[
            "km",
            "kms",
            "kilometer",
            "kilometers",
            "kilometre",
            "kilometres",
        ],
        (1000, 1),
    ),
    unit(Length, "in", &["inch", "inches"], (254, 10_000)),
    unit(Length, "ft", &["ft", "foot", "feet"], (3048, 10_000)),
    unit(Length, "yd", &["yd", "yard", "yards"], (9144, 10_000)),
    unit(Length, "mi", &["mi", "mile", "miles"], (1_609_344, 1000)),
    unit(
        Length,
        "nmi",
        &["nmi", "nautical mile", "nautical miles"],
        (1852, 1),
    ),
    unit(
        Mass,
        "mg",
        &["mg", "milligram", "milligrams"],
        (1, 1_000_000),
    ),
    unit(Mass, "g", &["g", "gram", "grams"], (1, 1000)),
    unit(
        Mass,
        "kg",
        &["kg", "kgs", "kilo", "kilos", "kilogram", "kilograms"],
        (1, 1),
    ),
    unit(
        Mass,
        "t",
        &["tonne", "tonnes", "metric ton", "metric tons"],
        (1000, 1),
    ),
    unit(
        Mass,
        "lb",
        &["lb", "lbs", "pound", "pounds"],
        (45_359_237, 100_000_000),
    ),
    unit(Mass, "st", &["stone", "stones"], (635_029_318, 100_000_000)),
    unit(
        Volume,
        "ml",
        &[
            "ml",
            "milliliter",
            "milliliters",
            "millilitre",
            "millilitres",
        ],
        (1, 1000),
    ),
    unit(
        Volume,
        "l",
        &["l", "liter", "liters", "litre", "litres"],
        (1, 1),
    ),
    unit(
        Volume,
        "m³",
        &[
            "m3",
            "m³",
            "cubic meter",
            "cubic meters",
            "cubic metre",
            "cubic metres",
        ],
        (1000, 1),
    ),
    unit(
        Volume,
        "US gal",
        &["us gallon", "us gallons"],
        (3_785_411_784, 1_000_000_000),
    ),
    unit(
        Volume,
        "imperial gal",
        &["imperial gallon", "imperial gallons"],
        (454_609, 100_000),
    ),
    unit(
        Speed,
        "m/s",
        &["m/s", "meters per second", "metres per second"],
        (1, 1),
    ),
    unit(
        Speed,
        "km/h",
        &[
            "km/h",
            "kmh",
            "kph",
            "kilometers per hour",
            "kilometres per hour",
        ],
        (1000, 3600),
    ),
    unit(
        Speed,
        "mph",
        &["mph", "miles per hour"],
        (1_609_344, 3_600_000),
    ),
    unit(Speed, "kn", &["kn", "knot", "knots"], (1852, 3600)),
    unit(
        Time,
        "ms",
        &["ms", "millisecond", "milliseconds"],
        (1, 1000),
    ),
    unit(
        Time,
        "s",
        &["s", "sec", "secs", "second", "seconds"],
        (1, 1),
    ),
    unit(Time, "min", &["min", "mins", "minute", "minutes"], (60, 1)),
    unit(Time, "h", &["h", "hr", "hrs", "hour", "hours"], (3600, 1)),
    unit(Time, "days", &["day", "days"], (86_400, 1)),
    unit(Time, "weeks", &["week", "weeks"], (604_800, 1)),
    unit(Data, "bits", &["bit", "bits"], (1, 1)),
    unit(Data, "bytes", &["byte", "bytes"], (8, 1)),
    unit(Data, "kB", &["kb", "kilobyte", "kilobytes"], (8000, 1)),
    unit(Data, "MB", &["mb", "megabyte", "megabytes"], (8_000_000, 1)),
    unit(
        Data,
        "GB",
        &["gb", "gigabyte", "gigabytes"],
        (8_000_000_000, 1),
    ),
    unit(
        Data,
        "TB",
        &["tb", "terabyte", "terabytes"],
        (8_000_000_000_000, 1),
    ),
    unit(
        Data,
        "KiB",
        &["kib", "kibibyte", "kibibytes"],
        (8 * 1024, 1),
    ),
    unit(
        Data,
        "MiB",
        &["mib", "mebibyte", "mebibytes"],
        (8 * 1024 * 1024, 1),
    ),
    unit(
        Data,
        "GiB",
        &["gib", "gibibyte", "gibibytes"],
        (8 * 1024 * 1024 * 1024, 1),
    ),
    unit(
        Data,
        "TiB",
        &["tib", "tebibyte", "tebibytes"],
        (8 * 1024 * 1024 * 1024 * 1024, 1),
    ),
    unit(Temperature, "K", &["kelvin", "kelvins"], (1, 1)),
    Unit {
        quantity: Temperature,
        symbol: "°C",
        names: &[
            "°c",
            "c",
            "celsius",
            "degrees celsius",
            "degree celsius",
            "degrees c",
        ],
        factor: (1, 1),
        zero: (27_315, 100),
    },
    Unit {
        quantity: Temperature,
        symbol: "°F",
        names: &[
            "°f",
            "f",
            "fahrenheit",
            "degrees fahrenheit",
            "degree fahrenheit",
            "degrees f",
        ],
        factor: (5, 9),
        zero: (45_967 * 5, 900),
    },
];

/// The answer to a question in lower case whose surrounding words are gone.
pub(super) fn answer(text: &str) -> Option<String> {
    let (amount, from, to) = conversion(text).or_else(|| how_many(text))?;
    if from.quantity != to.quantity || from.symbol == to.symbol {
        return None;
    }
    let cold = Number::whole(0) > amount;
    if cold && from.quantity != Temperature {
        return None;
    }
    let result = convert(amount, from, to).ok()?;
    let (given, found) = (super::shown(amount), super::shown(result));
    let verb = if found.starts_with("about ") {
        "is"
    } else {
        "="
    };
    Some(format!(
        "{given} {} {verb} {found} {}",
        from.symbol, to.symbol
    ))
}

fn convert(amount: Number, from: &Unit, to: &Unit) -> Result<Number, arithmetic::Error> {
    let ratio = |(n, d): (i128, i128)| Number::ratio(n, d);
    let base = amount.times(ratio(from.factor)?)?.plus(ratio(from.zero)?)?;
    base.minus(ratio(to.zero)?)?.divided_by(ratio(to.factor)?)
}

/// "convert 5 km to miles", "5 km in miles".
fn conversion(text: &str) -> Option<(Number, &'static Unit, &'static Unit)> {
    let text = text.strip_prefix("convert ").unwrap_or(text);
    [" to ", " in ", " into ", " as "].iter().find_map(|word| {
        let (left, right) = text.split_once(word)?;
        let (amount, from) = measured(left)?;
        Some((amount, from, named(right)?))
    })
}

/// "how many feet are there in 2 miles", "how many feet in a mile".
fn how_many(text: &str) -> Option<(Number, &'static Unit, &'static Unit)> {
    let rest = text.strip_prefix("how many ")?;
    let (to, from) = [" are there in ", " are in ", " is in ", " in "]
        .iter()
        .find_map(|word| rest.split_once(word))?;
    let to = named(to)?;
    let from = from.trim();
    let one = ["a ", "an ", "one "]
        .iter()
        .find_map(|article| from.strip_prefix(article));
    let (amount, from) = match one {
        Some(name) => (Number::whole(1), named(name)?),
        None => measured(from)?,
    };
    Some((amount, from, to))
}

/// "5 km", "72°f", "-40 c".
fn measured(text: &str) -> Option<(Number, &'static Unit)> {
    let text = text.trim();
    let (negative, digits) = match text.strip_prefix(['-', '−']) {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let end = digits
        .find(|c: char| !(c.is_ascii_digit() || matches!(c, '.' | ',')))
        .filter(|end| *end > 0)?;
    let amount = Number::parse(&digits[..end])?;
    let amount = if negative {
        Number::whole(0).minus(amount).ok()?
    } else {
        amount
    };
    Some((amount, named(&digits[end..])?))
}

fn named(name: &str) -> Option<&'static Unit> {
    let name = name.trim();
    UNITS.iter().find(|u| u.names.contains(&name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_name_belongs_to_two_units() {
        for (i, a) in UNITS.iter().enumerate() {
            for b in &UNITS[i + 1..] {
                let shared = a.names.iter().find(|n| b.names.contains(n));
                assert_eq!(shared, None, "{} and {}", a.symbol, b.symbol);
            }
        }
    }

    #[test]
    fn every_conversion_there_and_back_is_the_identity() {
        let five = Number::whole(5);
        for from in UNITS {
            for to in UNITS.iter().filter(|u| u.quantity == from.quantity) {
                let there = convert(five, from, to).expect("five of anything fits");
                assert_eq!(
                    convert(there, to, from),
                    Ok(five),
                    "{} {}",
                    from.symbol,
                    to.symbol
                );
            }
        }
    }
}
