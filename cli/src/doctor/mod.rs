//! `husk doctor`: what this host has and what it lacks.

mod checks;
mod confinement;
mod kvm;

use std::fs::File;
use std::io::IsTerminal;

use anyhow::{Context, Result};
use serde::Serialize;

use crate::answer;
use crate::args::{DoctorArgs, Global};

/// How a check went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Outcome {
    Good,
    /// Something works less well without it.
    Warning,
    /// Nothing runs without it.
    Bad,
}

/// What a check found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Finding {
    check: &'static str,
    outcome: Outcome,
    detail: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    remedy: Option<String>,
}

impl Finding {
    fn good(check: &'static str, detail: impl Into<String>) -> Self {
        Self {
            check,
            outcome: Outcome::Good,
            detail: detail.into(),
            remedy: None,
        }
    }

    fn warning(check: &'static str, detail: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            check,
            outcome: Outcome::Warning,
            detail: detail.into(),
            remedy: Some(remedy.into()),
        }
    }

    fn bad(check: &'static str, detail: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            outcome: Outcome::Bad,
            ..Self::warning(check, detail, remedy)
        }
    }
}

pub(crate) fn doctor(global: &Global, args: &DoctorArgs) -> Result<u8> {
    let findings = checks::all(global, args);
    match args.json {
        true => answer::json(&findings)?,
        false => answer::text(&report(&findings, std::io::stdout().is_terminal()))?,
    }
    Ok(u8::from(findings.iter().any(|finding| finding.outcome == Outcome::Bad)))
}

/// A usable /dev/kvm, without which nothing goes on.
pub(crate) fn open_kvm() -> Result<File> {
    kvm::check().context("there is no usable KVM (husk doctor tells more)")
}

fn report(findings: &[Finding], colour: bool) -> String {
    let mut text = String::new();
    for finding in findings {
        let (mark, code) = match finding.outcome {
            Outcome::Good => ("ok", "32"),
            Outcome::Warning => ("warning", "33"),
            Outcome::Bad => ("missing", "31"),
        };
        let padded = format!("{mark:7}");
        let mark = if colour {
            format!("\x1b[{code}m{padded}\x1b[0m")
        } else {
            padded
        };
        text.push_str(&format!("{mark}  {:15} {}\n", finding.check, finding.detail));
        if let Some(remedy) = &finding.remedy {
            text.push_str(&format!("{:9}{:15} -> {remedy}\n", "", ""));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_report_tells_remedies() {
        let findings = [Finding::good("one", "fine"), Finding::bad("two", "not there", "get it")];
        let text = report(&findings, false);
        assert!(text.contains("missing  two") && text.contains("-> get it"), "{text}");
        assert!(!text.contains('\x1b') && report(&findings, true).contains('\x1b'));
        let json = serde_json::to_value(&findings).unwrap();
        assert_eq!(
            (&json[0]["outcome"], &json[1]["remedy"]),
            (&"good".into(), &"get it".into())
        );
        assert!(json[0].get("remedy").is_none());
    }
}
