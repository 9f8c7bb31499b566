//! Single faults by rule, in C++ sources. A rule sees tokens and spacing, not types: sources are formatted so that binary
//! operators stand between spaces and brackets of templates do not.

use std::ops::Range;

use crate::lexer::{Kind, Token};

/// A change of text that keeps the number of lines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Edit {
    pub range: Range<usize>,
    pub text: String,
}

/// What a rule plants.
#[derive(Clone, Debug)]
pub struct Fault {
    pub rule: &'static str,
    pub edits: Vec<Edit>,
}

/// The rules and what they do, in the order of the report.
pub const RULES: [(&str, &str); 22] = [
    ("arithmetic", "an arithmetic operator becomes another"),
    ("barrier", "a barrier of the block dropped"),
    ("bit", "an operator on bits becomes another, or a shift the other way"),
    ("bound", "a comparison takes in, or leaves out, the bound"),
    ("branch", "the wrong branch taken: a condition negated, the sides of a choice exchanged"),
    ("canonical", "a NaN stored as it is"),
    ("comparison", "a comparison turned round"),
    ("component", "the neighbouring component of a vector"),
    ("condition", "one condition of a launcher dropped"),
    ("constant", "a constant one larger or smaller"),
    ("dependent", "release and wait of a dependent launch exchanged, or the wait dropped"),
    ("extremum", "the smaller for the larger"),
    ("fence", "a fence, or the commit or wait of an asynchronous copy, dropped"),
    ("fma", "an fma split into product and sum, or a product and a sum contracted"),
    ("guard", "the condition of a statement dropped"),
    ("lane", "a shuffle from the neighbouring lane"),
    ("logic", "and for or, or for and, a negation dropped"),
    ("order", "terms of a sum in another order"),
    ("statement", "an assignment or a call dropped"),
    ("status", "the status of a launch ignored"),
    ("syncwarp", "a barrier of the warp dropped"),
    ("type", "the wrong type in a dispatch"),
];

/// Calls without an effect on values: they place loads and touch caches, and code without them is as right.
const ONLY_SPEED: [&str; 3] = ["kqm_touch_arguments", "kqm_materialize", "KQM_UNROLL"];
/// What a statement that is neither a declaration nor an expression begins with.
const KEYWORDS: [&str; 30] = [
    "return",
    "if",
    "for",
    "while",
    "do",
    "else",
    "switch",
    "case",
    "default",
    "break",
    "continue",
    "const",
    "constexpr",
    "auto",
    "static",
    "using",
    "struct",
    "typedef",
    "template",
    "extern",
    "namespace",
    "union",
    "enum",
    "static_assert",
    "goto",
    "public",
    "private",
    "asm",
    "friend",
    "volatile",
];
/// Types that two alternatives of a dispatch exchange.
const TYPES: [(&str, &str); 4] = [
    ("KqmTileQ4K", "KqmTileQ6K"),
    ("KQM_TYPE_Q4_K", "KQM_TYPE_Q6_K"),
    ("KQM_TYPE_F32", "KQM_TYPE_F16"),
    ("true", "false"),
];
const EXTREMA: [(&str, &str); 5] =
    [("min", "max"), ("fmaxf", "fminf"), ("kqm_reduce_max", "kqm_reduce_min"), ("fmax", "fmin"), ("larger", "smaller")];

/// All faults of a source, in the order of its text.
pub fn faults(source: &str, tokens: &[Token]) -> Vec<Fault> {
    let mut code = Code { source, tokens, partner: Vec::new(), fixed: Vec::new(), found: Vec::new() };
    code.pair();
    code.mark_fixed();
    for at in 0..tokens.len() {
        code.operators(at);
        code.constants(at);
        code.calls(at);
        code.choices(at);
        code.loops(at);
        code.contractions(at);
        code.statements(at);
        code.types(at);
    }
    code.dependents();
    let mut found = code.found;
    found.retain(|fault| fault.edits.iter().any(|edit| source[edit.range.clone()] != edit.text));
    found.sort_by_key(|fault| (fault.edits[0].range.start, fault.rule));
    // Two rules may come to the same text.
    let mut seen = std::collections::HashSet::new();
    found.retain(|fault| seen.insert(apply(source, &fault.edits)));
    found
}

/// The text with the edits made.
pub fn apply(source: &str, edits: &[Edit]) -> String {
    let mut edits: Vec<&Edit> = edits.iter().collect();
    edits.sort_by_key(|edit| std::cmp::Reverse(edit.range.start));
    let mut text = source.to_owned();
    for edit in edits {
        text.replace_range(edit.range.clone(), &edit.text);
    }
    text
}

struct Code<'a> {
    source: &'a str,
    tokens: &'a [Token],
    /// Of each bracket its partner; of other tokens themselves.
    partner: Vec<usize>,
    /// Tokens that no rule changes.
    fixed: Vec<bool>,
    found: Vec<Fault>,
}

impl Code<'_> {
    fn text(&self, at: usize) -> &str {
        self.tokens.get(at).map_or("", |token| &self.source[token.range.clone()])
    }

    fn before(&self, at: usize) -> &str {
        if at == 0 { "" } else { self.text(at - 1) }
    }

    /// The source from one token to another one, both included.
    fn span(&self, first: usize, last: usize) -> &str {
        &self.source[self.tokens[first].range.start..self.tokens[last].range.end]
    }

    fn pair(&mut self) {
        self.partner = (0..self.tokens.len()).collect();
        let mut open = Vec::new();
        for at in 0..self.tokens.len() {
            match self.text(at) {
                "(" | "[" | "{" => open.push(at),
                ")" | "]" | "}" => {
                    if let Some(other) = open.pop() {
                        (self.partner[at], self.partner[other]) = (other, at);
                    }
                }
                _ => {}
            }
        }
    }

    /// What is checked when it is compiled, and what only advises the compiler.
    fn mark_fixed(&mut self) {
        self.fixed = vec![false; self.tokens.len()];
        for at in 0..self.tokens.len() {
            let word = self.text(at);
            if ["static_assert", "__launch_bounds__", "alignas", "__attribute__", "asm", "decltype"].contains(&word) {
                let open = (at + 1..at + 3).find(|&open| self.text(open) == "(");
                if let Some(open) = open {
                    self.fixed[at..=self.partner[open]].fill(true);
                }
            } else if word == "__builtin_expect" && self.text(at + 1) == "(" {
                let close = self.partner[at + 1];
                self.fixed[close - 1] = true;
            } else if word == "[" && self.declares(at) {
                // A longer array is as good, and a shorter one is the compiler's matter.
                let close = self.partner[at];
                self.fixed[at..=close].fill(true);
            } else if word == "KQM_SHARED" && self.text(at + 1) == "(" {
                self.fixed[at..=self.partner[at + 1]].fill(true);
            }
        }
    }

    /// Whether a bracket belongs to a declared array: a type and a name come before it.
    fn declares(&self, at: usize) -> bool {
        if at < 2 {
            return false;
        }
        if self.before(at) == ")" {
            return self.text(self.partner[at - 1] + 1) == "&";
        }
        let (kind, name) = (&self.tokens[at - 2], &self.tokens[at - 1]);
        let keyword = ["return", "case", "else"].contains(&self.text(at - 2));
        name.kind == Kind::Word && kind.kind == Kind::Word && !keyword
    }

    fn add(&mut self, rule: &'static str, edits: Vec<Edit>) {
        if edits
            .iter()
            .all(|edit| self.source[edit.range.clone()].matches('\n').count() == edit.text.matches('\n').count())
        {
            self.found.push(Fault { rule, edits });
        }
    }

    /// Replaces tokens, and keeps the number of lines.
    fn replace(&mut self, rule: &'static str, first: usize, last: usize, text: &str) {
        let range = self.tokens[first].range.start..self.tokens[last].range.end;
        let lines = self.source[range.clone()].matches('\n').count();
        let more = lines.saturating_sub(text.matches('\n').count());
        let line_end = if self.tokens[first].directive.is_some() { " \\\n" } else { "\n" };
        self.add(rule, vec![Edit { range, text: format!("{text}{}", line_end.repeat(more)) }]);
    }

    fn exchange(&mut self, rule: &'static str, a: Range<usize>, b: Range<usize>) {
        let (first, second) = (self.source[a.clone()].to_owned(), self.source[b.clone()].to_owned());
        let edits = vec![Edit { range: a, text: second }, Edit { range: b, text: first }];
        let lines = |text: &str| text.matches('\n').count();
        let total = |texts: Vec<&str>| texts.into_iter().map(lines).sum::<usize>();
        // Both together keep the lines, even where each alone does not.
        let old = total(edits.iter().map(|edit| &self.source[edit.range.clone()]).collect());
        if old == total(edits.iter().map(|edit| edit.text.as_str()).collect()) {
            self.found.push(Fault { rule, edits });
        }
    }

    /// Whether an operator stands between spaces, and so has two operands.
    fn binary(&self, at: usize) -> bool {
        let range = self.tokens[at].range.clone();
        let blank = |c: Option<char>| c.is_some_and(char::is_whitespace);
        let operand_before = at > 0
            && (self.tokens[at - 1].kind != Kind::Punctuation || [")", "]", "++", "--"].contains(&self.before(at)));
        let spaced =
            blank(self.source[..range.start].chars().next_back()) && blank(self.source[range.end..].chars().next());
        operand_before && spaced && !["template", "operator", "return"].contains(&self.before(at))
    }

    fn operators(&mut self, at: usize) {
        if self.fixed[at] || self.tokens[at].kind != Kind::Punctuation {
            return;
        }
        if self.binary(at) {
            let changes: &[(&'static str, &str)] = match self.text(at) {
                "<" => &[("bound", "<="), ("comparison", ">=")],
                "<=" => &[("bound", "<"), ("comparison", ">")],
                ">" => &[("bound", ">="), ("comparison", "<=")],
                ">=" => &[("bound", ">"), ("comparison", "<")],
                "==" => &[("comparison", "!=")],
                "!=" => &[("comparison", "==")],
                "+" => &[("arithmetic", "-")],
                "-" => &[("arithmetic", "+")],
                "*" => &[("arithmetic", "+")],
                "/" => &[("arithmetic", "*")],
                "%" => &[("arithmetic", "/")],
                "+=" => &[("arithmetic", "-=")],
                "-=" => &[("arithmetic", "+=")],
                "*=" => &[("arithmetic", "+=")],
                "/=" => &[("arithmetic", "*=")],
                "&" => &[("bit", "|")],
                "|" => &[("bit", "&")],
                "^" => &[("bit", "|")],
                "<<" => &[("bit", ">>")],
                ">>" => &[("bit", "<<")],
                "&=" => &[("bit", "|=")],
                "|=" => &[("bit", "&=")],
                "^=" => &[("bit", "|=")],
                "<<=" => &[("bit", ">>=")],
                ">>=" => &[("bit", "<<=")],
                "&&" => &[("logic", "||")],
                "||" => &[("logic", "&&")],
                _ => &[],
            };
            for (rule, text) in changes {
                self.replace(rule, at, at, text);
            }
        } else if self.text(at) == "!" {
            self.replace("logic", at, at, "!!");
        } else if self.text(at) == "~" {
            self.replace("bit", at, at, "+");
        }
    }

    fn constants(&mut self, at: usize) {
        if self.fixed[at] || self.tokens[at].kind != Kind::Number {
            return;
        }
        let text = self.text(at).to_owned();
        for text in other_constants(&text) {
            self.replace("constant", at, at, &text);
        }
    }

    /// The arguments of a call: first and last token of each.
    fn arguments(&self, open: usize) -> Vec<(usize, usize)> {
        self.split(open + 1, self.partner[open], &[","])
    }

    /// Parts of the tokens `first .. end` between separators outside brackets.
    fn split(&self, first: usize, end: usize, separators: &[&str]) -> Vec<(usize, usize)> {
        let (mut parts, mut start, mut at) = (Vec::new(), first, first);
        while at < end {
            if separators.contains(&self.text(at)) {
                if at > start {
                    parts.push((start, at - 1));
                }
                start = at + 1;
            }
            at = self.partner[at].max(at) + 1;
        }
        if end > start {
            parts.push((start, end - 1));
        }
        parts
    }

    /// Whether a token begins a statement.
    fn begins(&self, at: usize) -> bool {
        match self.before(at) {
            ";" | "{" | "}" | "else" => true,
            ")" => {
                let open = self.partner[at - 1];
                open > 0 && ["if", "for", "while"].contains(&self.text(open - 1))
            }
            // The line before is a macro that takes no semicolon.
            word => ["KQM_LOOP", "KQM_UNROLL"].contains(&word),
        }
    }

    /// The semicolon that ends the statement, if it has no block.
    fn ends(&self, at: usize) -> Option<usize> {
        let mut end = at;
        while end < self.tokens.len() && self.text(end) != ";" {
            // A lambda's block is part of its statement.
            if [")", "]", "}"].contains(&self.text(end)) {
                return None;
            }
            end = self.partner[end].max(end) + 1;
        }
        (end < self.tokens.len() && self.tokens[end].directive == self.tokens[at].directive).then_some(end)
    }

    fn calls(&mut self, at: usize) {
        if self.fixed[at] || self.tokens[at].kind != Kind::Word {
            return;
        }
        let word = self.text(at).to_owned();
        if let (Some(rule), true, Some(end)) = (dropped_by(&word), self.begins(at), self.ends(at)) {
            self.replace(rule, at, end, ";");
        }
        if self.text(at + 1) != "(" {
            return;
        }
        // A declaration has a type before its name, not a call.
        let declared = at > 0
            && (self.tokens[at - 1].kind == Kind::Word && self.before(at) != "return" && self.before(at) != "else"
                || ["*", "&"].contains(&self.before(at)) && !self.binary(at - 1));
        let close = self.partner[at + 1];
        let arguments = self.arguments(at + 1);
        if declared || close <= at + 2 {
            return;
        }
        let argument = |index: usize| arguments.get(index).map(|&(first, last)| self.span(first, last).to_owned());
        let inside = self.span(at + 2, close - 1).to_owned();
        match word.as_str() {
            "kqm_canonical" => self.replace("canonical", at, close, &format!("({inside})")),
            "fma" | "fmaf" | "__fma_rn" | "__fmaf_rn" => {
                if let (Some(a), Some(b), Some(c)) = (argument(0), argument(1), argument(2)) {
                    self.replace("fma", at, close, &format!("(({a}) * ({b}) + ({c}))"));
                }
            }
            "__fadd_rn" | "__fsub_rn" | "__dadd_rn" => {
                let minus = if word == "__fsub_rn" { "-" } else { "" };
                let product = |index: usize| {
                    let &(first, last) = arguments.get(index)?;
                    let call =
                        ["__fmul_rn", "__dmul_rn"].contains(&self.text(first)) && self.partner[first + 1] == last;
                    call.then(|| self.arguments(first + 1))
                        .filter(|factors| factors.len() == 2)
                        .map(|factors| (self.span(factors[0].0, factors[0].1), self.span(factors[1].0, factors[1].1)))
                };
                let text = match (product(0), product(1)) {
                    (Some((a, b)), _) => format!("fma({a}, {b}, {minus}({}))", argument(1).unwrap_or_default()),
                    (_, Some((a, b))) => format!("fma({minus}({a}), {b}, {})", argument(0).unwrap_or_default()),
                    _ => return,
                };
                self.replace("fma", at, close, &text);
            }
            "__shfl_sync" | "__shfl_xor_sync" | "__shfl_down_sync" | "__shfl_up_sync" => {
                if let Some(&(first, last)) = arguments.get(2) {
                    let text = format!("(({}) ^ 1)", self.span(first, last));
                    self.replace("lane", first, last, &text);
                }
            }
            "KQM_REQUIRE" => {
                if let Some(&(first, _)) = arguments.first() {
                    let end = self.split(first, close, &[","])[0].1;
                    if self.split(first, end + 1, &["||"]).len() > 1 {
                        self.replace("condition", first, end, "true");
                    }
                    self.conditions(first, end);
                }
            }
            "KQM_TRY" if self.tokens[at].directive.is_none() => {
                let rule = if inside.starts_with("KQM_LAUNCH") { "status" } else { "condition" };
                let text = if rule == "status" { format!("(void)({inside})") } else { "(void)0".into() };
                self.replace(rule, at, close, &text);
            }
            _ => {}
        }
    }

    /// Each conjunct that a condition requires, also below an alternative.
    fn conditions(&mut self, first: usize, last: usize) {
        if self.text(first) == "(" && self.partner[first] == last {
            return self.conditions(first + 1, last - 1);
        }
        let alternatives = self.split(first, last + 1, &["||"]);
        if alternatives.len() > 1 {
            for (first, last) in alternatives {
                if self.span(first, last).contains("&&") {
                    self.conditions(first, last);
                }
            }
            // The alternatives together are a condition of whoever called.
            return;
        }
        for (first, last) in self.split(first, last + 1, &["&&"]) {
            self.replace("condition", first, last, "true");
            if self.text(first) == "(" && self.partner[first] == last {
                self.conditions(first + 1, last - 1);
            }
        }
    }

    fn choices(&mut self, at: usize) {
        if self.fixed[at] {
            return;
        }
        if self.text(at) == "if" && self.text(at + 1) == "(" && self.tokens[at].directive.is_none() {
            let close = self.partner[at + 1];
            if close < at + 3 {
                return;
            }
            let condition = self.span(at + 2, close - 1).to_owned();
            self.replace("branch", at + 2, close - 1, &format!("!({condition})"));
            // With a jump behind it, to drop the condition is to stop for good, and to drop the statement the opposite.
            let jumps = ["return", "continue", "break"].contains(&self.text(close + 1));
            self.replace("guard", at + 2, close - 1, if jumps { "false" } else { "true" });
        }
        if self.text(at) == "?" && self.binary(at) {
            let mut colon = at + 1;
            let mut depth = 0;
            while colon < self.tokens.len() && (self.text(colon) != ":" || depth > 0) {
                match self.text(colon) {
                    "?" => depth += 1,
                    ":" => depth -= 1,
                    ")" | "]" | "}" | ";" => return,
                    _ => {}
                }
                colon = self.partner[colon].max(colon) + 1;
            }
            let (mut end, mut depth) = (colon + 1, 0);
            while end < self.tokens.len() && ![")", "]", "}", ";", ","].contains(&self.text(end)) {
                match self.text(end) {
                    "?" => depth += 1,
                    ":" if depth == 0 => break,
                    ":" => depth -= 1,
                    _ => {}
                }
                end = self.partner[end].max(end) + 1;
            }
            if end >= self.tokens.len() || end <= colon + 1 || colon <= at + 1 {
                return;
            }
            let range = |first: usize, last: usize| self.tokens[first].range.start..self.tokens[last].range.end;
            self.exchange("branch", range(at + 1, colon - 1), range(colon + 1, end - 1));
        }
    }

    /// Loops over terms of a sum, run the other way, and neighbouring terms exchanged.
    fn loops(&mut self, at: usize) {
        if self.text(at) == "for" && self.text(at + 1) == "(" && self.tokens[at].directive.is_none() {
            let close = self.partner[at + 1];
            let body_end = if self.text(close + 1) == "{" {
                self.partner[close + 1]
            } else {
                (close..self.tokens.len()).find(|&end| self.text(end) == ";").unwrap_or(close)
            };
            let adds = |first: usize| {
                let word = self.text(first);
                let sum = self.tokens[first].kind == Kind::Word && self.text(first + 1) == "=" && {
                    let end = self.ends(first).unwrap_or(first);
                    let value = if end > first + 2 { self.span(first + 2, end - 1) } else { "" };
                    value.starts_with(word) && value.contains(" + ") || value.ends_with(&format!(", {word})"))
                };
                sum || self.text(first) == "add" || self.text(first) == "]" && self.adds_to_element(first)
            };
            let parts = self.split(at + 2, close, &[";"]);
            if !(close + 1..body_end).any(adds) || parts.len() != 3 {
                return;
            }
            let header = self.span(at + 2, close - 1).to_owned();
            if let Some(other) = reversed(&header) {
                self.replace("order", at + 2, close - 1, &other);
            }
        }
        // v = fma(a, b, v); v = fma(c, d, v): the products exchanged.
        if self.begins(at)
            && let Some(end) = self.ends(at)
            && let Some(next_end) = self.ends(end + 1)
            && let (Some(a), Some(b)) = (self.accumulated(at, end), self.accumulated(end + 1, next_end))
            && a.0 == b.0
        {
            self.exchange("order", a.1, b.1);
        }
        // a + b + c as a + (b + c).
        if self.text(at) == "+" && self.binary(at) && !self.fixed[at] {
            let last = self.operand_end(at + 1);
            if self.text(last + 1) == "+" && self.binary(last + 1) {
                let third = self.operand_end(last + 2);
                if self.floating(at - 1, third) {
                    let text = format!("({})", self.span(at + 1, third));
                    self.replace("order", at + 1, third, &text);
                }
            }
        }
    }

    /// a * b + c, contracted.
    fn contractions(&mut self, at: usize) {
        if self.text(at) != "*" || !self.binary(at) || self.fixed[at] {
            return;
        }
        let (first, last) = (self.operand_start(at - 1), self.operand_end(at + 1));
        if self.text(last + 1) != "+" || !self.binary(last + 1) || ["*", "/", "%", "-"].contains(&self.before(first)) {
            return;
        }
        let sum = self.operand_end(last + 2);
        if self.floating(first, sum) && !["*", "/", "%"].contains(&self.text(sum + 1)) {
            let (a, b, c) = (self.span(first, at - 1), self.span(at + 1, last), self.span(last + 2, sum));
            let text = format!("fma({a}, {b}, {c})");
            self.replace("fma", first, sum, &text);
        }
    }

    /// The last token of an operand with its members, arguments and indices.
    fn operand_end(&self, first: usize) -> usize {
        let mut last = self.partner.get(first).map_or(first, |&close| close.max(first));
        while [".", "::", "->", "(", "["].contains(&self.text(last + 1)) {
            last = if ["(", "["].contains(&self.text(last + 1)) { self.partner[last + 1] } else { last + 2 };
        }
        last
    }

    /// The first token of an operand, looking back.
    fn operand_start(&self, last: usize) -> usize {
        let mut first = self.partner[last].min(last);
        while first > 0 {
            let applied = ["(", "["].contains(&self.text(first)) && self.tokens[first - 1].kind == Kind::Word;
            if applied {
                first -= 1;
            } else if first > 1 && [".", "::", "->"].contains(&self.before(first)) {
                first = self.partner[first - 2].min(first - 2);
            } else {
                break;
            }
        }
        first
    }

    /// Whether tokens speak of something else than whole numbers, for which the order of sums does not matter.
    fn floating(&self, first: usize, last: usize) -> bool {
        let text = self.span(first, last);
        ["double(", "float(", ".group(", ".rest(", "0.0"].iter().any(|word| text.contains(word))
    }

    /// Whether behind the index of an element comes a sum that begins with the same element: `x[i] = x[i] + ...`.
    fn adds_to_element(&self, close: usize) -> bool {
        let open = self.partner[close];
        if self.text(close + 1) != "=" || open == 0 {
            return false;
        }
        let element = self.span(open - 1, close);
        let Some(end) = self.ends(close + 1) else { return false };
        if end <= close + 2 {
            return false;
        }
        let value = self.span(close + 2, end - 1);
        value.starts_with(element) && value.contains(" + ") || value.contains(&format!(", {element})"))
    }

    /// The variable of `v = fma(a, b, v);`, and where its product is.
    fn accumulated(&self, first: usize, end: usize) -> Option<(String, Range<usize>)> {
        let equals = (first..end).find(|&at| self.text(at) == "=")?;
        if equals == first || !["fma", "fmaf"].contains(&self.text(equals + 1)) {
            return None;
        }
        let variable = self.span(first, equals - 1).to_owned();
        let arguments = self.arguments(equals + 2);
        let &[(a, _), (_, b), (c, d)] = arguments.as_slice() else { return None };
        (self.span(c, d) == variable).then(|| (variable, self.tokens[a].range.start..self.tokens[b].range.end))
    }

    fn statements(&mut self, at: usize) {
        let word = self.text(at);
        let known = [&KEYWORDS[..], &ONLY_SPEED[..]].concat().contains(&word)
            || word.starts_with("KQM_")
            || dropped_by(word).is_some();
        let Some(end) = self.ends(at) else { return };
        if known || self.fixed[at] || !self.begins(at) || end < at + 2 || self.tokens[at].directive.is_some() {
            return;
        }
        // At the level of a file or a class there are declarations only.
        if !self.in_function(at) {
            return;
        }
        let call = self.text(end - 1) == ")";
        let equals = (at..end).find(|&at| ["=", "+=", "-=", "*=", "/=", "&=", "|=", "^="].contains(&self.text(at)));
        let first = &self.tokens[at];
        let next = &self.tokens[at + 1];
        let adjacent = |a: &Token, b: &Token| a.range.end == b.range.start;
        let declaration = first.kind == Kind::Word
            && (next.kind == Kind::Word
                || ["*", "&"].contains(&self.text(at + 1)) && !adjacent(first, next)
                || self.text(at + 1) == "<" && (equals.is_some() || self.names_before(end - 1))
                || self.text(at + 1) == "::"
                    && equals.is_some_and(|equals| self.tokens[equals - 2].kind == Kind::Word));
        if !declaration && (call || equals.is_some()) {
            self.replace("statement", at, end, ";");
        }
    }

    /// Whether a word and no bracket of a template stands before the call that ends with a bracket.
    fn names_before(&self, close: usize) -> bool {
        let open = self.partner[close];
        open > 0 && self.tokens[open - 1].kind == Kind::Word
    }

    /// Whether the innermost block around a token is one of a function.
    fn in_function(&self, at: usize) -> bool {
        let mut depth = 0;
        for open in (0..at).rev() {
            match self.text(open) {
                "}" => depth += 1,
                "{" if depth > 0 => depth -= 1,
                "{" => {
                    let head = (0..open).rev().find(|&b| [";", "{", "}"].contains(&self.text(b))).map_or(0, |b| b + 1);
                    let class = (head..open).any(|b| {
                        ["struct", "class", "union", "enum", "namespace", "extern"].contains(&self.text(b))
                            && self.text(b + 1) != "("
                    });
                    return !class || (head..open).any(|b| self.text(b) == ")" && self.text(b + 1) == "{");
                }
                _ => {}
            }
        }
        false
    }

    fn types(&mut self, at: usize) {
        if self.fixed[at] || self.tokens[at].kind != Kind::Word {
            return;
        }
        let word = self.text(at).to_owned();
        let other = |pairs: &[(&'static str, &'static str)]| {
            pairs.iter().find_map(|&(a, b)| if word == a { Some(b) } else { (word == b).then_some(a) })
        };
        let declared = ["struct", "class", "#define"].contains(&self.before(at));
        if let (Some(other), false) = (other(&TYPES), declared) {
            self.replace("type", at, at, other);
        }
        let declared = at > 0 && self.tokens[at - 1].kind == Kind::Word && self.before(at) != "return";
        if let (Some(other), false, "(" | "<") = (other(&EXTREMA), declared, self.text(at + 1)) {
            self.replace("extremum", at, at, other);
        }
        if self.before(at) == "." && self.text(at + 1) != "(" {
            let components = [("x", "y"), ("z", "w")];
            if let Some(other) = other(&components) {
                self.replace("component", at, at, other);
            }
        }
    }

    /// Release and wait of one function, exchanged.
    fn dependents(&mut self) {
        let (release, wait) = ("kqm_release_dependents", "kqm_wait_for_dependencies");
        let calls: Vec<usize> =
            (0..self.tokens.len()).filter(|&at| [release, wait].contains(&self.text(at)) && self.begins(at)).collect();
        for pair in calls.windows(2) {
            let between = self.tokens[pair[0]].range.end..self.tokens[pair[1]].range.start;
            // No function ends between them.
            if self.text(pair[0]) != self.text(pair[1]) && !self.source[between].contains("\n}") {
                let (a, b) = (self.tokens[pair[0]].range.clone(), self.tokens[pair[1]].range.clone());
                self.exchange("dependent", a, b);
            }
        }
    }
}

/// The rule that drops calls of a function.
fn dropped_by(function: &str) -> Option<&'static str> {
    Some(match function {
        "__syncthreads" | "kqm_named_barrier" => "barrier",
        "__syncwarp" => "syncwarp",
        "__threadfence" | "__threadfence_block" | "kqm_async_commit" | "kqm_async_wait" => "fence",
        "kqm_wait_for_dependencies" => "dependent",
        _ => return None,
    })
}

/// A constant one larger and one smaller, or of twice the value when it is no whole number.
fn other_constants(text: &str) -> Vec<String> {
    let lower = text.to_ascii_lowercase();
    let hexadecimal = lower.starts_with("0x");
    let floating = !hexadecimal && lower.contains(['.', 'e']);
    if floating {
        let digits = lower.trim_end_matches(['f', 'l']);
        let suffix = &text[digits.len()..];
        return match digits.parse::<f64>() {
            Ok(0.0) => vec![format!("1.0{suffix}")],
            Ok(_) => vec![format!("(2.0{suffix} * {text})")],
            Err(_) => Vec::new(),
        };
    }
    let digits_end = if hexadecimal {
        lower.trim_end_matches(['u', 'l']).len()
    } else {
        lower.find(|c: char| !c.is_ascii_digit() && c != '\'').unwrap_or(lower.len())
    };
    let (digits, suffix) = (lower[..digits_end].replace('\'', ""), &text[digits_end..]);
    let value = match digits.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => digits.parse(),
    };
    let Ok(value) = value else { return Vec::new() };
    let write = |value: u64| if hexadecimal { format!("{value:#x}{suffix}") } else { format!("{value}{suffix}") };
    let mut others: Vec<String> = value.checked_add(1).map(write).into_iter().collect();
    others.extend(value.checked_sub(1).map(write));
    others
}

/// The header of a loop that goes the other way: `T i = a; i < b; i++`, and doubling steps.
fn reversed(header: &str) -> Option<String> {
    let mut parts = header.split(';').map(str::trim);
    let (start, condition, step) = (parts.next()?, parts.next()?, parts.next()?);
    let (declared, from) = start.split_once(" = ")?;
    let name = declared.rsplit(' ').next()?;
    let to = condition.strip_prefix(name)?.trim_start().strip_prefix("< ")?;
    if step == format!("{name}++") {
        return Some(format!("{declared} = ({to}); {name}-- > ({from});"));
    }
    (step == format!("{name} *= 2") && from == "1")
        .then(|| format!("{declared} = ({to}) / 2; {name} >= 1; {name} /= 2"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lexer::tokens;

    /// What the rule makes of a source, one text for each fault.
    fn planted(rule: &str, source: &str) -> Vec<String> {
        assert!(RULES.iter().any(|(name, _)| *name == rule));
        let faults = faults(source, &tokens(source).unwrap());
        let lines = source.matches('\n').count();
        faults
            .iter()
            .filter(|fault| fault.rule == rule)
            .map(|fault| apply(source, &fault.edits))
            .inspect(|text| assert_eq!(text.matches('\n').count(), lines, "{text}"))
            .collect()
    }

    fn check(rule: &str, source: &str, expected: &[&str]) {
        assert_eq!(planted(rule, source), expected, "{rule}");
    }

    #[test]
    fn rules_are_sorted_and_each_has_a_name_of_its_own() {
        assert!(RULES.windows(2).all(|pair| pair[0].0 < pair[1].0));
    }

    #[test]
    fn comparisons() {
        check("bound", "b = a < c;", &["b = a <= c;"]);
        check("comparison", "b = a < c;", &["b = a >= c;"]);
        check("comparison", "b = a == c;", &["b = a != c;"]);
        // Brackets of templates.
        check("bound", "template <class T> f<T>(a); vector<int> b;", &[]);
    }

    #[test]
    fn operators() {
        check(
            "arithmetic",
            "a = b + c * d; p = *q; int *r = -s;",
            &["a = b - c * d; p = *q; int *r = -s;", "a = b + c + d; p = *q; int *r = -s;"],
        );
        check("bit", "a = b >> 1 & ~c;", &["a = b << 1 & ~c;", "a = b >> 1 | ~c;", "a = b >> 1 & +c;"]);
        check("logic", "a = b && !c;", &["a = b || !c;", "a = b && !!c;"]);
    }

    #[test]
    fn constants() {
        check("constant", "a = 7u;", &["a = 8u;", "a = 6u;"]);
        check("constant", "a = 0x10;", &["a = 0x11;", "a = 0xf;"]);
        check("constant", "a = 0;", &["a = 1;"]);
        check("constant", "a = 1.5f;", &["a = (2.0f * 1.5f);"]);
        check("constant", "static_assert(a == 4); float x[8]; f(float (&x)[8]); __launch_bounds__(32, 1)", &[]);
        check("constant", "#define A 3\n", &["#define A 4\n", "#define A 2\n"]);
    }

    #[test]
    fn dropped_calls() {
        check("barrier", "{ a(); __syncthreads(); b(); }", &["{ a(); ; b(); }"]);
        check(
            "barrier",
            "{ kqm_named_barrier(1); } inline void __syncthreads() {}",
            &["{ ; } inline void __syncthreads() {}"],
        );
        check("syncwarp", "{ __syncwarp(); }", &["{ ; }"]);
        check(
            "fence",
            "{ kqm_async_commit(); kqm_async_wait<1>(); }",
            &["{ ; kqm_async_wait<1>(); }", "{ kqm_async_commit(); ; }"],
        );
        check(
            "canonical",
            "y = kqm_canonical(a + b); float kqm_canonical(float x);",
            &["y = (a + b); float kqm_canonical(float x);"],
        );
    }

    #[test]
    fn lanes() {
        check("lane", "x = __shfl_sync(~0u, y, 8 * i);", &["x = __shfl_sync(~0u, y, ((8 * i) ^ 1));"]);
    }

    #[test]
    fn conditions_of_launchers() {
        let source = "KQM_REQUIRE(a && (b || (c && d)) &&\n e == 1, BAD);";
        check(
            "condition",
            source,
            &[
                "KQM_REQUIRE(true && (b || (c && d)) &&\n e == 1, BAD);",
                "KQM_REQUIRE(a && true &&\n e == 1, BAD);",
                "KQM_REQUIRE(a && (b || (true && d)) &&\n e == 1, BAD);",
                "KQM_REQUIRE(a && (b || (c && true)) &&\n e == 1, BAD);",
                "KQM_REQUIRE(a && (b || (c && d)) &&\n true, BAD);",
            ],
        );
        check("condition", "KQM_REQUIRE(!a || b == 0, BAD);", &["KQM_REQUIRE(true, BAD);"]);
        check("condition", "KQM_TRY(kqm_check(a));", &["(void)0;"]);
        check("condition", "#define KQM_TRY(expression) do { x(expression); } while (0)\n", &[]);
        check("status", "KQM_TRY(KQM_LAUNCH(a, b));", &["(void)(KQM_LAUNCH(a, b));"]);
    }

    #[test]
    fn dependent_launches() {
        let source = "{\n  kqm_release_dependents();\n  a();\n  kqm_wait_for_dependencies();\n}\n";
        check(
            "dependent",
            source,
            &[
                "{\n  kqm_wait_for_dependencies();\n  a();\n  kqm_release_dependents();\n}\n",
                "{\n  kqm_release_dependents();\n  a();\n  ;\n}\n",
            ],
        );
        check("dependent", "{\n  kqm_release_dependents();\n}\n{\n  kqm_release_dependents();\n}\n", &[]);
    }

    #[test]
    fn fused_products() {
        check("fma", "y = fma(a, b[1, 2], c);", &["y = ((a) * (b[1, 2]) + (c));"]);
        check("fma", "y = __fadd_rn(__fmul_rn(a, b), c);", &["y = fma(a, b, (c));"]);
        check("fma", "y = __fsub_rn(c, __fmul_rn(a, b));", &["y = fma(-(a), b, c);"]);
        check("fma", "y = __fadd_rn(a, b);", &[]);
        check("fma", "y = a.b[1] * c + double(d);", &["y = fma(a.b[1], c, double(d));"]);
        check("fma", "y = 2 * a + b; z = double(a) * b;", &[]);
    }

    #[test]
    fn branches() {
        check("guard", "if (a < b) c = 1;", &["if (true) c = 1;"]);
        check("guard", "if (a < b) return;", &["if (false) return;"]);
        check("branch", "if (a) c();", &["if (!(a)) c();"]);
        check("branch", "x = a ? f(b, c) : d;", &["x = a ? d : f(b, c);"]);
        check("branch", "x = a ? b : c ? d : e;", &["x = a ? c ? d : e : b;", "x = a ? b : c ? e : d;"]);
    }

    #[test]
    fn orders() {
        let source = "for (int i = 0; i < n; i++) sum = sum + x[i];";
        check("order", source, &["for (int i = (n); i-- > (0);) sum = sum + x[i];"]);
        let source = "for (int s = 1; s < 8; s *= 2) x[i] = x[i] + x[i + s];";
        check("order", source, &["for (int s = (8) / 2; s >= 1; s /= 2) x[i] = x[i] + x[i + s];"]);
        check("order", "for (int i = 0; i < n; i++) x[i] = 0;", &[]);
        check("order", "{ v = fma(a, b, v); v = fma(c, d, v); }", &["{ v = fma(c, d, v); v = fma(a, b, v); }"]);
        check("order", "y = double(a) + double(b) + c;", &["y = double(a) + (double(b) + c);"]);
    }

    #[test]
    fn statements() {
        let source = "void f() { a.b = c; g(a); int d = 1; auto e = h(); float *p = q; T<x> y(z); i += 1; }";
        let dropped = planted("statement", source);
        assert_eq!(dropped.len(), 3, "{dropped:#?}");
        assert!(dropped[0].contains("{ ; g(a);") && dropped[1].contains("c; ; int") && dropped[2].contains("; ; }"));
        check("statement", "struct S { int a = f(1); }; int b = g(2);", &[]);
    }

    #[test]
    fn types() {
        check(
            "type",
            "return launch<KqmTileQ4K, true>(a);",
            &["return launch<KqmTileQ6K, true>(a);", "return launch<KqmTileQ4K, false>(a);"],
        );
        check("extremum", "x = min(a, b); float min(float a);", &["x = max(a, b); float min(float a);"]);
        check("component", "a = b.x + threadIdx.w;", &["a = b.y + threadIdx.w;", "a = b.x + threadIdx.z;"]);
    }
}
