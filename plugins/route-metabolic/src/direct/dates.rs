//! "How many days between …", "what day of the week was …", "90 days after …".
//!
//! Only dates that are written out: today's date is the host's to give, and a policy has
//! no clock. `03/04/2024` is two dates, depending on the country, and is refused.

/// A day of the Gregorian calendar, counted from 1 March of year 0, since years that begin
/// in March have their odd day at the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Day(i64);

/// First year in which the calendar held somewhere; last with four digits.
const YEARS: std::ops::RangeInclusive<i64> = 1583..=9999;

const MONTHS: [&str; 12] = [
    "january",
    "february",
    "march",
    "april",
    "may",
    "june",
    "july",
    "august",
    "september",
    "october",
    "november",
    "december",
];
const WEEKDAYS: [&str; 7] = [
    "Wednesday",
    "Thursday",
    "Friday",
    "Saturday",
    "Sunday",
    "Monday",
    "Tuesday",
];

impl Day {
    /// `None` when there is no such day.
    fn new(year: i64, month: i64, day: i64) -> Option<Self> {
        if !YEARS.contains(&year) || !(1..=12).contains(&month) || !(1..=31).contains(&day) {
            return None;
        }
        let (y, m) = if month > 2 {
            (year, month - 3)
        } else {
            (year - 1, month + 9)
        };
        // 153 days in every five months from March on.
        let found = Self(365 * y + y / 4 - y / 100 + y / 400 + (153 * m + 2) / 5 + day - 1);
        (found.date() == (year, month, day)).then_some(found)
    }

    fn date(self) -> (i64, i64, i64) {
        let mut year = self.0 * 400 / 146_097;
        let first = |y: i64| 365 * y + y / 4 - y / 100 + y / 400;
        while first(year + 1) <= self.0 {
            year += 1;
        }
        while first(year) > self.0 {
            year -= 1;
        }
        let of_year = self.0 - first(year);
        let m = (5 * of_year + 2) / 153;
        let day = of_year - (153 * m + 2) / 5 + 1;
        if m < 10 {
            (year, m + 3, day)
        } else {
            (year + 1, m - 9, day)
        }
    }

    fn weekday(self) -> &'static str {
        WEEKDAYS[self.0.rem_euclid(7) as usize]
    }

    fn shifted(self, days: i64) -> Option<Self> {
        let day = Self(self.0.checked_add(days)?);
        let known = Self::new(*YEARS.start(), 1, 1)?..=Self::new(*YEARS.end(), 12, 31)?;
        known.contains(&day).then_some(day)
    }

    fn text(self) -> String {
        let (y, m, d) = self.date();
        format!("{y:04}-{m:02}-{d:02}")
    }
}

/// The answer to a question in lower case whose surrounding words are gone.
pub(super) fn answer(text: &str) -> Option<String> {
    between(text)
        .or_else(|| weekday(text))
        .or_else(|| shift(text))
}

fn between(text: &str) -> Option<String> {
    let rest = [
        "how many days are there ",
        "how many days are ",
        "how many days is it ",
        "how many days ",
        "number of days ",
        "days ",
    ]
    .iter()
    .find_map(|p| text.strip_prefix(p))?;
    let (a, b) = match rest.strip_prefix("between ") {
        Some(rest) => rest.split_once(" and ")?,
        None => {
            let rest = rest.strip_prefix("from ")?;
            rest.split_once(" to ")
                .or_else(|| rest.split_once(" until "))?
        }
    };
    let days = (date(b)?.0 - date(a)?.0).abs();
    Some(format!("{days} {}", if days == 1 { "day" } else { "days" }))
}

fn weekday(text: &str) -> Option<String> {
    let rest = [
        "what day of the week",
        "which day of the week",
        "what weekday",
        "which weekday",
        "what day",
        "day of the week",
        "weekday",
    ]
    .iter()
    .find_map(|p| text.strip_prefix(p))?
    .trim_start();
    let rest = [
        "is ", "was ", "will be ", "of ", "for ", "does ", "did ", "on ",
    ]
    .iter()
    .find_map(|p| rest.strip_prefix(p))
    .unwrap_or(rest);
    let rest = rest
        .strip_suffix(" fall on")
        .or_else(|| rest.strip_suffix(" on"))
        .unwrap_or(rest);
    Some(date(rest)?.weekday().to_owned())
}

fn shift(text: &str) -> Option<String> {
    let text = ["what date is ", "which date is ", "date ", "day "]
        .iter()
        .find_map(|p| text.strip_prefix(p))
        .unwrap_or(text);
    let (days, start) = [(" after ", 1), (" from ", 1), (" before ", -1)]
        .iter()
        .find_map(|(word, sign)| {
            let (span, start) = text.split_once(word)?;
            Some((span_days(span)? * sign, start))
        })
        .or_else(|| {
            [(" plus ", 1), (" + ", 1), (" minus ", -1), (" - ", -1)]
                .iter()
                .find_map(|(word, sign)| {
                    let (start, span) = text.split_once(word)?;
                    Some((span_days(span)? * sign, start))
                })
        })?;
    let day = date(start)?.shifted(days)?;
    Some(format!("{} ({})", day.text(), day.weekday()))
}

/// "90 days", "2 weeks".
fn span_days(text: &str) -> Option<i64> {
    let (count, unit) = text.trim().split_once(' ')?;
    let count: i64 = count.parse().ok().filter(|n| (0..=4_000_000).contains(n))?;
    match unit.trim() {
        "day" | "days" => Some(count),
        "week" | "weeks" => Some(count * 7),
        _ => None,
    }
}

/// `2024-03-05`, `march 5, 2024`, `5 march 2024`, `mar 5th 2024`.
fn date(text: &str) -> Option<Day> {
    let text = text.trim();
    let text = text.strip_prefix("the ").unwrap_or(text);
    let iso: Vec<&str> = text.split('-').collect();
    if let [y, m, d] = iso[..] {
        return (y.len() == 4).then(|| Day::new(number(y)?, number(m)?, number(d)?))?;
    }
    let words: Vec<&str> = text
        .split([' ', ','])
        .filter(|w| !w.is_empty() && *w != "of")
        .collect();
    let [a, b, year] = words[..] else {
        return None;
    };
    let year = number(year)?;
    match (month(a), month(b)) {
        (Some(m), None) => Day::new(year, m, ordinal(b)?),
        (None, Some(m)) => Day::new(year, m, ordinal(a)?),
        _ => None,
    }
}

fn month(word: &str) -> Option<i64> {
    let word = word.trim_end_matches('.');
    let matches = |name: &&str| {
        **name == *word || (word.len() >= 3 && word.len() <= 4 && name.starts_with(word))
    };
    MONTHS.iter().position(matches).map(|i| i as i64 + 1)
}

fn ordinal(word: &str) -> Option<i64> {
    let bare = ["st", "nd", "rd", "th"]
        .iter()
        .find_map(|s| word.strip_suffix(s));
    number(bare.unwrap_or(word))
}

fn number(text: &str) -> Option<i64> {
    let digits = !text.is_empty() && text.len() <= 4 && text.bytes().all(|b| b.is_ascii_digit());
    digits.then(|| text.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn four_centuries_of_days_count_up_by_one_with_their_weekdays() {
        let mut day = Day::new(1999, 12, 31).expect("a day");
        assert_eq!(day.weekday(), "Friday");
        let mut weekday = WEEKDAYS.iter().cycle().skip_while(|w| **w != "Friday");
        for _ in 0..146_097 {
            assert_eq!(Some(&day.weekday()), weekday.next());
            let (y, m, d) = day.date();
            assert_eq!(Day::new(y, m, d), Some(day));
            day = day.shifted(1).expect("within the calendar");
        }
        assert_eq!(day.text(), "2399-12-31");
    }

    #[test]
    fn days_that_do_not_exist_are_refused() {
        for text in [
            "2023-02-29",
            "1900-02-29",
            "2024-13-01",
            "april 31, 2024",
            "03/04/2024",
            "0 may 2024",
        ] {
            assert_eq!(date(text), None, "{text}");
        }
        assert!(date("2000-02-29").is_some());
    }
}
