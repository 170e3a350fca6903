//! Reading a YAML tree with the full path of every key at hand.
//!
//! A [`Section`] is a mapping whose keys are known; an [`Item`] is a value in it. Every reader notes
//! what is wrong in the shared [`Report`] and returns `None`, so reading goes on and finds the rest.
//! A key with no value (`auth_key:`) counts as not set.

use super::locate::{Step, locate};
use super::problem::{Origin, Problem, ProblemKind};
use memkv_admin_api::size::{exact_size, parse_size};
use serde_yaml::{Mapping, Value};
use std::cell::RefCell;
use std::ops::RangeInclusive;

/// Collects problems; knows the text, to say on which line a key stands.
pub struct Report<'t> {
    text: &'t str,
    problems: RefCell<Vec<Problem>>,
}

impl<'t> Report<'t> {
    /// An empty report about a file's text; an empty text when there is no file.
    pub fn new(text: &'t str) -> Self {
        Self { text, problems: RefCell::new(Vec::new()) }
    }

    /// Notes a problem of a key in the file.
    pub fn key(&self, path: &Path, kind: ProblemKind) {
        let location = locate(self.text, &path.0);
        self.push(Problem { origin: Origin::Key(path.to_string()), location, kind });
    }

    /// Notes a problem.
    pub fn push(&self, problem: Problem) {
        self.problems.borrow_mut().push(problem);
    }

    /// All that was noted.
    pub fn into_problems(self) -> Vec<Problem> {
        self.problems.into_inner()
    }
}

/// The path of a key: names and list positions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Path(Vec<Step>);

impl Path {
    /// The path of `key` under this one.
    pub fn key(&self, key: &str) -> Self {
        self.with(Step::Key(key.to_owned()))
    }

    fn index(&self, index: usize) -> Self {
        self.with(Step::Index(index))
    }

    fn with(&self, step: Step) -> Self {
        let mut steps = self.0.clone();
        steps.push(step);
        Self(steps)
    }
}

impl std::fmt::Display for Path {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (position, step) in self.0.iter().enumerate() {
            match step {
                Step::Key(key) if position == 0 => write!(f, "{key}")?,
                Step::Key(key) => write!(f, ".{key}")?,
                Step::Index(index) => write!(f, "[{index}]")?,
            }
        }
        Ok(())
    }
}

/// A mapping whose keys are known.
pub struct Section<'a> {
    mapping: Option<&'a Mapping>,
    path: Path,
    report: &'a Report<'a>,
}

impl<'a> Section<'a> {
    /// The whole document; an empty one has every key unset.
    pub fn root(value: &'a Value, known: &[&'static str], report: &'a Report<'a>) -> Self {
        Self::of(Some(value), Path::default(), known, report)
    }

    fn of(
        value: Option<&'a Value>,
        path: Path,
        known: &[&'static str],
        report: &'a Report<'a>,
    ) -> Self {
        let mapping = match value {
            None | Some(Value::Null) => None,
            Some(Value::Mapping(mapping)) => Some(mapping),
            Some(other) => {
                let kind = ProblemKind::WrongType { expected: "keys", found: found(other) };
                report.key(&path, kind);
                None
            }
        };
        let section = Self { mapping, path, report };
        section.refuse_unknown(known);
        section
    }

    fn refuse_unknown(&self, known: &[&'static str]) {
        for key in self.mapping.into_iter().flat_map(Mapping::keys) {
            match key {
                Value::String(key) if known.contains(&key.as_str()) => {}
                Value::String(key) => {
                    let nearest = super::schema::nearest(&self.path.to_string(), key, known);
                    let kind = ProblemKind::UnknownKey { nearest, known: known.to_vec() };
                    self.report.key(&self.path.key(key), kind);
                }
                other => {
                    let kind =
                        ProblemKind::WrongType { expected: "names of keys", found: found(other) };
                    self.report.key(&self.path, kind);
                }
            }
        }
    }

    fn value(&self, key: &str) -> Option<&'a Value> {
        self.mapping?.get(key).filter(|value| !value.is_null())
    }

    /// A mapping under this one.
    pub fn section(&self, key: &str, known: &[&'static str]) -> Section<'a> {
        Self::of(self.value(key), self.path.key(key), known, self.report)
    }

    /// Each mapping of a list, without what is none; `None` when the list is not set.
    pub fn sections(
        &self,
        key: &str,
        known: &[&'static str],
        allowed: RangeInclusive<usize>,
    ) -> Option<Vec<Section<'a>>> {
        let value = self.value(key)?;
        let path = self.path.key(key);
        let Value::Sequence(items) = value else {
            self.report
                .key(&path, ProblemKind::WrongType { expected: "a list", found: found(value) });
            return None;
        };
        if !allowed.contains(&items.len()) {
            let (min, max) = (allowed.start().to_string(), allowed.end().to_string());
            let value = format!("a list of {}", items.len());
            self.report.key(&path, ProblemKind::OutOfRange { value, min, max });
        }
        let mut sections = Vec::with_capacity(items.len());
        for (index, value) in items.iter().enumerate() {
            let path = path.index(index);
            if value.is_mapping() {
                sections.push(Self::of(Some(value), path, known, self.report));
            } else {
                let found = found(value);
                self.report.key(&path, ProblemKind::WrongType { expected: "keys", found });
            }
        }
        Some(sections)
    }

    /// The value of a key, when it is set.
    pub fn item(&self, key: &str) -> Option<Item<'a>> {
        Some(Item { value: self.value(key)?, path: self.path.key(key), report: self.report })
    }

    /// The path of this section itself.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Notes a problem of a key of this section.
    pub fn problem(&self, key: &str, kind: ProblemKind) {
        self.report.key(&self.path.key(key), kind);
    }
}

/// A value under a key.
pub struct Item<'a> {
    value: &'a Value,
    path: Path,
    report: &'a Report<'a>,
}

impl<'a> Item<'a> {
    /// Notes a problem of this value.
    pub fn problem(&self, kind: ProblemKind) {
        self.report.key(&self.path, kind);
    }

    fn wrong<T>(&self, expected: &'static str) -> Option<T> {
        self.problem(ProblemKind::WrongType { expected, found: found(self.value) });
        None
    }

    /// A text.
    pub fn text(&self) -> Option<&'a str> {
        match self.value {
            Value::String(text) => Some(text),
            Value::Number(_) => self.wrong("text (put it in quotes)"),
            _ => self.wrong("text"),
        }
    }

    /// `true` or `false`.
    pub fn boolean(&self) -> Option<bool> {
        self.value.as_bool().or_else(|| self.wrong("true or false"))
    }

    /// A whole number within limits.
    pub fn integer(&self, allowed: RangeInclusive<u64>) -> Option<u64> {
        let Some(number) = self.value.as_u64() else {
            if let Some(negative) = self.value.as_i64() {
                return self.out_of_range(negative.to_string(), &allowed, |n| n.to_string());
            }
            return self.wrong("a whole number");
        };
        if allowed.contains(&number) {
            return Some(number);
        }
        self.out_of_range(number.to_string(), &allowed, |n| n.to_string())
    }

    /// A percentage: `90`, or `90 %` as text.
    pub fn percent(&self, allowed: RangeInclusive<u64>) -> Option<u8> {
        let number = match self.value {
            Value::String(text) => {
                let digits = text.trim().strip_suffix('%').map(str::trim_end);
                match digits.and_then(|digits| digits.parse::<u64>().ok()) {
                    Some(number) => number,
                    None => return self.wrong("a percentage like 90 or `90 %`"),
                }
            }
            value => match value.as_u64() {
                Some(number) => number,
                None => return self.wrong("a percentage like 90 or `90 %`"),
            },
        };
        match u8::try_from(number) {
            Ok(percent) if allowed.contains(&number) => Some(percent),
            _ => self.out_of_range(format!("{number} %"), &allowed, |n| format!("{n} %")),
        }
    }

    /// A size within limits.
    pub fn size(&self, allowed: RangeInclusive<u64>) -> Option<u64> {
        let bytes = match self.value {
            Value::String(text) => match parse_size(text) {
                Ok(bytes) => bytes,
                Err(error) => {
                    self.problem(ProblemKind::BadSize(error));
                    return None;
                }
            },
            value => match value.as_u64() {
                Some(bytes) => bytes,
                None => return self.wrong("a size like `2 MiB`"),
            },
        };
        if allowed.contains(&bytes) {
            return Some(bytes);
        }
        self.out_of_range(exact_size(bytes), &allowed, exact_size)
    }

    /// A size within limits that is a power of two.
    pub fn power_of_two(&self, allowed: RangeInclusive<u64>) -> Option<u64> {
        let bytes = self.size(allowed)?;
        if bytes.is_power_of_two() {
            return Some(bytes);
        }
        self.problem(ProblemKind::NotPowerOfTwo { value: exact_size(bytes) });
        None
    }

    /// One word of a few.
    pub fn choice<T: Copy>(&self, choices: &[(&'static str, T)]) -> Option<T> {
        let Value::String(text) = self.value else { return self.wrong("a word") };
        if let Some((_, value)) = choices.iter().find(|(word, _)| word == text) {
            return Some(*value);
        }
        let words: Vec<&'static str> = choices.iter().map(|(word, _)| *word).collect();
        self.problem(ProblemKind::UnknownChoice {
            value: text.clone(),
            nearest: super::schema::similar(text, &words),
            choices: words,
        });
        None
    }

    fn out_of_range<T>(
        &self,
        value: String,
        allowed: &RangeInclusive<u64>,
        show: impl Fn(u64) -> String,
    ) -> Option<T> {
        let (min, max) = (show(*allowed.start()), show(*allowed.end()));
        self.problem(ProblemKind::OutOfRange { value, min, max });
        None
    }
}

/// What a value is, in words.
fn found(value: &Value) -> &'static str {
    match value {
        Value::Null => "nothing",
        Value::Bool(_) => "true or false",
        Value::Number(number) if number.is_f64() => "a number with a fraction",
        Value::Number(_) => "a number",
        Value::String(_) => "text",
        Value::Sequence(_) => "a list",
        Value::Mapping(_) => "keys",
        Value::Tagged(_) => "a tagged value",
    }
}
