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

const CREATIVE: &[&str] = &[
    "story",
    "poem",
    "imagine",
    "creative",
    "invent",
    "compose",
    "slogan",
    "lyrics",
    "song",
    "novel",
    "fictional",
    "haiku",
    "roleplay",
    "pretend",
    "essay",
    "blog",
    "engaging",
    "vivid",
];
const REASONING: &[&str] = &[
    "why",
    "prove",
    "proof",
    "derive",
    "explain",
    "compare",
    "analyze",
    "analyse",
    "evaluate",
    "therefore",
    "suppose",
    "assume",
    "infer",
    "deduce",
    "reason",
    "reasoning",
    "optimal",
    "minimize",
    "maximize",
    "algorithm",
    "complexity",
    "probability",
    "theorem",
    "integral",
    "equation",
    "solve",
    "trade",
    "implications",
    "argue",
    "justify",
    "debug",
];
const CONSTRAINING: &[&str] = &[
    "must",
    "exactly",
    "least",
    "most",
    "only",
    "without",
    "avoid",
    "include",
    "limit",
    "format",
    "bullet",
    "json",
    "table",
    "sentences",
    "paragraphs",
    "words",
    "maximum",
    "minimum",
    "ensure",
    "constraints",
    "required",
    "never",
    "always",
];
const CODING: &[&str] = &[
    "code",
    "python",
    "javascript",
    "typescript",
    "rust",
    "java",
    "sql",
    "html",
    "css",
    "bash",
    "regex",
    "function",
    "compile",
    "compiler",
    "api",
    "bug",
    "class",
    "implement",
    "script",
    "program",
    "refactor",
    "stacktrace",
    "exception",
];
const GREETING: &[&str] = &[
    "hi", "hello", "hey", "thanks", "thank", "bye", "goodbye", "morning",
];

pub(crate) fn read(request: &Request, text: &Text<'_>) -> Marks {
    let question = request.question();
    let lower = question.to_ascii_lowercase();
    let words: Vec<&[u8]> = text.tokens().collect();
    let count = |list: &[&str]| {
        words
            .iter()
            .filter(|w| list.iter().any(|l| l.as_bytes() == **w))
            .count()
    };
    // A mark more counts less than the one before.
    let score = |hits: usize, half: f32| hits as f32 / (hits as f32 + half);
    let turns = request
        .messages
        .iter()
        .filter(|m| m.role == Role::User)
        .count();
    let coding = count(CODING) + 2 * usize::from(question.contains("```"));
    let task = task(&lower, &words, coding, turns);

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
fn task(lower: &str, words: &[&[u8]], coding: usize, turns: usize) -> Task {
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
    } else if has(GREETING) && words.len() <= 8 {
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
