//! husk among the runtimes of Kubernetes' CRI in containerd's `config.toml`.

use std::ops::Range;

use serde_json::Value;
use thiserror::Error;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::text::{append_lines, cut_lines, line_end, lines_of, same_but_for, value_at};
use super::{NAME, RUNTIME_TYPE};

/// The CRI's plugin in files of version 2.
const CRI: &str = "io.containerd.grpc.v1.cri";
/// The same in those of version 3 and later.
const CRI_RUNTIME: &str = "io.containerd.cri.v1.runtime";
/// Over the version where a file had none, so that it is known again.
const VERSION_COMMENT: &str = "# Added by husk install, with the runtime: the form of this file.";

/// Why a configuration is left as it is.
#[derive(Debug, Error)]
pub(super) enum ContainerdError {
    #[error("it is not TOML: {message} at line {line} column {column}")]
    Syntax {
        message: String,
        line: usize,
        column: usize,
    },
    #[error(
        "it is of version 1, as every file without a `version` is: convert it to version 2 or later, as `containerd config migrate` does"
    )]
    Version1,
    #[error("its `version` is {0}: 2 and later are known")]
    Version(Value),
    #[error("`{0}` is no table in it")]
    NoTable(String),
    #[error("it has a runtime of that name with another type already ({0}): rename or remove that one")]
    Another(Value),
    #[error("husk is its `default_runtime_name`: name another one first")]
    Default,
    #[error("it is written in a way in which it cannot be changed safely: edit the table `{0}` by hand")]
    ByHand(String),
}

/// The text with husk's runtime in it. `fresh` is the version of a file that says nothing yet.
pub(super) fn add(text: &str, fresh: impl FnOnce() -> u32) -> Result<String, ContainerdError> {
    let mut before = values(text)?;
    let mut base = text.to_owned();
    if says_nothing(&before) {
        let version = fresh();
        base = append_lines(text, &format!("{VERSION_COMMENT}\nversion = {version}\n"));
        before = values(&base)?;
    }
    let path = path(plugin(&before)?);
    let document = parse(&base)?;
    let place = place(&base, document.get_ref(), &path)?;
    if own_runtime(&before, &path)? {
        return Ok(base);
    }
    let after = match place.inline {
        Some((depth, table)) => insert_inline(&base, table, &key(&path[depth..])),
        None => append_lines(&base, &section(&path)),
    };
    let value = values(&after).map_err(|_| by_hand(&path))?;
    if own_runtime(&value, &path)? && same_but_for(&path, &before, &value) {
        Ok(after)
    } else {
        Err(by_hand(&path))
    }
}

/// The text without husk's runtime, wherever a version of containerd looks for it.
pub(super) fn remove(text: &str) -> Result<String, ContainerdError> {
    let mut text = text.to_owned();
    for plugin in [CRI, CRI_RUNTIME] {
        text = remove_from(&text, &path(plugin))?;
    }
    Ok(text)
}

fn remove_from(text: &str, path: &[&str; 5]) -> Result<String, ContainerdError> {
    let before = values(text)?;
    if value_at(&before, path).is_none() || !own_runtime(&before, path)? {
        return Ok(text.to_owned());
    }
    let default = [path[0], path[1], path[2], "default_runtime_name"];
    if value_at(&before, &default) == Some(&NAME.into()) {
        return Err(ContainerdError::Default);
    }
    let document = parse(text)?;
    let place = place(text, document.get_ref(), path)?;
    let (key, runtime) = place.found.ok_or_else(|| by_hand(path))?;
    let after = match place.inline {
        Some(_) => cut_inline(text, key, runtime),
        None => cut_sections(text, runtime),
    };
    let value = values(&after).map_err(|_| by_hand(path))?;
    if value_at(&value, path).is_some() || !same_but_for(path, &before, &value) {
        return Err(by_hand(path));
    }
    Ok(without_own_version(&after))
}

/// Takes out the version that [`add`] has added, if nothing else is said.
fn without_own_version(text: &str) -> String {
    let line = format!("{VERSION_COMMENT}{}version = ", line_end(text));
    let cut = text
        .rfind(&line)
        .map(|from| cut_lines(text, &lines_of(text, &(from..from + line.len()))));
    match cut {
        Some(rest) if values(&rest).is_ok_and(|values| says_nothing(&values)) => rest,
        _ => text.to_owned(),
    }
}

fn says_nothing(document: &Value) -> bool {
    document.as_object().is_some_and(serde_json::Map::is_empty)
}

fn path(plugin: &'static str) -> [&'static str; 5] {
    ["plugins", plugin, "containerd", "runtimes", NAME]
}

/// The plugin that a file's version has the CRI's runtimes in.
fn plugin(document: &Value) -> Result<&'static str, ContainerdError> {
    match document.get("version") {
        None => Err(ContainerdError::Version1),
        Some(version) => match version.as_i64() {
            Some(1) => Err(ContainerdError::Version1),
            Some(2) => Ok(CRI),
            Some(3..) => Ok(CRI_RUNTIME),
            _ => Err(ContainerdError::Version(version.clone())),
        },
    }
}

/// Whether the runtime is there; one of its name that is not husk's is an error.
fn own_runtime(document: &Value, path: &[&str]) -> Result<bool, ContainerdError> {
    match value_at(document, path) {
        None => Ok(false),
        Some(runtime) if runtime.get("runtime_type") == Some(&RUNTIME_TYPE.into()) => Ok(true),
        Some(runtime) => Err(ContainerdError::Another(runtime.clone())),
    }
}

/// What is said of the runtime.
fn settings() -> [String; 4] {
    [
        format!("runtime_type = \"{RUNTIME_TYPE}\""),
        "privileged_without_host_devices = true".to_owned(),
        "pod_annotations = [\"dev.husk.*\"]".to_owned(),
        "container_annotations = [\"dev.husk.*\"]".to_owned(),
    ]
}

fn section(path: &[&str]) -> String {
    let settings = settings().map(|setting| format!("  {setting}\n"));
    format!("[{}]\n{}", key(path), settings.concat())
}

/// A dotted key.
fn key(path: &[&str]) -> String {
    let bare = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    let quoted = path.iter().map(|name| match name.chars().all(bare) {
        true => (*name).to_owned(),
        false => format!("\"{name}\""),
    });
    quoted.collect::<Vec<_>>().join(".")
}

fn by_hand(path: &[&str]) -> ContainerdError {
    ContainerdError::ByHand(key(path))
}

fn values(text: &str) -> Result<Value, ContainerdError> {
    toml::from_str(text).map_err(|error| syntax(text, &error))
}

/// The same with the places at which everything stands.
fn parse(text: &str) -> Result<Spanned<DeTable<'_>>, ContainerdError> {
    DeTable::parse(text).map_err(|error| syntax(text, &error))
}

fn syntax(text: &str, error: &toml::de::Error) -> ContainerdError {
    let at = error.span().map_or(0, |span| span.start);
    let before = text.get(..at).unwrap_or_default();
    ContainerdError::Syntax {
        message: error.message().to_owned(),
        line: before.matches('\n').count() + 1,
        column: before.chars().rev().take_while(|c| *c != '\n').count() + 1,
    }
}

type Name<'d> = Spanned<std::borrow::Cow<'d, str>>;
type Node<'d> = Spanned<DeValue<'d>>;

/// Where in a document a path leads.
struct Place<'t, 'd> {
    /// The innermost table in braces on the way, and how many names of the path lead to it.
    inline: Option<(usize, &'t Node<'d>)>,
    /// What stands at its end.
    found: Option<(&'t Name<'d>, &'t Node<'d>)>,
}

fn place<'t, 'd>(text: &str, root: &'t DeTable<'d>, path: &[&str; 5]) -> Result<Place<'t, 'd>, ContainerdError> {
    let (mut table, mut inline) = (root, None);
    for (depth, name) in (1..path.len()).zip(path) {
        let Some((_, value)) = entry(table, name) else {
            return Ok(Place { inline, found: None });
        };
        let DeValue::Table(inner) = value.get_ref() else {
            return Err(ContainerdError::NoTable(key(&path[..depth])));
        };
        if is_inline(text, value) {
            inline = Some((depth, value));
        }
        table = inner;
    }
    Ok(Place {
        inline,
        found: entry(table, NAME),
    })
}

fn entry<'t, 'd>(table: &'t DeTable<'d>, name: &str) -> Option<(&'t Name<'d>, &'t Node<'d>)> {
    table.iter().find(|(key, _)| key.get_ref() == name)
}

/// A table's place is that of its braces, of its header in brackets, or else of the key that first mentions it.
fn is_inline(text: &str, value: &Node) -> bool {
    text[value.span()].starts_with('{')
}

/// Puts the runtime behind everything in a table in braces.
fn insert_inline(text: &str, table: &Node, key: &str) -> String {
    let entry = format!("{key} = {{ {} }}", settings().join(", "));
    let start = table.span().start + 1;
    let (before, after) = match end(table.get_ref()) {
        Some(last) => text.split_at(last),
        None => text.split_at(start),
    };
    let comma = if before.len() == start { "" } else { ", " };
    format!("{before}{comma}{entry}{after}")
}

/// Where the last of a table's values ends.
fn end(value: &DeValue) -> Option<usize> {
    let DeValue::Table(table) = value else { return None };
    table
        .values()
        .map(|value| end(value.get_ref()).unwrap_or(0).max(value.span().end))
        .max()
}

/// Takes the runtime out of a table in braces, with the comma that it needed.
fn cut_inline(text: &str, key: &Name, runtime: &Node) -> String {
    let to = end(runtime.get_ref()).unwrap_or(0).max(runtime.span().end);
    let from = text[..key.span().start].rfind([',', '{']).unwrap_or(0);
    if text[from..].starts_with(',') {
        return format!("{}{}", &text[..from], &text[to..]);
    }
    let after = text[to..].trim_start().strip_prefix(',').unwrap_or(&text[to..]);
    format!("{}{after}", &text[..=from])
}

/// Takes out the lines of a runtime that has a table with a header, or several, or dotted keys.
fn cut_sections(text: &str, runtime: &Node) -> String {
    let mut lines = Vec::new();
    collect_lines(text, runtime, &mut lines);
    lines.sort_by_key(|part| part.start);
    let mut parts: Vec<Range<usize>> = Vec::new();
    for part in lines {
        match parts.last_mut() {
            Some(last) if part.start <= last.end || text[last.end..part.start].trim().is_empty() => {
                last.end = last.end.max(part.end);
            }
            _ => parts.push(part),
        }
    }
    let all = parts.iter().rev();
    all.fold(text.to_owned(), |text, part| cut_lines(&text, part))
}

fn collect_lines(text: &str, value: &Node, lines: &mut Vec<Range<usize>>) {
    let table = value.get_ref().as_table();
    if table.is_none() || text[value.span()].starts_with(['{', '[']) {
        lines.push(lines_of(text, &value.span()));
    }
    match value.get_ref() {
        DeValue::Table(table) => table.values().for_each(|value| collect_lines(text, value, lines)),
        // Of an array of tables: each has a header of its own.
        DeValue::Array(array) => {
            let tables = array.iter().filter(|value| value.get_ref().is_table());
            tables.for_each(|value| collect_lines(text, value, lines));
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests;
