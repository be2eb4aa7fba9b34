//! One picture of a part: for each series of times its spread, as a box from p5 to p95 with the median in it.

use std::fmt::Write;

use crate::series::Series;

const ROW: usize = 18;
const LABELS: f64 = 430.0;
const WIDTH: f64 = 500.0;

/// An SVG of all series with this unit; none when there are none.
pub(crate) fn boxes(title: &str, unit: &str, series: &[Series]) -> Option<String> {
    let rows: Vec<_> = series.iter().filter(|series| series.unit == unit).collect();
    let most = rows.iter().map(|series| series.spread().p95).fold(0.0, f64::max);
    if rows.is_empty() || most <= 0.0 {
        return None;
    }
    let height = (rows.len() + 3) * ROW;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"1060\" height=\"{height}\" font-family=\"sans-serif\" \
         font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n<text x=\"8\" y=\"{ROW}\" \
         font-weight=\"bold\">{} (0 to {most:.2} {unit}; box: p5 to p95, line: median)</text>\n",
        escape(title)
    );
    for (row, series) in rows.iter().enumerate() {
        let spread = series.spread();
        let (top, base) = ((row + 2) * ROW - 12, (row + 2) * ROW);
        let x = |value: f64| LABELS + value / most * WIDTH;
        let (left, right) = (x(spread.p5), x(spread.p95));
        // Writing to a string does not fail.
        let _ = writeln!(
            svg,
            "<text x=\"8\" y=\"{base}\">{}</text><rect x=\"{left:.1}\" y=\"{top}\" width=\"{:.1}\" height=\"12\" \
             fill=\"#9bc\"/><rect x=\"{:.1}\" y=\"{top}\" width=\"2\" height=\"12\" fill=\"#134\"/>\
             <text x=\"{:.1}\" y=\"{base}\">{:.3}</text>",
            escape(&series.name),
            (right - left).max(1.0),
            x(spread.median),
            right + 6.0,
            spread.median
        );
    }
    svg.push_str("</svg>\n");
    Some(svg)
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_series_of_the_unit_are_drawn() {
        let series = |name: &str, unit: &str| Series {
            name: name.to_owned(),
            unit: unit.to_owned(),
            values: vec![1.0, 2.0, 3.0],
        };
        let all = [series("a < b", "ms"), series("other", "MiB")];
        let svg = boxes("times", "ms", &all).unwrap_or_default();
        assert!(svg.contains("a &lt; b") && !svg.contains("other"), "{svg}");
        assert_eq!(boxes("none", "exits", &all), None);
    }
}
