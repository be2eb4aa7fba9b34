//! Changes of a configuration's text that leave the rest of it as it is.

use std::ops::Range;

use serde_json::{Map, Value};

/// How the lines of a text end.
pub(super) fn line_end(text: &str) -> &'static str {
    match text.split_once('\n') {
        Some((first, _)) if first.ends_with('\r') => "\r\n",
        _ => "\n",
    }
}

/// Adds lines behind all others and an empty one between.
///
/// A text whose last line does not end has none that does afterwards either, so that [`cut_lines`] gives it back.
pub(super) fn append_lines(text: &str, lines: &str) -> String {
    let end = line_end(text);
    let lines = lines.trim_end().replace('\n', end);
    match text {
        "" => format!("{lines}{end}"),
        _ if text.ends_with('\n') => format!("{text}{end}{lines}{end}"),
        _ => format!("{text}{end}{end}{lines}"),
    }
}

/// The whole lines that a part of a text stands in.
pub(super) fn lines_of(text: &str, part: &Range<usize>) -> Range<usize> {
    let start = text[..part.start].rfind('\n').map_or(0, |at| at + 1);
    let end = text[part.end..].find('\n').map_or(text.len(), |at| part.end + at + 1);
    start..end
}

/// Takes whole lines out, and an empty one before them.
pub(super) fn cut_lines(text: &str, lines: &Range<usize>) -> String {
    let (mut before, cut, after) = (&text[..lines.start], &text[lines.clone()], &text[lines.end..]);
    if let Some(rest) = without_line_end(before).filter(|rest| rest.ends_with('\n')) {
        before = rest;
    }
    if after.is_empty() && !cut.ends_with('\n') {
        before = without_line_end(before).unwrap_or(before);
    }
    format!("{before}{after}")
}

fn without_line_end(text: &str) -> Option<&str> {
    text.strip_suffix("\r\n").or_else(|| text.strip_suffix('\n'))
}

/// The lines that a change takes away and those that it brings, each with its mark.
pub(super) fn changed_lines(before: &str, after: &str) -> String {
    let (before, after): (Vec<_>, Vec<_>) = (before.lines().collect(), after.lines().collect());
    let same = before
        .iter()
        .zip(&after)
        .take_while(|(one, other)| one == other)
        .count();
    let (before, after) = (&before[same..], &after[same..]);
    let pairs = before.iter().rev().zip(after.iter().rev());
    let behind = pairs.take_while(|(one, other)| one == other).count();
    let removed = before[..before.len() - behind].iter().map(|line| format!("-{line}\n"));
    let added = after[..after.len() - behind].iter().map(|line| format!("+{line}\n"));
    removed.chain(added).collect()
}

/// Whether two documents differ in nothing but the value at `path`, and in tables on the way to it that hold nothing else.
pub(super) fn same_but_for(path: &[&str], one: &Value, other: &Value) -> bool {
    let without = |document: &Value| {
        let mut document = document.clone();
        if let Value::Object(table) = &mut document {
            remove(table, path);
        }
        document
    };
    without(one) == without(other)
}

/// Removes the value at `path`, and each table on the way that is empty then.
fn remove(table: &mut Map<String, Value>, path: &[&str]) {
    let Some((name, below)) = path.split_first() else {
        return;
    };
    let empty = match table.get_mut(*name) {
        Some(_) if below.is_empty() => true,
        Some(Value::Object(inner)) => {
            remove(inner, below);
            inner.is_empty()
        }
        _ => false,
    };
    if empty {
        table.remove(*name);
    }
}

/// The value at `path`.
pub(super) fn value_at<'v>(document: &'v Value, path: &[&str]) -> Option<&'v Value> {
    path.iter().try_fold(document, |value, name| value.get(name))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn lines_that_are_appended_can_be_cut() {
        for text in ["", "a", "a\n", "a\n\n", "\n", "a\r\nb\r\n", "a\r\nb", "\n\n\n"] {
            let appended = append_lines(text, "x\ny\n");
            assert_eq!(appended.lines().filter(|line| *line == "x").count(), 1, "{text:?}");
            assert_eq!(appended.contains('\r'), text.contains('\r'), "{text:?}");
            let (from, to) = (appended.find('x').unwrap(), appended.find('y').unwrap());
            assert_eq!(cut_lines(&appended, &lines_of(&appended, &(from..to))), text);
        }
        assert_eq!(cut_lines("a\nx\nb\n", &(2..4)), "a\nb\n");
        assert_eq!(cut_lines("a\n\nx\n\nb\n", &(3..5)), "a\n\nb\n");
    }

    #[test]
    fn a_change_is_shown_with_its_lines_alone() {
        assert_eq!(changed_lines("a\nb\nc\n", "a\nb\nx\nc\n"), "+x\n");
        assert_eq!(changed_lines("a\nb\nc\n", "a\nc\n"), "-b\n");
        assert_eq!(changed_lines("a = {}\n", "a = {b = 1}\n"), "-a = {}\n+a = {b = 1}\n");
        assert_eq!(changed_lines("a\na\n", "a\na\na\n"), "+a\n");
        assert_eq!(changed_lines("a", "a"), "");
    }

    #[test]
    fn documents_are_compared_without_what_changes() {
        let path = ["a", "b"];
        assert!(same_but_for(&path, &json!({"c": 1}), &json!({"c": 1, "a": {"b": 2}})));
        assert!(same_but_for(
            &path,
            &json!({"a": {"c": 1}}),
            &json!({"a": {"c": 1, "b": 2}})
        ));
        assert!(!same_but_for(&path, &json!({"a": {"c": 1}}), &json!({"a": {"b": 2}})));
        assert!(!same_but_for(&path, &json!({"c": 1}), &json!({"c": 2, "a": {"b": 2}})));
        assert_eq!(value_at(&json!({"a": {"b": 2}}), &path), Some(&json!(2)));
    }
}
