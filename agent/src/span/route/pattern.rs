//! Patterns that a user gives: `/users/{id}`, `GET /files/*rest`. A pattern
//! that can't be read is an error, never a pattern that matches nothing.

use std::borrow::Cow;
use std::str::FromStr;
use std::sync::Arc;

use super::segment::Segment;

/// One pattern.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern {
    /// Only for this method.
    method: Option<Box<str>>,
    parts: Vec<Part>,
    /// Name of the part that takes all that is left.
    rest: Option<Arc<str>>,
    /// As it is shown.
    pub(super) template: Arc<str>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    /// These characters, decoded.
    Literal(Box<str>),
    /// One segment.
    Param(Arc<str>),
}

/// Why a pattern can't be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    /// It is no absolute path.
    #[error("route pattern `{0}`: must start with `/`, or with a method and ` /`")]
    NotAbsolute(String),
    /// A `{` or `}` too many, or an empty name.
    #[error("route pattern `{0}`: `{1}` is neither a word nor one `{{name}}`")]
    Braces(String, String),
    /// A wildcard before the end.
    #[error("route pattern `{0}`: `*{1}` must be the last segment")]
    Wildcard(String, String),
    /// Two parameters of one name.
    #[error("route pattern `{0}`: two parameters are called `{1}`")]
    Twice(String, String),
}

impl FromStr for Pattern {
    type Err = PatternError;

    fn from_str(text: &str) -> Result<Self, PatternError> {
        let text = text.trim();
        let (method, path) = match text.split_once(' ') {
            Some((method, path)) => (Some(Box::from(method)), path.trim()),
            None => (None, text),
        };
        let Some(inner) = path.strip_prefix('/') else {
            return Err(PatternError::NotAbsolute(text.into()));
        };
        let mut pattern = Pattern {
            method,
            parts: Vec::new(),
            rest: None,
            template: path.into(),
        };
        let mut names: Vec<&str> = Vec::new();
        for part in inner.split('/').filter(|part| !part.is_empty()) {
            if let Some(rest) = &pattern.rest {
                return Err(PatternError::Wildcard(text.into(), rest.to_string()));
            }
            let name = part
                .strip_prefix('{')
                .and_then(|p| p.strip_suffix('}'))
                .or(part.strip_prefix(':'));
            let rest = part.strip_prefix('*').or(name.and_then(|n| n.strip_prefix('*')));
            let name = match (rest, name) {
                (Some(""), _) => "rest",
                (Some(rest), _) => rest,
                (None, Some(name)) => name,
                (None, None) if part.contains(['{', '}', '*']) => {
                    return Err(PatternError::Braces(text.into(), part.into()));
                }
                (None, None) => {
                    pattern.parts.push(Part::Literal(Segment::parse(part).text.into()));
                    continue;
                }
            };
            if name.is_empty() || name.contains(['{', '}', '*']) {
                return Err(PatternError::Braces(text.into(), part.into()));
            }
            if names.contains(&name) {
                return Err(PatternError::Twice(text.into(), name.into()));
            }
            names.push(name);
            if rest.is_some() {
                pattern.rest = Some(name.into());
            } else {
                pattern.parts.push(Part::Param(name.into()));
            }
        }
        Ok(pattern)
    }
}

impl Pattern {
    /// The parameters, if the path is one of this pattern's.
    pub(super) fn matches(&self, method: &str, segments: &[Segment<'_>]) -> Option<Vec<(Arc<str>, Arc<str>)>> {
        if self.method.as_deref().is_some_and(|m| m != method) {
            return None;
        }
        if segments.len() < self.parts.len() || (self.rest.is_none() && segments.len() > self.parts.len()) {
            return None;
        }
        for (part, segment) in self.parts.iter().zip(segments) {
            if let Part::Literal(literal) = part
                && (**literal != *segment.text || !segment.verb.is_empty())
            {
                return None;
            }
        }
        let mut params = Vec::new();
        for (part, segment) in self.parts.iter().zip(segments) {
            if let Part::Param(name) = part {
                params.push((Arc::clone(name), segment.shown().into()));
            }
        }
        if let Some(name) = &self.rest {
            let rest: Vec<Cow<str>> = segments
                .iter()
                .skip(self.parts.len())
                .map(|segment| segment.shown().into())
                .collect();
            params.push((Arc::clone(name), crate::span::url::cut(&rest.join("/"), 512).into()));
        }
        Some(params)
    }

    /// How exact it is: patterns with more literals go first.
    pub(super) fn weight(&self) -> (usize, bool, bool) {
        let literals = self
            .parts
            .iter()
            .filter(|part| matches!(part, Part::Literal(_)))
            .count();
        (literals, self.rest.is_none(), self.method.is_some())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn matching() {
        for (pattern, method, path, params) in [
            ("/users/{id}", "GET", "/users/7", Some("id=7")),
            ("/users/{id}", "GET", "/users/", None),
            ("/users/{id}", "GET", "/users/7/orders", None),
            ("/users/:id/", "GET", "/users/7", Some("id=7")),
            ("/files/*rest", "GET", "/files/a/b.txt", Some("rest=a/b.txt")),
            ("/files/{*path}", "GET", "/files", Some("path=")),
            ("POST /users/{id}", "GET", "/users/7", None),
            ("POST /users/{id}", "POST", "/users/7", Some("id=7")),
            ("/caf%C3%A9/{x}", "GET", "/caf%c3%a9/%41", Some("x=A")),
            ("/mail/{to}", "GET", "/mail/a@b.example", Some("to=REDACTED")),
            ("/", "GET", "/", Some("")),
        ] {
            let pattern: Pattern = pattern.parse().unwrap();
            let found = pattern.matches(method, &Segment::all(path)).map(|params| {
                params
                    .iter()
                    .map(|(name, value)| format!("{name}={value}"))
                    .collect::<Vec<_>>()
                    .join("&")
            });
            assert_eq!(found.as_deref(), params, "{pattern:?} on {method} {path}");
        }
    }

    #[test]
    fn errors_name_the_place() {
        for (pattern, message) in [
            ("users", "must start with `/`"),
            ("/a/{}", "`{}` is neither"),
            ("/a/{x", "`{x` is neither"),
            ("/*all/x", "must be the last"),
            ("/{a}/{a}", "called `a`"),
        ] {
            let error = pattern.parse::<Pattern>().unwrap_err().to_string();
            assert!(error.contains(message), "{pattern}: {error}");
        }
    }
}
