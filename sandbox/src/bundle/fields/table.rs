//! The table of docs/oci.md against the specification, the code and the tests.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use super::{Field, SPEC, check};

/// Every leaf of the JSON schema of the runtime specification 1.3.0 (`schema/config-schema.json`), and of older
/// revisions those that oci-spec knows.
const LEAVES: &str = include_str!("leaves.txt");
const TABLE: &str = include_str!("../../../../docs/oci.md");

/// A row's words: where a field is applied, and the test that shows it.
struct Row {
    applied: String,
    test: String,
}

fn rows() -> BTreeMap<String, Row> {
    let mut rows = BTreeMap::new();
    for line in TABLE.lines().filter(|line| line.starts_with("| `")) {
        let cells: Vec<_> = line.split('|').map(str::trim).collect();
        let [_, field, applied, _, test, _] = cells.as_slice() else {
            panic!("a row of another form: {line}")
        };
        let unquoted = |text: &str| text.trim_matches('`').to_owned();
        let row = Row {
            applied: (*applied).to_owned(),
            test: unquoted(test),
        };
        assert!(rows.insert(unquoted(field), row).is_none(), "{field} has two rows");
    }
    rows
}

/// A leaf's own row, or the one of its whole platform.
fn row_of<'a>(rows: &'a BTreeMap<String, Row>, leaf: &str) -> Option<&'a str> {
    let platform = leaf.split('.').next().map(|first| format!("{first}.*"));
    [leaf.to_owned(), platform?]
        .iter()
        .find_map(|name| rows.get_key_value(name))
        .map(|(name, _)| name.as_str())
}

/// Whether a field with content is accepted, going by the list in the code.
fn is_accepted(leaf: &str) -> bool {
    let mut field = &SPEC;
    for part in leaf.split('.') {
        let (name, is_list) = part.strip_suffix("[]").map_or((part, false), |name| (name, true));
        field = match field {
            Field::Object(fields) => match fields.iter().find(|(known, _)| *known == name) {
                Some((_, field)) => field,
                None => return false,
            },
            Field::Map(element) => element,
            other => return matches!(other, Field::Any),
        };
        if is_list {
            let Field::List(element) = field else { return false };
            field = element;
        }
    }
    match field {
        Field::Any => true,
        Field::List(element) | Field::Map(element) => matches!(element, Field::Any),
        Field::Text(_) | Field::Zero | Field::Object(_) => false,
    }
}

#[test]
fn every_field_of_the_specification_has_its_row() {
    let rows = rows();
    let mut used = BTreeSet::new();
    for leaf in LEAVES.lines() {
        let row = row_of(&rows, leaf).unwrap_or_else(|| panic!("docs/oci.md has no row for {leaf}"));
        used.insert(row);
    }
    let unused: Vec<_> = rows.keys().filter(|name| !used.contains(name.as_str())).collect();
    assert!(unused.is_empty(), "rows for no field: {unused:?}");
}

#[test]
fn the_table_says_what_the_code_does() {
    let rows = rows();
    for leaf in LEAVES.lines() {
        let row = &rows[row_of(&rows, leaf).unwrap()];
        let expected = match row.applied.as_str() {
            "guest" | "host" | "no effect" => true,
            "refused" => false,
            other => panic!("{leaf}: {other:?} is no word of the table"),
        };
        assert_eq!(
            is_accepted(leaf),
            expected,
            "{leaf} is {:?} in docs/oci.md",
            row.applied
        );
    }
}

/// A configuration with nothing but this value at a leaf.
fn with(leaf: &str, value: Value) -> Value {
    leaf.rsplit('.')
        .fold(value, |inner, part| match part.strip_suffix("[]") {
            Some(name) => json!({name: [inner]}),
            None => json!({part: inner}),
        })
}

#[test]
fn every_refused_field_is_named_and_no_other_is_refused() {
    let rows = rows();
    for leaf in LEAVES.lines() {
        // A text, and a number for what is refused unless it is zero.
        let refusals: Vec<_> = [json!("text"), json!(7)]
            .into_iter()
            .filter_map(|value| check(&with(leaf, value)).err())
            .map(|error| error.to_string())
            .collect();
        match rows[row_of(&rows, leaf).unwrap()].applied.as_str() {
            "refused" => {
                // The whole path, with the elements' numbers, as far as it is known: a platform is refused as a whole.
                let path = leaf.replace("[]", "[0]").replace(".*", "[\"*\"]");
                let is_named = |refusal: &String| refusal.contains(&path) || path.starts_with(named(refusal));
                assert!(!refusals.is_empty(), "{leaf} is not refused");
                assert!(refusals.iter().all(is_named), "{leaf}: {refusals:?}");
            }
            _ => assert!(refusals.is_empty(), "{leaf}: {refusals:?}"),
        }
    }
}

/// The path in a refusal.
fn named(refusal: &str) -> &str {
    let path = refusal.strip_prefix("config.json: ").unwrap();
    path.split_once(" is ").map_or(path, |(path, _)| path)
}

#[test]
fn every_test_of_the_table_exists() {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut text = String::new();
    for directory in ["tests/cases", "agent/src", "sandbox/src"] {
        read_all(&workspace.join(directory), &mut text);
    }
    for (field, row) in rows() {
        let function = format!("fn {}()", row.test);
        assert!(text.contains(&function), "{field}: there is no test {}", row.test);
    }
}

fn read_all(directory: &Path, text: &mut String) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            read_all(&path, text);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            text.push_str(&fs::read_to_string(&path).unwrap());
        }
    }
}
