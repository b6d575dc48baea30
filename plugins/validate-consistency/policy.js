// Self-consistency: the tier that answered is asked again, a few times and less sure of itself.
// The share of samples that come to the same result is the confidence. A model that knows
// repeats itself; one that guesses guesses otherwise the next time.
//
// Samples cost what answers cost, so they are drawn only in doubt, only while a larger tier
// could still be asked, and no more than are needed to decide. Doubt has two edges: what the tier
// is sure of is believed, what it had next to no idea of goes on, both without a sample.
//
// Two answers with a number agree when it is the same. Others agree when a short one stands inside
// the other, or when the host's encoder finds them alike; where there is none, when they share
// most of their words. An encoder sees what a text is about: it may take a contradiction for
// agreement, so numbers are not left to it, and it must find two texts very alike.
import { accept, escalate, finding } from './homeostat/homeostat.js';
import { config, number, wrong } from './homeostat/config.js';
import { open } from './homeostat/models.js';
import { verdict as propose } from './homeostat/propose.js';

// Words up to which an answer without a number is compared as a whole.
const SHORT_WORDS = 8;
// Share of words that two longer answers must have in common to say the same.
const SAME_SHARE = 0.6;
// Characters that are embedded: encoders read some 256 tokens.
const EMBEDDED_CHARS = 600;

/** The tier's own confidence: the geometric mean of its tokens' probabilities, or a half. */
function ownConfidence(logprobs) {
  const known = Array.from(logprobs).filter((l) => l <= 0);
  if (known.length === 0) return 0.5;
  return Math.exp(known.reduce((sum, l) => sum + l, 0) / known.length);
}

/** Words in lower case, without punctuation. */
const words = (text) => text.toLowerCase().match(/[\p{L}\p{N}]+/gu) ?? [];

/** The last number of a text, which is where a calculation ends; null without one. */
function result(text) {
  const numbers = text.match(/-?\d[\d,]*(?:\.\d+)?/g);
  return numbers === null ? null : Number(numbers.at(-1).replaceAll(',', ''));
}

/**
 * The cosine of two texts by the host's encoder; null where it does not answer. The first text
 * is embedded once, and an encoder that has failed is not asked again.
 */
function likeness(encoder, one) {
  let model;
  let first;
  const embed = (text) => model.embed(text.slice(0, EMBEDDED_CHARS));
  return (other) => {
    if (model === null) return null;
    try {
      model ??= open(encoder);
      first ??= embed(one);
      return cosine(first, embed(other));
    } catch {
      model = null;
      return null;
    }
  };
}

function cosine(a, b) {
  let [product, left, right] = [0, 0, 0];
  for (let i = 0; i < a.length; i++) {
    product += a[i] * b[i];
    left += a[i] * a[i];
    right += b[i] * b[i];
  }
  return product / Math.sqrt(left * right);
}

/** Whether two answers come to the same, and by what it was seen: 'result', 'meaning', 'words'. */
function compare(one, other, alike, likenessTo) {
  const [a, b] = [result(one), result(other)];
  if (a !== null || b !== null) return { same: a === b, by: 'result' };
  const [left, right] = [words(one), words(other)];
  // A short answer may stand inside a longer one: "Paris" and "It is Paris."
  const [short, long] = left.length <= right.length ? [left, right] : [right, left];
  const isShort = short.length <= SHORT_WORDS;
  const within = short.length > 0 && ` ${long.join(' ')} `.includes(` ${short.join(' ')} `);
  if (short.length === 0 || (isShort && within)) return { same: within, by: 'words' };
  const near = likenessTo(other);
  if (near !== null) return { same: near >= alike, by: 'meaning' };
  const [mine, theirs] = [new Set(left), new Set(right)];
  const common = [...mine].filter((word) => theirs.has(word)).length;
  const shared = (2 * common) / (mine.size + theirs.size) >= SAME_SHARE;
  return { same: !isShort && shared, by: 'words' };
}

/** The conversation as a prompt in ChatML. No message can end its turn and begin another. */
function prompt(request) {
  const tame = (text) => text.replaceAll('<|', '< |');
  const turns = request.messages.map(
    (m) => `<|im_start|>${m.role}\n${tame(m.content)}<|im_end|>\n`,
  );
  return `${turns.join('')}<|im_start|>assistant\n`;
}

/** Whether it reaches the threshold, which is a number of 32 bits: 3 of 5 are 0.6. */
const reaches = (confidence, answer) => Math.fround(confidence) >= answer.acceptThreshold;

/** Enough in common, or not; `note` tells why. */
function verdict(answer, confidence, note) {
  const passed = reaches(confidence, answer);
  const findings = [finding('consistency', passed, note)];
  return passed || answer.stepsLeft === 0
    ? accept(confidence, findings)
    : escalate(confidence, findings);
}

/** @type {import('./homeostat/contract.js').Validator} */
export const validator = {
  validate(request, answer) {
    const most = Math.floor(number('samples', 4, 1, 16));
    const temperature = number('temperature', 0.7, 0.01, 2);
    const maxTokens = Math.floor(number('max-tokens', 64, 1, 256));
    const sure = number('sure', 0.9, 0, 1);
    const hopeless = number('hopeless', Math.min(0.15, sure), 0, 1);
    if (hopeless > sure) wrong('hopeless', String(hopeless), `0 to sure, which is ${sure}`);
    // Set by hand: there are no recorded samples of which somebody has said what agrees.
    const alike = number('alike', 0.85, -1, 1);
    const encoder = config('encoder') ?? 'all-minilm-l6-v2';

    if (answer.finish === 'unfinished') return { tag: 'undecided' };
    const own = ownConfidence(answer.logprobs);
    if (words(answer.text).length === 0) return verdict(answer, 0, 'the answer is empty');
    if (answer.stepsLeft === 0) return verdict(answer, own, 'the last step is not asked again');
    if (own >= sure) return verdict(answer, own, 'sure enough without a sample');
    if (own < hopeless) return verdict(answer, own, 'too unsure to be asked again');
    if (request.cutBytes > 0) return verdict(answer, own, 'too long to be asked again');

    propose(verdict(answer, own, 'no sample came in time'));
    // The answer itself is one voice.
    let voices = 1;
    let same = 1;
    let failure = '';
    let byMeaning = false;
    const likenessTo = likeness(encoder, answer.text);
    try {
      const tier = open(answer.tier);
      const text = prompt(request);
      const stop = ['<|im_end|>'];
      for (let seed = 1; seed <= most; seed++) {
        const sample = tier.generate(text, { maxTokens, temperature, seed, stop });
        voices += 1;
        const compared = compare(answer.text, sample.text, alike, likenessTo);
        if (compared.same) same += 1;
        if (compared.by === 'meaning') byMeaning = true;
        propose(verdict(answer, same / voices, `${same} of ${voices} agree, then time was up`));
        // Whatever the others say, it is decided.
        const left = most + 1 - voices;
        const [worst, best] = [same / (most + 1), (same + left) / (most + 1)];
        if (reaches(worst, answer) || !reaches(best, answer)) break;
      }
    } catch (error) {
      failure = String(error?.payload?.val ?? error?.val ?? error?.message ?? error);
    }
    if (voices === 1) return verdict(answer, own, `no sample: ${failure}`);
    const how = byMeaning ? ', by meaning' : '';
    return verdict(answer, same / voices, `${same} of ${voices} answers agree${how}`);
  },
};
