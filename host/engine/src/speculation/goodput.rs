//! How much of each draft is worth verifying? As much as makes tokens per second go up.
//!
//! It exists because a draft that fails costs time, and how much time depends on what else is in
//! the batch: alone on a CPU three more rows cost a quarter of a step, beside seven neighbours
//! they cost two of them their speed. So the lengths of all drafts are chosen together, to make
//! *expected tokens ÷ predicted time* of the next step largest; 0 is always among the choices.
//! Source: Liu et al. 2024, "SmartSpec/TurboSpec" (arXiv 2406.14066).
//!
//! It refuses to lose. Every sequence has an account, kept in units of its own plain tokens: a
//! verified draft is booked at its predicted extra time, an accepted token at one. An empty account
//! gets no drafts. The time of a model that drafts is booked as well, whether or not its draft is
//! verified. It is filled by success, and by a small allowance that pays for trying again
//! from time to time; so what can be lost is the allowance, whatever the estimates say.

use std::collections::{BTreeMap, BinaryHeap, HashMap};
use std::time::Duration;

use super::draft::Draft;
use crate::cost::StepCost;
use crate::sequence::SequenceId;

/// Classes of [`Draft::confidence`]: unknown, then up to so much.
const CONFIDENCES: [u8; 9] = [0, 38, 76, 115, 140, 166, 191, 217, 255];
/// How often a token of each class holds, before anything was measured: from the offline study
/// (`examples/speculate.rs`).
const FIRST_GUESS: [f64; CONFIDENCES.len()] = [0.5, 0.07, 0.1, 0.2, 0.3, 0.5, 0.7, 0.8, 0.9];

/// Weight of the first guess in a class's rate, and of the class's rate in a sequence's, in trials.
const GUESS_TRIALS: f64 = 8.0;
const CLASS_TRIALS: f64 = 4.0;
/// What a rate keeps of its past with every new draft: of some hundred for a class, and of ten
/// for a sequence, which may start or stop copying at any line.
const CLASS_MEMORY: f64 = 0.99;
const SEQUENCE_MEMORY: f64 = 0.9;
/// Predicted gain below which nobody starts to speculate. Those who do go on until it is none.
const WORTH_STARTING: f64 = 1.03;
/// The account of a new sequence, what every step adds, and what it can hold: in plain tokens.
const OPENING: f64 = 0.5;
const ALLOWANCE: f64 = 0.015;
const MOST_SAVED: f64 = 2.0;
/// In a batch one failed draft can cost three tokens and more. Who succeeds may save for so many of
/// them, lest bad luck ends what pays; all of it is earned before it is lost.
const DRAFTS_SAVED: f64 = 3.0;
const MOST_OWED: f64 = 1.0;
/// Nodes of a draft that is tried although it promises nothing, and the steps between two such
/// trials: doubled with every one that failed.
const TRIAL_NODES: usize = 3;
const TRIAL_EVERY: u32 = 8;
const TRIAL_EVERY_AT_MOST: u32 = 32;

/// What the averages about computed drafts keep of their past with every new one.
const COMPUTED_MEMORY: f64 = 0.9;

/// A sequence that decodes in the next step, and its draft, which may be empty.
#[derive(Debug, Clone, Copy)]
pub struct Candidate<'a> {
    pub id: SequenceId,
    /// Tokens that each of its rows attends to.
    pub context: usize,
    pub draft: &'a Draft,
}

/// The rest of the step: rows that are computed whatever is decided about drafts.
#[derive(Debug, Clone, Copy, Default)]
pub struct Load {
    /// Rows that are not the candidates' own decode rows: prefill chunks.
    pub other_rows: usize,
    /// Draft nodes that the step has room for, over all sequences.
    pub max_nodes: usize,
}

/// The controller of draft lengths.
#[derive(Debug, Default)]
pub struct Goodput {
    /// By drafter and confidence.
    classes: Vec<Rate>,
    sequences: HashMap<SequenceId, Account>,
    /// Whether the last step verified drafts because they promised a gain.
    speculating: bool,
    /// Predicted time of one plain token in the last plan, in seconds.
    unit: f64,
    computed: Computed,
}

/// What drafts were worth for which a model was run, in plain tokens: moving averages.
#[derive(Debug, Default)]
struct Computed {
    price: f64,
    gain: f64,
}

/// Takes `news` into a moving average about computed drafts.
fn learn(average: &mut f64, news: f64) {
    *average += (1.0 - COMPUTED_MEMORY) * (news - *average);
}

/// How often something held.
#[derive(Debug, Clone, Copy, Default)]
struct Rate {
    held: f64,
    trials: f64,
}

impl Rate {
    fn add(&mut self, held: bool) {
        self.held += f64::from(u8::from(held));
        self.trials += 1.0;
    }

    fn fade(&mut self, memory: f64) {
        self.held *= memory;
        self.trials *= memory;
    }

    fn given(&self, guess: f64, weight: f64) -> f64 {
        (self.held + weight * guess) / (self.trials + weight)
    }
}

#[derive(Debug)]
struct Account {
    rates: HashMap<usize, Rate>,
    balance: f64,
    /// Steps until the next trial, and between the next two.
    wait: u32,
    interval: u32,
    planned: Option<Planned>,
}

/// What the last plan decided for a sequence.
#[derive(Debug)]
struct Planned {
    /// Parent and class of the nodes to be verified.
    nodes: Vec<(Option<u16>, usize)>,
    cost: f64,
    is_trial: bool,
    is_computed: bool,
}

impl Default for Account {
    fn default() -> Self {
        Self {
            rates: HashMap::new(),
            balance: OPENING,
            wait: TRIAL_EVERY,
            interval: TRIAL_EVERY,
            planned: None,
        }
    }
}

impl Account {
    fn book(&mut self, gain: f64, most: f64) {
        let most = most.max(self.balance);
        self.balance = (self.balance + gain).clamp(-MOST_OWED, most);
    }
}

/// The next node of a candidate's draft, by its chance to be accepted.
#[derive(PartialEq)]
struct Offer {
    chance: f64,
    candidate: usize,
}

impl Eq for Offer {}

impl Ord for Offer {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        // Of equal chances the earlier candidate's: the plan must not depend on the heap.
        self.chance
            .total_cmp(&other.chance)
            .then(other.candidate.cmp(&self.candidate))
    }
}

impl PartialOrd for Offer {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

/// Extra time of draft rows on top of the step that is computed anyway.
struct Extra<'a> {
    cost: &'a StepCost,
    rows: usize,
    decode_rows: usize,
    context: usize,
    plain: f64,
}

impl Extra<'_> {
    /// Seconds that `nodes` more rows take which attend to `context` tokens in all.
    fn seconds(&self, nodes: usize, context: usize) -> f64 {
        let with = self.cost.predict(
            self.rows + nodes,
            self.decode_rows + nodes,
            self.context + context,
        );
        (with.as_secs_f64() - self.plain).max(0.0)
    }
}

impl Goodput {
    /// Replaces `out` by the number of leading nodes of each candidate's draft to verify.
    pub fn plan(
        &mut self,
        candidates: &[Candidate<'_>],
        load: Load,
        cost: &StepCost,
        out: &mut Vec<usize>,
    ) {
        out.clear();
        out.resize(candidates.len(), 0);
        if candidates.is_empty() {
            return;
        }
        let decode_rows = candidates.len();
        let context = candidates.iter().map(|c| c.context).sum();
        let rows = decode_rows + load.other_rows;
        let alone = cost
            .predict(decode_rows, decode_rows, context)
            .as_secs_f64();
        self.unit = alone / decode_rows as f64;
        let extra = Extra {
            cost,
            rows,
            decode_rows,
            context,
            plain: cost.predict(rows, decode_rows, context).as_secs_f64(),
        };
        for candidate in candidates {
            let account = self.sequences.entry(candidate.id).or_default();
            account.planned = None;
            account.book(ALLOWANCE, MOST_SAVED);
            account.wait = account.wait.saturating_sub(1);
        }
        let chances: Vec<Vec<f64>> = candidates.iter().map(|c| self.chances(c)).collect();
        let (nodes, seconds) = self.best_lengths(candidates, &chances, load, &extra, out);
        self.speculating = nodes > 0;
        let per_node = seconds / self.unit / nodes.max(1) as f64;
        for (candidate, length) in candidates.iter().zip(out.iter()) {
            self.note(candidate, *length, per_node * *length as f64, false);
        }
        self.try_one(candidates, load.max_nodes - nodes, &extra, out);
    }

    /// How likely each node of a draft is to be accepted.
    fn chances(&self, candidate: &Candidate<'_>) -> Vec<f64> {
        let draft = candidate.draft;
        let own = self.sequences.get(&candidate.id);
        let mut chances: Vec<f64> = Vec::with_capacity(draft.len());
        for (node, i) in draft.nodes().iter().zip(0..) {
            let of_parent = node.parent.map_or(1.0, |p| chances[usize::from(p)]);
            let class = class_of(draft, i);
            let guess = FIRST_GUESS[class % CONFIDENCES.len()];
            let of_class = self.classes.get(class).copied().unwrap_or_default();
            let of_class = of_class.given(guess, GUESS_TRIALS);
            let own = own.and_then(|a| a.rates.get(&class));
            chances.push(of_parent * own.map_or(of_class, |r| r.given(of_class, CLASS_TRIALS)));
        }
        chances
    }

    /// Takes nodes in the order of their chances, and stops where tokens per time is largest.
    /// Returns how many nodes there are and the seconds they add.
    fn best_lengths(
        &self,
        candidates: &[Candidate<'_>],
        chances: &[Vec<f64>],
        load: Load,
        extra: &Extra<'_>,
        out: &mut [usize],
    ) -> (usize, f64) {
        let solvent = |i: &usize| self.sequences[&candidates[*i].id].balance > 0.0;
        let offer = |candidate: usize, node: usize| {
            let chance = *chances[candidate].get(node)?;
            Some(Offer { chance, candidate })
        };
        let payers = (0..candidates.len()).filter(solvent);
        let mut heap: BinaryHeap<Offer> = payers.filter_map(|i| offer(i, 0)).collect();
        let plain = self.unit * candidates.len() as f64;
        let mut tokens = candidates.len() as f64;
        let threshold = if self.speculating {
            1.0
        } else {
            WORTH_STARTING
        };
        let mut best = (threshold * tokens / plain, 0, 0.0);
        let mut taken = Vec::new();
        let mut lengths = vec![0; candidates.len()];
        let mut context = 0;
        while taken.len() < load.max_nodes
            && let Some(Offer { chance, candidate }) = heap.pop()
        {
            tokens += chance;
            context += candidates[candidate].context;
            taken.push(candidate);
            lengths[candidate] += 1;
            heap.extend(offer(candidate, lengths[candidate]));
            let seconds = extra.seconds(taken.len(), context);
            let goodput = tokens / (plain + seconds);
            if goodput > best.0 {
                best = (goodput, taken.len(), seconds);
            }
        }
        taken[..best.1].iter().for_each(|i| out[*i] += 1);
        (best.1, best.2)
    }

    /// Tries one draft that promises nothing, if somebody's turn has come and its account allows.
    fn try_one(
        &mut self,
        candidates: &[Candidate<'_>],
        room: usize,
        extra: &Extra<'_>,
        out: &mut [usize],
    ) {
        let taken: usize = out.iter().sum();
        let context: usize = (candidates.iter().zip(out.iter()))
            .map(|(c, nodes)| c.context * nodes)
            .sum();
        let before = extra.seconds(taken, context);
        for (candidate, length) in candidates.iter().zip(out) {
            let nodes = candidate.draft.len().min(TRIAL_NODES).min(room);
            let account = &self.sequences[&candidate.id];
            if *length > 0 || nodes == 0 || account.wait > 0 {
                continue;
            }
            let after = extra.seconds(taken + nodes, context + nodes * candidate.context);
            let price = (after - before) / self.unit;
            if price <= account.balance {
                *length = nodes;
                self.note(candidate, nodes, price, true);
                return;
            }
        }
    }

    fn note(&mut self, candidate: &Candidate<'_>, nodes: usize, cost: f64, is_trial: bool) {
        if nodes > 0
            && let Some(account) = self.sequences.get_mut(&candidate.id)
        {
            let draft = candidate.draft;
            let parents = draft.nodes().iter().map(|n| n.parent);
            let classes = (0..nodes as u16).map(|n| class_of(draft, n));
            account.planned = Some(Planned {
                nodes: parents.zip(classes).collect(),
                cost,
                is_trial,
                is_computed: false,
            });
        }
    }

    /// To be told after every step that verified a draft of `id`: the last node of its path that
    /// held, `None` if not even its first token did.
    pub fn observe(&mut self, id: SequenceId, accepted: Option<u16>) {
        let Some(account) = self.sequences.get_mut(&id) else {
            return;
        };
        let Some(planned) = account.planned.take() else {
            return;
        };
        // The accepted path, from the last node up, and the root.
        let parent = |node: &Option<u16>| {
            let node = usize::from((*node)?);
            planned.nodes.get(node).map(|(parent, _)| *parent)
        };
        let path: Vec<Option<u16>> = std::iter::successors(Some(accepted), parent).collect();
        let tokens = path.len() - 1;
        if planned.is_computed {
            learn(&mut self.computed.gain, tokens as f64 - planned.cost);
        }
        let most = MOST_SAVED.max(DRAFTS_SAVED * planned.cost);
        account.book(tokens as f64 - planned.cost, most);
        let failed = planned.is_trial && tokens == 0;
        account.interval = match failed {
            true => (2 * account.interval).min(TRIAL_EVERY_AT_MOST),
            false => TRIAL_EVERY,
        };
        account.wait = account.interval;
        account
            .rates
            .values_mut()
            .for_each(|r| r.fade(SEQUENCE_MEMORY));
        let mut of_draft: BTreeMap<usize, Rate> = BTreeMap::new();
        // Put to the test were the children of every node of the path.
        for (node, (parent, class)) in (0..).zip(&planned.nodes) {
            if path.contains(parent) {
                let held = path.contains(&Some(node));
                account.rates.entry(*class).or_default().add(held);
                if self.classes.len() <= *class {
                    self.classes.resize(class + 1, Rate::default());
                }
                // One draft, one vote: a long copy must not speak for everybody.
                of_draft.entry(*class).or_default().add(held);
            }
        }
        for (class, rate) in of_draft {
            self.classes[class].fade(CLASS_MEMORY);
            self.classes[class].held += rate.held / rate.trials;
            self.classes[class].trials += 1.0;
        }
    }

    /// Whether a sequence can pay for a draft that takes a model's time. As long as such drafts have
    /// paid lately, nobody need have saved for one.
    pub fn affords_computing(&self, id: SequenceId) -> bool {
        let balance = self.sequences.get(&id).map_or(OPENING, |a| a.balance);
        let saved = match self.computed.gain < 0.0 {
            true => self.computed.price.min(MOST_SAVED),
            false => 0.0,
        };
        balance > 0.0 && balance >= saved
    }

    /// To be told after [`Self::plan`]: a model was run for the drafts of `ids`, which took `took` in
    /// all, verified or not.
    pub fn charge(&mut self, ids: &[SequenceId], took: Duration) {
        if ids.is_empty() || self.unit <= 0.0 {
            return;
        }
        let price = took.as_secs_f64() / self.unit / ids.len() as f64;
        for id in ids {
            learn(&mut self.computed.price, price);
            let Some(account) = self.sequences.get_mut(id) else {
                continue;
            };
            match &mut account.planned {
                Some(planned) => {
                    planned.cost += price;
                    planned.is_computed = true;
                }
                None => {
                    account.book(-price, MOST_SAVED);
                    learn(&mut self.computed.gain, -price);
                }
            }
        }
    }

    /// The sequence has ended. What it taught about its classes of drafts stays.
    pub fn forget(&mut self, id: SequenceId) {
        self.sequences.remove(&id);
    }
}

/// Index of a node's drafter and confidence.
fn class_of(draft: &Draft, node: u16) -> usize {
    let drafter = usize::from(draft.nodes()[usize::from(node)].drafter);
    let confidence = draft.confidence(node);
    let class = CONFIDENCES.iter().position(|most| confidence <= *most);
    drafter * CONFIDENCES.len() + class.unwrap_or(CONFIDENCES.len() - 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::SplitMix;

    const ROW_RATIOS: [f64; 8] = [1.0, 1.17, 1.2, 1.23, 1.4, 1.5, 1.6, 1.75];

    /// Time of a step by its rows; one plain row is 1.
    fn truth(rows: usize) -> f64 {
        let beyond = 1.75 + 0.15 * (rows as f64 - 8.0);
        ROW_RATIOS.get(rows - 1).copied().unwrap_or(beyond)
    }

    fn uniform(random: &mut SplitMix) -> f64 {
        random.below(1 << 20) as f64 / f64::from(1 << 20)
    }

    /// Leading tokens of `offered` that hold when each does with chance `alpha`.
    fn held(random: &mut SplitMix, alpha: f64, offered: usize) -> usize {
        (0..offered).take_while(|_| uniform(random) < alpha).count()
    }

    /// A chain whose drafter is this confident; 0 does not say.
    fn chain(length: u16, confidence: f64) -> Draft {
        let mut draft = Draft::default();
        for node in 0..length {
            draft.push(u32::from(node), node.checked_sub(1), 0);
            if confidence > 0.0 {
                draft.set_confidence(node, confidence);
            }
        }
        draft
    }

    /// The last node of the first `tokens` of a chain.
    fn node(tokens: usize) -> Option<u16> {
        tokens.checked_sub(1).map(|node| node as u16)
    }

    /// A machine with noise and outliers, and a controller that learns it from nothing.
    struct World {
        random: SplitMix,
        goodput: Goodput,
        cost: StepCost,
        tokens: f64,
        time: f64,
        /// Nodes verified for each sequence.
        given: Vec<usize>,
        /// Plain tokens' time that a model takes for each draft, if drafts come from one.
        price: Option<f64>,
        /// Drafts it was asked for.
        asked: usize,
    }

    impl World {
        fn new(seed: u64) -> Self {
            Self {
                random: SplitMix::new(seed),
                goodput: Goodput::default(),
                cost: StepCost::default(),
                tokens: 0.0,
                time: 0.0,
                given: Vec::new(),
                price: None,
                asked: 0,
            }
        }

        /// Steps in which sequence `i` accepts with `alphas[i]`. Returns tokens per plain token time,
        /// compared with the same batch without drafts.
        fn run(&mut self, alphas: &[f64], steps: usize) -> f64 {
            let (draft, silence) = (chain(7, 0.0), Draft::default());
            let mut out = Vec::new();
            (self.tokens, self.time) = (0.0, 0.0);
            self.given = vec![0; alphas.len()];
            for _ in 0..steps {
                let ids = (0..alphas.len() as u64).map(SequenceId);
                let asked =
                    |id: &SequenceId| self.price.is_none() || self.goodput.affords_computing(*id);
                let asked: Vec<SequenceId> = ids.clone().filter(asked).collect();
                let candidate = |id| Candidate {
                    id,
                    context: 100,
                    draft: if asked.contains(&id) {
                        &draft
                    } else {
                        &silence
                    },
                };
                let candidates: Vec<_> = ids.map(candidate).collect();
                let load = Load {
                    other_rows: 0,
                    max_nodes: 64,
                };
                self.goodput.plan(&candidates, load, &self.cost, &mut out);
                if let Some(price) = self.price {
                    let price = price * asked.len() as f64;
                    self.time += price;
                    self.asked += asked.len();
                    let took = Duration::from_secs_f64(0.004 * price);
                    self.goodput.charge(&asked, took);
                }
                let rows = alphas.len() + out.iter().sum::<usize>();
                self.time += truth(rows);
                self.measure(rows, 100 * rows);
                for (i, alpha) in alphas.iter().enumerate() {
                    let accepted = held(&mut self.random, *alpha, out[i]);
                    self.tokens += 1.0 + accepted as f64;
                    self.given[i] += out[i];
                    self.goodput.observe(SequenceId(i as u64), node(accepted));
                }
            }
            let plain = alphas.len() as f64 / truth(alphas.len());
            self.tokens / self.time / plain
        }

        /// The cost model sees what a shared machine shows: noise, and one step in ten far too slow.
        fn measure(&mut self, rows: usize, context: usize) {
            let mut seconds = 0.004 * truth(rows) * (0.97 + 0.06 * uniform(&mut self.random));
            if self.random.below(10) == 0 {
                seconds *= 2.0 + 8.0 * uniform(&mut self.random);
            }
            self.cost
                .observe(rows, rows, context, Duration::from_secs_f64(seconds));
        }
    }

    /// Speed-up of the best fixed draft length, for one sequence.
    fn best_fixed(alpha: f64) -> f64 {
        let speed = |k: usize| {
            let tokens: f64 = (0..=k).map(|i| alpha.powi(i as i32)).sum();
            tokens / truth(k + 1)
        };
        (0..=7).map(speed).fold(0.0, f64::max)
    }

    #[test]
    fn one_sequence_comes_near_the_best_fixed_length_and_never_falls_behind_plain() {
        for seed in 0..30 {
            for alpha in [0.9, 0.5, 0.05] {
                let speed = World::new(seed).run(&[alpha], 500);
                let best = best_fixed(alpha);
                assert!(speed >= 0.97, "seed {seed}, {alpha}: {speed:.3}");
                assert!(
                    speed >= 0.88 * best,
                    "seed {seed}, {alpha}: {speed:.3} of {best:.3}"
                );
            }
        }
    }

    #[test]
    fn it_follows_a_sequence_that_starts_and_stops_copying() {
        for seed in 0..30 {
            let mut world = World::new(seed);
            for (alpha, least) in [
                (0.05, 0.97),
                (0.9, 2.4),
                (0.05, 0.96),
                (0.5, 1.2),
                (0.95, 2.6),
            ] {
                let speed = world.run(&[alpha], 300);
                assert!(speed >= least, "seed {seed}, {alpha}: {speed:.3}");
            }
        }
    }

    #[test]
    fn a_batch_never_falls_behind_plain_whatever_is_in_it() {
        for seed in 0..30 {
            let mut random = SplitMix::new(seed);
            let mut world = World::new(seed);
            for _ in 0..4 {
                let size = 1 + random.below(16);
                let alphas: Vec<f64> = (0..size)
                    .map(|_| [0.9, 0.5, 0.05][random.below(3)])
                    .collect();
                let speed = world.run(&alphas, 150);
                assert!(speed >= 0.97, "seed {seed}, {alphas:?}: {speed:.3}");
            }
            let speed = world.run(&[0.05; 8], 400);
            assert!(
                speed >= 0.97,
                "seed {seed}, eight who copy nothing: {speed:.3}"
            );
        }
    }

    /// A draft model a third of its target's size needs the time of two tokens for six guesses.
    #[test]
    fn a_model_that_guesses_badly_is_hardly_asked_and_a_good_one_always() {
        for seed in 0..30 {
            let mut world = World::new(seed);
            world.price = Some(2.0);
            let speed = world.run(&[0.05], 1_000);
            assert!(
                speed >= 0.97,
                "seed {seed}: {speed:.3}, {} asked",
                world.asked
            );
            let mut world = World::new(seed);
            world.price = Some(0.5);
            let speed = world.run(&[0.9], 500);
            assert!(
                speed >= 1.7,
                "seed {seed}: {speed:.3}, {} asked",
                world.asked
            );
            assert!(world.asked > 400, "seed {seed}: {} asked", world.asked);
        }
    }

    #[test]
    fn the_copier_in_a_batch_gets_the_rows() {
        let mut world = World::new(5);
        let alphas = [0.95, 0.05, 0.05, 0.05];
        world.run(&alphas, 300);
        let speed = world.run(&alphas, 300);
        let others: usize = world.given[1..].iter().sum();
        assert!(world.given[0] > 10 * others, "{:?}", world.given);
        assert!(speed > 1.15, "{speed:.3}");
    }

    #[test]
    fn confident_drafts_are_told_from_doubtful_ones() {
        let mut world = World::new(1);
        let (weak, strong) = (chain(6, 0.35), chain(6, 0.95));
        let mut out = Vec::new();
        let load = Load {
            other_rows: 0,
            max_nodes: 64,
        };
        let mut lengths = [0; 2];
        for step in 0..400 {
            let draft = if step % 2 == 0 { &weak } else { &strong };
            let candidate = Candidate {
                id: SequenceId(0),
                context: 100,
                draft,
            };
            world
                .goodput
                .plan(&[candidate], load, &world.cost, &mut out);
            world.measure(1 + out[0], 100);
            let alpha = if step % 2 == 0 { 0.02 } else { 0.95 };
            let accepted = held(&mut world.random, alpha, out[0]);
            world.goodput.observe(SequenceId(0), node(accepted));
            if step >= 200 {
                lengths[step % 2] += out[0];
            }
        }
        assert!(lengths[1] >= 400 && lengths[0] <= 40, "{lengths:?}");
    }

    #[test]
    fn the_plan_stays_within_drafts_and_room() {
        for seed in 0..100 {
            let mut random = SplitMix::new(seed);
            let mut goodput = Goodput::default();
            let cost = StepCost::default();
            let mut out = Vec::new();
            for _ in 0..60 {
                let drafts: Vec<Draft> = (0..random.below(6))
                    .map(|_| {
                        let mut draft = Draft::default();
                        for token in 0..random.below(9) {
                            let parent = random.below(draft.len() + 1).checked_sub(1);
                            draft.push(
                                token as u32,
                                parent.map(|p| p as u16),
                                random.below(2) as u8,
                            );
                        }
                        for node in 0..draft.len() {
                            draft.set_confidence(node as u16, random.below(100) as f64 / 99.0);
                        }
                        draft
                    })
                    .collect();
                let candidates: Vec<_> = (drafts.iter().zip(0..))
                    .map(|(draft, id)| Candidate {
                        id: SequenceId(id),
                        context: random.below(500),
                        draft,
                    })
                    .collect();
                let load = Load {
                    other_rows: random.below(100),
                    max_nodes: random.below(20),
                };
                goodput.plan(&candidates, load, &cost, &mut out);
                assert_eq!(out.len(), candidates.len(), "seed {seed}");
                assert!(out.iter().sum::<usize>() <= load.max_nodes, "seed {seed}");
                for (candidate, nodes) in candidates.iter().zip(&out) {
                    assert!(*nodes <= candidate.draft.len(), "seed {seed}");
                    let accepted = random.below(nodes + 1).checked_sub(1);
                    goodput.observe(candidate.id, accepted.map(|n| n as u16));
                }
                if random.below(5) == 0 {
                    goodput.forget(SequenceId(random.below(6) as u64));
                }
            }
        }
    }
}
