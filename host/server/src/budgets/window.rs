//! Windows of the calendar: the hour, the day and the month in which a budget holds.
//!
//! Local time is a fixed distance from UTC. A place that moves its clocks twice a year has
//! windows that begin an hour off for half of it, which no budget notices; in exchange no
//! table of time zones can be out of date.

use serde::{Deserialize, Serialize};

const HOUR_S: i64 = 3_600;
const DAY_S: i64 = 24 * HOUR_S;
/// Days of 400 years, after which the calendar repeats itself.
const ERA_DAYS: i64 = 146_097;
/// From the 1st of March of the year 0 to the 1st of January 1970.
const DAYS_TO_1970: i64 = 719_468;

/// How long a budget lasts before it is whole again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Per {
    Hour,
    Day,
    Month,
}

impl Per {
    pub fn word(self) -> &'static str {
        match self {
            Self::Hour => "hour",
            Self::Day => "day",
            Self::Month => "month",
        }
    }

    /// The window that holds a moment, in local time that is ahead of UTC by so much.
    pub fn window(self, unix_s: i64, utc_offset_s: i64) -> Window {
        let local_s = unix_s + utc_offset_s;
        let aligned = |length_s: i64| {
            let start_s = local_s.div_euclid(length_s) * length_s;
            (start_s, start_s + length_s)
        };
        let (start_s, end_s) = match self {
            Self::Hour => aligned(HOUR_S),
            Self::Day => aligned(DAY_S),
            Self::Month => {
                let month = month_of(local_s.div_euclid(DAY_S));
                (first_day_of(month) * DAY_S, first_day_of(month + 1) * DAY_S)
            }
        };
        Window {
            start_s: start_s - utc_offset_s,
            end_s: end_s - utc_offset_s,
        }
    }
}

/// One of them, in seconds since 1970; the end is the next one's start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    pub start_s: i64,
    pub end_s: i64,
}

/// The month that a day since 1970 belongs to, counted from January of the year 0. After
/// Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms": years begin in March, so
/// that the leap day is their last.
fn month_of(day: i64) -> i64 {
    let day = day + DAYS_TO_1970;
    let era = day.div_euclid(ERA_DAYS);
    let of_era = day.rem_euclid(ERA_DAYS);
    let year = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let from_march = (5 * of_year + 2) / 153;
    (era * 400 + year) * 12 + from_march + 2
}

/// The first day of a month, since 1970; the inverse of [`month_of`].
fn first_day_of(month: i64) -> i64 {
    let from_march = month - 2;
    let year = from_march.div_euclid(12);
    let of_year = (153 * from_march.rem_euclid(12) + 2) / 5;
    let (era, of_era) = (year.div_euclid(400), year.rem_euclid(400));
    era * ERA_DAYS + of_era * 365 + of_era / 4 - of_era / 100 + of_year - DAYS_TO_1970
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 2024-02-29T13:37:00Z, a leap day.
    const LEAP_DAY: i64 = 1_709_213_820;

    #[test]
    fn hours_and_days_begin_where_the_local_clock_shows_a_whole_one() {
        let hour = Per::Hour.window(LEAP_DAY, 0);
        assert_eq!(hour.start_s, LEAP_DAY - 37 * 60);
        assert_eq!(hour.end_s - hour.start_s, HOUR_S);
        let day = Per::Day.window(LEAP_DAY, 0);
        assert_eq!(day.start_s, 1_709_164_800);
        // In India the day began at half past six in the evening, UTC.
        let india = Per::Day.window(LEAP_DAY, 5 * HOUR_S + HOUR_S / 2);
        assert_eq!(india.start_s, 1_709_164_800 - 5 * HOUR_S - HOUR_S / 2);
    }

    #[test]
    fn a_month_is_as_long_as_the_calendar_says() {
        let february = Per::Month.window(LEAP_DAY, 0);
        assert_eq!(
            (february.start_s, february.end_s),
            (1_706_745_600, 1_709_251_200)
        );
        assert_eq!(february.end_s - february.start_s, 29 * DAY_S);
        // A minute before midnight in UTC it is March in Berlin.
        let berlin = Per::Month.window(february.end_s - 60, HOUR_S);
        assert_eq!(berlin.start_s, february.end_s - HOUR_S);
    }

    #[test]
    fn every_moment_lies_in_its_window_and_windows_follow_each_other() {
        for per in [Per::Hour, Per::Day, Per::Month] {
            let mut window = per.window(0, -3 * HOUR_S);
            for _ in 0..5_000 {
                for at in [window.start_s, window.end_s - 1] {
                    assert_eq!(per.window(at, -3 * HOUR_S), window, "{per:?} {at}");
                }
                window = per.window(window.end_s, -3 * HOUR_S);
            }
        }
    }
}
