//! `strftime_now`: the date, in UTC, in the notation of C's `strftime`.

use minijinja::{Error, ErrorKind};
use std::fmt::Write;
use std::time::{SystemTime, UNIX_EPOCH};

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const WEEKDAYS: [&str; 7] = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"];
/// A format longer than this is not a date.
const MAX_FORMAT_BYTES: usize = 256;

/// A moment taken apart, proleptic Gregorian calendar.
struct Moment {
    year: i64,
    /// 1 to 12.
    month: u32,
    /// 1 to 31.
    day: u32,
    /// 1 to 366.
    day_of_year: u32,
    /// 0 is Monday.
    weekday: u32,
    hour: u32,
    minute: u32,
    second: u32,
}

impl Moment {
    fn at(time: SystemTime) -> Self {
        let seconds = match time.duration_since(UNIX_EPOCH) {
            Ok(after) => i64::try_from(after.as_secs()).unwrap_or(i64::MAX),
            Err(before) => -i64::try_from(before.duration().as_secs()).unwrap_or(i64::MAX),
        };
        let days = seconds.div_euclid(86_400);
        let in_day = seconds.rem_euclid(86_400) as u32;
        let (year, month, day) = civil(days);
        let day_of_year = (1..month).map(|month| month_days(year, month)).sum::<u32>() + day;
        Self {
            year,
            month,
            day,
            day_of_year,
            weekday: (days + 3).rem_euclid(7) as u32, // 1970-01-01 was a Thursday
            hour: in_day / 3600,
            minute: in_day / 60 % 60,
            second: in_day % 60,
        }
    }
}

fn is_leap(year: i64) -> bool {
    year % 4 == 0 && (year % 100 != 0 || year % 400 == 0)
}

fn month_days(year: i64, month: u32) -> u32 {
    match month {
        2 => 28 + u32::from(is_leap(year)),
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Year, month and day of a day counted from 1970-01-01. Years are taken from March on, so that the leap day is the
/// last of its year and months follow one linear formula (Richards, "Calendars", in Explanatory Supplement to the
/// Astronomical Almanac, 2013).
fn civil(days: i64) -> (i64, u32, u32) {
    const ERA: i64 = 146_097; // days in 400 years
    let shifted = days + 719_468; // from 0000-03-01
    let in_era = shifted.rem_euclid(ERA);
    let year_of_era = (in_era - in_era / 1460 + in_era / 36_524 - in_era / 146_096) / 365;
    let in_year = in_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * in_year + 2) / 153;
    let day = in_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    let year = shifted.div_euclid(ERA) * 400 + year_of_era + i64::from(month <= 2);
    (year, month as u32, day as u32)
}

/// Formats `now`; directives that depend on a locale follow the C locale.
pub(super) fn strftime(format: &str, now: SystemTime) -> Result<String, Error> {
    if format.len() > MAX_FORMAT_BYTES {
        return Err(Error::new(ErrorKind::InvalidOperation, "strftime_now: format too long"));
    }
    let moment = Moment::at(now);
    let mut text = String::new();
    let mut characters = format.chars();
    while let Some(character) = characters.next() {
        if character != '%' {
            text.push(character);
            continue;
        }
        let directive = characters.next();
        let (plain, directive) = match directive {
            Some('-') => (true, characters.next()),
            other => (false, other),
        };
        let directive = directive.unwrap_or('%');
        write_directive(&mut text, &moment, directive, plain)?;
    }
    Ok(text)
}

fn write_directive(text: &mut String, moment: &Moment, directive: char, plain: bool) -> Result<(), Error> {
    let two = |number: u32| if plain { number.to_string() } else { format!("{number:02}") };
    let month = MONTHS[moment.month as usize - 1];
    let weekday = WEEKDAYS[moment.weekday as usize];
    let half_day_hour = (moment.hour + 11) % 12 + 1;
    let Moment { year, hour, minute, second, .. } = *moment;
    let piece = match directive {
        'Y' => year.to_string(),
        'y' => two(year.rem_euclid(100) as u32),
        'm' => two(moment.month),
        'd' => two(moment.day),
        'e' if plain => moment.day.to_string(),
        'e' => format!("{:2}", moment.day),
        'j' if plain => moment.day_of_year.to_string(),
        'j' => format!("{:03}", moment.day_of_year),
        'H' => two(hour),
        'I' => two(half_day_hour),
        'M' => two(minute),
        'S' => two(second),
        'p' => if hour < 12 { "AM" } else { "PM" }.to_owned(),
        'B' => month.to_owned(),
        'b' | 'h' => month[..3].to_owned(),
        'A' => weekday.to_owned(),
        'a' => weekday[..3].to_owned(),
        'u' => (moment.weekday + 1).to_string(),
        'w' => ((moment.weekday + 1) % 7).to_string(),
        'F' => format!("{year}-{:02}-{:02}", moment.month, moment.day),
        'D' | 'x' => format!("{:02}/{:02}/{:02}", moment.month, moment.day, year.rem_euclid(100)),
        'T' | 'X' => format!("{hour:02}:{minute:02}:{second:02}"),
        'R' => format!("{hour:02}:{minute:02}"),
        'c' => format!(
            "{} {} {:2} {hour:02}:{minute:02}:{second:02} {year}",
            &weekday[..3],
            &month[..3],
            moment.day
        ),
        'Z' => "UTC".to_owned(),
        'z' => "+0000".to_owned(),
        'n' => "\n".to_owned(),
        't' => "\t".to_owned(),
        '%' => "%".to_owned(),
        other => {
            let message = format!("strftime_now: unknown directive %{other}");
            return Err(Error::new(ErrorKind::InvalidOperation, message));
        }
    };
    // Writing to a String cannot fail.
    let _ = write!(text, "{piece}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn at(seconds: u64, format: &str) -> String {
        strftime(format, UNIX_EPOCH + Duration::from_secs(seconds)).expect("known directives")
    }

    /// Expected texts from GNU `date -u -d @SECONDS +FORMAT`.
    #[test]
    fn known_dates() {
        assert_eq!(at(0, "%Y-%m-%d %H:%M:%S %A %j"), "1970-01-01 00:00:00 Thursday 001");
        assert_eq!(at(951_782_399, "%d %b %Y %I:%M %p"), "28 Feb 2000 11:59 PM");
        assert_eq!(at(951_782_400, "%d %B %y, day %j, %a"), "29 February 00, day 060, Tue");
        assert_eq!(at(4_107_542_400, "%F %T %u"), "2100-03-01 00:00:00 1");
        assert_eq!(at(1_767_225_599, "%D %R %-d.%-m."), "12/31/25 23:59 31.12.");
        assert_eq!(at(1_709_251_199, "%c|%e|%%"), "Thu Feb 29 23:59:59 2024|29|%");
    }

    #[test]
    fn times_before_the_epoch_and_unknown_directives() {
        let before = UNIX_EPOCH - Duration::from_secs(1);
        assert_eq!(strftime("%F %T %a", before).expect("known directives"), "1969-12-31 23:59:59 Wed");
        assert!(strftime("%Q", before).is_err());
    }
}
