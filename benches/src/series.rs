//! What was measured: values of one kind, and their spread.

use std::collections::BTreeMap;

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
    pub(crate) fn new(place: &str, machine: BTreeMap<String, String>) -> Self {
        Self {
            place: place.to_owned(),
            machine,
            series: Vec::new(),
            notes: Vec::new(),
        }
    }

    /// Adds a value to a series, which begins with its first.
    pub(crate) fn add(&mut self, name: &str, unit: &str, value: f64) {
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
    fn quantiles_are_values_that_were_measured() {
        let mut part = Part::new("here", BTreeMap::new());
        for value in [5.0, 1.0, 4.0, 2.0, 100.0] {
            part.add("a", "ms", value);
        }
        part.add("b", "ms", 7.0);
        let spread = part.series[0].spread();
        assert_eq!(
            (spread.low, spread.p5, spread.median, spread.p95, spread.high),
            (1.0, 1.0, 4.0, 100.0, 100.0)
        );
        assert_eq!(part.series[1].spread().median, 7.0);
    }
}
