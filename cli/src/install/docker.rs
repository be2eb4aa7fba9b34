//! husk among the runtimes of docker's `daemon.json`.

use jsonc_parser::ast::{Object, ObjectProp, Value as Node};
use jsonc_parser::common::Ranged;
use jsonc_parser::{CollectOptions, ParseOptions, parse_to_ast};
use serde_json::Value;
use thiserror::Error;

use super::text::{line_end, same_but_for, value_at};
use super::{NAME, RUNTIME_TYPE};

const PATH: [&str; 2] = ["runtimes", NAME];

/// Why a configuration is left as it is.
#[derive(Debug, Error)]
pub(super) enum DockerError {
    #[error("it is not JSON")]
    Syntax(#[from] serde_json::Error),
    #[error("it holds something else than an object")]
    NoObject,
    #[error("`runtimes` is no object in it")]
    Runtimes,
    #[error("it has a runtime of that name with another type already ({0}): rename or remove that one")]
    Another(Value),
    #[error("husk is its `default-runtime`: name another one first")]
    Default,
    #[error("it is written in a way in which it cannot be changed safely: edit `runtimes` by hand")]
    ByHand,
}

/// The text with husk's runtime in it.
pub(super) fn add(text: &str) -> Result<String, DockerError> {
    if text.trim().is_empty() {
        return Ok(format!("{text}{}", fresh(line_end(text))));
    }
    let before = parse(text)?;
    if own_runtime(&before)? {
        return Ok(text.to_owned());
    }
    let root = nodes(text)?;
    let (indent, end) = (indent(text, &root), line_end(text));
    let after = match property(&root, PATH[0]) {
        None => insert(text, &root, &runtimes_entry(indent, end)),
        Some(runtimes) => {
            let runtimes = runtimes.value.as_object().ok_or(DockerError::Runtimes)?;
            let own = self::indent(text, runtimes);
            insert(
                text,
                runtimes,
                &runtime_entry(own, indent.or(own).unwrap_or_default(), end),
            )
        }
    };
    let value = parse(&after).map_err(|_| DockerError::ByHand)?;
    if own_runtime(&value)? && same_but_for(&PATH, &before, &value) {
        Ok(after)
    } else {
        Err(DockerError::ByHand)
    }
}

/// The text without husk's runtime.
pub(super) fn remove(text: &str) -> Result<String, DockerError> {
    if text.trim().is_empty() {
        return Ok(text.to_owned());
    }
    let before = parse(text)?;
    if !own_runtime(&before)? {
        return Ok(text.to_owned());
    }
    if value_at(&before, &["default-runtime"]) == Some(&NAME.into()) {
        return Err(DockerError::Default);
    }
    if let Some(rest) = text.strip_suffix(&fresh(line_end(text))) {
        return Ok(rest.to_owned());
    }
    let root = nodes(text)?;
    let runtimes = property(&root, PATH[0]).ok_or(DockerError::ByHand)?;
    let whole = runtimes.text(text) == runtimes_entry(indent(text, &root), line_end(text));
    let after = if whole {
        cut(text, &root, runtimes)
    } else {
        let inner = runtimes.value.as_object().ok_or(DockerError::Runtimes)?;
        cut(text, inner, property(inner, NAME).ok_or(DockerError::ByHand)?)
    };
    let value = parse(&after).map_err(|_| DockerError::ByHand)?;
    if value_at(&value, &PATH).is_none() && same_but_for(&PATH, &before, &value) {
        Ok(after)
    } else {
        Err(DockerError::ByHand)
    }
}

/// Whether the runtime is there; one of its name that is not husk's is an error.
fn own_runtime(document: &Value) -> Result<bool, DockerError> {
    match document.get(PATH[0]) {
        None => return Ok(false),
        Some(runtimes) if !runtimes.is_object() => return Err(DockerError::Runtimes),
        Some(_) => {}
    }
    match value_at(document, &PATH) {
        None => Ok(false),
        Some(runtime) if runtime.get("runtimeType") == Some(&RUNTIME_TYPE.into()) => Ok(true),
        Some(runtime) => Err(DockerError::Another(runtime.clone())),
    }
}

fn parse(text: &str) -> Result<Value, DockerError> {
    let value: Value = serde_json::from_str(text)?;
    if value.is_object() {
        Ok(value)
    } else {
        Err(DockerError::NoObject)
    }
}

/// The same with the places at which everything stands.
fn nodes(text: &str) -> Result<Object<'_>, DockerError> {
    let parsed = parse_to_ast(text, &CollectOptions::default(), &ParseOptions::default());
    match parsed.map(|parsed| parsed.value) {
        Ok(Some(Node::Object(root))) => Ok(root),
        _ => Err(DockerError::ByHand),
    }
}

/// A property of an object: of several with one name the last counts, as it does for docker.
fn property<'o, 'a>(object: &'o Object<'a>, name: &str) -> Option<&'o ObjectProp<'a>> {
    object.properties.iter().rev().find(|one| one.name.as_str() == name)
}

/// What stands before an object's properties, if each has a line of its own.
fn indent<'t>(text: &'t str, object: &Object) -> Option<&'t str> {
    let before = &text[object.start() + 1..object.properties.first()?.start()];
    let (_, indent) = before.rsplit_once('\n')?;
    Some(indent)
}

/// A whole file.
fn fresh(end: &str) -> String {
    format!("{{{end}  {}{end}}}{end}", runtimes_entry(Some("  "), end))
}

/// The property of a file that has no runtimes yet. The one-line form has spaces that [`runtime_entry`] never makes, so that
/// what was written whole is known again.
fn runtimes_entry(indent: Option<&str>, end: &str) -> String {
    match indent {
        Some(indent) => {
            let inner = format!("{indent}{indent}");
            let runtime = runtime_entry(Some(&inner), indent, end);
            format!("\"{}\": {{{end}{inner}{runtime}{end}{indent}}}", PATH[0])
        }
        None => format!("\"{}\": {{ {} }}", PATH[0], runtime_entry(None, "", end)),
    }
}

/// The property of `runtimes`.
fn runtime_entry(indent: Option<&str>, unit: &str, end: &str) -> String {
    let what = format!("\"runtimeType\": \"{RUNTIME_TYPE}\"");
    match indent {
        Some(indent) => format!("\"{NAME}\": {{{end}{indent}{unit}{what}{end}{indent}}}"),
        None => format!("\"{NAME}\": {{{what}}}"),
    }
}

/// Puts a property behind an object's others.
fn insert(text: &str, object: &Object, entry: &str) -> String {
    let (at, before) = match (object.properties.last(), indent(text, object)) {
        (None, _) => (object.start() + 1, String::new()),
        (Some(last), None) => (last.end(), ", ".to_owned()),
        (Some(last), Some(indent)) => (last.end(), format!(",{}{indent}", line_end(text))),
    };
    format!("{}{before}{entry}{}", &text[..at], &text[at..])
}

/// Takes a property out of an object, with the comma that it needed.
fn cut(text: &str, object: &Object, property: &ObjectProp) -> String {
    let before = object.properties.iter().rev().find(|one| one.end() <= property.start());
    let behind = object.properties.iter().find(|one| one.start() >= property.end());
    let (from, to) = match (before, behind) {
        (Some(before), _) => (before.end(), property.end()),
        (None, Some(behind)) => (property.start(), behind.start()),
        (None, None) => (object.start() + 1, property.end()),
    };
    format!("{}{}", &text[..from], &text[to..])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    const USUAL: &str = "{\n  \"log-driver\": \"json-file\",\n  \"data-root\": \"/srv\"\n}\n";

    #[test]
    fn a_missing_file_is_made() {
        let text = add("").unwrap();
        assert_eq!(
            text,
            "{\n  \"runtimes\": {\n    \"husk\": {\n      \"runtimeType\": \"io.containerd.husk.v2\"\n    }\n  }\n}\n"
        );
        assert_eq!(add(&text).unwrap(), text);
        assert_eq!(remove(&text).unwrap(), "");
        assert_eq!(remove("").unwrap(), "");
    }

    #[test]
    fn other_keys_keep_values_order_and_layout() {
        let text = add(USUAL).unwrap();
        assert!(
            text.starts_with(
                "{\n  \"log-driver\": \"json-file\",\n  \"data-root\": \"/srv\",\n  \"runtimes\": {\n    \"husk\": {\n      \"r"
            ),
            "{text}"
        );
        assert_eq!(remove(&text).unwrap(), USUAL);
        let runtimes = "{\n\t\"runtimes\": {\n\t\t\"kata\": {\"runtimeType\": \"k\"}\n\t},\n\t\"debug\": true\n}";
        let text = add(runtimes).unwrap();
        assert!(
            text.contains("\"k\"},\n\t\t\"husk\": {\n\t\t\t\"runtimeType\": \"io.containerd.husk.v2\"\n\t\t}\n\t},\n"),
            "{text}"
        );
        assert_eq!(remove(&text).unwrap(), runtimes);
    }

    #[test]
    fn what_somebody_wrote_is_taken_out_as_well() {
        for (text, left) in [
            (
                r#"{"runtimes":{"husk":{"runtimeType":"io.containerd.husk.v2"},"a":{}}}"#,
                r#"{"runtimes":{"a":{}}}"#,
            ),
            (
                r#"{"runtimes":{"husk":{"runtimeType":"io.containerd.husk.v2","options":{}}}}"#,
                r#"{"runtimes":{}}"#,
            ),
        ] {
            assert_eq!(add(text).unwrap(), text);
            assert_eq!(remove(text).unwrap(), left);
        }
    }

    #[test]
    fn what_cannot_be_changed_is_an_error() {
        let fails = |text| match add(text) {
            Err(error) => format!("{:#}", anyhow::Error::from(error)),
            Ok(text) => panic!("{text}"),
        };
        assert!(
            fails("{\n  \"a\": 1,\n}").contains("line 3 column 1"),
            "{}",
            fails("{\n  \"a\": 1,\n}")
        );
        assert!(fails("[]").contains("object"));
        assert!(fails(r#"{"runtimes": []}"#).contains("`runtimes`"));
        assert!(fails(r#"{"runtimes": {"husk": {"path": "/x"}}}"#).contains("/x"));
        let default = add(r#"{"default-runtime": "husk"}"#).unwrap();
        assert!(matches!(remove(&default), Err(DockerError::Default)));
        assert!(matches!(remove(r#"{"runtimes": 1}"#), Err(DockerError::Runtimes)));
    }

    /// Any JSON without a runtime of husk's.
    fn document() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(json!(null)),
            any::<bool>().prop_map(Value::from),
            any::<i32>().prop_map(Value::from),
            "\\PC{0,6}".prop_map(Value::from)
        ];
        let any = leaf.prop_recursive(3, 16, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::btree_map("[a-z,{}\"]{0,4}", inner, 0..4)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        });
        let table = prop::collection::btree_map("[a-z\\-]{0,5}", any, 0..4);
        let runtimes = prop::option::of(table.clone());
        (table, runtimes).prop_map(|(mut table, runtimes)| {
            table.remove("runtimes");
            let runtimes = runtimes.map(|mut runtimes| {
                runtimes.remove(NAME);
                Value::Object(runtimes.into_iter().collect())
            });
            table.extend(runtimes.map(|runtimes| ("runtimes".to_owned(), runtimes)));
            Value::Object(table.into_iter().collect())
        })
    }

    proptest! {
        #[test]
        fn install_and_undo_give_the_same_bytes(value in document(), pretty: bool, windows: bool, newline: bool) {
            let mut text = if pretty { serde_json::to_string_pretty(&value).unwrap() } else { value.to_string() };
            if newline {
                text.push('\n');
            }
            if windows {
                text = text.replace('\n', "\r\n");
            }
            let added = add(&text).unwrap();
            prop_assert!(own_runtime(&parse(&added).unwrap()).unwrap());
            prop_assert_eq!(add(&added).unwrap(), added.clone());
            prop_assert_eq!(remove(&added).unwrap(), text);
        }
    }
}
