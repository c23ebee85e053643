//! Variables by the specification's rules: empty is unset, the first name of
//! a list wins, values of unknown words are warned about and not obeyed.

use std::ffi::OsString;
use std::fmt;
use std::path::Path;
use std::time::Duration;

use super::file::File;
use super::settings::{self, Kind};
use super::{Error, Given, LogFlags, declarative};

type Read<'a> = Box<dyn Fn(&str) -> Option<OsString> + 'a>;

/// One reading of the environment and, below it, of the file; and what was odd in them.
pub struct Environment<'a> {
    read: Read<'a>,
    file: File,
    /// `OTEL_CONFIG_FILE` is given: other `OTEL_*` variables mean nothing.
    declared: bool,
    warnings: Vec<String>,
}

impl Environment<'static> {
    /// This process's environment and the files that flags and variables name.
    ///
    /// # Errors
    /// A file that can't be read or obeyed.
    pub fn of_process(flags: &LogFlags) -> Result<Self, Error> {
        Environment::layered(|name: &str| std::env::var_os(name), flags.config.as_deref())
    }
}

impl<'a> Environment<'a> {
    /// An environment that `read` answers for, without files.
    pub fn new(read: impl Fn(&str) -> Option<OsString> + 'a) -> Self {
        Environment {
            read: Box::new(read),
            file: File::default(),
            declared: false,
            warnings: Vec::new(),
        }
    }

    /// An environment that `read` answers for, and the files that it and `path` name.
    ///
    /// # Errors
    /// A file that can't be read or obeyed.
    pub fn layered(read: impl Fn(&str) -> Option<OsString> + 'a, path: Option<&Path>) -> Result<Self, Error> {
        let mut environment = Environment {
            read: Box::new(read),
            file: match path {
                Some(path) => File::read(path)?,
                None => File::default(),
            },
            declared: false,
            warnings: Vec::new(),
        };
        if let Some(Given { value, .. }) = environment.text(&["OTEL_CONFIG_FILE"])? {
            let (declared, warnings) = declarative::read(Path::new(&value), &environment.read)?;
            environment.file.fill_from(declared);
            environment.warnings = warnings;
            environment.declared = true;
        }
        Ok(environment)
    }

    /// What the files give.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// What was ignored, and why.
    pub fn into_warnings(self) -> Vec<String> {
        self.warnings
    }

    /// Notes that `name` is not obeyed in some point.
    pub fn warn(&mut self, name: &'static str, problem: impl fmt::Display) {
        self.warnings.push(format!("{name}: {problem}"));
    }

    /// All that is given under these names, the strongest first.
    fn given(&self, names: &[&'static str]) -> impl Iterator<Item = Given<OsString>> {
        let variable = |source: &'static str| {
            let means = !self.declared || !source.starts_with("OTEL_") || source == "OTEL_CONFIG_FILE";
            let value = means.then(|| (self.read)(source)).flatten()?;
            Some(Given { value, source })
        };
        let in_file = |name: &&'static str| {
            let setting = settings::of_variable(name)?;
            let entry = self.file.get(setting.key)?;
            Some(Given {
                value: OsString::from(&entry.text),
                source: setting.in_file,
            })
        };
        let variables = names.iter().copied().filter_map(variable);
        let all: Vec<_> = variables.chain(names.iter().filter_map(in_file).take(1)).collect();
        all.into_iter().filter(|given| !given.value.is_empty())
    }

    /// The first of `names` that is set and not empty.
    ///
    /// # Errors
    /// If it is not UTF-8.
    pub fn text(&self, names: &[&'static str]) -> Result<Option<Given<String>>, Error> {
        let Some(Given { value, source }) = self.given(names).next() else {
            return Ok(None);
        };
        let value = value.into_string().map_err(|_| Error::new(source, "is not UTF-8"))?;
        Ok(Some(Given { value, source }))
    }

    /// The texts of the first of `names` that is set, apart at the separator that the setting has.
    ///
    /// # Errors
    /// If it is not UTF-8.
    pub fn list(&self, names: &[&'static str]) -> Result<Option<Given<Vec<String>>>, Error> {
        let separator = names.iter().find_map(|name| match settings::of_variable(name)?.kind {
            Kind::List(separator) => Some(separator),
            _ => None,
        });
        Ok(self.text(names)?.map(|Given { value, source }| Given {
            value: value
                .split(separator.unwrap_or(','))
                .map(|item| item.trim().to_owned())
                .filter(|item| !item.is_empty())
                .collect(),
            source,
        }))
    }

    /// The first of `names` whose word `parse` knows; the others are warned about.
    pub fn word<T>(&mut self, names: &[&'static str], parse: impl Fn(&str) -> Option<T>) -> Option<Given<T>> {
        let all: Vec<_> = self.given(names).collect();
        for Given { value: text, source } in all {
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
        let Given { value: text, source } = self.given(names).next()?;
        let value = text.eq_ignore_ascii_case("true");
        if !value && !text.eq_ignore_ascii_case("false") {
            self.warn(
                source,
                format_args!("`{}` is neither true nor false; false is used", text.to_string_lossy()),
            );
        }
        Some(Given { value, source })
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
            Ok(0) => Err(Error::new(given.source, "0 would export nothing; at least 1 is needed")),
            Ok(size) => Ok(Some(size)),
            Err(_) => Err(Error::new(
                given.source,
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
