//! Names of models on a hub.

use std::fmt;
use std::str::FromStr;

use super::error::HubError;

/// Longest part of a name, in bytes: the hub's own limit.
const MAX_PART: usize = 96;

/// `ORG/NAME`, with the quantisation wanted (`:Q4_K_M`) where one is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelRef {
    /// Who publishes it.
    pub org: String,
    /// What it is called.
    pub name: String,
    /// Which of its files.
    pub quant: Option<String>,
}

impl ModelRef {
    /// `ORG/NAME`.
    #[must_use]
    pub fn repository(&self) -> String {
        format!("{}/{}", self.org, self.name)
    }
}

impl FromStr for ModelRef {
    type Err = HubError;

    fn from_str(text: &str) -> Result<ModelRef, HubError> {
        let wrong = || HubError::Reference(text.to_owned());
        let (path, quant) = text.split_once(':').map_or((text, None), |(path, quant)| (path, Some(quant)));
        let (org, name) = path.split_once('/').ok_or_else(wrong)?;
        let parts = [Some(org), Some(name), quant];
        if !parts.into_iter().flatten().all(is_part) {
            return Err(wrong());
        }
        // Ollama's habit: the tag `latest` means whichever is usual.
        let quant = quant.filter(|quant| !quant.eq_ignore_ascii_case("latest")).map(str::to_owned);
        Ok(ModelRef { org: org.to_owned(), name: name.to_owned(), quant })
    }
}

impl fmt::Display for ModelRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.org, self.name)?;
        self.quant.iter().try_for_each(|quant| write!(f, ":{quant}"))
    }
}

/// Whether a text can be one part of a name: it becomes part of paths and addresses.
pub(super) fn is_part(text: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let edges = |c: char| c == '.' || c == '-';
    !text.is_empty()
        && text.len() <= MAX_PART
        && text.chars().all(plain)
        && !text.starts_with(edges)
        && !text.ends_with(edges)
        && !text.contains("..")
        // The cache joins the parts with two dashes.
        && !text.contains("--")
}

/// Whether a text is a path inside a repository that stays inside a folder.
pub(super) fn is_path(text: &str) -> bool {
    let part = |part: &str| {
        !part.is_empty()
            && part != "."
            && part != ".."
            && !part.contains(['\\', ':', '\0'])
            && !part.ends_with(['.', ' '])
    };
    text.len() <= 512 && !text.chars().any(char::is_control) && text.split('/').all(part)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_with_and_without_a_quantisation() {
        let of = |text: &str| text.parse::<ModelRef>().unwrap();
        assert_eq!(of("unsloth/Qwen3.5-4B-GGUF:Q4_K_M").quant.as_deref(), Some("Q4_K_M"));
        assert_eq!(of("a/b:latest").quant, None);
        assert_eq!(of("a/b:Q8_0").to_string(), "a/b:Q8_0");
        assert_eq!(of("a/b").repository(), "a/b");
    }

    #[test]
    fn names_that_could_lead_elsewhere_are_refused() {
        for text in [
            "",
            "a",
            "/a",
            "a/",
            "a/b/c",
            "../a",
            "a/..",
            "a/b:",
            "a/b:../c",
            "a b/c",
            "a/b?c",
            "a/b#c",
            "a/b%2e",
            "a--b/c",
            "ä/b",
            "a/b:c/d",
            "-a/b",
            "a/.b",
            "http://a/b",
        ] {
            assert!(text.parse::<ModelRef>().is_err(), "{text}");
        }
        assert!(format!("a/{}", "b".repeat(97)).parse::<ModelRef>().is_err());
    }

    #[test]
    fn paths_stay_inside() {
        for path in ["model.gguf", "Q4_K_M/a-00001-of-00002.gguf", "größe.json"] {
            assert!(is_path(path), "{path}");
        }
        for path in ["", "/etc/passwd", "../x", "a/../b", "a//b", "a\\b", "C:x", "a\0b", "a/.", "x.", "a\nb"]
        {
            assert!(!is_path(path), "{path:?}");
        }
    }
}
