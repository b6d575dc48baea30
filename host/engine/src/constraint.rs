//! What an answer must look like: a JSON schema, a regular expression, a grammar, a list.
//!
//! It exists because a model that is asked for JSON mostly writes JSON, and a program needs
//! always. Before a token is chosen, the grammar says which tokens may come next
//! ([`Constraint::mask`]), and the sampler chooses among those. The parser, the lexer and the
//! walk over the vocabulary are llguidance's; here are the limits, the end tokens, the tokenizer
//! that spells forced text as the model would, and errors that say whose fault they are.
//!
//! The mask is a function of the grammar and of the tokens accepted since its start, however they
//! were reached: drafted and taken back, one by one, or after a preemption.
//!
//! It refuses: control tokens inside an answer (only end tokens, only where the grammar may end),
//! grammars that cannot be taken back token by token, keywords of JSON Schema that it would have
//! to ignore, references to other documents, and grammars that need more work than one request
//! may cost the others.

mod schema;

use std::sync::Arc;

use llguidance::api::{ParserLimits, TopLevelGrammar};
use llguidance::earley::SlicedBiasComputer;
use llguidance::{Matcher, ParserFactory};
use serde_json::{Value, json};
use toktrie::{INVALID_TOKEN, InferenceCapabilities, TokRxInfo, TokTrie, TokenizerEnv};

use crate::tokenizer::Tokenizer;

/// Bytes of one grammar as text. OpenAI allows schemas about as large.
pub const MAX_GRAMMAR_BYTES: usize = 128 << 10;
/// Strings in a list of choices.
pub const MAX_CHOICES: usize = 1_024;

/// What the engine spends on one grammar. The first two are paid by the thread that submits, the
/// others by the engine's thread, in every step and by every constrained sequence.
fn limits() -> ParserLimits {
    ParserLimits {
        max_grammar_size: 100_000,
        initial_lexer_fuel: 500_000,
        // About 14 k a millisecond.
        step_lexer_fuel: 100_000,
        // About 20 k a millisecond.
        step_max_items: 20_000,
        // Four for each property that may come next.
        max_items_in_row: 5_000,
        // Of one to two kilobytes each; forced text takes one a byte.
        max_lexer_states: 10_000,
        precompute_large_lexemes: false,
        verbose_errors: false,
    }
}

/// What an answer must look like.
#[derive(Debug, Clone, PartialEq)]
pub enum Grammar {
    /// JSON that this schema accepts (draft 2020-12 unless it says otherwise); the properties of
    /// an object come in the order of the schema.
    JsonSchema(Value),
    /// Any JSON object.
    JsonObject,
    /// The whole answer matches this expression, in the syntax of Rust's `regex`.
    Regex(String),
    /// llguidance's dialect of Lark; the rule `start` is the answer.
    Lark(String),
    /// One of these texts.
    Choice(Vec<String>),
}

impl Grammar {
    /// As it is called in messages.
    fn kind(&self) -> &'static str {
        match self {
            Self::JsonSchema(_) | Self::JsonObject => "JSON schema",
            Self::Regex(_) => "regular expression",
            Self::Lark(_) => "grammar",
            Self::Choice(_) => "list of choices",
        }
    }
}

/// A grammar that is not usable, or a sequence that came to its limits.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConstraintError {
    /// The client's fault.
    #[error("the {kind} cannot be used: {problem}")]
    Grammar { kind: &'static str, problem: String },
    /// The client's fault, found while generating.
    #[error(
        "the grammar needs more work at this place than one request may cost: {0}; simplify it"
    )]
    TooComplex(String),
    /// The client's fault: the grammar leads to a place from which no token of this model goes on.
    #[error("the grammar allows no token after what has been generated")]
    DeadEnd,
    /// The caller's fault: it asked for a token outside the mask.
    #[error("the grammar does not allow token {0} here")]
    Refused(u32),
    /// The host's fault.
    #[error("constraints cannot be prepared for this model: {0}")]
    Vocabulary(String),
}

/// A set of tokens: those that may come next.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TokenMask {
    /// Bit `t % 32` of word `t / 32` is token `t`.
    words: Vec<u32>,
}

impl TokenMask {
    pub fn contains(&self, token: u32) -> bool {
        let word = self.words.get(token as usize / 32).copied().unwrap_or(0);
        word >> (token % 32) & 1 == 1
    }

    pub fn count(&self) -> usize {
        self.words.iter().map(|w| w.count_ones() as usize).sum()
    }

    pub fn is_empty(&self) -> bool {
        self.words.iter().all(|w| *w == 0)
    }

    /// The tokens of the set, smallest first.
    pub fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        let bits = |(word, first): (u32, u32)| {
            let mut left = word;
            std::iter::from_fn(move || {
                let bit = left.trailing_zeros();
                left &= left.wrapping_sub(1);
                (bit < 32).then_some(first + bit)
            })
        };
        self.words
            .iter()
            .copied()
            .zip((0..).step_by(32))
            .flat_map(bits)
    }

    fn set(&mut self, token: u32, allowed: bool) {
        let at = token as usize / 32;
        if at >= self.words.len() {
            self.words.resize(at + 1, 0);
        }
        let bit = 1 << (token % 32);
        match allowed {
            true => self.words[at] |= bit,
            false => self.words[at] &= !bit,
        }
    }

    fn keep(&mut self, other: &Self) {
        self.words.resize(other.words.len(), 0);
        self.words
            .iter_mut()
            .zip(&other.words)
            .for_each(|(a, b)| *a &= b);
    }
}

impl FromIterator<u32> for TokenMask {
    fn from_iter<T: IntoIterator<Item = u32>>(tokens: T) -> Self {
        let mut mask = Self::default();
        tokens.into_iter().for_each(|t| mask.set(t, true));
        mask
    }
}

/// The vocabulary as llguidance wants to see it.
struct Vocabulary {
    trie: TokTrie,
    tokenizer: Arc<Tokenizer>,
}

impl Vocabulary {
    fn new(tokenizer: Arc<Tokenizer>) -> Self {
        let size = tokenizer.vocabulary() as u32;
        // No word: control tokens, which no grammar may write, and the byte FF, which is part of
        // no text and would be taken for a mark of the trie's own.
        let word = |token| match tokenizer.bytes(token) {
            bytes if bytes.contains(&TokTrie::SPECIAL_TOKEN_MARKER) => Vec::new(),
            bytes => bytes.to_vec(),
        };
        let words: Vec<Vec<u8>> = (0..size).map(word).collect();
        let ends = tokenizer.ends();
        let info = TokRxInfo::new(size, ends.first().copied().unwrap_or(INVALID_TOKEN));
        let mut trie = TokTrie::from(&info, &words);
        if !ends.is_empty() {
            trie = trie.with_eos_tokens(ends);
        }
        Self { trie, tokenizer }
    }

    /// How much forced text is worth tokenising at once: enough that cutting it leaves whole tokens
    /// after the few that may still change, so little that a long literal is not read anew for each
    /// of its tokens.
    fn window(&self) -> usize {
        512 + 8 * self.trie.max_token_len()
    }
}

impl Vocabulary {
    /// The text as the model's tokenizer spells it in the middle of a longer one. What it puts in
    /// front of a text's beginning is taken off again; behind a line break it puts nothing.
    fn spelled(&self, text: &str) -> Vec<u32> {
        for lead in ["", "\n"] {
            let tokens = self.tokenizer.encode(&format!("{lead}{text}"), false);
            let mut left = text.len();
            let of_text = |token: &&u32| {
                let bytes = self.trie.token(**token).len();
                let fits = bytes > 0 && bytes <= left;
                left -= if fits { bytes } else { 0 };
                fits
            };
            let count = tokens.iter().rev().take_while(of_text).count();
            let spelled = &tokens[tokens.len() - count..];
            let bytes = spelled.iter().flat_map(|t| self.trie.token(*t));
            if bytes.eq(text.as_bytes()) {
                return spelled.to_vec();
            }
        }
        self.trie.greedy_tokenize(text.as_bytes())
    }
}

impl TokenizerEnv for Vocabulary {
    fn tok_trie(&self) -> &TokTrie {
        &self.trie
    }

    /// All of it, or if it is longer than [`Self::window`] its beginning: what is left out is asked
    /// for again later.
    fn tokenize_bytes(&self, bytes: &[u8]) -> Vec<u32> {
        let cut = bytes.len() > self.window();
        let text = &bytes[..bytes.len().min(self.window())];
        let mut tokens = self
            .trie
            .tokenize_with_greedy_fallback(text, |text| self.spelled(text));
        if cut {
            // The last one may have been torn.
            tokens.pop();
        }
        tokens
    }
}

/// Compiles grammars for one tokenizer. Building it walks the vocabulary several times (some tenths
/// of a second, some megabytes), so it is built once, and never on the engine's thread.
pub struct Constraints {
    factory: ParserFactory,
    tokens: Arc<Tokens>,
}

/// Which tokens are text and which are ends.
struct Tokens {
    text: TokenMask,
    ends: Vec<u32>,
}

impl Constraints {
    pub fn new(tokenizer: &Arc<Tokenizer>) -> Result<Self, ConstraintError> {
        let vocabulary = Vocabulary::new(Arc::clone(tokenizer));
        let size = tokenizer.vocabulary() as u32;
        let is_text = |token: &u32| !vocabulary.trie.token(*token).is_empty();
        let tokens = Tokens {
            text: (0..size).filter(is_text).collect(),
            ends: tokenizer.ends().to_vec(),
        };
        let vocabulary: toktrie::TokEnv = Arc::new(vocabulary);
        let capabilities = InferenceCapabilities {
            ff_tokens: true,
            ..Default::default()
        };
        let slices = SlicedBiasComputer::general_slices();
        let mut factory = ParserFactory::new(&vocabulary, capabilities, &slices)
            .map_err(|e| ConstraintError::Vocabulary(plain(&e.to_string())))?;
        factory.quiet();
        *factory.limits_mut() = limits();
        Ok(Self {
            factory,
            tokens: Arc::new(tokens),
        })
    }

    /// Checks a grammar and prepares it for one sequence. Takes up to some tens of milliseconds for
    /// the largest, on the caller's thread and one of its own.
    pub fn compile(&self, grammar: &Grammar) -> Result<Constraint, ConstraintError> {
        let refuse = |problem: String| ConstraintError::Grammar {
            kind: grammar.kind(),
            problem,
        };
        // The compilers recurse over the grammar; a stack of their own keeps a deep one from
        // ending the process.
        let built = std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().stack_size(COMPILE_STACK_BYTES);
            let compiler = thread.name("grammar".into());
            let compiler = compiler.spawn_scoped(scope, || self.matcher(grammar));
            compiler.map(|thread| thread.join())
        });
        let matcher = match built {
            Ok(Ok(matcher)) => matcher.map_err(refuse)?,
            Ok(Err(_)) => return Err(refuse(DEFECT.into())),
            Err(error) => return Err(ConstraintError::Vocabulary(error.to_string())),
        };
        let mut constraint = Constraint {
            matcher,
            tokens: Arc::clone(&self.tokens),
            ended: false,
            mask: None,
            forced: None,
            scout: Scout::AtHome,
        };
        // A grammar that no answer fits is refused now and not at the first token.
        match constraint.mask() {
            Ok(_) => Ok(constraint),
            Err(ConstraintError::DeadEnd) => Err(refuse("no answer satisfies it".into())),
            Err(ConstraintError::TooComplex(problem)) => Err(refuse(problem)),
            Err(other) => Err(other),
        }
    }

    fn matcher(&self, grammar: &Grammar) -> Result<Matcher, String> {
        let built = self.built(source(grammar)?);
        let (Grammar::JsonSchema(schema), Err(problem)) = (grammar, &built) else {
            return built;
        };
        let refusal = |part: &Value| {
            let source = source(&Grammar::JsonSchema(part.clone()));
            source.and_then(|s| self.built(s)).err()
        };
        Err(format!(
            "at {}: {problem}",
            schema::place(schema, problem, refusal)
        ))
    }

    fn built(&self, source: TopLevelGrammar) -> Result<Matcher, String> {
        let parser = self.factory.create_parser(source);
        let mut parser = parser.map_err(|e| plain(&e.to_string()))?;
        if !parser.parser.grammar().lexer_spec().can_rollback() {
            return Err("max_tokens= and stop= are not supported in a rule".into());
        }
        // The lexer's limits take hold with the first walk over the vocabulary. Without it the text
        // that a grammar forces at its start would be followed to its end: that of
        // `((a{1000}){1000}){1000}` takes minutes and all the memory there is.
        parser.parser.compute_bias(&*self.factory.slicer(), &[]);
        parser.parser.force_bytes();
        match parser.parser.get_error() {
            Some(error) => Err(plain(&error.message())),
            None => Ok(Matcher::new(Ok(parser))),
        }
    }
}

/// Virtual; only what a grammar needs is ever touched.
const COMPILE_STACK_BYTES: usize = 64 << 20;

/// The grammar in llguidance's terms, after the checks that need no compiler.
fn source(grammar: &Grammar) -> Result<TopLevelGrammar, String> {
    let bounded = |bytes: usize| match bytes <= MAX_GRAMMAR_BYTES {
        true => Ok(()),
        false => Err(format!(
            "it has {bytes} bytes, but at most {MAX_GRAMMAR_BYTES} are allowed"
        )),
    };
    match grammar {
        Grammar::JsonSchema(schema) => {
            bounded(schema.to_string().len())?;
            let schema = schema::prepared(schema, MAX_GRAMMAR_BYTES)?;
            Ok(TopLevelGrammar::from_json_schema(schema))
        }
        Grammar::JsonObject => source(&Grammar::JsonSchema(json!({"type": "object"}))),
        Grammar::Regex(expression) => {
            bounded(expression.len())?;
            regex_source(expression)
        }
        Grammar::Lark(text) => {
            bounded(text.len())?;
            Ok(TopLevelGrammar::from_lark(text.clone()))
        }
        Grammar::Choice(choices) => {
            bounded(choices.iter().map(String::len).sum())?;
            choice_source(choices)
        }
    }
}

/// The whole answer must match, so anchors at the two ends say nothing new, and people write them.
fn regex_source(expression: &str) -> Result<TopLevelGrammar, String> {
    let body = expression.strip_prefix('^').unwrap_or(expression);
    let escapes = |text: &str| text.len() - text.trim_end_matches('\\').len();
    let body = match body.strip_suffix('$') {
        Some(inner) if escapes(inner) % 2 == 0 => inner,
        _ => body,
    };
    match body.is_empty() {
        true => Err("it matches only an empty answer".into()),
        false => Ok(TopLevelGrammar::from_regex(body)),
    }
}

fn choice_source(choices: &[String]) -> Result<TopLevelGrammar, String> {
    if choices.is_empty() || choices.len() > MAX_CHOICES {
        return Err(format!(
            "it has {} entries, but must have 1 to {MAX_CHOICES}",
            choices.len()
        ));
    }
    if let Some(at) = choices.iter().position(String::is_empty) {
        return Err(format!("entry {at} is empty"));
    }
    let literal = |text: &String| {
        let plain = |c: char| c.is_ascii_alphanumeric() || !c.is_ascii();
        let spell = |c: char| match plain(c) {
            true => c.to_string(),
            false => format!("\\x{{{:x}}}", u32::from(c)),
        };
        text.chars().map(spell).collect::<String>()
    };
    let alternatives: Vec<String> = choices.iter().map(literal).collect();
    Ok(TopLevelGrammar::from_regex(&format!(
        "(?:{})",
        alternatives.join("|")
    )))
}

/// One sequence's place in its grammar.
pub struct Constraint {
    matcher: Matcher,
    tokens: Arc<Tokens>,
    /// An end token was accepted; the matcher does not know.
    ended: bool,
    /// Of the present place, if asked for.
    mask: Option<TokenMask>,
    forced: Option<Vec<u32>>,
    scout: Scout,
}

/// Who walks along guesses. Its lexer has the states of every guess, and shares none with the matcher.
enum Scout {
    /// Nobody has guessed yet.
    AtHome,
    /// At the matcher's place.
    Here(Box<Matcher>),
    /// Beyond a limit.
    Lost,
}

impl Constraint {
    /// What may come next. End tokens are in it exactly when the grammar may end here. Empty only
    /// after an end.
    pub fn mask(&mut self) -> Result<&TokenMask, ConstraintError> {
        if self.mask.is_none() {
            self.mask = Some(self.computed_mask()?);
        }
        self.mask.as_ref().ok_or(ConstraintError::DeadEnd)
    }

    fn computed_mask(&mut self) -> Result<TokenMask, ConstraintError> {
        if self.ended {
            return Ok(TokenMask::default());
        }
        // A matcher that has failed looks like one that has come to its end.
        if let Some(error) = self.matcher.get_error() {
            return Err(failed(&error));
        }
        let mut mask = TokenMask::default();
        if !self.matcher.is_stopped() {
            mask.words = self
                .matcher
                .compute_mask()
                .map_err(|e| failed(&e.to_string()))?
                .into();
            mask.keep(&self.tokens.text);
        }
        if self.may_end()? {
            self.tokens.ends.iter().for_each(|end| mask.set(*end, true));
        }
        match mask.is_empty() && !self.matcher.is_stopped() {
            true => Err(ConstraintError::DeadEnd),
            false => Ok(mask),
        }
    }

    /// Whether [`Self::mask`] has this token, without computing it.
    pub fn allows(&mut self, token: u32) -> Result<bool, ConstraintError> {
        if let Some(mask) = &self.mask {
            return Ok(mask.contains(token));
        }
        if self.ended {
            return Ok(false);
        }
        if self.tokens.ends.contains(&token) {
            return self.may_end();
        }
        if !self.tokens.text.contains(token) || self.matcher.is_stopped() {
            return Ok(false);
        }
        if let Some(first) = self.forced()?.first() {
            return Ok(*first == token);
        }
        let valid = self.matcher.validate_tokens(&[token]);
        valid.map(|n| n == 1).map_err(|e| failed(&e.to_string()))
    }

    /// Goes on by one token. One that is not allowed changes nothing.
    pub fn accept(&mut self, token: u32) -> Result<(), ConstraintError> {
        if !self.allows(token)? {
            return Err(ConstraintError::Refused(token));
        }
        match self.tokens.ends.contains(&token) {
            true => self.ended = true,
            false => {
                let taken = self.matcher.consume_token(token);
                taken.map_err(|e| failed(&e.to_string()))?;
                if let Scout::Here(scout) = &mut self.scout
                    && scout.consume_token(token).is_err()
                {
                    self.scout = Scout::Lost;
                }
            }
        }
        (self.mask, self.forced) = (None, None);
        Ok(())
    }

    /// The next tokens when there is no choice, spelled as the model's tokenizer spells them: a
    /// draft that costs nothing. Each is the only entry of its mask. Empty where there is a choice,
    /// and where the end of the forced text could still become part of a longer token.
    pub fn forced(&mut self) -> Result<&[u32], ConstraintError> {
        if self.forced.is_none() {
            let mut forced = Vec::new();
            if !self.ended && !self.matcher.is_stopped() {
                forced = self.matcher.compute_ff_tokens();
                if let Some(error) = self.matcher.get_error() {
                    return Err(failed(&error));
                }
            }
            self.forced = Some(forced);
        }
        Ok(self.forced.as_deref().unwrap_or_default())
    }

    /// Nothing but an end may follow.
    pub fn is_complete(&self) -> bool {
        self.ended || self.matcher.stop_reason().is_ok() && self.matcher.is_stopped()
    }

    /// How many tokens of a draft the grammar allows, in order; an end is the last of them. What goes
    /// wrong along a guess that may never be chosen, the limits of the walk included, is no matter for
    /// the place itself: the scout walks, on a lexer of its own, and where it is lost no draft is
    /// valid from then on.
    pub fn valid_prefix_len(&mut self, draft: &[u32]) -> usize {
        if matches!(self.scout, Scout::AtHome) {
            self.scout = Scout::Here(Box::new(self.matcher.deep_clone()));
        }
        let Scout::Here(scout) = &self.scout else {
            return 0;
        };
        let mut guess = Self {
            matcher: Matcher::clone(scout),
            tokens: Arc::clone(&self.tokens),
            ended: self.ended,
            mask: self.mask.clone(),
            forced: self.forced.clone(),
            scout: Scout::Lost,
        };
        for (valid, token) in draft.iter().enumerate() {
            match guess.accept(*token) {
                Ok(()) => (),
                Err(ConstraintError::Refused(_)) => return valid,
                Err(_) => {
                    self.scout = Scout::Lost;
                    return valid;
                }
            }
        }
        draft.len()
    }

    fn may_end(&mut self) -> Result<bool, ConstraintError> {
        if self.matcher.is_stopped() {
            return Ok(self.is_complete());
        }
        self.matcher
            .is_accepting()
            .map_err(|e| failed(&e.to_string()))
    }
}

/// What an error of the matcher means. It tells a dead end from the rest by the name alone.
fn failed(message: &str) -> ConstraintError {
    match message.starts_with("NoExtensionBias") {
        true => ConstraintError::DeadEnd,
        false => ConstraintError::TooComplex(plain(message)),
    }
}

/// Said of a grammar on which its compiler panics: nobody's fault but the host's, and of no
/// consequence beyond this request.
const DEFECT: &str = "its compiler failed on it; please report it";

/// A message of llguidance without the traces that it appends for its own developers.
fn plain(message: &str) -> String {
    const LONGEST: usize = 600;
    // It looks for a list of special tokens, and there is none.
    if message.contains("missing special token prefix") {
        return "special tokens cannot be part of an answer".into();
    }
    if message.starts_with("panic: ") {
        tracing::warn!(message, "the compiler of grammars panicked");
        return DEFECT.into();
    }
    let ends = ["\n<non-verbose/>", "\n<backtrace>", "\n<state>"];
    let end = ends.iter().filter_map(|mark| message.find(mark)).min();
    let message = message[..end.unwrap_or(message.len())].trim();
    match message.char_indices().nth(LONGEST) {
        Some((at, _)) => format!("{}…", &message[..at]),
        None => message.to_owned(),
    }
}
