//! What a container's process finds around itself, and where that may differ between runtimes.

use std::collections::BTreeMap;
use std::fmt;

use crate::Outcome;

/// A script for busybox's shell that prints the facts. Its first argument is a list of paths that it is to describe.
pub const PROBE: &str = include_str!("../data/probe.sh");
/// What stands for a fact that a side does not have.
const ABSENT: &str = "absent";

/// What [`PROBE`] has printed, by name.
#[derive(Clone, Debug)]
pub struct Facts(BTreeMap<String, String>);

impl Facts {
    /// Reads what a runtime has printed.
    ///
    /// # Panics
    /// It failed, or printed something else.
    #[track_caller]
    pub fn of(outcome: &Outcome) -> Self {
        outcome.exits(0);
        let facts = outcome.stdout().lines().map(|line| {
            let (name, value) = line.split_once(' ').unwrap_or((line, ""));
            (name.to_owned(), value.trim_end().to_owned())
        });
        let facts = Self(facts.collect());
        // The last one: the script has come to its end.
        assert!(facts.0.keys().any(|name| name.starts_with("sysctl:net/")), "{outcome}");
        facts
    }

    /// The value of a fact.
    pub fn get(&self, name: &str) -> &str {
        self.0.get(name).map_or(ABSENT, String::as_str)
    }

    /// Where these, runc's, are not what husk's are.
    pub fn differences(&self, husk: &Self) -> Vec<Difference> {
        let names = self
            .0
            .keys()
            .chain(husk.0.keys().filter(|name| !self.0.contains_key(*name)));
        let differences = names.map(|name| Difference {
            fact: name.clone(),
            runc: self.get(name).to_owned(),
            husk: husk.get(name).to_owned(),
        });
        differences
            .filter(|difference| difference.runc != difference.husk)
            .collect()
    }
}

/// A fact that is not the same.
#[derive(Clone, Debug)]
pub struct Difference {
    fact: String,
    runc: String,
    husk: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` | `{}` | `{}`", self.fact, self.runc, self.husk)
    }
}

/// A difference that documentation lists. In each of the three texts a `*` stands for anything.
#[derive(Clone, Debug)]
pub struct Listed {
    bundles: Vec<String>,
    expected: Difference,
}

impl Listed {
    /// The rows of the table below this heading of a Markdown text: bundles, fact, runc's value, husk's value, and more.
    ///
    /// # Panics
    /// There is no such table.
    pub fn in_table(text: &str, heading: &str) -> Vec<Self> {
        let (_, section) = text.split_once(&format!("\n{heading}\n")).expect("the heading");
        let section = section.split("\n## ").next().unwrap_or_default();
        let rows = section.lines().filter(|line| line.starts_with("| ")).skip(1);
        let rows: Vec<_> = rows.map(Self::in_row).collect();
        assert!(!rows.is_empty(), "{heading} has no table");
        rows
    }

    fn in_row(row: &str) -> Self {
        let mut cells = row
            .trim_matches('|')
            .split(" | ")
            .map(|cell| cell.trim().trim_matches('`').to_owned());
        let mut next = || cells.next().unwrap_or_else(|| panic!("{row} has too few cells"));
        let bundles = next().split(", ").map(str::to_owned).collect();
        let (fact, runc, husk) = (next(), next(), next());
        Self {
            bundles,
            expected: Difference { fact, runc, husk },
        }
    }

    /// Whether it is listed for this bundle.
    pub fn is_for(&self, bundle: &str) -> bool {
        self.bundles.iter().any(|name| name == bundle || name == "all")
    }

    /// Whether this is the difference that is listed.
    pub fn is(&self, difference: &Difference) -> bool {
        fits(&self.expected.fact, &difference.fact)
            && fits(&self.expected.runc, &difference.runc)
            && fits(&self.expected.husk, &difference.husk)
    }
}

impl fmt::Display for Listed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} | {}", self.bundles.join(", "), self.expected)
    }
}

/// Whether a text is what a pattern says, in which `*` stands for anything.
fn fits(pattern: &str, text: &str) -> bool {
    let Some((head, rest)) = pattern.split_once('*') else {
        return pattern == text;
    };
    let Some(after) = text.strip_prefix(head) else {
        return false;
    };
    let starts = after.char_indices().map(|(index, _)| index).chain([after.len()]);
    starts.into_iter().any(|start| fits(rest, &after[start..]))
}
