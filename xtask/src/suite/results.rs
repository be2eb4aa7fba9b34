//! What `go test -v` tells, and how the results of two runtimes differ.

use std::collections::BTreeMap;
use std::fmt::Write;

/// The mark before lines that are the test framework's own, with `-test.v=test2json`.
const MARK: char = '\x16';

/// How a test has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Passed,
    Failed,
    Skipped,
}

/// The tests that have ended, and their parts (`TestName/part`).
pub(super) type Results = BTreeMap<String, Outcome>;

/// Takes over the results in a program's output. Gives the tests that were under way when it ended.
pub(super) fn read(output: &str, results: &mut Results) -> Vec<String> {
    let mut under_way: Vec<String> = Vec::new();
    // A test's own output may stand before the mark, without an end of line.
    let told = output.lines().filter_map(|line| Some(line.rsplit_once(MARK)?.1.trim()));
    for line in told {
        let (word, rest) = line
            .strip_prefix("=== ")
            .unwrap_or(line)
            .split_once(' ')
            .unwrap_or((line, ""));
        let name = rest.trim();
        match word {
            "RUN" | "CONT" if !under_way.iter().any(|known| known == name) => under_way.push(name.to_owned()),
            "PAUSE" => under_way.retain(|known| known != name),
            "---" => {
                let Some((outcome, name)) = name.split_once(": ") else {
                    continue;
                };
                let name = name.split(' ').next().unwrap_or(name);
                let outcome = match outcome {
                    "PASS" => Outcome::Passed,
                    "SKIP" => Outcome::Skipped,
                    _ => Outcome::Failed,
                };
                results.insert(name.to_owned(), outcome);
                under_way.retain(|known| known != name);
            }
            _ => {}
        }
    }
    under_way
}

/// The reasons why tests pass with runc alone, by the names of the tests.
pub(super) fn explanations(text: &str) -> BTreeMap<&str, &str> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines.filter_map(|line| line.split_once(": ")).collect()
}

/// What husk does otherwise than runc.
#[derive(Debug, Default)]
pub(super) struct Comparison {
    /// The tests that runc passes and husk does not, without an explanation.
    pub(super) unexplained: Vec<String>,
    /// Explanations of tests that husk passes.
    pub(super) outdated: Vec<String>,
    pub(super) table: String,
}

/// Compares husk's results with runc's.
pub(super) fn compare(runc: &Results, husk: &Results, explanations: &BTreeMap<&str, &str>) -> Comparison {
    let mut comparison = Comparison::default();
    let mut counts: BTreeMap<[&str; 2], usize> = BTreeMap::new();
    let mut lines = String::new();
    for name in runc.keys().chain(husk.keys().filter(|name| !runc.contains_key(*name))) {
        let both = [runc.get(name), husk.get(name)];
        *counts.entry(both.map(word)).or_default() += 1;
        // That of a test is one of its parts too.
        let explanation = explanations
            .get(name.as_str())
            .or_else(|| explanations.get(whole(name)));
        if both[0] == both[1] {
            continue;
        }
        let [with_runc, with_husk] = both.map(word);
        let reason = explanation.copied().unwrap_or("not explained");
        // A String takes everything.
        let _ = writeln!(lines, "{with_runc:8} {with_husk:8} {name}: {reason}");
        if both[0] == Some(&Outcome::Passed) && explanation.is_none() {
            comparison.unexplained.push(name.clone());
        }
    }
    let is_passed = |name: &&&str| husk.get(**name) == Some(&Outcome::Passed);
    comparison.outdated = explanations
        .keys()
        .filter(is_passed)
        .map(|name| (*name).to_owned())
        .collect();
    let _ = writeln!(comparison.table, "runc     husk");
    for ([with_runc, with_husk], count) in counts {
        let _ = writeln!(comparison.table, "{with_runc:8} {with_husk:8} {count}");
    }
    comparison.table.push('\n');
    comparison.table.push_str(&lines);
    comparison
}

/// The test that a part belongs to.
pub(super) fn whole(name: &str) -> &str {
    name.split_once('/').map_or(name, |(whole, _)| whole)
}

fn word(outcome: Option<&Outcome>) -> &'static str {
    match outcome {
        Some(Outcome::Passed) => "passed",
        Some(Outcome::Failed) => "failed",
        Some(Outcome::Skipped) => "skipped",
        None => "absent",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_read_among_other_output() {
        let output = "\x16=== RUN   TestA\n--- PASS: TestNone (0.00s)\n\x16=== PAUSE TestA\n\x16=== RUN   TestB\n\
                      \x16=== RUN   TestB/part_1\nunfinished\x16    --- FAIL: TestB/part_1 (1.00s)\n\
                      \x16--- FAIL: TestB (1.25s)\n\x16=== RUN   TestC\n\x16--- SKIP: TestC (0.00s)\n\
                      \x16=== RUN   TestD\n\x16=== PAUSE TestD\n\x16=== CONT  TestA\n\x16=== NAME  TestA\n";
        let mut results = Results::new();
        assert_eq!(read(output, &mut results), ["TestA"]);
        let expected = [
            ("TestB", Outcome::Failed),
            ("TestB/part_1", Outcome::Failed),
            ("TestC", Outcome::Skipped),
        ];
        assert_eq!(
            results,
            expected.map(|(name, outcome)| (name.to_owned(), outcome)).into()
        );
    }

    #[test]
    fn what_husk_alone_fails_needs_a_reason() {
        let results = |outcomes: [Outcome; 4]| -> Results {
            let names = ["TestA", "TestB/part", "TestC", "TestD"].map(str::to_owned);
            names.into_iter().zip(outcomes).collect()
        };
        let runc = results([Outcome::Passed, Outcome::Passed, Outcome::Failed, Outcome::Passed]);
        let husk = results([Outcome::Failed, Outcome::Skipped, Outcome::Failed, Outcome::Passed]);
        let text = "# Why\nTestB: of runc alone\nTestD: is better now";
        let comparison = compare(&runc, &husk, &explanations(text));
        assert_eq!(comparison.unexplained, ["TestA"]);
        assert_eq!(comparison.outdated, ["TestD"]);
        let lines: Vec<_> = comparison.table.lines().map(str::trim_end).collect();
        assert_eq!(
            lines,
            [
                "runc     husk",
                "failed   failed   1",
                "passed   failed   1",
                "passed   passed   1",
                "passed   skipped  1",
                "",
                "passed   failed   TestA: not explained",
                "passed   skipped  TestB/part: of runc alone",
            ]
        );
    }
}
