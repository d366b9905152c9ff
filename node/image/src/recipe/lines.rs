//! From text to logical lines: directives, continuations, comments, heredocs.
//!
//! A logical line is one instruction with everything that belongs to it. Three rules are easy to get wrong and are
//! therefore spelled out here:
//! - a line continues when it ends in the escape character and optional blanks; a doubled escape character does not
//!   continue it;
//! - comment lines and empty lines inside a continued instruction vanish, they do not end it;
//! - heredoc bodies are taken as they are: no comments, no continuations, no trimming (save leading tabs for `<<-`).
//!
//! Lines may end in CRLF. The carriage return is dropped everywhere, in heredocs too: no shell wants it.

use super::error::{Error, Problem};
use super::words;

/// A body given inline: `<<NAME` in RUN, COPY or ADD.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heredoc {
    /// The delimiter, quotes removed. For COPY and ADD it is the name of the file.
    pub name: String,
    /// The lines up to the delimiter, each with its newline.
    pub body: String,
    /// False when the delimiter was quoted: variables in the body stay as they are.
    pub expand: bool,
    /// `<<-`: leading tabs of each line are dropped.
    pub strip_tabs: bool,
    /// The word as written, for example `3<<-"END"`.
    pub token: String,
}

impl Heredoc {
    /// Returns the body with leading tabs dropped where `<<-` asks for it.
    pub fn content(&self) -> String {
        if !self.strip_tabs {
            return self.body.clone();
        }
        self.body.split_inclusive('\n').map(|line| line.trim_start_matches('\t')).collect()
    }
}

/// One instruction with its continuation lines joined.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Logical {
    /// Line on which it starts, from 1.
    pub(super) line: u32,
    /// First word as written.
    pub(super) name: String,
    /// Everything after the first word, trimmed.
    pub(super) rest: String,
    pub(super) heredocs: Vec<Heredoc>,
}

/// The lines of a recipe and the escape character that its directives chose.
pub(super) struct Lines {
    pub(super) escape: char,
    pub(super) logical: Vec<Logical>,
}

/// Cuts a recipe into logical lines.
pub(super) fn split(text: &str) -> Result<Lines, Error> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let physical: Vec<&str> = text.split('\n').map(|line| line.strip_suffix('\r').unwrap_or(line)).collect();
    let escape = directives(&physical)?;
    let mut reader = Reader { physical: &physical, next: 0, escape };
    let mut logical = Vec::new();
    while let Some(line) = reader.logical()? {
        logical.push(line);
    }
    Ok(Lines { escape, logical })
}

/// Reads the parser directives at the top and returns the escape character.
fn directives(physical: &[&str]) -> Result<char, Error> {
    let mut escape = '\\';
    for (index, line) in physical.iter().enumerate() {
        let Some((name, value)) = directive(line) else { break };
        if name == "escape" {
            escape = match value {
                "\\" => '\\',
                "`" => '`',
                _ => {
                    let problem = Problem::Directive { name, value: value.to_owned(), expected: "\\ or `" };
                    return Err(problem.at(index as u32 + 1, "#"));
                }
            };
        }
    }
    Ok(escape)
}

/// Returns name and value when the line is a parser directive.
fn directive(line: &str) -> Option<(String, &str)> {
    let (name, value) = line.trim().strip_prefix('#')?.split_once('=')?;
    let name = name.trim().to_ascii_lowercase();
    matches!(name.as_str(), "syntax" | "escape" | "check").then(|| (name, value.trim()))
}

struct Reader<'a> {
    physical: &'a [&'a str],
    next: usize,
    escape: char,
}

impl Reader<'_> {
    /// Returns the next instruction, or nothing at the end.
    fn logical(&mut self) -> Result<Option<Logical>, Error> {
        while self.next < self.physical.len() && is_blank_or_comment(self.physical[self.next]) {
            self.next += 1;
        }
        if self.next == self.physical.len() {
            return Ok(None);
        }
        let line = self.next as u32 + 1;
        let text = self.joined();
        if text.is_empty() {
            // Nothing but a continuation mark.
            return self.logical();
        }
        let (name, rest) = match text.split_once(|c: char| c.is_ascii_whitespace()) {
            Some((name, rest)) => (name.to_owned(), rest.trim().to_owned()),
            None => (text.clone(), String::new()),
        };
        let heredocs = self.heredocs(&name, &rest).map_err(|problem| problem.at(line, &name))?;
        Ok(Some(Logical { line, name, rest, heredocs }))
    }

    /// Joins one line with those that continue it.
    fn joined(&mut self) -> String {
        let mut text = String::new();
        let mut first = true;
        while self.next < self.physical.len() {
            let line = self.physical[self.next];
            self.next += 1;
            if !first && is_blank_or_comment(line) {
                continue;
            }
            let line = if first { line.trim_start() } else { line };
            first = false;
            match continued(line, self.escape) {
                Some(head) => text.push_str(head),
                None => {
                    text.push_str(line);
                    break;
                }
            }
        }
        text.trim().to_owned()
    }

    /// Takes the bodies of the heredocs that the instruction names.
    fn heredocs(&mut self, name: &str, rest: &str) -> Result<Vec<Heredoc>, Problem> {
        if !takes_heredocs(name, rest) {
            return Ok(Vec::new());
        }
        let mut heredocs = Vec::new();
        for token in words::raw(rest, self.escape) {
            if let Some(mut heredoc) = heredoc_start(&token, self.escape) {
                heredoc.body = self.body(&heredoc)?;
                heredocs.push(heredoc);
            }
        }
        Ok(heredocs)
    }

    fn body(&mut self, heredoc: &Heredoc) -> Result<String, Problem> {
        let mut body = String::new();
        while self.next < self.physical.len() {
            let line = self.physical[self.next];
            self.next += 1;
            let compared = if heredoc.strip_tabs { line.trim_start_matches('\t') } else { line };
            if compared == heredoc.name {
                return Ok(body);
            }
            body.push_str(line);
            body.push('\n');
        }
        Err(Problem::Heredoc { name: heredoc.name.clone() })
    }
}

fn takes_heredocs(name: &str, rest: &str) -> bool {
    let name = match name.eq_ignore_ascii_case("ONBUILD") {
        true => rest.split_ascii_whitespace().next().unwrap_or_default(),
        false => name,
    };
    ["RUN", "COPY", "ADD"].iter().any(|known| name.eq_ignore_ascii_case(known))
}

fn is_blank_or_comment(line: &str) -> bool {
    let line = line.trim_start();
    line.is_empty() || line.starts_with('#')
}

/// Returns the line without its continuation mark, or nothing when it has none.
fn continued(line: &str, escape: char) -> Option<&str> {
    let head = line.trim_end_matches([' ', '\t']).strip_suffix(escape)?;
    (!head.ends_with(escape)).then_some(head)
}

/// Reads `[fd]<<[-]NAME`.
fn heredoc_start(token: &str, escape: char) -> Option<Heredoc> {
    let after = token.trim_start_matches(|c: char| c.is_ascii_digit()).strip_prefix("<<")?;
    let (strip_tabs, written) = match after.strip_prefix('-') {
        Some(written) => (true, written),
        None => (false, after),
    };
    if written.is_empty() || written.contains('<') {
        return None;
    }
    let quoted = written.contains(['\'', '"', escape]);
    let name = if quoted { words::unquoted(written, escape) } else { written.to_owned() };
    Some(Heredoc { name, body: String::new(), expand: !quoted, strip_tabs, token: token.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(recipe: &str) -> Vec<(u32, String)> {
        let lines = split(recipe).unwrap();
        lines.logical.into_iter().map(|line| (line.line, format!("{} {}", line.name, line.rest))).collect()
    }

    #[test]
    fn continuations_may_have_trailing_blanks_comments_and_empty_lines() {
        let recipe = "FROM x\nRUN a && \\ \t\n  # a comment\n\n  b && \\\nc # not a comment\nCMD d";
        assert_eq!(texts(recipe), [(1, "FROM x".into()), (2, "RUN a &&   b && c # not a comment".into()), (7, "CMD d".into())]);
    }

    #[test]
    fn a_doubled_escape_does_not_continue() {
        assert_eq!(texts("RUN a \\\\\nRUN b"), [(1, "RUN a \\\\".into()), (2, "RUN b".into())]);
    }

    #[test]
    fn the_escape_directive_counts_only_at_the_top() {
        assert_eq!(texts("# escape=`\nRUN a `\nb\\\nRUN c"), [(2, "RUN a b\\".into()), (4, "RUN c".into())]);
        assert_eq!(texts("# note\n# escape=`\nRUN a `\nRUN c"), [(3, "RUN a `".into()), (4, "RUN c".into())]);
        assert!(split("# escape=x\nRUN a").is_err_and(|error| error.to_string().contains("expected \\ or `")));
    }

    #[test]
    fn heredoc_bodies_are_taken_as_they_are() {
        let lines = split("RUN python3 <<PY > /x\n# kept \\\n\n  print(1)\nPY\nRUN b").unwrap().logical;
        assert_eq!(lines[0].heredocs[0].body, "# kept \\\n\n  print(1)\n");
        assert_eq!((lines[1].line, lines.len()), (6, 2));
    }

    #[test]
    fn several_heredocs_follow_each_other() {
        let lines = split("COPY <<A <<-'B' /d/\none\nA\n\ttwo $x\n\tB\nRUN c").unwrap().logical;
        let [a, b] = &lines[0].heredocs[..] else { panic!("{lines:?}") };
        assert_eq!((a.name.as_str(), a.content().as_str(), a.expand), ("A", "one\n", true));
        assert_eq!((b.name.as_str(), b.content().as_str(), b.expand), ("B", "two $x\n", false));
    }

    #[test]
    fn shift_operators_and_here_strings_are_not_heredocs() {
        for line in ["RUN echo $((1<<3))", "RUN cat <<< word", "RUN echo 'a <<B'", "CMD cat <<EOF", "RUN a << b"] {
            assert_eq!(split(line).unwrap().logical[0].heredocs, [], "{line}");
        }
    }

    #[test]
    fn an_open_heredoc_names_its_delimiter() {
        let error = split("FROM x\nRUN <<EOF\na").err().unwrap();
        assert_eq!(error.to_string(), "line 2: RUN: heredoc <<EOF has no line that says EOF");
    }
}
