//! `husk images` and `husk cache prune`: what is in the image cache.

use std::io::Write;
use std::path::Path;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use husk_sandbox::artefacts;
use husk_sandbox::image::{Cache, Cached, DEFAULT_LIMIT, What, sizes};

use crate::args::{ImagesArgs, PruneArgs};
use crate::list::{aligned, rough, shortened};

/// How much of a key or digest a person sees.
const SHORT: usize = 12;

pub(crate) fn images(args: &ImagesArgs) -> Result<u8> {
    let contents = open(args.image_cache.as_deref())?
        .contents()
        .context("the image cache cannot be read")?;
    let text = if args.json {
        format!("{}\n", serde_json::to_string_pretty(&contents)?)
    } else {
        rows(&contents)
    };
    print(&text)
}

pub(crate) fn prune(args: &PruneArgs) -> Result<u8> {
    let pruned = open(args.image_cache.as_deref())?
        .prune()
        .context("the image cache cannot be pruned")?;
    let text = if args.json {
        format!("{}\n", serde_json::to_string_pretty(&pruned)?)
    } else {
        let in_use = match pruned.kept {
            0 => String::new(),
            kept => format!(", {kept} in use"),
        };
        format!("{} removed, {} freed{in_use}\n", pruned.removed, size(pruned.bytes))
    };
    print(&text)
}

fn open(dir: Option<&Path>) -> Result<Cache> {
    let dir = dir.map_or_else(artefacts::default_image_cache, Path::to_owned);
    Ok(Cache::open(&dir, DEFAULT_LIMIT)?)
}

fn print(text: &str) -> Result<u8> {
    std::io::stdout()
        .write_all(text.as_bytes())
        .context("stdout cannot be written to")?;
    Ok(0)
}

/// A table of images and root directories; layers count with the images that have them.
fn rows(contents: &[Cached]) -> String {
    let sizes = sizes(contents);
    let now = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
    let mut rows = vec![["NAME", "ID", "LAYERS", "SIZE", "USED"].map(str::to_owned)];
    for one in contents.iter().filter(|one| one.what != What::Layer) {
        let used = Duration::from_secs(one.used.max(0).unsigned_abs());
        rows.push([
            match &one.name {
                Some(name) => shortened(name),
                None => "(root directory)".into(),
            },
            one.id.chars().take(SHORT).collect(),
            match one.what {
                What::Image => one.layers.len().to_string(),
                What::Directory | What::Layer => "-".into(),
            },
            size(sizes.get(&one.id).copied().unwrap_or(one.bytes)),
            match one.in_use {
                true => "now".into(),
                false => format!("{} ago", rough(now.saturating_sub(used))),
            },
        ]);
    }
    aligned(&rows)
}

/// Bytes as people say them.
fn size(bytes: u64) -> String {
    let units = ["B", "K", "M", "G", "T"];
    let mut unit = 0;
    let mut tenths = bytes.saturating_mul(10);
    while tenths >= 10_240 && unit + 1 < units.len() {
        tenths /= 1024;
        unit += 1;
    }
    match unit {
        0 => format!("{bytes}B"),
        _ => format!("{}.{}{}", tenths / 10, tenths % 10, units[unit]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_short() {
        for (bytes, text) in [
            (0, "0B"),
            (1023, "1023B"),
            (1024, "1.0K"),
            (1 << 20, "1.0M"),
            (1_600_000_000, "1.4G"),
            (u64::MAX, "1677721.5T"),
        ] {
            assert_eq!(size(bytes), text);
        }
    }

    #[test]
    fn an_image_counts_with_its_layers() {
        let one = |what, id: &str, layers: &[&str], bytes| Cached {
            what,
            id: id.into(),
            name: (what == What::Image).then(|| "img:1".into()),
            layers: layers.iter().map(|layer| (*layer).to_owned()).collect(),
            bytes,
            used: 0,
            in_use: what == What::Image,
        };
        let text = rows(&[
            one(What::Image, "aaaaaaaaaaaaaaaaaaaa", &["sha256:1", "sha256:2"], 4096),
            one(What::Directory, "bb", &[], 2048),
            one(What::Layer, "sha256:1", &[], 1024),
            one(What::Layer, "sha256:2", &[], 3072),
        ]);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 3);
        assert!(
            lines[1].starts_with("img:1") && lines[1].contains("aaaaaaaaaaaa  2") && lines[1].contains("8.0K  now")
        );
        assert!(
            lines[2].starts_with("(root directory)") && lines[2].contains("2.0K"),
            "{text}"
        );
    }
}
