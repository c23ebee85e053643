//! Variables by the specification's rules: empty is unset, the first name of
//! a list wins, values of unknown words are warned about and not obeyed.

use std::ffi::OsString;
use std::fmt;
use std::time::Duration;

use super::{Error, Given};

type Read<'a> = Box<dyn Fn(&'static str) -> Option<OsString> + 'a>;

/// One reading of the environment, and what was odd in it.
pub struct Environment<'a> {
    read: Read<'a>,
    warnings: Vec<String>,
}

impl<'a> Environment<'a> {
    /// An environment that `read` answers for.
    pub fn new(read: impl Fn(&'static str) -> Option<OsString> + 'a) -> Self {
        Environment {
            read: Box::new(read),
            warnings: Vec::new(),
        }
    }

    /// What was ignored, and why.
    pub fn into_warnings(self) -> Vec<String> {
        self.warnings
    }

    /// Notes that `name` is not obeyed in some point.
    pub fn warn(&mut self, name: &'static str, problem: impl fmt::Display) {
        self.warnings.push(format!("{name}: {problem}"));
    }

    /// The first of `names` that is set and not empty.
    ///
    /// # Errors
    /// If it is not UTF-8.
    pub fn text(&self, names: &[&'static str]) -> Result<Option<Given<String>>, Error> {
        for &source in names {
            match (self.read)(source) {
                Some(raw) if !raw.is_empty() => {
                    let value = raw.into_string().map_err(|_| Error::new(source, "is not UTF-8"))?;
                    return Ok(Some(Given { value, source }));
                }
                _ => {}
            }
        }
        Ok(None)
    }

    /// The first of `names` whose word `parse` knows; the others are warned about.
    pub fn word<T>(&mut self, names: &[&'static str], parse: impl Fn(&str) -> Option<T>) -> Option<Given<T>> {
        for &source in names {
            let text = match (self.read)(source) {
                Some(raw) if !raw.is_empty() => raw,
                _ => continue,
            };
            match text.to_str().and_then(|t| parse(t.trim())) {
                Some(value) => return Some(Given { value, source }),
                None => self.warn(
                    source,
                    format_args!("`{}` is not known and ignored", text.to_string_lossy()),
                ),
            }
        }
        None
    }

    /// A Boolean: `true` in any case is true, all else is false.
    pub fn boolean(&mut self, names: &[&'static str]) -> Option<Given<bool>> {
        for &source in names {
            let text = match (self.read)(source) {
                Some(raw) if !raw.is_empty() => raw,
                _ => continue,
            };
            let value = text.eq_ignore_ascii_case("true");
            if !value && !text.eq_ignore_ascii_case("false") {
                self.warn(
                    source,
                    format_args!("`{}` is neither true nor false; false is used", text.to_string_lossy()),
                );
            }
            return Some(Given { value, source });
        }
        None
    }

    /// A count, at least 1.
    ///
    /// # Errors
    /// If it is no such number.
    pub fn size(&self, name: &'static str) -> Result<Option<usize>, Error> {
        let Some(given) = self.text(&[name])? else {
            return Ok(None);
        };
        match given.value.trim().parse::<usize>() {
            Ok(0) => Err(Error::new(name, "0 would export nothing; at least 1 is needed")),
            Ok(size) => Ok(Some(size)),
            Err(_) => Err(Error::new(
                name,
                format_args!("`{}` is not a whole number", given.value),
            )),
        }
    }

    /// The first of `names` that is set, a count.
    ///
    /// # Errors
    /// If it is no such number.
    pub fn count(&self, names: &[&'static str]) -> Result<Option<usize>, Error> {
        let Some(Given { value, source }) = self.text(names)? else {
            return Ok(None);
        };
        match value.trim().parse() {
            Ok(count) => Ok(Some(count)),
            Err(_) => Err(Error::new(source, format_args!("`{value}` is not a whole number"))),
        }
    }

    /// A duration in milliseconds.
    ///
    /// # Errors
    /// If it is no number.
    pub fn milliseconds(&self, names: &[&'static str]) -> Result<Option<Duration>, Error> {
        let Some(given) = self.text(names)? else {
            return Ok(None);
        };
        match given.value.trim().parse::<u32>() {
            Ok(ms) => Ok(Some(Duration::from_millis(ms.into()))),
            Err(_) => {
                let problem = format!("`{}` is not a number of milliseconds", given.value);
                Err(Error {
                    setting: given.source,
                    problem,
                })
            }
        }
    }
}
