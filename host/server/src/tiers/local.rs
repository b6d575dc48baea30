//! The engine of this host as a tier.
//!
//! Crossing from async to the engine's thread and back: a request goes into its inbox,
//! its events come back through a channel that never makes the engine wait. The channel
//! is bounded by the length of the answer, which the context bounds. Long prompts are
//! tokenised on a blocking thread, short ones in place, because the hop costs more.
//! Grammars are compiled there as well.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Instant;

use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt};
use homeostat_cascade::{
    CONTEXT_LENGTH_EXCEEDED, CONVERSATION_REFUSED, GenerateCall, OutputFormat, Prompt, Tier,
    TierError, TierEvent, TierFault, Token, TokenStream,
};
use homeostat_engine::{
    ChatMessage, Closed, ConstraintError, EngineError, EngineHandle, Event, FinishReason,
    GenerationRequest, Grammar, SamplingParams, SequenceId, Sink, SubmitError, TemplateError,
    Timings, Usage,
};
use homeostat_hooks::{Finish, Role, Sample, TierView};
use tokio::sync::mpsc;

use super::device::TierDevice;
use super::drafts::{Drafts, Load};
use super::work::{AnswerInHand, Usual, WorkInHand};
use crate::budgets::{Receipts, Taken};
use crate::energy::account;
use crate::metrics::TierTimes;

/// Bytes of a prompt from which tokenising it would hold up the async thread: about
/// a millisecond.
const LONG_PROMPT_BYTES: usize = 16 << 10;
/// Weight of the newest measurement in the running means of TTFT and TPOT: the last ten
/// or so answers count.
const MEAN_WEIGHT: f64 = 0.2;

/// A local tier.
pub struct LocalTier {
    shared: Arc<Shared>,
}

struct Shared {
    view: TierView,
    engine: EngineHandle,
    wishes: Wishes,
    means: Mutex<Means>,
    times: TierTimes,
    receipts: OnceLock<Receipts>,
    device: OnceLock<TierDevice>,
    in_hand: Mutex<HashMap<SequenceId, Arc<Progress>>>,
}

/// How far an answer is. Written with every token, so without a lock.
struct Progress {
    written: AtomicUsize,
    /// Tokens that it may have.
    most: usize,
    prompt_tokens: usize,
}

impl Progress {
    fn now(&self) -> AnswerInHand {
        AnswerInHand {
            written: self.written.load(Ordering::Relaxed),
            most: Some(self.most),
            prompt_tokens: self.prompt_tokens,
        }
    }
}

/// What holds where a request says nothing.
#[derive(Debug, Clone, Default)]
pub struct Wishes {
    /// New tokens when neither client nor plan sets a limit.
    pub max_tokens: u32,
    /// System message of conversations without one; `None` = the template decides.
    pub system: Option<String>,
}

/// Running means of what answers needed.
#[derive(Debug, Default, Clone, Copy)]
struct Means {
    ttft_ms: Option<f64>,
    /// Time from the first step to the first token, for one token of the prompt.
    prefill_ms: Option<f64>,
    tpot_ms: Option<f64>,
    answer_tokens: Option<f64>,
    drafts: Drafts,
    /// Of the newest prompt: the next one is taken to be as long.
    prompt_tokens: usize,
}

impl LocalTier {
    /// `view` is what routers are shown; load and measurements are filled in.
    pub fn new(view: TierView, engine: EngineHandle, wishes: Wishes, times: TierTimes) -> Self {
        Self {
            shared: Arc::new(Shared {
                view,
                engine,
                wishes,
                means: Mutex::default(),
                times,
                receipts: OnceLock::new(),
                device: OnceLock::new(),
                in_hand: Mutex::default(),
            }),
        }
    }

    /// From now on the energy of answers is asked of these books; later ones are not listened to.
    pub fn keep_books(&self, receipts: Receipts) {
        let _ = self.shared.receipts.set(receipts);
    }

    /// From now on the tier follows how this device is; later ones are not listened to.
    pub fn stand_on(&self, device: TierDevice) {
        let _ = self.shared.device.set(device);
    }

    /// What clients have asked of it and do not have yet; `None` before the first answer, when
    /// nobody can say how long that takes. What policies ask is short, and not counted.
    pub fn work_in_hand(&self) -> Option<WorkInHand> {
        let shared = &self.shared;
        let means = *shared.means();
        let (tpot_ms, tokens) = means.tpot_ms.zip(means.answer_tokens)?;
        let usual = Usual {
            tpot_ms,
            prefill_ms: means.prefill_ms,
            tokens,
        };
        let answers: Vec<AnswerInHand> = shared.in_hand().values().map(|a| a.now()).collect();
        let width = shared.engine.stats().max_requests_running.max(1);
        Some(WorkInHand::of(usual, width, &answers))
    }

    pub fn engine(&self) -> &EngineHandle {
        &self.shared.engine
    }
}

impl Tier for LocalTier {
    fn id(&self) -> &str {
        &self.shared.view.id
    }

    fn view(&self) -> TierView {
        let stats = self.shared.engine.stats();
        let means = *self.shared.means();
        let load = Load::met_by_the_next(&stats, means.prompt_tokens);
        let mut attributes = means.drafts.attributes(load, &stats);
        let device = self.shared.device.get();
        let state = device.map(|device| (device.state)()).unwrap_or_default();
        attributes.extend(device.iter().flat_map(|device| device.attributes(state)));
        TierView {
            ready: self.shared.engine.is_alive() && !state.lost,
            num_requests_running: stats.num_requests_running as u32,
            num_requests_waiting: stats.num_requests_waiting as u32,
            ttft_ms: means.ttft_ms.map(Sample::measured),
            tpot_ms: means.tpot_ms.map(Sample::measured),
            attributes,
            ..self.shared.view.clone()
        }
    }

    fn can_continue(&self, prompt: &Prompt) -> bool {
        match prompt {
            Prompt::Chat(_) => self.shared.engine.info().has_chat_template,
            Prompt::Raw(_) => true,
        }
    }

    fn generate(&self, call: GenerateCall) -> BoxFuture<'static, Result<TokenStream, TierError>> {
        let shared = self.shared.clone();
        async move {
            // A grammar is compiled before its request is queued: milliseconds, for a large one more.
            let long = prompt_bytes(&call) > LONG_PROMPT_BYTES || call.output != OutputFormat::Text;
            // A client that leaves meanwhile takes only the handle of that thread's work with it;
            // what the thread then gives back cancels what it has begun.
            let begin = move || Running::begin(shared, &call);
            let running = if long {
                tokio::task::spawn_blocking(begin)
                    .await
                    .map_err(|e| TierError::host("internal_error", format!("tokenizer: {e}")))??
            } else {
                begin()?
            };
            Ok(futures::stream::unfold(running, Running::next).boxed())
        }
        .boxed()
    }
}

impl Shared {
    /// A panic cannot happen between the two assignments that this lock protects.
    fn means(&self) -> std::sync::MutexGuard<'_, Means> {
        self.means
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Nothing is left half done under this lock either.
    fn in_hand(&self) -> std::sync::MutexGuard<'_, HashMap<SequenceId, Arc<Progress>>> {
        self.in_hand
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn submit(
        &self,
        call: &GenerateCall,
        events: mpsc::UnboundedSender<Event>,
    ) -> Result<Submitted, TierError> {
        if call.output != OutputFormat::Text && !call.answer_prefix.is_empty() {
            let why = "its form is given";
            return Err(TierError::cannot_continue(&self.view.id, why));
        }
        let text = self.prompt_text(call)?;
        let tokens = self.engine.tokenize(&text, true);
        let context = self.engine.info().context_tokens;
        let prompt_tokens = tokens.len();
        let left = context.saturating_sub(prompt_tokens);
        // Without a wish the answer is as long as fits; with one, a wish that cannot be
        // met is the client's to mend.
        let max_new_tokens = match call.max_tokens {
            Some(wish) => wish as usize,
            None => left.min(self.wishes.max_tokens as usize).max(1),
        };
        let request = GenerationRequest {
            constraint: grammar(&call.output),
            prompt: homeostat_engine::Prompt::Tokens(tokens),
            params: params(call),
            max_new_tokens: Some(max_new_tokens),
            stop: call.sampling.stop.clone(),
            max_draft_tokens: Some(call.max_draft_tokens as usize),
            draft_hint: match call.max_draft_tokens {
                0 => Vec::new(),
                _ => self.engine.tokenize(&call.draft_hint, false),
            },
            tenant: call.sharer.clone(),
            account: account(&call.request_id),
            priority: call.priority.into(),
            deadline: call.time_left,
        };
        let sink = Box::new(ChannelSink(events));
        let load = Load::met_by_the_next(&self.engine.stats(), prompt_tokens);
        let id = self.engine.submit(request, sink);
        let id = id.map_err(|e| refused(&self.view.id, e))?;
        self.means().prompt_tokens = prompt_tokens;
        let progress = Arc::new(Progress {
            written: AtomicUsize::new(0),
            most: max_new_tokens,
            prompt_tokens,
        });
        self.in_hand().insert(id, progress.clone());
        Ok(Submitted { id, load, progress })
    }

    fn prompt_text(&self, call: &GenerateCall) -> Result<String, TierError> {
        match &*call.prompt {
            Prompt::Raw(text) => Ok(format!("{text}{}", call.answer_prefix)),
            Prompt::Chat(messages) => {
                let told = messages.iter().any(|m| m.role == Role::System);
                let system = self.wishes.system.iter().filter(|_| !told);
                let system = system.map(|text| ChatMessage::new("system", text.as_str()));
                let said = messages.iter();
                let said = said.map(|m| ChatMessage::new(role(m.role), m.content.as_str()));
                let messages: Vec<ChatMessage> = system.chain(said).collect();
                let prefix = Some(call.answer_prefix.as_str()).filter(|p| !p.is_empty());
                let rendered = self.engine.render_chat(&messages, true, prefix);
                rendered.map_err(|e| unreadable(&self.view.id, &e))
            }
        }
    }

    /// What the request has used, all of its local steps together.
    fn taken(&self, request_id: &str) -> Option<Taken> {
        self.receipts.get()?(request_id)
    }

    /// What writing this answer took, J. Not known while its prompt is not booked: until then
    /// what is expected of both is one number.
    fn decode_joules(&self, job: &Job) -> Option<f64> {
        // Asking the books takes their lock.
        let taken = job.is_first.then(|| self.taken(&job.id))??;
        (taken.prefill_uj > 0).then_some(taken.decode_uj as f64 / 1e6)
    }

    fn measured(&self, job: &Job, timings: Timings, usage: Usage) {
        let completion_tokens = usage.completion_tokens;
        self.times.queue.observe(timings.queued.as_secs_f64());
        let Some(first) = timings.first_token else {
            return;
        };
        let mix = |mean: &mut Option<f64>, news: f64| {
            *mean = Some(mean.map_or(news, |m| m + MEAN_WEIGHT * (news - m)));
        };
        // Before the lock: the books have one of their own.
        let joules = self.decode_joules(job);
        let mut means = self.means();
        mix(&mut means.ttft_ms, first.as_secs_f64() * 1e3);
        let reading_ms = first.saturating_sub(timings.queued).as_secs_f64() * 1e3;
        mix(
            &mut means.prefill_ms,
            reading_ms / usage.prompt_tokens.max(1) as f64,
        );
        mix(&mut means.answer_tokens, completion_tokens as f64);
        if completion_tokens > 1 {
            let rest = timings.total.saturating_sub(first).as_secs_f64() * 1e3;
            let tpot_ms = rest / (completion_tokens - 1) as f64;
            mix(&mut means.tpot_ms, tpot_ms);
            let drafts = &mut means.drafts;
            drafts.take(
                job.load,
                job.might_guess,
                completion_tokens,
                tpot_ms,
                joules,
            );
        }
    }
}

/// The form of the answer in the engine's words.
fn grammar(output: &OutputFormat) -> Option<Grammar> {
    match output {
        OutputFormat::Text => None,
        OutputFormat::JsonObject => Some(Grammar::JsonObject),
        OutputFormat::JsonSchema { schema, .. } => Some(Grammar::JsonSchema(schema.clone())),
        OutputFormat::Regex(expression) => Some(Grammar::Regex(expression.clone())),
        OutputFormat::Grammar(text) => Some(Grammar::Lark(text.clone())),
        OutputFormat::Choice(choices) => Some(Grammar::Choice(choices.clone())),
    }
}

fn params(call: &GenerateCall) -> SamplingParams {
    let s = &call.sampling;
    SamplingParams {
        temperature: s.temperature,
        top_p: s.top_p,
        top_k: s.top_k,
        min_p: s.min_p,
        seed: s.seed,
        logit_bias: s.logit_bias.clone(),
        repetition_penalty: s.repetition_penalty,
        frequency_penalty: s.frequency_penalty,
        presence_penalty: s.presence_penalty,
        top_logprobs: usize::from(s.top_logprobs.unwrap_or(0)),
    }
}

fn role(role: Role) -> &'static str {
    match role {
        Role::System => "system",
        Role::User => "user",
        Role::Assistant => "assistant",
        Role::Tool => "tool",
    }
}

fn prompt_bytes(call: &GenerateCall) -> usize {
    let asked = match &*call.prompt {
        Prompt::Chat(messages) => messages.iter().map(|m| m.content.len()).sum(),
        Prompt::Raw(text) => text.len(),
    };
    asked + call.answer_prefix.len() + call.draft_hint.len()
}

/// Why a conversation has no text for this tier's model. Its template may refuse what another's
/// takes, such as a system message; one that is broken or missing is the model's fault.
fn unreadable(tier: &str, error: &TemplateError) -> TierError {
    let (fault, code) = match error {
        TemplateError::Refused(_) => (TierFault::Client, CONVERSATION_REFUSED),
        TemplateError::Empty => (TierFault::Client, "invalid_value"),
        TemplateError::Broken(_) | TemplateError::Missing => (TierFault::Tier, "model_failed"),
    };
    TierError {
        fault,
        code,
        message: format!("tier {tier} cannot read this conversation: {error}"),
        retryable: false,
        retry_after_ms: None,
    }
}

fn refused(tier: &str, error: SubmitError) -> TierError {
    let (fault, code, retry_after_ms) = match &error {
        SubmitError::QueueFull { .. } => (TierFault::Tier, "queue_full", Some(1000)),
        SubmitError::ContextTooLong { .. } | SubmitError::NeverFits { .. } => {
            (TierFault::Client, CONTEXT_LENGTH_EXCEEDED, None)
        }
        SubmitError::Invalid(_) => (TierFault::Client, "invalid_value", None),
        SubmitError::Constraint(ConstraintError::Vocabulary(_)) => {
            (TierFault::Host, "internal_error", None)
        }
        SubmitError::Constraint(_) => (TierFault::Client, "invalid_grammar", None),
        SubmitError::ShuttingDown => (TierFault::Tier, "unavailable", Some(1000)),
        SubmitError::Ended => (TierFault::Host, "engine_ended", None),
    };
    TierError {
        fault,
        code,
        message: format!("tier {tier}: {error}"),
        retryable: retry_after_ms.is_some(),
        retry_after_ms,
    }
}

fn failed(tier: &str, error: &EngineError) -> TierError {
    let (fault, code, retryable) = match error {
        EngineError::Model(_) => (TierFault::Tier, "model_failed", false),
        EngineError::Grammar(_) => (TierFault::Client, "invalid_grammar", false),
        EngineError::Internal(_) => (TierFault::Host, "internal_error", true),
        EngineError::DeadlineExceeded { .. } => (TierFault::Tier, "deadline_exceeded", true),
        EngineError::ShuttingDown => (TierFault::Tier, "unavailable", true),
    };
    TierError {
        fault,
        code,
        message: format!("tier {tier}: {error}"),
        retryable,
        retry_after_ms: None,
    }
}

struct ChannelSink(mpsc::UnboundedSender<Event>);

impl Sink for ChannelSink {
    fn event(&mut self, event: Event) -> Result<(), Closed> {
        self.0.send(event).map_err(|_| Closed)
    }
}

/// A request that the engine has taken.
struct Submitted {
    id: SequenceId,
    load: Load,
    progress: Arc<Progress>,
}

/// For whom an answer is made, beside how many, and whether tokens of it might be guessed.
struct Job {
    id: String,
    load: Load,
    might_guess: bool,
    /// No earlier step stands on its account: what it has used is this answer's.
    is_first: bool,
}

/// One answer in the making. Dropping it cancels the sequence, also while its prompt is
/// still being read and no event would tell the engine that nobody listens.
struct Running {
    shared: Arc<Shared>,
    job: Job,
    id: SequenceId,
    progress: Arc<Progress>,
    receiver: mpsc::UnboundedReceiver<Event>,
    /// When the newest token arrived.
    newest: Option<Instant>,
    over: bool,
}

impl Running {
    /// Blocks while it tokenises and compiles.
    fn begin(shared: Arc<Shared>, call: &GenerateCall) -> Result<Self, TierError> {
        let (events, receiver) = mpsc::unbounded_channel();
        let nothing = |taken: Taken| taken.prefill_uj + taken.decode_uj == 0;
        let is_first = shared.taken(&call.request_id).is_none_or(nothing);
        let Submitted { id, load, progress } = shared.submit(call, events)?;
        Ok(Self {
            shared,
            job: Job {
                id: call.request_id.clone(),
                load,
                might_guess: call.max_draft_tokens > 0,
                is_first,
            },
            id,
            progress,
            receiver,
            newest: None,
            over: false,
        })
    }

    async fn next(mut self) -> Option<(Result<TierEvent, TierError>, Self)> {
        while !self.over {
            let Some(event) = self.receiver.recv().await else {
                self.over = true;
                let lost = EngineError::Internal("the engine's thread has ended".into());
                return Some((Err(failed(&self.shared.view.id, &lost)), self));
            };
            if let Some(item) = self.translate(event) {
                return Some((item, self));
            }
        }
        None
    }

    fn translate(&mut self, event: Event) -> Option<Result<TierEvent, TierError>> {
        let item = match event {
            Event::Token { text, logprob } => {
                let now = Instant::now();
                self.progress.written.fetch_add(1, Ordering::Relaxed);
                if let Some(before) = self.newest.replace(now) {
                    let gap = now.duration_since(before).as_secs_f64();
                    self.shared.times.inter_token.observe(gap);
                }
                // The end token is no part of the text, so it is none of the answer.
                let ends = &self.shared.engine.info().end_tokens;
                if text.is_empty() && ends.contains(&logprob.token_id) {
                    return None;
                }
                let alternatives = logprob.top.into_iter();
                return Some(Ok(TierEvent::Token(Token {
                    text,
                    logprob: Some(logprob.logprob),
                    entropy: Some(logprob.entropy),
                    top: alternatives
                        .map(|t| (String::from_utf8_lossy(&t.bytes).into_owned(), t.logprob))
                        .collect(),
                })));
            }
            Event::Finished {
                reason: FinishReason::Cancelled,
                ..
            } => Err(failed(&self.shared.view.id, &EngineError::ShuttingDown)),
            Event::Finished {
                reason,
                usage,
                timings,
            } => {
                self.shared.measured(&self.job, timings, usage);
                Ok(TierEvent::Finished {
                    finish: match reason {
                        FinishReason::Length => Finish::Length,
                        _ => Finish::Stop,
                    },
                    prompt_tokens: usage.prompt_tokens as u32,
                    completion_tokens: usage.completion_tokens as u32,
                })
            }
            Event::Failed(error) => Err(failed(&self.shared.view.id, &error)),
        };
        self.over = true;
        self.shared.in_hand().remove(&self.id);
        Some(item)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.shared.in_hand().remove(&self.id);
        if !self.over {
            self.shared.engine.cancel(self.id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_template_that_refuses_is_the_requests_matter_and_one_that_is_broken_the_tiers() {
        let fault = |error: TemplateError| {
            let e = unreadable("t", &error);
            assert!(e.message.contains("tier t"), "{}", e.message);
            (e.fault, e.code)
        };
        let refused = TemplateError::Refused("System role not supported".into());
        assert_eq!(fault(refused), (TierFault::Client, CONVERSATION_REFUSED));
        let broken = TemplateError::Broken("strftime_now does not know %Q".into());
        assert_eq!(fault(broken), (TierFault::Tier, "model_failed"));
        assert_eq!(
            fault(TemplateError::Missing),
            (TierFault::Tier, "model_failed")
        );
    }

    #[test]
    fn a_dead_engine_is_the_hosts_fault_and_not_a_shutdown() {
        let dead = refused("t", SubmitError::Ended);
        assert_eq!((dead.fault, dead.code), (TierFault::Host, "engine_ended"));
        assert!(!dead.retryable);
        assert!(!dead.message.contains("shutting down"), "{}", dead.message);
    }
}
