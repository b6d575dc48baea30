// Self-consistency: the tier that answered is asked again, a few times and less sure of itself.
// The share of samples that come to the same result is the confidence. A model that knows
// repeats itself; one that guesses guesses otherwise the next time.
//
// Samples cost what answers cost, so they are drawn only in doubt, only while a larger tier
// could still be asked, and no more than are needed to decide.
import { accept, escalate, finding } from './homeostat/homeostat.js';
import { number } from './homeostat/config.js';
import { open } from './homeostat/models.js';
import { verdict as propose } from './homeostat/propose.js';

// Words up to which an answer without a number is compared as a whole.
const SHORT_WORDS = 8;
// Share of words that two longer answers must have in common to say the same.
const SAME_SHARE = 0.6;

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

/** Whether two answers come to the same. */
function agree(one, other) {
  const [a, b] = [result(one), result(other)];
  if (a !== null || b !== null) return a === b;
  const [left, right] = [words(one), words(other)];
  if (Math.min(left.length, right.length) <= SHORT_WORDS) {
    // A short answer may stand inside a longer one: "Paris" and "It is Paris."
    const [short, long] = left.length <= right.length ? [left, right] : [right, left];
    return short.length > 0 && ` ${long.join(' ')} `.includes(` ${short.join(' ')} `);
  }
  const [mine, theirs] = [new Set(left), new Set(right)];
  const common = [...mine].filter((word) => theirs.has(word)).length;
  return (2 * common) / (mine.size + theirs.size) >= SAME_SHARE;
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

    if (answer.finish === 'unfinished') return { tag: 'undecided' };
    const own = ownConfidence(answer.logprobs);
    if (words(answer.text).length === 0) return verdict(answer, 0, 'the answer is empty');
    if (answer.stepsLeft === 0) return verdict(answer, own, 'the last step is not asked again');
    if (own >= sure) return verdict(answer, own, 'sure enough without a sample');
    if (request.cutBytes > 0) return verdict(answer, own, 'too long to be asked again');

    propose(verdict(answer, own, 'no sample came in time'));
    // The answer itself is one voice.
    let voices = 1;
    let same = 1;
    let failure = '';
    try {
      const tier = open(answer.tier);
      const text = prompt(request);
      const stop = ['<|im_end|>'];
      for (let seed = 1; seed <= most; seed++) {
        const sample = tier.generate(text, { maxTokens, temperature, seed, stop });
        voices += 1;
        if (agree(answer.text, sample.text)) same += 1;
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
    return verdict(answer, same / voices, `${same} of ${voices} answers agree`);
  },
};
