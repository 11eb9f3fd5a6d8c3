//! The one grammar of durations: a whole number and a unit, `250ms`, `30s`, `5m`, `2h`.

use std::time::Duration;

use chrono::TimeDelta;

/// What a duration must look like.
pub(crate) const GRAMMAR: &str = "a whole number and a unit: 250ms, 30s, 5m, 2h";

/// Longest duration, so that no sum of two can overflow: a thousand days.
pub(crate) const LONGEST: Duration = Duration::from_hours(24_000);

/// How long no process must have run something before it may be one that is not needed any more.
pub(crate) const ABANDONED: &str = "24h";

/// Reads a duration on the command line.
pub(crate) fn argument(text: &str) -> Result<Duration, String> {
    parse(text).ok_or_else(|| format!("must be {GRAMMAR}"))
}

/// Reads a duration; `None` if it is none, or longer than [`LONGEST`].
pub(crate) fn parse(text: &str) -> Option<Duration> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let milliseconds = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return None,
    };
    let duration = Duration::from_millis(number.parse::<u64>().ok()?.checked_mul(milliseconds)?);
    (duration <= LONGEST).then_some(duration)
}

/// Writes a duration that [`parse`] reads back, in the largest unit that holds it whole.
pub(crate) fn show(duration: Duration) -> String {
    let milliseconds = duration.as_millis();
    match milliseconds {
        0 => "0s".to_owned(),
        n if n % 3_600_000 == 0 => format!("{}h", n / 3_600_000),
        n if n % 60_000 == 0 => format!("{}m", n / 60_000),
        n if n % 1_000 == 0 => format!("{}s", n / 1_000),
        n => format!("{n}ms"),
    }
}

/// Seconds as a database counts them.
pub(crate) fn seconds(seconds: f64) -> TimeDelta {
    // The cast saturates; the lowest number of milliseconds has no positive counterpart.
    TimeDelta::milliseconds(((seconds * 1e3) as i64).max(-i64::MAX))
}

/// A time that has passed, for a person: three figures are enough. Two clocks that differ can make it negative.
pub(crate) fn passed(time: TimeDelta) -> String {
    let sign = if time < TimeDelta::zero() { "-" } else { "" };
    let seconds = time.abs().as_seconds_f64();
    let text = match seconds {
        0.0 => "0ms".to_owned(),
        s if s < 0.001 => format!("{:.2}ms", s * 1e3),
        s if s < 0.9995 => format!("{:.0}ms", s * 1e3),
        s if s < 59.95 => format!("{s:.1}s"),
        s if s < 3_600.0 => format!("{}m{:02}s", s as u64 / 60, s as u64 % 60),
        s if s < 86_400.0 => format!("{}h{:02}m", s as u64 / 3_600, s as u64 / 60 % 60),
        s => format!("{}d{:02}h", s as u64 / 86_400, s as u64 / 3_600 % 24),
    };
    format!("{sign}{text}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        for (text, milliseconds) in [
            ("0s", 0),
            ("250ms", 250),
            ("30s", 30_000),
            ("5m", 300_000),
            ("2h", 7_200_000),
            ("24000h", 86_400_000_000),
        ] {
            let duration = Duration::from_millis(milliseconds);
            assert_eq!(parse(text), Some(duration), "{text}");
            assert_eq!(parse(&show(duration)), Some(duration), "{text}");
        }
    }

    #[test]
    fn nothing_else_is_a_duration() {
        for text in [
            "",
            "5",
            "s",
            "5m30",
            "5m30s",
            "5 m",
            "5 minutes",
            "1d",
            "-1s",
            "+1s",
            "1.5s",
            "1e3s",
            "NaN",
            "inf",
            "5M",
            "5S",
            "٥s",
            "18446744073709551616ms",
            "18446744073709551615h",
            "24001h",
        ] {
            assert_eq!(parse(text), None, "{text:?}");
        }
    }

    #[test]
    fn any_number_of_seconds_can_be_shown() {
        for number in
            [0.0, -1.5, 1e300, -1e300, f64::INFINITY, f64::NEG_INFINITY, f64::NAN, f64::MIN_POSITIVE]
        {
            assert!(!passed(seconds(number)).is_empty(), "{number}");
        }
        assert!(!passed(TimeDelta::MIN).is_empty() && !passed(TimeDelta::MAX).is_empty());
        assert_eq!(passed(seconds(1.5)), "1.5s");
    }

    #[test]
    fn a_person_reads_three_figures() {
        let text = |milliseconds| passed(TimeDelta::milliseconds(milliseconds));
        assert_eq!(text(0), "0ms");
        assert_eq!(passed(TimeDelta::microseconds(250)), "0.25ms");
        assert_eq!(text(12), "12ms");
        assert_eq!(text(-3), "-3ms");
        assert_eq!(text(1_500), "1.5s");
        assert_eq!(text(59_990), "0m59s");
        assert_eq!(text(65_000), "1m05s");
        assert_eq!(text(3_700_000), "1h01m");
        assert_eq!(text(90_000_000), "1d01h");
    }
}
