//! Changes of JSON documents, so that most inputs are nearly what they should be.

use arbitrary::{Result, Unstructured};
use serde_json::{Map, Value};

/// The most changes of one document.
const MAX_CHANGES: usize = 8;
/// What is put in the place of something else.
const STRINGS: [&str; 16] = [
    "",
    "/",
    "..",
    "a/../../b",
    "/proc",
    "rslave",
    "CAP_ALL",
    "SCMP_ACT_ERRNO",
    "net",
    "65536",
    "-1",
    "\u{0}",
    "c",
    "*",
    "tmpfs",
    "size=1k",
];
const NUMBERS: [i64; 10] = [
    0,
    1,
    -1,
    2,
    65_535,
    4_294_967_295,
    4_294_967_296,
    i64::MAX,
    i64::MIN,
    1000,
];

/// Changes a document as the script says.
pub fn change(document: &mut Value, script: &mut Unstructured<'_>) -> Result<()> {
    for _ in 0..MAX_CHANGES {
        if script.is_empty() {
            break;
        }
        change_one(document, script)?;
    }
    Ok(())
}

/// Goes down to a place, seldom less deep than it is, and changes what is there.
fn change_one(place: &mut Value, script: &mut Unstructured<'_>) -> Result<()> {
    if !script.ratio(1, 8)? {
        match place {
            Value::Object(members) if !members.is_empty() => {
                let index = script.choose_index(members.len())?;
                if let Some(member) = members.values_mut().nth(index) {
                    return change_one(member, script);
                }
            }
            Value::Array(elements) if !elements.is_empty() => {
                let index = script.choose_index(elements.len())?;
                return change_one(&mut elements[index], script);
            }
            _ => {}
        }
    }
    match (script.int_in_range(0..=9_u8)?, &mut *place) {
        (0, Value::Object(members)) => {
            let key = members.keys().nth(script.choose_index(members.len().max(1))?).cloned();
            key.and_then(|key| members.remove(&key));
        }
        (1, Value::Object(members)) => {
            members.insert(string(script)?, value(script)?);
        }
        (0, Value::Array(elements)) => drop(elements.pop()),
        (1 | 2, Value::Array(elements)) => {
            let element = match elements.last() {
                Some(last) if script.arbitrary()? => last.clone(),
                _ => value(script)?,
            };
            elements.push(element);
        }
        (3 | 4, Value::Number(_)) => *place = (*script.choose(&NUMBERS)?).into(),
        (3..=6, Value::String(text)) => *text = string(script)?,
        _ => *place = value(script)?,
    }
    Ok(())
}

fn value(script: &mut Unstructured<'_>) -> Result<Value> {
    Ok(match script.int_in_range(0..=9_u8)? {
        0 => Value::Null,
        1 => script.arbitrary::<bool>()?.into(),
        2 => (*script.choose(&NUMBERS)?).into(),
        3 => script.arbitrary::<i64>()?.into(),
        4 => Value::Array(Vec::new()),
        5 => Value::Object(Map::new()),
        6 => u64::MAX.into(),
        _ => string(script)?.into(),
    })
}

fn string(script: &mut Unstructured<'_>) -> Result<String> {
    if script.arbitrary()? {
        return Ok((*script.choose(&STRINGS)?).into());
    }
    let length = script.int_in_range(0..=24)?;
    let bytes = script.bytes(length.min(script.len()))?;
    Ok(String::from_utf8_lossy(bytes).into_owned())
}
