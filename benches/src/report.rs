//! One report of all parts: a table for a person, JSON and pictures in a directory.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use crate::plot;
use crate::series::{Part, Series};

/// Prints the parts in these files and writes them to a directory.
pub(crate) fn make(files: &[String], out: &Path) -> Result<()> {
    let mut parts: Vec<Part> = Vec::new();
    for file in files {
        let text = fs::read_to_string(file).with_context(|| format!("reading {file}"))?;
        parts.push(serde_json::from_str(&text).with_context(|| format!("the results in {file}"))?);
    }
    fs::create_dir_all(out).with_context(|| format!("creating {}", out.display()))?;
    fs::write(out.join("results.json"), serde_json::to_string_pretty(&parts)?)?;
    for part in &parts {
        for unit in units(&part.series) {
            if let Some(svg) = plot::boxes(&format!("{}, {unit}", part.place), unit, &part.series) {
                let name: String = unit
                    .chars()
                    .map(|sign| if sign.is_ascii_alphanumeric() { sign } else { '-' })
                    .collect();
                fs::write(out.join(format!("{}-{name}.svg", part.place)), svg)?;
            }
        }
        print!("{}", table(part));
    }
    println!("results.json and pictures are in {}", out.display());
    Ok(())
}

fn units(series: &[Series]) -> Vec<&str> {
    let mut units: Vec<&str> = series.iter().map(|series| series.unit.as_str()).collect();
    units.sort_unstable();
    units.dedup();
    units
}

fn table(part: &Part) -> String {
    let mut lines = vec![format!("== {}", part.place)];
    lines.extend(part.machine.iter().map(|(name, value)| format!("{name}: {value}")));
    if part.place == "icount" {
        lines.push("the clock counts instructions: 1 ms is a million of them".to_owned());
    }
    lines.push(format!(
        "{:62} {:>12} {:>12} {:>12} {:>12} {:>12} {:>4}  unit",
        "", "median", "p5", "p95", "min", "max", "n"
    ));
    for series in &part.series {
        let spread = series.spread();
        lines.push(format!(
            "{:62} {:>12.3} {:>12.3} {:>12.3} {:>12.3} {:>12.3} {:>4}  {}",
            series.name,
            spread.median,
            spread.p5,
            spread.p95,
            spread.low,
            spread.high,
            series.values.len(),
            series.unit
        ));
    }
    lines.extend(part.notes.iter().map(|note| format!("note: {note}")));
    lines.join("\n") + "\n\n"
}
