//! Words: quotes, escapes and variables.
//!
//! The recipe is parsed before the values of its variables are known (they depend on the base image), so arguments are
//! kept as a [`Template`] and expanded when the build reaches them. Single quotes stop expansion, double quotes do
//! not, the escape character takes the next character as it is.
//!
//! Patterns of `${x#p}`, `${x%p}` and `${x/p/r}` know `*`, `?` and the escape character.

use std::iter::Peekable;
use std::str::Chars;

use super::error::Problem;

/// An argument as written, with quotes and variables.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    text: String,
    escape: char,
}

impl Template {
    /// Takes the text as written.
    pub fn new(text: impl Into<String>, escape: char) -> Template {
        Template { text: text.into(), escape }
    }

    /// Returns the text as written.
    pub fn as_written(&self) -> &str {
        &self.text
    }

    /// Makes a template of another text with the same escape character.
    pub(super) fn like(&self, text: String) -> Template {
        Template::new(text, self.escape)
    }

    /// Removes quotes and replaces variables. A variable that `value` does not know is empty.
    pub fn expand(&self, value: &dyn Fn(&str) -> Option<String>) -> Result<String, Problem> {
        Expander { chars: self.text.chars().peekable(), escape: self.escape, value, raw_quotes: false }.word()
    }

    /// Replaces variables and leaves quotes alone: what happens to the body of a heredoc.
    pub fn expand_body(&self, value: &dyn Fn(&str) -> Option<String>) -> Result<String, Problem> {
        Expander { chars: self.text.chars().peekable(), escape: self.escape, value, raw_quotes: true }.word()
    }
}

/// Cuts at blanks outside quotes; quotes and escapes stay in the words.
pub(super) fn raw(text: &str, escape: char) -> Vec<String> {
    let mut words = Vec::new();
    let mut word = String::new();
    let mut quote = None;
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match quote {
            None if c.is_ascii_whitespace() => {
                if !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
                continue;
            }
            None if c == '\'' || c == '"' => quote = Some(c),
            Some(open) if c == open => quote = None,
            _ => {}
        }
        word.push(c);
        if c == escape && quote != Some('\'') {
            word.extend(chars.next());
        }
    }
    if !word.is_empty() {
        words.push(word);
    }
    words
}

/// Removes quotes and escapes, and leaves dollar signs alone.
pub(super) fn unquoted(text: &str, escape: char) -> String {
    let mut result = String::new();
    let mut quote = None;
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match quote {
            Some(open) if c == open => quote = None,
            None if c == '\'' || c == '"' => quote = Some(c),
            _ if c == escape && quote != Some('\'') => result.extend(chars.next()),
            _ => result.push(c),
        }
    }
    result
}

struct Expander<'a> {
    chars: Peekable<Chars<'a>>,
    escape: char,
    value: &'a dyn Fn(&str) -> Option<String>,
    /// Quotes mean themselves.
    raw_quotes: bool,
}

impl Expander<'_> {
    fn word(mut self) -> Result<String, Problem> {
        self.until(None)
    }

    /// Expands up to the given character outside quotes, which is consumed, or up to the end.
    fn until(&mut self, stop: Option<char>) -> Result<String, Problem> {
        let mut out = String::new();
        while let Some(c) = self.chars.next() {
            match c {
                _ if Some(c) == stop => return Ok(out),
                '\'' if !self.raw_quotes => self.single_quoted(&mut out)?,
                '"' if !self.raw_quotes => self.double_quoted(&mut out)?,
                '$' => out.push_str(&self.dollar()?),
                _ if c == self.escape => self.escaped(&mut out),
                _ => out.push(c),
            }
        }
        match stop {
            None => Ok(out),
            Some(_) => Err(Problem::Substitution { text: format!("${{…{out}"), expected: "expected }" }),
        }
    }

    fn escaped(&mut self, out: &mut String) {
        match self.chars.next() {
            Some(next) if self.raw_quotes && next != '$' && next != self.escape => out.extend([self.escape, next]),
            Some(next) => out.push(next),
            None => out.push(self.escape),
        }
    }

    fn single_quoted(&mut self, out: &mut String) -> Result<(), Problem> {
        for c in self.chars.by_ref() {
            if c == '\'' {
                return Ok(());
            }
            out.push(c);
        }
        Err(unbalanced('\'', out))
    }

    fn double_quoted(&mut self, out: &mut String) -> Result<(), Problem> {
        while let Some(c) = self.chars.next() {
            match c {
                '"' => return Ok(()),
                '$' => out.push_str(&self.dollar()?),
                _ if c == self.escape => match self.chars.next() {
                    Some(next) if next == '"' || next == '$' || next == self.escape => out.push(next),
                    Some(next) => out.extend([c, next]),
                    None => break,
                },
                _ => out.push(c),
            }
        }
        Err(unbalanced('"', out))
    }

    /// Expands what follows a dollar sign.
    fn dollar(&mut self) -> Result<String, Problem> {
        if self.chars.next_if_eq(&'{').is_some() {
            return self.braced();
        }
        let name = self.name();
        match name.is_empty() {
            true => Ok("$".to_owned()),
            false => Ok((self.value)(&name).unwrap_or_default()),
        }
    }

    fn name(&mut self) -> String {
        let mut name = String::new();
        if let Some(digit) = self.chars.next_if(char::is_ascii_digit) {
            name.push(digit);
            return name;
        }
        while let Some(c) = self.chars.next_if(|c| c.is_ascii_alphanumeric() || *c == '_') {
            name.push(c);
        }
        name
    }

    /// Expands the inside of `${…}` and consumes the closing brace.
    fn braced(&mut self) -> Result<String, Problem> {
        let name = self.name();
        if name.is_empty() {
            return Err(Problem::Substitution { text: "${".to_owned(), expected: "expected a name after ${" });
        }
        let value = (self.value)(&name);
        let Some(operator) = self.chars.next() else {
            return Err(Problem::Substitution { text: format!("${{{name}"), expected: "expected }" });
        };
        match operator {
            '}' => Ok(value.unwrap_or_default()),
            ':' => {
                let value = value.filter(|value| !value.is_empty());
                match self.chars.next() {
                    Some(kind @ ('-' | '+' | '?')) => self.conditional(kind, name, value),
                    _ => Err(Problem::Substitution { text: format!("${{{name}:"), expected: "expected -, + or ? after the colon" }),
                }
            }
            '-' | '+' | '?' => self.conditional(operator, name, value),
            '#' | '%' => self.trimmed(operator, value.unwrap_or_default()),
            '/' => self.replaced(value.unwrap_or_default()),
            other => Err(Problem::Substitution {
                text: format!("${{{name}{other}"),
                expected: "expected }, :-, :+, :?, #, % or / after the name",
            }),
        }
    }

    fn conditional(&mut self, kind: char, name: String, value: Option<String>) -> Result<String, Problem> {
        let word = self.until(Some('}'))?;
        match (kind, value) {
            ('+', Some(_)) => Ok(word),
            ('+', None) => Ok(String::new()),
            (_, Some(value)) => Ok(value),
            ('-', None) => Ok(word),
            (_, None) => Err(Problem::Required { name, message: word }),
        }
    }

    fn trimmed(&mut self, end: char, value: String) -> Result<String, Problem> {
        let longest = self.chars.next_if_eq(&end).is_some();
        let pattern: Vec<char> = self.until(Some('}'))?.chars().collect();
        let text: Vec<char> = value.chars().collect();
        let fits = |cut: &usize| match end {
            '#' => matches(&pattern, &text[..*cut], self.escape),
            _ => matches(&pattern, &text[text.len() - cut..], self.escape),
        };
        let cut = match longest {
            true => (0..=text.len()).rev().find(fits),
            false => (0..=text.len()).find(fits),
        };
        let cut = cut.unwrap_or(0);
        Ok(match end {
            '#' => text[cut..].iter().collect(),
            _ => text[..text.len() - cut].iter().collect(),
        })
    }

    fn replaced(&mut self, value: String) -> Result<String, Problem> {
        let all = self.chars.next_if_eq(&'/').is_some();
        let both = self.until(Some('}'))?;
        let (pattern, with) = both.split_once('/').unwrap_or((&both, ""));
        let pattern: Vec<char> = pattern.chars().collect();
        let text: Vec<char> = value.chars().collect();
        let (mut out, mut at, mut done) = (String::new(), 0, pattern.is_empty());
        while at < text.len() {
            let longest = (at + 1..=text.len()).rev().find(|end| !done && matches(&pattern, &text[at..*end], self.escape));
            match longest {
                Some(end) => {
                    out.push_str(with);
                    at = end;
                    done = !all;
                }
                None => {
                    out.push(text[at]);
                    at += 1;
                }
            }
        }
        Ok(out)
    }
}

fn unbalanced(quote: char, seen: &str) -> Problem {
    Problem::Substitution { text: format!("{quote}{seen}"), expected: "expected the closing quote" }
}

/// Whether a shell pattern of `*`, `?` and literals covers the whole text.
fn matches(pattern: &[char], text: &[char], escape: char) -> bool {
    match pattern {
        [] => text.is_empty(),
        ['*', rest @ ..] => (0..=text.len()).any(|skip| matches(rest, &text[skip..], escape)),
        ['?', rest @ ..] => !text.is_empty() && matches(rest, &text[1..], escape),
        [first, literal, rest @ ..] if *first == escape => text.first() == Some(literal) && matches(rest, &text[1..], escape),
        [literal, rest @ ..] => text.first() == Some(literal) && matches(rest, &text[1..], escape),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(name: &str) -> Option<String> {
        match name {
            "X" => Some("ex".to_owned()),
            "EMPTY" => Some(String::new()),
            "PATH" => Some("/usr/bin:/bin".to_owned()),
            _ => None,
        }
    }

    fn expand(text: &str) -> String {
        Template::new(text, '\\').expand(&value).unwrap_or_else(|problem| format!("! {problem}"))
    }

    #[test]
    fn expansion_table() {
        for (written, expected) in [
            ("a$X", "aex"),
            ("${X}y", "exy"),
            ("$Xy", ""),
            ("'$X'", "$X"),
            ("\"$X\"", "ex"),
            ("\\$X", "$X"),
            ("\"\\$X\"", "$X"),
            ("'quo'\"'\"'te'", "quo'te"),
            ("\"a\\nb\"", "a\\nb"),
            ("a\\ b", "a b"),
            ("$", "$"),
            ("$ x", "$ x"),
            ("${NO:-d}", "d"),
            ("${EMPTY:-d}", "d"),
            ("${EMPTY-d}", ""),
            ("${NO-$X}", "ex"),
            ("${NO:-${X:+in}}", "in"),
            ("${X:+y}", "y"),
            ("${NO:+y}", ""),
            ("${EMPTY+y}", "y"),
            ("${X:?bad}", "ex"),
            ("${NO:?no way}", "! variable NO has no value: no way"),
            ("${PATH#*/}", "usr/bin:/bin"),
            ("${PATH##*/}", "bin"),
            ("${PATH%/*}", "/usr/bin:"),
            ("${PATH%%:*}", "/usr/bin"),
            ("${PATH/bin/lib}", "/usr/lib:/bin"),
            ("${PATH//bin/lib}", "/usr/lib:/lib"),
            ("${PATH/nothing}", "/usr/bin:/bin"),
            ("/.uv/.venv/bin:$PATH", "/.uv/.venv/bin:/usr/bin:/bin"),
            ("${X", "! bad substitution \"${X\": expected }"),
            ("'open", "! bad substitution \"'open\": expected the closing quote"),
        ] {
            assert_eq!(expand(written), expected, "{written}");
        }
    }

    #[test]
    fn bodies_keep_their_quotes() {
        let body = Template::new("a='$X' \\n \\$X \"${X}\"", '\\');
        assert_eq!(body.expand_body(&value).unwrap(), "a='ex' \\n $X \"ex\"");
    }

    #[test]
    fn raw_words_keep_quotes_together() {
        assert_eq!(raw("a='b c' \"d e\"f g\\ h", '\\'), ["a='b c'", "\"d e\"f", "g\\ h"]);
    }
}
