//! What is wrong with a configuration, said so that it can be put right.

use std::fmt;

/// One thing wrong (or worth a warning) in a configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The line, from 1, where one can be named.
    pub line: Option<usize>,
    /// For example `models.gpt-4o-mini.targets[1].price`; empty for the file as a whole.
    pub path: String,
    /// What is wrong.
    pub message: String,
    /// What to write instead. May be empty.
    pub fix: String,
}

impl Problem {
    /// The problem as one line that begins with `source:line`, as compilers print it.
    pub fn located<'a>(&'a self, source: &'a str) -> impl fmt::Display + 'a {
        Located(source, self)
    }
}

struct Located<'a>(&'a str, &'a Problem);

impl fmt::Display for Located<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Located(source, problem) = self;
        let space = if problem.line.is_some() { "" } else { " " };
        write!(f, "{source}:{space}{problem}")
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(line) = self.line {
            write!(f, "{line}: ")?;
        }
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        f.write_str(&self.message)?;
        if !self.fix.is_empty() {
            write!(f, ". {}", self.fix)?;
        }
        Ok(())
    }
}

/// A configuration that cannot be used, with everything that is wrong with it.
#[derive(Debug, Clone)]
pub struct Invalid {
    /// The file, as the user named it.
    pub source: String,
    /// At least one.
    pub problems: Vec<Problem>,
    /// What would also have been warned of.
    pub warnings: Vec<Problem>,
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, problem) in self.problems.iter().enumerate() {
            if i > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{}", problem.located(&self.source))?;
        }
        Ok(())
    }
}

impl std::error::Error for Invalid {}

/// Where something stands in the file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Place {
    pub line: Option<usize>,
    pub path: String,
}

impl Place {
    /// The place of a key inside this one; the line stays.
    pub(crate) fn key(&self, key: &str) -> Place {
        Place { line: self.line, path: join(&self.path, key) }
    }
}

/// `path.key`, or just the key at the top.
pub(crate) fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

/// Collects problems: reading goes on after each of them.
#[derive(Debug, Default)]
pub(crate) struct Report {
    pub problems: Vec<Problem>,
    pub warnings: Vec<Problem>,
}

impl Report {
    pub(crate) fn problem(
        &mut self,
        at: &Place,
        message: impl Into<String>,
        fix: impl Into<String>,
    ) {
        self.problems.push(new(at, message.into(), fix.into()));
    }

    pub(crate) fn warning(
        &mut self,
        at: &Place,
        message: impl Into<String>,
        fix: impl Into<String>,
    ) {
        self.warnings.push(new(at, message.into(), fix.into()));
    }

    /// Problems and warnings in the order of the file.
    pub(crate) fn sorted(mut self) -> Report {
        self.problems.sort_by_key(|p| p.line);
        self.warnings.sort_by_key(|p| p.line);
        self
    }
}

fn new(at: &Place, message: String, fix: String) -> Problem {
    Problem { line: at.line, path: at.path.clone(), message, fix }
}
