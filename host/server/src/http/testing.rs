//! A house for tests: fake tiers that do what the question says, a fake encoder, no
//! policies.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt};
use homeostat_cascade::{
    Cascade, CascadeConfig, GenerateCall, Prompt, Tier, TierError, TierEvent, TierFault, Token,
    TokenStream,
};
use homeostat_hooks::{BuiltIn, Finish, Sample, Snapshot, TierView};
use homeostat_policy::{PolicyRoom, RoomConfig};
use homeostat_telemetry::Telemetry;
use tokio::sync::Semaphore;

use crate::budgets::{Budgets, BudgetsConfig};
use crate::config::{EnergyConfig, ServerConfig};
use crate::energy::Energy;
use crate::house::{Door, House};
use crate::metrics::Metrics;
use crate::openai::request::SamplingDefaults;
use crate::tiers::{Embedder, HostModels};

/// Streams that are being read.
pub static OPEN_STREAMS: AtomicUsize = AtomicUsize::new(0);
static GATE: Semaphore = Semaphore::const_new(0);

/// Let an answer to "gate" go on.
pub fn open_gate() {
    GATE.add_permits(1);
}

/// A chat request with one message.
pub fn chat_body(question: &str, extra: &str) -> String {
    let question = serde_json::to_string(question).unwrap();
    format!(r#"{{"model":"auto","messages":[{{"role":"user","content":{question}}}]{extra}}}"#)
}

/// A house that answers with one fake tier, `small`.
pub fn house(change: impl FnOnce(&mut ServerConfig)) -> Arc<House> {
    let mut server = ServerConfig::default();
    change(&mut server);
    let no_budgets = Budgets::open(&BudgetsConfig::default(), None, None, Box::new(|| 0));
    house_of(&server, vec![Arc::new(SMALL)], no_budgets.unwrap())
}

/// A house with a second tier, `large`, which costs 3 J a token where `small` costs 1 J, and
/// with budgets. Long questions go to `large`.
pub fn house_on_budget(server: &ServerConfig, budgets: Budgets) -> Arc<House> {
    house_of(server, vec![Arc::new(SMALL), Arc::new(LARGE)], budgets)
}

fn house_of(server: &ServerConfig, tiers: Vec<Arc<dyn Tier>>, budgets: Budgets) -> Arc<House> {
    let metrics = Arc::new(Metrics::new().unwrap());
    let snapshots: crate::house::Snapshots = Arc::new(|| Arc::new(Snapshot::default()));
    let counted = metrics.clone();
    let limits = CascadeConfig {
        observer: Some(Arc::new(move |record| counted.record(record))),
        ..CascadeConfig::default()
    };
    let cascade = Cascade::new(Arc::new(BuiltIn), tiers, snapshots.clone(), limits);
    let models = HostModels::new(Vec::new(), Vec::new(), None).unwrap();
    let room = PolicyRoom::new(RoomConfig::default(), Arc::new(models)).unwrap();
    Arc::new(House {
        cascade: Arc::new(cascade),
        local_tiers: Vec::new(),
        encoder: Some(Arc::new(Lengths)),
        policies: Arc::new(room),
        max_component_bytes: 1 << 20,
        snapshots,
        telemetry: Arc::new(no_sensors()),
        metrics,
        energy: Arc::new(Energy::new(
            &EnergyConfig::default(),
            std::path::Path::new("/proc"),
            std::time::Instant::now(),
        )),
        budgets: Arc::new(budgets),
        sampling: SamplingDefaults {
            temperature: 0.2,
            top_p: 0.9,
        },
        door: Door::new(server),
        started: 7,
        draining: false.into(),
    })
}

/// Telemetry of a machine that has nothing to tell.
fn no_sensors() -> Telemetry {
    Telemetry::start(homeostat_telemetry::Config {
        sysfs_root: "/nonexistent".into(),
        procfs_root: "/nonexistent".into(),
        nvml: homeostat_telemetry::NvmlLibrary::Off,
        ..homeostat_telemetry::Config::default()
    })
}

/// A tier that does what the question says: echo it word by word, or misbehave.
struct Puppet {
    id: &'static str,
    rank: u32,
    joules_per_token: f64,
}

const SMALL: Puppet = Puppet {
    id: "small",
    rank: 0,
    joules_per_token: 1.0,
};
const LARGE: Puppet = Puppet {
    id: "large",
    rank: 1,
    joules_per_token: 3.0,
};

impl Tier for Puppet {
    fn id(&self) -> &str {
        self.id
    }

    fn view(&self) -> TierView {
        TierView {
            id: self.id.into(),
            rank: self.rank,
            model: "puppet".into(),
            ready: true,
            context_tokens: 100,
            joules_per_token: Some(Sample::measured(self.joules_per_token)),
            ..TierView::default()
        }
    }

    fn generate(&self, call: GenerateCall) -> BoxFuture<'static, Result<TokenStream, TierError>> {
        async move { answer(&call) }.boxed()
    }
}

fn refused(fault: TierFault, code: &'static str, message: &str, retryable: bool) -> TierError {
    TierError {
        fault,
        code,
        message: message.into(),
        retryable,
        retry_after_ms: None,
    }
}

fn answer(call: &GenerateCall) -> Result<TokenStream, TierError> {
    let question = match &*call.prompt {
        Prompt::Chat(messages) => messages.last().map_or("", |m| m.content.as_str()),
        Prompt::Raw(text) => text,
    };
    match question {
        "full" => Err(refused(TierFault::Tier, "queue_full", "256 wait", true)),
        "long" => {
            let both = "the prompt has 120 tokens, the context is 100";
            Err(refused(
                TierFault::Client,
                "context_length_exceeded",
                both,
                false,
            ))
        }
        "panic" => panic!("a tier that panics"),
        "break" => {
            let broken = refused(TierFault::Tier, "unavailable", "the wire was cut", true);
            let events = vec![Ok(token("Hello ")), Err(broken)];
            Ok(counted(futures::stream::iter(events)))
        }
        "forever" => {
            let endless = futures::stream::repeat_with(|| Ok(token("again ")));
            let paced = endless.then(|event| async {
                tokio::time::sleep(std::time::Duration::from_millis(1)).await;
                event
            });
            Ok(counted(paced))
        }
        "gate" => {
            let first = futures::stream::iter([Ok(token("before "))]);
            let second = futures::stream::once(async {
                GATE.acquire().await.unwrap().forget();
                Ok(token("after"))
            });
            let end = futures::stream::iter([Ok(finished(2))]);
            Ok(counted(first.chain(second).chain(end)))
        }
        words => {
            let seed = call
                .sampling
                .seed
                .map_or(String::new(), |s| format!(" {s}"));
            let text = format!("{words}{seed}");
            let mut events: Vec<_> = text.split_inclusive(' ').map(|w| Ok(token(w))).collect();
            let n = events.len() as u32;
            events.push(Ok(finished(n)));
            Ok(counted(futures::stream::iter(events)))
        }
    }
}

fn token(text: &str) -> TierEvent {
    TierEvent::Token(Token {
        text: text.into(),
        logprob: Some(-0.5),
        entropy: None,
        top: vec![(text.into(), -0.5)],
    })
}

fn finished(completion_tokens: u32) -> TierEvent {
    TierEvent::Finished {
        finish: Finish::Stop,
        prompt_tokens: 11,
        completion_tokens,
    }
}

/// The stream, counted for as long as somebody holds it.
fn counted(
    events: impl futures::Stream<Item = Result<TierEvent, TierError>> + Send + 'static,
) -> TokenStream {
    struct Open;
    impl Drop for Open {
        fn drop(&mut self) {
            OPEN_STREAMS.fetch_sub(1, Ordering::SeqCst);
        }
    }
    OPEN_STREAMS.fetch_add(1, Ordering::SeqCst);
    let open = Open;
    events
        .map(move |event| {
            let _held = &open;
            event
        })
        .boxed()
}

/// An encoder whose vectors tell the length of the text; a byte is a token.
struct Lengths;

impl Embedder for Lengths {
    fn id(&self) -> &str {
        "lengths"
    }
    fn dimensions(&self) -> usize {
        2
    }
    fn max_tokens(&self) -> usize {
        10
    }
    fn count_tokens(&self, text: &str) -> Result<usize, String> {
        Ok(text.len())
    }
    fn embed(&self, texts: &[&str]) -> Result<Vec<Vec<f32>>, String> {
        Ok(texts.iter().map(|t| vec![t.len() as f32, 0.5]).collect())
    }
}
