//! Configuration fragments: reading them, merging them, and checking that a built
//! `.config` honours every option of theirs.
//!
//! Kconfig drops what it does not know and overrides what does not fit, without a
//! word. A kernel that lost an option that way boots and then fails in somebody's
//! container, so each line of a fragment is a demand: [`Config::check`].

use std::collections::HashMap;
use std::fmt;

/// A configuration fragment: some options of one purpose, with comments.
#[derive(Debug, Clone)]
pub struct Fragment {
    /// File name, for messages.
    pub name: String,
    /// The text in Kconfig's own format.
    pub text: String,
}

/// The fragments of the guest's kernel, in the order in which they are read best.
pub fn embedded() -> Vec<Fragment> {
    macro_rules! fragments {
        ($($name:literal),* $(,)?) => {
            vec![$(Fragment {
                name: $name.to_owned(),
                text: include_str!(concat!("../config/", $name)).to_owned(),
            }),*]
        };
    }
    fragments![
        "base.config",
        "memory.config",
        "boot.config",
        "machine.config",
        "virtio.config",
        "filesystems.config",
        "namespaces-cgroups.config",
        "network.config",
        "security.config",
        "debug-off.config",
    ]
}

/// What a fragment wants of an option.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// `CONFIG_X=value`, the value as written (strings with their quotes).
    Set(String),
    /// `# CONFIG_X is not set`.
    Unset,
}

/// One option of a fragment, and where it was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wish {
    /// The option's name with its `CONFIG_` prefix.
    pub option: String,
    /// The value asked for.
    pub value: Value,
    /// The fragment's file name.
    pub fragment: String,
    /// The line in it, from 1.
    pub line: usize,
}

impl fmt::Display for Wish {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.value {
            Value::Set(value) => write!(f, "{}={value}", self.option),
            Value::Unset => write!(f, "# {} is not set", self.option),
        }
    }
}

/// What is wrong with the fragments or with what became of them.
#[derive(Debug, thiserror::Error)]
pub enum FragmentError {
    /// A line is neither empty, nor a comment, nor an option.
    #[error("{fragment}:{line}: neither `CONFIG_X=value` nor a comment: `{text}`")]
    NotAnOption {
        /// The fragment's file name.
        fragment: String,
        /// The line in it, from 1.
        line: usize,
        /// The line itself.
        text: String,
    },
    /// A comment that begins like an unset option but does not end like one.
    #[error("{fragment}:{line}: an unset option reads `# CONFIG_X is not set`, not `{text}`")]
    MalformedUnset {
        /// The fragment's file name.
        fragment: String,
        /// The line in it, from 1.
        line: usize,
        /// The line itself.
        text: String,
    },
    /// `=n` is accepted by Kconfig, but two spellings of one thing hide duplicates;
    /// `=m` can never hold, as the guest has no modules.
    #[error("{fragment}:{line}: `{text}`: write `# CONFIG_X is not set` for n; modules (m) do not exist")]
    ModuleOrNo {
        /// The fragment's file name.
        fragment: String,
        /// The line in it, from 1.
        line: usize,
        /// The line itself.
        text: String,
    },
    /// An option occurs twice.
    #[error("{fragment}:{line}: {option} is already in {first_fragment}:{first_line}; one place decides")]
    Duplicate {
        /// The option.
        option: String,
        /// The fragment of the second occurrence.
        fragment: String,
        /// Its line.
        line: usize,
        /// The fragment of the first occurrence.
        first_fragment: String,
        /// Its line.
        first_line: usize,
    },
    /// The built configuration differs from what was asked for.
    #[error("the kernel's configuration does not honour the fragments:{}", list(.0))]
    Dishonoured(Vec<Dishonoured>),
}

fn list(found: &[Dishonoured]) -> String {
    found.iter().map(|one| format!("\n  {one}")).collect()
}

/// An option that the built configuration does not honour.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dishonoured {
    /// What was asked for, and where.
    pub wish: Wish,
    /// What the configuration says; `None` if it does not know the option or what the
    /// option depends on is off.
    pub got: Option<Value>,
}

impl fmt::Display for Dishonoured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Wish {
            option,
            value,
            fragment,
            line,
        } = &self.wish;
        write!(f, "{fragment}:{line}: {option}: wanted ")?;
        match value {
            Value::Set(value) => write!(f, "{value}")?,
            Value::Unset => write!(f, "not set")?,
        }
        match &self.got {
            Some(Value::Set(got)) => write!(f, ", got {got}"),
            Some(Value::Unset) => write!(f, ", got not set"),
            None => {
                write!(f, ", got nothing (this kernel lacks it, or what it depends on is off)")
            }
        }
    }
}

/// The merged fragments.
#[derive(Debug, Clone)]
pub struct Config {
    wishes: Vec<Wish>,
}

impl Config {
    /// Reads and merges fragments.
    ///
    /// # Errors
    /// A line that is not understood, or an option that occurs twice.
    pub fn merge(fragments: &[Fragment]) -> Result<Self, FragmentError> {
        let mut wishes: Vec<Wish> = Vec::new();
        let mut seen: HashMap<String, usize> = HashMap::new();
        for fragment in fragments {
            for wish in parse(fragment)? {
                if let Some(&index) = seen.get(&wish.option) {
                    let first = &wishes[index];
                    return Err(FragmentError::Duplicate {
                        option: wish.option,
                        fragment: wish.fragment,
                        line: wish.line,
                        first_fragment: first.fragment.clone(),
                        first_line: first.line,
                    });
                }
                seen.insert(wish.option.clone(), wishes.len());
                wishes.push(wish);
            }
        }
        Ok(Self { wishes })
    }

    /// The options in the fragments' order, one a line, for `KCONFIG_ALLCONFIG`.
    pub fn text(&self) -> String {
        self.wishes.iter().map(|wish| format!("{wish}\n")).collect()
    }

    /// The options alone, sorted: equal for fragments that ask for the same, however
    /// they are divided, ordered and commented.
    pub fn canonical(&self) -> String {
        let mut lines: Vec<String> = self.wishes.iter().map(Wish::to_string).collect();
        lines.sort_unstable();
        lines.join("\n")
    }

    /// Checks that the text of a `.config` honours every option.
    ///
    /// # Errors
    /// [`FragmentError::Dishonoured`] with all options that are not as asked for.
    pub fn check(&self, dot_config: &str) -> Result<(), FragmentError> {
        let built = parse_dot_config(dot_config);
        let found: Vec<Dishonoured> = self
            .wishes
            .iter()
            .filter_map(|wish| {
                let got = built.get(wish.option.as_str());
                let honoured = match (&wish.value, got) {
                    // Kconfig leaves out an option whose dependencies are off: not set.
                    (Value::Unset, None) => true,
                    (wanted, Some(got)) => wanted == got,
                    (Value::Set(_), None) => false,
                };
                (!honoured).then(|| Dishonoured {
                    wish: wish.clone(),
                    got: got.cloned(),
                })
            })
            .collect();
        if found.is_empty() {
            Ok(())
        } else {
            Err(FragmentError::Dishonoured(found))
        }
    }
}

/// Counts the options of a `.config` that are `=y`.
pub fn count_yes(dot_config: &str) -> usize {
    dot_config
        .lines()
        .filter(|line| line.starts_with("CONFIG_") && line.ends_with("=y"))
        .count()
}

fn parse(fragment: &Fragment) -> Result<Vec<Wish>, FragmentError> {
    let mut wishes = Vec::new();
    for (index, raw) in fragment.text.lines().enumerate() {
        let text = raw.trim_end();
        let place = || (fragment.name.clone(), index + 1, text.to_owned());
        let (option, value) = if text.is_empty() {
            continue;
        } else if text.starts_with("# CONFIG_") {
            let Some(option) = unset_option(text) else {
                let (fragment, line, text) = place();
                return Err(FragmentError::MalformedUnset { fragment, line, text });
            };
            (option, Value::Unset)
        } else if text.starts_with('#') {
            continue;
        } else {
            let Some((option, value)) = set_option(text) else {
                let (fragment, line, text) = place();
                return Err(FragmentError::NotAnOption { fragment, line, text });
            };
            if matches!(value, "n" | "m") {
                let (fragment, line, text) = place();
                return Err(FragmentError::ModuleOrNo { fragment, line, text });
            }
            (option, Value::Set(value.to_owned()))
        };
        wishes.push(Wish {
            option: option.to_owned(),
            value,
            fragment: fragment.name.clone(),
            line: index + 1,
        });
    }
    Ok(wishes)
}

fn parse_dot_config(text: &str) -> HashMap<&str, Value> {
    text.lines()
        .filter_map(|line| match set_option(line) {
            Some((option, value)) => Some((option, Value::Set(value.to_owned()))),
            None => unset_option(line).map(|option| (option, Value::Unset)),
        })
        .collect()
}

fn set_option(line: &str) -> Option<(&str, &str)> {
    let (option, value) = line.split_once('=')?;
    (is_option_name(option) && !value.is_empty()).then_some((option, value))
}

fn unset_option(line: &str) -> Option<&str> {
    let option = line.strip_prefix("# ")?.strip_suffix(" is not set")?;
    is_option_name(option).then_some(option)
}

fn is_option_name(name: &str) -> bool {
    name.strip_prefix("CONFIG_")
        .is_some_and(|rest| !rest.is_empty() && rest.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn fragment(name: &str, text: &str) -> Fragment {
        Fragment {
            name: name.to_owned(),
            text: text.to_owned(),
        }
    }

    fn merge_one(text: &str) -> Result<Config, FragmentError> {
        Config::merge(&[fragment("a.config", text)])
    }

    #[test]
    fn the_embedded_fragments_are_well_formed_and_complete() {
        let config = Config::merge(&embedded()).unwrap();
        assert!(config.wishes.len() > 200, "{}", config.wishes.len());
        let here = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("config");
        let mut files: Vec<String> = std::fs::read_dir(here)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        let mut names: Vec<String> = embedded().into_iter().map(|f| f.name).collect();
        files.sort();
        names.sort();
        assert_eq!(files, names, "config/ and the list of embedded fragments differ");
    }

    #[test]
    fn merging_keeps_values_strings_and_places() {
        let config = Config::merge(&[
            fragment("a.config", "# why\n\nCONFIG_A=y\n# CONFIG_B is not set\n"),
            fragment("b.config", "CONFIG_CMDLINE=\"a=b c\"  \nCONFIG_SHIFT=16\n"),
        ])
        .unwrap();
        assert_eq!(
            config.text(),
            "CONFIG_A=y\n# CONFIG_B is not set\nCONFIG_CMDLINE=\"a=b c\"\nCONFIG_SHIFT=16\n"
        );
        assert_eq!(
            (config.wishes[3].fragment.as_str(), config.wishes[3].line),
            ("b.config", 2)
        );
    }

    #[test]
    fn malformed_lines_are_named() {
        for (text, message) in [
            ("CONFIG_A", "a.config:1: neither"),
            ("A=y", "a.config:1: neither"),
            ("CONFIG_=y", "a.config:1: neither"),
            ("CONFIG_A=", "a.config:1: neither"),
            (" CONFIG_A=y", "a.config:1: neither"),
            ("\n# CONFIG_A is not st", "a.config:2: an unset option"),
            ("# CONFIG_A=y", "a.config:1: an unset option"),
            ("CONFIG_A=n", "a.config:1: `CONFIG_A=n`"),
            ("CONFIG_A=m", "modules (m) do not exist"),
        ] {
            let error = merge_one(text).unwrap_err().to_string();
            assert!(error.contains(message), "{text:?}: {error}");
        }
    }

    #[test]
    fn an_option_in_two_fragments_is_an_error_that_names_both() {
        let error = Config::merge(&[
            fragment("a.config", "CONFIG_A=y\n"),
            fragment("b.config", "\n# CONFIG_A is not set\n"),
        ])
        .unwrap_err()
        .to_string();
        assert!(
            error.contains("b.config:2: CONFIG_A is already in a.config:1"),
            "{error}"
        );
    }

    #[test]
    fn a_configuration_that_honours_everything_passes() {
        let config = merge_one("CONFIG_A=y\n# CONFIG_B is not set\n# CONFIG_GONE is not set\nCONFIG_N=64\n").unwrap();
        config
            .check("#\n# Linux\n#\nCONFIG_A=y\n# CONFIG_B is not set\nCONFIG_N=64\n")
            .unwrap();
    }

    #[test]
    fn each_way_to_be_dishonoured_is_reported_with_place_wanted_and_got() {
        let config =
            merge_one("CONFIG_ABSENT=y\nCONFIG_OFF=y\n# CONFIG_ON is not set\nCONFIG_N=64\nCONFIG_S=\"x\"\n").unwrap();
        let error = config
            .check("# CONFIG_OFF is not set\nCONFIG_ON=y\nCONFIG_N=8\nCONFIG_S=\"\"\n")
            .unwrap_err()
            .to_string();
        for line in [
            "a.config:1: CONFIG_ABSENT: wanted y, got nothing",
            "a.config:2: CONFIG_OFF: wanted y, got not set",
            "a.config:3: CONFIG_ON: wanted not set, got y",
            "a.config:4: CONFIG_N: wanted 64, got 8",
            "a.config:5: CONFIG_S: wanted \"x\", got \"\"",
        ] {
            assert!(error.contains(line), "{line} is missing in: {error}");
        }
        assert_eq!(error.lines().count(), 6);
    }

    #[test]
    fn canonical_form_forgets_order_division_and_comments_but_no_value() {
        let one = merge_one("# c\nCONFIG_B=y\nCONFIG_A=1\n").unwrap();
        let two = Config::merge(&[fragment("x", "CONFIG_A=1\n"), fragment("y", "\n# another\nCONFIG_B=y")]).unwrap();
        assert_eq!(one.canonical(), two.canonical());
        let other = merge_one("CONFIG_B=y\nCONFIG_A=2\n").unwrap();
        assert_ne!(one.canonical(), other.canonical());
    }

    #[test]
    fn only_yes_is_counted() {
        assert_eq!(
            count_yes("CONFIG_A=y\nCONFIG_B=\"y\"\nCONFIG_C=m\n# CONFIG_D=y\nCONFIG_E=y\n"),
            2
        );
    }

    proptest! {
        #[test]
        fn whatever_parses_survives_a_round_trip(
            options in proptest::collection::btree_map("[A-Z0-9_]{1,12}", "y|[1-9][0-9]{0,3}|\"[a-z =]{0,9}\"|", 0..20)
        ) {
            let text: String = options
                .iter()
                .map(|(name, value)| if value.is_empty() {
                    format!("# CONFIG_{name} is not set\n")
                } else {
                    format!("CONFIG_{name}={value}\n")
                })
                .collect();
            let config = merge_one(&text).unwrap();
            prop_assert_eq!(config.text(), text.clone());
            prop_assert!(config.check(&text).is_ok());
        }

        #[test]
        fn no_text_makes_the_parser_panic(text in "\\PC{0,200}") {
            let _ = merge_one(&text);
            let _ = merge_one("CONFIG_A=y").unwrap().check(&text);
        }
    }
}
