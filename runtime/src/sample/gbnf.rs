//! llama.cpp's grammar notation (GBNF), translated to Lark.
//!
//! Rules that do not lead back to themselves become terminals, so that each is one regular expression to the lexer; the rest
//! stay rules. Names are replaced by numbers and all characters but letters and digits are written as code points, so that
//! nothing in a source can be taken for Lark.

use super::grammar::{GrammarError, MAX_DEPTH};
use std::collections::HashMap;
use std::fmt::Write;

/// Most rules of a grammar.
const MAX_RULES: usize = 10_000;
/// Largest bound of a repetition, as in llama.cpp.
const MAX_REPEAT: u32 = 2000;

enum Node {
    /// A regular expression for characters.
    Characters(String),
    Rule(usize),
    Sequence(Vec<Node>),
    Choice(Vec<Node>),
    Repeat(Box<Node>, String),
}

/// Translates a grammar whose first rule is called `root`.
///
/// # Errors
/// Malformed, a rule that is missing or defined twice, or nested too deeply.
pub fn to_lark(source: &str) -> Result<String, GrammarError> {
    let mut reader = Reader { text: source, names: HashMap::new(), rules: Vec::new(), depth: 0 };
    reader.skip();
    while !reader.text.is_empty() {
        reader.rule()?;
    }
    let Some(&root) = reader.names.get("root") else { return invalid("no rule named root") };
    let mut rules = Vec::with_capacity(reader.rules.len());
    for (index, rule) in reader.rules.into_iter().enumerate() {
        let undefined =
            || reader.names.iter().find(|entry| *entry.1 == index).map_or("", |entry| entry.0.as_str());
        match rule {
            Some(rule) => rules.push(rule),
            None => return invalid(&format!("rule {} is not defined", undefined())),
        }
    }
    let regular = regular_rules(&rules);
    let mut lark = format!("start: {}\n", name(root, &regular));
    for (index, rule) in rules.iter().enumerate() {
        let _ = write!(lark, "{}: ", name(index, &regular)); // writing to a String cannot fail
        print(rule, &regular, &mut lark);
        lark.push('\n');
    }
    Ok(lark)
}

fn invalid<T>(message: &str) -> Result<T, GrammarError> {
    Err(GrammarError::Invalid(message.chars().take(200).collect()))
}

fn name(rule: usize, regular: &[bool]) -> String {
    if regular[rule] { format!("T{rule}") } else { format!("r{rule}") }
}

/// Which rules only lead to rules that end: those that refer to none, those that refer only to such, and so on.
fn regular_rules(rules: &[Node]) -> Vec<bool> {
    let mut referrers = vec![Vec::new(); rules.len()];
    let mut open = vec![0usize; rules.len()];
    for (index, rule) in rules.iter().enumerate() {
        let mut targets = Vec::new();
        references(rule, &mut targets);
        open[index] = targets.len();
        targets.into_iter().for_each(|target| referrers[target].push(index));
    }
    let mut regular = vec![false; rules.len()];
    let mut ready: Vec<usize> = (0..rules.len()).filter(|&index| open[index] == 0).collect();
    while let Some(index) = ready.pop() {
        regular[index] = true;
        for &referrer in &referrers[index] {
            open[referrer] -= 1;
            if open[referrer] == 0 {
                ready.push(referrer);
            }
        }
    }
    regular
}

fn references(node: &Node, targets: &mut Vec<usize>) {
    match node {
        Node::Characters(_) => {}
        Node::Rule(rule) => targets.push(*rule),
        Node::Sequence(nodes) | Node::Choice(nodes) => {
            nodes.iter().for_each(|node| references(node, targets))
        }
        Node::Repeat(node, _) => references(node, targets),
    }
}

fn print(node: &Node, regular: &[bool], lark: &mut String) {
    match node {
        Node::Characters(pattern) => lark.push_str(&format!("/{pattern}/")),
        Node::Rule(rule) => lark.push_str(&name(*rule, regular)),
        Node::Sequence(nodes) if nodes.is_empty() => lark.push_str("\"\""),
        Node::Sequence(nodes) => print_list(nodes, " ", regular, lark),
        Node::Choice(nodes) => {
            lark.push('(');
            print_list(nodes, " | ", regular, lark);
            lark.push(')');
        }
        Node::Repeat(node, times) => {
            lark.push('(');
            print(node, regular, lark);
            lark.push(')');
            lark.push_str(times);
        }
    }
}

fn print_list(nodes: &[Node], separator: &str, regular: &[bool], lark: &mut String) {
    for (index, node) in nodes.iter().enumerate() {
        if index > 0 {
            lark.push_str(separator);
        }
        print(node, regular, lark);
    }
}

struct Reader<'s> {
    text: &'s str,
    names: HashMap<String, usize>,
    rules: Vec<Option<Node>>,
    depth: usize,
}

impl<'s> Reader<'s> {
    /// Skips white space and comments.
    fn skip(&mut self) {
        loop {
            self.text = self.text.trim_start();
            let Some(comment) = self.text.strip_prefix('#') else { return };
            self.text = comment.find('\n').map_or("", |end| &comment[end..]);
        }
    }

    fn take(&mut self, token: &str) -> bool {
        match self.text.strip_prefix(token) {
            Some(rest) => {
                self.text = rest;
                self.skip();
                true
            }
            None => false,
        }
    }

    /// A rule's name at the beginning of the text, not taken yet.
    fn peek_name(&self) -> &'s str {
        let is_name = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        &self.text[..self.text.find(|c| !is_name(c)).unwrap_or(self.text.len())]
    }

    /// Whether the next rule begins here.
    fn at_rule(&self) -> bool {
        let name = self.peek_name();
        let mut after =
            Reader { text: &self.text[name.len()..], names: HashMap::new(), rules: Vec::new(), depth: 0 };
        after.skip();
        !name.is_empty() && after.text.starts_with("::=")
    }

    fn number_of(&mut self, name: &str) -> Result<usize, GrammarError> {
        if let Some(&number) = self.names.get(name) {
            return Ok(number);
        }
        if self.rules.len() >= MAX_RULES {
            return invalid(&format!("more than {MAX_RULES} rules"));
        }
        self.names.insert(name.to_owned(), self.rules.len());
        self.rules.push(None);
        Ok(self.rules.len() - 1)
    }

    fn rule(&mut self) -> Result<(), GrammarError> {
        if !self.at_rule() {
            return invalid(&format!(
                "expected a rule at {:?}",
                self.text.chars().take(20).collect::<String>()
            ));
        }
        let name = self.peek_name();
        self.take(name);
        self.take("::=");
        let number = self.number_of(name)?;
        if self.rules[number].is_some() {
            return invalid(&format!("rule {name} is defined twice"));
        }
        let node = self.choice()?;
        self.rules[number] = Some(node);
        Ok(())
    }

    fn choice(&mut self) -> Result<Node, GrammarError> {
        let mut choices = vec![self.sequence()?];
        while self.take("|") {
            choices.push(self.sequence()?);
        }
        Ok(if choices.len() == 1 { choices.remove(0) } else { Node::Choice(choices) })
    }

    fn sequence(&mut self) -> Result<Node, GrammarError> {
        let mut nodes = Vec::new();
        while !self.text.is_empty() && !self.text.starts_with(['|', ')']) && !self.at_rule() {
            let mut node = self.item()?;
            while let Some(times) = self.times()? {
                node = Node::Repeat(Box::new(node), times);
            }
            nodes.push(node);
        }
        Ok(Node::Sequence(nodes))
    }

    fn item(&mut self) -> Result<Node, GrammarError> {
        let name = self.peek_name();
        if !name.is_empty() {
            self.take(name);
            return Ok(Node::Rule(self.number_of(name)?));
        }
        if self.take("(") {
            self.depth += 1;
            if self.depth > MAX_DEPTH {
                return Err(GrammarError::Depth { depth: self.depth });
            }
            let inner = self.choice()?;
            self.depth -= 1;
            return if self.take(")") { Ok(inner) } else { invalid("an opening bracket is not closed") };
        }
        if self.take(".") {
            return Ok(Node::Characters("(?s:.)".to_owned()));
        }
        if let Some(rest) = self.text.strip_prefix('"') {
            self.text = rest;
            return self.literal();
        }
        if let Some(rest) = self.text.strip_prefix('[') {
            self.text = rest;
            return self.class();
        }
        invalid(&format!("unexpected {:?}", self.text.chars().take(20).collect::<String>()))
    }

    fn literal(&mut self) -> Result<Node, GrammarError> {
        let mut pattern = String::new();
        while !self.text.starts_with('"') {
            pattern.push_str(&code_point(self.character()?));
        }
        self.text = &self.text[1..];
        self.skip();
        Ok(if pattern.is_empty() { Node::Sequence(Vec::new()) } else { Node::Characters(pattern) })
    }

    fn class(&mut self) -> Result<Node, GrammarError> {
        let mut pattern = String::from("[");
        if let Some(rest) = self.text.strip_prefix('^') {
            self.text = rest;
            pattern.push('^');
        }
        let empty = pattern.len();
        while !self.text.starts_with(']') {
            let first = self.character()?;
            pattern.push_str(&code_point(first));
            let is_range = self.text.starts_with('-') && !self.text.starts_with("-]");
            if is_range {
                self.text = &self.text[1..];
                let last = self.character()?;
                if last < first {
                    return invalid(&format!("the range {first:?} to {last:?} is empty"));
                }
                pattern.push('-');
                pattern.push_str(&code_point(last));
            }
        }
        self.text = &self.text[1..];
        self.skip();
        if pattern.len() == empty {
            return invalid("a character class is empty");
        }
        pattern.push(']');
        Ok(Node::Characters(pattern))
    }

    /// One character of a literal or class, with its escapes.
    fn character(&mut self) -> Result<char, GrammarError> {
        let mut characters = self.text.chars();
        let Some(first) = characters.next() else { return invalid("a literal or class is not closed") };
        if first != '\\' {
            self.text = characters.as_str();
            return Ok(first);
        }
        let digits = match characters.next() {
            Some('n') => return self.escaped(characters.as_str(), '\n'),
            Some('r') => return self.escaped(characters.as_str(), '\r'),
            Some('t') => return self.escaped(characters.as_str(), '\t'),
            Some(itself @ ('\\' | '"' | '[' | ']' | '-' | '^' | '/' | '\'')) => {
                return self.escaped(characters.as_str(), itself);
            }
            Some('x') => 2,
            Some('u') => 4,
            Some('U') => 8,
            _ => return invalid("unknown escape"),
        };
        let rest = characters.as_str();
        let code = rest.get(..digits).and_then(|digits| u32::from_str_radix(digits, 16).ok());
        match code.and_then(char::from_u32) {
            Some(character) => self.escaped(&rest[digits..], character),
            None => invalid("an escape is no code point"),
        }
    }

    fn escaped(&mut self, rest: &'s str, character: char) -> Result<char, GrammarError> {
        self.text = rest;
        Ok(character)
    }

    fn times(&mut self) -> Result<Option<String>, GrammarError> {
        for sign in ["*", "+", "?"] {
            if self.take(sign) {
                return Ok(Some(sign.to_owned()));
            }
        }
        if !self.take("{") {
            return Ok(None);
        }
        let Some(end) = self.text.find('}') else { return invalid("a repetition is not closed") };
        let bounds = &self.text[..end];
        self.text = &self.text[end + 1..];
        self.skip();
        let number = |text: &str| match text.trim().parse::<u32>() {
            Ok(number) if number <= MAX_REPEAT => Ok(number),
            _ => invalid(&format!("a repetition's bound is not a number up to {MAX_REPEAT}")),
        };
        let (least, most) = match bounds.split_once(',') {
            None => (number(bounds)?, Some(number(bounds)?)),
            Some((least, most)) if most.trim().is_empty() => (number(least)?, None),
            Some((least, most)) => (number(least)?, Some(number(most)?)),
        };
        match most {
            Some(most) if most < least => invalid("a repetition's bounds are the wrong way round"),
            Some(most) => Ok(Some(format!("{{{least},{most}}}"))),
            None => Ok(Some(format!("{{{least},}}"))),
        }
    }
}

fn code_point(character: char) -> String {
    if character.is_ascii_alphanumeric() {
        character.to_string()
    } else {
        format!("\\x{{{:X}}}", character as u32)
    }
}
