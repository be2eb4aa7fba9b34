//! Tables for people, and what stands in their cells.

use std::time::Duration;

/// A longer text is cut.
const MAX_TEXT: usize = 40;

/// Columns as wide as their widest cell.
pub(crate) fn aligned<const N: usize>(rows: &[[String; N]]) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<_> = (0..N).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let cells: Vec<_> = row
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:width$}"))
            .collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    text
}

/// A text of somebody else's without control characters, which might command the terminal.
pub(crate) fn clean(text: &str) -> String {
    let visible = |letter: char| if letter.is_control() { ' ' } else { letter };
    text.chars().map(visible).collect()
}

/// The same, no longer than a cell should be.
pub(crate) fn shortened(text: &str) -> String {
    let clean = clean(text);
    if clean.chars().count() <= MAX_TEXT {
        clean
    } else {
        clean.chars().take(MAX_TEXT - 3).chain("...".chars()).collect()
    }
}

/// A duration as people say it.
pub(crate) fn rough(age: Duration) -> String {
    match age.as_secs() {
        seconds @ 0..=119 => format!("{seconds}s"),
        seconds @ 120..=7_199 => format!("{}m", seconds / 60),
        seconds @ 7_200..=172_799 => format!("{}h", seconds / 3_600),
        seconds => format!("{}d", seconds / 86_400),
    }
}

/// A size in the greatest unit of which it has one.
pub(crate) fn size(bytes: u64) -> String {
    let units = [(40, "T"), (30, "G"), (20, "M"), (10, "K")];
    for (shift, unit) in units {
        if bytes >> shift > 0 {
            let tenths = (u128::from(bytes) * 10) >> shift;
            return format!("{}.{}{unit}", tenths / 10, tenths % 10);
        }
    }
    format!("{bytes}B")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_aligned() {
        let row = |cells: [&str; 3]| cells.map(str::to_owned);
        let text = aligned(&[row(["NAME", "PID", "X"]), row(["a-long-name-indeed", "1", "y"])]);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[0].find("PID"), lines[1].find("1  "));
        assert_eq!(lines[0].find('X'), lines[1].find('y'));
    }

    #[test]
    fn texts_ages_and_sizes_are_short() {
        assert_eq!(shortened("a\nb"), "a b");
        assert_eq!(shortened(&"x".repeat(100)).len(), MAX_TEXT);
        let ages = [5, 600, 7_200, 200_000].map(|seconds| rough(Duration::from_secs(seconds)));
        assert_eq!(ages, ["5s", "10m", "2h", "2d"]);
        let sizes = [0, 1023, 1 << 10, 1536 << 10, 1_600_000_000, u64::MAX].map(size);
        assert_eq!(sizes, ["0B", "1023B", "1.0K", "1.5M", "1.4G", "16777215.9T"]);
    }
}
