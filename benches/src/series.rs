//! What was measured: values of one kind, and their spread.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

/// The values of one quantity.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Series {
    /// The measurement that it belongs to, and what it is: `start.linux: kernel loaded`.
    pub(crate) name: String,
    /// Of each value: `ms`, `MiB`, `count`...
    pub(crate) unit: String,
    /// In the order in which they were measured; never empty.
    pub(crate) values: Vec<f64>,
}

/// What one run of the program measured.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Part {
    /// Where: `native`, `hosted`, or `icount`.
    pub(crate) place: String,
    /// The machine, by property.
    pub(crate) machine: BTreeMap<String, String>,
    /// In the order in which they came.
    pub(crate) series: Vec<Series>,
    /// What could not be measured and why, and what a value consists of.
    pub(crate) notes: Vec<String>,
    /// Where this is kept while it grows.
    #[serde(skip)]
    file: PathBuf,
}

/// The spread of a series.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Spread {
    pub(crate) low: f64,
    pub(crate) p5: f64,
    pub(crate) median: f64,
    pub(crate) p95: f64,
    pub(crate) high: f64,
}

impl Part {
    /// An empty one, to be kept in a file.
    pub(crate) fn new(place: &str, machine: BTreeMap<String, String>, file: PathBuf) -> Self {
        Self {
            place: place.to_owned(),
            machine,
            series: Vec::new(),
            notes: Vec::new(),
            file,
        }
    }

    /// Writes all values so far to the file, which is whole at any time: whoever is ended loses no more than what came
    /// after this.
    pub(crate) fn keep(&self) -> Result<()> {
        if self.file.as_os_str().is_empty() {
            return Ok(());
        }
        let new = self.file.with_extension("new");
        fs::write(&new, serde_json::to_string(self)?).with_context(|| format!("writing {}", new.display()))?;
        fs::rename(&new, &self.file).with_context(|| format!("writing {}", self.file.display()))
    }

    /// Adds a value to a series, which begins with its first. What is no number, such as a ratio to nothing, is noted.
    pub(crate) fn add(&mut self, name: &str, unit: &str, value: f64) {
        if !value.is_finite() {
            self.notes.push(format!("{name}: {value} {unit}"));
            return;
        }
        match self.series.iter_mut().find(|series| series.name == name) {
            Some(series) => series.values.push(value),
            None => self.series.push(Series {
                name: name.to_owned(),
                unit: unit.to_owned(),
                values: vec![value],
            }),
        }
    }
}

impl Series {
    /// Quantiles by the nearest rank.
    pub(crate) fn spread(&self) -> Spread {
        let mut sorted = self.values.clone();
        sorted.sort_by(f64::total_cmp);
        let last = sorted.len().saturating_sub(1);
        let at = |percent: usize| sorted.get((last * percent + 50) / 100).copied().unwrap_or(f64::NAN);
        Spread {
            low: at(0),
            p5: at(5),
            median: at(50),
            p95: at(95),
            high: at(100),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_kept_as_they_come() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("part.json");
        let mut part = Part::new("here", BTreeMap::new(), file.clone());
        for count in 1..=2 {
            part.add("a", "ms", 1.5);
            part.keep().unwrap();
            let kept: Part = serde_json::from_str(&fs::read_to_string(&file).unwrap()).unwrap();
            assert_eq!(kept.series[0].values, vec![1.5; count]);
        }
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn quantiles_are_values_that_were_measured() {
        let mut part = Part::new("here", BTreeMap::new(), PathBuf::new());
        for value in [5.0, 1.0, 4.0, 2.0, 100.0] {
            part.add("a", "ms", value);
        }
        part.add("b", "ms", 7.0);
        part.add("c", "ms", 1.0 / 0.0);
        let spread = part.series[0].spread();
        assert_eq!(
            (spread.low, spread.p5, spread.median, spread.p95, spread.high),
            (1.0, 1.0, 4.0, 100.0, 100.0)
        );
        assert_eq!(part.series[1].spread().median, 7.0);
        assert_eq!((part.series.len(), part.notes.len()), (2, 1));
    }
}
