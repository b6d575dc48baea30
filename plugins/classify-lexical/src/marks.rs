//! Marks of what is asked for and how hard it is, set by hand.
//!
//! The task types, the dimensions and the weights that make one score of them are those of
//! NVIDIA's prompt task and complexity classifier; the marks are ours. They are a prior
//! for prompts unlike anything fitted on, no more.

use homeostat_sdk::*;

use crate::features::Text;

/// What the marks say.
pub(crate) struct Marks {
    pub(crate) task: Task,
    pub(crate) dimensions: Vec<(String, f32)>,
    /// From 0, easy, to 1, hard.
    pub(crate) hardness: f32,
}

const CREATIVE: u8 = 1;
const REASONING: u8 = 2;
const CONSTRAINING: u8 = 4;
const CODING: u8 = 8;
const GREETING: u8 = 16;

/// Which kinds of mark a word is; sorted, since every word of every prompt is looked up.
const WORDS: [(&str, u8); 103] = [
    ("algorithm", REASONING),
    ("always", CONSTRAINING),
    ("analyse", REASONING),
    ("analyze", REASONING),
    ("api", CODING),
    ("argue", REASONING),
    ("assume", REASONING),
    ("avoid", CONSTRAINING),
    ("bash", CODING),
    ("blog", CREATIVE),
    ("bug", CODING),
    ("bullet", CONSTRAINING),
    ("bye", GREETING),
    ("class", CODING),
    ("code", CODING),
    ("compare", REASONING),
    ("compile", CODING),
    ("compiler", CODING),
    ("complexity", REASONING),
    ("compose", CREATIVE),
    ("constraints", CONSTRAINING),
    ("creative", CREATIVE),
    ("css", CODING),
    ("debug", REASONING),
    ("deduce", REASONING),
    ("derive", REASONING),
    ("engaging", CREATIVE),
    ("ensure", CONSTRAINING),
    ("equation", REASONING),
    ("essay", CREATIVE),
    ("evaluate", REASONING),
    ("exactly", CONSTRAINING),
    ("exception", CODING),
    ("explain", REASONING),
    ("fictional", CREATIVE),
    ("format", CONSTRAINING),
    ("function", CODING),
    ("goodbye", GREETING),
    ("haiku", CREATIVE),
    ("hello", GREETING),
    ("hey", GREETING),
    ("hi", GREETING),
    ("html", CODING),
    ("imagine", CREATIVE),
    ("implement", CODING),
    ("implications", REASONING),
    ("include", CONSTRAINING),
    ("infer", REASONING),
    ("integral", REASONING),
    ("invent", CREATIVE),
    ("java", CODING),
    ("javascript", CODING),
    ("json", CONSTRAINING),
    ("justify", REASONING),
    ("least", CONSTRAINING),
    ("limit", CONSTRAINING),
    ("lyrics", CREATIVE),
    ("maximize", REASONING),
    ("maximum", CONSTRAINING),
    ("minimize", REASONING),
    ("minimum", CONSTRAINING),
    ("morning", GREETING),
    ("most", CONSTRAINING),
    ("must", CONSTRAINING),
    ("never", CONSTRAINING),
    ("novel", CREATIVE),
    ("only", CONSTRAINING),
    ("optimal", REASONING),
    ("paragraphs", CONSTRAINING),
    ("poem", CREATIVE),
    ("pretend", CREATIVE),
    ("probability", REASONING),
    ("program", CODING),
    ("proof", REASONING),
    ("prove", REASONING),
    ("python", CODING),
    ("reason", REASONING),
    ("reasoning", REASONING),
    ("refactor", CODING),
    ("regex", CODING),
    ("required", CONSTRAINING),
    ("roleplay", CREATIVE),
    ("rust", CODING),
    ("script", CODING),
    ("sentences", CONSTRAINING),
    ("slogan", CREATIVE),
    ("solve", REASONING),
    ("song", CREATIVE),
    ("sql", CODING),
    ("stacktrace", CODING),
    ("story", CREATIVE),
    ("suppose", REASONING),
    ("table", CONSTRAINING),
    ("thank", GREETING),
    ("thanks", GREETING),
    ("theorem", REASONING),
    ("therefore", REASONING),
    ("trade", REASONING),
    ("typescript", CODING),
    ("vivid", CREATIVE),
    ("why", REASONING),
    ("without", CONSTRAINING),
    ("words", CONSTRAINING),
];

/// How often each kind of mark occurs.
struct Counts([usize; 5]);

impl Counts {
    fn of(words: &[&[u8]]) -> Self {
        let mut counts = [0; 5];
        for word in words {
            let Ok(at) = WORDS.binary_search_by(|(w, _)| w.as_bytes().cmp(word)) else {
                continue;
            };
            for (kind, count) in counts.iter_mut().enumerate() {
                *count += usize::from(WORDS[at].1 >> kind & 1);
            }
        }
        Self(counts)
    }

    fn get(&self, kind: u8) -> usize {
        self.0[kind.trailing_zeros() as usize]
    }
}

pub(crate) fn read(request: &Request, text: &Text<'_>) -> Marks {
    let question = request.question();
    let lower = question.to_ascii_lowercase();
    let words: Vec<&[u8]> = text.tokens().collect();
    let counts = Counts::of(&words);
    let count = |kind| counts.get(kind);
    // A mark more counts less than the one before.
    let score = |hits: usize, half: f32| hits as f32 / (hits as f32 + half);
    let turns = request
        .messages
        .iter()
        .filter(|m| m.role == Role::User)
        .count();
    let coding = count(CODING) + 2 * usize::from(question.contains("```"));
    let greets = count(GREETING) > 0 && words.len() <= 8;
    let task = task(&lower, &words, coding, greets, turns);

    let creativity = match task {
        Task::TextGeneration | Task::Brainstorming => 0.4 + 0.6 * score(count(CREATIVE), 2.0),
        Task::Rewrite | Task::Chatbot => 0.2,
        _ => 0.5 * score(count(CREATIVE), 2.0),
    };
    let several_steps = [
        "step by step",
        "step-by-step",
        "how many",
        "how much",
        "in detail",
    ];
    let steps = several_steps.iter().filter(|s| lower.contains(*s)).count();
    let reasoning = score(count(REASONING) + steps, 2.0);
    let constraints = score(count(CONSTRAINING), 3.0);
    let long_words = words
        .iter()
        .filter(|w| w.len() >= 10 && w[0].is_ascii_lowercase())
        .count();
    let domain = score(long_words + 2 * coding, 6.0);
    let context = score(question.len() / 400 + (turns - usize::from(turns > 0)), 3.0);
    let shots = ["example:", "input:", "q:", "examples:"]
        .iter()
        .map(|m| lower.matches(m).count())
        .sum();
    let few_shots = score(shots, 3.0);

    let score = 0.35 * creativity
        + 0.25 * reasoning
        + 0.15 * constraints
        + 0.15 * domain
        + 0.05 * context
        + 0.05 * few_shots;
    let coding_is_hard = if task == Task::CodeGeneration {
        0.15
    } else {
        0.0
    };
    Marks {
        task,
        dimensions: [
            ("creativity", creativity),
            ("reasoning", reasoning),
            ("constraints", constraints),
            ("domain-knowledge", domain),
            ("contextual-knowledge", context),
            ("few-shots", few_shots),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into(),
        // The score of ordinary prompts lies between 0 and 0.6.
        hardness: (0.1 + 1.2 * score + coding_is_hard).min(0.95),
    }
}

/// The first rule that fits; the particular come before the general.
fn task(lower: &str, words: &[&[u8]], coding: usize, greets: bool, turns: usize) -> Task {
    let has = |list: &[&str]| list.iter().any(|l| words.contains(&l.as_bytes()));
    let begins = |list: &[&str]| {
        let first = words.iter().take(6);
        first
            .into_iter()
            .any(|w| list.iter().any(|l| l.as_bytes() == *w))
    };
    let supplied = lower.len() > 300
        || [
            "passage",
            "following text",
            "article",
            "context:",
            "document",
        ]
        .iter()
        .any(|m| lower.contains(m));
    if lower.contains("```")
        || (coding >= 2
            && begins(&[
                "write",
                "implement",
                "fix",
                "create",
                "refactor",
                "debug",
                "give",
                "how",
                "add",
            ]))
    {
        Task::CodeGeneration
    } else if begins(&["summarize", "summarise", "summary", "tldr"]) || lower.contains("tl;dr") {
        Task::Summarization
    } else if begins(&[
        "rewrite",
        "rephrase",
        "paraphrase",
        "translate",
        "proofread",
        "reword",
        "shorten",
    ]) {
        Task::Rewrite
    } else if begins(&["classify", "categorize", "categorise", "label"]) || has(&["sentiment"]) {
        Task::Classification
    } else if begins(&["extract", "identify"]) && supplied {
        Task::Extraction
    } else if begins(&["brainstorm"]) || has(&["ideas", "brainstorm", "suggestions"]) {
        Task::Brainstorming
    } else if begins(&["write", "compose", "draft", "create", "generate", "craft"]) {
        Task::TextGeneration
    } else if greets {
        Task::Chatbot
    } else if lower.contains("according to the")
        || (supplied && lower.len() > 500 && lower.contains('?') && !lower.contains("\na. "))
    {
        Task::ClosedQa
    } else if lower.contains('?')
        || lower.contains("answer:")
        || begins(&[
            "what", "who", "when", "where", "why", "how", "which", "is", "are", "does", "do",
            "can", "name", "explain", "prove", "find", "tell",
        ])
    {
        Task::OpenQa
    } else if turns > 1 {
        Task::Chatbot
    } else {
        Task::Other
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_are_sorted_so_that_each_is_found() {
        assert!(WORDS.is_sorted_by(|a, b| a.0 < b.0));
        let counts = Counts::of(&[b"prove", b"python", b"prove", b"nothing"]);
        assert_eq!(
            (
                counts.get(REASONING),
                counts.get(CODING),
                counts.get(GREETING)
            ),
            (2, 1, 0)
        );
    }
}
