//! The host's models as policies may use them.
//!
//! A policy has a deadline and its calls block a thread, so nothing here may take longer
//! than it was given: generating is cancelled at the deadline; what cannot be cancelled
//! (an embedding, a score) runs on a worker thread with a short queue, one for each encoder and
//! one for scores, and the caller stops waiting. So a policy that asks too much delays other
//! policies' questions to the same encoder and nothing else.
//!
//! What is asked is paid ([`super::expense`]): by the request whose policies ask, once books are
//! kept, or by the host.

use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender, TrySendError};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use homeostat_cascade::Tier;
use homeostat_engine::{
    EngineHandle, Event, FinishReason, GenerationRequest, Prompt, SamplingParams, ScoreError,
    SequenceId, SubmitError,
};
use homeostat_hooks::{GenerateOptions, Generated, ModelError, Models, Request, TierView};

use super::encoder::{Embedder, as_candidate};
use super::expense::{Books, Expense};
use super::local::LocalTier;
use crate::budgets::Budgets;
use crate::energy::Energy;
use crate::openai::request::{SHARER_OF_POLICIES, sharer_of_tenant};

/// Questions that may wait for the worker. An embedding takes some ten milliseconds, a
/// policy's deadline is a hundred: whoever would wait longer gives up anyhow.
const WAITING_MAX: usize = 16;

/// All models of this host, as one who pays for it asks them.
pub struct HostModels {
    all: Arc<All>,
    /// The request whose policies ask; `None` = the host itself.
    payer: Option<Arc<Expense>>,
}

struct All {
    local: Vec<Arc<LocalTier>>,
    remote: Vec<Arc<dyn Tier>>,
    encoders: Vec<Asked>,
    scores: Worker,
    books: OnceLock<Books>,
}

/// An encoder, and the thread on which it is asked.
struct Asked {
    encoder: Arc<dyn Embedder>,
    worker: Worker,
}

impl HostModels {
    pub fn new(
        local: Vec<Arc<LocalTier>>,
        remote: Vec<Arc<dyn Tier>>,
        encoders: impl IntoIterator<Item = Arc<dyn Embedder>>,
    ) -> std::io::Result<Self> {
        let asked = |encoder| -> std::io::Result<Asked> {
            let worker = Worker::start()?;
            Ok(Asked { encoder, worker })
        };
        let encoders = encoders.into_iter().map(asked);
        let all = Arc::new(All {
            local,
            remote,
            encoders: encoders.collect::<std::io::Result<_>>()?,
            scores: Worker::start()?,
            books: OnceLock::new(),
        });
        Ok(Self { all, payer: None })
    }

    /// From now on what is asked stands in these books; later ones are not listened to.
    pub fn keep_books(&self, energy: &Arc<Energy>, budgets: &Arc<Budgets>) {
        let _ = self.all.books.set(Books::new(energy, budgets));
    }

    /// Who pays; `None` while no books are kept.
    fn expense(&self) -> Option<Arc<Expense>> {
        let own = || self.all.books.get().map(Books::of_host);
        self.payer.clone().or_else(own)
    }

    fn encoder(&self, name: &str) -> Option<&Asked> {
        self.all
            .encoders
            .iter()
            .find(|asked| asked.encoder.id() == name)
    }

    fn local(&self, name: &str) -> Result<&Arc<LocalTier>, ModelError> {
        if let Some(tier) = self.all.local.iter().find(|t| t.id() == name) {
            return Ok(tier);
        }
        let why = if self.all.remote.iter().any(|t| t.id() == name) {
            format!("{name} is a remote tier; only local ones can be asked by policies")
        } else if self.encoder(name).is_some() {
            format!("{name} is an encoder, which generates nothing")
        } else {
            return Err(ModelError::InvalidArgument(format!(
                "there is no model {name:?}; known: {}",
                self.names().join(", ")
            )));
        };
        Err(ModelError::Unavailable(why))
    }
}

/// How long an answer is waited for.
struct Until {
    at: Instant,
    timeout_ms: u32,
}

impl Until {
    /// Reads an answer to its end. What is late is cancelled, and what there is of it is kept.
    fn read(
        &self,
        (engine, id): (&EngineHandle, SequenceId),
        events: &Receiver<Event>,
        answer: &mut Generated,
    ) -> Result<(), ModelError> {
        loop {
            match events.recv_timeout(self.at.saturating_duration_since(Instant::now())) {
                Ok(Event::Token { text, logprob }) => {
                    answer.text.push_str(&text);
                    answer.logprobs.push(logprob.logprob);
                }
                Ok(Event::Finished { reason, .. }) => {
                    answer.finished = reason == FinishReason::Stop;
                    return Ok(());
                }
                Ok(Event::Failed(e)) => return Err(ModelError::Internal(e.to_string())),
                Err(RecvTimeoutError::Timeout) => {
                    engine.cancel(id);
                    return Err(late(self.timeout_ms));
                }
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(ModelError::Unavailable("the engine has stopped".into()));
                }
            }
        }
    }
}

impl Models for HostModels {
    fn at_the_expense_of(self: Arc<Self>, request: &Request) -> Option<Arc<dyn Models>> {
        let payer = self.all.books.get()?.of_job(&request.id);
        Some(Arc::new(Self {
            all: self.all.clone(),
            payer: Some(payer),
        }))
    }

    fn names(&self) -> Vec<String> {
        let tiers = self.all.local.iter().map(|t| t.id().to_string());
        let remote = self.all.remote.iter().map(|t| t.id().to_string());
        let encoders = self.all.encoders.iter();
        let encoders = encoders.map(|asked| asked.encoder.id().to_string());
        tiers.chain(remote).chain(encoders).collect()
    }

    fn info(&self, name: &str) -> Result<TierView, ModelError> {
        if self.encoder(name).is_some() {
            let why = format!("{name} is an encoder, which is no tier");
            return Err(ModelError::Unavailable(why));
        }
        if let Some(tier) = self.all.remote.iter().find(|t| t.id() == name) {
            return Ok(tier.view());
        }
        Ok(self.local(name)?.view())
    }

    fn count_tokens(&self, name: &str, text: &str) -> Result<u32, ModelError> {
        let count = match self.encoder(name) {
            Some(asked) => asked
                .encoder
                .count_tokens(text)
                .map_err(ModelError::InvalidArgument)?,
            None => self.local(name)?.engine().count_tokens(text, false),
        };
        Ok(count as u32)
    }

    fn embed(&self, name: &str, text: &str, timeout_ms: u32) -> Result<Vec<f32>, ModelError> {
        let Some(asked) = self.encoder(name) else {
            self.local(name)?;
            return Err(ModelError::Unavailable(format!("{name} is no encoder")));
        };
        let (encoder, expense) = (asked.encoder.clone(), self.expense());
        let text = text.to_string();
        asked.worker.ask(timeout_ms, move || {
            let tokens = encoder
                .count_tokens(&text)
                .map_err(ModelError::InvalidArgument)?;
            let limit = encoder.max_tokens();
            if tokens > limit {
                let why = format!(
                    "the text has {tokens} tokens, {} reads {limit}",
                    encoder.id()
                );
                return Err(ModelError::LimitExceeded(why));
            }
            let computing = expense.as_deref().map(Expense::begin_encoding);
            let vectors = encoder.embed(&[&text]).map_err(ModelError::Internal)?;
            if let Some((expense, computing)) = expense.zip(computing) {
                computing.end(tokens as u32);
                expense.was_asked(|| (as_candidate(&*encoder), [tokens as u32, 0]));
            }
            let first = vectors.into_iter().next();
            first.ok_or_else(|| ModelError::Internal("the encoder gave no vector".into()))
        })
    }

    fn score(
        &self,
        tenant: Option<&str>,
        name: &str,
        prompt: &str,
        continuation: &str,
        timeout_ms: u32,
    ) -> Result<Vec<f32>, ModelError> {
        let tier = self.local(name)?.clone();
        let (prompt, continuation) = (prompt.to_string(), continuation.to_string());
        let (sharer, expense) = (sharer(tenant), self.expense());
        self.all.scores.ask(timeout_ms, move || {
            let engine = tier.engine();
            let account = expense.as_deref().map_or(0, Expense::account);
            let scores = engine.score(Some(&sharer), account, &prompt, &continuation);
            let computed = match &scores {
                Ok(scores) => !scores.is_empty(),
                Err(error) => !matches!(error, ScoreError::Submit(_)),
            };
            if let Some(expense) = expense.filter(|_| computed) {
                let read = || {
                    engine.count_tokens(&prompt, true) + engine.count_tokens(&continuation, false)
                };
                expense.was_asked(|| (tier.view(), [read() as u32, 0]));
            }
            let scores = scores.map_err(|e| match e {
                ScoreError::Submit(e) => not_taken(&e),
                other => ModelError::Unavailable(other.to_string()),
            })?;
            Ok(scores.into_iter().map(|t| t.logprob).collect())
        })
    }

    fn generate(
        &self,
        tenant: Option<&str>,
        name: &str,
        prompt: &str,
        options: &GenerateOptions,
        timeout_ms: u32,
    ) -> Result<Generated, ModelError> {
        let (tier, expense) = (self.local(name)?, self.expense());
        let engine = tier.engine();
        let until = Until {
            at: Instant::now() + Duration::from_millis(timeout_ms.into()),
            timeout_ms,
        };
        let tokens = engine.tokenize(prompt, true);
        let prompt_tokens = tokens.len() as u32;
        let request = GenerationRequest {
            prompt: Prompt::Tokens(tokens),
            max_new_tokens: Some(options.max_tokens as usize),
            stop: options.stop.clone(),
            tenant: Some(sharer(tenant)),
            account: expense.as_deref().map_or(0, Expense::account),
            params: SamplingParams {
                temperature: options.temperature,
                seed: Some(options.seed),
                ..SamplingParams::default()
            },
            ..GenerationRequest::new("")
        };
        let (sender, events) = mpsc::channel();
        let id = engine
            .submit(request, Box::new(sender))
            .map_err(|e| not_taken(&e))?;
        let mut answer = Generated::default();
        let ended = until.read((engine, id), &events, &mut answer);
        if let Some(expense) = expense {
            // However it ended: it was read, and so much was written.
            let written = answer.logprobs.len() as u32;
            expense.was_asked(|| (tier.view(), [prompt_tokens, written]));
        }
        ended.map(|()| answer)
    }
}

/// Whose share a policy's question takes, and whose prompts it may meet in the prefix cache.
fn sharer(tenant: Option<&str>) -> String {
    tenant.map_or_else(|| SHARER_OF_POLICIES.into(), sharer_of_tenant)
}

fn late(timeout_ms: u32) -> ModelError {
    ModelError::Unavailable(format!(
        "no answer within the {timeout_ms} ms that were left"
    ))
}

fn not_taken(error: &SubmitError) -> ModelError {
    match error {
        SubmitError::QueueFull { .. } | SubmitError::ShuttingDown | SubmitError::Ended => {
            ModelError::Unavailable(error.to_string())
        }
        SubmitError::ContextTooLong { .. } | SubmitError::NeverFits { .. } => {
            ModelError::LimitExceeded(error.to_string())
        }
        SubmitError::Invalid(_) | SubmitError::Constraint(_) => {
            ModelError::InvalidArgument(error.to_string())
        }
    }
}

type Errand = Box<dyn FnOnce() + Send>;

/// One thread that runs what cannot be cancelled, one thing after another.
struct Worker {
    errands: SyncSender<Errand>,
}

impl Worker {
    fn start() -> std::io::Result<Self> {
        let (errands, inbox) = mpsc::sync_channel::<Errand>(WAITING_MAX);
        std::thread::Builder::new()
            .name("policy-models".into())
            .spawn(move || {
                for errand in inbox {
                    // A panic in a model must not end the thread: it drops the errand's
                    // sender, and only that caller hears of it.
                    let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(errand));
                }
            })?;
        Ok(Self { errands })
    }

    /// Run `work` and wait for it for at most `timeout_ms`. Work that begins after its
    /// caller has left is not done.
    fn ask<T: Send + 'static>(
        &self,
        timeout_ms: u32,
        work: impl FnOnce() -> Result<T, ModelError> + Send + 'static,
    ) -> Result<T, ModelError> {
        let timeout = Duration::from_millis(timeout_ms.into());
        let deadline = Instant::now() + timeout;
        let (sender, answer) = mpsc::sync_channel(1);
        let errand: Errand = Box::new(move || {
            if Instant::now() < deadline {
                // The caller may have left meanwhile; then the answer is for nobody.
                let _ = sender.send(work());
            }
        });
        match self.errands.try_send(errand) {
            Ok(()) => {}
            // No limit of the question's: a shorter text would be refused as well.
            Err(TrySendError::Full(_)) => {
                let why = format!("{WAITING_MAX} questions of policies are waiting already");
                return Err(ModelError::Unavailable(why));
            }
            Err(TrySendError::Disconnected(_)) => {
                return Err(ModelError::Internal("the worker thread has ended".into()));
            }
        }
        match answer.recv_timeout(timeout) {
            Ok(result) => result,
            Err(RecvTimeoutError::Timeout) => Err(late(timeout_ms)),
            Err(RecvTimeoutError::Disconnected) if Instant::now() >= deadline => {
                Err(late(timeout_ms))
            }
            Err(RecvTimeoutError::Disconnected) => {
                Err(ModelError::Internal("the model panicked".into()))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    use homeostat_hooks::{Device, DeviceKind, Sample, Snapshot};

    use crate::config::EnergyConfig;

    /// A fake encoder whose vectors tell the length of the text.
    struct Lengths(&'static str);

    impl Embedder for Lengths {
        fn id(&self) -> &str {
            self.0
        }
        fn dimensions(&self) -> usize {
            1
        }
        fn max_tokens(&self) -> usize {
            8
        }
        fn count_tokens(&self, text: &str) -> Result<usize, String> {
            Ok(text.len())
        }
        fn embed(&self, texts: &[&str]) -> Result<Vec<Vec<f32>>, String> {
            Ok(texts.iter().map(|t| vec![t.len() as f32]).collect())
        }
    }

    fn models() -> HostModels {
        let encoder: Arc<dyn Embedder> = Arc::new(Lengths("lengths"));
        HostModels::new(Vec::new(), Vec::new(), [encoder]).unwrap()
    }

    #[test]
    fn each_encoder_answers_by_its_own_name() {
        let named = |id| Arc::new(Lengths(id)) as Arc<dyn Embedder>;
        let both = [named("sentences"), named("prompts")];
        let models = HostModels::new(Vec::new(), Vec::new(), both).unwrap();
        assert_eq!(models.names(), ["sentences", "prompts"]);
        for name in ["sentences", "prompts"] {
            assert_eq!(models.embed(name, "abc", 10_000).unwrap(), [3.0]);
        }
        let error = models.embed("pictures", "abc", 10_000).unwrap_err();
        assert!(error.to_string().contains("prompts"), "{error}");
    }

    /// Answers only when it is let.
    struct Held(std::sync::Mutex<mpsc::Receiver<()>>, SyncSender<()>);

    impl Embedder for Held {
        fn id(&self) -> &str {
            "held"
        }
        fn dimensions(&self) -> usize {
            1
        }
        fn max_tokens(&self) -> usize {
            8
        }
        fn count_tokens(&self, text: &str) -> Result<usize, String> {
            Ok(text.len())
        }
        fn embed(&self, _: &[&str]) -> Result<Vec<Vec<f32>>, String> {
            self.1.send(()).map_err(|e| e.to_string())?;
            let held = self.0.lock().map_err(|e| e.to_string())?;
            held.recv().map_err(|e| e.to_string())?;
            Ok(vec![vec![1.0]])
        }
    }

    #[test]
    fn an_encoder_that_is_busy_keeps_nobody_from_another() {
        let (release, held) = mpsc::channel();
        let (begin, begun) = mpsc::sync_channel(1);
        let busy: Arc<dyn Embedder> = Arc::new(Held(std::sync::Mutex::new(held), begin));
        let idle: Arc<dyn Embedder> = Arc::new(Lengths("lengths"));
        let models = HostModels::new(Vec::new(), Vec::new(), [busy, idle]).unwrap();
        std::thread::scope(|scope| {
            let asked = scope.spawn(|| models.embed("held", "abc", 60_000));
            begun.recv().unwrap();
            assert_eq!(models.embed("lengths", "abc", 60_000).unwrap(), [3.0]);
            release.send(()).unwrap();
            assert_eq!(asked.join().unwrap().unwrap(), [1.0]);
        });
    }

    /// Takes its time.
    struct Slow;

    impl Embedder for Slow {
        fn id(&self) -> &str {
            "slow"
        }
        fn dimensions(&self) -> usize {
            1
        }
        fn max_tokens(&self) -> usize {
            8
        }
        fn count_tokens(&self, text: &str) -> Result<usize, String> {
            Ok(text.len())
        }
        fn embed(&self, _: &[&str]) -> Result<Vec<Vec<f32>>, String> {
            std::thread::sleep(Duration::from_millis(30));
            Ok(vec![vec![1.0]])
        }
    }

    /// A budget of the host, settled by what these books say.
    fn budgets_over(energy: &Arc<Energy>) -> Arc<Budgets> {
        let limits = "[limits.h]\nunit = \"joules\"\nlimit = 100\nper = \"day\"";
        let books = energy.clone();
        let budgets = Budgets::open(
            &toml::from_str(limits).unwrap(),
            None,
            Some(Box::new(move |job: &str| books.taken(job))),
            Box::new(|| 0),
        );
        Arc::new(budgets.unwrap())
    }

    #[test]
    fn a_request_pays_for_what_its_policies_ask_and_the_host_for_the_rest() {
        let epoch = Instant::now() - Duration::from_secs(10);
        let config = EnergyConfig::default();
        let energy = Arc::new(Energy::new(&config, Path::new("/none"), epoch));
        let now_ms = || epoch.elapsed().as_millis() as u64;
        let reads = |at_ms: u64, joules: f64| Snapshot {
            monotonic_ms: at_ms,
            devices: vec![Device {
                id: "cpu.0".into(),
                kind: DeviceKind::Cpu,
                energy_joules: Some(Sample::measured(joules)),
                ..Device::default()
            }],
            ..Snapshot::default()
        };
        let began_ms = now_ms();
        energy.watch_encoder(&reads(began_ms - 200, 10.0));
        energy.tick(&reads(began_ms - 200, 10.0), &[]);
        energy.tick(&reads(began_ms - 100, 11.0), &[]);
        let slow: Arc<dyn Embedder> = Arc::new(Slow);
        let models = Arc::new(HostModels::new(Vec::new(), Vec::new(), [slow]).unwrap());
        let request = Request {
            id: "r".into(),
            ..Request::default()
        };
        let nobody = models.clone().at_the_expense_of(&request);
        assert!(nobody.is_none(), "no books are kept");
        let budgets = budgets_over(&energy);
        models.keep_books(&energy, &budgets);
        let purse = budgets.purse_of_texts("r", (None, None), 3);
        let spending = energy.begin("r", 1);
        let paid = models.clone().at_the_expense_of(&request);
        let paid = paid.expect("books are kept");
        assert_eq!(paid.names(), ["slow"]);
        paid.embed("slow", "abc", 60_000).unwrap();
        models.embed("slow", "abc", 60_000).unwrap();
        drop((paid, purse, spending));
        for joules in [17.0, 18.0, 19.0] {
            std::thread::sleep(Duration::from_millis(30));
            energy.tick(&reads(now_ms(), joules), &[]);
        }
        budgets.tick();
        let receipt = energy.receipt("r", 1).expect("booked");
        let receipt = serde_json::to_value(&receipt).expect("numbers and words");
        assert_eq!(receipt["settled"], true, "{receipt}");
        assert_eq!(receipt["joules"], receipt["policy_joules"]);
        let joules = receipt["joules"].as_f64().expect("a number");
        let (_, books) = energy.accounts().remove(0);
        assert!(joules > 0.0 && books.unattributed.host_uj > 0, "{books:?}");
        assert_eq!(books.attributed_uj(), (joules * 1e6).round() as u64);
        let budget = budgets.status().remove(0);
        assert_eq!((budget.spent, budget.reserved), (joules, 0.0));
    }

    #[test]
    fn an_encoder_embeds_and_generates_nothing() {
        let models = models();
        assert_eq!(models.names(), ["lengths"]);
        assert_eq!(models.embed("lengths", "abc", 10_000).unwrap(), [3.0]);
        assert_eq!(models.count_tokens("lengths", "ab").unwrap(), 2);
        assert!(models.embed("lengths", "abcdefgh", 10_000).is_ok());
        let error = models.embed("lengths", "abcdefghi", 10_000).unwrap_err();
        assert!(matches!(error, ModelError::LimitExceeded(_)), "{error}");
        assert!(error.to_string().contains("9 tokens"), "{error}");
        let error = models.info("lengths").unwrap_err();
        assert!(matches!(error, ModelError::Unavailable(_)), "{error}");
        let options = GenerateOptions::default();
        let error = models
            .generate(None, "lengths", "a", &options, 1)
            .unwrap_err();
        assert!(matches!(error, ModelError::Unavailable(_)), "{error}");
    }

    #[test]
    fn an_unknown_model_is_an_error_that_lists_the_known_ones() {
        let error = models().score(None, "nobody", "a", "b", 1).unwrap_err();
        assert!(matches!(error, ModelError::InvalidArgument(_)));
        assert!(error.to_string().contains("lengths"), "{error}");
    }

    #[test]
    fn nobody_waits_longer_than_given_and_the_queue_is_bounded() {
        let worker = Worker::start().unwrap();
        let (release, held) = mpsc::channel::<()>();
        let (begin, begun) = mpsc::channel::<()>();
        // An errand whose asker has given up before it began is not run at all, so the
        // first asker waits until its own has begun.
        let blocked = std::thread::scope(|scope| {
            let asker = scope.spawn(|| {
                worker.ask(3_000, move || {
                    let _ = begin.send(());
                    let _ = held.recv();
                    Ok(())
                })
            });
            begun.recv().unwrap();
            asker.join().unwrap()
        });
        assert!(matches!(blocked, Err(ModelError::Unavailable(_))));
        let mut refusals = Vec::new();
        for _ in 0..=WAITING_MAX {
            refusals.push(worker.ask(1, || Ok(())).unwrap_err());
        }
        assert!(
            refusals
                .iter()
                .all(|e| matches!(e, ModelError::Unavailable(_)))
        );
        let last = refusals.pop().unwrap().to_string();
        assert!(last.contains("are waiting already"), "{last}");
        let first = refusals[0].to_string();
        assert!(first.contains("within the 1 ms"), "{first}");
        drop(release);
    }
}
