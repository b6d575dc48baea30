//! What a tier's engine has yet to do, by what its answers usually take. It refuses to know what an
//! answer will say.

/// What a tier's engine has yet to do.
#[derive(Debug, Clone, PartialEq)]
pub struct WorkInHand {
    /// Time per token while several are written side by side, ms.
    pub tpot_ms: f64,
    /// Time to read the prompts of those that have not written anything yet, ms.
    pub prefill_ms: f64,
    /// Tokens that each running or waiting answer is expected to have before it ends.
    pub tokens_left: Vec<f64>,
    /// How many are computed together.
    pub width: usize,
}

/// What answers of a tier take in the mean.
#[derive(Debug, Clone, Copy)]
pub struct Usual {
    /// Time per token, ms.
    pub tpot_ms: f64,
    /// Time per token of a prompt, ms, once one was read.
    pub prefill_ms: Option<f64>,
    /// Tokens of an answer.
    pub tokens: f64,
}

/// One answer that runs or waits.
#[derive(Debug, Clone, Copy)]
pub struct AnswerInHand {
    /// Tokens that it has.
    pub written: usize,
    /// Tokens that it may have; `None` = as many as it likes.
    pub most: Option<usize>,
    /// Tokens of its prompt.
    pub prompt_tokens: usize,
}

impl AnswerInHand {
    /// Tokens that it is expected to have before it ends, where answers usually have so many.
    fn tokens_left(&self, usual: f64) -> f64 {
        let written = self.written as f64;
        let most = self.most.map_or(f64::INFINITY, |most| most as f64);
        // One that is longer than usual has at least its end before it.
        usual.min(most).max(written + 1.0) - written
    }

    /// Tokens of its prompt, as long as nothing says that it has been read.
    fn unread_tokens(&self) -> usize {
        match self.written {
            0 => self.prompt_tokens,
            _ => 0,
        }
    }
}

impl WorkInHand {
    /// Of these answers, so many of which are computed together.
    pub fn of(usual: Usual, width: usize, answers: &[AnswerInHand]) -> Self {
        let unread: usize = answers.iter().map(AnswerInHand::unread_tokens).sum();
        let left = answers
            .iter()
            .map(|answer| answer.tokens_left(usual.tokens));
        Self {
            tpot_ms: usual.tpot_ms,
            prefill_ms: usual.prefill_ms.unwrap_or(0.0) * unread as f64,
            tokens_left: left.collect(),
            width,
        }
    }
}
