//! The same measurement several times.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Result, ensure};

use crate::Plan;
use crate::series::Part;

/// Measures `full` times, or once where it shall be quick, after a first time that makes images, warms caches, and does
/// not count. A time that fails is noted; it is an error when no time is left that counts.
pub(crate) fn run(
    plan: &Plan,
    part: &mut Part,
    full: usize,
    mut measure: impl FnMut(&mut Part) -> Result<()>,
) -> Result<()> {
    let count = plan.times(full);
    let mut failed = 0;
    for round in 0..=count {
        let mut first = Part::new(&part.place, BTreeMap::new(), PathBuf::new());
        let outcome = measure(if round == 0 { &mut first } else { &mut *part });
        if let Err(error) = outcome {
            eprintln!("husk-bench: time {round} of {count} failed: {error:#}");
            part.notes.push(format!("time {round} of {count} failed: {error:#}"));
            failed += usize::from(round > 0);
        }
        part.keep()?;
    }
    ensure!(failed < count, "each of {count} times");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_failure_costs_one_value() {
        let mut part = Part::new("here", BTreeMap::new(), PathBuf::new());
        let mut round = 0;
        let mut measure = |part: &mut Part| {
            round += 1;
            ensure!(round != 3, "the third");
            part.add("a", "count", f64::from(round));
            Ok(())
        };
        run(&Plan::default(), &mut part, 3, &mut measure).unwrap();
        assert_eq!(part.series[0].values, [2.0, 4.0]);
        assert!(part.notes[0].contains("the third"), "{:?}", part.notes);
        let error = run(&Plan::default(), &mut part, 2, |_| Err(anyhow::anyhow!("never"))).unwrap_err();
        assert!(error.to_string().contains("each of 2"), "{error}");
    }
}
