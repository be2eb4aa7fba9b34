//! `husk update`: changes a container's limits.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use husk_sandbox::bundle::resources::Update;
use serde_json::{Value, json};

use crate::args::{Global, Limits, UpdateArgs};

/// The longest object that is read, in bytes.
const MAX_TEXT: u64 = 1 << 20;

pub(crate) fn update(global: &Global, args: &UpdateArgs) -> Result<u8> {
    let container = global.container(&args.id)?;
    let text = match &args.resources {
        Some(path) => read(path)?,
        None => object(&args.limits)?.to_string().into_bytes(),
    };
    container.update(&Update::parse(&text)?)?;
    Ok(0)
}

fn read(path: &Path) -> Result<Vec<u8>> {
    let failed = || format!("{} cannot be read", path.display());
    let mut text = Vec::new();
    match path.to_str() {
        Some("-") => std::io::stdin().take(MAX_TEXT).read_to_end(&mut text),
        _ => {
            let file = File::open(path).with_context(failed)?;
            file.take(MAX_TEXT).read_to_end(&mut text)
        }
    }
    .with_context(failed)?;
    Ok(text)
}

/// What the options say, in the form of `linux.resources`.
fn object(limits: &Limits) -> Result<Value> {
    let fields = [
        ("blockIO", "weight", limits.blkio_weight.map(Value::from)),
        ("cpu", "period", limits.cpu_period.map(Value::from)),
        ("cpu", "quota", limits.cpu_quota.map(Value::from)),
        ("cpu", "burst", limits.cpu_burst.map(Value::from)),
        ("cpu", "shares", limits.cpu_share.map(Value::from)),
        ("cpu", "idle", limits.cpu_idle.map(Value::from)),
        ("cpu", "cpus", limits.cpuset_cpus.clone().map(Value::from)),
        ("cpu", "mems", limits.cpuset_mems.clone().map(Value::from)),
        ("memory", "limit", limits.memory.map(Value::from)),
        ("memory", "reservation", limits.memory_reservation.map(Value::from)),
        ("memory", "swap", limits.memory_swap.map(Value::from)),
        ("pids", "limit", limits.pids_limit.map(Value::from)),
    ];
    let mut object = json!({});
    for (group, field, value) in fields {
        if let Some(value) = value {
            object[group][field] = value;
        }
    }
    ensure!(
        object.as_object().is_some_and(|object| !object.is_empty()),
        "name a limit or --resources; husk update --help shows them"
    );
    Ok(object)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::args::{Cli, Command};

    fn parse(words: &str) -> Result<Value> {
        let Command::Update(args) = Cli::try_parse_from(words.split(' ')).unwrap().command else {
            panic!()
        };
        object(&args.limits)
    }

    #[test]
    fn options_become_an_object() {
        let object = parse("husk update --cpu-quota -1 --memory 64M --memory-swap -1 --cpuset-cpus 0-1 box").unwrap();
        let expected = json!({"cpu": {"quota": -1, "cpus": "0-1"}, "memory": {"limit": 64 << 20, "swap": -1}});
        assert_eq!(object, expected);
        Update::parse(object.to_string().as_bytes()).unwrap();
        assert!(parse("husk update box").is_err());
    }
}
