//! `husk images` and `husk cache prune`: what is in the image cache.

use std::path::Path;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use husk_sandbox::artefacts;
use husk_sandbox::image::{Cache, Cached, DEFAULT_LIMIT, What, sizes};

use crate::answer;
use crate::args::{ImagesArgs, PruneArgs};
use crate::table::{aligned, rough, shortened, size};

/// How much of a key or digest a person sees.
const SHORT: usize = 12;

pub(crate) fn images(args: &ImagesArgs) -> Result<u8> {
    let contents = open(args.image_cache.as_deref())?
        .contents()
        .context("the image cache cannot be read")?;
    match args.json {
        true => answer::json(&contents)?,
        false => answer::text(&rows(&contents))?,
    }
    Ok(0)
}

pub(crate) fn prune(args: &PruneArgs) -> Result<u8> {
    let pruned = open(args.image_cache.as_deref())?
        .prune()
        .context("the image cache cannot be pruned")?;
    if args.json {
        answer::json(&pruned)?;
        return Ok(0);
    }
    let in_use = match pruned.kept {
        0 => String::new(),
        kept => format!(", {kept} in use"),
    };
    let (removed, freed) = (pruned.removed, size(pruned.bytes));
    answer::text(&format!("{removed} removed, {freed} freed{in_use}\n"))?;
    Ok(0)
}

fn open(dir: Option<&Path>) -> Result<Cache> {
    let dir = dir.map_or_else(artefacts::default_image_cache, Path::to_owned);
    Ok(Cache::open(&dir, DEFAULT_LIMIT)?)
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

#[cfg(test)]
mod tests {
    use super::*;

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
