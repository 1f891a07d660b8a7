//! Calendar windows in a time zone, through clock changes.

use crate::scope::Per;
use chrono::{
    DateTime, Datelike, Days, Duration, LocalResult, Months, NaiveDate, Offset, TimeZone,
};
use chrono::{NaiveTime, Utc};
use chrono_tz::Tz;

/// A window, in seconds since 1970: from `starts` until before `ends`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// Its first second.
    pub starts: i64,
    /// The first second after it; `i64::MAX` for one that never ends.
    pub ends: i64,
}

impl Span {
    /// Whether the window contains this second.
    pub fn contains(&self, second: i64) -> bool {
        self.starts <= second && second < self.ends
    }

    /// Whether any second is in both.
    pub fn overlaps(&self, other: &Span) -> bool {
        self.starts < other.ends && other.starts < self.ends
    }
}

/// The window of this kind that contains `now`.
///
/// Days, weeks and months begin at the first instant of a local date: where midnight does not
/// exist, at the first that does; where it comes twice, at the earlier. So every instant is in
/// exactly one, and a date that the clock sets back to is not begun twice. Minutes and hours are
/// those of the local clock.
pub fn window(per: Per, zone: Tz, now: DateTime<Utc>) -> Span {
    match per {
        Per::Minute => grid(zone, now, 60),
        Per::Hour => grid(zone, now, 3600),
        Per::Day | Per::Week | Per::Month => by_date(per, zone, now),
        Per::Total => Span { starts: 0, ends: i64::MAX },
    }
}

/// Windows of a fixed length that divides the hour, on the local clock.
fn grid(zone: Tz, now: DateTime<Utc>, length: i64) -> Span {
    let offset = i64::from(now.with_timezone(&zone).offset().fix().local_minus_utc());
    let starts = (now.timestamp() + offset).div_euclid(length) * length - offset;
    Span { starts, ends: starts + length }
}

fn by_date(per: Per, zone: Tz, now: DateTime<Utc>) -> Span {
    let second = now.timestamp();
    let mut first = first_date(per, now.with_timezone(&zone).date_naive());
    // The date on the clock is wrong by one where the clock is set back over midnight.
    if second < begin(zone, first) {
        first = first_date(per, first.pred_opt().unwrap_or(first));
    }
    let mut next = next_date(per, first);
    if begin(zone, next) <= second {
        (first, next) = (next, next_date(per, next));
    }
    Span { starts: begin(zone, first), ends: begin(zone, next) }
}

fn first_date(per: Per, date: NaiveDate) -> NaiveDate {
    let back = match per {
        Per::Week => date.weekday().num_days_from_monday(),
        Per::Month => date.day0(),
        _ => 0,
    };
    date.checked_sub_days(Days::new(u64::from(back))).unwrap_or(date)
}

fn next_date(per: Per, first: NaiveDate) -> NaiveDate {
    let next = match per {
        Per::Week => first.checked_add_days(Days::new(7)),
        Per::Month => first.checked_add_months(Months::new(1)),
        _ => first.checked_add_days(Days::new(1)),
    };
    next.unwrap_or(NaiveDate::MAX)
}

/// When a local date begins.
pub fn midnight(zone: Tz, date: NaiveDate) -> DateTime<Utc> {
    DateTime::from_timestamp(begin(zone, date), 0).unwrap_or_default()
}

/// The first second of a local date.
fn begin(zone: Tz, date: NaiveDate) -> i64 {
    let mut local = date.and_time(NaiveTime::MIN);
    // A gap ends on a quarter of an hour; the longest left out a whole date.
    for _ in 0..4 * 26 {
        match zone.from_local_datetime(&local) {
            LocalResult::Single(at) | LocalResult::Ambiguous(at, _) => return at.timestamp(),
            LocalResult::None => local += Duration::minutes(15),
        }
    }
    local.and_utc().timestamp()
}

#[cfg(test)]
mod tests {
    use super::*;
    use chrono_tz::{Africa, America, Asia, Australia, Europe, Pacific};

    fn utc(text: &str) -> DateTime<Utc> {
        DateTime::parse_from_rfc3339(text).unwrap().to_utc()
    }

    fn spans(per: Per, zone: Tz, at: &str, from: &str, to: &str) {
        let span = window(per, zone, utc(at));
        let expected = Span { starts: utc(from).timestamp(), ends: utc(to).timestamp() };
        assert_eq!(span, expected, "{per} of {at} in {zone}");
    }

    #[test]
    fn days_of_berlin_are_23_and_25_hours_long_when_the_clock_changes() {
        let zone = Europe::Berlin;
        let (from, to) = ("2026-03-28T23:00:00Z", "2026-03-29T22:00:00Z");
        for at in [from, "2026-03-29T00:59:59Z", "2026-03-29T01:00:00Z", "2026-03-29T21:59:59Z"] {
            spans(Per::Day, zone, at, from, to);
        }
        let (from, to) = ("2026-10-24T22:00:00Z", "2026-10-25T23:00:00Z");
        for at in [from, "2026-10-25T00:30:00Z", "2026-10-25T01:30:00Z", "2026-10-25T22:59:59Z"] {
            spans(Per::Day, zone, at, from, to);
        }
        spans(
            Per::Week,
            zone,
            "2026-03-29T12:00:00Z",
            "2026-03-22T23:00:00Z",
            "2026-03-29T22:00:00Z",
        );
        spans(
            Per::Month,
            zone,
            "2026-03-15T00:00:00Z",
            "2026-02-28T23:00:00Z",
            "2026-03-31T22:00:00Z",
        );
        spans(
            Per::Month,
            zone,
            "2026-10-31T23:30:00Z",
            "2026-10-31T23:00:00Z",
            "2026-11-30T23:00:00Z",
        );
        spans(
            Per::Hour,
            zone,
            "2026-10-25T00:30:00Z",
            "2026-10-25T00:00:00Z",
            "2026-10-25T01:00:00Z",
        );
        spans(
            Per::Hour,
            zone,
            "2026-10-25T01:30:00Z",
            "2026-10-25T01:00:00Z",
            "2026-10-25T02:00:00Z",
        );
    }

    #[test]
    fn months_end_on_their_last_day_and_weeks_begin_on_monday() {
        let zone = Tz::UTC;
        spans(
            Per::Month,
            zone,
            "2028-02-29T23:59:59Z",
            "2028-02-01T00:00:00Z",
            "2028-03-01T00:00:00Z",
        );
        spans(
            Per::Month,
            zone,
            "2026-12-31T23:59:59Z",
            "2026-12-01T00:00:00Z",
            "2027-01-01T00:00:00Z",
        );
        spans(
            Per::Week,
            zone,
            "2026-11-22T23:59:59Z",
            "2026-11-16T00:00:00Z",
            "2026-11-23T00:00:00Z",
        );
        spans(
            Per::Week,
            zone,
            "2026-11-23T00:00:00Z",
            "2026-11-23T00:00:00Z",
            "2026-11-30T00:00:00Z",
        );
        spans(
            Per::Minute,
            zone,
            "2026-11-23T00:00:59.999Z",
            "2026-11-23T00:00:00Z",
            "2026-11-23T00:01:00Z",
        );
        assert_eq!(window(Per::Total, zone, utc("2026-11-23T00:00:00Z")).ends, i64::MAX);
    }

    #[test]
    fn hours_follow_a_clock_that_is_half_an_hour_off() {
        spans(
            Per::Hour,
            Asia::Kolkata,
            "2026-11-23T00:10:00Z",
            "2026-11-22T23:30:00Z",
            "2026-11-23T00:30:00Z",
        );
    }

    /// Every instant lies in its window, and the windows follow each other without gap.
    #[test]
    fn no_instant_is_in_two_windows_whatever_the_zone_does_at_midnight() {
        // Midnight does not exist (Cairo, Beirut, Sao Paulo), comes twice (Havana), is set back
        // over (St John's), or a whole date is left out (Apia).
        let odd = [
            (Africa::Cairo, "2026-04-22T00:00:00Z"),
            (Asia::Beirut, "2026-03-27T00:00:00Z"),
            (America::Sao_Paulo, "2018-11-03T00:00:00Z"),
            (America::Sao_Paulo, "2018-02-16T00:00:00Z"),
            (America::Havana, "2026-10-31T00:00:00Z"),
            (America::St_Johns, "2010-11-05T00:00:00Z"),
            (Pacific::Apia, "2011-12-28T00:00:00Z"),
            (Australia::Lord_Howe, "2026-04-03T00:00:00Z"),
            (Europe::Berlin, "2026-03-27T00:00:00Z"),
            (Europe::Berlin, "2026-10-23T00:00:00Z"),
        ];
        for (zone, from) in odd {
            for per in [Per::Minute, Per::Day, Per::Week, Per::Month] {
                let mut last: Option<Span> = None;
                for minute in 0..5 * 24 * 60 {
                    let now = utc(from) + Duration::minutes(minute);
                    let span = window(per, zone, now);
                    assert!(span.contains(now.timestamp()), "{per} {zone} {now}: {span:?}");
                    if let Some(last) = last.filter(|last| *last != span) {
                        assert_eq!(last.ends, span.starts, "{per} {zone} {now}");
                    }
                    last = Some(span);
                }
            }
        }
    }
}
